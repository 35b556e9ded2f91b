package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// TestDrainProgress: what is done counts from the most that was there, the rate is that of the last
// minute.
func TestDrainProgress(t *testing.T) {
	store := func(id uint64, state metapb.StoreState, regions int, mib int64) *core.StoreInfo {
		return core.NewStore(&metapb.Store{Id: id, State: state}, time.Time{}).
			Clone(core.WithCounts(core.StoreCounts{RegionCount: regions, RegionSize: mib}))
	}
	var d drains
	now := time.Unix(1_700_000_000, 0)
	leaving := store(1, metapb.StoreState_Offline, 100, 1000)
	require.Equal(t, drainJSON{Regions: 100, SizeMiB: 1000}, d.progress(leaving))
	d.note(now, []*core.StoreInfo{leaving, store(2, metapb.StoreState_Up, 5, 5)})
	require.Nil(t, d.progress(leaving).ETASeconds)
	require.Len(t, d.mu.samples, 1)

	// Two minutes at 5 MiB/s, then a minute at 1.
	size := int64(1000)
	for i := range 180 {
		now = now.Add(time.Second)
		if size -= 5; i >= 120 {
			size += 4
		}
		leaving = store(1, metapb.StoreState_Offline, int(size/10), size)
		d.note(now, []*core.StoreInfo{leaving})
	}
	require.Equal(t, int64(340), size)
	got := d.progress(leaving)
	require.InDelta(t, 0.66, got.DoneShare, 0.001)
	require.InDelta(t, 1, got.RateMiB, 0.001)
	require.InDelta(t, 0.1, got.RegionRate, 0.02)
	require.InDelta(t, 340, *got.ETASeconds, 1)
	require.LessOrEqual(t, len(d.mu.samples[1]), 64)

	// It grew by a split or writes: nothing is done more than once.
	leaving = store(1, metapb.StoreState_Offline, 300, 3000)
	d.note(now.Add(time.Second), []*core.StoreInfo{leaving})
	require.Zero(t, d.progress(leaving).DoneShare)
	require.Zero(t, d.progress(leaving).RateMiB)

	// It is up again, then leaves anew: the beginning is another one.
	d.note(now, []*core.StoreInfo{store(1, metapb.StoreState_Up, 300, 3000)})
	require.Empty(t, d.mu.samples)
}
