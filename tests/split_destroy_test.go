package tests

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// TestSplitThenDestroyedBeforeReport: a store applies a split, and before its raft worker learns of
// that a message removes it from the left half. The right half must begin all the same, with its
// data. Found by tests/chaos with a stopped store, splits and moves: the report was dropped, so the
// right half's peer did not run until the next start, and the destruction of the left one, which
// still counted as the whole, had cleared the data of both.
func TestSplitThenDestroyedBeforeReport(t *testing.T) {
	ctl := &faultfs.Controller{}
	c := cluster.New(t,
		cluster.Options{
			Stores: 4, Replicas: 3, Controllers: map[uint64]*faultfs.Controller{3: ctl},
		})
	c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for i := range 20 {
		require.NoError(t, cl.Put(ctx, fmt.Appendf(nil, "%c%d", 'a'+i, i), []byte("value")))
	}
	if l := c.Placement.Leader(cluster.FirstRegionID); l.StoreId == 3 {
		c.TransferLeader(cluster.FirstRegionID,
			cluster.OnStore(c.Placement.Region(cluster.FirstRegionID), 1))
	}
	c.CheckConsistency()

	// The apply worker of store 3 stops in the middle of the split, and nothing else reaches the
	// store.
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	ctl.Set(func(op faultfs.Op) error {
		if op.Kind == "commit-sync" {
			once.Do(func() { close(reached); <-release })
		}
		return nil
	})
	c.Split([]byte("k"))
	<-reached
	for id := uint64(1); id <= 4; id++ {
		c.Net.Cut(id, 3)
	}
	left := c.Placement.Region(cluster.FirstRegionID)
	removed := cluster.OnStore(left, 3)
	c.RemovePeer(cluster.FirstRegionID, removed)
	left = c.Placement.Region(cluster.FirstRegionID)
	require.NoError(t, c.Node(3).Store().HandleRaft(&rspb.RaftMessage{
		RegionId: left.Id, FromPeer: left.Peers[0],
		ToPeer:      &metapb.Peer{Id: removed.Id, StoreId: 3},
		RegionEpoch: left.RegionEpoch, IsTombstone: true, ClusterId: cluster.ClusterID,
	}))
	c.Eventually(5*time.Second, func() string {
		_, err := c.Node(3).Store().Peer(ctx, left.Id)
		var gone *regionerr.RegionNotFoundError
		if !errors.As(err, &gone) {
			return fmt.Sprintf("store 3 does not destroy its peer: %v", err)
		}
		return ""
	})
	close(release)
	c.Net.Heal()
	c.Eventually(10*time.Second, c.Fault)
}
