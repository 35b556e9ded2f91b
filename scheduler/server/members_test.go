package server_test

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/history"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

func leaderOf(t *testing.T, members []*server.Server) (*server.Server, []*server.Server) {
	t.Helper()
	var leader *server.Server
	require.Eventually(t, func() bool {
		leader = nil
		n := 0
		for _, s := range members {
			if s.IsLeader() {
				leader, n = s, n+1
			}
		}
		return n == 1
	}, waitFor, tick)
	var rest []*server.Server
	for _, s := range members {
		if s != leader {
			rest = append(rest, s)
		}
	}
	return leader, rest
}

// A client that only ever reaches a follower is served all the same.
func TestFollowersForward(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	leader, followers := leaderOf(t, members)
	c, first := bootstrapped(t, leader, 3)
	_ = c
	f := servertest.DirectClient(t, followers[0].ClientAddr())
	h := &schedulerpb.RequestHeader{ClusterId: leader.ClusterID()}
	id, err := f.AllocID(t.Context(), &schedulerpb.AllocIDRequest{Header: h})
	require.NoError(t, err)
	require.NotZero(t, id.Id)
	tso, err := f.Tso(t.Context())
	require.NoError(t, err)
	require.NoError(t, tso.Send(&schedulerpb.TsoRequest{Header: h, Count: 3}))
	ts, err := tso.Recv()
	require.NoError(t, err)
	require.EqualValues(t, 3, ts.Count)
	require.NoError(t, tso.CloseSend())

	regions, err := f.GetRegions(t.Context(),
		&schedulerpb.GetRegionsRequest{Header: h, RegionKeys: [][]byte{nil, []byte("k")}})
	require.NoError(t, err)
	require.Len(t, regions.Regions, 2)
	require.EqualValues(t, 1000, regions.Regions[1].Region.Id)
	_, err = f.GetRegions(t.Context(),
		&schedulerpb.GetRegionsRequest{Header: h, RegionKeys: make([][]byte, 2000)})
	require.ErrorContains(t, err, "at most 1024")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hb, err := f.RegionHeartbeat(ctx)
	require.NoError(t, err)
	require.NoError(t,
		hb.Send(&schedulerpb.RegionHeartbeatRequest{
			Header: h, Region: first, Leader: first.Peers[0], Term: 6,
		}))
	resp, err := hb.Recv() // the command to add a replica comes back the same way
	require.NoError(t, err)
	require.NotNil(t, resp.ChangePeer)

	require.EqualValues(t, 3, call(t, followers[1], "GET", "/stores", "", 200)["count"])
	require.Len(t, call(t, followers[1], "GET", "/members", "", 200)["members"], 3)
}

// Followers know the regions before they lead: after a change of leader no request is answered "no
// region".
func TestFollowersAreWarm(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	leader, followers := leaderOf(t, members)
	c, first := bootstrapped(t, leader, 3)
	c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
		Region: first, Leader: first.Peers[0], Term: 6, ApproximateSize: 12 << 20,
	})
	for _, f := range followers {
		require.Eventually(t, func() bool {
			r := f.Cluster().Core().RegionByKey([]byte("k"))
			return r != nil && r.LeaderStore() == 1 && r.Size() == 12 && !r.Confirmed()
		}, waitFor, tick)
	}
	began := time.Now()
	leader.Resign()
	require.Eventually(t, func() bool { return !leader.IsLeader() }, waitFor, time.Millisecond)
	next, _ := leaderOf(t, members)
	t.Logf("handed over in %v", time.Since(began))
	require.NotSame(t, leader, next)
	r, err := c.GetRegion(t.Context(), []byte("k"))
	require.NoError(t, err)
	require.NotNil(t, r)
	require.EqualValues(t, 1, r.Leader.StoreId)
	require.Empty(t, next.Cluster().Controller().Records(),
		"nothing is moved on an unconfirmed record")
}

