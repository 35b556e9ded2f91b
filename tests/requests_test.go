package tests

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// TestRequestsOfAnyShapeAreAnswered: wrong requests get the typed error that leads a client to the
// right place, at once, and change nothing.
func TestRequestsOfAnyShapeAreAnswered(t *testing.T) {
	for _, mode := range []string{"lease", "read-index"} {
		t.Run(mode, func(t *testing.T) {
			c := cluster.New(t,
				cluster.Options{Stores: 3, Tune: func(cfg *config.Config) {
					cfg.Raftstore.ReadMode = mode
				}})
			leader := c.WaitLeader(cluster.FirstRegionID)
			cl := c.Client()
			defer cl.Close()
			mustPut(t, c, cl, "k", "v")
			mustPut(t, c, cl, "z", "z")
			c.Split([]byte("m"))
			leader = c.WaitLeader(cluster.FirstRegionID)
			region, err := c.Placement.GetRegion(context.Background(), []byte("k"))
			require.NoError(t, err)
			good := func() *kvrpcpb.Context {
				e := *region.Meta.RegionEpoch
				p := *cluster.OnStore(region.Meta, leader.ID)
				return &kvrpcpb.Context{RegionId: region.Meta.Id, RegionEpoch: &e, Peer: &p}
			}
			other := leader.ID%3 + 1
			for _, tc := range []struct {
				name  string
				store uint64
				key   string
				ctx   func(*kvrpcpb.Context) *kvrpcpb.Context
				want  func(*errorpb.Error) bool
			}{
				{"nil context", leader.ID, "k", func(*kvrpcpb.Context) *kvrpcpb.Context {
					return nil
				}, func(e *errorpb.Error) bool { return e.Message != "" }},
				{"empty context", leader.ID, "k", func(*kvrpcpb.Context) *kvrpcpb.Context {
					return &kvrpcpb.Context{}
				}, func(e *errorpb.Error) bool { return e.Message != "" }},
				{"no epoch", leader.ID, "k", func(c *kvrpcpb.Context) *kvrpcpb.Context {
					c.RegionEpoch = nil
					return c
				}, func(e *errorpb.Error) bool { return e.Message != "" }},
				{"no peer", leader.ID, "k", func(c *kvrpcpb.Context) *kvrpcpb.Context {
					c.Peer = nil
					return c
				}, func(e *errorpb.Error) bool { return e.Message != "" }},
				{"unknown region", leader.ID, "k", func(c *kvrpcpb.Context) *kvrpcpb.Context {
					c.RegionId = 999
					return c
				}, func(e *errorpb.Error) bool { return e.RegionNotFound != nil }},
				{"wrong store", other, "k", func(c *kvrpcpb.Context) *kvrpcpb.Context { return c },
					func(e *errorpb.Error) bool {
						return e.StoreNotMatch != nil && e.StoreNotMatch.ActualStoreId == other
					}},
				{"not the leader", other, "k", func(c *kvrpcpb.Context) *kvrpcpb.Context {
					c.Peer = cluster.OnStore(region.Meta, other)
					return c
				},
					func(e *errorpb.Error) bool {
						return e.NotLeader != nil && e.NotLeader.Leader.GetStoreId() == leader.ID
					}},
				{"wrong peer", leader.ID, "k", func(c *kvrpcpb.Context) *kvrpcpb.Context {
					c.Peer.Id += 100
					return c
				}, func(e *errorpb.Error) bool { return e.RegionNotFound != nil }},
				{"old version", leader.ID, "k",
					func(c *kvrpcpb.Context) *kvrpcpb.Context { c.RegionEpoch.Version--; return c },
					func(e *errorpb.Error) bool {
						return e.EpochNotMatch != nil && len(e.EpochNotMatch.CurrentRegions) == 2
					}},
				{"future version", leader.ID, "k", func(c *kvrpcpb.Context) *kvrpcpb.Context {
					c.RegionEpoch.Version += 5
					return c
				}, func(e *errorpb.Error) bool { return e.EpochNotMatch != nil }},
				{"key of the neighbour", leader.ID, "z",
					func(c *kvrpcpb.Context) *kvrpcpb.Context { return c },
					func(e *errorpb.Error) bool {
						return e.KeyNotInRegion != nil && string(e.KeyNotInRegion.EndKey) == "m"
					}},
			} {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				get, put, del, scan := cluster.Requests(ctx, t, c, tc.store, tc.ctx(good()),
					[]byte(tc.key))
				cancel()
				for op, e := range map[string]*errorpb.Error{
					"get": get, "put": put, "delete": del, "scan": scan,
				} {
					require.NotNil(t, e, "%s: %s was not refused", tc.name, op)
					require.True(t, tc.want(e), "%s: %s: %v", tc.name, op, e)
				}
			}
			// A stale term is refused, a current one is not.
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			mustGet(t, c, cl, "k", "v")
			mustGet(t, c, cl, "z", "z")
			_, e, _, _ := cluster.Requests(ctx, t, c, leader.ID, good(), []byte("k"))
			require.Nil(t, e)
		})
	}
}

