package tikv

import (
	"context"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/metapb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/pkg/feature"
)

// movedClock is the process's clock, as far ahead as a test wants it.
type movedClock struct {
	base  time.Time
	ahead atomic.Int64
}

func (c *movedClock) Base() time.Time { return c.base }
func (c *movedClock) Now() time.Time  { return time.Now().Add(time.Duration(c.ahead.Load())) }

// ttlFace is the face of a store of one region [a, m), over the wire.
type ttlFace struct {
	t     *testing.T
	conn  *grpc.ClientConn
	clock *movedClock
}

func newTTLFace(t *testing.T, features feature.Set) *ttlFace {
	t.Helper()
	clock := &movedClock{base: time.Now()}
	st := replicatedWith(t, []byte("a"), []byte("m"),
		raftstore.Options{Clock: clock, Features: func() feature.Set { return features }})
	return &ttlFace{t, overTheWire(t, st), clock}
}

func (f *ttlFace) seconds(n int) { f.clock.ahead.Add(int64(time.Duration(n) * time.Second)) }

type wireMessage interface {
	Marshal() ([]byte, error)
	Unmarshal(b []byte) error
}

func (f *ttlFace) call(method string, req, resp wireMessage) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	data, err := req.Marshal()
	require.NoError(f.t, err)
	in, out := encoded(data), encoded{}
	require.NoError(f.t, f.conn.Invoke(ctx, "/"+serviceName+"/"+method, &in, &out))
	require.NoError(f.t, resp.Unmarshal(out))
}

func (f *ttlFace) put(key string, ttl uint64) string {
	f.t.Helper()
	resp := new(kvrpcpb.RawPutResponse)
	f.call("RawPut",
		&kvrpcpb.RawPutRequest{
			Context: goodContext(), Key: []byte(key), Value: []byte("v"), Ttl: ttl,
		}, resp)
	require.Nil(f.t, resp.RegionError)
	return resp.Error
}

func (f *ttlFace) batchPut(all uint64, ttls []uint64, keys ...string) string {
	f.t.Helper()
	req, resp := &kvrpcpb.RawBatchPutRequest{Context: goodContext(), Ttl: all, Ttls: ttls},
		new(kvrpcpb.RawBatchPutResponse)
	for _, k := range keys {
		req.Pairs = append(req.Pairs, &kvrpcpb.KvPair{Key: []byte(k), Value: []byte("v")})
	}
	f.call("RawBatchPut", req, resp)
	require.Nil(f.t, resp.RegionError)
	return resp.Error
}

func (f *ttlFace) swap(req *kvrpcpb.RawCASRequest) *kvrpcpb.RawCASResponse {
	f.t.Helper()
	resp := new(kvrpcpb.RawCASResponse)
	req.Context, req.Key = goodContext(), []byte("k")
	f.call("RawCompareAndSwap", req, resp)
	require.Nil(f.t, resp.RegionError)
	return resp
}

// ttl is how many seconds a key has left; -1: it does not exist.
func (f *ttlFace) ttl(key string) int {
	f.t.Helper()
	resp := new(kvrpcpb.RawGetKeyTTLResponse)
	f.call("RawGetKeyTTL", &kvrpcpb.RawGetKeyTTLRequest{Context: goodContext(), Key: []byte(key)},
		resp)
	require.Nil(f.t, resp.RegionError)
	require.Empty(f.t, resp.Error)
	if resp.NotFound {
		return -1
	}
	return int(resp.Ttl)
}

// keys are those that each kind of read shows; all must show the same.
func (f *ttlFace) keys(among ...string) (out []string) {
	f.t.Helper()
	many := &kvrpcpb.RawBatchGetRequest{Context: goodContext()}
	for _, k := range among {
		many.Keys = append(many.Keys, []byte(k))
		one := new(kvrpcpb.RawGetResponse)
		f.call("RawGet", &kvrpcpb.RawGetRequest{Context: goodContext(), Key: []byte(k)}, one)
		require.Nil(f.t, one.RegionError)
		if !one.NotFound {
			out = append(out, k)
		}
		require.Equal(f.t, one.NotFound, f.ttl(k) < 0)
	}
	got := new(kvrpcpb.RawBatchGetResponse)
	f.call("RawBatchGet", many, got)
	require.Equal(f.t, out, pairKeys(got.Pairs))
	for _, keyOnly := range []bool{true, false} {
		scan := new(kvrpcpb.RawScanResponse)
		f.call("RawScan",
			&kvrpcpb.RawScanRequest{
				Context: goodContext(), StartKey: []byte("a"), Limit: 100, KeyOnly: keyOnly,
			}, scan)
		require.Equal(f.t, out, pairKeys(scan.Kvs))
		back := new(kvrpcpb.RawScanResponse)
		f.call("RawScan", &kvrpcpb.RawScanRequest{
			Context: goodContext(), StartKey: []byte("m"), Limit: 100, KeyOnly: keyOnly,
			Reverse: true,
		}, back)
		require.Len(f.t, back.Kvs, len(out))
		for i, p := range back.Kvs {
			require.Equal(f.t, out[len(out)-1-i], string(p.Key))
		}
	}
	sum := new(kvrpcpb.RawChecksumResponse)
	f.call("RawChecksum",
		&kvrpcpb.RawChecksumRequest{Context: goodContext(), Ranges: []*kvrpcpb.KeyRange{{}}}, sum)
	require.Len(f.t, out, int(sum.TotalKvs))
	return out
}

