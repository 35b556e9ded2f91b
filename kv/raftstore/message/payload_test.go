package message

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// TestPayloadIsGeneratedCode: what is encoded by hand is byte for byte what generated code writes,
// and what is walked by hand is what generated code reads.
func TestPayloadIsGeneratedCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		region := rapid.Uint64().Draw(t, "region")
		epoch := &metapb.RegionEpoch{
			Version: rapid.Uint64().Draw(t, "version"), ConfVer: rapid.Uint64().Draw(t, "conf"),
		}
		want := raft_cmdpb.RaftCmdRequest{
			Header: &raft_cmdpb.RaftRequestHeader{RegionId: region, RegionEpoch: epoch},
		}
		got := AppendHeader(nil, region, epoch)
		for range rapid.IntRange(0, 8).Draw(t, "n") {
			cf := rapid.SampledFrom([]string{"", "default", "write", "lock"}).Draw(t, "cf")
			key := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "key")
			value := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "value")
			if rapid.Bool().Draw(t, "delete") {
				got = AppendDelete(got, cf, key)
				want.Requests = append(want.Requests, &raft_cmdpb.Request{
					CmdType: raft_cmdpb.CmdType_Delete,
					Delete:  &raft_cmdpb.DeleteRequest{Cf: cf, Key: key},
				})
			} else {
				got = AppendPut(got, cf, key, value)
				want.Requests = append(want.Requests, &raft_cmdpb.Request{
					CmdType: raft_cmdpb.CmdType_Put,
					Put:     &raft_cmdpb.PutRequest{Cf: cf, Key: key, Value: value},
				})
			}
		}
		data, err := want.Marshal()
		require.NoError(t, err)
		require.Equal(t, data, got)

		e, err := DecodeEntry(got)
		require.NoError(t, err)
		require.Equal(t, *want.Header, e.Header)
		i := 0
		e.VisitOps(func(op Op) bool {
			r := want.Requests[i]
			i++
			require.Equal(t, r.Delete != nil, op.Delete)
			if op.Delete {
				require.Equal(t, r.Delete.Cf, string(op.CF))
				require.True(t, bytes.Equal(r.Delete.Key, op.Key))
			} else {
				require.Equal(t, r.Put.Cf, string(op.CF))
				require.True(t, bytes.Equal(r.Put.Key, op.Key))
				require.True(t, bytes.Equal(r.Put.Value, op.Value))
			}
			return true
		})
		require.Equal(t, len(want.Requests), i)
	})
}

func TestDecodeEntryKeepsAdmin(t *testing.T) {
	req := raft_cmdpb.RaftCmdRequest{
		Header: &raft_cmdpb.RaftRequestHeader{RegionId: 7},
		AdminRequest: &raft_cmdpb.AdminRequest{
			CmdType:    raft_cmdpb.AdminCmdType_CompactLog,
			CompactLog: &raft_cmdpb.CompactLogRequest{CompactIndex: 9},
		},
	}
	data, err := req.Marshal()
	require.NoError(t, err)
	e, err := DecodeEntry(data)
	require.NoError(t, err)
	var admin raft_cmdpb.AdminRequest
	require.NoError(t, admin.Unmarshal(e.Admin))
	require.Equal(t, *req.AdminRequest, admin)
}

func TestDecodeEntryRefusesGarbage(t *testing.T) {
	put := AppendPut(AppendHeader(nil, 1, &metapb.RegionEpoch{Version: 1}), "default", []byte("k"),
		[]byte("v"))
	for name, data := range map[string][]byte{
		"cut":             put[:len(put)-1],
		"length too long": {tagRequests, 0x7f},
		"varint field":    {0x08, 0x01},
		"empty request":   {tagRequests, 0x00},
		"unknown request": {tagRequests, 0x02, 6<<3 | 2, 0x00},
		"endless varint": {
			tagRequests, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		},
	} {
		_, err := DecodeEntry(data)
		require.Error(t, err, name)
	}
}

