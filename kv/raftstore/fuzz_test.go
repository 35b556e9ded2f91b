package raftstore

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
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
			RegionId: region, FromPeer: voter(2, 2), ToPeer: voter(m.To, 1), RegionEpoch: epoch, Message: m, ClusterId: 7,
		}
	}
	now := &metapb.RegionEpoch{Version: 1, ConfVer: 1}
	put := message.AppendPut(message.AppendHeader(nil, 1, now), "default", []byte("c"), []byte("v"))
	ahead := func(m *rspb.RaftMessage) *rspb.RaftMessage { m.StartKey, m.EndKey = []byte("m"), []byte("p"); return m }
	gone := to(1, &metapb.RegionEpoch{Version: 9, ConfVer: 9}, &eraftpb.Message{})
	gone.IsTombstone = true
	asleep := to(1, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgHeartbeat, Term: 6, Commit: 5})
	asleep.Hibernate = true
	return []*rspb.RaftMessage{
		to(1, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgRequestVote, Term: 6, Index: 9, LogTerm: 9}),
		to(1, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgAppend, Term: 6, Index: 5, LogTerm: 5, Commit: 6,
			Entries: []*eraftpb.Entry{{Index: 6, Term: 6, Data: put}}}),
		to(1, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgAppend, Term: 6, Index: 5, LogTerm: 5, Commit: 6,
			Entries: []*eraftpb.Entry{{Index: 6, Term: 6, Data: []byte("?"), EntryType: eraftpb.EntryType_EntryConfChange}}}),
		to(1, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgSnapshot, Term: 6,
			Snapshot: &eraftpb.Snapshot{Metadata: &eraftpb.SnapshotMetadata{Index: 9, Term: 6}, Data: []byte{8, 1}}}),
		to(1, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgSnapshot, Term: 6}),
		asleep, gone,
		ahead(to(9, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgPreVote, Term: 6})),
		ahead(to(9, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgHeartbeat, Term: 6})),
		to(1, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgTimeoutNow, Term: 6}),
		to(1, now, &eraftpb.Message{MsgType: eraftpb.MessageType_MsgHup}),
		{ToPeer: voter(0, 1), FromPeer: voter(0, 2), Hibernate: true},
	}
}

// FuzzRaftMessages gives a store messages of any shape, as another store might send them. It may refuse
// them, vote, append, create or destroy peers; it may not fail or stop to answer, and what belongs to the
// region that was not spoken of stays.
//
// As in raft's own fuzzing one thing is left out: a leader that contradicts committed entries has broken a
// promise from which no check could save the store, so appends begin at the commit index or behind it.
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
		w := &message.Write{Header: message.Header{RegionID: 1, Peer: voter(1, 1), Epoch: first.RegionEpoch}, Callback: message.NewCallback()}
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

