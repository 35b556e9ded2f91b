package tests

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// gate stops one operation of a store's engine: the n-th of a kind since the gate was set.
type gate struct {
	reached, released chan struct{}
	seen              atomic.Int64
	open              func()
}

// setGate sets a gate; it opens with open, or at the end of a test that fails.
func setGate(t *testing.T, ctl *faultfs.Controller, kind string, nth int64) *gate {
	g := &gate{reached: make(chan struct{}), released: make(chan struct{})}
	g.open = sync.OnceFunc(func() { close(g.released) })
	t.Cleanup(g.open)
	ctl.Set(func(op faultfs.Op) error {
		if op.Layer == "engine" && op.Kind == kind && g.seen.Add(1) == nth {
			close(g.reached)
			<-g.released
		}
		return nil
	})
	return g
}

func snapshotTo(store uint64) func(uint64, *rspb.RaftMessage) bool {
	return func(to uint64, m *rspb.RaftMessage) bool {
		return to == store && m.GetMessage().GetMsgType() == eraftpb.MessageType_MsgSnapshot
	}
}

func waitInstalling(c *cluster.Cluster, store uint64, want bool) {
	c.Eventually(20*time.Second, func() string {
		if p := cluster.PeerOf(c, store, cluster.FirstRegionID); p == nil || p.Installing != want {
			return fmt.Sprintf("store %d: %+v", store, p)
		}
		return ""
	})
}

// TestOlderReportsDoNotUndoASnapshot: the apply worker of a store is in the middle of a conf change
// when the store accepts a raft snapshot from after a second one. The report of the first, which
// comes then, must not bring back the region as it was: raft, the range tree and the answers to
// clients would speak of members that are not the region's.
func TestOlderReportsDoNotUndoASnapshot(t *testing.T) {
	ctl := &faultfs.Controller{}
	c := cluster.New(t,
		cluster.Options{
			Stores: 5, Replicas: 3, Controllers: map[uint64]*faultfs.Controller{3: ctl},
		})
	c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "a", "v")
	if l := c.Placement.Leader(cluster.FirstRegionID); l.StoreId == 3 {
		c.TransferLeader(cluster.FirstRegionID,
			cluster.OnStore(c.Placement.Region(cluster.FirstRegionID), 1))
	}
	c.CheckConsistency()

	first := setGate(t, ctl, "commit-sync", 1)
	c.AddPeer(cluster.FirstRegionID, 4)
	<-first.reached
	for id := uint64(1); id <= 5; id++ {
		c.Net.Cut(id, 3)
		c.Net.Cut(3, id)
	}
	c.AddPeer(cluster.FirstRegionID, 5)
	mustPut(t, c, cl, "b", "v")
	require.NoError(t, c.CompactLog(cluster.FirstRegionID))
	want := c.Placement.Region(cluster.FirstRegionID).RegionEpoch.ConfVer
	has := cluster.PeerOf(c, 3, cluster.FirstRegionID).LastIndex
	leader := c.WaitLeader(cluster.FirstRegionID)
	c.Eventually(20*time.Second, func() string {
		if st, _ := leader.Log().State(cluster.FirstRegionID); st.TruncatedIndex <= has {
			return fmt.Sprintf("the log begins after %d, store 3 has %d", st.TruncatedIndex, has)
		}
		return ""
	})
	c.Net.Heal()
	waitInstalling(c, 3, true)
	first.open()
	waitInstalling(c, 3, false)
	require.Equal(t, want, cluster.PeerOf(c, 3, cluster.FirstRegionID).Region.RegionEpoch.ConfVer,
		"the region as of the raft snapshot")
	require.Len(t, cluster.PeerOf(c, 3, cluster.FirstRegionID).Region.Peers, 5)
	mustPut(t, c, cl, "c", "v")
	c.CheckConsistency()
}

