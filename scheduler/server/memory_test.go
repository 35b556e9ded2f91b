package server_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// TestSilenceOutlivesTheLeader: leaders that follow each other faster than max-store-down-time take
// a dead store for dead all the same, and never one that lives.
func TestSilenceOutlivesTheLeader(t *testing.T) {
	t.Parallel()
	const down = 4 * time.Second
	members := servertest.StartCluster(t, 3, func(c *config.Config) {
		c.Schedule.MaxStoreDownTime, c.Schedule.StoreDisconnect = config.Duration(down),
			config.Duration(time.Second)
	})
	leader, _ := leaderOf(t, members)
	_, _ = bootstrapped(t, leader, 3)
	beat, err := client.New(t.Context(),
		[]string{members[0].ClientURL(), members[1].ClientURL(), members[2].ClientURL()})
	require.NoError(t, err)
	stop, wg := make(chan struct{}), sync.WaitGroup{}
	wg.Add(1)
	go func() { // ends with the test
		defer wg.Done()
		every := time.NewTicker(200 * time.Millisecond)
		defer every.Stop()
		for {
			select {
			case <-stop:
				return
			case <-every.C:
			}
			for id := range uint64(2) {
				// a leader is being changed
				_ = beat.StoreHeartbeat(t.Context(), &schedulerpb.StoreStats{StoreId: id + 1})
			}
		}
	}()
	defer func() { close(stop); wg.Wait(); beat.Close() }()

	silent := func(s *server.Server, id uint64) time.Duration {
		return s.Cluster().Core().Store(id).DownTime(time.Now())
	}
	began, ledBy := time.Now(), map[string]bool{}
	look := time.NewTicker(tick)
	defer look.Stop()
	for dead := false; !dead; {
		require.Less(t, time.Since(began), 10*down, "the dead store is never taken for dead")
		leader, _ := leaderOf(t, members)
		ledBy[leader.Name()] = true
		for until := time.Now().Add(down / 2); time.Now().Before(until) && !dead; {
			leader, _ = leaderOf(t, members)
			require.Less(t, silent(leader, 1), down)
			require.Less(t, silent(leader, 2), down)
			dead = silent(leader, 3) > down
			<-look.C
		}
		if !dead {
			leader.Resign()
			require.Eventually(t, func() bool {
				return !leader.IsLeader()
			}, waitFor, time.Millisecond)
		}
	}
	require.Greater(t, len(ledBy), 1)
	require.Greater(t, time.Since(began), down)
}

// TestPausesOutliveTheLeader: what a person has paused stays so.
func TestPausesOutliveTheLeader(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	leader, _ := leaderOf(t, members)
	_, _ = bootstrapped(t, leader, 1)
	call(t, leader, "POST", "/schedulers/balance-region/pause?for=1h", "", 200)
	call(t, leader, "POST", "/schedulers/balance-leader/pause?for=1h", "", 200)
	call(t, leader, "POST", "/schedulers/balance-leader/resume", "", 200)
	leader.Resign()
	require.Eventually(t, func() bool { return !leader.IsLeader() }, waitFor, time.Millisecond)
	next, _ := leaderOf(t, members)
	require.NotSame(t, leader, next)
	require.WithinDuration(t, time.Now().Add(time.Hour),
		next.Cluster().Planner().PausedUntil("balance-region"), time.Minute)
	require.True(t, next.Cluster().Planner().PausedUntil("balance-leader").Before(time.Now()))
}

// nextLeader has the leader resign and returns the one after it.
func nextLeader(t *testing.T, members []*server.Server, leader *server.Server) *server.Server {
	t.Helper()
	leader.Resign()
	require.Eventually(t, func() bool { return !leader.IsLeader() }, waitFor, time.Millisecond)
	next, _ := leaderOf(t, members)
	return next
}

// TestEvictionsEndInTime: a store sheds its leaders for as long as was asked for, no matter who
// leads.
func TestEvictionsEndInTime(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	leader, _ := leaderOf(t, members)
	_, _ = bootstrapped(t, leader, 2)
	call(t, leader, "POST", "/stores/1/evict?for=-1s", "", 400)
	call(t, leader, "POST", "/stores/1/evict?for=1h", "", 200)
	call(t, leader, "POST", "/stores/2/evict", "", 200)
	leader = nextLeader(t, members, leader)
	one := call(t, leader, "GET", "/stores/1", "", 200)
	require.Equal(t, true, one["evict_leaders"])
	require.InDelta(t, 3600, one["evict_seconds"], 120)
	two := call(t, leader, "GET", "/stores/2", "", 200)
	require.Equal(t, true, two["evict_leaders"])
	require.Nil(t, two["evict_seconds"])

	// Another end, to which a third leader comes; it is over then, for the leaders after it as
	// well.
	call(t, leader, "POST", "/stores/1/evict?for=1s", "", 200)
	leader = nextLeader(t, members, leader)
	require.Eventually(t, func() bool {
		return !leader.Cluster().Core().Store(1).EvictLeaders()
	}, waitFor, time.Millisecond)
	leader = nextLeader(t, members, leader)
	require.False(t, leader.Cluster().Core().Store(1).EvictLeaders())
	require.True(t, leader.Cluster().Core().Store(2).EvictLeaders())
}

// TestLeaderWeightIsKept: the share of leaders is apart from that of data, also for the next
// leader.
func TestLeaderWeightIsKept(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	leader, _ := leaderOf(t, members)
	_, _ = bootstrapped(t, leader, 2)
	call(t, leader, "POST", "/stores/1/weight", `{"leader_weight":2000}`, 400)
	call(t, leader, "POST", "/stores/1/weight", `{"weight":3,"leader_weight":0.5}`, 200)
	call(t, leader, "POST", "/stores/2/weight", `{"weight":2}`, 200)
	next := nextLeader(t, members, leader)
	one, two := next.Cluster().Core().Store(1), next.Cluster().Core().Store(2)
	require.Equal(t, []float64{3, 0.5}, []float64{one.Weight(), one.LeaderWeight()})
	require.Equal(t, []float64{2, 2}, []float64{two.Weight(), two.LeaderWeight()})
}

// TestSilentStoresAreInTheEvents: that a store has fallen silent, is given up, and is heard again.
func TestSilentStoresAreInTheEvents(t *testing.T) {
	s := servertest.StartTest(t, func(c *config.Config) {
		c.Schedule.StoreDisconnect = config.Duration(500 * time.Millisecond)
	})
	c, _ := bootstrapped(t, s, 2)
	has := func(kind, text string) func() bool {
		return func() bool {
			for _, e := range call(t, s, "GET", "/events?limit=1000", "", 200)["events"].([]any) {
				if e := e.(map[string]any); e["kind"] == kind &&
					strings.Contains(e["text"].(string), text) {
					return true
				}
			}
			return false
		}
	}
	require.Eventually(t, has("store-disconnected", "store 2"), waitFor, 10*time.Millisecond)
	require.False(t, has("store-down", "store 2")())
	call(t, s, "PATCH", "/config", `{"schedule":{"max-store-down-time":"1s"}}`, 200)
	require.Eventually(t, has("store-down", "store 2"), waitFor, 10*time.Millisecond)
	require.NoError(t,
		c.StoreHeartbeat(t.Context(), &schedulerpb.StoreStats{StoreId: 2, RegionCount: 1}))
	require.Eventually(t, has("store-connected", "store 2"), waitFor, 10*time.Millisecond)
}
