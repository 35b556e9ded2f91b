package pdface_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/keyspacepb"
	"github.com/pingcap/kvproto/pkg/meta_storagepb"
	"github.com/pingcap/kvproto/pkg/pdpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

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

// procedure is one RPC of the face.
type procedure struct {
	path    string
	streams bool
}

// silent are streams on which nothing ever happens, and calls that wait for stores.
func (p procedure) silent() bool {
	return strings.Contains(p.path, "Watch") || strings.HasSuffix(p.path, "/SplitRegions") ||
		strings.HasSuffix(p.path, "/SplitAndScatterRegions")
}

// procedures are all RPCs of the services, in order.
func procedures() []procedure {
	gs := grpc.NewServer()
	pdpb.RegisterPDServer(gs, &pdpb.UnimplementedPDServer{})
	meta_storagepb.RegisterMetaStorageServer(gs, &meta_storagepb.UnimplementedMetaStorageServer{})
	keyspacepb.RegisterKeyspaceServer(gs, &keyspacepb.UnimplementedKeyspaceServer{})
	var out []procedure
	for service, info := range gs.GetServiceInfo() {
		for _, m := range info.Methods {
			out = append(out,
				procedure{"/" + service + "/" + m.Name, m.IsClientStream || m.IsServerStream})
		}
	}
	slices.SortFunc(out, func(a, b procedure) int { return strings.Compare(a.path, b.path) })
	return out
}

// member is a member of the placement service with a connection that sends any bytes.
type member struct {
	*server.Server
	conn *grpc.ClientConn
}

func startMember(t testing.TB) *member {
	t.Helper()
	// A machine that is busy with other things must not cost it the leadership.
	s := servertest.StartTest(t, func(c *config.Config) {
		c.LeaseTTL = config.Duration(30 * time.Second)
	})
	conn, err := grpc.NewClient("passthrough:///"+s.ClientAddr(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(bytesCodec{})))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return &member{s, conn}
}

// bootstrap gives the cluster a store and two regions.
func bootstrap(t testing.TB, s *server.Server) {
	t.Helper()
	native := servertest.DirectClient(t, s.ClientAddr())
	first := &metapb.Region{
		Id: 1000, RegionEpoch: &metapb.RegionEpoch{ConfVer: 1, Version: 1},
		Peers: []*metapb.Peer{{Id: 1001, StoreId: 1}},
	}
	resp, err := native.Bootstrap(context.Background(), &schedulerpb.BootstrapRequest{
		Header: &schedulerpb.RequestHeader{ClusterId: s.ClusterID()},
		Store:  &metapb.Store{Id: 1, Address: "s1"}, Region: first,
	})
	require.NoError(t, err)
	require.Nil(t, resp.Header.Error)
	left, right := *first, *first
	left.EndKey, right.StartKey, right.Id = []byte("m"), []byte("m"), 1500
	for _, r := range []*metapb.Region{&left, &right} {
		r.RegionEpoch = &metapb.RegionEpoch{Version: 9, ConfVer: 1}
		require.NoError(t, s.Cluster().HandleRegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
			Region: r, Leader: first.Peers[0], Term: 6,
		}))
	}
}

// header is the first field of a request: that it is for the member's cluster. Where it follows
// another one, both count as one message, of which the last id counts.
func (m *member) header() []byte {
	id := binary.AppendUvarint([]byte{1 << 3}, m.ClusterID())
	return append([]byte{1<<3 | 2, byte(len(id))}, id...)
}

// call sends a request and returns how the call has ended, after the answers.
func (m *member) call(ctx context.Context, p procedure, data encoded) (answers int, err error) {
	if !p.streams {
		var resp encoded
		return 1, m.conn.Invoke(ctx, p.path, &data, &resp)
	}
	stream, err := m.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		p.path)
	if err != nil {
		return 0, err
	}
	if err := stream.SendMsg(&data); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if err := stream.CloseSend(); err != nil {
		return 0, err
	}
	for ; ; answers++ {
		var resp encoded
		err := stream.RecvMsg(&resp)
		if errors.Is(err, io.EOF) {
			return answers, nil
		}
		if err != nil {
			return answers, err
		}
	}
}

