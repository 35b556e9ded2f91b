package server

import (
	"context"
	"errors"
	"io"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/kv/storage/raftstorage"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/proto/pkg/coprocessor"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// nobody stands for the other stores and the placement service.
type nobody struct{}

var errNobody = errors.New("nobody there")

func (nobody) Send(uint64, []*rspb.RaftMessage) {}
func (nobody) AskSplit(context.Context, *metapb.Region) (*schedulerpb.AskSplitResponse, error) {
	return nil, errNobody
}
func (nobody) ReportSplit(context.Context, *metapb.Region, *metapb.Region) error {
	return errNobody
}
func (nobody) RegionHeartbeat(*schedulerpb.RegionHeartbeatRequest)           {}
func (nobody) StoreHeartbeat(context.Context, *schedulerpb.StoreStats) error { return nil }
func (nobody) RegionByID(context.Context, uint64) (*metapb.Region, error) {
	return nil, errNobody
}

// newReplicated is a server over a store with one region [a, m) of one replica, which leads.
func newReplicated(t testing.TB) *Server {
	t.Helper()
	return newReplicatedWith(t, raftstore.Options{})
}

// newReplicatedWith has a store that takes its clock and its features from o.
func newReplicatedWith(t testing.TB, o raftstore.Options) *Server {
	t.Helper()
	cfg := config.Default()
	cfg.Server.RequestTimeout = config.Dur(5 * time.Second)
	e := memengine.New()
	log, err := raftlog.Open("raft",
		raftlog.Options{SegmentSize: 1 << 20, FS: faultfs.NewMemFS(nil), Logger: zap.NewNop()})
	require.NoError(t, err)
	snaps, err := snap.Open(t.TempDir(), 4)
	require.NoError(t, err)
	b := e.NewBatch()
	self := &metapb.Peer{Id: 1, StoreId: 1}
	meta.PutRegionState(b, rspb.PeerState_Normal, &metapb.Region{
		Id: 1, StartKey: []byte("a"), EndKey: []byte("m"), Peers: []*metapb.Peer{self},
		RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
	}, self)
	meta.Put(b, meta.ApplyStateKey(1), meta.InitialApplyState())
	require.NoError(t, e.Write(b, true))
	store := raftstore.New(raftstore.Options{
		Config: cfg, ClusterID: 7, StoreID: 1, Engine: e, Log: log, Snapshots: snaps,
		Transport: nobody{}, Placement: nobody{}, Logger: zap.NewNop(),
		Clock: o.Clock, Features: o.Features,
	})
	require.NoError(t, store.Start(context.Background()))
	t.Cleanup(func() { store.Stop(); require.NoError(t, log.Close()) })
	// The store takes requests once what it publishes names the leader, which is later than the
	// election.
	require.Eventually(t, func() bool {
		_, err := store.LocalRead(message.Header{
			RegionID: 1, Peer: self, Epoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		}, nil)
		return err == nil
	}, 10*time.Second, time.Millisecond)
	return New(cfg, raftstorage.New(store, e, cfg.Server.RequestTimeout.Duration), store, snaps,
		zap.NewNop())
}

// request is what every request message can do.
type request interface {
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// procedure calls one RPC with a request of any bytes; unary ones return the answer's error.
type procedure struct {
	req  func() request
	call func(ctx context.Context, s *Server, req request) error
}

func unary[Req request, Resp any](
	fresh func() Req, call func(*Server, context.Context, Req) (Resp, error),
) procedure {
	return procedure{func() request { return fresh() },
		func(ctx context.Context, s *Server, req request) error {
			_, err := call(s, ctx, req.(Req))
			return err
		}}
}

// rpcs are all RPCs of a client, and those of stores that take one message.
var rpcs = []procedure{
	unary(func() *kvrpcpb.RawGetRequest { return new(kvrpcpb.RawGetRequest) }, (*Server).RawGet),
	unary(func() *kvrpcpb.RawPutRequest { return new(kvrpcpb.RawPutRequest) }, (*Server).RawPut),
	unary(func() *kvrpcpb.RawDeleteRequest {
		return new(kvrpcpb.RawDeleteRequest)
	}, (*Server).RawDelete),
	unary(func() *kvrpcpb.RawScanRequest { return new(kvrpcpb.RawScanRequest) }, (*Server).RawScan),
	{func() request { return new(kvrpcpb.BatchCommandsRequest) }, callBatch},
	unary(func() *kvrpcpb.RawCASRequest { return new(kvrpcpb.RawCASRequest) }, (*Server).RawCAS),
	unary(func() *kvrpcpb.RawDeleteRangeRequest {
		return new(kvrpcpb.RawDeleteRangeRequest)
	}, (*Server).RawDeleteRange),
	unary(func() *kvrpcpb.GetRequest { return new(kvrpcpb.GetRequest) }, (*Server).KvGet),
	unary(func() *kvrpcpb.ScanRequest { return new(kvrpcpb.ScanRequest) }, (*Server).KvScan),
	unary(func() *kvrpcpb.PrewriteRequest {
		return new(kvrpcpb.PrewriteRequest)
	}, (*Server).KvPrewrite),
	unary(func() *kvrpcpb.CommitRequest { return new(kvrpcpb.CommitRequest) }, (*Server).KvCommit),
	unary(func() *kvrpcpb.CheckTxnStatusRequest {
		return new(kvrpcpb.CheckTxnStatusRequest)
	}, (*Server).KvCheckTxnStatus),
	unary(func() *kvrpcpb.BatchRollbackRequest {
		return new(kvrpcpb.BatchRollbackRequest)
	}, (*Server).KvBatchRollback),
	unary(func() *kvrpcpb.ResolveLockRequest {
		return new(kvrpcpb.ResolveLockRequest)
	}, (*Server).KvResolveLock),
	unary(func() *kvrpcpb.ForwardRequest { return new(kvrpcpb.ForwardRequest) }, (*Server).Forward),
	unary(func() *kvrpcpb.CheckConsistencyRequest {
		return new(kvrpcpb.CheckConsistencyRequest)
	}, (*Server).CheckConsistency),
	unary(func() *coprocessor.Request { return new(coprocessor.Request) }, (*Server).Coprocessor),
	unary(func() *kvrpcpb.BatchGetRequest {
		return new(kvrpcpb.BatchGetRequest)
	}, (*Server).KvBatchGet),
	unary(func() *kvrpcpb.ScanLockRequest {
		return new(kvrpcpb.ScanLockRequest)
	}, (*Server).KvScanLock),
	unary(func() *kvrpcpb.MvccGetByKeyRequest {
		return new(kvrpcpb.MvccGetByKeyRequest)
	}, (*Server).MvccGetByKey),
	unary(func() *kvrpcpb.RawBatchGetRequest {
		return new(kvrpcpb.RawBatchGetRequest)
	}, (*Server).RawBatchGet),
	unary(func() *kvrpcpb.RawBatchPutRequest {
		return new(kvrpcpb.RawBatchPutRequest)
	}, (*Server).RawBatchPut),
	unary(func() *kvrpcpb.RawBatchDeleteRequest {
		return new(kvrpcpb.RawBatchDeleteRequest)
	}, (*Server).RawBatchDelete),
	unary(func() *kvrpcpb.RawChecksumRequest {
		return new(kvrpcpb.RawChecksumRequest)
	}, (*Server).RawChecksum),
	unary(func() *kvrpcpb.RawGetKeyTTLRequest {
		return new(kvrpcpb.RawGetKeyTTLRequest)
	}, (*Server).RawGetKeyTTL),
}

// batchOf is a BatchCommands stream of one message.
type batchOf struct {
	tinykvpb.TinyKv_BatchCommandsServer
	ctx context.Context
	req *kvrpcpb.BatchCommandsRequest
	mu  sync.Mutex
	ids map[uint64]int
}

func (b *batchOf) Context() context.Context { return b.ctx }

func (b *batchOf) Recv() (*kvrpcpb.BatchCommandsRequest, error) {
	if b.req == nil {
		return nil, io.EOF
	}
	req := b.req
	b.req = nil
	return req, nil
}

func (b *batchOf) Send(resp *kvrpcpb.BatchCommandsResponse) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range resp.Replies {
		b.ids[r.Id]--
	}
	return nil
}

// callBatch fails unless every command of the batch is answered once.
func callBatch(ctx context.Context, s *Server, req request) error {
	b := &batchOf{ctx: ctx, req: req.(*kvrpcpb.BatchCommandsRequest), ids: map[uint64]int{}}
	for _, c := range b.req.Commands {
		b.ids[c.Id]++
	}
	if err := s.BatchCommands(b); err != nil {
		return err
	}
	for id, n := range b.ids {
		if n != 0 {
			return status.Errorf(codes.Internal, "command %d: %d answers are missing", id, n)
		}
	}
	return nil
}

func requestSeeds() (seeds []request, kinds []byte) {
	good := &kvrpcpb.Context{
		RegionId: 1, Peer: &metapb.Peer{Id: 1, StoreId: 1},
		RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
	}
	contexts := []*kvrpcpb.Context{nil, {}, good}
	for _, change := range []func(*kvrpcpb.Context){
		func(c *kvrpcpb.Context) { c.RegionId = 9 },
		func(c *kvrpcpb.Context) { c.Peer = &metapb.Peer{Id: 2, StoreId: 1} },
		func(c *kvrpcpb.Context) { c.Peer = &metapb.Peer{Id: 1, StoreId: 2} },
		func(c *kvrpcpb.Context) { c.RegionEpoch = &metapb.RegionEpoch{Version: 9} },
		func(c *kvrpcpb.Context) { c.Term = 1 << 63 },
		func(c *kvrpcpb.Context) { c.Term = 1 },
		func(c *kvrpcpb.Context) { c.ClusterId = 8 },
		func(c *kvrpcpb.Context) { c.WriteClient, c.WriteNumber, c.WriteAttempt = 1, 1, 1 },
		func(c *kvrpcpb.Context) { c.WriteClient, c.WriteNumber, c.LogPosition = 2, 1, 1<<64-1 },
		func(c *kvrpcpb.Context) {
			c.WriteClient, c.WriteNumber, c.WriteAttempt = 3, 1, 2
			c.WriteOrigins = []*kvrpcpb.WriteOrigin{
				{}, {RegionId: 1, LogPosition: 5}, {RegionId: 9},
			}
		},
	} {
		c := *good
		change(&c)
		contexts = append(contexts, &c)
	}
	add := func(r request) {
		kind := slices.IndexFunc(rpcs, func(c procedure) bool {
			return reflect.TypeOf(c.req()) == reflect.TypeOf(r)
		})
		seeds, kinds = append(seeds, r), append(kinds, byte(kind))
	}
	for _, c := range contexts {
		for _, key := range []string{"", "a", "k", "z"} {
			get := &kvrpcpb.RawGetRequest{Context: c, Key: []byte(key), Cf: "write"}
			put := &kvrpcpb.RawPutRequest{
				Context: c, Key: []byte(key), Value: []byte("v"), Cf: "lock",
			}
			del := &kvrpcpb.RawDeleteRequest{Context: c, Key: []byte(key), Cf: "nope"}
			scan := &kvrpcpb.RawScanRequest{
				Context: c, StartKey: []byte(key), EndKey: []byte("c"), Limit: 3,
				Reverse: key == "k", KeyOnly: true, MaxBytes: 1,
			}
			add(get)
			add(put)
			add(del)
			add(scan)
			add(&kvrpcpb.BatchCommandsRequest{Commands: []*kvrpcpb.BatchCommand{
				{Id: 1, Get: get}, {Id: 1, Put: put, TimeoutMs: 1 << 63},
				{Id: 2, Delete: del, TimeoutMs: 1}, {Id: 3, Scan: scan, Get: get}, {},
			}})
		}
	}
	for kind := 5; kind < len(rpcs); kind++ {
		add(rpcs[kind].req())
	}
	for _, c := range []*kvrpcpb.Context{nil, good} {
		for _, key := range [][]byte{nil, []byte("b"), []byte("z")} {
			add(&kvrpcpb.GetRequest{Context: c, Key: key, Version: 1<<64 - 1})
			add(&kvrpcpb.ScanRequest{Context: c, StartKey: key, Limit: 3, Version: 9})
			add(&kvrpcpb.PrewriteRequest{
				Context: c, StartVersion: 5, LockTtl: 1, PrimaryLock: key,
				Mutations: []*kvrpcpb.Mutation{{Key: key}, {Op: 1, Key: key}, {Op: 9}}[:2],
			})
			add(&kvrpcpb.PrewriteRequest{
				Context: c, StartVersion: 1<<64 - 2,
				Mutations: []*kvrpcpb.Mutation{{Op: 3, Key: key}, {Op: -1}},
			})
			add(&kvrpcpb.CommitRequest{
				Context: c, StartVersion: 5, CommitVersion: 6, Keys: [][]byte{key, key},
			})
			add(&kvrpcpb.CheckTxnStatusRequest{
				Context: c, PrimaryKey: key, LockTs: 7, CurrentTs: 1 << 60,
			})
			add(&kvrpcpb.BatchRollbackRequest{Context: c, StartVersion: 8, Keys: [][]byte{key}})
			add(&kvrpcpb.ResolveLockRequest{Context: c, StartVersion: 5, CommitVersion: 6})
		}
	}
	return seeds, kinds
}

// FuzzRequests: a request of any bytes to any RPC of a client, replicated or not, is answered: with
// a region error, with what is wrong, or as an RPC that is not there.
func FuzzRequests(f *testing.F) {
	seeds, kinds := requestSeeds()
	for i := range seeds {
		b, err := seeds[i].Marshal()
		require.NoError(f, err)
		f.Add(kinds[i], b)
	}
	servers := []*Server{newServer(), newReplicated(f), newServer(), newReplicated(f)}
	for _, s := range servers[2:] {
		s.SetMode(clustermode.Txn)
	}
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		call := rpcs[int(kind)%len(rpcs)]
		for _, s := range servers {
			req := call.req()
			if req.Unmarshal(data) != nil {
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			err := call.call(ctx, s, req)
			late := ctx.Err()
			cancel()
			require.NoError(t, late, "no answer")
			switch code := status.Code(err); {
			case code == codes.OK || code == codes.DeadlineExceeded:
			case code == codes.Unimplemented && int(kind)%len(rpcs) > 4:
			case (code == codes.FailedPrecondition || code == codes.InvalidArgument) &&
				noPlaceForErrors(req):
			default:
				t.Fatalf("%T: %v", req, err)
			}
		}
	})
}

// noPlaceForErrors tells whether the answer to a request cannot say what is wrong with it.
func noPlaceForErrors(req request) bool {
	switch req.(type) {
	case *kvrpcpb.ScanRequest, *kvrpcpb.CheckTxnStatusRequest:
		return true
	}
	return false
}

// TestRequestsHitTheStore: the seeds reach the replicated store, some of them to the end.
func TestRequestsHitTheStore(t *testing.T) {
	s := newReplicated(t)
	good := &kvrpcpb.Context{
		RegionId: 1, Peer: &metapb.Peer{Id: 1, StoreId: 1},
		RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
	}
	p, err := s.RawPut(context.Background(),
		&kvrpcpb.RawPutRequest{Context: good, Key: []byte("b"), Value: []byte("v")})
	require.NoError(t, err)
	require.Nil(t, p.RegionError)
	g, err := s.RawGet(context.Background(),
		&kvrpcpb.RawGetRequest{Context: good, Key: []byte("b")})
	require.NoError(t, err)
	require.Equal(t, "v", string(g.Value))
}
