package tikv

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/metapb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/kv/server/gate"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/storage/raftstorage"
	"github.com/tinykv/tinykv/kv/storage/standalone"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/pkg/clustermode"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/codec"
	ownmeta "github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// nobody stands for the other stores and the placement service.
type nobody struct{}

var errNobody = errors.New("nobody there")

func (nobody) Send(uint64, []*rspb.RaftMessage) {}
func (nobody) AskSplit(
	context.Context, *ownmeta.Region,
) (*schedulerpb.AskSplitResponse, error) {
	return nil, errNobody
}
func (nobody) ReportSplit(context.Context, *ownmeta.Region, *ownmeta.Region) error {
	return errNobody
}
func (nobody) RegionHeartbeat(*schedulerpb.RegionHeartbeatRequest)           {}
func (nobody) StoreHeartbeat(context.Context, *schedulerpb.StoreStats) error { return nil }
func (nobody) RegionByID(context.Context, uint64) (*ownmeta.Region, error) {
	return nil, errNobody
}

func testConfig() *config.Config {
	cfg := config.Default()
	cfg.Server.RequestTimeout = config.Dur(5 * time.Second)
	return cfg
}

// replicated is the storage of a store with one region [a, m) of one replica, which leads.
func replicated(t testing.TB) storage.Storage {
	return replicatedOf(t, []byte("a"), []byte("m"), false)
}

func replicatedOf(t testing.TB, start, end []byte, encoded bool) storage.Storage {
	t.Helper()
	return replicatedWith(t, start, end, raftstore.Options{EncodedKeys: encoded})
}

// replicatedWith is replicatedOf with a store that takes what else there is to choose from o.
func replicatedWith(t testing.TB, start, end []byte, o raftstore.Options) storage.Storage {
	t.Helper()
	cfg, e := testConfig(), memengine.New()
	log, err := raftlog.Open("raft", raftlog.Options{
		SegmentSize: 1 << 20, FS: faultfs.NewMemFS(nil), Logger: zap.NewNop(),
	})
	require.NoError(t, err)
	snaps, err := snap.Open(t.TempDir(), 4)
	require.NoError(t, err)
	b, self := e.NewBatch(), &ownmeta.Peer{Id: 1, StoreId: 1}
	meta.PutRegionState(b, rspb.PeerState_Normal, &ownmeta.Region{
		Id: 1, StartKey: start, EndKey: end, Peers: []*ownmeta.Peer{self},
		RegionEpoch: &ownmeta.RegionEpoch{Version: 1, ConfVer: 1},
	}, self)
	meta.Put(b, meta.ApplyStateKey(1), meta.InitialApplyState())
	require.NoError(t, e.Write(b, true))
	store := raftstore.New(raftstore.Options{
		Config: cfg, ClusterID: 7, StoreID: 1, Engine: e, Log: log, Snapshots: snaps,
		Transport: nobody{}, Placement: nobody{}, Logger: zap.NewNop(), EncodedKeys: o.EncodedKeys,
		Clock: o.Clock, Features: o.Features,
	})
	require.NoError(t, store.Start(context.Background()))
	t.Cleanup(func() { store.Stop(); require.NoError(t, log.Close()) })
	// The store takes requests once what it publishes names the leader, which is later than the
	// election.
	require.Eventually(t, func() bool {
		_, err := store.LocalRead(message.Header{
			RegionID: 1, Peer: self, Epoch: &ownmeta.RegionEpoch{Version: 1, ConfVer: 1},
		}, nil)
		return err == nil
	}, 10*time.Second, time.Millisecond)
	return raftstorage.New(store, e, cfg.Server.RequestTimeout.Duration)
}

// encoded is a message in its encoding, whether or not it is one.
type encoded []byte

// bytesCodec sends and receives messages as they are on the wire.
type bytesCodec struct{}

func (bytesCodec) Name() string                  { return "proto" }
func (bytesCodec) Marshal(v any) ([]byte, error) { return *v.(*encoded), nil }
func (bytesCodec) Unmarshal(data []byte, v any) error {
	*v.(*encoded) = append(encoded{}, data...)
	return nil
}

// overTheWire serves the face of a storage and returns a connection that sends any bytes.
func overTheWire(t testing.TB, st storage.Storage) *grpc.ClientConn {
	return faceOverTheWire(t, New(testConfig(), 1, st, new(gate.Gate)))
}

// txnOverTheWire serves the face of a storage in a cluster of transactions.
func txnOverTheWire(t testing.TB, st storage.Storage) *grpc.ClientConn {
	s := New(testConfig(), 1, st, new(gate.Gate))
	s.SetMode(clustermode.Txn)
	s.SetTransactions(commands.New(st.(storage.BoundStorage), commands.Disk(),
		testConfig().Server.RequestTimeout.Duration))
	return faceOverTheWire(t, s)
}

