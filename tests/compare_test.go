package tests

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/tests/cluster"
)

// compare has the region's leader compare its replicas, once one leads.
func compare(
	t *testing.T, c *cluster.Cluster, regionID uint64, wait time.Duration,
) message.Comparison {
	t.Helper()
	var out message.Comparison
	c.Eventually(20*time.Second, func() string {
		leader := c.WaitLeader(regionID)
		p := cluster.PeerOf(c, leader.ID, regionID)
		if p == nil {
			return "no leader"
		}
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		var err error
		out, err = leader.Store().CompareReplicas(ctx,
			message.Header{RegionID: regionID, Peer: p.Peer})
		if err != nil {
			return err.Error()
		}
		return ""
	})
	return out
}

// damage changes a value behind the back of a store, as a fault above the engine's checksums would.
func damage(t *testing.T, n *cluster.Node, key, value string) {
	t.Helper()
	b := n.Engine().NewBatch()
	b.Put(engine.DataKey(engine.CFDefault, []byte(key)), []byte(value))
	require.NoError(t, n.Engine().Write(b, true))
}

func waitQuarantined(t *testing.T, c *cluster.Cluster, n *cluster.Node, regionID uint64) {
	t.Helper()
	c.Eventually(20*time.Second, func() string {
		if n.Store().Quarantined()[regionID] == "" {
			return fmt.Sprintf("the replica of store %d is not quarantined", n.ID)
		}
		return ""
	})
}

// TestEqualReplicasAreFoundEqual: also while writes, splits and transfers go on, and with a
// learner.
func TestEqualReplicasAreFoundEqual(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	cl := c.Client()
	defer cl.Close()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			err := cl.Put(ctx, fmt.Appendf(nil, "k%03d", i%500), fmt.Appendf(nil, "v%d", i))
			if err == nil && i%7 == 0 {
				err = cl.Delete(ctx, fmt.Appendf(nil, "k%03d", i%300))
			}
			cancel()
			if err != nil {
				done <- err
				return
			}
		}
	}()
	for i := range 20 {
		out := compare(t, c, cluster.FirstRegionID, 20*time.Second)
		require.True(t, out.Equal(), "%+v", out)
		require.Len(t, out.Hashes, 3)
		switch {
		case i%5 == 3:
			c.Split(fmt.Appendf(nil, "k%03d", 400-10*i))
		case i%2 == 0:
			leader := c.WaitLeader(cluster.FirstRegionID)
			_ = c.Transfer(cluster.FirstRegionID,
				cluster.OnStore(c.Placement.Region(cluster.FirstRegionID), leader.ID%3+1))
		}
	}
	close(stop)
	require.NoError(t, <-done)
	for _, n := range c.Nodes() {
		require.Empty(t, n.Store().Quarantined())
		require.Zero(t, n.Store().Work().Divergences)
	}
	c.CheckConsistency()
}

// TestDivergedReplicaIsReplaced: a follower with another value is quarantined, also after a
// restart, and replaced.
func TestDivergedReplicaIsReplaced(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "right")
	leader := c.WaitLeader(cluster.FirstRegionID)
	require.True(t, compare(t, c, cluster.FirstRegionID, 20*time.Second).Equal())
	bad := c.Node(leader.ID%3 + 1)
	damage(t, bad, "k", "wrong")
	out := compare(t, c, cluster.FirstRegionID, 20*time.Second)
	peer := cluster.OnStore(c.Placement.Region(cluster.FirstRegionID), bad.ID)
	require.Equal(t, []uint64{peer.Id}, out.Diverged)
	require.False(t, out.Undecided)
	waitQuarantined(t, c, bad, cluster.FirstRegionID)
	require.Contains(t, bad.Store().Quarantined()[cluster.FirstRegionID],
		"differ from those of most replicas")
	mustGet(t, c, cl, "k", "right")

	waitGone(t, c, bad.ID, cluster.FirstRegionID)
	bad.Stop()
	bad.Restart()
	waitQuarantined(t, c, bad, cluster.FirstRegionID)

	c.RemovePeer(cluster.FirstRegionID, peer)
	c.AddPeer(cluster.FirstRegionID, bad.ID)
	require.True(t, compare(t, c, cluster.FirstRegionID, 20*time.Second).Equal())
	c.CheckConsistency()
	require.Empty(t, bad.Store().Quarantined())
}