// TestOneSnapshotAtATime: while a raft snapshot is being installed, another one for the same peer
// is refused, and the first takes effect (I-6, I-7). Until then the peer shows nothing of it.
func TestOneSnapshotAtATime(t *testing.T) {
	ctl := &faultfs.Controller{}
	c := cluster.New(t,
		cluster.Options{
			Stores: 4, Replicas: 3, Controllers: map[uint64]*faultfs.Controller{4: ctl},
		})
	c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "a", "v")
	var last atomic.Pointer[rspb.RaftMessage]
	c.Net.Tap(func(_ uint64, m *rspb.RaftMessage) {
		if snapshotTo(4)(m.ToPeer.StoreId, m) {
			last.Store(m)
		}
	})
	c.Net.Hold(snapshotTo(4))
	c.OrderPeer(cluster.FirstRegionID, 4)
	c.Eventually(10*time.Second, func() string {
		if c.Net.Held(snapshotTo(4)) == 0 {
			return "no raft snapshot was sent"
		}
		return ""
	})
	// the first makes the state Applying durable, the second ends it
	g := setGate(t, ctl, "commit-sync", 2)
	c.Net.Release(snapshotTo(4))
	c.Net.Hold(nil)
	<-g.reached
	before := cluster.PeerOf(c, 4, cluster.FirstRegionID)
	require.True(t, before.Installing)
	data, err := last.Load().Marshal()
	require.NoError(t, err)
	again := new(rspb.RaftMessage)
	require.NoError(t, again.Unmarshal(data))
	again.Message.Snapshot.Metadata.Index++
	require.NoError(t, c.Node(4).Store().HandleRaft(again))
	now := cluster.PeerOf(c, 4, cluster.FirstRegionID)
	require.Equal(t, before.LastIndex, now.LastIndex)
	require.Zero(t, now.AppliedIndex, "shown only when its data is there")
	g.open()
	waitInstalling(c, 4, false)
	mustPut(t, c, cl, "b", "v")
	c.CheckConsistency()
}

// TestDestroyedWhileInstalling: the message that a peer was removed comes when the installation of
// its raft snapshot cannot be called off any more. What is left on disk must be the tombstone: the
// last batch of the installation used to put the state Normal over it, and with the log and the
// apply state gone the next start failed (G8, G9).
func TestDestroyedWhileInstalling(t *testing.T) {
	ctl := &faultfs.Controller{}
	c := cluster.New(t,
		cluster.Options{
			Stores: 4, Replicas: 3, Controllers: map[uint64]*faultfs.Controller{4: ctl},
		})
	c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "a", "v")
	c.Net.Hold(snapshotTo(4))
	peer := c.OrderPeer(cluster.FirstRegionID, 4)
	c.Eventually(10*time.Second, func() string {
		if c.Net.Held(snapshotTo(4)) == 0 {
			return "no raft snapshot was sent"
		}
		return ""
	})
	reached, released := make(chan struct{}), make(chan struct{})
	open := sync.OnceFunc(func() { close(released) })
	t.Cleanup(open)
	var syncs, commits atomic.Int64
	var behind atomic.Bool
	ctl.Set(func(op faultfs.Op) error {
		switch {
		case op.Layer != "engine":
		case op.Kind == "commit-sync" && syncs.Add(1) == 2:
			close(reached)
			<-released
			behind.Store(true)
		case op.Kind == "commit" && behind.Load():
			commits.Add(1) // of the destruction, behind the installation
		}
		return nil
	})
	c.Net.Release(snapshotTo(4))
	<-reached
	for id := uint64(1); id <= 3; id++ {
		c.Net.Cut(id, 4)
	}
	c.Net.Hold(nil)
	left := c.Placement.Region(cluster.FirstRegionID)
	epoch := &metapb.RegionEpoch{
		Version: left.RegionEpoch.Version, ConfVer: left.RegionEpoch.ConfVer + 9,
	}
	require.NoError(t, c.Node(4).Store().HandleRaft(&rspb.RaftMessage{
		RegionId: left.Id, FromPeer: left.Peers[0], ToPeer: &metapb.Peer{Id: peer.Id, StoreId: 4},
		RegionEpoch: epoch, IsTombstone: true, ClusterId: cluster.ClusterID,
	}))
	state := func() *rspb.RegionLocalState {
		st, err := meta.LoadRegionState(c.Node(4).Engine(), left.Id)
		require.NoError(t, err)
		return st
	}
	c.Eventually(10*time.Second, func() string {
		if st := state(); st.State != rspb.PeerState_Tombstone {
			return fmt.Sprintf("state %v", st)
		}
		return ""
	})
	open()
	c.Eventually(10*time.Second, func() string {
		if commits.Load() == 0 {
			return "the destruction has not begun"
		}
		return ""
	})
	c.Node(4).Stop()
	st := state()
	require.Equal(t, rspb.PeerState_Tombstone, st.State)
	require.Equal(t, peer.Id, st.Peer.Id)
	c.Node(4).Restart()
	require.Nil(t, cluster.PeerOf(c, 4, left.Id))
}
