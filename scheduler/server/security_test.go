package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// With TLS and a token everything between members is secured too: what a follower passes on, by gRPC
// and by HTTP, and the copy of the regions, which only members of the cluster get.
func TestMembersWithTLS(t *testing.T) {
	sec, secure := servertest.Certificate(t)
	members := servertest.StartCluster(t, 3, func(c *config.Config) {
		c.Security, c.API.Token = sec, "secret"
		for _, urls := range []*string{&c.ClientUrls, &c.PeerUrls, &c.InitialCluster} {
			*urls = strings.ReplaceAll(*urls, "http://", "https://")
		}
	})
	leader, followers := leaderOf(t, members)
	c, err := client.New(t.Context(), []string{followers[0].ClientURL()}, client.WithTLS(secure))
	require.NoError(t, err)
	defer c.Close()
	first := &metapb.Region{
		Id: 1000, RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1}, Peers: []*metapb.Peer{{Id: 1001, StoreId: 1}},
	}
	require.NoError(t, c.Bootstrap(t.Context(), &metapb.Store{Id: 1, Address: "s1"}, first))
	c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{Region: first, Leader: first.Peers[0], Term: 6})

	conn, err := grpc.NewClient("passthrough:///"+followers[0].ClientAddr(),
		grpc.WithTransportCredentials(credentials.NewTLS(secure)), grpc.WithDefaultCallOptions(codec.CallOption()))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	f := schedulerpb.NewSchedulerClient(conn)
	h := &schedulerpb.RequestHeader{ClusterId: leader.ClusterID()}
	id, err := f.AllocID(t.Context(), &schedulerpb.AllocIDRequest{Header: h})
	require.NoError(t, err, "forwarded")
	require.NotZero(t, id.Id)
	stream, err := f.Tso(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&schedulerpb.TsoRequest{Header: h, Count: 5}))
	ts, err := stream.Recv()
	require.NoError(t, err)
	require.EqualValues(t, 5, ts.Count)
	require.NoError(t, stream.CloseSend())

	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: secure}}
	get := func(url string, headers ...string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		require.NoError(t, err)
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := web.Do(req)
		require.NoError(t, err)
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	require.Equal(t, 200, get(followers[1].ClientURL()+"/api/v1/stores"), "passed on")
	for _, s := range followers {
		require.Eventually(t, func() bool { return s.Cluster().Core().Region(1000) != nil }, waitFor, tick, "copied")
	}
	regions := leader.ClientURL() + "/internal/regions"
	cluster := fmt.Sprint(leader.ClusterID())
	require.Equal(t, 403, get(regions))
	require.Equal(t, 403, get(regions, "Tinykv-Cluster-Id", "1", "Authorization", "Bearer secret"))
	require.Equal(t, 401, get(regions, "Tinykv-Cluster-Id", cluster))
	require.Equal(t, 200, get(regions, "Tinykv-Cluster-Id", cluster, "Authorization", "Bearer secret"))

	_, err = schedulerpb.NewSchedulerClient(conn).GetMembers(t.Context(), &schedulerpb.GetMembersRequest{})
	require.NoError(t, err)
	_, err = servertest.DirectClient(t, leader.ClientAddr()).GetMembers(t.Context(), &schedulerpb.GetMembersRequest{})
	require.Error(t, err, "without TLS nobody is served")
}
