package tests

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/tests/cluster"
)

// TestPutOfARemovedLeaderIsUnknown: a put reaches the followers, whose answers are lost; the next
// leader commits it, and it is read. The old leader's peer is removed and learns of that before it
// learns of the put's fate. If it said "not here", the client would take that for "nothing was
// done".
func TestPutOfARemovedLeaderIsUnknown(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	old := c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "old")
	var rest []uint64
	for _, n := range c.Nodes() {
		if n != old {
			rest = append(rest, n.ID)
			c.Net.Cut(n.ID, old.ID)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	info, err := old.Store().Peer(ctx, cluster.FirstRegionID)
	require.NoError(t, err)
	w := &message.Write{
		Header: message.Header{
			RegionID: cluster.FirstRegionID, Peer: info.Peer, Epoch: info.Region.RegionEpoch,
		},
		MinKey: []byte("k"), MaxKey: []byte("k"), Callback: message.NewCallback(),
		Payload: message.AppendPut(nil, "default", []byte("k"), []byte("new")),
	}
	old.Store().Write(w)
	c.Eventually(10*time.Second, func() string {
		for _, id := range rest {
			if p := cluster.PeerOf(c, id, cluster.FirstRegionID); p == nil ||
				p.LastIndex <= info.LastIndex {
				return fmt.Sprintf("store %d does not have the put", id)
			}
		}
		return ""
	})
	c.Net.Partition([]uint64{old.ID}, rest)
	c.Eventually(10*time.Second, func() string {
		// While the lease of the old leader lasts, it rightly serves what was there before.
		if p := cluster.PeerOf(c, old.ID, cluster.FirstRegionID); p == nil || p.IsLeader {
			return "the old leader does not step down"
		}
		return ""
	})
	mustGet(t, c, cl, "k", "new")
	require.False(t, w.Callback.Answered())

	c.RemovePeer(cluster.FirstRegionID, info.Peer)
	c.Net.Heal()
	res, err := w.Callback.Wait(ctx)
	require.NoError(t, err)
	var unknown *regionerr.UnknownError
	require.ErrorAs(t, res.Err, &unknown, "the put has taken effect")
	pb, ok := regionerr.ToProto(res.Err)
	require.True(t, ok)
	require.NotNil(t, pb.StaleCommand)
	waitGone(t, c, old.ID, cluster.FirstRegionID)
	mustGet(t, c, cl, "k", "new")
	c.CheckConsistency()
}
