package pdface_test

import (
	"context"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/pdpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What a request to each RPC must have, and what becomes of it. All that is not here is
// Unimplemented.
var (
	// forTheCluster are answered if the request names the cluster.
	forTheCluster = []string{
		"Tso", "IsBootstrapped", "IsSnapshotRecovering", "AllocID", "GetGCSafePoint",
		"UpdateGCSafePoint",
		"UpdateServiceGCSafePoint", "AdvanceGCSafePoint", "AdvanceTxnSafePoint", "SetGCBarrier",
		"DeleteGCBarrier",
		"GetGCState", "GetAllKeyspacesGCStates",
	}
	// forStores need a cluster with stores beside.
	forStores = []string{
		"GetStore", "GetAllStores", "GetRegion", "GetPrevRegion", "GetRegionByID", "QueryRegion",
		"ScanRegions",
		"BatchScanRegions", "ScatterRegion", "SplitRegions", "SplitAndScatterRegions",
		"GetOperator",
	}
	forAnyone = []string{
		"GetMembers", "GetClusterInfo", "LoadGlobalConfig", "MetaStorage/Get", "LoadKeyspace",
		"GetAllKeyspaces",
	}
	silent  = []string{"WatchGlobalConfig", "MetaStorage/Watch"}
	refused = []string{"StoreGlobalConfig", "MetaStorage/Put", "MetaStorage/Delete"}
)

func in(list []string, p procedure) bool {
	return slices.ContainsFunc(list, func(name string) bool {
		return strings.HasSuffix(p.path, "/"+name) || strings.HasSuffix(p.path, "."+name)
	})
}

// headerError is the error in an answer's header, which is its first field.
func headerError(t *testing.T, answer encoded) *pdpb.Error {
	t.Helper()
	if len(answer) == 0 || answer[0] != 1<<3|2 {
		return nil
	}
	size, n := binary.Uvarint(answer[1:])
	h := new(pdpb.ResponseHeader)
	require.NoError(t, h.Unmarshal(answer[1+n:1+n+int(size)]))
	return h.Error
}

// first sends a request and returns the first answer.
func (m *member) first(t *testing.T, p procedure, data encoded) (encoded, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var resp encoded
	if !p.streams {
		return resp, m.conn.Invoke(ctx, p.path, &data, &resp)
	}
	stream, err := m.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		p.path)
	require.NoError(t, err)
	require.NoError(t, stream.SendMsg(&data))
	require.NoError(t, stream.CloseSend())
	return resp, stream.RecvMsg(&resp)
}

// Each RPC of PD's services, without a header, with the id of another cluster, and where there are
// no stores.
func TestRequestsForNobody(t *testing.T) {
	empty, full := startMember(t), startMember(t)
	bootstrap(t, full.Server)
	otherCluster := field(1, []byte{1 << 3, 7})
	for _, p := range procedures() {
		for name, req := range map[string]encoded{
			"no header": nil, "another cluster": otherCluster,
		} {
			// no header
			if in(silent, p) || len(req) > 0 && strings.HasSuffix(p.path, "GlobalConfig") {
				continue
			}
			_, err := full.first(t, p, req)
			switch {
			case in(forTheCluster, p), in(forStores, p):
				require.Equal(t, codes.FailedPrecondition, status.Code(err), "%s, %s: %v", p.path,
					name, err)
				require.ErrorContains(t, err, "mismatch cluster id, need", p.path)
			case in(forAnyone, p):
				require.NoError(t, err, p.path)
			case in(refused, p):
				require.Equal(t, codes.PermissionDenied, status.Code(err), p.path)
			default: // clients look for the word
				require.Equal(t, codes.Unimplemented, status.Code(err), "%s, %s: %v", p.path, name,
					err)
				require.Contains(t, err.Error(), "Unimplemented", p.path)
			}
		}
		if in(forStores, p) {
			answer, err := empty.first(t, p, empty.header())
			require.NoError(t, err, p.path)
			require.Equal(t, pdpb.ErrorType_NOT_BOOTSTRAPPED, headerError(t, answer).GetType(),
				p.path)
			require.Contains(t, headerError(t, answer).Message, "not bootstrapped", p.path)
		}
		if in(silent, p) { // which stay open, and say nothing
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			answers, err := full.call(ctx, p, nil)
			cancel()
			require.Zero(t, answers)
			require.Equal(t, codes.DeadlineExceeded, status.Code(err), p.path)
		}
	}
}

