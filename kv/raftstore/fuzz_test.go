package raftstore

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// chunks cuts a fuzz input into pieces, each behind a byte with its length.
func chunks(data []byte) [][]byte {
	var out [][]byte
	for len(data) > 0 {
		n := min(int(data[0]), len(data)-1)
		out = append(out, data[1:1+n])
		data = data[1+n:]
	}
	return out
}

// unchunk is the inverse, for seeds.
func unchunk(t testing.TB, msgs ...interface{ Marshal() ([]byte, error) }) []byte {
	var out []byte
	for _, m := range msgs {
		b, err := m.Marshal()
		require.NoError(t, err)
		require.Less(t, len(b), 256)
		out = append(append(out, byte(len(b))), b...)
	}
	return out
}

func fuzzSeeds(t testing.TB) []*rspb.RaftMessage {
	to := func(region uint64, epoch *metapb.RegionEpoch, m *eraftpb.Message) *rspb.RaftMessage {
		m.From, m.To = 2, 1
		if region != 1 {
			m.To = 11
		}
		return &rspb.RaftMessage{
			RegionId: region, FromPeer: voter(2, 2), ToPeer: voter(m.To, 1), RegionEpoch: epoch,
			Message: m, ClusterId: 7,
		}
	}
	now := &metapb.RegionEpoch{Version: 1, ConfVer: 1}
	put := message.AppendPut(message.AppendHeader(nil, 1, now), "default", []byte("c"), []byte("v"))
	ahead := func(m *rspb.RaftMessage) *rspb.RaftMessage {
		m.StartKey, m.EndKey = []byte("m"), []byte("p")
		return m
	}
	gone := to(1, &metapb.RegionEpoch{Version: 9, ConfVer: 9}, &eraftpb.Message{})
	gone.IsTombstone = true
	asleep := to(1, now,
		&eraftpb.Message{MsgType: eraftpb.MessageType_MsgHeartbeat, Term: 6, Commit: 5})
	asleep.Hibernate = true
	return []*rspb.RaftMessage{
		to(1, now,
			&eraftpb.Message{
				MsgType: eraftpb.MessageType_MsgRequestVote, Term: 6, Index: 9, LogTerm: 9,
			}),
		to(1, now,
			&eraftpb.Message{MsgType: eraftpb.MessageType_MsgAppend, Term: 6, Index: 5, LogTerm: 5,
				Commit:  6,
				Entries: []*eraftpb.Entry{{Index: 6, Term: 6, Data: put}}}),
		to(1, now,
			&eraftpb.Message{MsgType: eraftpb.MessageType_MsgAppend, Term: 6, Index: 5, LogTerm: 5,
				Commit: 6,
				Entries: []*eraftpb.Entry{
					{
						Index: 6, Term: 6, Data: []byte("?"),
						EntryType: eraftpb.EntryType_EntryConfChange,
					},
				}}),
		to(1, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgSnapshot, Term: 6,
			Snapshot: &eraftpb.Snapshot{
				Metadata: &eraftpb.SnapshotMetadata{Index: 9, Term: 6}, Data: []byte{8, 1},
			}}),
		to(1, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgSnapshot, Term: 6}),
		asleep, gone,
		ahead(to(9, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgPreVote, Term: 6})),
		ahead(to(9, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgHeartbeat, Term: 6})),
		to(1, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgTimeoutNow, Term: 6}),
		to(1, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgHup}),
		{ToPeer: voter(0, 1), FromPeer: voter(0, 2), Hibernate: true},
	}
}

// FuzzRaftMessages gives a store messages of any shape, as another store might send them. It may
// refuse them, vote, append, create or destroy peers; it may not fail or stop to answer, and what
// belongs to the region that was not spoken of stays.
//
// As in raft's own fuzzing one thing is left out: a leader that contradicts committed entries has
// broken a promise from which no check could save the store, so appends begin at the commit index
// or behind it.
func FuzzRaftMessages(f *testing.F) {
	for _, m := range fuzzSeeds(f) {
		f.Add(unchunk(f, m), byte(0))
		f.Add(unchunk(f, m, m), byte(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, flags byte) {
		first := region(1, "", "m", 1, 1, voter(1, 1), voter(2, 2), voter(3, 3))
		other := region(2, "m", "p", 1, 1, voter(4, 1), voter(5, 2), voter(6, 3))
		if flags&2 != 0 {
			first.EndKey = []byte("k") // leaves room for a region that a message may create
		}
		s, e := newTestStore(t, first, other)
		b := e.NewBatch()
		b.Put(engine.DataKey(engine.CFDefault, []byte("n")), []byte("other's"))
		require.NoError(t, e.Write(b, true))
		startTestStore(t, s)
		for _, c := range chunks(data) {
			m := new(rspb.RaftMessage)
			if m.Unmarshal(c) != nil {
				continue
			}
			if flags&1 != 0 {
				address(s, m)
			}
			if m.RegionId == 2 {
				m.RegionId = 1
			}
			tame(s, m)
			_ = s.HandleRaft(m)
			requireAlive(t, s, m.RegionId)
		}
		requireAlive(t, s, 1)
		requireAlive(t, s, 2)
		_, found, err := e.Get(engine.DataKey(engine.CFDefault, []byte("n")))
		require.NoError(t, err)
		require.True(t, found, "the data of a region nobody spoke of is gone")
		w := &message.Write{
			Header:   message.Header{RegionID: 1, Peer: voter(1, 1), Epoch: first.RegionEpoch},
			Callback: message.NewCallback(),
		}
		s.Write(w)
		s.Stop() // at the latest now everything is answered
		_, err = w.Callback.Wait(context.Background())
		require.NoError(t, err)
	})
}

// address makes a message pass the checks of its envelope.
func address(s *Store, m *rspb.RaftMessage) {
	m.ClusterId = s.clusterID
	if m.Message == nil {
		m.Message = &eraftpb.Message{}
	}
	if m.FromPeer == nil {
		m.FromPeer = voter(2, 2)
	}
	if m.RegionEpoch == nil {
		m.RegionEpoch = &metapb.RegionEpoch{}
	}
	m.RegionId = max(m.RegionId, 1)
	m.FromPeer.Id = max(m.FromPeer.Id, 2)
	m.ToPeer = voter(max(m.GetToPeer().GetId(), 1), s.storeID)
	m.Message.From, m.Message.To = m.FromPeer.Id, m.ToPeer.Id
}

// tame keeps an append from contradicting what is committed.
func tame(s *Store, m *rspb.RaftMessage) {
	if m.GetMessage().GetMsgType() != eraftpb.MessageType_MsgAppend {
		return
	}
	_ = s.Inspect(context.Background(), m.RegionId, func(v *PeerView) {
		if v != nil {
			m.Message.Index = max(m.Message.Index, v.Status().Commit)
		}
	})
	for i, e := range m.Message.Entries {
		e.Index = m.Message.Index + 1 + uint64(i)
	}
}