func pairKeys(pairs []*kvrpcpb.KvPair) (out []string) {
	for _, p := range pairs {
		out = append(out, string(p.Key))
	}
	return out
}

// TestTTL: from its expiry on a key is in no answer, a limit counts what is, and a put without a
// TTL ends it.
func TestTTL(t *testing.T) {
	f := newTTLFace(t, feature.Supported)
	require.Empty(t, f.put("a", 0))
	require.Empty(t, f.put("b", 100))
	require.Empty(t, f.batchPut(0, []uint64{0, 100, 300}, "c", "d", "e"))
	require.Empty(t, f.batchPut(100, nil, "f", "g"))
	require.Empty(t, f.batchPut(300, []uint64{100}, "h", "i"))
	require.Empty(t, f.put("g", 0))
	require.Contains(t, f.batchPut(0, []uint64{1, 2}, "x", "y", "z"), "2 TTLs for 3 pairs")
	all := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"}
	require.Equal(t, all, f.keys(all...))
	require.Zero(t, f.ttl("a"))
	require.InDelta(t, 100, f.ttl("b"), 20)
	require.InDelta(t, 100, f.ttl("h"), 20, "a single TTL is for all, before the older field")
	require.Equal(t, -1, f.ttl("l"))
	f.seconds(200)
	require.Equal(t, []string{"a", "c", "e", "g"}, f.keys(all...))
	scan := new(kvrpcpb.RawScanResponse)
	f.call("RawScan",
		&kvrpcpb.RawScanRequest{Context: goodContext(), StartKey: []byte("a"), Limit: 3}, scan)
	require.Equal(t, []string{"a", "c", "e"}, pairKeys(scan.Kvs), "the limit is of what is there")
	require.Empty(t, f.put("b", 50))
	f.seconds(200)
	require.Equal(t, []string{"a", "c", "g"}, f.keys(all...))
}

// TestTTLOfSwaps: what has expired does not exist for a compare-and-swap, which sets a TTL or ends
// it.
func TestTTLOfSwaps(t *testing.T) {
	f := newTTLFace(t, feature.Supported)
	v := []byte("v")
	require.True(t,
		f.swap(&kvrpcpb.RawCASRequest{PreviousNotExist: true, Value: v, Ttl: 100}).Succeed)
	require.Equal(t, &kvrpcpb.RawCASResponse{PreviousValue: v},
		f.swap(&kvrpcpb.RawCASRequest{PreviousNotExist: true, Value: v}))
	require.InDelta(t, 100, f.ttl("k"), 20)
	f.seconds(100)
	require.Equal(t, &kvrpcpb.RawCASResponse{PreviousNotExist: true},
		f.swap(&kvrpcpb.RawCASRequest{PreviousValue: v, Value: v}))
	require.True(t,
		f.swap(&kvrpcpb.RawCASRequest{PreviousNotExist: true, Value: v, Ttl: 100}).Succeed)
	require.True(t, f.swap(&kvrpcpb.RawCASRequest{PreviousValue: v, Value: v}).Succeed)
	f.seconds(1000)
	require.Zero(t, f.ttl("k"))
	require.True(t,
		f.swap(&kvrpcpb.RawCASRequest{PreviousValue: v, Delete: true, Ttl: math.MaxUint64}).Succeed)
	require.Equal(t, -1, f.ttl("k"))
}

