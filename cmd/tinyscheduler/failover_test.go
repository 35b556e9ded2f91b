package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/freeport"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server/cli"
)

// asServer makes the test binary behave as tinyscheduler, so that members are real processes.
const asServer = "TINYSCHEDULER_TEST_ARGS"

func TestMain(m *testing.M) {
	if args := os.Getenv(asServer); args != "" {
		os.Exit(cli.Main(strings.Split(args, " "), os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

type process struct {
	name, url string
	args      []string
	cmd       *exec.Cmd
	log       string
}

func freeAddr(t *testing.T) string {
	t.Helper()
	addrs, err := freeport.Addrs(1)
	require.NoError(t, err)
	return addrs[0]
}

func (p *process) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(os.Args[0]) //nolint:noctx // killed by the test
	p.cmd.Env = append(os.Environ(), asServer+"="+strings.Join(p.args, " "))
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	require.NoError(t, p.cmd.Start())
	_ = out.Close()
}

// stop sends a signal and waits for the end.
func (p *process) stop(sig syscall.Signal) error {
	_ = p.cmd.Process.Signal(sig)
	return p.cmd.Wait()
}

func startMembers(t *testing.T, n int) []*process {
	t.Helper()
	var members []*process
	var initial []string
	for i := range n {
		p := &process{name: fmt.Sprintf("m%d", i+1), url: "http://" + freeAddr(t)}
		peer := "http://" + freeAddr(t)
		dir := t.TempDir()
		p.log = filepath.Join(dir, "log")
		p.args = []string{
			"--name", p.name, "--data-dir", filepath.Join(dir, "data"), "--client-urls", p.url,
			"--peer-urls", peer,
		}
		initial = append(initial, p.name+"="+peer)
		members = append(members, p)
	}
	for _, p := range members {
		p.args = append(p.args, "--initial-cluster", strings.Join(initial, ","))
		p.start(t)
	}
	t.Cleanup(func() {
		for _, p := range members {
			if p.cmd.ProcessState == nil {
				_ = p.stop(syscall.SIGKILL)
			}
		}
	})
	return members
}

func urls(members []*process) []string {
	var out []string
	for _, p := range members {
		out = append(out, p.url)
	}
	return out
}

// waitAll waits until every member answers and all agree on a leader, and returns it.
func waitAll(t *testing.T, members []*process) *process {
	t.Helper()
	var leader *process
	require.Eventually(t, func() bool {
		leader = nil
		for _, p := range members {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			c, err := client.New(ctx, []string{p.url})
			cancel()
			if err != nil {
				return false
			}
			addr := c.LeaderAddress()
			c.Close()
			for _, q := range members {
				if q.url == "http://"+addr {
					if leader != nil && leader != q {
						return false
					}
					leader = q
				}
			}
		}
		return leader != nil
	}, time.Minute, 50*time.Millisecond)
	return leader
}

// waitOther waits until a member other than the given one leads.
func waitOther(t *testing.T, members []*process, old *process) {
	t.Helper()
	i := slices.IndexFunc(members, func(p *process) bool { return p != old })
	c, err := client.New(t.Context(), []string{members[i].url})
	require.NoError(t, err)
	defer c.Close()
	require.Eventually(t, func() bool {
		resp, err := c.GetMembers(t.Context())
		return err == nil && resp.Leader != nil && resp.Leader.Name != old.name
	}, 10*time.Second, 5*time.Millisecond)
}

// waitWarm waits until every member knows the region and its leader, so that the next leader can
// tell.
func waitWarm(t *testing.T, members []*process) {
	t.Helper()
	for _, p := range members {
		require.Eventually(t, func() bool {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+"/metrics",
				nil)
			require.NoError(t, err)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			return err == nil &&
				strings.Contains(string(text), "tinykv_known_regions{type=\"with_leader\"} 1\n")
		}, 10*time.Second, 10*time.Millisecond, p.name)
	}
}

// TestFailover3C kills the leader again and again and measures how long clients wait. Graceful
// stops are measured too. FAILOVER_TRIALS sets how many trials of each there are; 3 by default.
func TestFailover3C(t *testing.T) {
	trials := 3
	if n, err := strconv.Atoi(os.Getenv("FAILOVER_TRIALS")); err == nil {
		trials = n
	}
	members := startMembers(t, 3)
	waitAll(t, members)
	c, err := client.New(t.Context(), urls(members))
	require.NoError(t, err)
	defer c.Close()
	region := &metapb.Region{
		Id: 2, RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		Peers: []*metapb.Peer{{Id: 3, StoreId: 1}},
	}
	require.NoError(t, c.Bootstrap(t.Context(), &metapb.Store{Id: 1, Address: "s1"}, region))
	heartbeat := func() {
		c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
			Region: region, Leader: region.Peers[0], Term: 6,
		})
	}
	c.SetReconnectHandler(heartbeat)
	heartbeat()
	require.Eventually(t, func() bool {
		r, err := c.GetRegion(t.Context(), nil)
		return err == nil && r != nil && r.Leader != nil
	}, 10*time.Second, 10*time.Millisecond)

	lastTS, lastID := uint64(0), uint64(0)
	trial := func(sig syscall.Signal) time.Duration {
		leader := waitAll(t, members)
		waitWarm(t, members)
		began := time.Now()
		exited := make(chan error, 1)
		go func() { exited <- leader.stop(sig) }()
		if sig == syscall.SIGTERM { // until it stops serving, asking would measure nothing
			waitOther(t, members, leader)
		} else {
			<-exited
		}
		id, err := c.AllocID(t.Context())
		require.NoError(t, err)
		took := time.Since(began)
		if sig == syscall.SIGTERM {
			require.NoError(t, <-exited, "a graceful stop exits with 0")
		}
		require.Greater(t, id, lastID)
		lastID = id
		p, l, err := c.GetTS(t.Context())
		require.NoError(t, err)
		require.Greater(t, uint64(p)<<18|uint64(l), lastTS)
		lastTS = uint64(p)<<18 | uint64(l)
		r, err := c.GetRegion(t.Context(), []byte("k"))
		require.NoError(t, err)
		require.NotNil(t, r, "the new leader must know the regions at once")
		require.NotNil(t, r.Leader)
		leader.start(t)
		return took
	}
	var killed, stopped []time.Duration
	for range trials {
		killed = append(killed, trial(syscall.SIGKILL))
	}
	for range trials {
		stopped = append(stopped, trial(syscall.SIGTERM))
	}
	for name, d := range map[string][]time.Duration{"kill -9": killed, "SIGTERM": stopped} {
		t.Logf("%s: %d trials, %s", name, len(d), percentiles(d))
	}
}

