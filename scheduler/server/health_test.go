package server_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// healthOf asks a member for the report and returns the state and the conditions as "code subject".
func healthOf(t *testing.T, s *server.Server) (state string, conditions []string) {
	t.Helper()
	r := call(t, s, "GET", "/health", "", 200)
	for _, c := range r["conditions"].([]any) {
		c := c.(map[string]any)
		conditions = append(conditions, fmt.Sprint(c["code"], " ", c["subject"]))
	}
	return r["health"].(string), conditions
}

// becomes waits until a member's report is of that state and has these conditions and no others.
func becomes(t *testing.T, s *server.Server, state string, conditions ...string) {
	t.Helper()
	var got string
	var has []string
	ok := func() bool {
		got, has = healthOf(t, s)
		return got == state && strings.Join(has, ",") == strings.Join(conditions, ",")
	}
	for end := time.Now().Add(4 * waitFor); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("%s %q, wanted %s %q", got, has, state, conditions)
		}
		time.Sleep(10 * tick) // polls
	}
}

// replicated reports a region of three replicas, led by the one on store 1.
func replicated(c *client.Client, first *metapb.Region) *schedulerpb.RegionHeartbeatRequest {
	r := *first
	r.RegionEpoch = &metapb.RegionEpoch{Version: 1, ConfVer: 3}
	r.Peers = []*metapb.Peer{{Id: 1001, StoreId: 1}, {Id: 1002, StoreId: 2}, {Id: 1003, StoreId: 3}}
	hb := &schedulerpb.RegionHeartbeatRequest{Region: &r, Leader: r.Peers[0], Term: 6}
	c.RegionHeartbeat(hb)
	return hb
}

// TestConditionsOutliveTheLeader: a new leader knows since when a condition holds.
func TestConditionsOutliveTheLeader(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	leader, followers := leaderOf(t, members)
	c, first := bootstrapped(t, leader, 3)
	replicated(c, first)
	becomes(t, leader, "ok")
	require.NoError(t,
		c.StoreHeartbeat(t.Context(),
			&schedulerpb.StoreStats{StoreId: 3, RegionCount: 1, ReadErrors: 3}))
	becomes(t, leader, "ok", "read-errors store 3")
	since := func(s *server.Server) string {
		for _, c := range call(t, s, "GET", "/health", "", 200)["conditions"].([]any) {
			return c.(map[string]any)["since"].(string)
		}
		return ""
	}
	began := since(leader)
	for _, f := range followers {
		require.Eventually(t, func() bool { return len(server.HealthTold(f)) == 1 }, waitFor, tick)
	}
	leader.Resign()
	require.Eventually(t, func() bool { return !leader.IsLeader() }, waitFor, time.Millisecond)
	next, _ := leaderOf(t, members)
	c, _ = client.New(t.Context(), []string{next.ClientURL()})
	defer c.Close()
	require.NoError(t,
		c.StoreHeartbeat(t.Context(),
			&schedulerpb.StoreStats{StoreId: 3, RegionCount: 1, ReadErrors: 3}))
	require.Eventually(t, func() bool { return since(next) != "" }, waitFor, tick)
	require.Equal(t, began, since(next))
}

// TestHealthOfStores: a new leader cannot tell, then all is well; what stores report shows in the
// API and the metrics, and it goes away again.
func TestHealthOfStores(t *testing.T) {
	t.Parallel()
	logs, seen := observer.New(zap.InfoLevel)
	s := servertest.Start(t, servertest.Config(t), zap.New(logs))
	becomes(t, s, "unknown")
	require.NotContains(t, metricsOf(t, s.ClientURL()), "\ntinykv_healthy ", "it is not known")
	c, first := bootstrapped(t, s, 3)
	becomes(t, s, "unknown")
	require.Eventually(t, func() bool {
		return strings.Contains(call(t, s, "GET", "/health", "", 200)["summary"].(string),
			"reports of 0 of 1 regions")
	}, waitFor, tick)
	replicated(c, first)
	becomes(t, s, "ok")
	require.Contains(t, metricsOf(t, s.ClientURL()), "\ntinykv_healthy 1\n")
	require.Equal(t, "ok",
		call(t, s, "GET", "/cluster", "", 200)["health"].(map[string]any)["health"])

	bad := &schedulerpb.StoreStats{
		StoreId: 3, RegionCount: 1, Capacity: 1 << 40, Available: 1 << 30,
		StarvingPeerIds: []uint64{1002},
		DamagedPeerIds:  []uint64{1003}, QuarantinedRegionIds: []uint64{1000},
		DivergedRegionIds: []uint64{1000}, ReadErrors: 3,
	}
	require.NoError(t, c.StoreHeartbeat(t.Context(), bad))
	becomes(t, s, "critical", "diverged store 3", "few-replicas regions", "starving regions",
		"quarantined store 3",
		"low-disk store 3", "read-errors store 3")
	m := metricsOf(t, s.ClientURL())
	require.Contains(t, m, "\ntinykv_healthy 0\n")
	require.Contains(t, m, `tinykv_health_conditions{code="diverged",severity="critical"} 1`)
	require.Contains(t, m, `tinykv_health_conditions{code="read-errors",severity="notice"} 3`)
	require.Contains(t, m, `tinykv_health_conditions{code="no-quorum",severity="critical"} 0`)
	line := func(message, code string) bool {
		return seen.FilterMessage(message).FilterField(zap.String("code", code)).Len() == 1
	}
	require.Eventually(t, func() bool {
		return line("health condition began", "diverged")
	}, 2*waitFor, tick)
	require.NoError(t,
		c.StoreHeartbeat(t.Context(), &schedulerpb.StoreStats{StoreId: 3, RegionCount: 1}))
	becomes(t, s, "ok")
	require.Eventually(t, func() bool {
		return line("health condition ended", "diverged")
	}, 2*waitFor, tick)
}

