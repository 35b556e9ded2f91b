package tests

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/tests/cluster"
)

// watched starts a cluster whose stores' disks can be made to fail.
func watched(
	t *testing.T, stores int, tune func(*config.Config),
) (*cluster.Cluster, map[uint64]*faultfs.Controller) {
	t.Helper()
	ctls := map[uint64]*faultfs.Controller{}
	for id := uint64(1); id <= uint64(stores); id++ {
		ctls[id] = &faultfs.Controller{}
		ctls[id].SetReads(true)
	}
	return cluster.New(t, cluster.Options{Stores: stores, Controllers: ctls, Tune: tune}), ctls
}

// failReads makes all reads of a kind, in a layer, fail.
func failReads(ctl *faultfs.Controller, layer, kind string) {
	ctl.Set(func(op faultfs.Op) error {
		if op.Layer == layer && op.Kind == kind {
			return syscall.EIO
		}
		return nil
	})
}

// waitOtherLeader waits until another store leads, and returns it.
func waitOtherLeader(t *testing.T, c *cluster.Cluster, old *cluster.Node) *cluster.Node {
	t.Helper()
	var found *cluster.Node
	c.Eventually(10*time.Second, func() string {
		for _, n := range c.Nodes() {
			if p := cluster.PeerOf(c, n.ID, cluster.FirstRegionID); n != old && p != nil &&
				p.IsLeader {
				found = n
				return ""
			}
		}
		return "nobody else leads"
	})
	return found
}

// TestLeaderThatCannotReadStepsAside: clients are served by another replica at once, and the
// leader's is quarantined and can be replaced on the same store.
func TestLeaderThatCannotReadStepsAside(t *testing.T) {
	c, ctls := watched(t, 3, nil)
	old := c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	failReads(ctls[old.ID], "engine", "get")
	begin := time.Now()
	mustGet(t, c, cl, "k", "v")
	require.Less(t, time.Since(begin), 3*time.Second)
	waitOtherLeader(t, c, old)
	c.Eventually(10*time.Second, func() string {
		if old.Store().Quarantined()[cluster.FirstRegionID] == "" {
			return "the replica is not quarantined"
		}
		return ""
	})
	require.Positive(t, old.Store().Counts().ReadErrors)
	waitGone(t, c, old.ID, cluster.FirstRegionID)
	mustPut(t, c, cl, "k", "new")
	mustGet(t, c, cl, "k", "new")

	ctls[old.ID].Set(nil)
	c.RemovePeer(cluster.FirstRegionID,
		cluster.OnStore(c.Placement.Region(cluster.FirstRegionID), old.ID))
	c.AddPeer(cluster.FirstRegionID, old.ID)
	c.CheckConsistency()
	require.Empty(t, old.Store().Quarantined())
}

// TestOneOfTwoIsNotQuarantined: the other could not commit anything alone.
func TestOneOfTwoIsNotQuarantined(t *testing.T) {
	c, ctls := watched(t, 2, nil)
	old := c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	failReads(ctls[old.ID], "engine", "get")
	mustGet(t, c, cl, "k", "v")
	waitOtherLeader(t, c, old)
	mustPut(t, c, cl, "k", "new")
	mustGet(t, c, cl, "k", "new")
	require.Empty(t, old.Store().Quarantined())
}

// TestLeaderThatCannotReadItsLogStepsAside: a follower that is behind would wait for it for ever.
func TestLeaderThatCannotReadItsLogStepsAside(t *testing.T) {
	c, ctls := watched(t, 3, func(cfg *config.Config) { cfg.Raftstore.MaxMessageEntries = 64 })
	old := c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	behind := old.ID%3 + 1
	var others []uint64
	for _, n := range c.Nodes() {
		if n.ID != behind {
			others = append(others, n.ID)
		}
	}
	c.Net.Partition(others)
	for i := range 3 {
		mustPut(t, c, cl, fmt.Sprint(i), "v")
	}
	c.Eventually(10*time.Second, func() string {
		if old.Log().Stats().CacheBytes > 0 {
			return "the leader keeps the log in memory"
		}
		return ""
	})
	failReads(ctls[old.ID], "fs", "read")
	c.Net.Heal()
	waitOtherLeader(t, c, old)
	mustPut(t, c, cl, "k", "v")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for i := range 3 {
		_, found, err := cl.Get(ctx, fmt.Append(nil, i))
		require.NoError(t, err)
		require.True(t, found)
	}
	require.Positive(t, old.Store().Counts().ReadErrors)
}

// TestSnapshotThatCannotBeBuilt: another replica builds it.
func TestSnapshotThatCannotBeBuilt(t *testing.T) {
	ctls := map[uint64]*faultfs.Controller{1: {}, 2: {}, 3: {}}
	c := cluster.New(t, cluster.Options{Stores: 4, Replicas: 3, Controllers: ctls})
	old := c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	ctls[old.ID].SetReads(true)
	failReads(ctls[old.ID], "engine", "next")
	c.OrderPeer(cluster.FirstRegionID, 4)
	waitOtherLeader(t, c, old)
	c.Eventually(20*time.Second, func() string {
		if p := cluster.PeerOf(c, 4, cluster.FirstRegionID); p == nil || p.Installing ||
			len(p.Region.Peers) == 0 {
			return "no replica on store 4"
		}
		return ""
	})
	mustGet(t, c, cl, "k", "v")
}
