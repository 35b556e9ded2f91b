package server_test

import (
	"fmt"
	"net/url"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

// With memory as the storage a member starts without etcd and does everything else.
func TestMemoryBackend(t *testing.T) {
	s := servertest.StartTest(t, func(c *config.Config) { c.Storage.Backend = "memory" })
	c, first := bootstrapped(t, s, 3)
	f := &fakeStores{
		t: t, region: first, leader: first.Peers[0], c: c, seen: make(chan *metapb.Region, 10),
	}
	c.SetRegionHeartbeatHandler(f.onCommand)
	f.heartbeat()
	require.Len(t, (<-f.seen).Peers, 2)
	require.Len(t, (<-f.seen).Peers, 3)
	_, _, err := c.GetTS(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 3, call(t, s, "GET", "/stores", "", 200)["count"])
	require.Len(t, call(t, s, "GET", "/members", "", 200)["members"], 1)
	call(t, s, "DELETE", "/members/nobody", "", 404)
}

// Members that keep their state in an etcd cluster of somebody else elect, forward, sync and hand
// over as members with embedded etcd do.
func TestExternalEtcdBackend(t *testing.T) {
	ec := embed.NewConfig()
	ec.Dir, ec.UnsafeNoFsync, ec.TickMs, ec.ElectionMs = t.TempDir(), true, 10, 100
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	any, err := url.Parse("http://127.0.0.1:0")
	require.NoError(t, err)
	ec.ListenClientUrls, ec.ListenPeerUrls = []url.URL{*any}, []url.URL{*any}
	ec.AdvertisePeerUrls, ec.InitialCluster = []url.URL{*any}, "default=http://127.0.0.1:0"
	e, err := embed.StartEtcd(ec)
	require.NoError(t, err)
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()

	var members []*server.Server
	for i := range 2 {
		cfg := servertest.Config(t)
		cfg.Name = fmt.Sprintf("x%d", i+1)
		cfg.Storage = config.Storage{
			Backend: "etcd", Endpoints: []string{e.Clients[0].Addr().String()},
		}
		members = append(members, servertest.Start(t, cfg, nil))
	}
	require.Equal(t, members[0].ClusterID(), members[1].ClusterID())
	leader, followers := leaderOf(t, members)
	c, first := bootstrapped(t, leader, 3)
	c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
		Region: first, Leader: first.Peers[0], Term: 6,
	})
	require.Eventually(t, func() bool {
		r := followers[0].Cluster().Core().Region(first.Id)
		return r != nil && r.LeaderStore() == 1
	}, waitFor, tick)
	require.EqualValues(t, 3, call(t, followers[0], "GET", "/stores", "", 200)["count"])
	forgetDead(t, e, leader)
	id, err := c.AllocID(t.Context())
	require.NoError(t, err)
	leader.Stop()
	id2, err := c.AllocID(t.Context())
	require.NoError(t, err)
	require.Greater(t, id2, id)
	r, err := c.GetRegion(t.Context(), nil)
	require.NoError(t, err)
	require.NotNil(t, r)
	require.True(t, followers[0].IsLeader())
}

// forgetDead shows that a member that was killed, and so is still in the register, is named as dead
// until it is removed.
func forgetDead(t *testing.T, e *embed.Etcd, leader *server.Server) {
	t.Helper()
	value, err := (&schedulerpb.Member{
		Name: "x9", MemberId: 99, ClientUrls: []string{"http://127.0.0.1:1"},
	}).Marshal()
	require.NoError(t, err)
	etcd := v3client.New(e.Server)
	defer func() { _ = etcd.Close() }()
	_, err = etcd.Put(t.Context(), storage.KeysOf(leader.ClusterID()).MemberInfo(99), string(value))
	require.NoError(t, err)
	named := func() bool {
		_, has := healthOf(t, leader)
		return slices.Contains(has, "member-dead member x9")
	}
	require.Eventually(t, named, waitFor, 10*tick)
	call(t, leader, "DELETE", "/members/x9", "", 200)
	require.Eventually(t, func() bool { return !named() }, waitFor, 10*tick)
}
