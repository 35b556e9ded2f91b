package server_test

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// answers serves as a store of the given names would, at addr or at a free address.
func answers(t *testing.T, addr string, names ...string) string {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr) //nolint:noctx // of the test
	require.NoError(t, err)
	h, s := health.NewServer(), grpc.NewServer()
	for _, n := range names {
		h.SetServingStatus(n, healthpb.HealthCheckResponse_SERVING)
	}
	healthpb.RegisterHealthServer(s, h)
	go func() { _ = s.Serve(l) }() // ends with the test
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func storeOf(t *testing.T, s *server.Server, id string) map[string]any {
	t.Helper()
	return call(t, s, "GET", "/stores/"+id, "", 200)
}

// TestNewStoresAreCalledBack: a store gets regions once this very store was reached at the address
// that it tells.
func TestNewStoresAreCalledBack(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3, func(c *config.Config) { c.VerifyStores = true })
	leader, _ := leaderOf(t, members)
	c, err := client.New(t.Context(), []string{leader.ClientURL()})
	require.NoError(t, err)
	defer c.Close()
	name := func(store uint64) string { return security.StoreService(leader.ClusterID(), store, 7) }
	first := &metapb.Region{
		Id: 1000, RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		Peers: []*metapb.Peer{{Id: 1001, StoreId: 1}},
	}
	require.NoError(t,
		c.Bootstrap(t.Context(), &metapb.Store{Id: 1, Address: "127.0.0.1:1"}, first))
	nowhere := servertest.FreeAddr(t)
	for id, addr := range map[uint64]string{
		2: nowhere,
		3: answers(t, "", security.StoreService(leader.ClusterID()+1, 3, 7), name(4)),
		4: answers(t, "", security.StoreService(leader.ClusterID(), 4, 6)),
		5: answers(t, "", name(5)),
	} {
		require.NoError(t,
			c.PutStore(t.Context(), &metapb.Store{Id: id, Address: addr, StartTimestamp: 7}))
	}
	beat := func() {
		c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
			Region: first, Leader: first.Peers[0], Term: 6, ApproximateSize: 1 << 20,
		})
	}
	targets := make(chan uint64, 100)
	c.SetRegionHeartbeatHandler(func(r *schedulerpb.RegionHeartbeatResponse) {
		if cp := r.GetChangePeer(); cp != nil {
			targets <- cp.Peer.StoreId
		}
	})
	beat()
	require.EqualValues(t, 5, <-targets, "the only one that was reached")
	require.Eventually(t, func() bool {
		return storeOf(t, leader, "5")["unproven"] == nil
	}, waitFor, tick)
	for id, why := range map[string]string{
		"2": "nobody answers", "3": "another process", "4": "another run",
	} {
		require.Eventually(t, func() bool {
			said, _ := storeOf(t, leader, id)["unproven"].(string)
			return said != "" && said != "not called back yet"
		}, waitFor, tick)
		require.Contains(t, storeOf(t, leader, id)["unproven"], why)
		require.Equal(t, "address-unproven", storeOf(t, leader, id)["not_target"])
	}
	require.Nil(t, storeOf(t, leader, "1")["unproven"],
		"it has regions: that nobody answers may be the network")

	// Another leader asks again.
	leader.Resign()
	require.Eventually(t, func() bool { return !leader.IsLeader() }, waitFor, tick)
	next, _ := leaderOf(t, members)
	require.Eventually(t, func() bool {
		return storeOf(t, next, "5")["unproven"] == nil
	}, waitFor, tick)
	require.NotNil(t, storeOf(t, next, "3")["unproven"])

	// And when it comes up after all, it is found.
	answers(t, nowhere, name(2))
	require.Eventually(t, func() bool {
		return storeOf(t, next, "2")["unproven"] == nil
	}, waitFor, tick)
}

// TestAddressesThatNobodyReaches are not taken from any store.
func TestAddressesThatNobodyReaches(t *testing.T) {
	s := servertest.StartTest(t)
	c, err := client.New(t.Context(), []string{s.ClientURL()})
	require.NoError(t, err)
	defer c.Close()
	for _, addr := range []string{"", ":20160", "0.0.0.0:20160", "[::]:20160"} {
		require.ErrorContains(t, c.Bootstrap(t.Context(), &metapb.Store{Id: 1, Address: addr}, nil),
			"nobody can reach")
	}
	require.NoError(t, c.Bootstrap(t.Context(), &metapb.Store{Id: 1, Address: "s1"}, nil))
	for _, addr := range []string{"", ":20160", "0.0.0.0:20160", "[::]:20160"} {
		require.ErrorContains(t, c.PutStore(t.Context(), &metapb.Store{Id: 2, Address: addr}),
			"nobody can reach")
	}
}
