package tests

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// sleeping starts three stores and waits until all replicas of the region sleep.
func sleeping(t *testing.T) (*cluster.Cluster, *client.Client, *cluster.Node) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	leader := c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	t.Cleanup(cl.Close)
	mustPut(t, c, cl, "k", "v")
	waitAsleep(c)
	return c, cl, leader
}

func waitAsleep(c *cluster.Cluster) {
	c.Eventually(20*time.Second, func() string {
		for _, n := range c.Nodes() {
			infos, err := n.Store().Peers(context.Background())
			if err != nil || len(infos) == 0 {
				return fmt.Sprintf("store %d: %d peers, %v", n.ID, len(infos), err)
			}
			for _, p := range infos {
				if !p.Asleep {
					return fmt.Sprintf("store %d: region %d is awake", n.ID, p.Region.Id)
				}
			}
		}
		return ""
	})
}

// TestQuietRegionsSleepAndWake: nothing but greetings between stores goes over the network while
// all sleep, and every kind of work wakes a region.
func TestQuietRegionsSleepAndWake(t *testing.T) {
	c, cl, _ := sleeping(t)
	c.Split([]byte("m"))
	waitAsleep(c)
	var greetings, others atomic.Int64
	c.Net.Tap(func(_ uint64, m *rspb.RaftMessage) {
		if m.RegionId == 0 {
			greetings.Add(1)
		} else {
			others.Add(1)
		}
	})
	c.Eventually(10*time.Second, func() string {
		if greetings.Load() < 20 {
			return fmt.Sprintf("only %d greetings", greetings.Load())
		}
		return ""
	})
	require.Zero(t, others.Load(), "messages of regions that sleep")
	mustGet(t, c, cl, "k", "v")
	mustPut(t, c, cl, "z", "w")
	waitAsleep(c)
	mustPut(t, c, cl, "k", "v2")
	mustGet(t, c, cl, "k", "v2")
	waitAsleep(c)
	for _, n := range c.Nodes() {
		c.TransferLeader(cluster.FirstRegionID,
			cluster.OnStore(c.Placement.Region(cluster.FirstRegionID), n.ID))
		waitAsleep(c)
	}
	c.CheckConsistency()
}

// TestLeaderDiesWhileItsRegionSleeps: the followers notice by the store's silence.
func TestLeaderDiesWhileItsRegionSleeps(t *testing.T) {
	c, cl, leader := sleeping(t)
	leader.Crash(faultfs.DropAll)
	mustPut(t, c, cl, "k", "w")
	mustGet(t, c, cl, "k", "w")
	leader.Restart()
	c.CheckConsistency()
	waitAsleep(c)
}

// TestLeaderIsCutOffWhileItsRegionSleeps: it still believes to lead, and must not serve what others
// have replaced since.
func TestLeaderIsCutOffWhileItsRegionSleeps(t *testing.T) {
	c, cl, leader := sleeping(t)
	info, err := leader.Store().Peer(context.Background(), cluster.FirstRegionID)
	require.NoError(t, err)
	var rest []uint64
	for _, n := range c.Nodes() {
		if n.ID != leader.ID {
			rest = append(rest, n.ID)
		}
	}
	c.Net.Partition([]uint64{leader.ID}, rest)
	mustPut(t, c, cl, "k", "new")
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	value, e, err := cluster.GetFrom(ctx, c, leader.ID,
		&kvrpcpb.Context{
			RegionId: cluster.FirstRegionID, RegionEpoch: info.Region.RegionEpoch, Peer: info.Peer,
		}, []byte("k"))
	require.True(t, err != nil || e != nil, "served %q", value)
	c.Net.Heal()
	mustGet(t, c, cl, "k", "new")
	c.CheckConsistency()
	waitAsleep(c)
}

// TestFollowerRestartsWhileItsRegionSleeps: it knows no leader, asks for votes, and so finds the
// old one.
func TestFollowerRestartsWhileItsRegionSleeps(t *testing.T) {
	c, cl, leader := sleeping(t)
	for _, n := range c.Nodes() {
		if n.ID != leader.ID {
			n.Crash(faultfs.DropAll)
			n.Restart()
			waitAsleep(c)
		}
	}
	require.Equal(t, leader.ID, c.WaitLeader(cluster.FirstRegionID).ID, "no election was needed")
	mustGet(t, c, cl, "k", "v")
	c.CheckConsistency()
}

// TestAllStoresRestart: regions are dormant then. Each gets a leader again without being asked for
// anything, and one that is asked for something before its turn serves as well.
func TestAllStoresRestart(t *testing.T) {
	c, cl, _ := sleeping(t)
	for _, key := range []string{"a", "c", "e", "g", "i", "m", "q", "u"} {
		c.Split([]byte(key))
	}
	mustPut(t, c, cl, "b", "1")
	mustPut(t, c, cl, "p", "2")
	for round := range 2 {
		for _, n := range c.Nodes() {
			n.Crash(faultfs.DropAll)
		}
		for _, n := range c.Nodes() {
			n.Restart()
		}
		if round == 0 {
			mustGet(t, c, cl, "b", "1")
			mustGet(t, c, cl, "p", "2")
		}
		waitAsleep(c) // leader and followers agreed on it
	}
	mustGet(t, c, cl, "b", "1")
	mustGet(t, c, cl, "p", "2")
	c.CheckConsistency()
}