func faceOverTheWire(t testing.TB, s *Service) *grpc.ClientConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := rpc.New(rpc.Options{Codec: codec.New()})
	Register(g, s)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(bytesCodec{}),
			grpc.MaxCallRecvMsgSize(MaxMessage)))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		g.Stop()
		require.ErrorIs(t, <-served, rpc.ErrStopped)
	})
	return conn
}

// field is a field of bytes of a message.
func field(number uint64, data []byte) []byte {
	return append(binary.AppendUvarint(binary.AppendUvarint(nil, number<<3|2), uint64(len(data))),
		data...)
}

// batchOf is a BatchCommandsRequest of one command, with the id 7.
func batchOf(command uint16, data []byte) encoded {
	return append(field(1, field(uint64(command), data)), field(2, []byte{7})...)
}

func kindOf(wrapper any, of string) string {
	return strings.TrimPrefix(reflect.TypeOf(wrapper).Elem().Name(), of)
}

// checkUnary has a request of any bytes answered by a message, or by a status that says what is
// wrong.
func checkUnary(t *testing.T, conn *grpc.ClientConn, method string, data []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, resp := encoded(data), encoded{}
	err := conn.Invoke(ctx, "/"+serviceName+"/"+method, &req, &resp)
	require.NoError(t, ctx.Err(), "no answer")
	switch status.Code(err) {
	case codes.OK, codes.InvalidArgument, codes.Unimplemented:
	case codes.DeadlineExceeded: // it gave itself so little time
	case codes.Internal:
		require.ErrorContains(t, err, "unmarshal", method)
	default:
		t.Fatalf("%s: %v", method, err)
	}
}

// checkBatch sends a message of any bytes on a stream. If it is one, each of its commands of a
// known kind is answered once, by an answer of its kind, and the stream ends with the client's end.
func checkBatch(t *testing.T, conn *grpc.ClientConn, data encoded) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		"/"+serviceName+"/BatchCommands")
	require.NoError(t, err)
	require.NoError(t, stream.SendMsg(&data))
	require.NoError(t, stream.CloseSend())
	req, wanted := new(tikvpb.BatchCommandsRequest), map[uint64][]string{}
	broken := req.Unmarshal(data) != nil
	uneven := !broken && len(req.Requests) != len(req.RequestIds)
	for i, r := range req.Requests {
		if r.Cmd != nil && !broken && !uneven {
			id := req.RequestIds[i]
			wanted[id] = append(wanted[id], kindOf(r.Cmd, "BatchCommandsRequest_Request_"))
		}
	}
	var got encoded
	for err = stream.RecvMsg(&got); err == nil; err = stream.RecvMsg(&got) {
		resp := new(tikvpb.BatchCommandsResponse)
		require.NoError(t, resp.Unmarshal(got))
		require.Len(t, resp.RequestIds, len(resp.Responses))
		for i, id := range resp.RequestIds {
			kind := kindOf(resp.Responses[i].Cmd, "BatchCommandsResponse_Response_")
			at := -1
			for j, w := range wanted[id] {
				if w == kind {
					at = j
				}
			}
			require.GreaterOrEqual(t, at, 0, "an answer %s with the id %d that nothing asked for",
				kind, id)
			wanted[id] = append(wanted[id][:at:at], wanted[id][at+1:]...)
		}
	}
	require.NoError(t, ctx.Err(), "the stream does not end")
	switch {
	case broken:
		require.Equal(t, codes.Internal, status.Code(err), err)
	case uneven:
		require.Equal(t, codes.InvalidArgument, status.Code(err), err)
	default:
		require.ErrorIs(t, err, io.EOF)
		for id, kinds := range wanted {
			require.Empty(t, kinds, "without answers: the commands with the id %d", id)
		}
	}
}

func goodContext() *kvrpcpb.Context {
	return &kvrpcpb.Context{
		RegionId: 1, Peer: &metapb.Peer{Id: 1, StoreId: 1},
		RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
	}
}

