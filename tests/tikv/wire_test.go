package tikv

import (
	"context"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/metapb"
	"github.com/pingcap/kvproto/pkg/pdpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func dial(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.Dial(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// target is a client of the store that leads the region of a key, and the context of requests to
// it.
func (c *cluster) target(t *testing.T, key string) (tikvpb.TikvClient, *kvrpcpb.Context) {
	t.Helper()
	pd := pdpb.NewPDClient(dial(t, c.scheduler.addr))
	ctx := context.Background()
	h := &pdpb.RequestHeader{}
	var r *pdpb.GetRegionResponse
	require.Eventually(t, func() bool {
		ms, err := pd.GetMembers(ctx, &pdpb.GetMembersRequest{})
		if err != nil {
			return false // it has not started yet
		}
		h.ClusterId = ms.Header.ClusterId
		r, err = pd.GetRegion(ctx, &pdpb.GetRegionRequest{Header: h, RegionKey: []byte(key)})
		return err == nil && r.Leader != nil
	}, 30*time.Second, 20*time.Millisecond)
	st, err := pd.GetStore(ctx, &pdpb.GetStoreRequest{Header: h, StoreId: r.Leader.StoreId})
	require.NoError(t, err)
	return tikvpb.NewTikvClient(dial(t, st.Store.Address)), &kvrpcpb.Context{
		RegionId: r.Region.Id, RegionEpoch: r.Region.RegionEpoch, Peer: r.Leader,
	}
}

// Requests that are not for the store, or of no kind it knows, get TiKV's answers, and the stream
// goes on.
func TestOddRequests(t *testing.T) {
	c := startCluster(t, 1)
	store, good := c.target(t, "k")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	put := func(rc *kvrpcpb.Context, key string) *kvrpcpb.RawPutResponse {
		resp, err := store.RawPut(
			ctx,
			&kvrpcpb.RawPutRequest{Context: rc, Key: []byte(key), Value: []byte("v")},
		)
		require.NoError(t, err)
		return resp
	}
	with := func(change func(*kvrpcpb.Context)) *kvrpcpb.Context {
		rc := *good
		change(&rc)
		return &rc
	}
	require.Equal(t, &kvrpcpb.RawPutResponse{}, put(good, "k"))
	require.NotNil(t, put(nil, "k").RegionError)
	require.NotNil(
		t,
		put(
			with(func(c *kvrpcpb.Context) { c.RegionId = 1 << 40 }),
			"k",
		).RegionError.RegionNotFound,
	)
	require.NotNil(t, put(with(func(c *kvrpcpb.Context) {
		c.Peer = &metapb.Peer{Id: c.Peer.Id, StoreId: 1 << 40}
	}), "k").RegionError.StoreNotMatch)
	require.NotEmpty(t, put(with(func(c *kvrpcpb.Context) {
		c.RegionEpoch = &metapb.RegionEpoch{
			Version: c.RegionEpoch.Version + 7,
			ConfVer: c.RegionEpoch.ConfVer,
		}
	}), "k").RegionError.EpochNotMatch.CurrentRegions)
	require.NotNil(
		t,
		put(
			with(
				func(c *kvrpcpb.Context) {
					c.Peer = &metapb.Peer{Id: 1 << 40, StoreId: c.Peer.StoreId}
				},
			),
			"k",
		).RegionError,
	)
	require.NotEmpty(
		t,
		put(with(func(c *kvrpcpb.Context) { c.ApiVersion = kvrpcpb.APIVersion_V2 }), "k").Error,
	)
	require.Contains(t, put(good, "").Error, "empty")
	other, err := store.KvGet(ctx, &kvrpcpb.GetRequest{Context: good, Key: []byte("k")})
	require.NoError(t, err)
	require.Contains(t, other.Error.Abort, "mode raw")
	_, err = store.RawScan(ctx, &kvrpcpb.RawScanRequest{Context: good, Limit: 1 << 30})
	require.Equal(t, codes.InvalidArgument, status.Code(err))

	stream, err := store.BatchCommands(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.Send(&tikvpb.BatchCommandsRequest{}))
	type Request = tikvpb.BatchCommandsRequest_Request
	require.NoError(t, stream.Send(&tikvpb.BatchCommandsRequest{
		RequestIds: []uint64{1, 2, 3, 4, 5, 6},
		Requests: []*Request{
			{}, // of a kind that this version does not know
			{
				Cmd: &tikvpb.BatchCommandsRequest_Request_Get{
					Get: &kvrpcpb.GetRequest{Context: good, Key: []byte("k")},
				},
			},
			{
				Cmd: &tikvpb.BatchCommandsRequest_Request_RawGet{
					RawGet: &kvrpcpb.RawGetRequest{Context: good, Key: []byte("k")},
				},
			},
			{
				Cmd: &tikvpb.BatchCommandsRequest_Request_RawScan{
					RawScan: &kvrpcpb.RawScanRequest{Context: good, Limit: 1 << 30},
				},
			},
			{
				Cmd: &tikvpb.BatchCommandsRequest_Request_RawPut{
					RawPut: &kvrpcpb.RawPutRequest{Key: []byte("k")},
				},
			},
			{
				Cmd: &tikvpb.BatchCommandsRequest_Request_Empty{
					Empty: &tikvpb.BatchCommandsEmptyRequest{TestId: 9},
				},
			},
		},
	}))
	got := map[uint64]*tikvpb.BatchCommandsResponse_Response{}
	for len(got) < 5 {
		resp, err := stream.Recv()
		require.NoError(t, err)
		require.Len(t, resp.Responses, len(resp.RequestIds))
		for i, id := range resp.RequestIds {
			got[id] = resp.Responses[i]
		}
	}
	require.Contains(t, got[2].GetGet().Error.Abort, "mode raw")
	require.Equal(t, "v", string(got[3].GetRawGet().Value))
	require.Contains(t, got[4].GetRawScan().RegionError.Message, "limit")
	require.NotNil(t, got[5].GetRawPut().RegionError)
	require.EqualValues(t, 9, got[6].GetEmpty().TestId)
	require.NoError(t, stream.CloseSend())
	_, err = stream.Recv()
	require.Error(t, err)
	require.ErrorContains(t, err, "EOF")
}

// A store splits its regions at all keys that it is given.
func TestSplitRegion(t *testing.T) {
	c := startCluster(t, 1)
	store, rc := c.target(t, "")
	resp, err := store.SplitRegion(context.Background(), &kvrpcpb.SplitRegionRequest{
		Context: rc, SplitKeys: bytesOf("m", "c", "t"), IsRawKv: true,
	})
	require.NoError(t, err)
	require.Nil(t, resp.RegionError)
	require.Len(t, resp.Regions, 4)
	for i, start := range []string{"", "c", "m", "t"} {
		require.Equal(t, start, string(resp.Regions[i].StartKey))
	}
}
