package history

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/timing"
)

var base = time.Unix(1_000_000, 0)

func at(seconds int) time.Time { return base.Add(time.Duration(seconds) * time.Second) }

// count has n requests of a duration.
func count(n uint64, took time.Duration) []uint64 {
	var h timing.Histogram
	h.Note(took, int(n))
	got := h.Read()
	return got.Classes[:]
}

func TestRatesOfStores(t *testing.T) {
	h := New()
	none := count(0, 0)
	h.Beat(1, 7, at(0), count(1000, time.Millisecond), none)
	h.Sample(Point{Time: at(1), Stores: []Store{{ID: 1}}}, time.Minute)
	require.Zero(t, h.After(time.Time{})[0].Reads, "one report says nothing about a rate")

	h.Beat(1, 7, at(10), count(2000, time.Millisecond), count(50, 100*time.Microsecond))
	h.Beat(2, 9, at(10), count(9000, time.Millisecond), none)
	h.Sample(Point{Time: at(11), Stores: []Store{{ID: 1, Leaders: 3}, {ID: 2}}}, time.Minute)
	p := h.After(at(1))[0]
	require.InDelta(t, 100, p.Reads.PerSecond, 0.001)
	require.InDelta(t, 5, p.Writes.PerSecond, 0.001)
	require.InDelta(t, 100, p.Stores[0].Reads, 0.001)
	require.Equal(t, 3, p.Stores[0].Leaders)
	require.Zero(t, p.Stores[1].Reads)
	// A millisecond lies between 512 and 1,024 us, 100 us between 64 and 128.
	require.Greater(t, p.Reads.P50, 512.0)
	require.LessOrEqual(t, p.Reads.P99, 1024.0)
	require.Less(t, p.Reads.P50, p.Reads.P99)
	require.Greater(t, p.Writes.P50, 64.0)
	require.LessOrEqual(t, p.Writes.P99, 128.0)

	// A store that was started again counts from 0, one that is silent does not count any more.
	h.Beat(1, 8, at(20), count(5000, time.Millisecond), none)
	h.Sample(Point{Time: at(200), Stores: []Store{{ID: 1}, {ID: 2}}}, time.Minute)
	require.Zero(t, h.After(at(11))[0].Reads.PerSecond)
	h.Beat(1, 8, at(201), count(5000, time.Millisecond)[:3], none)
	h.Beat(1, 8, at(210), count(5100, time.Millisecond), none)
	h.Sample(Point{Time: at(211), Stores: []Store{{ID: 1}}}, time.Minute)
	require.InDelta(t, 100.0/190, h.After(at(200))[0].Reads.PerSecond, 0.001,
		"a report that is not understood is left out")
}

func TestQuantiles(t *testing.T) {
	var r rates
	require.Zero(t, r.quantile(0.99))
	r[0] = 50 // up to 16 us
	r[3] = 49 // 64 to 128
	r[timing.Classes-1] = 1
	require.InDelta(t, 16, r.quantile(0.5), 0.001)
	require.InDelta(t, 128, r.quantile(0.99), 0.001)
	require.Greater(t, r.quantile(0.999), 1e6)
}

func TestPointsAreBounded(t *testing.T) {
	h := New()
	for i := range 3 * Length {
		h.Sample(Point{Time: at(i)}, time.Minute)
	}
	all := h.After(time.Time{})
	require.Len(t, all, Length)
	require.Equal(t, at(2*Length), all[0].Time)
	require.Len(t, h.After(at(3*Length-4)), 3)
	require.Empty(t, h.After(at(3*Length-1)))

	stores := make([]Store, 2*maxStores)
	for i := range stores {
		stores[i].ID = uint64(i + 1)
	}
	busy := stores[len(stores)-1].ID
	h.Beat(busy, 1, at(5000), count(0, 0), count(0, 0))
	h.Beat(busy, 1, at(5001), count(9, 0), count(0, 0))
	h.Sample(Point{Time: at(5002), Stores: stores}, time.Minute)
	p := h.After(at(5001))[0]
	require.Len(t, p.Stores, maxStores)
	require.Equal(t, busy, p.Stores[0].ID)
	require.InDelta(t, 9, p.Reads.PerSecond, 0.001, "the total has all")
}

// TestFollowersCopy: a member that leads next goes on where the leader ended.
func TestFollowersCopy(t *testing.T) {
	leader, follower := New(), New()
	for i := range 5 {
		leader.Sample(Point{Time: at(i)}, time.Minute)
	}
	follower.Copy(leader.After(time.Time{}))
	follower.Copy(leader.After(time.Time{}))
	require.Equal(t, leader.After(time.Time{}), follower.After(time.Time{}))
	follower.Sample(Point{Time: at(6)}, time.Minute)
	follower.Copy(leader.After(time.Time{}))
	require.Len(t, follower.After(time.Time{}), 6)
}
