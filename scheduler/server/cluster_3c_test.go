package server

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

type nullSender struct{}

func (nullSender) Send(uint64, *schedulerpb.RegionHeartbeatResponse) {}

type fakeClock struct{ t time.Time }

func (c *fakeClock) now() time.Time { return c.t }

// newTestCluster has n stores and no region.
func newTestCluster(t testing.TB, n int) (*RaftCluster, *fakeClock) {
	t.Helper()
	clock := &fakeClock{t: time.Unix(1_700_000_000, 0)}
	var id uint64 = 1 << 32
	set := &view.Settings{
		Schedule: config.DefaultSchedule(), Replication: config.Replication{MaxReplicas: 3},
	}
	c := NewRaftCluster(ClusterOptions{
		Settings: set, Now: clock.now, Seed: 1, Sender: nullSender{},
		AllocID: func() (uint64, error) { id++; return id, nil },
	})
	for i := range n {
		c.Core().PutStore(
			core.NewStore(&metapb.Store{Id: uint64(i + 1), Address: fmt.Sprint(i + 1)}, clock.t))
	}
	return c, clock
}

// testRegions makes n neighbouring regions with np peers each, led by their first peer.
func testRegions(n, np int) []*core.RegionInfo {
	out := make([]*core.RegionInfo, n)
	for i := range n {
		m := &metapb.Region{
			Id: uint64(i + 1), StartKey: []byte{byte(i)}, EndKey: []byte{byte(i + 1)},
			RegionEpoch: &metapb.RegionEpoch{ConfVer: 2, Version: 2},
		}
		for j := range np {
			m.Peers = append(m.Peers,
				&metapb.Peer{Id: uint64(i*np + j + 1000), StoreId: uint64((i+j)%n + 1)})
		}
		out[i] = core.NewRegion(m, m.Peers[0], core.WithSize(10), core.WithTerm(6))
	}
	return out
}

// checkRecount compares every counter of every store with a recount over all regions.
func checkRecount(t testing.TB, c *RaftCluster) {
	t.Helper()
	want := map[uint64]core.StoreCounts{}
	var prev *core.RegionInfo
	for _, r := range c.Core().ScanRegions(nil, nil, 0) {
		require.Same(t, r, c.Core().Region(r.ID()), "index by id and tree differ")
		if prev != nil {
			require.NotEmpty(t, prev.EndKey())
			require.LessOrEqual(t, string(prev.EndKey()), string(r.StartKey()), "ranges overlap")
		}
		prev = r
		for _, p := range r.Peers() {
			n := want[p.StoreID]
			n.RegionCount++
			n.RegionSize += r.Size()
			if r.LeaderStore() == p.StoreID {
				n.LeaderCount++
				n.LeaderSize += r.Size()
			}
			if r.IsPending(p.ID) {
				n.PendingCount++
			}
			want[p.StoreID] = n
		}
	}
	for _, s := range c.Core().Stores() {
		require.Equal(t, want[s.ID()], s.Counts(), "store %d", s.ID())
		require.Equal(t, want[s.ID()], c.Core().Store(s.ID()).Counts(),
			"published counters of store %d", s.ID())
	}
}

func putAll(t testing.TB, c *RaftCluster, regions []*core.RegionInfo) {
	t.Helper()
	for _, r := range regions {
		require.NoError(t, c.processRegionHeartbeat(r))
	}
	checkRecount(t, c)
}

func TestRegionHeartbeatNotUpdate3C(t *testing.T) {
	c, _ := newTestCluster(t, 5)
	regions := testRegions(5, 3)
	putAll(t, c, regions)
	for _, r := range regions {
		require.NoError(t, c.processRegionHeartbeat(r.Clone()))
		require.Same(t, r, c.Core().Region(r.ID()),
			"a report of nothing new must not replace the record")
	}
	checkRecount(t, c)
}

func TestRegionHeartbeatUpdateVersion3C(t *testing.T) {
	c, _ := newTestCluster(t, 5)
	regions := testRegions(5, 3)
	putAll(t, c, regions)
	newer := regions[2].Clone(core.WithEpoch(3, 2))
	require.NoError(t, c.processRegionHeartbeat(newer))
	require.Same(t, newer, c.Core().Region(newer.ID()))
	require.ErrorIs(t, c.processRegionHeartbeat(regions[2]), core.ErrStale)
	require.Same(t, newer, c.Core().Region(newer.ID()))
	checkRecount(t, c)
}

