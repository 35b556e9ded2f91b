package tikv

import (
	"context"
	"encoding/binary"
	"io"
	"os"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/metapb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type encodable interface {
	Marshal() ([]byte, error)
	Unmarshal(data []byte) error
}

// answering is an answer with a place for a region error.
type answering interface {
	encodable
	GetRegionError() *errorpb.Error
}

// rpcCase is an RPC that is for one region: a request with a good key or range, and an empty
// answer.
type rpcCase struct {
	method  string
	request func(c *kvrpcpb.Context, key string) encodable
	answer  func() answering
}

// regional are all RPCs of that kind.
func regional() []rpcCase {
	type C = *kvrpcpb.Context
	next := func(key string) []byte { return []byte(key + "~") }
	ranges := func(key string) []*kvrpcpb.KeyRange {
		return []*kvrpcpb.KeyRange{{StartKey: []byte(key), EndKey: next(key)}}
	}
	return []rpcCase{
		{"RawGet", func(c C, key string) encodable {
			return &kvrpcpb.RawGetRequest{Context: c, Key: []byte(key)}
		}, func() answering { return new(kvrpcpb.RawGetResponse) }},
		{"RawBatchGet", func(c C, key string) encodable {
			return &kvrpcpb.RawBatchGetRequest{Context: c, Keys: [][]byte{[]byte(key)}}
		}, func() answering { return new(kvrpcpb.RawBatchGetResponse) }},
		{"RawPut", func(c C, key string) encodable {
			return &kvrpcpb.RawPutRequest{Context: c, Key: []byte(key), Value: []byte("odd")}
		}, func() answering { return new(kvrpcpb.RawPutResponse) }},
		{"RawBatchPut", func(c C, key string) encodable {
			pairs := []*kvrpcpb.KvPair{{Key: []byte("b"), Value: []byte("odd")}, {Key: []byte(key)}}
			return &kvrpcpb.RawBatchPutRequest{Context: c, Pairs: pairs}
		}, func() answering { return new(kvrpcpb.RawBatchPutResponse) }},
		{"RawDelete", func(c C, key string) encodable {
			return &kvrpcpb.RawDeleteRequest{Context: c, Key: []byte(key)}
		}, func() answering { return new(kvrpcpb.RawDeleteResponse) }},
		{"RawBatchDelete", func(c C, key string) encodable {
			return &kvrpcpb.RawBatchDeleteRequest{
				Context: c, Keys: [][]byte{[]byte("b"), []byte(key)},
			}
		}, func() answering { return new(kvrpcpb.RawBatchDeleteResponse) }},
		{"RawScan", func(c C, key string) encodable {
			return &kvrpcpb.RawScanRequest{Context: c, StartKey: []byte(key), Limit: 1}
		}, func() answering { return new(kvrpcpb.RawScanResponse) }},
		{"RawBatchScan", func(c C, key string) encodable {
			return &kvrpcpb.RawBatchScanRequest{Context: c, Ranges: ranges(key), EachLimit: 1}
		}, func() answering { return new(kvrpcpb.RawBatchScanResponse) }},
		{"RawGetKeyTTL", func(c C, key string) encodable {
			return &kvrpcpb.RawGetKeyTTLRequest{Context: c, Key: []byte(key)}
		}, func() answering { return new(kvrpcpb.RawGetKeyTTLResponse) }},
		{"RawChecksum", func(c C, key string) encodable {
			return &kvrpcpb.RawChecksumRequest{Context: c, Ranges: ranges(key)}
		}, func() answering { return new(kvrpcpb.RawChecksumResponse) }},
		{"RawCompareAndSwap", func(c C, key string) encodable {
			return &kvrpcpb.RawCASRequest{
				Context: c, Key: []byte(key), PreviousValue: []byte("v"), Value: []byte("odd"),
			}
		}, func() answering { return new(kvrpcpb.RawCASResponse) }},
		{"RawDeleteRange", func(c C, key string) encodable {
			return &kvrpcpb.RawDeleteRangeRequest{
				Context: c, StartKey: []byte(key), EndKey: next(key),
			}
		}, func() answering { return new(kvrpcpb.RawDeleteRangeResponse) }},
		{"SplitRegion", func(c C, key string) encodable {
			return &kvrpcpb.SplitRegionRequest{Context: c, SplitKeys: [][]byte{[]byte(key)}}
		}, func() answering { return new(kvrpcpb.SplitRegionResponse) }},
	}
}

func ask(t *testing.T, conn *grpc.ClientConn, method string, req, resp encodable) error {
	t.Helper()
	data, err := req.Marshal()
	require.NoError(t, err)
	in, out := encoded(data), encoded{}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := conn.Invoke(ctx, "/"+serviceName+"/"+method, &in, &out); err != nil {
		return err
	}
	require.NoError(t, resp.Unmarshal(out))
	return nil
}

// oddContexts are contexts of requests that are not for this region, with what their errors must
// have.
func oddContexts() map[string]struct {
	context *kvrpcpb.Context
	wanted  func(e *errorpb.Error) bool
} {
	type odd = struct {
		context *kvrpcpb.Context
		wanted  func(e *errorpb.Error) bool
	}
	with := func(change func(c *kvrpcpb.Context)) *kvrpcpb.Context {
		c := goodContext()
		change(c)
		return c
	}
	return map[string]odd{
		"no context": {nil, func(e *errorpb.Error) bool { return e != nil }},
		"foreign region": {with(func(c *kvrpcpb.Context) { c.RegionId = 9 }),
			func(e *errorpb.Error) bool {
				return e.GetRegionNotFound().GetRegionId() == 9
			}},
		"old epoch": {with(func(c *kvrpcpb.Context) { c.RegionEpoch.Version = 0 }),
			func(e *errorpb.Error) bool {
				list := e.GetEpochNotMatch().GetCurrentRegions()
				return len(list) == 1 && list[0].Id == 1 && list[0].EndKey[0] == 'm' &&
					list[0].RegionEpoch.Version == 1 && list[0].Peers[0].StoreId == 1
			}},
		"unknown store": {with(func(c *kvrpcpb.Context) { c.Peer.StoreId = 5 }),
			func(e *errorpb.Error) bool {
				return e.GetStoreNotMatch().GetRequestStoreId() == 5 &&
					e.GetStoreNotMatch().GetActualStoreId() == 1
			}},
		"unknown peer": {with(func(c *kvrpcpb.Context) {
			c.Peer = &metapb.Peer{Id: 8, StoreId: 1}
		}),
			func(e *errorpb.Error) bool { return e != nil }},
	}
}

// content is all that the store has.
func content(t *testing.T, conn *grpc.ClientConn) string {
	t.Helper()
	resp := new(kvrpcpb.RawScanResponse)
	req := &kvrpcpb.RawScanRequest{Context: goodContext(), StartKey: []byte("a"), Limit: 1000}
	require.NoError(t, ask(t, conn, "RawScan", req, resp))
	require.Nil(t, resp.RegionError)
	return resp.String()
}

func startWire(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, resp := overTheWire(t, replicated(t)), new(kvrpcpb.RawPutResponse)
	for _, key := range []string{"b", "c"} {
		put := &kvrpcpb.RawPutRequest{Context: goodContext(), Key: []byte(key), Value: []byte("v")}
		require.NoError(t, ask(t, conn, "RawPut", put, resp))
		require.Equal(t, &kvrpcpb.RawPutResponse{}, resp)
	}
	return conn
}

// Each RPC for a region says in a region error that the request is not for this one, or that its
// key is not there.
func TestRequestsForOtherRegions(t *testing.T) {
	conn := startWire(t)
	before := content(t, conn)
	for _, rpc := range regional() {
		for name, odd := range oddContexts() {
			resp := rpc.answer()
			require.NoError(t, ask(t, conn, rpc.method, rpc.request(odd.context, "c"), resp),
				"%s, %s", rpc.method, name)
			require.True(t, odd.wanted(resp.GetRegionError()), "%s, %s: %v", rpc.method, name, resp)
		}
		if rpc.method != "RawChecksum" { // whose ranges are clipped
			resp := rpc.answer()
			require.NoError(t, ask(t, conn, rpc.method, rpc.request(goodContext(), "z"), resp),
				rpc.method)
			require.NotNil(t, resp.GetRegionError().GetKeyNotInRegion(), "%s: %v", rpc.method, resp)
		}
		require.Equal(t, before, content(t, conn), rpc.method)
	}
}

// What is wrong with a request itself is said in the answer's message, or by the status where the
// answer has none.
func TestRequestsThatAreWrong(t *testing.T) {
	conn := startWire(t)
	before := content(t, conn)
	elsewhere := goodContext()
	elsewhere.ApiVersion = kvrpcpb.APIVersion_V2
	for _, rpc := range regional() {
		for name, req := range map[string]encodable{
			"API V2": rpc.request(elsewhere, "c"), "empty key": rpc.request(goodContext(), ""),
		} {
			switch rpc.method {
			case "RawScan", "RawBatchScan", "RawChecksum", "RawDeleteRange":
				if name == "empty key" {
					continue // a bound like any other
				}
			}
			resp := rpc.answer()
			err := ask(t, conn, rpc.method, req, resp)
			if err != nil {
				require.Equal(t, codes.InvalidArgument, status.Code(err), "%s, %s: %v", rpc.method,
					name, err)
				continue
			}
			require.Nil(t, resp.GetRegionError(), "%s, %s", rpc.method, name)
			text, ok := resp.(interface{ GetError() string })
			require.True(t, ok, "%s, %s", rpc.method, name)
			require.NotEmpty(t, text.GetError(), "%s, %s", rpc.method, name)
		}
		require.Equal(t, before, content(t, conn), rpc.method)
	}
}

// The same requests in a batch get the same errors, each of its kind, and the stream goes on.
func TestOddBatches(t *testing.T) {
	conn := startWire(t)
	before := content(t, conn)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		"/"+serviceName+"/BatchCommands")
	require.NoError(t, err)
	numbers := map[string]uint16{}
	for n, kind := range commandKinds() {
		numbers[kind] = n
	}
	one := func(number uint16, data []byte) *tikvpb.BatchCommandsResponse_Response {
		t.Helper()
		out, in := batchOf(number, data), encoded{}
		require.NoError(t, stream.SendMsg(&out))
		require.NoError(t, stream.RecvMsg(&in))
		resp := new(tikvpb.BatchCommandsResponse)
		require.NoError(t, resp.Unmarshal(in))
		require.Equal(t, []uint64{7}, resp.RequestIds)
		return resp.Responses[0]
	}
	served := 0
	for _, rpc := range regional() {
		number, ok := numbers[rpc.method]
		if !ok {
			continue // it is no command of a batch
		}
		served++
		for name, odd := range oddContexts() {
			data, err := rpc.request(odd.context, "c").Marshal()
			require.NoError(t, err)
			answer, err := one(number, data).Marshal()
			require.NoError(t, err)
			resp := rpc.answer() // the only field of the response
			_, n := tagAndSize(answer)
			require.NoError(t, resp.Unmarshal(answer[n:]))
			require.True(t, odd.wanted(resp.GetRegionError()), "%s, %s: %v", rpc.method, name, resp)
		}
	}
	require.Equal(t, 9, served)
	// no command, unknown commands
	for _, none := range []encoded{nil, batchOf(200, nil), batchOf(0x7fff, []byte("x"))} {
		require.NoError(t, stream.SendMsg(&none))
	}
	data, err := (&kvrpcpb.RawGetRequest{Context: goodContext(), Key: []byte("c")}).Marshal()
	require.NoError(t, err)
	require.Equal(t, "v", string(one(numbers["RawGet"], data).GetRawGet().Value))
	require.NoError(t, stream.CloseSend())
	require.ErrorIs(t, stream.RecvMsg(new(encoded)), io.EOF)
	require.Equal(t, before, content(t, conn))
}

// tagAndSize is what stands before the content of a message's first field: its number, and how many
// bytes that takes.
func tagAndSize(data []byte) (number uint64, n int) {
	number, n = binary.Uvarint(data)
	_, m := binary.Uvarint(data[n:])
	return number >> 3, n + m
}

// The page for users names each RPC that is served.
func TestEachRPCIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../../docs/tikv.md")
	require.NoError(t, err)
	for _, m := range serviceDesc().Methods {
		require.Regexp(t, `(?m)^\|.*\b`+m.MethodName+`\b.*\|`, string(page))
	}
}