// TestTooLargeWritesAreRefused: the limit of one entry holds, and the region goes on.
func TestTooLargeWritesAreRefused(t *testing.T) {
	c := cluster.New(t,
		cluster.Options{Stores: 3, Tune: func(cfg *config.Config) {
			cfg.Raftstore.MaxEntry = 64 * config.KiB
		}})
	c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	err := cl.Put(context.Background(), []byte("big"), make([]byte, 65<<10))
	require.ErrorContains(t, err, "exceeds the limit")
	mustPut(t, c, cl, "fits", string(make([]byte, 60<<10)))
	mustGet(t, c, cl, "k", "v")
}

// TestFullDiskRefusesPutsOnly: reads, deletes and leader transfers go on, and so do puts once there
// is room again.
func TestFullDiskRefusesPutsOnly(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	for _, n := range c.Nodes() {
		n.Store().SetDiskFull(true)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	require.ErrorContains(t, cl.Put(ctx, []byte("a"), []byte("b")), "disk space")
	cancel()
	mustGet(t, c, cl, "k", "v")
	require.NoError(t, cl.Delete(context.Background(), []byte("k")))
	for id := uint64(1); id <= 3; id++ {
		c.TransferLeader(cluster.FirstRegionID, &metapb.Peer{Id: id, StoreId: id})
	}
	for _, n := range c.Nodes() {
		n.Store().SetDiskFull(false)
	}
	mustPut(t, c, cl, "a", "b")
	c.CheckConsistency()
}

// TestPlacementServiceMayBeAway: without it, writes and reads of known regions go on.
func TestPlacementServiceMayBeAway(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	c.Placement.SetOff(true)
	for range 50 {
		require.NoError(t, cl.Put(context.Background(), []byte("k"), []byte("w")))
		_, found, err := cl.Get(context.Background(), []byte("k"))
		require.NoError(t, err)
		require.True(t, found)
	}
	c.Placement.SetOff(false)
	c.Split([]byte("m"))
	c.CheckConsistency()
}

// TestIsolatedLeaderServesNothingStale: a leader that is cut off answers neither from an old lease
// nor with an old value, while the others go on.
func TestIsolatedLeaderServesNothingStale(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 5})
	old := c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "old")
	info, err := old.Store().Peer(context.Background(), cluster.FirstRegionID)
	require.NoError(t, err)
	var rest []uint64
	for _, n := range c.Nodes() {
		if n.ID != old.ID {
			rest = append(rest, n.ID)
		}
	}
	// Its worker stands still, so it goes on to believe that it leads: only the clock tells readers
	// that the lease is over.
	stopped, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- old.Store().Inspect(context.Background(), cluster.FirstRegionID,
			func(*raftstore.PeerView) { close(stopped); <-release })
	}()
	<-stopped
	c.Net.Partition([]uint64{old.ID}, rest)
	mustPut(t, c, cl, "k", "new")
	// The cut-off store is asked directly, with everything right but the world around it.
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	value, e, err := cluster.GetFrom(ctx, c, old.ID,
		&kvrpcpb.Context{
			RegionId: cluster.FirstRegionID, RegionEpoch: info.Region.RegionEpoch, Peer: info.Peer,
		}, []byte("k"))
	close(release)
	require.NoError(t, <-done)
	require.True(t, err != nil || e != nil, "served %q", value)
	c.Net.Heal()
	mustGet(t, c, cl, "k", "new")
	c.CheckConsistency()
}