// FuzzDecodeEntry: any bytes may be in a log; decoding never panics, and what it accepts can be
// walked.
func FuzzDecodeEntry(f *testing.F) {
	f.Add(AppendPut(AppendHeader(nil, 1, &metapb.RegionEpoch{Version: 1}), "write", []byte("key"),
		[]byte("value")))
	f.Add(AppendDelete(nil, "lock", []byte("key")))
	f.Add([]byte{tagAdmin, 0})
	f.Add(AppendSwap(nil,
		&raft_cmdpb.CompareAndSwapRequest{
			Key: []byte("key"), Expected: &raft_cmdpb.ExpectedValue{},
		}))
	f.Add(AppendDeleteRange(nil, "write", []byte("a"), []byte("b")))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := DecodeEntry(data)
		if err != nil {
			return
		}
		n := 0
		e.VisitOps(func(Op) bool { n++; return n < 1<<20 })
	})
}

func TestPayloadAllocatesNothing(t *testing.T) {
	buf := make([]byte, 0, 4096)
	key, value := []byte("0123456789abcdef"), make([]byte, 256)
	require.Zero(t,
		testing.AllocsPerRun(100, func() { buf = AppendPut(buf[:0], "default", key, value) }))
	entry := AppendPut(AppendHeader(nil, 1, &metapb.RegionEpoch{Version: 1, ConfVer: 1}), "default",
		key, value)
	n := 0
	// One allocation each for the header's epoch and what unmarshalling it needs.
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() {
		e, _ := DecodeEntry(entry)
		e.VisitOps(func(op Op) bool { n += len(op.Key); return true })
	}), 2.0)
}

// TestConditionalRequests: they are what generated code writes, alone in their entry, and hide from
// those who walk puts.
func TestConditionalRequests(t *testing.T) {
	swap := &raft_cmdpb.CompareAndSwapRequest{
		Cf: "lock", Key: []byte("k"), Value: []byte("v"), Expected: &raft_cmdpb.ExpectedValue{},
	}
	header := AppendHeader(nil, 1, &metapb.RegionEpoch{Version: 1})
	for _, payload := range [][]byte{
		AppendSwap(nil, swap), AppendDeleteRange(nil, "", []byte("a"), nil),
	} {
		id := WriteID{Client: 7, Number: 8}
		e, err := DecodeEntry(
			AppendChecksum(append(AppendWriteID(bytes.Clone(header), id), payload...)))
		require.NoError(t, err)
		require.NotNil(t, e.Conditional)
		e.VisitOps(func(Op) bool { t.Fatal("not a put"); return false })
		var ids []WriteID
		e.VisitIDs(func(id WriteID) { ids = append(ids, id) })
		require.Equal(t, []WriteID{id}, ids)
		var whole raft_cmdpb.RaftCmdRequest
		require.NoError(t, whole.Unmarshal(append(bytes.Clone(header), payload...)))
		require.Equal(t, e.Conditional, whole.Requests[0])

		for name, bad := range map[string][]byte{
			"twice":         append(bytes.Clone(payload), payload...),
			"behind a put":  append(AppendPut(nil, "", []byte("k"), nil), payload...),
			"before a put":  AppendPut(bytes.Clone(payload), "", []byte("k"), nil),
			"with an admin": append(bytes.Clone(payload), tagAdmin, 0),
		} {
			_, err = DecodeEntry(bad)
			require.ErrorIs(t, err, errPayload, name)
		}
	}
	for name, r := range map[string]*raft_cmdpb.Request{
		"nothing":   {CmdType: raft_cmdpb.CmdType_CompareAndSwap},
		"the other": {CmdType: raft_cmdpb.CmdType_DeleteRange, CompareAndSwap: swap},
		"both": {
			CmdType: raft_cmdpb.CmdType_CompareAndSwap, CompareAndSwap: swap,
			DeleteRange: &raft_cmdpb.DeleteRangeRequest{},
		},
		"a put, too": {
			CmdType: raft_cmdpb.CmdType_CompareAndSwap, CompareAndSwap: swap,
			Put: &raft_cmdpb.PutRequest{},
		},
		"kind of put": {CmdType: raft_cmdpb.CmdType_Put, CompareAndSwap: swap},
	} {
		_, err := DecodeEntry(appendConditional(nil, r))
		require.ErrorIs(t, err, errPayload, name)
	}
}
