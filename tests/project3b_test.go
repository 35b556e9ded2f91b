package tests

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/tests/cluster"
)

func TestTransferLeader3B(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 5})
	cl := c.Client()
	defer cl.Close()
	c.WaitLeader(cluster.FirstRegionID)
	mustPut(t, c, cl, "k", "v0")
	for round := range 3 {
		for id := uint64(1); id <= 5; id++ {
			c.TransferLeader(cluster.FirstRegionID, &metapb.Peer{Id: id, StoreId: id})
			require.Equal(t, id, c.WaitLeader(cluster.FirstRegionID).ID)
			mustPut(t, c, cl, "k", fmt.Sprint(round, id))
			mustGet(t, c, cl, "k", fmt.Sprint(round, id))
		}
	}
	c.CheckConsistency()
}

func TestBasicConfChange3B(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 5, Replicas: 1})
	cl := c.Client()
	defer cl.Close()
	c.WaitLeader(cluster.FirstRegionID)
	mustPut(t, c, cl, "k1", "v1")
	p2 := c.AddPeer(cluster.FirstRegionID, 2)
	p3 := c.AddPeer(cluster.FirstRegionID, 3)
	mustPut(t, c, cl, "k2", "v2")
	c.CheckConsistency()
	epoch := c.Placement.Region(cluster.FirstRegionID).RegionEpoch
	require.EqualValues(t, 3, epoch.ConfVer)

	// Removed, a store forgets the data; the region goes on.
	c.RemovePeer(cluster.FirstRegionID, p3)
	mustPut(t, c, cl, "k3", "v3")
	c.CheckConsistency()
	require.Nil(t, cluster.PeerOf(c, 3, cluster.FirstRegionID))

	// A new peer id on the same store, and the old one again: only the new one is there.
	c.AddPeer(cluster.FirstRegionID, 3)
	mustPut(t, c, cl, "k4", "v4")
	c.CheckConsistency()
	c.RemovePeer(cluster.FirstRegionID, p2)
	c.CheckConsistency()
	for i := 1; i <= 4; i++ {
		mustGet(t, c, cl, fmt.Sprint("k", i), fmt.Sprint("v", i))
	}
}

// TestConfChangeRemoveLeader3B removes the leader, again and again, under loss, down to one replica
// and up again: the region must never lose its last majority (two voters are the hard case).
func TestConfChangeRemoveLeader3B(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 5})
	cl := c.Client()
	defer cl.Close()
	c.Net.SetFaults(0.15, 0.05, 4*time.Millisecond)
	c.Eventually(20*time.Second, func() string {
		if c.Placement.Region(cluster.FirstRegionID) == nil {
			return "no heartbeat yet"
		}
		return ""
	})
	for round := range 3 {
		for left := len(c.Placement.Region(cluster.FirstRegionID).GetPeers()); left > 1; left-- {
			leader := c.WaitLeader(cluster.FirstRegionID)
			info, err := leader.Store().Peer(context.Background(), cluster.FirstRegionID)
			require.NoError(t, err)
			c.RemovePeer(cluster.FirstRegionID, info.Peer)
			mustPut(t, c, cl, "k", fmt.Sprint(round, left))
			mustGet(t, c, cl, "k", fmt.Sprint(round, left))
		}
		c.Eventually(20*time.Second, func() string {
			r := c.Placement.Region(cluster.FirstRegionID)
			for id := uint64(1); id <= 5; id++ {
				if cluster.OnStore(r, id) == nil {
					c.AddPeer(cluster.FirstRegionID, id)
					return "adding"
				}
			}
			return ""
		})
	}
	c.Net.SetFaults(0, 0, 0)
	c.CheckConsistency()
}

