package tests

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// TestLateWriteIsNotProposed: a write that waits in the mailbox of a stopped worker until its
// deadline has passed must not be proposed any more. Its client has given up, and may have told
// others that the write is lost (N3).
func TestLateWriteIsNotProposed(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	store := c.WaitLeader(cluster.FirstRegionID).Store()
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "old")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	info, err := store.Peer(ctx, cluster.FirstRegionID)
	require.NoError(t, err)

	stopped, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- store.Inspect(ctx, cluster.FirstRegionID, func(*raftstore.PeerView) {
			close(stopped)
			<-release
		})
	}()
	<-stopped
	w := &message.Write{
		Header: message.Header{
			RegionID: cluster.FirstRegionID, Peer: info.Peer, Epoch: info.Region.RegionEpoch,
		},
		MinKey: []byte("k"), MaxKey: []byte("k"), Deadline: time.Now().Add(time.Millisecond),
		Callback: message.NewCallback(),
		Payload:  message.AppendPut(nil, "default", []byte("k"), []byte("late")),
	}
	store.Write(w)
	for !time.Now().After(w.Deadline) {
		time.Sleep(time.Millisecond) // waits for the clock itself
	}
	close(release)
	require.NoError(t, <-done)
	res, err := w.Callback.Wait(ctx)
	require.NoError(t, err)
	require.ErrorIs(t, res.Err, regionerr.ErrDeadlineExceeded)
	mustGet(t, c, cl, "k", "old")
	c.CheckConsistency()
}

// TestTombstoneKeepsPeerID3B: a peer that was removed before it knew anything but its id must not
// come back by a late message, because it has forgotten its votes; a newer peer may (G4).
func TestTombstoneKeepsPeerID3B(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 4, Replicas: 3})
	c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	region := c.Placement.Region(cluster.FirstRegionID)
	first := &metapb.Peer{Id: c.Placement.AllocID(), StoreId: 4}
	newer := &metapb.Peer{Id: c.Placement.AllocID(), StoreId: 4}
	// The region may have changed in ways that this store has not heard of.
	epoch := &metapb.RegionEpoch{
		Version: region.RegionEpoch.Version, ConfVer: region.RegionEpoch.ConfVer + 5,
	}
	message := func(to *metapb.Peer) *rspb.RaftMessage {
		return &rspb.RaftMessage{
			RegionId: region.Id, FromPeer: region.Peers[0], ToPeer: to, RegionEpoch: epoch,
			ClusterId: cluster.ClusterID,
		}
	}
	vote := func(to *metapb.Peer) *rspb.RaftMessage {
		m := message(to)
		m.Message = &eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgRequestVote, From: m.FromPeer.Id, To: to.Id, Term: 1,
		}
		return m
	}
	here := func() uint64 {
		if p := cluster.PeerOf(c, 4, region.Id); p != nil {
			return p.Peer.Id
		}
		return 0
	}
	become := func(id uint64) {
		t.Helper()
		c.Eventually(10*time.Second, func() string {
			if got := here(); got != id {
				return fmt.Sprintf("store 4 has peer %d, want %d", got, id)
			}
			return ""
		})
	}
	store := c.Node(4).Store()
	require.NoError(t, store.HandleRaft(vote(first)))
	become(first.Id)
	// that of its removal
	epoch = &metapb.RegionEpoch{Version: epoch.Version, ConfVer: epoch.ConfVer + 1}
	gone := message(first)
	gone.IsTombstone = true
	require.NoError(t, store.HandleRaft(gone))
	waitGone(t, c, 4, region.Id)
	// The queue of the store worker is in order: once the newer peer is there, the first vote was
	// judged.
	require.NoError(t, store.HandleRaft(vote(first)))
	other := vote(&metapb.Peer{Id: newer.Id + 1, StoreId: 4})
	other.RegionId = 999
	require.NoError(t, store.HandleRaft(other))
	c.Eventually(10*time.Second, func() string {
		_, err := store.Peer(context.Background(), 999)
		var absent *regionerr.RegionNotFoundError
		if errors.As(err, &absent) {
			return "the other region's peer is not there yet"
		}
		return ""
	})
	require.Zero(t, here(), "the removed peer is back")
	require.NoError(t, store.HandleRaft(vote(newer)))
	become(newer.Id)
	mustGet(t, c, cl, "k", "v")
}

