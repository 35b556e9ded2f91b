package core

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// TestSlowness: reports of a store, at seconds after the start; others take 2 ms unless said
// otherwise.
func TestSlowness(t *testing.T) {
	const ms = time.Millisecond
	type report struct {
		at         float64
		own, usual time.Duration
		slow       bool
	}
	for name, reports := range map[string][]report{
		"one slow report is not enough": {
			{0, 200 * ms, 2 * ms, false}, {2, 2 * ms, 2 * ms, false}, {10, 200 * ms, 2 * ms, false},
		},
		"two are, if others are quick": {
			{0, 200 * ms, 2 * ms, false}, {2, 200 * ms, 2 * ms, true},
		},
		"others have got slow meanwhile": {
			{0, 200 * ms, 2 * ms, false}, {2, 200 * ms, 50 * ms, false},
			{4, 251 * ms, 50 * ms, false}, {6, 251 * ms, 50 * ms, true},
		},
		"nobody else has anything to say": {{0, 200 * ms, 0, false}, {2, 200 * ms, 0, true}},
		"slower than others, but not slow": {
			{0, 99 * ms, 1 * ms, false}, {2, 99 * ms, 1 * ms, false},
		},
		"five minutes after the last one": {
			{0, 200 * ms, 0, false}, {2, 200 * ms, 0, true}, {12, 0, 0, true}, {301, 0, 0, true},
			{302, 0, 0, false},
		},
		"each slow report begins the hold": {
			{0, 200 * ms, 0, false}, {2, 200 * ms, 0, true}, {250, 200 * ms, 0, true},
			{549, 0, 0, true}, {551, 0, 0, false},
		},
		"the second time ten": {
			{0, 200 * ms, 0, false}, {2, 200 * ms, 0, true}, {400, 0, 0, false},
			{500, 200 * ms, 0, false}, {502, 200 * ms, 0, true}, {1101, 0, 0, true},
			{1103, 0, 0, false},
		},
		"after an hour without it is a new": {
			{0, 200 * ms, 0, false}, {2, 200 * ms, 0, true}, {400, 0, 0, false},
			{4000, 200 * ms, 0, false}, {4002, 200 * ms, 0, true}, {4301, 0, 0, true},
			{4303, 0, 0, false},
		},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Unix(1_700_000_000, 0)
			s := NewStore(&metapb.Store{Id: 1}, start)
			for _, r := range reports {
				now := start.Add(time.Duration(r.at * float64(time.Second)))
				stats := &schedulerpb.StoreStats{SyncMicros: uint64(r.own.Microseconds())}
				s = s.Clone(WithStats(stats, now), WithSyncs(r.usual, now))
				require.Equal(t, r.slow, s.IsSlow(now), "at %v s: %+v", r.at, s.Slowness())
			}
		})
	}
}

func TestSlownessDoublesToAnHour(t *testing.T) {
	var s Slowness
	now := time.Unix(1_700_000_000, 0)
	for _, want := range []time.Duration{5, 10, 20, 40, 60, 60} {
		s = s.next(time.Second, 0, now)
		now = now.Add(2 * time.Second)
		s = s.next(time.Second, 0, now)
		require.Equal(t, want*time.Minute, s.Until.Sub(now))
		now = s.Until
		s = s.next(0, 0, now)
		require.True(t, s.Since.IsZero())
	}
}

func TestSyncTimes(t *testing.T) {
	store := func(micros, hangs uint64) *StoreInfo {
		return NewStore(&metapb.Store{Id: 1}, time.Time{}).Clone(
			WithStats(&schedulerpb.StoreStats{SyncMicros: micros, SyncHangsMicros: hangs},
				time.Time{}))
	}
	require.Equal(t, 600*time.Millisecond, SyncTime(store(2000, 600_000).Stats()))
	require.Equal(t, 2*time.Millisecond, SyncTime(store(2000, 400_000).Stats()), "that is no hang")
	require.Zero(t, SyncTime(nil))
	require.Zero(t, UsualSync(nil))
	require.Equal(t, 2*time.Millisecond,
		UsualSync([]*StoreInfo{store(0, 0), store(200_000, 0), store(2000, 0)}))
	require.Equal(t, 3*time.Millisecond,
		UsualSync([]*StoreInfo{store(200_000, 0), store(2000, 0), store(3000, 0)}))
}