// applySeeds are entries of every kind; kind says whether an entry is a conf change.
func applySeeds(t testing.TB) (seeds [][]byte, confChange []bool) {
	add := func(cc bool, m interface{ Marshal() ([]byte, error) }) {
		b, err := m.Marshal()
		require.NoError(t, err)
		seeds, confChange = append(seeds, b), append(confChange, cc)
	}
	now := &metapb.RegionEpoch{Version: 1, ConfVer: 1}
	header := &raft_cmdpb.RaftRequestHeader{RegionId: 1, RegionEpoch: now}
	admin := func(a *raft_cmdpb.AdminRequest) *raft_cmdpb.RaftCmdRequest {
		return &raft_cmdpb.RaftCmdRequest{Header: header, AdminRequest: a}
	}
	for _, ids := range [][]uint64{{11, 12, 13}, {11, 12}, {11, 11, 13}, {0, 1, 2}, {1, 2, 3}} {
		for _, id := range []uint64{0, 1, 2, 9} {
			for _, key := range []string{"", "c", "m", "z"} {
				add(false, admin(&raft_cmdpb.AdminRequest{CmdType: raft_cmdpb.AdminCmdType_Split,
					Split: &raft_cmdpb.SplitRequest{SplitKey: []byte(key), NewRegionId: id, NewPeerIds: ids}}))
			}
		}
	}
	add(false, admin(&raft_cmdpb.AdminRequest{CmdType: raft_cmdpb.AdminCmdType_Split}))
	for _, i := range []uint64{0, 5, 6, 1 << 63} {
		add(false, admin(&raft_cmdpb.AdminRequest{CmdType: raft_cmdpb.AdminCmdType_CompactLog,
			CompactLog: &raft_cmdpb.CompactLogRequest{CompactIndex: i, CompactTerm: 6}}))
	}
	add(false, admin(&raft_cmdpb.AdminRequest{CmdType: 99}))
	for _, kind := range []eraftpb.ConfChangeType{0, 1, 2, 77} {
		for _, p := range []*metapb.Peer{voter(1, 1), voter(2, 2), voter(9, 9), voter(9, 2), voter(2, 9), voter(0, 4), voter(4, 0)} {
			ctx, err := admin(&raft_cmdpb.AdminRequest{CmdType: raft_cmdpb.AdminCmdType_ChangePeer,
				ChangePeer: &raft_cmdpb.ChangePeerRequest{ChangeType: kind, Peer: p}}).Marshal()
			require.NoError(t, err)
			add(true, &eraftpb.ConfChange{ChangeType: kind, NodeId: p.Id, Context: ctx})
			add(true, &eraftpb.ConfChange{ChangeType: kind, NodeId: p.Id + 1, Context: ctx})
		}
	}
	add(true, &eraftpb.ConfChange{})
	put := message.AppendPut(message.AppendHeader(nil, 1, now), "write", []byte("c"), []byte("v"))
	seeds = append(seeds, put, message.AppendPut(put, "default", []byte("z"), nil), message.AppendDelete(put, "nope", []byte("c")))
	return seeds, append(confChange, false, false, false)
}

// FuzzApply carries out an entry of any bytes on two stores that have the region: both come to the same region, and
// nothing outside the region changes (F-13, H8). Bytes that no leader proposes are damage: nothing is applied.
func FuzzApply(f *testing.F) {
	seeds, confChange := applySeeds(f)
	for i := range seeds {
		f.Add(seeds[i], confChange[i])
	}
	f.Fuzz(func(t *testing.T, data []byte, confChange bool) {
		var after []*metapb.Region
		for range 2 {
			r := region(1, "b", "m", 1, 1, voter(1, 1), voter(2, 2), voter(3, 3))
			s, e := newTestStore(t, r, region(2, "m", "", 1, 1, voter(4, 1)))
			s.meta.setRegion(r, 1)
			b := e.NewBatch()
			b.Put(engine.DataKey(engine.CFDefault, []byte("z")), []byte("other's"))
			require.NoError(t, e.Write(b, true))
			w := s.appliers[0]
			a := &applier{regionID: 1, peer: r.Peers[0], region: r, applied: 5, term: 5, truncated: initTruncated}
			w.regions[1] = a
			entry := eraftpb.Entry{Index: 6, Term: 6, Data: data}
			if confChange {
				entry.EntryType = eraftpb.EntryType_EntryConfChange
			}
			if err := w.round([]applyTask{{kind: applyEntries, regionID: 1, entries: []eraftpb.Entry{entry}}}); err != nil {
				t.Fatalf("an entry of any bytes stopped the store: %v", err)
			}
			if s.Work().CorruptEntries > 0 {
				require.EqualValues(t, 5, a.applied)
				require.Equal(t, r, a.region)
				continue
			}
			require.EqualValues(t, 6, a.applied)
			st, err := meta.LoadApplyState(e, 1, 0)
			require.NoError(t, err)
			require.EqualValues(t, 6, st.AppliedIndex)
			require.LessOrEqual(t, st.TruncatedState.Index, st.AppliedIndex)
			value, found, err := e.Get(engine.DataKey(engine.CFDefault, []byte("z")))
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, "other's", string(value))
			other, err := meta.LoadRegionState(e, 2)
			require.NoError(t, err)
			require.Equal(t, "m", string(other.Region.StartKey))
			require.False(t, s.broken.Load())
			after = append(after, a.region)
		}
		require.NotEqual(t, 1, len(after))
		if len(after) == 0 {
			return
		}
		require.Equal(t, after[0], after[1])
		require.Positive(t, voterCount(after[0]))
	})
}
