package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/pdpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	rpc "github.com/tinykv/tinykv/pkg/rpc/client"
)

// tikvClients are clients that speak TiKV's protocol, in the same history as the others. They send
// each request once: what TiKV's clients would send again is of unknown outcome here.
const tikvClients = 2

// tikvFace finds regions and stores as clients of TiKV do. Connections to stores carry checksums,
// which TiKV's clients do not have, so that flipped bits are no faults of the store.
type tikvFace struct {
	pds     []pdpb.PDClient
	cluster atomic.Uint64 // its id; 0: not asked for yet
	mu      struct {
		sync.Mutex
		stores map[string]*rpc.Client
		routes map[string]*tikvRoute
	}
}

// tikvRoute is where the region of a key is led.
type tikvRoute struct {
	conn    *rpc.Client
	context *kvrpcpb.Context
}

func (h *history) newTikvFace() *tikvFace {
	f := &tikvFace{}
	f.mu.stores, f.mu.routes = map[string]*rpc.Client{}, map[string]*tikvRoute{}
	for _, addr := range h.c.Endpoints() {
		conn, err := grpc.NewClient("passthrough:///"+addr,
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() { _ = conn.Close() })
		f.pds = append(f.pds, pdpb.NewPDClient(conn))
	}
	h.t.Cleanup(func() {
		for _, c := range f.mu.stores {
			_ = c.Close()
		}
	})
	return f
}