// What happened stays known: a new leader has the events and the ended operators of the one before.
func TestEventsOutliveTheLeader(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	leader, followers := leaderOf(t, members)
	c, first := bootstrapped(t, leader, 3)
	c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
		Region: first, Leader: first.Peers[0], Term: 6,
	})
	var ended []operator.Record
	require.Eventually(t, func() bool { // a replica is to be added, since the region has one
		leader.Cluster().Controller().CancelAll("by the test")
		ended = leader.Cluster().Controller().History(10)
		return len(ended) > 0
	}, waitFor, tick)
	kinds := func(s *server.Server) (out []string) {
		for _, e := range call(t, s, "GET", "/events", "", 200)["events"].([]any) {
			out = append(out, e.(map[string]any)["kind"].(string))
		}
		return out
	}
	before := kinds(leader)
	require.Contains(t, before, "operator-ended")
	leader.Cluster().History().Sample(history.Point{Time: time.Now(), Regions: 77}, time.Minute)
	for _, f := range followers {
		require.Eventually(t, func() bool {
			return len(f.Cluster().History().After(time.Time{})) > 0
		}, waitFor, tick)
		require.Eventually(t, func() bool {
			return len(f.Cluster().Controller().History(10)) >= len(ended)
		}, waitFor, tick)
	}
	leader.Resign()
	require.Eventually(t, func() bool { return !leader.IsLeader() }, waitFor, time.Millisecond)
	next, _ := leaderOf(t, members)
	past := next.Cluster().Controller().History(100)
	require.Equal(t, ended[0].Why, past[len(past)-len(ended)].Why)
	require.Equal(t, ended[0].Steps, past[len(past)-len(ended)].Steps)
	points := call(t, next, "GET", "/history", "", 200)["points"].([]any)
	require.EqualValues(t, 77, points[0].(map[string]any)["regions"])
	after := kinds(next)
	require.Equal(t, before, after[:len(before)])
	require.Contains(t, after[len(before):], "leader-changed")
	// Who led before follows, and has it too.
	require.Eventually(t, func() bool {
		return len(leader.Cluster().Controller().History(100)) >= len(past)
	}, waitFor, tick)
}

// Ids and timestamps are unique and only grow, over many changes of leader.
func TestIDsAndTimestampsAcrossLeaders(t *testing.T) {
	t.Parallel()
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	members := servertest.StartCluster(t, 3)
	leader, _ := leaderOf(t, members)
	_, _ = bootstrapped(t, leader, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := map[uint64]bool{}
	stamps := map[uint64]bool{}
	var floor uint64 // largest timestamp of any finished call
	for range 4 {
		c := newClient(t, members[0].ClientURL(), members[1].ClientURL(), members[2].ClientURL())
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				mu.Lock()
				low := floor
				mu.Unlock()
				p, l, err := c.GetTS(ctx)
				if err != nil {
					continue
				}
				id, err := c.AllocID(ctx)
				if err != nil {
					continue
				}
				ts := uint64(p)<<18 | uint64(l)
				mu.Lock()
				if ts <= low || stamps[ts] {
					t.Errorf("timestamp %d after %d, repeated %v", ts, low, stamps[ts])
				}
				if ids[id] {
					t.Errorf("id %d was given twice", id)
				}
				stamps[ts], ids[id] = true, true
				floor = max(floor, ts)
				mu.Unlock()
			}
		}()
	}
	for range rounds {
		mu.Lock()
		before := len(stamps)
		mu.Unlock()
		leader, _ := leaderOf(t, members)
		leader.Resign()
		require.Eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return !leader.IsLeader() && len(stamps) > before+100
		}, waitFor, tick)
	}
	cancel()
	wg.Wait()
	t.Logf("%d timestamps and ids over %d leaders", len(stamps), rounds+1)
}

func TestLeaderTransferToANamedMember(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	for range 3 {
		leader, followers := leaderOf(t, members)
		call(t, leader, "POST", "/leader/transfer?to="+followers[1].Name(), "", 200)
		require.Eventually(t, followers[1].IsLeader, waitFor, tick)
	}
	leader, _ := leaderOf(t, members)
	call(t, leader, "POST", "/leader/transfer?to=nobody", "", 404)
}