// TestTTLsThatAreRefused: those that are too long, and all of them until every store of the cluster
// knows them.
func TestTTLsThatAreRefused(t *testing.T) {
	f := newTTLFace(t, feature.Supported)
	for _, ttl := range []uint64{storage.MaxTTL + 1, math.MaxUint64, math.MaxUint64/1000 + 2} {
		require.Contains(t, f.put("k", ttl), "longest")
		require.Contains(t, f.batchPut(0, []uint64{1, ttl}, "k", "l"), "longest")
		require.Contains(t, f.batchPut(ttl, nil, "k", "l"), "longest")
		require.Contains(t, f.swap(&kvrpcpb.RawCASRequest{PreviousNotExist: true, Ttl: ttl}).Error,
			"longest")
	}
	require.Empty(t, f.keys("k", "l"))
	require.Empty(t, f.put("k", storage.MaxTTL))
	f.seconds(1 << 30)
	require.Equal(t, storage.MaxTTL-1<<30, f.ttl("k"))

	f = newTTLFace(t, feature.ConditionalOps)
	require.Contains(t, f.put("k", 1), "ttl")
	require.Contains(t, f.batchPut(0, []uint64{1, 0}, "k", "l"), "ttl")
	require.Contains(t, f.swap(&kvrpcpb.RawCASRequest{PreviousNotExist: true, Ttl: 1}).Error, "ttl")
	require.Empty(t, f.keys("k", "l"))
	require.Empty(t, f.put("k", 0))
	require.Zero(t, f.ttl("k"))
}

// TestTTLInBatches: commands on a stream set TTLs as calls do.
func TestTTLInBatches(t *testing.T) {
	f := newTTLFace(t, feature.Supported)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stream, err := f.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		"/"+serviceName+"/BatchCommands")
	require.NoError(t, err)
	put := &kvrpcpb.RawPutRequest{
		Context: goodContext(), Key: []byte("k"), Value: []byte("v"), Ttl: 100,
	}
	long := &kvrpcpb.RawPutRequest{
		Context: goodContext(), Key: []byte("l"), Value: []byte("v"), Ttl: math.MaxUint64,
	}
	pairs := &kvrpcpb.RawBatchPutRequest{
		Context: goodContext(), Pairs: []*kvrpcpb.KvPair{{Key: []byte("b")}, {Key: []byte("c")}},
		Ttls: []uint64{0, 100},
	}
	data, err := (&tikvpb.BatchCommandsRequest{RequestIds: []uint64{1, 2, 3},
		Requests: []*tikvpb.BatchCommandsRequest_Request{
			{Cmd: &tikvpb.BatchCommandsRequest_Request_RawPut{RawPut: put}},
			{Cmd: &tikvpb.BatchCommandsRequest_Request_RawPut{RawPut: long}},
			{Cmd: &tikvpb.BatchCommandsRequest_Request_RawBatchPut{RawBatchPut: pairs}},
		}}).Marshal()
	require.NoError(t, err)
	in := encoded(data)
	require.NoError(t, stream.SendMsg(&in))
	texts := map[uint64]string{}
	for len(texts) < 3 {
		var out encoded
		require.NoError(t, stream.RecvMsg(&out))
		resp := new(tikvpb.BatchCommandsResponse)
		require.NoError(t, resp.Unmarshal(out))
		for i, id := range resp.RequestIds {
			texts[id] = resp.Responses[i].GetRawPut().GetError() +
				resp.Responses[i].GetRawBatchPut().GetError()
		}
	}
	require.Empty(t, texts[1])
	require.Contains(t, texts[2], "longest")
	require.Empty(t, texts[3])
	require.Equal(t, []string{"b", "c", "k"}, f.keys("b", "c", "k", "l"))
	f.seconds(100)
	require.Equal(t, []string{"b"}, f.keys("b", "c", "k", "l"))
}

// TestTTLOutsideTheRegion is a region error, and prepares no region for TTLs.
func TestTTLOutsideTheRegion(t *testing.T) {
	f := newTTLFace(t, feature.Supported)
	resp := new(kvrpcpb.RawPutResponse)
	f.call("RawPut",
		&kvrpcpb.RawPutRequest{
			Context: goodContext(), Key: []byte("z"), Value: []byte("v"), Ttl: 1,
		}, resp)
	require.NotNil(t, resp.RegionError.GetKeyNotInRegion())
	old := goodContext()
	old.RegionEpoch = &metapb.RegionEpoch{Version: 9, ConfVer: 1}
	resp = new(kvrpcpb.RawPutResponse)
	f.call("RawPut",
		&kvrpcpb.RawPutRequest{Context: old, Key: []byte("b"), Value: []byte("v"), Ttl: 1}, resp)
	require.NotNil(t, resp.RegionError.GetEpochNotMatch())
}
