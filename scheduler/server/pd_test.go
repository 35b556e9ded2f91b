package server_test

import (
	"context"
	"io"
	"math"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/keyspacepb"
	"github.com/pingcap/kvproto/pkg/meta_storagepb"
	kvmetapb "github.com/pingcap/kvproto/pkg/metapb"
	"github.com/pingcap/kvproto/pkg/pdpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// pdConn speaks to a member as clients of TiKV do, through grpc's own codec.
func pdConn(t *testing.T, s *server.Server) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(
		"passthrough:///"+s.ClientAddr(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// twoRegions has the cluster know two regions, [, m) and [m, ), led by the first store.
func twoRegions(t *testing.T, s *server.Server, first *metapb.Region) {
	t.Helper()
	left, right := *first, *first
	left.EndKey, right.StartKey, right.Id = []byte("m"), []byte("m"), first.Id+500
	for _, r := range []*metapb.Region{&left, &right} {
		r.RegionEpoch = &metapb.RegionEpoch{Version: 9, ConfVer: 1}
		require.NoError(t, s.Cluster().HandleRegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
			Region: r, Leader: first.Peers[0], Term: 6,
		}))
	}
}

// Clients of TiKV find regions and stores at any member.
func TestPDFace(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	leader, followers := leaderOf(t, members)
	_, first := bootstrapped(t, leader, 3)
	twoRegions(t, leader, first)
	h := &pdpb.RequestHeader{ClusterId: leader.ClusterID()}
	for name, s := range map[string]*server.Server{"leader": leader, "follower": followers[0]} {
		t.Run(name, func(t *testing.T) {
			conn := pdConn(t, s)
			pd := pdpb.NewPDClient(conn)
			ms, err := pd.GetMembers(t.Context(), &pdpb.GetMembersRequest{})
			require.NoError(t, err)
			require.Len(t, ms.Members, 3)
			require.Equal(t, leader.Name(), ms.Leader.Name)
			require.NotEmpty(t, ms.Leader.ClientUrls)
			require.NotZero(t, ms.Leader.MemberId)
			require.Equal(t, leader.ClusterID(), ms.Header.ClusterId)
			info, err := pd.GetClusterInfo(t.Context(), &pdpb.GetClusterInfoRequest{})
			require.NoError(t, err)
			require.Equal(t, []pdpb.ServiceMode{pdpb.ServiceMode_PD_SVC_MODE}, info.ServiceModes)
			testPDRegions(t, pd, h)
			testPDStores(t, pd, h)
			testPDTso(t, pd, h)
			testPDCompanions(t, conn, s)
		})
	}
}

func testPDRegions(t *testing.T, pd pdpb.PDClient, h *pdpb.RequestHeader) {
	r, err := pd.GetRegion(
		t.Context(),
		&pdpb.GetRegionRequest{Header: h, RegionKey: []byte("z"), NeedBuckets: true},
	)
	require.NoError(t, err)
	require.Equal(t, []byte("m"), r.Region.StartKey)
	require.NotNil(t, r.Leader)
	require.EqualValues(t, 9, r.Region.RegionEpoch.Version)
	prev, err := pd.GetPrevRegion(
		t.Context(),
		&pdpb.GetRegionRequest{Header: h, RegionKey: []byte("m")},
	)
	require.NoError(t, err)
	require.Equal(t, []byte("m"), prev.Region.EndKey)
	byID, err := pd.GetRegionByID(
		t.Context(),
		&pdpb.GetRegionByIDRequest{Header: h, RegionId: r.Region.Id},
	)
	require.NoError(t, err)
	require.Equal(t, r.Region, byID.Region)
	unknown, err := pd.GetRegionByID(
		t.Context(),
		&pdpb.GetRegionByIDRequest{Header: h, RegionId: 1 << 40},
	)
	require.NoError(t, err)
	require.Nil(t, unknown.Region)
	require.Nil(t, unknown.Header.Error)

	//lint:ignore SA1019 clients of this age call it
	scan, err := pd.ScanRegions(t.Context(), &pdpb.ScanRegionsRequest{Header: h})
	require.NoError(t, err)
	require.Len(t, scan.Regions, 2)
	require.Len(t, scan.RegionMetas, 2)
	require.Len(t, scan.Leaders, 2)
	batch, err := pd.BatchScanRegions(
		t.Context(),
		&pdpb.BatchScanRegionsRequest{Header: h, ContainAllKeyRange: true,
			Ranges: []*pdpb.KeyRange{
				{StartKey: []byte("a"), EndKey: []byte("b")},
				{StartKey: []byte("c")},
			}},
	)
	require.NoError(t, err)
	require.Nil(t, batch.Header.Error)
	require.Len(t, batch.Regions, 2)

	q, err := pd.QueryRegion(t.Context())
	require.NoError(t, err)
	require.NoError(
		t,
		q.Send(
			&pdpb.QueryRegionRequest{
				Header:   h,
				Keys:     [][]byte{[]byte("a"), []byte("n"), []byte("b")},
				PrevKeys: [][]byte{[]byte("m"), nil},
				Ids:      []uint64{1 << 40},
			},
		),
	)
	ans, err := q.Recv()
	require.NoError(t, err)
	left, right := prev.Region.Id, r.Region.Id
	require.Equal(t, []uint64{left, right, left}, ans.KeyIdMap)
	require.Equal(t, []uint64{left, 0}, ans.PrevKeyIdMap)
	require.Len(t, ans.RegionsById, 2)
	require.Equal(t, r.Region, ans.RegionsById[right].Region)
	require.NoError(t, q.CloseSend())
	_, err = q.Recv()
	require.ErrorIs(t, err, io.EOF)

	_, err = pd.GetRegion(
		t.Context(),
		&pdpb.GetRegionRequest{Header: &pdpb.RequestHeader{ClusterId: 7}},
	)
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
	require.ErrorContains(t, err, "mismatch cluster id, need")
}

func testPDStores(t *testing.T, pd pdpb.PDClient, h *pdpb.RequestHeader) {
	all, err := pd.GetAllStores(t.Context(), &pdpb.GetAllStoresRequest{Header: h})
	require.NoError(t, err)
	require.Len(t, all.Stores, 3)
	one, err := pd.GetStore(
		t.Context(),
		&pdpb.GetStoreRequest{Header: h, StoreId: all.Stores[0].Id},
	)
	require.NoError(t, err)
	require.Equal(t, kvmetapb.NodeState_Serving, one.Store.NodeState)
	require.Equal(t, "8.5.0", one.Store.Version)
	require.NotEmpty(t, one.Store.Address)
	_, err = pd.GetStore(t.Context(), &pdpb.GetStoreRequest{Header: h, StoreId: 1 << 40})
	require.ErrorContains(t, err, "invalid store ID")
	require.ErrorContains(t, err, "not found")
	id, err := pd.AllocID(t.Context(), &pdpb.AllocIDRequest{Header: h})
	require.NoError(t, err)
	require.NotZero(t, id.Id)
	op, err := pd.GetOperator(t.Context(), &pdpb.GetOperatorRequest{Header: h, RegionId: 1 << 40})
	require.NoError(t, err)
	require.Equal(t, pdpb.ErrorType_REGION_NOT_FOUND, op.Header.Error.Type)
	_, err = pd.AskBatchSplit(t.Context(), &pdpb.AskBatchSplitRequest{Header: h})
	require.Equal(t, codes.Unimplemented, status.Code(err))
}

func testPDTso(t *testing.T, pd pdpb.PDClient, h *pdpb.RequestHeader) {
	tso, err := pd.Tso(t.Context())
	require.NoError(t, err)
	var last int64
	for range 3 {
		require.NoError(t, tso.Send(&pdpb.TsoRequest{Header: h, Count: 5}))
		ts, err := tso.Recv()
		require.NoError(t, err)
		require.EqualValues(t, 5, ts.Count)
		now := ts.Timestamp.Physical<<18 | ts.Timestamp.Logical
		require.Greater(t, now-4, last)
		last = now
	}
	require.NoError(t, tso.CloseSend())
	_, err = tso.Recv()
	require.ErrorIs(t, err, io.EOF)
}

func testPDCompanions(t *testing.T, conn *grpc.ClientConn, s *server.Server) {
	ms := meta_storagepb.NewMetaStorageClient(conn)
	got, err := ms.Get(
		t.Context(),
		&meta_storagepb.GetRequest{Key: []byte("/ms/1/router/registry/")},
	)
	require.NoError(t, err)
	require.Empty(t, got.Kvs)
	require.Equal(t, s.ClusterID(), got.Header.ClusterId)
	_, err = ms.Put(t.Context(), &meta_storagepb.PutRequest{Key: []byte("k")})
	require.Equal(t, codes.PermissionDenied, status.Code(err))
	ks := keyspacepb.NewKeyspaceClient(conn)
	k, err := ks.LoadKeyspace(t.Context(), &keyspacepb.LoadKeyspaceRequest{Name: "DEFAULT"})
	require.NoError(t, err)
	require.Equal(t, "DEFAULT", k.Keyspace.Name)
	k, err = ks.LoadKeyspace(t.Context(), &keyspacepb.LoadKeyspaceRequest{Name: "other"})
	require.NoError(t, err)
	require.Equal(t, pdpb.ErrorType_ENTRY_NOT_FOUND, k.Header.Error.Type)
}

// The safe points keep their order, whichever of the two generations of calls moves them.
func TestPDSafePoints(t *testing.T) {
	s := servertest.StartTest(t)
	bootstrapped(t, s, 1)
	pd := pdpb.NewPDClient(pdConn(t, s))
	h := &pdpb.RequestHeader{ClusterId: s.ClusterID()}
	ctx := context.Background()
	_, err := pd.SetGCBarrier(
		ctx,
		&pdpb.SetGCBarrierRequest{Header: h, BarrierId: "backup", BarrierTs: 100, TtlSeconds: 1000},
	)
	require.NoError(t, err)
	adv, err := pd.AdvanceTxnSafePoint(
		ctx,
		&pdpb.AdvanceTxnSafePointRequest{Header: h, Target: 150},
	)
	require.NoError(t, err)
	require.EqualValues(t, 100, adv.NewTxnSafePoint)
	require.Contains(t, adv.BlockerDescription, "backup")
	_, err = pd.SetGCBarrier(
		ctx,
		&pdpb.SetGCBarrierRequest{Header: h, BarrierId: "late", BarrierTs: 99, TtlSeconds: 1000},
	)
	require.ErrorContains(t, err, "behind the txn safe point")
	_, err = pd.AdvanceTxnSafePoint(ctx, &pdpb.AdvanceTxnSafePointRequest{Header: h, Target: 90})
	require.ErrorContains(t, err, "smaller value")

	svc, err := pd.UpdateServiceGCSafePoint(ctx, &pdpb.UpdateServiceGCSafePointRequest{
		Header: h, ServiceId: []byte("cdc"), TTL: 60, SafePoint: 120,
	})
	require.NoError(t, err)
	require.EqualValues(t, 100, svc.MinSafePoint)
	_, err = pd.DeleteGCBarrier(ctx, &pdpb.DeleteGCBarrierRequest{Header: h, BarrierId: "backup"})
	require.NoError(t, err)
	svc, err = pd.UpdateServiceGCSafePoint(ctx, &pdpb.UpdateServiceGCSafePointRequest{
		Header: h, ServiceId: []byte("gc_worker"), TTL: math.MaxInt64, SafePoint: 200,
	})
	require.NoError(t, err)
	require.EqualValues(t, 120, svc.MinSafePoint, "as far as the other service lets it")

	gc, err := pd.UpdateGCSafePoint(ctx, &pdpb.UpdateGCSafePointRequest{Header: h, SafePoint: 110})
	require.NoError(t, err)
	require.EqualValues(t, 110, gc.NewSafePoint)
	st, err := pd.GetGCState(ctx, &pdpb.GetGCStateRequest{Header: h})
	require.NoError(t, err)
	require.EqualValues(t, 120, st.GcState.TxnSafePoint)
	require.EqualValues(t, 110, st.GcState.GcSafePoint)
	require.Len(t, st.GcState.GcBarriers, 1)
	_, err = pd.AdvanceGCSafePoint(ctx, &pdpb.AdvanceGCSafePointRequest{Header: h, Target: 109})
	require.ErrorContains(t, err, "smaller value")
}

// Stores raise the safe points in their own way, and see that a client takes care of them. No safe
// point passes a barrier, or comes near the time of now.
func TestSafePointsOfStores(t *testing.T) {
	s := servertest.StartTest(t)
	bootstrapped(t, s, 1)
	pd := pdpb.NewPDClient(pdConn(t, s))
	c, err := client.New(t.Context(), []string{s.ClientAddr()})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	h := &pdpb.RequestHeader{ClusterId: s.ClusterID()}
	ctx := t.Context()
	advance := func(txnTarget, gcTarget, txn, gc uint64) {
		t.Helper()
		gotTxn, gotGC, err := c.AdvanceSafePoints(ctx, txnTarget, gcTarget)
		require.NoError(t, err)
		require.Equal(t, []uint64{txn, gc}, []uint64{gotTxn, gotGC})
	}
	advance(50, 0, 50, 0)
	advance(0, 60, 50, 50)
	advance(40, 0, 50, 50)
	st, err := c.GetGCState(ctx)
	require.NoError(t, err)
	require.False(t, st.ByClient)

	_, err = pd.SetGCBarrier(ctx,
		&pdpb.SetGCBarrierRequest{
			Header: h, BarrierId: "backup", BarrierTs: 100, TtlSeconds: math.MaxInt64,
		})
	require.NoError(t, err)
	advance(150, 150, 100, 100)
	gc, err := pd.UpdateGCSafePoint(ctx, &pdpb.UpdateGCSafePointRequest{Header: h, SafePoint: 200})
	require.NoError(t, err)
	require.EqualValues(t, 100, gc.NewSafePoint)
	st, err = c.GetGCState(ctx)
	require.NoError(t, err)
	require.True(t, st.ByClient)
	require.Less(t, st.ClientAgoMs, uint64(60_000))
	require.Equal(t, []*schedulerpb.GCBarrier{{Id: "backup", Ts: 100, TtlSeconds: math.MaxInt64}},
		st.Barriers)
	require.EqualValues(t, 100, st.TxnSafePoint)

	_, err = pd.DeleteGCBarrier(ctx, &pdpb.DeleteGCBarrierRequest{Header: h, BarrierId: "backup"})
	require.NoError(t, err)
	now := uint64(time.Now().UnixMilli())
	for _, far := range []uint64{math.MaxUint64, (now + 3_600_000) << 18} {
		gc, err = pd.UpdateGCSafePoint(ctx,
			&pdpb.UpdateGCSafePointRequest{Header: h, SafePoint: far})
		require.NoError(t, err)
		require.LessOrEqual(t, gc.NewSafePoint>>18, uint64(time.Now().UnixMilli())-60_000)
		adv, err := pd.AdvanceTxnSafePoint(ctx,
			&pdpb.AdvanceTxnSafePointRequest{Header: h, Target: far})
		require.NoError(t, err)
		require.LessOrEqual(t, adv.NewTxnSafePoint>>18, uint64(time.Now().UnixMilli())-60_000)
	}
	require.GreaterOrEqual(t, gc.NewSafePoint>>18, now-60_000)
}
