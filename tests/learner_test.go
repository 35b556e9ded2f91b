package tests

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// TestLearnerIsPromotedWhenItHasCaughtUp: a learner that has no data, or has not answered, gets no
// vote, no matter who asks for it. So with one of three replicas dead writes go on while the fourth
// is on its way. Then it gets its vote and counts.
func TestLearnerIsPromotedWhenItHasCaughtUp(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 4, Replicas: 3})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "1")
	region := c.Placement.Region(cluster.FirstRegionID)
	c.TransferLeader(cluster.FirstRegionID, cluster.OnStore(region, 1))
	leader := c.WaitLeader(cluster.FirstRegionID)
	require.Equal(t, uint64(1), leader.ID)

	toNew := func(to uint64, _ *rspb.RaftMessage) bool { return to == 4 }
	c.Net.Hold(toNew)
	p := &metapb.Peer{Id: c.Placement.AllocID(), StoreId: 4}
	require.NoError(t,
		c.ChangePeer(cluster.FirstRegionID, eraftpb.ConfChangeType_AddLearnerNode, p))
	c.Node(3).Stop()
	mustPut(t, c, cl, "k", "2")
	err := c.ChangePeer(cluster.FirstRegionID, eraftpb.ConfChangeType_AddNode, p)
	var busy *regionerr.BusyError
	require.True(t, errors.As(err, &busy), "%v", err)
	mustPut(t, c, cl, "k", "3")

	c.Net.Hold(nil)
	c.Net.Release(toNew)
	c.Eventually(20*time.Second, func() string {
		if err := c.ChangePeer(cluster.FirstRegionID, eraftpb.ConfChangeType_AddNode,
			p); err != nil {
			return fmt.Sprintf("not promoted: %v", err)
		}
		return ""
	})
	info := cluster.PeerOf(c, 1, cluster.FirstRegionID)
	require.Equal(t, metapb.PeerRole_Voter, cluster.OnStore(info.Region, 4).GetRole())

	// Its vote counts: without store 3, which is dead, and store 2, it makes a majority of three
	// with the leader.
	c.RemovePeer(cluster.FirstRegionID, cluster.OnStore(info.Region, 3))
	c.Net.Partition([]uint64{1, 4}, []uint64{2, 3})
	mustPut(t, c, cl, "k", "4")
	mustGet(t, c, cl, "k", "4")
	c.Net.Heal()
	c.Node(3).Restart()
	c.CheckConsistency()
}