func TestRegionHeartbeatUpdateConfVersion3C(t *testing.T) {
	c, _ := newTestCluster(t, 5)
	regions := testRegions(5, 3)
	putAll(t, c, regions)
	newer := regions[2].Clone(core.WithEpoch(2, 3))
	require.NoError(t, c.processRegionHeartbeat(newer))
	require.ErrorIs(t, c.processRegionHeartbeat(regions[2]), core.ErrStale)
	// Newer in one part and older in the other is stale for one id: both parts only grow.
	require.ErrorIs(t, c.processRegionHeartbeat(regions[2].Clone(core.WithEpoch(9, 2))),
		core.ErrStale)
	require.ErrorIs(t, c.processRegionHeartbeat(regions[2].Clone(core.WithEpoch(1, 9))),
		core.ErrStale)
	require.Same(t, newer, c.Core().Region(newer.ID()))
	checkRecount(t, c)
}

func TestRegionHeartbeatStaleTerm3C(t *testing.T) {
	c, _ := newTestCluster(t, 5)
	regions := testRegions(5, 3)
	putAll(t, c, regions)
	peers := regions[0].Peers()
	next := regions[0].Clone(core.WithTerm(7), core.WithLeaderStore(peers[1].StoreID))
	require.NoError(t, c.processRegionHeartbeat(next))
	require.ErrorIs(t, c.processRegionHeartbeat(regions[0]), core.ErrStale,
		"a deposed leader of the same epoch")
	require.Equal(t, peers[1].StoreID, c.Core().Region(1).LeaderStore())
}

func TestRegionHeartbeatSplit3C(t *testing.T) {
	c, _ := newTestCluster(t, 5)
	parent := testRegions(1, 1)[0].Clone(core.WithRange(nil, nil))
	putAll(t, c, []*core.RegionInfo{parent})
	left := parent.Clone(core.WithRange(nil, []byte("m")), core.WithEpoch(3, 2))
	right := core.NewRegion(&metapb.Region{
		Id: 50, StartKey: []byte("m"), RegionEpoch: &metapb.RegionEpoch{Version: 3, ConfVer: 2},
		Peers: []*metapb.Peer{{Id: 51, StoreId: 1}},
	}, &metapb.Peer{Id: 51, StoreId: 1})

	// The right half first: it displaces the parent, whose keys left of "m" are then a hole until
	// the left half reports. It must not be an old record that answers for a range it lost.
	require.NoError(t, c.processRegionHeartbeat(right))
	require.Nil(t, c.Core().Region(parent.ID()))
	require.Nil(t, c.Core().RegionByKey([]byte("a")))
	require.ErrorIs(t, c.processRegionHeartbeat(parent), core.ErrStale)
	require.NoError(t, c.processRegionHeartbeat(left))
	require.Same(t, left, c.Core().RegionByKey([]byte("a")))
	require.Same(t, right, c.Core().RegionByKey([]byte("z")))
	require.Same(t, left, c.Core().PrevRegion([]byte("z")))
	require.Nil(t, c.Core().PrevRegion([]byte("a")))
	checkRecount(t, c)
}

func TestRegionHeartbeatOverlaps3C(t *testing.T) {
	c, _ := newTestCluster(t, 5)
	regions := testRegions(5, 3)
	putAll(t, c, regions)
	over := func(v, conf uint64) *core.RegionInfo {
		return core.NewRegion(&metapb.Region{
			Id: 100, StartKey: []byte{1}, EndKey: []byte{4},
			RegionEpoch: &metapb.RegionEpoch{Version: v, ConfVer: conf},
			Peers:       []*metapb.Peer{{Id: 9000, StoreId: 1}},
		}, &metapb.Peer{Id: 9000, StoreId: 1})
	}
	require.ErrorIs(t, c.processRegionHeartbeat(over(1, 9)), core.ErrStale)
	require.ErrorIs(t, c.processRegionHeartbeat(over(2, 1)), core.ErrStale)
	require.Equal(t, 5, c.Core().RegionCount())
	require.NoError(t, c.processRegionHeartbeat(over(3, 1)),
		"a merged region may have a smaller conf version")
	require.Equal(t, 3, c.Core().RegionCount())
	for _, id := range []uint64{2, 3, 4} {
		require.Nil(t, c.Core().Region(id))
		require.ErrorIs(t, c.processRegionHeartbeat(regions[id-1]), core.ErrStale)
	}
	checkRecount(t, c)
}

