package tests

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// TestPeerIDIsNotUsedAgain: a peer id that was a member before, or an older one, is refused where
// it would be proposed: the store with its tombstone would never create it, and a region of one
// voter would be without a leader for good. The region remembers also over a restart.
func TestPeerIDIsNotUsedAgain(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3, Replicas: 2})
	c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	gone := c.AddPeer(cluster.FirstRegionID, 3)
	for _, store := range []uint64{3, 2} {
		c.RemovePeer(cluster.FirstRegionID,
			cluster.OnStore(c.Placement.Region(cluster.FirstRegionID), store))
		waitGone(t, c, store, cluster.FirstRegionID)
	}
	c.Node(1).Stop()
	c.Node(1).Restart()
	leader := c.WaitLeader(cluster.FirstRegionID)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, p := range []*metapb.Peer{
		gone, {Id: gone.Id, StoreId: 2}, {Id: gone.Id - 1, StoreId: 2},
	} {
		_, err := leader.Store().AdminCommand(ctx, cluster.FirstRegionID, &raft_cmdpb.AdminRequest{
			CmdType: raft_cmdpb.AdminCmdType_ChangePeer,
			ChangePeer: &raft_cmdpb.ChangePeerRequest{
				ChangeType: eraftpb.ConfChangeType_AddNode, Peer: p,
			},
		})
		var invalid *regionerr.InvalidError
		require.ErrorAs(t, err, &invalid, "peer %v", p)
	}
	mustPut(t, c, cl, "k", "new")
	c.AddPeer(cluster.FirstRegionID, 3)
	c.AddPeer(cluster.FirstRegionID, 2)
	c.CheckConsistency()
}
