package raftstore

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// obliging answers for the other stores: they vote for every candidate and take what they are sent.
type obliging struct {
	listening
	s *Store
	// mute is a store that answers no more; silent is true if none does.
	mute   atomic.Uint64
	silent atomic.Bool
}

func (o *obliging) Send(store uint64, msgs []*rspb.RaftMessage) {
	o.listening.Send(store, msgs)
	if store == o.mute.Load() || o.silent.Load() {
		return
	}
	for _, m := range msgs {
		in := m.Message
		out := eraftpb.Message{Term: in.Term}
		switch in.MsgType {
		case eraftpb.MessageType_MsgPreVote:
			out.MsgType = eraftpb.MessageType_MsgPreVoteResponse
		case eraftpb.MessageType_MsgRequestVote:
			out.MsgType = eraftpb.MessageType_MsgRequestVoteResponse
		case eraftpb.MessageType_MsgAppend:
			out.MsgType, out.Index = eraftpb.MessageType_MsgAppendResponse,
				in.Index+uint64(len(in.Entries))
		case eraftpb.MessageType_MsgHeartbeat:
			out.MsgType, out.Round = eraftpb.MessageType_MsgHeartbeatResponse, in.Round
		default:
			continue
		}
		_ = o.s.HandleRaft(envelope(trio(), m.ToPeer, m.FromPeer, out)) // never blocks
	}
}

// leading is a store that leads region 1.
func leading(t *testing.T, change func(*Store)) (s *Store, o *obliging, term uint64) {
	t.Helper()
	r := trio()
	s, _ = newTestStore(t, r)
	if change != nil {
		change(s)
	}
	o = &obliging{s: s}
	s.trans, s.placement = o, o
	startTestStore(t, s)
	require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) {
		for range 2 * s.cfg.Raftstore.ElectionTicks { // beyond any random timeout
			v.p.rn.Tick()
		}
	}))
	require.Eventually(t, func() bool {
		info, err := s.Peer(t.Context(), 1)
		term = info.Term
		return err == nil && info.IsLeader && info.CommitIndex == info.LastIndex
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, put(s, r, "before").wait(t))
	return s, o, term
}

// handingOver is a store that leads region 1 and has told peer 2 to campaign.
func handingOver(t *testing.T) (s *Store, o *obliging, term uint64) {
	t.Helper()
	r := trio()
	s, o, term = leading(t, nil)
	cb := message.NewCallback()
	s.Admin(&message.Admin{
		Header: message.Header{RegionID: 1, Peer: r.Peers[0], Epoch: r.RegionEpoch},
		Request: &raft_cmdpb.AdminRequest{
			CmdType:        raft_cmdpb.AdminCmdType_TransferLeader,
			TransferLeader: &raft_cmdpb.TransferLeaderRequest{Peer: r.Peers[1]},
		},
		Callback: cb,
	})
	require.NoError(t, pending{cb}.wait(t))
	require.Eventually(t, func() bool {
		return len(o.messages(func(m *rspb.RaftMessage) bool {
			return m.Message.GetMsgType() == eraftpb.MessageType_MsgTimeoutNow
		})) == 1
	}, 10*time.Second, time.Millisecond)
	return s, o, term
}

type pending struct{ cb *message.Callback }

func (p pending) wait(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	res, err := p.cb.Wait(ctx)
	require.NoError(t, err, "no answer")
	return res.Err
}

func put(s *Store, r *metapb.Region, key string) pending {
	p := pending{message.NewCallback()}
	s.Write(&message.Write{
		Header: message.Header{RegionID: r.Id, Peer: r.Peers[0], Epoch: r.RegionEpoch},
		MinKey: []byte(key), MaxKey: []byte(key),
		Payload: message.AppendPut(nil, "default", []byte(key), []byte("v")), Callback: p.cb,
	})
	return p
}