// A report that is newer than the record of its id, but whose changed range reaches into a newer
// neighbour, must not wipe the neighbour out.
func TestRegionHeartbeatChangedRangeIsChecked3C(t *testing.T) {
	c, _ := newTestCluster(t, 5)
	regions := testRegions(3, 3)
	putAll(t, c, regions)
	neighbour := regions[2].Clone(core.WithEpoch(9, 2))
	require.NoError(t, c.processRegionHeartbeat(neighbour))
	grown := regions[1].Clone(core.WithEpoch(3, 2), core.WithRange([]byte{1}, []byte{3}))
	require.ErrorIs(t, c.processRegionHeartbeat(grown), core.ErrStale)
	require.Same(t, neighbour, c.Core().Region(3))
	checkRecount(t, c)
}

func TestRegionRemovePeers3C(t *testing.T) {
	c, _ := newTestCluster(t, 5)
	regions := testRegions(5, 3)
	putAll(t, c, regions)
	for _, r := range regions {
		// The peers change while the epoch does not: still visible, so still taken over.
		require.NoError(t, c.processRegionHeartbeat(r.Clone(core.WithPeers(r.Peers()[:1]...))))
		require.Len(t, c.Core().Region(r.ID()).Peers(), 1)
	}
	checkRecount(t, c)
}

func TestRegionAddBackPeers3C(t *testing.T) {
	c, _ := newTestCluster(t, 5)
	regions := testRegions(5, 3)
	putAll(t, c, regions)
	for _, r := range regions {
		require.NoError(t, c.processRegionHeartbeat(r.Clone(core.WithPeers(r.Peers()[:1]...))))
		require.NoError(t, c.processRegionHeartbeat(r.Clone()))
		require.Len(t, c.Core().Region(r.ID()).Peers(), 3)
	}
	checkRecount(t, c)
}

func TestRegionChangePendingPeers3C(t *testing.T) {
	c, _ := newTestCluster(t, 5)
	regions := testRegions(5, 3)
	putAll(t, c, regions)
	r := regions[1]
	p := r.Peers()[2]
	require.NoError(t, c.processRegionHeartbeat(r.Clone(core.WithPending(p.ID))))
	require.Equal(t, 1, c.Core().Store(p.StoreID).Counts().PendingCount)
	checkRecount(t, c)
	require.NoError(t, c.processRegionHeartbeat(r.Clone()))
	require.Zero(t, c.Core().Store(p.StoreID).Counts().PendingCount)
	checkRecount(t, c)
}

func TestRegionChangeLeader3C(t *testing.T) {
	c, _ := newTestCluster(t, 5)
	regions := testRegions(5, 3)
	putAll(t, c, regions)
	for _, r := range regions {
		to := r.Peers()[1].StoreID
		require.NoError(t, c.processRegionHeartbeat(r.Clone(core.WithLeaderStore(to))))
		require.Equal(t, to, c.Core().Region(r.ID()).LeaderStore())
	}
	checkRecount(t, c)
}

// The course's own scheduler never took a region's old size off its store, so that one region of 96
// MiB looked like 482 MiB after five reports.
func TestRegionChangeApproximateSize3C(t *testing.T) {
	c, _ := newTestCluster(t, 5)
	regions := testRegions(5, 3)
	putAll(t, c, regions)
	for i := range 50 {
		require.NoError(t, c.processRegionHeartbeat(regions[0].Clone(core.WithSize(int64(96+i)))))
		checkRecount(t, c)
	}
}

func TestRegionHeartbeatUnknownStore3C(t *testing.T) {
	c, _ := newTestCluster(t, 1)
	r := core.NewRegion(&metapb.Region{
		Id: 7, RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		Peers: []*metapb.Peer{{Id: 1, StoreId: 0}, {Id: 2, StoreId: 42}},
	}, nil)
	require.NoError(t, c.processRegionHeartbeat(r))
	require.Same(t, r, c.Core().Region(7))
}

