package raftstore

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine/enginefault"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// What a client is told of a command that was proposed (message.Proposal), path by path: whatever
// ends the wait besides the entry's fate leaves the outcome unknown; what was not proposed is
// refused for certain.

// requireUnknown fails unless an answer says that the outcome is unknown, also on the wire.
func requireUnknown(t testing.TB, err error) {
	t.Helper()
	var unknown *message.UnknownError
	require.ErrorAs(t, err, &unknown)
	pb, ok := RegionError(err)
	require.True(t, ok)
	require.NotNil(t, pb.StaleCommand)
	require.Nil(t, pb.RegionNotFound)
}

// proposed returns a put that is in the log of a leader whom nobody answers any more.
func proposed(t *testing.T, s *Store, o *obliging) pending {
	t.Helper()
	o.silent.Store(true)
	w := put(s, trio(), "k")
	require.Eventually(t, func() bool {
		info, err := s.Peer(t.Context(), 1)
		return err == nil && info.Proposals == 1
	}, 10*time.Second, time.Millisecond)
	return w
}

func TestOutcomeWhenThePeerIsDestroyed(t *testing.T) {
	s, o, _ := leading(t, nil)
	w := proposed(t, s, o)
	held := pending{message.NewCallback()}
	require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) {
		v.p.heldApply = []applyTask{{proposals: []message.Proposal{message.NewProposal(99, 6, 0, held.cb)}}}
	}))
	require.NoError(t, s.HandleRaft(tombstone(trio(), 3, trio().Peers[0])))
	requireUnknown(t, w.wait(t))
	requireUnknown(t, held.wait(t))
	var gone *RegionNotFoundError
	require.ErrorAs(t, put(s, trio(), "late").wait(t), &gone, "what comes later is refused for certain")
	waitPeerID(t, s, 1, 0)
	require.Zero(t, s.Counts().InflightBytes)
}

func TestOutcomeWhenTheStoreStops(t *testing.T) {
	s, o, _ := leading(t, nil)
	w := proposed(t, s, o)
	s.Stop()
	requireUnknown(t, w.wait(t))
	require.ErrorIs(t, put(s, trio(), "late").wait(t), ErrStopping)
	require.Zero(t, s.Counts().InflightBytes)
}

// TestOutcomeWhenTheEngineFails: the entry is committed, and applied at the next start or by the
// others.
func TestOutcomeWhenTheEngineFails(t *testing.T) {
	var ctl faultfs.Controller
	s, _, _ := leading(t, func(s *Store) { s.engine = enginefault.Wrap(s.engine, &ctl) })
	broken := errors.New("input/output error")
	ctl.Set(func(op faultfs.Op) error {
		if op.Layer == "engine" {
			return broken
		}
		return nil
	})
	w := put(s, trio(), "k")
	select {
	case err := <-s.Failed():
		require.ErrorIs(t, err, broken)
	case <-time.After(10 * time.Second):
		t.Fatal("the store goes on")
	}
	s.Stop()
	requireUnknown(t, w.wait(t))
	require.ErrorIs(t, put(s, trio(), "late").wait(t), ErrFailed)
	require.Zero(t, s.Counts().InflightBytes)
}

// TestOutcomeAtALeaderThatWasRemoved: what is committed behind its removal is applied by those who
// stay.
func TestOutcomeAtALeaderThatWasRemoved(t *testing.T) {
	s, _ := newTestStore(t, trio())
	require.NoError(t, s.recover())
	p := s.router.get(1).peer
	p.removed = &lingering{region: p.region()}
	w := pending{message.NewCallback()}
	p.proposals = []message.Proposal{message.NewProposal(6, 6, 0, w.cb)}
	p.handOver(&turn{apply: make([][]applyTask, 1)}, []eraftpb.Entry{{Index: 6, Term: 6}})
	requireUnknown(t, w.wait(t))
}

// TestOutcomeBehindARemoval: the apply worker stops at the entry that removes its peer, or has none
// any more.
func TestOutcomeBehindARemoval(t *testing.T) {
	r := trio()
	s, _ := newTestStore(t, r)
	w := s.appliers[0]
	change := &raft_cmdpb.RaftCmdRequest{
		Header: &raft_cmdpb.RaftRequestHeader{RegionId: 1, RegionEpoch: r.RegionEpoch},
		AdminRequest: &raft_cmdpb.AdminRequest{
			CmdType:    raft_cmdpb.AdminCmdType_ChangePeer,
			ChangePeer: &raft_cmdpb.ChangePeerRequest{ChangeType: eraftpb.ConfChangeType_RemoveNode, Peer: r.Peers[0]},
		},
	}
	context, err := change.Marshal()
	require.NoError(t, err)
	removal, err := (&eraftpb.ConfChange{ChangeType: eraftpb.ConfChangeType_RemoveNode, NodeId: 1, Context: context}).Marshal()
	require.NoError(t, err)
	data := message.AppendPut(message.AppendHeader(nil, 1, r.RegionEpoch), "default", []byte("a"), []byte("v"))
	first, second, third := pending{message.NewCallback()}, pending{message.NewCallback()}, pending{message.NewCallback()}

	w.regions[1] = &applier{regionID: 1, peer: r.Peers[0], region: r, applied: 5, term: 5, truncated: initTruncated}
	require.NoError(t, w.round([]applyTask{
		{
			kind: applyEntries, regionID: 1,
			entries: []eraftpb.Entry{
				{Index: 6, Term: 6, Data: removal, EntryType: eraftpb.EntryType_EntryConfChange}, {Index: 7, Term: 6, Data: data},
			},
			proposals: []message.Proposal{message.NewProposal(6, 6, 0, first.cb), message.NewProposal(7, 6, 0, second.cb)},
		},
		{
			kind: applyEntries, regionID: 1, entries: []eraftpb.Entry{{Index: 8, Term: 6, Data: data}},
			proposals: []message.Proposal{message.NewProposal(8, 6, 0, third.cb)},
		},
	}))
	require.NoError(t, first.wait(t))
	requireUnknown(t, second.wait(t))
	requireUnknown(t, third.wait(t))
}

