package node

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestSyncTimesAreSlowOnlyAllTheTime: what counts is the quickest of the last five seconds.
func TestSyncTimesAreSlowOnlyAllTheTime(t *testing.T) {
	var s syncTimes
	at := func(sec float64) time.Time { return time.Unix(1000, int64(sec*1e9)) }
	second := func(sec int, n int, took time.Duration) {
		for i := range n {
			s.note(at(float64(sec)+float64(i)/float64(n)), took)
		}
	}
	second(0, 4, 200*time.Millisecond)
	second(1, 4, 200*time.Millisecond)
	require.Zero(t, s.least(at(2.5)), "two seconds are too few")
	second(2, 4, 200*time.Millisecond)
	require.Zero(t, s.least(at(2.9)), "the third is not over")
	got := s.least(at(3))
	require.GreaterOrEqual(t, got, 200*time.Millisecond)
	require.LessOrEqual(t, got, 250*time.Millisecond)
	second(3, 50, time.Millisecond)
	require.LessOrEqual(t, s.least(at(4)), 1250*time.Microsecond, "one quick second")
	for sec := 4; sec < 9; sec++ {
		second(sec, 3, 300*time.Millisecond)
	}
	require.GreaterOrEqual(t, s.least(at(9)), 300*time.Millisecond, "the quick second has passed")
	require.Zero(t, s.least(at(20)), "nothing was synced lately")
	require.True(t, s.note(at(30), time.Second))
	require.False(t, s.note(at(30.5), time.Second))
}

func TestPercentileOfASecond(t *testing.T) {
	for _, c := range []struct {
		took []time.Duration // each a hundred times over
		plus []time.Duration
		want time.Duration
	}{
		{
			plus: []time.Duration{time.Millisecond, 100 * time.Millisecond},
			want: 100 * time.Millisecond,
		},
		{
			took: []time.Duration{time.Millisecond}, plus: []time.Duration{time.Second},
			want: time.Millisecond,
		},
		{
			took: []time.Duration{time.Millisecond},
			plus: []time.Duration{time.Second, time.Second}, want: time.Second,
		},
		{took: []time.Duration{0, 10 * time.Millisecond}, want: 10 * time.Millisecond},
		{plus: []time.Duration{24 * time.Hour}, want: 5 * time.Minute},
		{plus: []time.Duration{0}, want: 50 * time.Microsecond},
	} {
		var s syncTimes
		for _, d := range append(slices.Repeat(c.took, 100), c.plus...) {
			s.note(time.Unix(7, 0), d)
		}
		got := s.slots[7%len(s.slots)].p99()
		require.GreaterOrEqual(t, got, c.want)
		require.LessOrEqual(t, float64(got), 1.27*float64(c.want))
	}
}

// TestSlowSyncsAreReportedAtOnce, and a sync that hangs; once for each stretch, and again while it
// lasts.
func TestSlowSyncsAreReportedAtOnce(t *testing.T) {
	w := newDiskWatch(100 * time.Millisecond)
	clock := time.Unix(1000, 0)
	w.now = func() time.Time { return clock }
	reported := func() bool {
		select {
		case <-w.alarm:
			return true
		default:
			return false
		}
	}
	for range 10 {
		require.NoError(t,
			w.around(func() error { clock = clock.Add(150 * time.Millisecond); return nil }))
	}
	require.False(t, reported(), "not yet for three whole seconds")
	for range 20 {
		require.NoError(t,
			w.around(func() error { clock = clock.Add(150 * time.Millisecond); return nil }))
	}
	require.True(t, reported())
	takes, hangs := w.stats()
	require.GreaterOrEqual(t, takes, 150*time.Millisecond)
	require.Zero(t, hangs)

	w = newDiskWatch(100 * time.Millisecond)
	require.NoError(t, w.around(func() error {
		<-w.alarm
		_, hangs := w.stats()
		require.GreaterOrEqual(t, hangs, hangingSync)
		<-w.alarm // again
		return nil
	}))
}