func TestRegionHeartbeatOfAnyShape3C(t *testing.T) {
	c, _ := newTestCluster(t, 3)
	good := &metapb.Peer{Id: 1, StoreId: 1}
	for name, hb := range map[string]*schedulerpb.RegionHeartbeatRequest{
		"empty":     {},
		"no id":     {Region: &metapb.Region{Peers: []*metapb.Peer{good}}, Leader: good},
		"no peers":  {Region: &metapb.Region{Id: 1}, Leader: good},
		"no leader": {Region: &metapb.Region{Id: 1, Peers: []*metapb.Peer{good}}},
		"foreign leader": {
			Region: &metapb.Region{Id: 1, Peers: []*metapb.Peer{good}},
			Leader: &metapb.Peer{Id: 9, StoreId: 9},
		},
		"nil peer": {Region: &metapb.Region{Id: 1, Peers: []*metapb.Peer{nil}}, Leader: good},
		"inverted range": {
			Region: &metapb.Region{
				Id: 1, StartKey: []byte("b"), EndKey: []byte("a"), Peers: []*metapb.Peer{good},
			}, Leader: good,
		},
		"empty range": {
			Region: &metapb.Region{
				Id: 1, StartKey: []byte("b"), EndKey: []byte("b"), Peers: []*metapb.Peer{good},
			}, Leader: good,
		},
		"two peers on a store": {
			Region: &metapb.Region{Id: 1, Peers: []*metapb.Peer{good, {Id: 2, StoreId: 1}}},
			Leader: good,
		},
	} {
		require.ErrorIs(t, c.HandleRegionHeartbeat(hb), core.ErrInvalidRegion, name)
	}
	require.Zero(t, c.Core().RegionCount())
	// No epoch counts as (0,0): acceptable for an unknown region, stale for a known one.
	epochless := &schedulerpb.RegionHeartbeatRequest{
		Region: &metapb.Region{Id: 1, Peers: []*metapb.Peer{good}}, Leader: good,
	}
	require.NoError(t, c.HandleRegionHeartbeat(epochless))
	withEpoch := &schedulerpb.RegionHeartbeatRequest{
		Region: &metapb.Region{
			Id: 1, Peers: []*metapb.Peer{good},
			RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		},
		Leader: good,
	}
	require.NoError(t, c.HandleRegionHeartbeat(withEpoch))
	require.ErrorIs(t, c.HandleRegionHeartbeat(epochless), core.ErrStale)
}

// Many leaders report at once, old and new in any order: the newest epoch of each region wins.
func TestRegionHeartbeatConcurrent3C(t *testing.T) {
	c, _ := newTestCluster(t, 10)
	regions := testRegions(10, 3)
	putAll(t, c, regions)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for range 500 {
				r := regions[rng.IntN(len(regions))]
				_ = c.processRegionHeartbeat(r.Clone(
					core.WithEpoch(2, 2+rng.Uint64N(50)), core.WithSize(rng.Int64N(100)),
					core.WithLeaderStore(r.Peers()[rng.IntN(3)].StoreID)))
			}
		}()
	}
	wg.Wait()
	for _, r := range regions {
		require.NoError(t, c.processRegionHeartbeat(r.Clone(core.WithEpoch(2, 99))))
		require.EqualValues(t, 99, c.Core().Region(r.ID()).ConfVer())
	}
	checkRecount(t, c)
}

// Nothing is balanced before enough is known, and certainly not on an empty map.
func TestShouldRun3C(t *testing.T) {
	c, _ := newTestCluster(t, 3)
	require.False(t, c.Prepared(), "empty map")
	for _, r := range testRegions(3, 3) {
		require.NoError(t, c.processRegionHeartbeat(r))
	}
	require.False(t, c.Prepared(), "no store heartbeat yet")
	for id := range uint64(3) {
		require.NoError(t,
			c.HandleStoreHeartbeat(&schedulerpb.StoreStats{StoreId: id + 1, RegionCount: 3}))
	}
	require.True(t, c.Prepared())

	c, clock := newTestCluster(t, 3)
	for id := range uint64(3) {
		require.NoError(t,
			c.HandleStoreHeartbeat(&schedulerpb.StoreStats{StoreId: id + 1, RegionCount: 100}))
	}
	for _, r := range testRegions(3, 3) {
		require.NoError(t, c.processRegionHeartbeat(r))
	}
	require.False(t, c.Prepared(), "stores say they hold 100 regions, 3 are confirmed")
	clock.t = clock.t.Add(6 * time.Minute)
	require.True(t, c.Prepared(), "after the time limit")
}

// A patrol that has seen all regions rests for a while, unless something changes that concerns
// many.
func TestPatrolRests3C(t *testing.T) {
	c, clock := newTestCluster(t, 3)
	putAll(t, c, testRegions(3, 3))
	began := clock.t
	require.Equal(t, time.Second, c.Tick().Sub(began))
	clock.t = clock.t.Add(400 * time.Millisecond)
	require.Equal(t, time.Second, c.Tick().Sub(began), "nothing has changed")
	c.SetSettings(c.Settings())
	require.Equal(t, 1400*time.Millisecond, c.Tick().Sub(began), "it began at once")
	clock.t = clock.t.Add(time.Second)
	require.Equal(t, 2400*time.Millisecond, c.Tick().Sub(began))
}