// TestDivergedLeaderStepsAside: what the majority has is served, not what the leader has.
func TestDivergedLeaderStepsAside(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "right")
	require.True(t, compare(t, c, cluster.FirstRegionID, 20*time.Second).Equal())
	leader := c.WaitLeader(cluster.FirstRegionID)
	damage(t, leader, "k", "wrong")
	require.Len(t, compare(t, c, cluster.FirstRegionID, 20*time.Second).Diverged, 1)
	waitQuarantined(t, c, leader, cluster.FirstRegionID)
	waitOtherLeader(t, c, leader)
	mustGet(t, c, cl, "k", "right")
	mustPut(t, c, cl, "k", "newer")
	mustGet(t, c, cl, "k", "newer")
}

// TestDifferenceWithoutMajority: nobody knows which replica is right, so nothing is touched, and
// the region is reported until a comparison finds the replicas equal.
func TestDifferenceWithoutMajority(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 2})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	c.CheckConsistency() // both have applied it
	leader := c.WaitLeader(cluster.FirstRegionID)
	other := c.Node(3 - leader.ID)
	damage(t, other, "k", "w")
	out := compare(t, c, cluster.FirstRegionID, 20*time.Second)
	require.True(t, out.Undecided)
	require.Empty(t, out.Diverged)
	require.Equal(t, []uint64{cluster.FirstRegionID}, leader.Store().Diverged())
	mustPut(t, c, cl, "other", "v") // both still take part
	for _, n := range c.Nodes() {
		require.Empty(t, n.Store().Quarantined())
	}
	damage(t, other, "k", "v")
	require.True(t, compare(t, c, cluster.FirstRegionID, 20*time.Second).Equal())
	require.Empty(t, leader.Store().Diverged())
}

// TestComparisonWithoutAReplica: what does not answer is neither equal nor different.
func TestComparisonWithoutAReplica(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	leader := c.WaitLeader(cluster.FirstRegionID)
	c.Node(leader.ID%3 + 1).Stop()
	out := compare(t, c, cluster.FirstRegionID, 2*time.Second)
	require.False(t, out.Complete())
	require.False(t, out.Equal())
	require.Empty(t, out.Diverged)
	require.Len(t, out.Hashes, 2)
}

// TestReplicasAreComparedByThemselves: without anybody asking for it, a replica that differs is
// found.
func TestReplicasAreComparedByThemselves(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3, Tune: func(cfg *config.Config) {
		cfg.Raftstore.CompareInterval = config.Dur(time.Second)
	}})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	c.CheckConsistency() // all have applied it
	leader := c.WaitLeader(cluster.FirstRegionID)
	bad := c.Node(leader.ID%3 + 1)
	damage(t, bad, "k", "w")
	waitQuarantined(t, c, bad, cluster.FirstRegionID)
	mustGet(t, c, cl, "k", "v")
}

// TestConsistencyIsAskedOverTheWire: kv/client gets each replica's hash.
func TestConsistencyIsAskedOverTheWire(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := cl.CheckConsistency(ctx, []byte("k"), 20*time.Second)
	require.NoError(t, err)
	require.Equal(t, cluster.FirstRegionID, int(out.RegionID))
	require.Len(t, out.Replicas, 3)
	for _, r := range out.Replicas {
		require.True(t, r.Known)
		require.Equal(t, out.Replicas[0].Hash, r.Hash)
		require.NotZero(t, r.StoreID)
	}
}