// contextSeeds are contexts of every kind of fault.
func contextSeeds() []*kvrpcpb.Context {
	out := []*kvrpcpb.Context{nil, {}, goodContext()}
	for _, change := range []func(*kvrpcpb.Context){
		func(c *kvrpcpb.Context) { c.RegionId = 9 },
		func(c *kvrpcpb.Context) { c.Peer = nil },
		func(c *kvrpcpb.Context) { c.Peer = &metapb.Peer{Id: 2, StoreId: 1} },
		func(c *kvrpcpb.Context) { c.Peer = &metapb.Peer{Id: 1, StoreId: 2} },
		func(c *kvrpcpb.Context) { c.RegionEpoch = nil },
		func(c *kvrpcpb.Context) { c.RegionEpoch = &metapb.RegionEpoch{Version: 9} },
		func(c *kvrpcpb.Context) { c.Term = 1 << 63 },
		func(c *kvrpcpb.Context) { c.ApiVersion = kvrpcpb.APIVersion_V2 },
		func(c *kvrpcpb.Context) { c.MaxExecutionDurationMs = 1 },
		func(c *kvrpcpb.Context) { c.ReplicaRead, c.StaleRead = true, true },
	} {
		c := goodContext()
		change(c)
		out = append(out, c)
	}
	return out
}

type seed struct {
	method, command uint16
	data            []byte
}

// requestSeeds are requests of each kind that is served, with odd contexts, keys and bounds.
func requestSeeds(t testing.TB) []seed {
	t.Helper()
	methods, commands := map[string]uint16{}, map[string]uint16{}
	for i, m := range serviceDesc().Methods {
		methods[m.MethodName] = uint16(i)
	}
	for number, kind := range commandKinds() {
		commands[kind] = number
	}
	var out []seed
	add := func(method string, m interface{ Marshal() ([]byte, error) }) {
		data, err := m.Marshal()
		require.NoError(t, err)
		path := method
		if _, ok := methods[path]; !ok {
			path = "Kv" + method
		}
		out = append(out, seed{methods[path], commands[method], data})
	}
	for i, c := range contextSeeds() {
		key, next := []byte([]string{"b", "", "z"}[i%3]), []byte([]string{"c", "", "a", "zz"}[i%4])
		ranges := []*kvrpcpb.KeyRange{{StartKey: key, EndKey: next}, {}}
		pairs := []*kvrpcpb.KvPair{{Key: key, Value: key}, {Key: next}}
		add("RawGet", &kvrpcpb.RawGetRequest{Context: c, Key: key})
		add("RawBatchGet", &kvrpcpb.RawBatchGetRequest{Context: c, Keys: [][]byte{key, next}})
		add("RawPut", &kvrpcpb.RawPutRequest{Context: c, Key: key, Value: next, Ttl: uint64(i % 2)})
		add("RawBatchPut",
			&kvrpcpb.RawBatchPutRequest{Context: c, Pairs: pairs, Ttls: make([]uint64, i%4)})
		add("RawDelete", &kvrpcpb.RawDeleteRequest{Context: c, Key: key, Cf: "nope"})
		add("RawBatchDelete", &kvrpcpb.RawBatchDeleteRequest{Context: c, Keys: [][]byte{next, key}})
		add("RawScan", &kvrpcpb.RawScanRequest{Context: c, StartKey: key, EndKey: next, Limit: 3})
		add("RawScan",
			&kvrpcpb.RawScanRequest{Context: c, StartKey: next, Limit: 1 << 31, Reverse: true})
		add("RawBatchScan", &kvrpcpb.RawBatchScanRequest{Context: c, Ranges: ranges, EachLimit: 2})
		add("RawGetKeyTTL", &kvrpcpb.RawGetKeyTTLRequest{Context: c, Key: key})
		add("RawChecksum", &kvrpcpb.RawChecksumRequest{Context: c, Ranges: ranges})
		add("RawCompareAndSwap",
			&kvrpcpb.RawCASRequest{Context: c, Key: key, PreviousNotExist: true, Delete: i > 5})
		add("RawDeleteRange",
			&kvrpcpb.RawDeleteRangeRequest{Context: c, StartKey: key, EndKey: next})
		add("UnsafeDestroyRange",
			&kvrpcpb.UnsafeDestroyRangeRequest{Context: c, StartKey: key, EndKey: next})
		add("RawCoprocessor", &kvrpcpb.RawCoprocessorRequest{Context: c, Ranges: ranges})
		add("SplitRegion", &kvrpcpb.SplitRegionRequest{Context: c, SplitKeys: [][]byte{key, next}})
		add("GetStoreSafeTS", &kvrpcpb.StoreSafeTSRequest{KeyRange: ranges[0]})
		add("GetHealthFeedback", &kvrpcpb.GetHealthFeedbackRequest{Context: c})
	}
	for i, c := range contextSeeds() {
		name, n := []string{"b", "", "z"}[i%3], uint64(i)
		for _, rpc := range txnCases() {
			req := rpc.request(c, name)
			data, err := req.Marshal()
			require.NoError(t, err)
			out = append(out, seed{methods[rpc.path()], commands[rpc.method], data})
		}
		key := []byte(name)
		muts := []*kvrpcpb.Mutation{
			{Op: kvrpcpb.Op(i), Key: key, Value: key, Assertion: kvrpcpb.Assertion(i % 4)}, {},
		}
		add("Prewrite", &kvrpcpb.PrewriteRequest{
			Context: c, Mutations: muts[:1+i%2], PrimaryLock: key, StartVersion: n,
			LockTtl: 1 << (6 * n), MinCommitTs: n,
			AssertionLevel: kvrpcpb.AssertionLevel(i % 3), TxnSize: n, UseAsyncCommit: true,
			TryOnePc: true, ForUpdateTs: n % 2,
		})
		add("ResolveLock",
			&kvrpcpb.ResolveLockRequest{
				Context: c, TxnInfos: []*kvrpcpb.TxnInfo{{Txn: n, Status: n * 2}, {}},
			})
		add("CheckTxnStatus",
			&kvrpcpb.CheckTxnStatusRequest{
				Context: c, PrimaryKey: key, LockTs: n, CallerStartTs: ^n, CurrentTs: ^n,
			})
		add("KvPessimisticLock", &kvrpcpb.PessimisticLockRequest{Context: c, Mutations: muts[:1]})
		add("KVPessimisticRollback",
			&kvrpcpb.PessimisticRollbackRequest{Context: c, Keys: [][]byte{key}})
		add("GetLockWaitInfo", &kvrpcpb.GetLockWaitInfoRequest{Context: c})
		add("KvCheckSecondaryLocks",
			&kvrpcpb.CheckSecondaryLocksRequest{Context: c, Keys: [][]byte{key}, StartVersion: n})
	}
	for number := range commandKinds() {
		out = append(out, seed{0, number, nil}) // the empty request of each kind
	}
	return append(out, seed{0, 0, nil}, seed{0, 200, []byte("x")}, seed{0, 1, []byte{0xff}},
		seed{0, 0, append(batchOf(1, nil), batchOf(255, nil)...)},
		seed{0, 0, field(2, []byte{1, 2})})
}

