package schedulers_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
	"github.com/tinykv/tinykv/scheduler/server/schedulers"
)

const regionSize = 10 // MiB

// cluster is a map to plan on. Stores get their size by filler regions that no leader has
// confirmed, so that balance counts them and leaves them alone.
type cluster struct {
	t      *testing.T
	core   *core.BasicCluster
	set    view.Settings
	now    time.Time
	nextID uint64
	busy   map[uint64]bool
}

func newCluster(t *testing.T, replicas int) *cluster {
	t.Helper()
	return &cluster{
		t: t, core: core.NewBasicCluster(), now: time.Unix(1_700_000_000, 0), nextID: 1000,
		busy: map[uint64]bool{},
		set: view.Settings{
			Schedule:    config.DefaultSchedule(),
			Replication: config.Replication{MaxReplicas: replicas},
		},
	}
}

func (c *cluster) id() uint64 { c.nextID++; return c.nextID }

// store adds a store that holds so many regions.
func (c *cluster) store(id uint64, regions int) {
	c.core.PutStore(core.NewStore(&metapb.Store{Id: id, Address: fmt.Sprint(id)}, c.now))
	for range regions {
		c.put(c.id(), 0, regionSize, id)
	}
}

// put adds a region on the given stores, led by leader (0: unconfirmed).
func (c *cluster) put(id, leader uint64, size int64, stores ...uint64) *core.RegionInfo {
	key := fmt.Appendf(nil, "%010d", id)
	m := &metapb.Region{
		Id: id, StartKey: key, EndKey: append(key, 0),
		RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
	}
	for _, s := range stores {
		m.Peers = append(m.Peers, &metapb.Peer{Id: c.id(), StoreId: s})
	}
	r := core.NewRegion(m, nil, core.WithLeaderStore(leader), core.WithSize(size))
	_, err := c.core.PutRegion(r)
	require.NoError(c.t, err)
	return r
}

// region adds region 1 of the usual size, led by the first store.
func (c *cluster) region(stores ...uint64) *core.RegionInfo {
	return c.put(1, stores[0], regionSize, stores...)
}

func (c *cluster) update(id uint64, opts ...core.StoreOption) { c.core.UpdateStore(id, opts...) }

func (c *cluster) view() *view.View {
	return view.New(view.View{
		Now: c.now, Settings: &c.set, Regions: c.core, Rand: rand.New(rand.NewPCG(1, 2)),
		Busy:    func(id uint64) bool { return c.busy[id] },
		AllocID: func() (uint64, error) { return c.id(), nil },
	}, nil)
}

func (c *cluster) balanceRegion() *operator.Operator {
	return schedulers.NewBalanceRegion().Schedule(c.view())
}

// moves checks that the operator moves region 1 from one store to another, and how.
func (c *cluster) moves(op *operator.Operator, from, to uint64) {
	c.t.Helper()
	require.NotNil(c.t, op)
	add, ok := op.Steps()[0].(operator.AddPeer)
	require.True(c.t, ok, "%v", op)
	rm, ok := op.Steps()[len(op.Steps())-1].(operator.RemovePeer)
	require.True(c.t, ok, "%v", op)
	require.Equal(c.t, to, add.ToStore, "%v", op)
	require.Equal(c.t, from, rm.FromStore, "%v", op)
}

func TestBalanceRegionReplicas13C(t *testing.T) {
	c := newCluster(t, 1)
	c.store(1, 6)
	c.store(2, 8)
	c.store(3, 8)
	c.store(4, 16)
	c.region(4)
	c.moves(c.balanceRegion(), 4, 1)

	c.update(1, core.WithState(metapb.StoreState_Offline))
	op := c.balanceRegion()
	require.NotNil(t, op)
	require.NotEqual(t, uint64(1), op.Steps()[0].(operator.AddPeer).ToStore,
		"an offline store is no target")

	c.set.Replication.MaxReplicas = 3
	require.Nil(t, c.balanceRegion(), "a region with too few replicas is the checker's business")
	c.set.Replication.MaxReplicas = 1
	require.NotNil(t, c.balanceRegion())
}