func field(number byte, data []byte) encoded {
	return append(encoded{number<<3 | 2, byte(len(data))}, data...)
}

type message interface {
	Marshal() ([]byte, error)
	Unmarshal(data []byte) error
}

// ask sends a request for the member's cluster to an RPC of pdpb.PD.
func (m *member) ask(t *testing.T, method string, req, resp message) error {
	t.Helper()
	data, err := req.Marshal()
	require.NoError(t, err)
	answer, err := m.first(t, procedure{
		path: "/pdpb.PD/" + method, streams: method == "QueryRegion" || method == "Tso",
	}, append(data, m.header()...))
	if err == nil {
		require.NoError(t, resp.Unmarshal(answer))
	}
	return err
}

// state is what odd requests must not change.
func (m *member) state(t *testing.T) string {
	t.Helper()
	gc, regions, stores := new(pdpb.GetGCStateResponse), new(pdpb.ScanRegionsResponse),
		new(pdpb.GetAllStoresResponse)
	require.NoError(t, m.ask(t, "GetGCState", &pdpb.GetGCStateRequest{}, gc))
	require.NoError(t, m.ask(t, "ScanRegions", &pdpb.ScanRegionsRequest{}, regions))
	require.NoError(t, m.ask(t, "GetAllStores", &pdpb.GetAllStoresRequest{}, stores))
	require.Len(t, regions.Regions, 2)
	return gc.String() + regions.String() + stores.String()
}

// Regions and stores that are not there, and ranges that are none.
func TestOddRegionsAndStores(t *testing.T) {
	m := startMember(t)
	bootstrap(t, m.Server)
	before := m.state(t)
	region := new(pdpb.GetRegionResponse)
	for _, id := range []uint64{0, 7, 1<<64 - 1} {
		require.NoError(t,
			m.ask(t, "GetRegionByID", &pdpb.GetRegionByIDRequest{RegionId: id}, region))
		require.Nil(t, region.Region)
		require.Nil(t, region.Header.Error)
		err := m.ask(t, "GetStore", &pdpb.GetStoreRequest{StoreId: id}, new(pdpb.GetStoreResponse))
		require.ErrorContains(t, err, "invalid store ID") // clients look for both
		require.ErrorContains(t, err, "not found")
		op := new(pdpb.GetOperatorResponse)
		require.NoError(t, m.ask(t, "GetOperator", &pdpb.GetOperatorRequest{RegionId: id}, op))
		require.Equal(t, pdpb.ErrorType_REGION_NOT_FOUND, op.Header.Error.GetType())
		scattered := new(pdpb.ScatterRegionResponse)
		require.NoError(t,
			m.ask(t, "ScatterRegion", &pdpb.ScatterRegionRequest{RegionsId: []uint64{id}},
				scattered))
		require.Equal(t, []uint64{id}, scattered.FailedRegionsId)
		require.Zero(t, scattered.FinishedPercentage)
		old := &pdpb.ScatterRegionRequest{RegionId: id}
		scattered.Reset()
		require.NoError(t, m.ask(t, "ScatterRegion", old, scattered))
		require.Equal(t, pdpb.ErrorType_REGION_NOT_FOUND, scattered.Header.Error.GetType())
	}
	require.NoError(t, m.ask(t, "GetPrevRegion", &pdpb.GetRegionRequest{}, region))
	require.Nil(t, region.Region, "nothing is before the first region")

	scan := new(pdpb.ScanRegionsResponse)
	require.NoError(t, m.ask(t, "ScanRegions", &pdpb.ScanRegionsRequest{
		StartKey: []byte("z"), EndKey: []byte("a"),
	}, scan))
	require.Empty(t, scan.Regions)
	scan.Reset()
	require.NoError(t, m.ask(t, "ScanRegions", &pdpb.ScanRegionsRequest{Limit: -5}, scan))
	require.Len(t, scan.Regions, 2)
	batch := new(pdpb.BatchScanRegionsResponse)
	require.NoError(t, m.ask(t, "BatchScanRegions", &pdpb.BatchScanRegionsRequest{}, batch))
	require.Empty(t, batch.Regions)
	err := m.ask(t, "BatchScanRegions", &pdpb.BatchScanRegionsRequest{Ranges: []*pdpb.KeyRange{
		{StartKey: []byte("z"), EndKey: []byte("a")},
	}}, batch)
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	split := new(pdpb.SplitRegionsResponse)
	require.NoError(t, m.ask(t, "SplitRegions", &pdpb.SplitRegionsRequest{}, split))
	require.EqualValues(t, 100, split.FinishedPercentage)
	require.NoError(t,
		m.ask(t, "SplitRegions", &pdpb.SplitRegionsRequest{SplitKeys: [][]byte{nil, []byte("m")}},
			split))
	require.Equal(t, []uint64{1000, 1500}, split.RegionsId, "the regions that begin there already")
	require.Equal(t, before, m.state(t))
}