// route finds the leader of a key's region, in the cache or by one of the members.
func (f *tikvFace) route(ctx context.Context, key []byte) (*tikvRoute, error) {
	f.mu.Lock()
	r := f.mu.routes[string(key)]
	f.mu.Unlock()
	if r != nil {
		return r, nil
	}
	var errs []error
	for _, pd := range f.pds {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		addr, to, err := f.ask(ctx, pd, key)
		cancel()
		if err == nil {
			return f.remember(key, addr, to), nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// ask has a member tell the address of a key's leader, and the context of requests to it.
func (f *tikvFace) ask(
	ctx context.Context, pd pdpb.PDClient, key []byte,
) (addr string, to *kvrpcpb.Context, err error) {
	if f.cluster.Load() == 0 {
		ms, err := pd.GetMembers(ctx, &pdpb.GetMembersRequest{})
		if err != nil {
			return "", nil, err
		}
		f.cluster.Store(ms.GetHeader().GetClusterId())
	}
	h := &pdpb.RequestHeader{ClusterId: f.cluster.Load()}
	r, err := pd.GetRegion(ctx, &pdpb.GetRegionRequest{Header: h, RegionKey: key})
	if err != nil {
		return "", nil, err
	}
	if r.Region == nil || r.Leader.GetId() == 0 {
		return "", nil, fmt.Errorf("no leader of %q is known", key)
	}
	st, err := pd.GetStore(ctx, &pdpb.GetStoreRequest{Header: h, StoreId: r.Leader.StoreId})
	if err != nil {
		return "", nil, err
	}
	return st.GetStore().GetAddress(), &kvrpcpb.Context{
		RegionId: r.Region.Id, RegionEpoch: r.Region.RegionEpoch, Peer: r.Leader,
	}, nil
}

func (f *tikvFace) remember(key []byte, addr string, to *kvrpcpb.Context) *tikvRoute {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn := f.mu.stores[addr]
	if conn == nil {
		conn = rpc.New(addr, rpc.Options{Checksum: true})
		f.mu.stores[addr] = conn
	}
	r := &tikvRoute{conn, to}
	f.mu.routes[string(key)] = r
	return r
}

// forget has the next request for a key ask anew.
func (f *tikvFace) forget(key []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mu.routes, string(key))
}

type tikvRequest = tikvpb.BatchCommandsRequest_Request

// tikvOutcome is what came of a request. If err is not nil, unknown tells whether it may have been
// carried out.
type tikvOutcome struct {
	value   []byte
	found   bool
	swapped bool
	err     error
	unknown bool
}

// refusedByRegion tells whether a region error says that nothing was carried out. StaleCommand does
// not.
func refusedByRegion(e *errorpb.Error) bool {
	return e.NotLeader != nil || e.RegionNotFound != nil || e.KeyNotInRegion != nil ||
		e.EpochNotMatch != nil ||
		e.ServerIsBusy != nil || e.StoreNotMatch != nil || e.DiskFull != nil
}

// failed is the outcome of a request with a region error or a message. Only a swap is answered by a
// message if its outcome is unknown.
func failed(e *errorpb.Error, text string) tikvOutcome {
	if e != nil {
		return tikvOutcome{err: fmt.Errorf("region error: %s", e), unknown: !refusedByRegion(e)}
	}
	return tikvOutcome{
		err: errors.New(text), unknown: strings.Contains(text, "the outcome is unknown"),
	}
}

// TestOutcomesOfBatchedWrites: a write of unknown outcome within a batch is answered by a region
// error that says so, or by an answer of no kind. A history in which it took effect later would
// else count as not linearizable.
func TestOutcomesOfBatchedWrites(t *testing.T) {
	require.True(t, commandOutcome(nil, &tikvpb.BatchCommandsResponse_Response{}).unknown)
	require.True(t, failed(nil, "the outcome is unknown: the value may have been swapped").unknown)
	require.False(t, failed(nil, "the key is empty").unknown)
	require.False(t, failed(&errorpb.Error{ServerIsBusy: &errorpb.ServerIsBusy{}}, "").unknown)
	require.True(t, failed(&errorpb.Error{StaleCommand: &errorpb.StaleCommand{}}, "").unknown)
}

// swap carries out a compare-and-swap, which TiKV's clients send as a call of its own.
func (f *tikvFace) swap(ctx context.Context, key, expected, value []byte) tikvOutcome {
	r, err := f.route(ctx, key)
	if err != nil {
		return tikvOutcome{err: err}
	}
	resp := new(kvrpcpb.RawCASResponse)
	err = r.conn.Invoke(ctx, "/tikvpb.Tikv/RawCompareAndSwap", &kvrpcpb.RawCASRequest{
		Context: r.context, Key: key, Value: value, PreviousValue: expected,
		PreviousNotExist: expected == nil,
	}, resp)
	out := tikvOutcome{err: err, unknown: !rpc.NotSent(err)}
	switch {
	case err != nil:
	case resp.RegionError != nil || resp.Error != "":
		out = failed(resp.RegionError, resp.Error)
	default:
		out = tikvOutcome{found: !resp.PreviousNotExist, swapped: resp.Succeed}
		if out.found {
			out.value = append([]byte{}, resp.PreviousValue...)
		}
	}
	if out.err != nil {
		f.forget(key)
	}
	return out
}

// batched carries out a command on a stream of BatchCommands.
func (f *tikvFace) batched(
	ctx context.Context, key []byte, command func(c *kvrpcpb.Context) *tikvRequest,
) tikvOutcome {
	r, err := f.route(ctx, key)
	if err != nil {
		return tikvOutcome{err: err}
	}
	out := f.command(ctx, r, key, command(r.context))
	if out.err != nil {
		f.forget(key)
	}
	return out
}

func (f *tikvFace) command(
	ctx context.Context, r *tikvRoute, key []byte, req *tikvRequest,
) tikvOutcome {
	ctx, cancel := context.WithCancel(ctx) // ends the stream
	defer cancel()
	stream, err := r.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		"/tikvpb.Tikv/BatchCommands")
	if err != nil {
		return tikvOutcome{err: err} // nothing was sent
	}
	resp := new(tikvpb.BatchCommandsResponse)
	err = stream.SendMsg(&tikvpb.BatchCommandsRequest{
		RequestIds: []uint64{1}, Requests: []*tikvRequest{req},
	})
	if err == nil {
		err = stream.RecvMsg(resp)
	}
	if err != nil {
		return tikvOutcome{err: err, unknown: !rpc.NotSent(err)}
	}
	if len(resp.Responses) != 1 {
		return tikvOutcome{
			err: fmt.Errorf("%d answers to one command", len(resp.Responses)), unknown: true,
		}
	}
	return commandOutcome(key, resp.Responses[0])
}

func commandOutcome(key []byte, resp *tikvpb.BatchCommandsResponse_Response) tikvOutcome {
	var out tikvOutcome
	var region *errorpb.Error
	var text string
	switch cmd := resp.Cmd.(type) {
	case *tikvpb.BatchCommandsResponse_Response_RawGet:
		region, text = cmd.RawGet.RegionError, cmd.RawGet.Error
		out.found, out.value = !cmd.RawGet.NotFound, cmd.RawGet.Value
	case *tikvpb.BatchCommandsResponse_Response_RawScan:
		region = cmd.RawScan.RegionError
		for _, kv := range cmd.RawScan.Kvs {
			if string(kv.Key) == string(key) {
				out.found, out.value = true, kv.Value
			}
		}
	case *tikvpb.BatchCommandsResponse_Response_RawPut:
		region, text = cmd.RawPut.RegionError, cmd.RawPut.Error
	case *tikvpb.BatchCommandsResponse_Response_RawDelete:
		region, text = cmd.RawDelete.RegionError, cmd.RawDelete.Error
	default:
		return tikvOutcome{err: fmt.Errorf("an answer of another kind: %T", cmd), unknown: true}
	}
	if region != nil || text != "" {
		return failed(region, text)
	}
	if out.found {
		out.value = append([]byte{}, out.value...)
	}
	return out
}

// get reads a key by a get or by a scan.
func (f *tikvFace) get(ctx context.Context, key []byte, scan bool) tikvOutcome {
	return f.batched(ctx, key, func(c *kvrpcpb.Context) *tikvRequest {
		if scan {
			return &tikvRequest{Cmd: &tikvpb.BatchCommandsRequest_Request_RawScan{RawScan: &kvrpcpb.RawScanRequest{
				Context: c, StartKey: key, Limit: 1,
			}}}
		}
		return &tikvRequest{Cmd: &tikvpb.BatchCommandsRequest_Request_RawGet{RawGet: &kvrpcpb.RawGetRequest{
			Context: c, Key: key,
		}}}
	})
}

// write puts a value, or deletes the key if that is nil.
func (f *tikvFace) write(ctx context.Context, key, value []byte) tikvOutcome {
	return f.batched(ctx, key, func(c *kvrpcpb.Context) *tikvRequest {
		if value == nil {
			return &tikvRequest{Cmd: &tikvpb.BatchCommandsRequest_Request_RawDelete{RawDelete: &kvrpcpb.RawDeleteRequest{
				Context: c, Key: key,
			}}}
		}
		return &tikvRequest{Cmd: &tikvpb.BatchCommandsRequest_Request_RawPut{RawPut: &kvrpcpb.RawPutRequest{
			Context: c, Key: key, Value: value,
		}}}
	})
}

// tikvClient reads, writes, deletes and swaps until stopped. After a write of unknown outcome it
// only reads until that succeeds: what is unknown costs the checker much, and a store that is away
// would make it of every write.
func (h *history) tikvClient(f *tikvFace, n int) {
	rng := rand.New(rand.NewPCG(h.seed, uint64(2000+n)))
	id, last, lost := h.rec.Client(), map[int][]byte{}, false
	for i := 0; ; i++ {
		select {
		case <-h.stop:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		k := rng.IntN(keyCount)
		value, call := fmt.Appendf(nil, "tikv%d-%d", n, i), h.rec.Now()
		var out tikvOutcome
		switch p := rng.IntN(100); {
		case p < 50 || lost:
			if out = f.get(ctx, key(k), p%5 == 0); out.err == nil {
				h.rec.Get(id, string(key(k)), call, out.value, out.found)
				last[k], lost = out.value, false
			}
			out.unknown = false
		case p < 65:
			out = f.swap(ctx, key(k), last[k], value)
			if out.err == nil || out.unknown {
				h.rec.Swap(id, string(key(k)), last[k], value, call, out.value, out.swapped,
					out.unknown)
			}
			if last[k] = out.value; out.swapped {
				last[k] = value
			}
		default:
			if p >= 90 {
				value = nil
			}
			out = f.write(ctx, key(k), value)
			if out.err == nil || out.unknown {
				h.rec.Put(id, string(key(k)), value, value == nil, call, out.unknown)
			}
			if last[k] = nil; out.err == nil {
				last[k] = value
			}
		}
		cancel()
		if out.unknown {
			id, lost = h.rec.Client(), true
			h.tikvUnknown.Add(1)
		}
		if out.err == nil {
			h.tikvOps.Add(1)
		} else {
			time.Sleep(5 * time.Millisecond) // do not spin while a region has no leader
		}
	}
}