// commandKinds are the kinds of commands in a batch by the numbers of their fields.
func commandKinds() map[uint16]string {
	out := map[uint16]string{}
	for n := uint16(1); n <= 255; n++ {
		m := new(tikvpb.BatchCommandsRequest)
		if m.Unmarshal(batchOf(n, nil)) == nil && m.Requests[0].Cmd != nil {
			out[n] = kindOf(m.Requests[0].Cmd, "BatchCommandsRequest_Request_")
		}
	}
	return out
}

// FuzzFace: any bytes, as the request of any RPC, as any command of a batch, and as a batch, are
// answered by a store that is replicated and by one that is not, of either mode, and the store goes
// on.
func FuzzFace(f *testing.F) {
	for _, s := range requestSeeds(f) {
		f.Add(s.method, s.command, s.data)
	}
	methods := serviceDesc().Methods
	conns := []*grpc.ClientConn{overTheWire(f, standalone.New(memengine.New())),
		overTheWire(f, replicated(f)),
		txnOverTheWire(f, standalone.New(memengine.New())), txnOverTheWire(f, replicatedTxn(f))}
	f.Fuzz(func(t *testing.T, method, command uint16, data []byte) {
		for _, conn := range conns {
			checkUnary(t, conn, methods[int(method)%len(methods)].MethodName, data)
			checkBatch(t, conn, batchOf(command, data))
			checkBatch(t, conn, data)
		}
	})
}

// TestSeedsReachTheStore: a good put of the region is carried out, and each RPC answers some of its
// seeds with a message.
func TestSeedsReachTheStore(t *testing.T) {
	conn := overTheWire(t, replicated(t))
	require.Len(t, commandKinds(),
		len((*tikvpb.BatchCommandsRequest_Request)(nil).XXX_OneofWrappers()))
	put, err := (&kvrpcpb.RawPutRequest{
		Context: goodContext(), Key: []byte("b"), Value: []byte("v"),
	}).Marshal()
	require.NoError(t, err)
	req, got := encoded(put), encoded{}
	require.NoError(t, conn.Invoke(t.Context(), "/tikvpb.Tikv/RawPut", &req, &got))
	require.Empty(t, got, "a put that succeeds says nothing")
	seen := map[string]bool{}
	for _, s := range requestSeeds(t) {
		name, resp := serviceDesc().Methods[s.method].MethodName, encoded{}
		data := encoded(s.data)
		if conn.Invoke(t.Context(), "/tikvpb.Tikv/"+name, &data, &resp) == nil {
			seen[name] = true
		}
	}
	for _, m := range serviceDesc().Methods {
		require.True(t, seen[m.MethodName], m.MethodName)
	}
}