// Safe points and barriers that are none, and keyspaces that are not there, change nothing.
func TestOddSafePoints(t *testing.T) {
	m := startMember(t)
	bootstrap(t, m.Server)
	require.NoError(t, m.ask(t, "AdvanceTxnSafePoint",
		&pdpb.AdvanceTxnSafePointRequest{Target: 100}, new(pdpb.AdvanceTxnSafePointResponse)))
	require.NoError(t, m.ask(t, "AdvanceGCSafePoint",
		&pdpb.AdvanceGCSafePointRequest{Target: 50}, new(pdpb.AdvanceGCSafePointResponse)))
	before := m.state(t)
	elsewhere := &pdpb.KeyspaceScope{Keyspace: &pdpb.KeyspaceScope_KeyspaceId{KeyspaceId: 5}}
	for _, tc := range []struct {
		method    string
		req, resp message
		code      codes.Code
	}{
		{
			"AdvanceTxnSafePoint", &pdpb.AdvanceTxnSafePointRequest{Target: 99},
			new(pdpb.AdvanceTxnSafePointResponse), codes.FailedPrecondition,
		},
		{
			"AdvanceGCSafePoint", &pdpb.AdvanceGCSafePointRequest{Target: 49},
			new(pdpb.AdvanceGCSafePointResponse), codes.FailedPrecondition,
		},
		{
			"AdvanceGCSafePoint",
			&pdpb.AdvanceGCSafePointRequest{Target: 60, KeyspaceScope: elsewhere},
			new(pdpb.AdvanceGCSafePointResponse), codes.InvalidArgument,
		},
		{
			"AdvanceTxnSafePoint",
			&pdpb.AdvanceTxnSafePointRequest{Target: 200, KeyspaceScope: elsewhere},
			new(pdpb.AdvanceTxnSafePointResponse), codes.InvalidArgument,
		},
		{
			"SetGCBarrier", &pdpb.SetGCBarrierRequest{BarrierTs: 200, TtlSeconds: 9},
			new(pdpb.SetGCBarrierResponse), codes.InvalidArgument,
		},
		{
			"SetGCBarrier", &pdpb.SetGCBarrierRequest{BarrierId: "b", BarrierTs: 200},
			new(pdpb.SetGCBarrierResponse), codes.InvalidArgument,
		},
		{
			"SetGCBarrier",
			&pdpb.SetGCBarrierRequest{BarrierId: "gc_worker", BarrierTs: 200, TtlSeconds: 9},
			new(pdpb.SetGCBarrierResponse), codes.InvalidArgument,
		},
		{
			"SetGCBarrier", &pdpb.SetGCBarrierRequest{BarrierId: "b", BarrierTs: 99, TtlSeconds: 9},
			new(pdpb.SetGCBarrierResponse), codes.FailedPrecondition,
		},
		{
			"DeleteGCBarrier", &pdpb.DeleteGCBarrierRequest{BarrierId: "absent"},
			new(pdpb.DeleteGCBarrierResponse), codes.OK,
		},
		{
			"UpdateGCSafePoint", &pdpb.UpdateGCSafePointRequest{SafePoint: 1},
			new(pdpb.UpdateGCSafePointResponse), codes.OK,
		},
		{
			"UpdateServiceGCSafePoint",
			&pdpb.UpdateServiceGCSafePointRequest{
				ServiceId: []byte("gc_worker"), TTL: 5, SafePoint: 200,
			}, new(pdpb.UpdateServiceGCSafePointResponse), codes.InvalidArgument,
		},
		{
			"UpdateServiceGCSafePoint",
			&pdpb.UpdateServiceGCSafePointRequest{ServiceId: []byte("s"), TTL: 5, SafePoint: 99},
			new(pdpb.UpdateServiceGCSafePointResponse), codes.OK,
		},
		{
			"UpdateServiceGCSafePoint",
			&pdpb.UpdateServiceGCSafePointRequest{ServiceId: []byte("s"), TTL: -5, SafePoint: 200},
			new(pdpb.UpdateServiceGCSafePointResponse), codes.OK,
		},
		{
			"GetGCState", &pdpb.GetGCStateRequest{KeyspaceScope: elsewhere},
			new(pdpb.GetGCStateResponse), codes.InvalidArgument,
		},
	} {
		err := m.ask(t, tc.method, tc.req, tc.resp)
		require.Equal(t, tc.code, status.Code(err), "%s %v: %v", tc.method, tc.req, err)
		require.Equal(t, before, m.state(t), "%s %v", tc.method, tc.req)
	}
}

