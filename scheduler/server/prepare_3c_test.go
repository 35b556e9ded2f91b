package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

// TestReplicasAddedBeforeAllIsPrepared3C: the replicas of a new cluster are added while the stores
// have not reported yet. Their regions count as confirmed on the stores that they are on by then.
func TestReplicasAddedBeforeAllIsPrepared3C(t *testing.T) {
	now := time.Unix(1000, 0)
	settings := &view.Settings{Schedule: config.DefaultSchedule()}
	var p prepareChecker
	p.reset(now)
	stores := make([]*core.StoreInfo, 3)
	count := func(n int) {
		for i := range stores {
			s := core.NewStore(&metapb.Store{Id: uint64(i + 1)}, now)
			stores[i] = s.Clone(core.WithCounts(core.StoreCounts{RegionCount: n}))
		}
	}
	count(0)
	region := func(confVer uint64, stores ...uint64) *core.RegionInfo {
		r := &metapb.Region{Id: 1, RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: confVer}}
		for _, id := range stores {
			r.Peers = append(r.Peers, &metapb.Peer{Id: 10 + id, StoreId: id})
		}
		return core.NewRegion(r, r.Peers[0])
	}
	alone, two, all := region(1, 1), region(2, 1, 2), region(3, 1, 2, 3)
	p.collect(nil, alone, now)
	p.storeBeat(1, 1)
	p.storeBeat(2, 0)
	require.False(t, p.check(now, stores, settings), "store 3 has not reported")
	p.collect(alone, two, now)
	p.collect(two, all, now)
	p.storeBeat(3, 1)
	count(1)
	require.True(t, p.check(now, stores, settings))

	p.reset(now)
	p.collect(nil, all, now)
	p.gone(all)
	for id := range uint64(3) {
		p.storeBeat(id+1, 1)
	}
	require.False(t, p.check(now, stores, settings), "the region that was confirmed is gone")
}