// requireHeld fails if a write is answered that should wait. The peer has worked it off by then.
func requireHeld(t *testing.T, s *Store, writes ...pending) {
	t.Helper()
	held := 0
	require.NoError(t,
		s.Inspect(t.Context(), 1, func(v *PeerView) { held = len(v.p.transfer.writes) }))
	require.Equal(t, len(writes), held)
	for _, w := range writes {
		require.False(t, w.cb.Answered())
	}
}

// TestWritesWaitForTheNextLeader: a write that comes during a transfer is answered with the next
// leader once it is known, and not before.
func TestWritesWaitForTheNextLeader(t *testing.T) {
	s, _, term := handingOver(t)
	r := trio()
	first := put(s, r, "a")
	requireHeld(t, s, first)

	// Faults of the request are answered at once.
	stale := trio()
	stale.RegionEpoch.Version--
	var epoch *regionerr.EpochNotMatchError
	require.ErrorAs(t, put(s, stale, "a").wait(t), &epoch)

	last := uint64(0)
	require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) { last = v.p.rn.LastIndex() }))
	require.NoError(t, s.HandleRaft(envelope(r, r.Peers[1], r.Peers[0], eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgRequestVote, Term: term + 1, Index: last, LogTerm: term,
		Force: true, Round: 1 << 40,
	})))
	require.Eventually(t, func() bool {
		info, err := s.Peer(t.Context(), 1)
		return err == nil && info.Term == term+1
	}, 10*time.Second, time.Millisecond)
	second := put(s, r, "b") // nobody is known to lead
	requireHeld(t, s, first, second)

	require.NoError(t, s.HandleRaft(envelope(r, r.Peers[1], r.Peers[0], eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgAppend, Term: term + 1, Index: last, LogTerm: term,
	})))
	for _, w := range []pending{first, second} {
		requireElsewhere(t, w, 2)
	}
	require.Zero(t, s.Counts().InflightBytes)
}

// TestWritesGoOnAfterATransferThatFailed: a write that waited is proposed when the transfer is
// given up, unless its client has given up meanwhile.
func TestWritesGoOnAfterATransferThatFailed(t *testing.T) {
	s, _, _ := handingOver(t)
	r := trio()
	first := put(s, r, "a")
	late := pending{message.NewCallback()}
	s.Write(&message.Write{
		Header: message.Header{RegionID: 1, Peer: r.Peers[0], Epoch: r.RegionEpoch},
		MinKey: []byte("l"), MaxKey: []byte("l"),
		Payload: message.AppendPut(nil, "default", []byte("l"), []byte("v")), Callback: late.cb,
		Deadline: time.Now().Add(time.Minute),
	})
	requireHeld(t, s, first, late)
	require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) {
		v.p.transfer.writes[1].Deadline = time.Now().Add(-time.Second)
		for range s.cfg.Raftstore.ElectionTicks {
			v.p.rn.Tick()
		}
	}))
	require.NoError(t, first.wait(t))
	require.ErrorIs(t, late.wait(t), regionerr.ErrDeadlineExceeded)
	require.Zero(t, s.Counts().InflightBytes)
}

// TestWritesThatWaitAreAnsweredAtTheEnd: of the store, or of the peer.
func TestWritesThatWaitAreAnsweredAtTheEnd(t *testing.T) {
	s, _, _ := handingOver(t)
	w := put(s, trio(), "a")
	requireHeld(t, s, w)
	require.NoError(t, s.HandleRaft(tombstone(trio(), 3, trio().Peers[0])))
	var gone *regionerr.RegionNotFoundError
	require.ErrorAs(t, w.wait(t), &gone)

	s, _, _ = handingOver(t)
	w = put(s, trio(), "a")
	requireHeld(t, s, w)
	s.Stop()
	require.ErrorIs(t, w.wait(t), regionerr.ErrStopping)
	require.Zero(t, s.Counts().InflightBytes)
}