// percentiles are by the nearest rank: of 20 trials the 99th is the largest.
func percentiles(d []time.Duration) string {
	slices.Sort(d)
	var b strings.Builder
	for _, p := range []int{50, 90, 99} {
		rank := (len(d)*p + 99) / 100
		fmt.Fprintf(&b, "p%d %v, ", p, d[rank-1].Round(time.Millisecond))
	}
	fmt.Fprintf(&b, "max %v", d[len(d)-1].Round(time.Millisecond))
	return b.String()
}

// TestPausedLeader3C stops a leader's process for longer than its leadership lasts. While it sleeps
// another one leads; when it wakes up it must not go on where it was, also not for requests that
// waited in its sockets.
func TestPausedLeader3C(t *testing.T) {
	members := startMembers(t, 3)
	old := waitAll(t, members)
	var others []*process
	for _, p := range members {
		if p != old {
			others = append(others, p)
		}
	}
	ids := map[uint64]bool{}
	take := func(c *client.Client) {
		id, err := c.AllocID(t.Context())
		require.NoError(t, err)
		require.False(t, ids[id], "id %d was given twice", id)
		ids[id] = true
	}
	pinned, err := client.New(t.Context(), []string{old.url}) // knows where the old leader is
	require.NoError(t, err)
	defer pinned.Close()
	take(pinned)
	p0, l0, err := pinned.GetTS(t.Context())
	require.NoError(t, err)

	require.NoError(t, old.cmd.Process.Signal(syscall.SIGSTOP))
	waiting := make(chan uint64, 8)
	for range cap(waiting) {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			id, _ := pinned.AllocID(ctx)
			waiting <- id
		}()
	}
	began := time.Now()
	waitOther(t, others, old)
	t.Logf("another member leads %v after the pause began",
		time.Since(began).Round(time.Millisecond))
	c, err := client.New(t.Context(), urls(others))
	require.NoError(t, err)
	defer c.Close()
	for range 100 {
		take(c)
	}
	require.NoError(t, old.cmd.Process.Signal(syscall.SIGCONT))
	for range cap(waiting) {
		id := <-waiting
		require.NotZero(t, id)
		require.False(t, ids[id], "id %d was given twice", id)
		ids[id] = true
	}
	for range 100 {
		take(pinned)
		take(c)
	}
	p1, l1, err := pinned.GetTS(t.Context())
	require.NoError(t, err)
	require.Greater(t, uint64(p1)<<18|uint64(l1), uint64(p0)<<18|uint64(l0))
}