func TestBalanceRegionReplicas33C(t *testing.T) {
	c := newCluster(t, 3)
	c.store(1, 16)
	c.store(2, 15)
	c.store(3, 14)
	c.region(1, 2, 3)
	require.Nil(t, c.balanceRegion(), "no store without the region")
	c.store(4, 2)
	c.moves(c.balanceRegion(), 1, 4)
	c.store(5, 1)
	c.moves(c.balanceRegion(), 1, 5)
	c.update(5, core.WithState(metapb.StoreState_Offline))
	c.moves(c.balanceRegion(), 1, 4)
	c.update(5, core.WithState(metapb.StoreState_Up), core.WithLastHeartbeat(c.now.Add(-time.Hour)))
	c.moves(c.balanceRegion(), 1, 4)
	c.update(5, core.WithLastHeartbeat(c.now.Add(-time.Minute)))
	c.moves(c.balanceRegion(), 1, 4)
}

func TestBalanceRegionReplicas53C(t *testing.T) {
	c := newCluster(t, 5)
	for id, n := range map[uint64]int{1: 4, 2: 5, 3: 6, 4: 7, 5: 28} {
		c.store(id, n)
	}
	c.region(5, 1, 2, 3, 4)
	require.Nil(t, c.balanceRegion())
	c.store(6, 1)
	c.moves(c.balanceRegion(), 5, 6)
}

func TestBalanceRegionStepsOfAFollower3C(t *testing.T) {
	c := newCluster(t, 3)
	c.store(1, 20)
	c.store(2, 5)
	c.store(3, 5)
	c.store(4, 1)
	c.region(2, 1, 3)
	op := c.balanceRegion()
	c.moves(op, 1, 4)
	require.Len(t, op.Steps(), 2, "%v", op)
	require.Equal(t, operator.OpBalance|operator.OpRegion, op.Kind())
}

func TestBalanceRegionStepsOfALeader3C(t *testing.T) {
	c := newCluster(t, 3)
	c.store(1, 20)
	c.store(2, 5)
	c.store(3, 5)
	c.store(4, 1)
	c.region(1, 2, 3)
	op := c.balanceRegion()
	c.moves(op, 1, 4)
	require.Len(t, op.Steps(), 3, "%v", op)
	transfer, ok := op.Steps()[1].(operator.TransferLeader)
	require.True(t, ok)
	require.Contains(t, []uint64{2, 3}, transfer.ToStore,
		"a leader goes to a follower that has the data")
}

func TestBalanceRegionPendingFirst3C(t *testing.T) {
	c := newCluster(t, 3)
	c.store(1, 20)
	c.store(2, 5)
	c.store(3, 5)
	c.store(4, 1)
	c.put(1, 1, regionSize, 1, 2, 3)
	c.put(2, 2, regionSize, 2, 1, 3)
	r := c.put(3, 2, regionSize, 2, 1, 3)
	p, _ := r.StorePeer(1)
	_, err := c.core.PutRegion(r.Clone(core.WithPending(p.ID)))
	require.NoError(t, err)
	require.EqualValues(t, 3, c.balanceRegion().RegionID())
	require.EqualValues(t, 3, c.balanceRegion().RegionID(), "asking again changes nothing")
	c.busy[3] = true
	require.EqualValues(t, 2, c.balanceRegion().RegionID(), "then followers")
	c.busy[2] = true
	require.EqualValues(t, 1, c.balanceRegion().RegionID(), "then leaders")
	c.busy[1] = true
	require.Nil(t, c.balanceRegion())
}

func TestBalanceRegionPendingElsewhere3C(t *testing.T) {
	c := newCluster(t, 3)
	c.store(1, 20)
	c.store(2, 5)
	c.store(3, 5)
	c.store(4, 1)
	r := c.region(1, 2, 3)
	p, _ := r.StorePeer(2)
	_, err := c.core.PutRegion(r.Clone(core.WithPending(p.ID)))
	require.NoError(t, err)
	require.Nil(t, c.balanceRegion(), "another replica is still catching up")
}

func TestBalanceRegionTooSmallADifference3C(t *testing.T) {
	c := newCluster(t, 1)
	c.store(1, 10)
	c.store(2, 9)
	c.region(1)
	require.Nil(t, c.balanceRegion(), "11 against 9: moving one would only swap them")
	c.store(3, 8)
	c.moves(c.balanceRegion(), 1, 3)
	c.put(1, 1, 20, 1) // the region grows: now it is too big for the difference
	require.Nil(t, c.balanceRegion())
}