func TestConfChangeRecover3B(t *testing.T) {
	round{clients: 1, crash: true, confChange: true, minOps: 50}.run(t)
}
func TestConfChangeRecoverManyClients3B(t *testing.T) {
	round{clients: 10, crash: true, confChange: true}.run(t)
}
func TestConfChangeUnreliable3B(t *testing.T) {
	round{clients: 5, unreliable: true, confChange: true, minOps: 100}.run(t)
}
func TestConfChangeUnreliableRecover3B(t *testing.T) {
	round{clients: 5, unreliable: true, crash: true, confChange: true, minOps: 30}.run(t)
}
func TestConfChangeSnapshotUnreliableRecover3B(t *testing.T) {
	round{
		clients: 5, unreliable: true, crash: true, confChange: true, maxRaftLog: 20, minOps: 30,
		minSnaps: 1,
	}.run(t)
}
func TestConfChangeSnapshotUnreliableRecoverConcurrentPartition3B(t *testing.T) {
	round{
		clients: 5, unreliable: true, crash: true, partitions: true, confChange: true,
		maxRaftLog: 20, minOps: 20, minSnaps: 1,
	}.run(t)
}

func TestOneSplit3B(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 5, Tune: func(cfg *config.Config) {
		cfg.Raftstore.RegionSplitSize, cfg.Raftstore.RegionMaxSize = 600, 800
	}})
	cl := c.Client()
	defer cl.Close()
	c.WaitLeader(cluster.FirstRegionID)
	var before *metapb.Region
	c.Eventually(20*time.Second, func() string {
		if before = c.Placement.Region(cluster.FirstRegionID); before == nil {
			return "the leader has not reported the region"
		}
		return ""
	})
	for i := range 60 {
		mustPut(t, c, cl, fmt.Sprintf("%03d", i), "value-0123456789")
	}
	c.Eventually(20*time.Second, func() string {
		if n := len(c.Placement.All()); n < 2 {
			return fmt.Sprintf("%d regions", n)
		}
		return ""
	})
	c.CheckConsistency()
	left, err := c.Placement.GetRegion(context.Background(), []byte("000"))
	require.NoError(t, err)
	require.EqualValues(t, cluster.FirstRegionID, left.Meta.Id, "the left half keeps the id")
	require.NotEmpty(t, left.Meta.EndKey)
	right, err := c.Placement.GetRegion(context.Background(), left.Meta.EndKey)
	require.NoError(t, err)
	require.NotEqual(t, left.Meta.Id, right.Meta.Id)
	require.Equal(t, left.Meta.EndKey, right.Meta.StartKey)
	require.Greater(t, left.Meta.RegionEpoch.Version, uint64(1))
	for i := range 60 {
		mustGet(t, c, cl, fmt.Sprintf("%03d", i), "value-0123456789")
	}
	// The answer to a request that was made for the region before the split names both halves.
	errEpoch := cluster.RawPutWith(c, before, []byte("000"), []byte("x"))
	require.NotNil(t, errEpoch)
	require.NotNil(t, errEpoch.EpochNotMatch, errEpoch.String())
	require.GreaterOrEqual(t, len(errEpoch.EpochNotMatch.CurrentRegions), 2)
}

func TestSplitRecover3B(t *testing.T) {
	round{clients: 1, crash: true, split: true, minOps: 50, minSplits: 2}.run(t)
}
func TestSplitRecoverManyClients3B(t *testing.T) {
	round{clients: 10, crash: true, split: true, minSplits: 2}.run(t)
}
func TestSplitUnreliable3B(t *testing.T) {
	round{clients: 5, unreliable: true, split: true, minOps: 100, minSplits: 2}.run(t)
}
func TestSplitUnreliableRecover3B(t *testing.T) {
	round{clients: 5, unreliable: true, crash: true, split: true, minOps: 30, minSplits: 1}.run(t)
}
func TestSplitConfChangeSnapshotUnreliableRecover3B(t *testing.T) {
	round{
		clients: 5, unreliable: true, crash: true, split: true, confChange: true, transfer: true,
		maxRaftLog: 20, minOps: 30, minSplits: 1, minSnaps: 1,
	}.run(t)
}
func TestSplitConfChangeSnapshotUnreliableRecoverConcurrentPartition3B(t *testing.T) {
	round{
		clients: 5, unreliable: true, crash: true, partitions: true, split: true, confChange: true,
		transfer: true, maxRaftLog: 20, minOps: 20, minSnaps: 1,
	}.run(t)
}
func TestLeaderTransfersSplitsAndMovesUnderLoad3B(t *testing.T) {
	round{
		clients: 8, transfer: true, split: true, confChange: true, minOps: 500, minSplits: 3,
	}.run(t)
}
