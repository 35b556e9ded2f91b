package raftstore

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine/enginefault"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// The answers to a command that was proposed (message.Proposal), path by path: whatever
// ends the wait besides the entry's fate leaves the outcome unknown; what was not proposed is
// refused for certain.

// requireUnknown fails unless an answer says that the outcome is unknown, also on the wire.
func requireUnknown(t testing.TB, err error) {
	t.Helper()
	var unknown *regionerr.UnknownError
	require.ErrorAs(t, err, &unknown)
	pb, ok := regionerr.ToProto(err)
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
		v.p.heldApply = []apply.Task{
			{Proposals: []message.Proposal{message.NewProposal(99, 6, 0, held.cb)}},
		}
	}))
	require.NoError(t, s.HandleRaft(tombstone(trio(), 3, trio().Peers[0])))
	requireUnknown(t, w.wait(t))
	requireUnknown(t, held.wait(t))
	var gone *regionerr.RegionNotFoundError
	require.ErrorAs(t, put(s, trio(), "late").wait(t), &gone,
		"what comes later is refused for certain")
	waitPeerID(t, s, 1, 0)
	require.Zero(t, s.Counts().InflightBytes)
}

func TestOutcomeWhenTheStoreStops(t *testing.T) {
	s, o, _ := leading(t, nil)
	w := proposed(t, s, o)
	s.Stop()
	requireUnknown(t, w.wait(t))
	require.ErrorIs(t, put(s, trio(), "late").wait(t), regionerr.ErrStopping)
	require.Zero(t, s.Counts().InflightBytes)
}

// TestOutcomeWhenTheEngineFails: the entry is committed, and applied at the next start or by the
// others.
func TestOutcomeWhenTheEngineFails(t *testing.T) {
	var ctl faultfs.Controller
	s, _, _ := leading(t, func(s *Store) { s.useEngine(enginefault.Wrap(s.engine, &ctl)) })
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
	require.ErrorIs(t, put(s, trio(), "late").wait(t), regionerr.ErrFailed)
	require.Zero(t, s.Counts().InflightBytes)
}

// TestOutcomeAtALeaderThatWasRemoved: what is committed behind its removal is applied by those who
// stay.
func TestOutcomeAtALeaderThatWasRemoved(t *testing.T) {
	s, _ := newTestStore(t, trio())
	require.NoError(t, (&recovery{s}).run())
	p := s.router.get(1).peer
	p.removed = &lingering{region: p.region()}
	w := pending{message.NewCallback()}
	p.proposals = []message.Proposal{message.NewProposal(6, 6, 0, w.cb)}
	p.giveToApply(&turn{apply: make([][]apply.Task, 1)}, []eraftpb.Entry{{Index: 6, Term: 6}})
	requireUnknown(t, w.wait(t))
}

// TestOutcomeOfWhatASnapshotCovers: nobody can tell from the snapshot, nor from an entry behind it.
func TestOutcomeOfWhatASnapshotCovers(t *testing.T) {
	r := trio()
	s, _ := newTestStore(t, r)
	require.NoError(t, (&recovery{s}).run())
	p := s.router.get(1).peer
	w := pending{message.NewCallback()}
	p.proposals = []message.Proposal{message.NewProposal(6, 6, 0, w.cb)}
	data, err := (&rspb.RaftSnapshotData{Region: r}).Marshal()
	require.NoError(t, err)
	p.startInstall(&turn{apply: make([][]apply.Task, 1)}, &eraftpb.Snapshot{
		Data: data, Metadata: &eraftpb.SnapshotMetadata{Index: 6, Term: 7},
	})
	requireUnknown(t, w.wait(t))

	w = pending{message.NewCallback()}
	covered := apply.Begin{
		Peer: r.Peers[0], Region: r, Applied: 6, Term: 7, Truncated: initTruncated,
	}
	carryOut(t, s, r, apply.Task{RegionID: 1, Begin: &covered}, apply.Task{
		RegionID: 1, Entries: []eraftpb.Entry{{Index: 6, Term: 6}, {Index: 7, Term: 7}},
		Proposals: []message.Proposal{message.NewProposal(6, 6, 0, w.cb)},
	})
	requireUnknown(t, w.wait(t))
}

// TestRefusedForCertain: what raft does not take, and what does not get as far, has definitely not
// happened.
func TestRefusedForCertain(t *testing.T) {
	s, o, _ := leading(t, nil)
	var busy *regionerr.BusyError
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
	var gone *regionerr.RegionNotFoundError
	for _, m := range s.router.close(s.router.get(1)) {
		message.CallbackOf(m).Fail(&regionerr.RegionNotFoundError{RegionID: 1})
	}
	require.ErrorAs(t, put(s, trio(), "closed").wait(t), &gone)
}

// frozenPeer is a peer of trio that waits for nobody, with what it has applied.
func frozenPeer(applied uint64) *peer {
	p := &peer{
		store: &Store{ranges: newRangeMap()}, regionID: 1, self: trio().Peers[0],
		ps: &peerStorage{region: trio()}, appliedIndex: applied,
	}
	p.merge.p = p
	return p
}

// TestOutcomeWhenTheRegionWentIntoAnother: what was proposed behind the entry that froze the region
// had no effect, which is certain once the merge has taken place. What lies before it is the apply
// worker's to answer.
func TestOutcomeWhenTheRegionWentIntoAnother(t *testing.T) {
	p := frozenPeer(10)
	before, behind := pending{message.NewCallback()}, pending{message.NewCallback()}
	p.proposals = []message.Proposal{
		message.NewProposal(10, 6, 3, before.cb), message.NewProposal(11, 6, 5, behind.cb),
	}
	p.store.inflight.Store(8)
	cause := &regionerr.EpochNotMatchError{RegionID: 1}
	p.merge.refuseBehind(cause)
	require.Len(t, p.proposals, 2, "a region that is not frozen may go on")

	p.merge.state = &rspb.MergingState{Commit: 10}
	p.merge.refuseBehind(cause)
	require.Equal(t, error(cause), behind.wait(t))
	require.Len(t, p.proposals, 1)
	require.Equal(t, uint64(10), p.proposals[0].Index())
	require.Equal(t, int64(3), p.store.inflight.Load())
}

// TestEarlyAcknowledgements: replicas may be frozen before their leader is. What they say then
// counts when it names the entry that freezes the leader, and never otherwise.
func TestEarlyAcknowledgements(t *testing.T) {
	p := frozenPeer(5)
	ack := func(peer, commit uint64) {
		p.merge.noteEarly(&rspb.RaftMessage{
			FromPeer: &metapb.Peer{Id: peer}, Merge: &rspb.MergeMessage{Commit: commit},
		})
	}
	other := trio().Peers
	ack(other[1].Id, 5) // of an earlier attempt
	require.Empty(t, p.merge.early)
	ack(other[1].Id, 6) // of one that this replica has not come to
	ack(other[2].Id, 7)
	ack(99, 7) // of no member
	p.merge.freeze(&rspb.MergingState{Commit: 7}, time.Time{})
	require.Equal(t, map[uint64]bool{other[2].Id: true}, p.merge.acks)
	p.merge.thaw()
	require.Empty(t, p.merge.early)
}