// waitGone waits until nothing of a region's peer is left on a store but its tombstone.
func waitGone(t *testing.T, c *cluster.Cluster, store, region uint64) {
	t.Helper()
	c.Eventually(10*time.Second, func() string {
		err := c.Node(store).Store().Inspect(context.Background(), region,
			func(*raftstore.PeerView) {})
		var absent *regionerr.RegionNotFoundError
		if !errors.As(err, &absent) {
			return fmt.Sprintf("store %d still has a peer of region %d", store, region)
		}
		return ""
	})
}

// TestDestroyedEmptyPeerClearsNothing3B: a peer that was removed before it knew its range has no
// data, and its empty range is not the whole key space (I-2).
func TestDestroyedEmptyPeerClearsNothing3B(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "a", "v")
	mustPut(t, c, cl, "m", "v")
	c.Split([]byte("k"))
	var right *metapb.Region
	for _, r := range c.Placement.All() {
		if r.Id != cluster.FirstRegionID {
			right = r
		}
	}
	require.NotNil(t, right)
	if l := c.Placement.Leader(right.Id); l.StoreId == 3 {
		c.TransferLeader(right.Id, cluster.OnStore(right, 1))
	}
	c.RemovePeer(right.Id, cluster.OnStore(right, 3))
	waitGone(t, c, 3, right.Id)
	right = c.Placement.Region(right.Id)
	empty := &metapb.Peer{Id: c.Placement.AllocID(), StoreId: 3}
	epoch := &metapb.RegionEpoch{
		Version: right.RegionEpoch.Version, ConfVer: right.RegionEpoch.ConfVer + 5,
	}
	m := func() *rspb.RaftMessage {
		return &rspb.RaftMessage{
			RegionId: right.Id, FromPeer: right.Peers[0], ToPeer: empty, RegionEpoch: epoch,
			ClusterId: cluster.ClusterID,
			StartKey:  right.StartKey, EndKey: right.EndKey,
		}
	}
	vote := m()
	vote.Message = &eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgRequestVote, From: vote.FromPeer.Id, To: empty.Id, Term: 1,
	}
	store := c.Node(3).Store()
	require.NoError(t, store.HandleRaft(vote))
	c.Eventually(10*time.Second, func() string {
		if p := cluster.PeerOf(c, 3, right.Id); p == nil || p.Peer.Id != empty.Id {
			return "the empty peer is not there yet"
		}
		return ""
	})
	// that of its removal
	epoch = &metapb.RegionEpoch{Version: epoch.Version, ConfVer: epoch.ConfVer + 1}
	gone := m()
	gone.IsTombstone = true
	require.NoError(t, store.HandleRaft(gone))
	waitGone(t, c, 3, right.Id)
	mustGet(t, c, cl, "a", "v")
	mustGet(t, c, cl, "m", "v")
	c.CheckConsistency()
}