// A stream goes on after a request about nothing, and ends with one that it may not answer; another
// one works.
func TestOddRequestsOnStreams(t *testing.T) {
	m := startMember(t)
	bootstrap(t, m.Server)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	open := func(
		path string,
	) (send func(req message, header []byte), receive func(resp message) error) {
		t.Helper()
		stream, err := m.conn.NewStream(ctx,
			&grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path)
		require.NoError(t, err)
		send = func(req message, header []byte) {
			t.Helper()
			data, err := req.Marshal()
			require.NoError(t, err)
			out := append(encoded(data), header...)
			require.NoError(t, stream.SendMsg(&out))
		}
		return send, func(resp message) error {
			var in encoded
			if err := stream.RecvMsg(&in); err != nil {
				return err
			}
			return resp.Unmarshal(in)
		}
	}
	var answer pdpb.QueryRegionResponse
	send, receive := open("/pdpb.PD/QueryRegion")
	send(&pdpb.QueryRegionRequest{}, m.header())
	require.NoError(t, receive(&answer))
	require.Empty(t, answer.RegionsById)
	send(&pdpb.QueryRegionRequest{Ids: []uint64{0, 7}, PrevKeys: [][]byte{nil}}, m.header())
	require.NoError(t, receive(&answer))
	require.Empty(t, answer.RegionsById)
	require.Equal(t, []uint64{0}, answer.PrevKeyIdMap)
	send(&pdpb.QueryRegionRequest{Keys: [][]byte{nil}}, m.header())
	answer.Reset()
	require.NoError(t, receive(&answer))
	require.Equal(t, []uint64{1000}, answer.KeyIdMap)
	send(&pdpb.QueryRegionRequest{Ids: make([]uint64, 10_001)}, m.header())
	require.Equal(t, codes.InvalidArgument, status.Code(receive(&answer)))
	send, receive = open("/pdpb.PD/QueryRegion")
	send(&pdpb.QueryRegionRequest{}, nil)
	require.Equal(t, codes.FailedPrecondition, status.Code(receive(&answer)))

	var ts pdpb.TsoResponse
	for _, count := range []uint32{0, 1<<32 - 1} {
		send, receive = open("/pdpb.PD/Tso")
		send(&pdpb.TsoRequest{Count: 3}, m.header())
		require.NoError(t, receive(&ts))
		require.EqualValues(t, 3, ts.Count)
		require.GreaterOrEqual(t, ts.Timestamp.Logical, int64(2), "the last one of the three")
		send(&pdpb.TsoRequest{Count: count}, m.header())
		require.ErrorContains(t, receive(&ts), "count must be between")
	}
}

// The page for users names each RPC of pdpb.PD that is not Unimplemented.
func TestEachRPCIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../../docs/tikv.md")
	require.NoError(t, err)
	for _, p := range procedures() {
		name, ours := strings.CutPrefix(p.path, "/pdpb.PD/")
		if ours &&
			(in(forTheCluster, p) || in(forStores, p) || in(forAnyone, p) || in(silent, p) ||
				in(refused, p)) {
			require.Regexp(t, `(?m)^\|.*\b`+name+`\b.*\|`, string(page))
		}
	}
}
