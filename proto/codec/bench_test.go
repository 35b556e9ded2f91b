package codec_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/mem"

	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// put is the request of one put; appends are what one turn sends to another store: one entry of
// each of n regions.
func put() *kvrpcpb.RawPutRequest {
	return &kvrpcpb.RawPutRequest{
		Context: &kvrpcpb.Context{
			RegionId: 2, RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 3},
			Peer: &metapb.Peer{Id: 3, StoreId: 1},
		},
		Key: make([]byte, 16), Value: make([]byte, 256), Cf: "default",
	}
}

func appends(n int) *rspb.BatchRaftMessage {
	batch := &rspb.BatchRaftMessage{}
	for i := range uint64(n) {
		batch.Msgs = append(batch.Msgs, &rspb.RaftMessage{
			RegionId: i + 1, FromPeer: &metapb.Peer{Id: 3, StoreId: 1},
			ToPeer:      &metapb.Peer{Id: 4, StoreId: 2},
			RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 3}, ClusterId: 7,
			Message: &eraftpb.Message{
				MsgType: eraftpb.MessageType_MsgAppend, From: 3, To: 4, Term: 6, LogTerm: 6,
				Index: 100, Commit: 99,
				Entries: []*eraftpb.Entry{{Term: 6, Index: 101, Data: make([]byte, 320)}},
			},
		})
	}
	return batch
}

// hot are the messages of a put's way, with what encoding and decoding one allocates, as measured
// with Go
// 1.26: decoding makes each message, list and bytes field of it.
var hot = []struct {
	name           string
	message, into  any
	encode, decode float64
}{
	{"RawPutRequest", put(), &kvrpcpb.RawPutRequest{}, 3, 7},
	{"RawPutResponse", &kvrpcpb.RawPutResponse{}, &kvrpcpb.RawPutResponse{}, 0, 0},
	{"BatchRaftMessage of 1", appends(1), &rspb.BatchRaftMessage{}, 3, 9},
	{"BatchRaftMessage of 16", appends(16), &rspb.BatchRaftMessage{}, 3, 133},
}

func encode(t testing.TB, m any) mem.BufferSlice {
	out, err := codec.New().Marshal(m)
	require.NoError(t, err)
	return out
}

func BenchmarkCodec(b *testing.B) {
	c := codec.New()
	for _, h := range hot {
		b.Run("encode/"+h.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				out, _ := c.Marshal(h.message)
				out.Free()
			}
		})
		b.Run("decode/"+h.name, func(b *testing.B) {
			data := mem.BufferSlice{mem.SliceBuffer(encode(b, h.message).Materialize())}
			b.ReportAllocs()
			for b.Loop() {
				_ = c.Unmarshal(data, h.into)
			}
		})
	}
}

func TestAllocationsOfTheCodec(t *testing.T) {
	c := codec.New()
	for _, h := range hot {
		t.Run(h.name, func(t *testing.T) {
			require.LessOrEqual(t, testing.AllocsPerRun(100, func() {
				out, _ := c.Marshal(h.message)
				out.Free()
			}), h.encode, "encode")
			data := mem.BufferSlice{mem.SliceBuffer(encode(t, h.message).Materialize())}
			require.LessOrEqual(t,
				testing.AllocsPerRun(100, func() { _ = c.Unmarshal(data, h.into) }), h.decode,
				"decode")
		})
	}
}