// TestOverlappingSnapshotIsRefused3B: a raft snapshot from before a split arrives after the store
// has got the right half by a snapshot of its own. Installing it would put old data over the right
// half (I-1).
func TestOverlappingSnapshotIsRefused3B(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 4, Replicas: 3})
	c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "a", "old")
	mustPut(t, c, cl, "m", "old")
	isSnapshot := func(to uint64, m *rspb.RaftMessage) bool {
		return to == 4 && m.GetMessage().GetMsgType() == eraftpb.MessageType_MsgSnapshot
	}
	ofRegion := func(id uint64) func(uint64, *rspb.RaftMessage) bool {
		return func(to uint64, m *rspb.RaftMessage) bool {
			return isSnapshot(to, m) && m.RegionId == id
		}
	}
	c.Net.Hold(isSnapshot)
	c.OrderPeer(cluster.FirstRegionID, 4)
	waitHeld := func(region uint64) {
		t.Helper()
		c.Eventually(10*time.Second, func() string {
			if c.Net.Held(ofRegion(region)) == 0 {
				return fmt.Sprintf("no raft snapshot of region %d was sent", region)
			}
			return ""
		})
	}
	waitHeld(cluster.FirstRegionID)
	c.Split([]byte("k"))
	mustPut(t, c, cl, "m", "new")
	var right *metapb.Region
	for _, r := range c.Placement.All() {
		if r.Id != cluster.FirstRegionID {
			right = r
		}
	}
	require.NotNil(t, right)
	waitHeld(right.Id)
	c.Net.Release(ofRegion(right.Id))
	c.Eventually(10*time.Second, func() string {
		p := cluster.PeerOf(c, 4, right.Id)
		if p == nil || len(p.Region.Peers) == 0 || p.Installing {
			return "the right half is not on store 4"
		}
		return ""
	})
	require.Positive(t, c.Net.Release(ofRegion(cluster.FirstRegionID)))
	c.Net.Hold(nil)
	c.Net.Release(isSnapshot)
	mustPut(t, c, cl, "a", "new")
	c.CheckConsistency()
	mustGet(t, c, cl, "m", "new")
}

// TestWriteBehindASplitIsRefused3B: a write that is proposed under the old epoch after a split, but
// before the split is applied, must not take effect: its key belongs to another region by then
// (H1).
func TestWriteBehindASplitIsRefused3B(t *testing.T) {
	ctls := map[uint64]*faultfs.Controller{1: {}, 2: {}, 3: {}}
	c := cluster.New(t, cluster.Options{Stores: 3, Controllers: ctls})
	leader := c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "a", "v")
	mustPut(t, c, cl, "m", "old")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	store := leader.Store()
	before, err := store.Peer(ctx, cluster.FirstRegionID)
	require.NoError(t, err)
	proposed := func(n uint64) {
		t.Helper()
		c.Eventually(10*time.Second, func() string {
			if info, err := store.Peer(ctx, cluster.FirstRegionID); err != nil ||
				info.LastIndex < before.LastIndex+n {
				return fmt.Sprintf("%d entries are not proposed yet: %v", n, err)
			}
			return ""
		})
	}
	// The leader's apply worker stops with the next batch.
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	ctls[leader.ID].Set(func(op faultfs.Op) error {
		if strings.HasPrefix(op.Kind, "commit") {
			once.Do(func() { close(reached); <-release })
		}
		return nil
	})
	write := func(key, value string) *message.Callback {
		w := &message.Write{
			Header: message.Header{
				RegionID: cluster.FirstRegionID, Peer: before.Peer,
				Epoch: before.Region.RegionEpoch,
			},
			MinKey: []byte(key), MaxKey: []byte(key), Callback: message.NewCallback(),
			Payload: message.AppendPut(nil, "default", []byte(key), []byte(value)),
		}
		store.Write(w)
		return w.Callback
	}
	first := write("a", "w")
	<-reached
	split := make(chan error, 1)
	go func() {
		_, err := store.SplitAt(ctx, cluster.FirstRegionID, []byte("k"))
		split <- err
	}()
	proposed(2)
	late, stays := write("m", "late"), write("b", "late")
	proposed(3)
	close(release)
	res, err := first.Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, res.Err)
	require.NoError(t, <-split)
	for _, cb := range []*message.Callback{late, stays} {
		res, err = cb.Wait(ctx)
		require.NoError(t, err)
		var mismatch *regionerr.EpochNotMatchError
		require.ErrorAs(t, res.Err, &mismatch)
		require.Len(t, mismatch.Regions, 2, "the answer has both halves")
	}
	mustGet(t, c, cl, "m", "old")
	mustGet(t, c, cl, "a", "w")
	c.CheckConsistency()
}