// leaderLost is a store whose region 1 is led by peer 2 in the given term, and to which a write has
// come since the store of peer 2 was lost. heard makes it hear an append.
func leaderLost(t *testing.T) (s *Store, w pending, term uint64, heard func(from, term uint64)) {
	t.Helper()
	r := trio()
	s, _ = newTestStore(t, r)
	o := &obliging{s: s}
	s.trans, s.placement = o, o
	startTestStore(t, s)
	info, err := s.Peer(t.Context(), 1)
	require.NoError(t, err)
	heard = func(from, term uint64) {
		t.Helper()
		require.NoError(t, s.HandleRaft(envelope(r, r.Peers[from-1], r.Peers[0], eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgAppend, Term: term, Index: info.LastIndex,
			LogTerm: info.Term,
		})))
	}
	term = info.Term + 1
	heard(2, term)
	requireElsewhere(t, put(s, r, "a"), 2)
	// A write is answered before the end of the turn, where the leader is published for
	// ReportStoreLost.
	require.Eventually(t, func() bool {
		return s.router.get(1).handle.Load().leader.GetStoreId() == 2
	}, 10*time.Second, time.Millisecond)
	s.ReportStoreLost(2)
	w = put(s, r, "a")
	requireHeld(t, s, w)
	return s, w, term, heard
}

// requireElsewhere fails unless a write is sent to the given leader.
func requireElsewhere(t *testing.T, w pending, leader uint64) {
	t.Helper()
	var elsewhere *regionerr.NotLeaderError
	require.ErrorAs(t, w.wait(t), &elsewhere)
	require.Equal(t, leader, elsewhere.Leader.GetId())
}

// TestWritesWaitForAnElection: a write that comes to a follower whose leader's store was lost waits
// for the next leader, unless the old one is heard again or nobody is elected in time.
func TestWritesWaitForAnElection(t *testing.T) {
	t.Run("another leads", func(t *testing.T) {
		s, w, term, heard := leaderLost(t)
		heard(3, term+1)
		requireElsewhere(t, w, 3)
		requireElsewhere(t, put(s, trio(), "a"), 3)
	})
	t.Run("the old one was only cut off", func(t *testing.T) {
		s, w, term, heard := leaderLost(t)
		heard(2, term)
		requireElsewhere(t, w, 2)
		requireElsewhere(t, put(s, trio(), "a"), 2)
	})
	t.Run("it leads itself", func(t *testing.T) {
		s, w, _, _ := leaderLost(t)
		require.NoError(t, s.Inspect(t.Context(), 1, func(v *PeerView) {
			for range 2 * s.cfg.Raftstore.ElectionTicks {
				v.p.rn.Tick()
			}
		}))
		require.NoError(t, w.wait(t))
	})
	t.Run("nobody is elected", func(t *testing.T) {
		s, w, _, _ := leaderLost(t)
		require.NoError(t,
			s.Inspect(t.Context(), 1, func(v *PeerView) { v.p.transfer.until = time.Now() }))
		requireElsewhere(t, w, 2)
		require.Zero(t, s.Counts().InflightBytes)
	})
}

// TestBoundWritesOfATermThatEnds: a write that was gathered in the turn in which its term ends is
// not proposed in the next one, and one that is not bound is.
func TestBoundWritesOfATermThatEnds(t *testing.T) {
	s, _, term := leading(t, nil)
	r := trio()
	bound := &message.Write{
		Header: message.Header{RegionID: r.Id, Peer: r.Peers[0], Epoch: r.RegionEpoch, Term: term},
		Bound:  true,
		MinKey: []byte("k"), MaxKey: []byte("k"),
		Payload:  message.AppendPut(nil, "default", []byte("k"), nil),
		Callback: message.NewCallback(),
	}
	free := *bound
	free.Bound, free.Callback = false, message.NewCallback()
	err := s.Inspect(context.Background(), r.Id, func(v *PeerView) {
		v.p.onWrite(bound)
		v.p.onWrite(&free)
		// as if the messages in between had made this peer the leader of another term
		bound.Header.Term++
		v.p.flushWrites()
	})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	res, err := bound.Callback.Wait(ctx)
	require.NoError(t, err)
	var stale *regionerr.StaleCommandError
	require.ErrorAs(t, res.Err, &stale)
	res, err = free.Callback.Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, res.Err)
}