func TestBalanceRegionWeight3C(t *testing.T) {
	c := newCluster(t, 1)
	c.store(1, 10)
	c.store(2, 10)
	c.store(3, 10)
	c.region(1)
	c.update(2, core.WithWeight(0.5))
	c.update(3, core.WithWeight(2))
	c.moves(c.balanceRegion(), 1, 3)
}

func TestBalanceRegionSourceOrder3C(t *testing.T) {
	c := newCluster(t, 1)
	c.store(1, 30)
	c.store(2, 20)
	c.store(3, 1)
	c.put(1, 2, regionSize, 2)
	// The biggest store has nothing that can be moved; the next one has.
	c.moves(c.balanceRegion(), 2, 3)
}

func TestBalanceRegionNotWhenSourceIsDownOrOffline3C(t *testing.T) {
	for name, opt := range map[string]core.StoreOption{
		"offline":   core.WithState(metapb.StoreState_Offline),
		"tombstone": core.WithState(metapb.StoreState_Tombstone),
		"down":      core.WithLastHeartbeat(time.Unix(1_700_000_000, 0).Add(-time.Hour)),
	} {
		c := newCluster(t, 1)
		c.store(1, 30)
		c.store(2, 1)
		c.store(3, 1)
		c.region(1)
		c.moves(c.balanceRegion(), 1, 2)
		c.update(1, opt)
		require.Nil(t, c.balanceRegion(), name)
	}
}

func TestBalanceRegionTargetFilters3C(t *testing.T) {
	stats := func(s *schedulerpb.StoreStats) core.StoreOption {
		return core.WithStats(s, time.Unix(1_700_000_000, 0))
	}
	for name, opt := range map[string]core.StoreOption{
		"offline":      core.WithState(metapb.StoreState_Offline),
		"down":         core.WithLastHeartbeat(time.Unix(1_700_000_000, 0).Add(-time.Hour)),
		"disconnected": core.WithLastHeartbeat(time.Unix(1_700_000_000, 0).Add(-30 * time.Second)),
		"busy":         stats(&schedulerpb.StoreStats{IsBusy: true}),
		"slow":         stats(&schedulerpb.StoreStats{IsSlow: true}),
		"low space":    stats(&schedulerpb.StoreStats{Capacity: 100, Available: 5}),
		"full disk":    stats(&schedulerpb.StoreStats{IsDiskFull: true}),
	} {
		c := newCluster(t, 1)
		c.store(1, 30)
		c.store(2, 1)
		c.region(1)
		c.moves(c.balanceRegion(), 1, 2)
		c.update(2, opt)
		require.Nil(t, c.balanceRegion(), name)
	}
}

// Running operators count: without that, hundreds of moves are aimed at one empty store.
func TestBalanceRegionCountsRunningOperators3C(t *testing.T) {
	c := newCluster(t, 1)
	c.set.Schedule.StoreMovesInFlight = 1000
	c.store(1, 0)
	c.store(2, 0)
	for i := range 20 {
		c.put(uint64(i+1), 1, regionSize, 1)
	}
	v := c.view()
	b := schedulers.NewBalanceRegion()
	n := 0
	for op := b.Schedule(v); op != nil; op = b.Schedule(v) {
		n++
		c.busy[op.RegionID()] = true
		v.Admitted(op, c.core.Region(op.RegionID()))
		require.LessOrEqual(t, n, 10)
	}
	require.Equal(t, 9, n, "20:0 becomes 11:9; the next move would only swap the stores")
}

// When the best target has no budget the move waits instead of going to the next best.
func TestBalanceRegionWaitsForBudget3C(t *testing.T) {
	c := newCluster(t, 1)
	c.set.Schedule.StoreMovesInFlight = 2
	c.store(1, 0)
	c.store(2, 0)
	for i := range 20 {
		c.put(uint64(i+1), 1, regionSize, 1)
	}
	v := c.view()
	b := schedulers.NewBalanceRegion()
	for range 2 {
		op := b.Schedule(v)
		require.NotNil(t, op)
		c.busy[op.RegionID()] = true
		v.Admitted(op, c.core.Region(op.RegionID()))
	}
	require.Nil(t, b.Schedule(v))
}