// TestHealthOfClocks: a clock that is off is measured by the heartbeats of its store, and one line
// of the log says so.
func TestHealthOfClocks(t *testing.T) {
	t.Parallel()
	logs, seen := observer.New(zap.WarnLevel)
	s := servertest.Start(t, servertest.Config(t), zap.New(logs))
	c, first := bootstrapped(t, s, 3)
	replicated(c, first)
	for range 3 {
		for id, off := range []time.Duration{0, 3 * time.Second, -3 * time.Second, 0} {
			if id > 0 {
				require.NoError(t, c.StoreHeartbeat(t.Context(), &schedulerpb.StoreStats{
					StoreId: uint64(id), RegionCount: 1, Clock: time.Now().Add(off).UnixNano(),
					RoundTrip: uint64(100 * time.Millisecond),
				}))
			}
		}
	}
	becomes(t, s, "degraded", "clock-skew store 1", "clock-skew store 2")
	require.Contains(t, metricsOf(t, s.ClientURL()),
		`tinykv_store_clock_skew_seconds{store="1"} 3.0`)
	require.Eventually(t, func() bool {
		return seen.FilterMessage("health condition began").FilterField(zap.String("code",
			"clock-skew")).Len() == 2
	}, 2*waitFor, tick)
}

// TestHealthOfLostStores: two of three stores are lost, then buried. It is never fine, at no
// leader.
func TestHealthOfLostStores(t *testing.T) {
	t.Parallel()
	s := servertest.StartTest(t, func(c *config.Config) {
		c.Schedule.StoreDisconnect = config.Duration(2 * time.Second)
	})
	c, first := bootstrapped(t, s, 3)
	hb := replicated(c, first)
	beat := func() {
		require.NoError(t,
			c.StoreHeartbeat(t.Context(), &schedulerpb.StoreStats{StoreId: 1, RegionCount: 1}))
	}
	lost := func(conditions ...string) {
		t.Helper()
		var has []string
		require.Eventually(t, func() bool {
			beat()
			var state string
			state, has = healthOf(t, s)
			return state == "critical" && strings.Join(has, ",") == strings.Join(conditions, ",")
		}, 4*waitFor, 20*tick, "%v", &has)
	}
	lost("no-quorum regions", "store-silent store 2", "store-silent store 3")
	call(t, s, "POST", "/stores/2/bury", `{"force": true}`, 200)
	call(t, s, "POST", "/stores/3/bury", `{"force": true}`, 200)
	lost("no-quorum regions", "few-replicas regions")
	hb.DownPeers = nil
	s.Resign() // the next leader is the same member, and knows nothing from reports
	require.Eventually(t, func() bool {
		return callStatus(t, s, "GET", "/health") == 200
	}, waitFor, tick)
	lost("no-quorum regions")
	require.NotEmpty(t, call(t, s, "GET", "/health", "", 200)["incomplete"])
}

