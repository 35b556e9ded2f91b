package raftstore

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// TestOnlyInitialMessagesCreatePeers: votes of both kinds and the heartbeat of a leader that knows
// nothing of the peer; not anything else, and not where another region lives (G1, G14).
func TestOnlyInitialMessagesCreatePeers(t *testing.T) {
	s, _ := newTestStore(t, trio())
	startTestStore(t, s)
	free := func(id uint64) *metapb.Region { return region(id, "p", "", 1, 1) }
	var msgs []*rspb.RaftMessage
	for i, m := range []eraftpb.Message{
		{MsgType: eraftpb.MessageType_MsgAppend, Term: 6, Index: 5, LogTerm: 5},
		{MsgType: eraftpb.MessageType_MsgHeartbeat, Term: 6, Commit: 7},
		{MsgType: eraftpb.MessageType_MsgSnapshot, Term: 6},
		{MsgType: eraftpb.MessageType_MsgTimeoutNow, Term: 6},
		{MsgType: eraftpb.MessageType_MsgRequestVoteResponse, Term: 6},
	} {
		msgs = append(msgs, envelope(free(10+uint64(i)), voter(22, 2), voter(21, 1), m))
	}
	msgs = append(msgs, vote(region(20, "l", "z", 1, 1), voter(22, 2), voter(21, 1)),
		tombstone(free(21), 9, voter(21, 1)))
	handleInOrder(t, s, msgs...)
	for _, m := range msgs {
		require.Zero(t, peerID(t, s, m.RegionId), "%v", m)
	}
	for i, m := range []eraftpb.Message{
		{MsgType: eraftpb.MessageType_MsgRequestVote, Term: 6},
		{MsgType: eraftpb.MessageType_MsgPreVote, Term: 6},
		{MsgType: eraftpb.MessageType_MsgHeartbeat, Term: 6},
	} {
		r := region(30+uint64(i), string(rune('p'+i)), string(rune('q'+i)), 1, 1)
		require.NoError(t, s.HandleRaft(envelope(r, voter(22, 2), voter(21, 1), m)))
		waitPeerID(t, s, r.Id, 21)
	}
}

// TestPostponedSplitBegins: the peer of a split begins once its predecessor is gone, and not
// before; nothing else repeats it.
func TestPostponedSplitBegins(t *testing.T) {
	right := region(9, "m", "", 2, 2, voter(11, 1))
	s, _ := newTestStore(t, trio())
	startTestStore(t, s)
	old := &peer{store: s, regionID: 9, stopped: true}
	old.box = &mailbox{regionID: 9, peer: old}
	require.True(t, s.router.register(old))
	require.Empty(t, old.box.close(), "it is being destroyed, and still known")
	require.NoError(t,
		s.creator.createSplitPeer(&message.BecomeSplit{Region: right, Peer: right.Peers[0]}))
	require.NoError(t, s.creator.retrySplits())
	require.Same(t, old.box, s.router.get(9))
	s.router.close(old.box)
	require.Eventually(t, func() bool {
		return peerID(t, s, 9) == 11
	}, 10*time.Second, time.Millisecond)
}