func TestBalanceRegionIsolation3C(t *testing.T) {
	c := newCluster(t, 3)
	c.set.Replication.LocationLabels = []string{"zone"}
	for id, n := range map[uint64]int{1: 20, 2: 10, 3: 10, 4: 1, 5: 2} {
		c.store(id, n)
	}
	zone := func(id uint64, z string) {
		m := *c.core.Store(id).Meta()
		m.Labels = []*metapb.StoreLabel{{Key: "zone", Value: z}}
		c.update(id, core.WithMeta(&m))
	}
	zone(1, "a")
	zone(2, "b")
	zone(3, "c")
	zone(4, "b")
	zone(5, "a")
	c.region(1, 2, 3)
	c.moves(c.balanceRegion(), 1, 5) // store 4 is emptier, but zone b has a replica already
}

func TestSchedulerIntervals3C(t *testing.T) {
	for _, s := range schedulers.Default() {
		i := s.GetMinInterval()
		for range 100 {
			next := s.GetNextInterval(i)
			require.GreaterOrEqual(t, next, i)
			require.LessOrEqual(t, next, 5*time.Second)
			i = next
		}
		require.GreaterOrEqual(t, i, time.Second, "an idle scheduler slows down")
	}
	require.Equal(t, 13*time.Second/10, schedule.NextInterval(time.Second))
}

func TestBalanceLeader3C(t *testing.T) {
	c := newCluster(t, 3)
	for id := range uint64(3) {
		c.store(id+1, 0)
	}
	for i := range uint64(12) {
		c.put(i+1, 1, regionSize, 1, 2, 3)
	}
	v := c.view()
	b := schedulers.NewBalanceLeader()
	to := map[uint64]int{}
	for op := b.Schedule(v); op != nil; op = b.Schedule(v) {
		step := op.Steps()[0].(operator.TransferLeader)
		require.EqualValues(t, 1, step.FromStore)
		to[step.ToStore]++
		c.busy[op.RegionID()] = true
		v.Admitted(op, c.core.Region(op.RegionID()))
	}
	require.Equal(t, map[uint64]int{2: 4, 3: 4}, to)
}

func TestEvictLeader3C(t *testing.T) {
	c := newCluster(t, 3)
	for id := range uint64(3) {
		c.store(id+1, 0)
	}
	c.region(2, 1, 3)
	require.Nil(t, schedulers.NewEvictLeader().Schedule(c.view()))
	c.update(2, core.WithEvictLeaders(true))
	c.update(1, core.WithLastHeartbeat(c.now.Add(-time.Minute)))
	op := schedulers.NewEvictLeader().Schedule(c.view())
	require.NotNil(t, op)
	require.EqualValues(t, 3, op.Steps()[0].(operator.TransferLeader).ToStore, "store 1 is silent")
}

// TestEvictSlowStore: a region stays where a majority of its voters is slow, wherever it is led.
func TestEvictSlowStore(t *testing.T) {
	c := newCluster(t, 3)
	for id := range uint64(5) {
		c.store(id+1, 0)
	}
	slow := func(id uint64) {
		for _, at := range []time.Duration{-2 * time.Second, 0} {
			now := c.now.Add(at)
			c.update(id, core.WithStats(&schedulerpb.StoreStats{SyncMicros: 200_000}, now),
				core.WithSyncs(2*time.Millisecond, now))
		}
	}
	slow(1)
	slow(2)
	c.put(1, 1, regionSize, 1, 2, 3)
	require.Nil(t, schedulers.NewEvictSlowStore().Schedule(c.view()))
	c.put(2, 3, regionSize, 1, 3, 4)
	require.Nil(t, schedulers.NewEvictSlowStore().Schedule(c.view()), "its leader is quick")
	c.put(3, 1, regionSize, 1, 3, 4)
	op := schedulers.NewEvictSlowStore().Schedule(c.view())
	require.NotNil(t, op)
	require.EqualValues(t, 3, op.RegionID())
	require.Contains(t, []uint64{3, 4}, op.Steps()[0].(operator.TransferLeader).ToStore)
	c.update(4, core.WithLastHeartbeat(c.now.Add(-time.Minute)))
	require.Nil(t, schedulers.NewEvictSlowStore().Schedule(c.view()),
		"one of the two others is silent")
}