// TestHealthOfMembers: every member gives the leader's report; a member that is dead is named, and
// not any more once it is back or removed. A new leader knows for how long a store has been silent.
func TestHealthOfMembers(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3, func(c *config.Config) {
		c.Schedule.MaxStoreDownTime, c.Schedule.StoreDisconnect = config.Duration(2*time.Second),
			config.Duration(time.Second)
		c.Schedule.Schedulers = nil
	})
	leader, followers := leaderOf(t, members)
	c, first := bootstrapped(t, leader, 2)
	replicated(c, first)
	becomes(t, followers[0], "critical", "no-quorum regions", "leader-lost regions",
		"store-silent store 1", "store-silent store 2",
		"few-replicas regions")
	require.Equal(t, leader.Name(), call(t, followers[1], "GET", "/health", "", 200)["leader"])

	silent := func(s *server.Server) float64 {
		for _, c := range call(t, s, "GET", "/health", "", 200)["conditions"].([]any) {
			if c := c.(map[string]any); c["code"] == "store-silent" && c["subject"] == "store 2" {
				return c["for_seconds"].(float64)
			}
		}
		return 0
	}
	// Longer than max-store-down-time, of which a new leader takes less for planning. What is saved
	// is 0.2 s old.
	require.Eventually(t, func() bool { return silent(leader) > 4 }, 2*waitFor, 20*tick)
	leader.Resign()
	require.Eventually(t, func() bool { return !leader.IsLeader() }, waitFor, time.Millisecond)
	leader, followers = leaderOf(t, members)
	require.Greater(t, silent(leader), 3.0)

	followers[0].Stop()
	dead := "member-dead member " + followers[0].Name()
	require.Eventually(t, func() bool {
		_, has := healthOf(t, followers[1])
		return strings.Contains(strings.Join(has, ","), dead)
	}, waitFor, 10*tick)
	call(t, leader, "DELETE", "/members/"+followers[0].Name(), "", 200)
	require.Eventually(t, func() bool {
		_, has := healthOf(t, followers[1])
		return !strings.Contains(strings.Join(has, ","), "member-dead")
	}, waitFor, 10*tick)
}

// TestHealthOfTheRest creates each condition of the table that the other tests here do not.
func TestHealthOfTheRest(t *testing.T) {
	t.Parallel()
	s := servertest.StartTest(t, func(c *config.Config) {
		c.VerifyStores, c.Replication.LocationLabels, c.Schedule.Schedulers = true,
			[]string{"zone"}, nil
		c.Schedule.StoreDisconnect = config.Duration(time.Hour)
	})
	c, first := bootstrapped(t, s, 5)
	for id, zone := range map[uint64]string{1: "a", 2: "a", 3: "b", 4: "c", 5: "c"} {
		require.NoError(t, c.PutStore(t.Context(), &metapb.Store{
			Id: id, Address: fmt.Sprint("s", id), Version: fmt.Sprint(id / 5),
			Labels: []*metapb.StoreLabel{{Key: "zone", Value: zone}},
		}))
		require.NoError(t, c.StoreHeartbeat(t.Context(), &schedulerpb.StoreStats{
			StoreId: id, Capacity: 1 << 40, Available: 1 << 40, IsDiskFull: id == 3,
			IsSlow: id == 4,
		}))
	}
	hb := replicated(c, first)
	require.Eventually(t, func() bool { return s.Cluster().Prepared() }, waitFor, tick)
	call(t, s, "POST", "/stores/5/offline", "", 200)
	down := *hb
	down.DownPeers = []*schedulerpb.PeerStats{{Peer: hb.Region.Peers[1], DownSeconds: 400}}
	c.RegionHeartbeat(&down)
	// A split whose right half no leader ever reports.
	left, right := *hb.Region, *hb.Region
	left.EndKey, right.StartKey, right.Id = []byte("m"), []byte("m"), 2000
	right.Peers = []*metapb.Peer{
		{Id: 2001, StoreId: 1}, {Id: 2002, StoreId: 3}, {Id: 2003, StoreId: 4},
	}
	left.RegionEpoch, right.RegionEpoch = &metapb.RegionEpoch{Version: 2, ConfVer: 3},
		&metapb.RegionEpoch{Version: 2, ConfVer: 3}
	require.NoError(t, c.ReportSplit(t.Context(), &left, &right))
	down.Region = &left
	c.RegionHeartbeat(&down)
	becomes(t, s, "critical", "no-leader regions", "disk-full store 3", "replica-silent regions",
		"misplaced regions",
		"store-unreached store 2", "store-unreached store 3", "store-unreached store 4",
		"store-unreached store 5",
		"slow-disk store 4", "versions-differ stores", "store-leaving store 5")
	require.EqualValues(t, 1, call(t, s, "GET", "/regions?check=no-leader", "", 200)["count"])
}