// A member joins a running cluster as a learner and becomes a voter by itself; it can be removed.
func TestJoinAndRemove(t *testing.T) {
	t.Parallel()
	first := servertest.Start(t, fixedPorts(t, "m1"), nil)
	cfg := fixedPorts(t, "m2")
	cfg.Join = first.ClientURL()
	second := servertest.Start(t, cfg, nil)
	require.Equal(t, first.ClusterID(), second.ClusterID())
	require.Eventually(t, func() bool {
		for _, m := range call(t, first, "GET", "/members", "", 200)["members"].([]any) {
			if m.(map[string]any)["learner"].(bool) {
				return false
			}
		}
		return true
	}, waitFor, 50*time.Millisecond)

	same := fixedPorts(t, "m2")
	same.Join = first.ClientURL()
	s, err := server.New(same, nil)
	require.NoError(t, err)
	require.ErrorContains(t, s.Start(t.Context()), `a member named "m2" exists already`)

	leader, followers := leaderOf(t, []*server.Server{first, second})
	require.Eventually(t, func() bool { // etcd needs a healthy while before it changes members
		return callStatus(t, leader, "DELETE", "/members/"+followers[0].Name()) == 200
	}, waitFor, 100*time.Millisecond)
	require.Len(t, call(t, leader, "GET", "/members", "", 200)["members"], 1)
	select {
	case err := <-followers[0].Failed():
		require.ErrorContains(t, err, "removed")
	case <-time.After(waitFor):
		t.Fatal("the removed member goes on")
	}
}

// Members that join at the same time all get in: the cluster takes one after the other, and they
// wait.
func TestJoinsAtTheSameTime(t *testing.T) {
	t.Parallel()
	first := servertest.Start(t, fixedPorts(t, "m1"), nil)
	ended := make(chan error, 3)
	for _, name := range []string{"m2", "m3", "m4"} {
		cfg := fixedPorts(t, name)
		cfg.Join = first.ClientURL()
		s, err := server.New(cfg, nil)
		require.NoError(t, err)
		t.Cleanup(s.Stop)
		go func() { ended <- s.Start(t.Context()) }()
	}
	for range 3 {
		require.NoError(t, <-ended)
	}
	require.Len(t, call(t, first, "GET", "/members", "", 200)["members"], 4)
}

// A member that was started to join never begins a cluster of its own, whatever the first attempt
// came to.
func TestToldToJoinNeverBeginsAlone(t *testing.T) {
	cfg := fixedPorts(t, "m2")
	cfg.Join = "http://" + servertest.FreeAddr(t)
	start := func(ctx context.Context) error {
		again := *cfg
		s, err := server.New(&again, nil)
		require.NoError(t, err)
		defer s.Stop()
		return s.Start(ctx)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, start(ctx), "join")
	cfg.Join, cfg.InitialCluster = "", ""
	require.ErrorContains(t, start(t.Context()), "started to join a cluster")
	cfg.ForceNewCluster = true
	require.ErrorContains(t, start(t.Context()), "started to join a cluster")
	// What a start leaves that ended before etcd had its log is no membership.
	require.NoError(t, os.MkdirAll(cfg.DataDir+"/member/snap", 0o700))
	cfg.ForceNewCluster = false
	require.ErrorContains(t, start(t.Context()), "started to join a cluster")

	first := servertest.Start(t, fixedPorts(t, "m1"), nil)
	cfg.Join = first.ClientURL()
	second := servertest.Start(t, cfg, nil)
	require.Equal(t, first.ClusterID(), second.ClusterID())
	second.Stop()
	cfg.Join, cfg.InitialCluster = "", ""
	second = servertest.Start(t, cfg, nil)
	require.Equal(t, first.ClusterID(), second.ClusterID(), "a member needs no flag to come back")
}

func fixedPorts(t *testing.T, name string) *config.Config {
	t.Helper()
	cfg := servertest.Config(t)
	cfg.Name = name
	cfg.ClientUrls, cfg.PeerUrls = "http://"+servertest.FreeAddr(t),
		"http://"+servertest.FreeAddr(t)
	return cfg
}