// checkCall has a request of any bytes answered by a message, or by a status that says what is
// wrong.
func (m *member) checkCall(t *testing.T, p procedure, data encoded) {
	t.Helper()
	limit := 20 * time.Second
	if p.silent() {
		limit = 30 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := m.call(ctx, p, data)
	switch code := status.Code(err); code {
	case codes.OK, codes.InvalidArgument, codes.FailedPrecondition, codes.PermissionDenied,
		codes.Unimplemented, codes.ResourceExhausted:
	case codes.DeadlineExceeded:
		require.True(t, p.silent(), "no answer from %s", p.path)
	case codes.Internal:
		require.ErrorContains(t, err, "unmarshal", p.path)
	case codes.Unknown: // as PD says it
		require.Regexp(t, "invalid store ID .* not found|count must be between", err.Error(),
			p.path)
	default:
		t.Fatalf("%s: %v", p.path, err)
	}
}

// requestSeeds are requests by the names of their RPCs.
func requestSeeds() map[string][]interface{ Marshal() ([]byte, error) } {
	type list = []interface{ Marshal() ([]byte, error) }
	key, wrong := []byte("k"), &pdpb.RequestHeader{ClusterId: 7}
	scope := &pdpb.KeyspaceScope{Keyspace: &pdpb.KeyspaceScope_KeyspaceId{KeyspaceId: 5}}
	ranges := []*pdpb.KeyRange{{StartKey: key}, {StartKey: []byte("z"), EndKey: key}}
	return map[string]list{
		"GetRegion": {
			&pdpb.GetRegionRequest{RegionKey: key}, &pdpb.GetRegionRequest{Header: wrong},
		},
		"GetPrevRegion": {
			&pdpb.GetRegionRequest{RegionKey: key}, &pdpb.GetRegionRequest{},
		},
		"GetRegionByID": {
			&pdpb.GetRegionByIDRequest{RegionId: 1000},
			&pdpb.GetRegionByIDRequest{RegionId: 1 << 63},
		},
		"QueryRegion": {
			&pdpb.QueryRegionRequest{
				Keys: [][]byte{nil, key}, PrevKeys: [][]byte{nil}, Ids: []uint64{0, 1000},
			},
		},
		"ScanRegions": {
			&pdpb.ScanRegionsRequest{StartKey: []byte("z"), EndKey: key, Limit: -1},
			&pdpb.ScanRegionsRequest{Limit: 1},
		},
		"BatchScanRegions": {
			&pdpb.BatchScanRegionsRequest{Ranges: ranges},
			&pdpb.BatchScanRegionsRequest{Ranges: ranges[:1], ContainAllKeyRange: true, Limit: 1},
		},
		"GetStore": {
			&pdpb.GetStoreRequest{StoreId: 1}, &pdpb.GetStoreRequest{StoreId: 1 << 63},
			&pdpb.GetStoreRequest{},
		},
		"AllocID": {&pdpb.AllocIDRequest{Count: 1<<32 - 1}},
		"GetOperator": {
			&pdpb.GetOperatorRequest{RegionId: 1000}, &pdpb.GetOperatorRequest{RegionId: 1 << 63},
		},
		"Tso": {
			&pdpb.TsoRequest{Count: 1}, &pdpb.TsoRequest{}, &pdpb.TsoRequest{Count: 1<<32 - 1},
			&pdpb.TsoRequest{Header: wrong, Count: 1},
		},
		"ScatterRegion": {
			&pdpb.ScatterRegionRequest{},
			&pdpb.ScatterRegionRequest{RegionsId: []uint64{1000, 1000, 0}},
		},
		"SplitRegions": {
			&pdpb.SplitRegionsRequest{},
			&pdpb.SplitRegionsRequest{SplitKeys: [][]byte{nil, key, key, []byte("m")}},
		},
		"SplitAndScatterRegions": {
			&pdpb.SplitAndScatterRegionsRequest{SplitKeys: [][]byte{[]byte("m"), []byte("m")}},
		},
		"UpdateGCSafePoint": {&pdpb.UpdateGCSafePointRequest{SafePoint: 5}},
		"AdvanceGCSafePoint": {
			&pdpb.AdvanceGCSafePointRequest{Target: 6},
			&pdpb.AdvanceGCSafePointRequest{KeyspaceScope: scope},
		},
		"AdvanceTxnSafePoint": {
			&pdpb.AdvanceTxnSafePointRequest{Target: 9},
			&pdpb.AdvanceTxnSafePointRequest{Target: 1},
		},
		"UpdateServiceGCSafePoint": {
			&pdpb.UpdateServiceGCSafePointRequest{
				ServiceId: []byte("s"), TTL: 1<<63 - 1, SafePoint: 20,
			},
			&pdpb.UpdateServiceGCSafePointRequest{ServiceId: []byte("s"), TTL: -1 << 63},
			&pdpb.UpdateServiceGCSafePointRequest{ServiceId: []byte("gc_worker"), TTL: 1},
			&pdpb.UpdateServiceGCSafePointRequest{
				ServiceId: []byte{0xff}, TTL: 1 << 40, SafePoint: 20,
			},
		},
		"SetGCBarrier": {
			&pdpb.SetGCBarrierRequest{BarrierId: "b", BarrierTs: 30, TtlSeconds: 9e9},
			&pdpb.SetGCBarrierRequest{KeyspaceScope: scope},
		},
		"DeleteGCBarrier": {
			&pdpb.DeleteGCBarrierRequest{BarrierId: "b"}, &pdpb.DeleteGCBarrierRequest{},
		},
		"GetGCState": {
			&pdpb.GetGCStateRequest{
				KeyspaceScope: &pdpb.KeyspaceScope{}, IncludeGlobalGcBarriers: true,
			},
		},
		"LoadGlobalConfig": {&pdpb.LoadGlobalConfigRequest{Names: []string{"a", ""}}},
		"LoadKeyspace": {
			&keyspacepb.LoadKeyspaceRequest{Name: "DEFAULT"},
			&keyspacepb.LoadKeyspaceRequest{Name: "x"},
		},
		"GetAllKeyspaces": {&keyspacepb.GetAllKeyspacesRequest{}},
	}
}

// FuzzFace: a request of any bytes to any RPC is answered, by a cluster with stores and by one
// without, and the member goes on leading. own puts the member's cluster id into the request.
func FuzzFace(f *testing.F) {
	rpcs, seeds := procedures(), requestSeeds()
	for i, p := range rpcs {
		for _, own := range []bool{true, false} {
			f.Add(byte(i), own, []byte(nil))
		}
		f.Add(byte(i), false, []byte{0xff})
		for _, m := range seeds[p.path[strings.LastIndexByte(p.path, '/')+1:]] {
			data, err := m.Marshal()
			require.NoError(f, err)
			f.Add(byte(i), true, data)
			f.Add(byte(i), false, data)
		}
	}
	empty, full := startMember(f), startMember(f)
	bootstrap(f, full.Server)
	f.Fuzz(func(t *testing.T, at byte, own bool, data []byte) {
		for _, m := range []*member{empty, full} {
			req := slices.Clone(data)
			if own {
				req = append(req, m.header()...)
			}
			m.checkCall(t, rpcs[int(at)%len(rpcs)], req)
			members, err := m.call(t.Context(), procedure{path: "/pdpb.PD/GetMembers"}, nil)
			require.NoError(t, err)
			require.Equal(t, 1, members)
		}
	})
}

// TestSeedsAreOfRPCs: each seed is sent to an RPC, which answers it where the cluster has stores.
func TestSeedsAreOfRPCs(t *testing.T) {
	m, rpcs := startMember(t), procedures()
	bootstrap(t, m.Server)
	for name, list := range requestSeeds() {
		i := slices.IndexFunc(rpcs, func(p procedure) bool {
			return strings.HasSuffix(p.path, "/"+name)
		})
		require.GreaterOrEqual(t, i, 0, name)
		ok := rpcs[i].silent()
		for _, seed := range list {
			data, err := seed.Marshal()
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if rpcs[i].silent() {
				cancel()
			}
			answers, err := m.call(ctx, rpcs[i], append(data, m.header()...))
			cancel()
			ok = ok || err == nil && answers == 1
		}
		require.True(t, ok, name)
	}
}

// A barrier whose id cannot be kept as it is would stay until it expires: it is refused, and
// nothing is set.
func TestBarrierIDsAreText(t *testing.T) {
	m := startMember(t)
	bootstrap(t, m.Server)
	for name, req := range map[string]interface{ Marshal() ([]byte, error) }{
		"UpdateServiceGCSafePoint": &pdpb.UpdateServiceGCSafePointRequest{
			ServiceId: []byte{0xff}, TTL: 100, SafePoint: 20,
		},
		"SetGCBarrier": &pdpb.SetGCBarrierRequest{
			BarrierId: "\xff", TtlSeconds: 100, BarrierTs: 20,
		},
	} {
		data, err := req.Marshal()
		require.NoError(t, err)
		_, err = m.call(t.Context(), procedure{path: "/pdpb.PD/" + name},
			append(data, m.header()...))
		require.Equal(t, codes.InvalidArgument, status.Code(err), name)
	}
	req, got := encoded(m.header()), encoded{}
	require.NoError(t, m.conn.Invoke(t.Context(), "/pdpb.PD/GetGCState", &req, &got))
	state := new(pdpb.GetGCStateResponse)
	require.NoError(t, state.Unmarshal(got))
	require.Empty(t, state.GcState.GcBarriers)
}