// TestOutcomeOfWhatASnapshotCovers: nobody can tell from the snapshot, nor from an entry behind it.
func TestOutcomeOfWhatASnapshotCovers(t *testing.T) {
	r := trio()
	s, _ := newTestStore(t, r)
	require.NoError(t, s.recover())
	p := s.router.get(1).peer
	w := pending{message.NewCallback()}
	p.proposals = []message.Proposal{message.NewProposal(6, 6, 0, w.cb)}
	data, err := (&rspb.RaftSnapshotData{Region: r}).Marshal()
	require.NoError(t, err)
	p.startInstall(&turn{apply: make([][]applyTask, 1)}, &eraftpb.Snapshot{
		Data: data, Metadata: &eraftpb.SnapshotMetadata{Index: 6, Term: 7},
	})
	requireUnknown(t, w.wait(t))

	a := s.appliers[0]
	a.regions[1] = &applier{regionID: 1, peer: r.Peers[0], region: r, applied: 6, term: 7, truncated: initTruncated}
	w = pending{message.NewCallback()}
	require.NoError(t, a.round([]applyTask{{
		kind: applyEntries, regionID: 1, entries: []eraftpb.Entry{{Index: 6, Term: 6}, {Index: 7, Term: 7}},
		proposals: []message.Proposal{message.NewProposal(6, 6, 0, w.cb)},
	}}))
	requireUnknown(t, w.wait(t))
}

// TestRefusedForCertain: what raft does not take, and what does not get as far, has definitely not
// happened.
func TestRefusedForCertain(t *testing.T) {
	s, o, _ := leading(t, nil)
	var busy *BusyError
	s.cfg.Raftstore.MaxPendingPerRegion = 1
	w := proposed(t, s, o)
	require.ErrorAs(t, put(s, trio(), "full").wait(t), &busy)
	require.False(t, w.cb.Answered())

	s, _, _ = handingOver(t)
	cb := pending{message.NewCallback()}
	s.Admin(&message.Admin{
		Header:   message.Header{RegionID: 1, Peer: trio().Peers[0], Epoch: trio().RegionEpoch},
		Request:  splitRequest("c", 9, 11, 12, 13),
		Callback: cb.cb,
	})
	require.ErrorAs(t, cb.wait(t), &busy)
	require.Contains(t, busy.Reason, "transferred")
	var gone *RegionNotFoundError
	for _, m := range s.router.close(s.router.get(1)) {
		message.CallbackOf(m).Fail(&RegionNotFoundError{RegionID: 1})
	}
	require.ErrorAs(t, put(s, trio(), "closed").wait(t), &gone)
}

// TestAnswersGoByIndexAndTerm: the entry at a proposal's index may be another leader's. Its client must
// not be told that its own command was carried out (F-8).
func TestAnswersGoByIndexAndTerm(t *testing.T) {
	r := trio()
	s, _ := newTestStore(t, r)
	w := s.appliers[0]
	w.regions[1] = &applier{regionID: 1, peer: r.Peers[0], region: r, applied: 5, term: 5, truncated: initTruncated}
	put := message.AppendPut(message.AppendHeader(nil, 1, r.RegionEpoch), "default", []byte("a"), []byte("v"))
	var props []message.Proposal
	var cbs [][2]*message.Callback
	for i := range uint64(4) {
		cbs = append(cbs, [2]*message.Callback{message.NewCallback(), message.NewCallback()})
		props = append(props, message.NewProposal(6+i, 6, 0, cbs[i][:]...))
	}
	require.NoError(t, w.applyEntries(&applyTask{kind: applyEntries, regionID: 1, proposals: props, entries: []eraftpb.Entry{
		{Index: 6, Term: 6, Data: put}, {Index: 7, Term: 7}, {Index: 8, Term: 7, Data: put},
	}}))
	require.NoError(t, w.flush())
	for i := range cbs {
		for _, cb := range cbs[i] {
			res, err := cb.Wait(context.Background())
			require.NoError(t, err)
			if i == 0 {
				require.NoError(t, res.Err)
				continue
			}
			var lost *message.OverwrittenError
			require.Equal(t, i < 3, errors.As(res.Err, &lost), "only an entry of another term at its index says that it is lost")
			if i == 3 {
				requireUnknown(t, res.Err)
			}
		}
	}
}