// After a restart of everything, routes are served from the snapshot file.
func TestRestartKeepsRoutesAndHardState(t *testing.T) {
	cfg := fixedPorts(t, "m1")
	s := servertest.Start(t, cfg, nil)
	c, first := bootstrapped(t, s, 3)
	c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
		Region: first, Leader: first.Peers[0], Term: 6,
	})
	require.Eventually(t, func() bool {
		return s.Cluster().Core().Region(1000).Confirmed()
	}, waitFor, tick)
	id, err := c.AllocID(t.Context())
	require.NoError(t, err)
	_, err = c.UpdateGCSafePoint(t.Context(), 77)
	require.NoError(t, err)
	s.Stop()

	s = servertest.Start(t, cfg, nil)
	r, err := c.GetRegion(t.Context(), nil)
	require.NoError(t, err)
	require.EqualValues(t, 1000, r.Meta.Id)
	require.EqualValues(t, 1, r.Leader.StoreId)
	require.False(t, s.Cluster().Core().Region(1000).Confirmed())
	id2, err := c.AllocID(t.Context())
	require.NoError(t, err)
	require.Greater(t, id2, id)
	sp, err := c.GetGCSafePoint(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 77, sp)
	stores, err := c.GetAllStores(t.Context(), true)
	require.NoError(t, err)
	require.Len(t, stores, 3)
	require.ErrorIs(t, c.Bootstrap(t.Context(), &metapb.Store{Id: 9, Address: "x"}, nil),
		client.ErrAlreadyBootstrapped)
}

// What a start must refuse, each with one clear line.
func TestRefusedStarts(t *testing.T) {
	cfg := fixedPorts(t, "m1")
	s := servertest.Start(t, cfg, nil)
	try := func(change func(*config.Config)) error {
		bad := fixedPorts(t, "m1")
		change(bad)
		other, err := server.New(bad, nil)
		if err != nil {
			return err
		}
		defer other.Stop()
		return other.Start(t.Context())
	}
	require.ErrorContains(t, try(func(c *config.Config) { c.DataDir = cfg.DataDir }),
		"in use by another process")
	require.ErrorContains(t, try(func(c *config.Config) { c.ClientUrls = cfg.ClientUrls }),
		"already in use")
	require.ErrorContains(t,
		try(func(c *config.Config) { c.InitialCluster = "other=http://127.0.0.1:1" }),
		"does not name this member")
	s.Stop()
	require.ErrorContains(t, try(func(c *config.Config) { c.DataDir, c.Name = cfg.DataDir, "m9" }),
		`belongs to member "m1"`)
	foreign := t.TempDir()
	require.NoError(t, writeFile(foreign+"/x", "x"))
	require.ErrorContains(t, try(func(c *config.Config) { c.DataDir = foreign }),
		"not a data directory")
	require.NoError(t, writeFile(cfg.DataDir+"/TINYSCHEDULER", `{"format":99,"name":"m1"}`))
	require.ErrorContains(t, try(func(c *config.Config) { c.DataDir = cfg.DataDir }), "format 99")
	for key, change := range map[string]func(*config.Config){
		"client-urls":              func(c *config.Config) { c.ClientUrls = "nonsense" },
		"replication.max-replicas": func(c *config.Config) { c.Replication.MaxReplicas = 0 },
		"log.level":                func(c *config.Config) { c.LogLevel = "loud" },
		"unknown type": func(c *config.Config) {
			c.Schedule.Schedulers[0].Type = "balance-regoin"
		},
	} {
		require.ErrorContains(t, try(change), key)
	}
	require.ErrorContains(t, config.Default().Load("nmae = \"x\""),
		`unknown key "nmae", did you mean "name"?`)
	require.ErrorContains(t, config.Default().Load("[schedule]\nstore-disconect = \"1s\""),
		`did you mean "schedule.store-disconnect"?`)
	require.ErrorContains(t, config.Default().Load("lease = \"x\""), "line 1")
}

// The only member of a cluster leads soon, however long an election may take: it has nobody to wait
// for.
func TestLoneMemberElectsItselfSoon(t *testing.T) {
	cfg := servertest.Config(t)
	cfg.TickInterval, cfg.ElectionInterval = config.Duration(9*time.Second),
		config.Duration(45*time.Second)
	for range 2 { // new, and with a past
		began := time.Now()
		s := servertest.Start(t, cfg, zap.NewNop())
		require.Less(t, time.Since(began), cfg.ElectionInterval.D()/5)
		s.Stop()
	}
}
