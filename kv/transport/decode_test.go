package transport

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

func someMessages() *rspb.BatchRaftMessage {
	full := &rspb.RaftMessage{
		RegionId: 4, FromPeer: &metapb.Peer{Id: 5, StoreId: 1},
		ToPeer: &metapb.Peer{Id: 6, StoreId: 2, Role: metapb.PeerRole_Learner},
		Message: &eraftpb.Message{MsgType: eraftpb.MessageType_MsgAppend, From: 5, To: 6, Term: 7,
			LogTerm: 7, Index: 9, Commit: 8, Entries: []*eraftpb.Entry{
				{Term: 7, Index: 10, Data: []byte("one")},
				{Term: 7, Index: 11, Data: bytes.Repeat([]byte("two"), 50)},
			}},
		RegionEpoch: &metapb.RegionEpoch{ConfVer: 2, Version: 3}, StartKey: []byte("a"),
		EndKey: []byte("b"), ClusterId: 1 << 60,
	}
	gone := &rspb.RaftMessage{
		RegionId: 4, FromPeer: &metapb.Peer{Id: 5, StoreId: 1},
		ToPeer:      &metapb.Peer{Id: 6, StoreId: 2},
		RegionEpoch: &metapb.RegionEpoch{ConfVer: 2, Version: 3}, IsTombstone: true,
	}
	greeting := &rspb.RaftMessage{
		FromPeer: &metapb.Peer{StoreId: 1}, ToPeer: &metapb.Peer{StoreId: 2}, Hibernate: true,
	}
	return &rspb.BatchRaftMessage{Msgs: []*rspb.RaftMessage{full, gone, greeting, {}, full}}
}

func marshal(t testing.TB, m *rspb.BatchRaftMessage) []byte {
	data, err := m.Marshal()
	require.NoError(t, err)
	return data
}

// FuzzDecodeBatch: what DecodeBatch makes of any bytes is what the generated code makes of them.
func FuzzDecodeBatch(f *testing.F) {
	f.Add(marshal(f, someMessages()))
	f.Add(append([]byte{0x12, 1, 0, 0x18, 9}, marshal(f, someMessages())...))
	f.Add([]byte{0x0a, 16, 0x12, 2, 8, 5, 0x12, 2, 16, 1, 0x22, 0, 0x2a, 0, 0x1a, 0, 8, 1})
	f.Add([]byte{0x0a, 0, 0x0a, 5})
	f.Fuzz(func(t *testing.T, data []byte) {
		want := new(rspb.BatchRaftMessage)
		wantErr := want.Unmarshal(bytes.Clone(data))
		mine := bytes.Clone(data)
		got, err := DecodeBatch(mine)
		if wantErr != nil || err != nil {
			if (wantErr == nil) != (err == nil) {
				t.Fatalf("%v, but the generated code says %v", err, wantErr)
			}
			return
		}
		clear(mine) // the buffer is used again
		require.Len(t, got, len(want.Msgs))
		for i, m := range want.Msgs {
			if !reflect.DeepEqual(got[i], m) {
				t.Fatalf("message %d is\n%v\nthe generated code says\n%v", i, got[i], m)
			}
		}
	})
}

// BenchmarkDecodeBatch decodes 32 messages with one entry each.
func BenchmarkDecodeBatch(b *testing.B) {
	batch := new(rspb.BatchRaftMessage)
	for i := range uint64(32) {
		batch.Msgs = append(batch.Msgs, &rspb.RaftMessage{
			RegionId: i, FromPeer: &metapb.Peer{Id: 5, StoreId: 1},
			ToPeer:      &metapb.Peer{Id: 6, StoreId: 2},
			RegionEpoch: &metapb.RegionEpoch{ConfVer: 2, Version: 3},
			Message: &eraftpb.Message{
				MsgType: eraftpb.MessageType_MsgAppend, From: 5, To: 6, Term: 7, LogTerm: 7,
				Index: 9, Commit: 8,
				Entries: []*eraftpb.Entry{{Term: 7, Index: 10, Data: make([]byte, 300)}},
			},
		})
	}
	data := marshal(b, batch)
	b.Run("DecodeBatch", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := DecodeBatch(data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Unmarshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := new(rspb.BatchRaftMessage).Unmarshal(data); err != nil {
				b.Fatal(err)
			}
		}
	})
}
