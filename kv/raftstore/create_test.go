package raftstore

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// TestOnlyInitialMessagesCreatePeers: votes of both kinds and the heartbeat of a leader that knows nothing
// of the peer; not anything else, and not where another region lives (G1, G14).
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
	msgs = append(msgs, vote(region(20, "l", "z", 1, 1), voter(22, 2), voter(21, 1)), tombstone(free(21), 9, voter(21, 1)))
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
