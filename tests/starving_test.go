package tests

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// TestStarvingFollowerIsReported: a follower that answers its leader but gets no entries stands in
// the store heartbeat of the leader's store, and not any more once it has caught up.
func TestStarvingFollowerIsReported(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "1")
	leader := c.WaitLeader(cluster.FirstRegionID)
	store := leader.ID%3 + 1
	starved := cluster.OnStore(c.Placement.Region(cluster.FirstRegionID), store)
	entries := func(to uint64, m *rspb.RaftMessage) bool {
		return to == store && m.Message.GetMsgType() == eraftpb.MessageType_MsgAppend
	}
	c.Net.Hold(entries)
	mustPut(t, c, cl, "k", "2")
	c.Eventually(20*time.Second, func() string {
		stats := c.Placement.Stats(leader.ID)
		if !slices.Contains(stats.GetStarvingPeerIds(), starved.Id) {
			return fmt.Sprintf("starving at store %d: %v", leader.ID, stats.GetStarvingPeerIds())
		}
		return ""
	})
	require.Len(t, c.Placement.Stats(leader.ID).StarvingPeerIds, 1,
		"the other follower has everything")

	// Another leader finds the same, and the one before says it no longer.
	next := 6 - leader.ID - store
	c.TransferLeader(cluster.FirstRegionID,
		cluster.OnStore(c.Placement.Region(cluster.FirstRegionID), next))
	c.Eventually(20*time.Second, func() string {
		before, now := c.Placement.Stats(leader.ID).GetStarvingPeerIds(),
			c.Placement.Stats(next).GetStarvingPeerIds()
		if len(before) > 0 || !slices.Equal(now, []uint64{starved.Id}) {
			return fmt.Sprintf("starving at the leader before: %v, at the one of now: %v", before,
				now)
		}
		return ""
	})
	c.Net.Hold(nil)
	c.Net.Release(entries)
	c.Eventually(20*time.Second, func() string {
		for _, n := range c.Nodes() {
			if ids := c.Placement.Stats(n.ID).GetStarvingPeerIds(); len(ids) > 0 {
				return fmt.Sprintf("starving at store %d: %v", n.ID, ids)
			}
		}
		return ""
	})
}

// TestHeartbeatsTellTheClock: a store heartbeat has the wall clock of its store, and how long the
// one before took.
func TestHeartbeatsTellTheClock(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 1})
	c.Eventually(20*time.Second, func() string {
		stats := c.Placement.Stats(1)
		if off := time.Since(time.Unix(0, stats.GetClock())).Abs(); off > time.Minute ||
			stats.GetRoundTrip() == 0 {
			return fmt.Sprintf("the clock is off by %s, the round trip was %d ns", off,
				stats.GetRoundTrip())
		}
		return ""
	})
}
