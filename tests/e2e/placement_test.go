package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// console runs tinyctl against one cluster.
type console struct {
	t *testing.T
	c *localcluster.Cluster
}

// run checks the exit code and returns what was printed.
func (k console) run(code int, line string) string {
	k.t.Helper()
	got, out := k.try(line)
	require.Equal(k.t, code, got, "tinyctl %s: %s", line, out)
	return out
}

// try returns the exit code and what was printed.
func (k console) try(line string) (code int, printed string) {
	k.t.Helper()
	argv := append([]string{"-s", strings.Join(k.c.Endpoints(), ",")}, strings.Fields(line)...)
	out, err := exec.CommandContext(k.t.Context(), filepath.Join(binDir, "tinyctl"),
		argv...).CombinedOutput()
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		require.NoError(k.t, err)
	}
	return got, string(out)
}

func (k console) has(line string, want ...string) {
	k.t.Helper()
	out := k.run(0, line)
	for _, w := range want {
		require.Contains(k.t, out, w, "tinyctl %s", line)
	}
}

// soon is has for a command that fails at first, for a reason that passes.
func (k console) soon(line, reason string, want ...string) {
	k.t.Helper()
	var out string
	require.Eventually(k.t, func() bool {
		var code int
		code, out = k.try(line)
		return code == 0 || !strings.Contains(out, reason)
	}, 30*time.Second, 50*time.Millisecond)
	for _, w := range want {
		require.Contains(k.t, out, w, "tinyctl %s", line)
	}
}

func (k console) fails(line, want string) {
	k.t.Helper()
	out := k.run(1, line)
	require.Contains(k.t, out, want)
	require.Equal(k.t, 1, strings.Count(out, "\n"), "one line: %s", out)
}

// lacks is fails for what does not exist.
func (k console) lacks(line, want string) {
	k.t.Helper()
	require.Contains(k.t, k.run(4, line), want)
}

func (k console) json(line string, into any) {
	k.t.Helper()
	out := k.run(0, "-o json "+line)
	require.NoError(k.t, json.Unmarshal([]byte(out), into), "tinyctl %s: %s", line, out)
}

type regionView struct {
	ID     uint64 `json:"id,string"`
	Leader uint64 `json:"leader_store,string"`
	Peers  []struct {
		ID      uint64 `json:"id,string"`
		Store   uint64 `json:"store_id,string"`
		Learner bool   `json:"learner"`
	} `json:"peers"`
}

// voterOn is the id of the region's voter on a store, 0 if there is none.
func (r regionView) voterOn(store string) uint64 {
	for _, p := range r.Peers {
		if fmt.Sprint(p.Store) == store && !p.Learner {
			return p.ID
		}
	}
	return 0
}

// where is the region's first replica that does not lead, and a store without one.
func (k console) where(region uint64) (r regionView, follower, free uint64) {
	k.t.Helper()
	k.json(fmt.Sprintf("region show %d", region), &r)
	has := map[uint64]bool{}
	for _, p := range r.Peers {
		if has[p.Store] = true; p.Store != r.Leader {
			follower = p.Store
		}
	}
	var stores []struct {
		ID uint64 `json:"id,string"`
	}
	k.json("store list", &stores)
	for _, s := range stores {
		if !has[s.ID] {
			free = s.ID
		}
	}
	return r, follower, free
}

// TestPlacementCommands runs the commands that go to the placement service, on three replicas and a
// fourth store: with only three, none could be taken offline.
func TestPlacementCommands(t *testing.T) {
	c := start(t, 4)
	cl := open(t, c)
	require.NoError(t, cl.Put(t.Context(), []byte("a"), []byte("1")))
	require.NoError(t, cl.Put(t.Context(), []byte("z"), []byte("2")))
	waitReplicas(t, c, 3)
	k := console{t, c}
	var rs []regionView
	eventually(t, 20*time.Second, func() error {
		k.json("region list", &rs)
		if out := k.run(0, "operator list"); len(rs) != 1 || len(rs[0].Peers) != 3 ||
			strings.Count(out, "\n") != 1 {
			return fmt.Errorf("not at rest: %v %s", rs, out)
		}
		return nil
	})
	region := rs[0].ID
	k.regions(region)
	k.operators(region)
	k.stores(region)
	k.policies()
	k.events()
	k.members()
}

func (k console) regions(region uint64) {
	r, follower, free := k.where(region)
	k.has(fmt.Sprintf("region show %d", region), fmt.Sprintf("REGION %d", region), "-inf to +inf",
		fmt.Sprintf("store %d, leader", r.Leader))
	k.has("region check", "DEFECT", "REGIONS OF 1", "miss-peer")
	require.Equal(k.t, 1, strings.Count(k.run(0, "region check down-peer"), "\n"))
	k.lacks("region show 987654", "region 987654 is not known")

	k.has(fmt.Sprintf("region transfer-leader %d %d --wait", region, follower), "success",
		fmt.Sprintf("[x] transfer leader from store %d to store %d", r.Leader, follower))
	after, _, _ := k.where(region)
	require.Equal(k.t, follower, after.Leader)
	k.fails(fmt.Sprintf("region transfer-leader %d %d", region, free), "has no peer on store")

	k.has(fmt.Sprintf("region move-peer %d %d %d --wait", region, r.Leader, free), "success", "[x]")
	_, _, vacated := k.where(region)
	require.Equal(k.t, r.Leader, vacated)

	k.has(fmt.Sprintf("region split %d m t --wait", region), "success", "[x] split region at x'74'",
		"[x] split region at x'6d'")
	parts := k.run(0, "region list")
	require.Equal(k.t, 4, strings.Count(parts, "\n"), parts)
	require.Equal(k.t, 1+3, strings.Count(parts, "*"), "the header's, and each has a leader: %s",
		parts)
	k.has("region key a", " m ")
	k.has("region key m", " t ")
	k.soon(fmt.Sprintf("region scatter %d --wait", region), "not fully replicated yet", "scatter",
		"success")
}

// operators looks at what regions left behind, and cancels an operator that runs.
func (k console) operators(region uint64) {
	k.has("operator history", "admin-transfer-leader", "admin-move-peer", "admin-split", "success")
	k.has(fmt.Sprintf("operator show %d", region), fmt.Sprintf("of region %d: ", region))
	k.has("operator list", "REGION", "STATUS")
	k.lacks("operator cancel 987654", "has no running operator")
	k.lacks("operator show 987654", "has had no operator")
	// The store that gets a replica is stopped, so that the operator cannot end by itself.
	// Balancing may be faster and give it a replica between the look and the order.
	var resume func()
	eventually(k.t, 20*time.Second, func() error {
		_, _, free := k.where(region)
		resume = k.pause(free)
		code, out := k.try(fmt.Sprintf("region add-peer %d %d", region, free))
		if code == 0 && strings.Contains(out, "admin-add-peer") &&
			strings.Contains(out, "running") {
			return nil
		}
		resume()
		return errors.New(out)
	})
	defer resume()
	k.has("operator list --kind admin", fmt.Sprint(region), "admin-add-peer", "running")
	k.has(fmt.Sprintf("operator cancel %d", region), "canceled")
}

// pause stops a store's process; the function it returns lets it go on.
func (k console) pause(store uint64) (resume func()) {
	k.t.Helper()
	var st struct {
		Address string `json:"address"`
	}
	k.json(fmt.Sprintf("store show %d", store), &st)
	for _, p := range k.c.Stores {
		if p.Addr == st.Address {
			require.NoError(k.t, p.Signal(syscall.SIGSTOP))
			return func() { _ = p.Signal(syscall.SIGCONT) } // has been running, and does again
		}
	}
	k.t.Fatalf("no process at %s", st.Address)
	return nil
}

func (k console) stores(region uint64) {
	eventually(k.t, 20*time.Second, func() error {
		if _, _, free := k.where(region); free == 0 {
			return errors.New("the replica that was canceled is not removed yet")
		}
		return nil
	})
	_, follower, free := k.where(region)
	k.has(fmt.Sprintf("store show %d", follower), fmt.Sprintf("STORE %d", follower), "up",
		"free of", "heartbeat")
	k.lacks("store show 987654", "store 987654 is not registered")
	k.has(fmt.Sprintf("store weight %d 1.5", follower), "at weight 1.5")
	k.has(fmt.Sprintf("store weight %d 1", follower), "at weight 1 (leaders 1);")
	k.has(fmt.Sprintf("store evict %d", follower), "kept off (evict)")
	require.NotContains(k.t, k.run(0, fmt.Sprintf("store unevict %d", follower)), "evict")
	k.has("store limit --moves 5", "0 of 5")
	k.has("store limit --moves 8", "0 of 8")
	k.has(fmt.Sprintf("store limit %d --moves 2", follower), "2 moves", "its own")
	k.has("store limit", "0 of 2", "0 of 8")
	require.NotContains(k.t, k.run(0, fmt.Sprintf("store limit %d --moves 0", follower)), "its own")
	k.has("store label", "none")
	k.has(fmt.Sprintf("store label %d zone=z1 disk=ssd", follower), "disk=ssd zone=z1")
	k.has(fmt.Sprintf("store label %d disk=", follower), "zone=z1")
	k.has("store label", "zone=z1", "none")
	k.has(fmt.Sprintf("store label %d zone=", follower), "none")
	k.fails(fmt.Sprintf("store bury %d", follower), "is alive")
	k.fails(fmt.Sprintf("store remove %d", follower), "take it offline first")

	// The only store that could take the replica stands still: else the move might be over, and the
	// store buried, before it is taken back.
	defer k.pause(free)()
	k.has(fmt.Sprintf("store offline %d", follower), "offline")
	r, _, _ := k.where(region)
	k.fails(fmt.Sprintf("store offline %d", r.Leader), "2 stores would remain")
	k.has(fmt.Sprintf("store up %d", follower), fmt.Sprintf("STORE %d", follower), "up")
	k.has("store list", "Up")
}

func (k console) policies() {
	k.has("scheduler list", "balance-region", "balance-leader", "running")
	k.has("scheduler pause balance-region --for 10m", "paused for 10m0s")
	require.NotContains(k.t, k.run(0, "scheduler resume balance-region"), "paused")
	k.lacks("scheduler pause nobody", "no scheduler")
	eventually(k.t, 40*time.Second, func() error { // stores report every ten seconds
		if out := k.run(0, "explain"); strings.Contains(out, "Not prepared") {
			return errors.New(out)
		}
		return nil
	})
	eventually(k.t, 10*time.Second, func() error {
		if out := k.run(0, "explain"); !strings.Contains(out, "balance-region") ||
			!strings.Contains(out, "balance-leader") {
			return errors.New(out)
		}
		return nil
	})
	k.has("explain balance-region", "balance-region (")
	k.lacks("explain nobody", `no decision of a policy "nobody"`)

	k.has("config get", "schedule.leader-tolerance", "replication.max-replicas", "3")
	before := strings.TrimSpace(k.run(0, "config get leader-tolerance"))
	k.has("config set leader-tolerance 7", "schedule.leader-tolerance = 7")
	require.Equal(k.t, "7\n", k.run(0, "config get schedule.leader-tolerance"))
	k.has("config set leader-tolerance "+before, "= "+before)
	k.has("config set store-disconnect 21s", "= 21s")
	k.lacks("config get nonsense", `no setting "nonsense"`)
	k.fails("config set max-replicas 99", "not between 1 and 15")
}

func (k console) events() {
	k.has("events -n 1000", "config-changed", "store-offline", "operator-ended", "admin-split")
	require.Equal(k.t, 2, strings.Count(k.run(0, "events -n 2"), "\n"))
	cmd := exec.CommandContext(k.t.Context(), filepath.Join(binDir, "tinyctl"), "-s",
		k.c.Endpoints()[0], "events", "-f", "-n", "1")
	out := new(output)
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(k.t, cmd.Start())
	out.waitFor(k.t, "\n")
	k.run(0, "config set leader-tolerance 9")
	out.waitFor(k.t, "PATCH /api/v1/config")
	require.NoError(k.t, cmd.Process.Signal(syscall.SIGINT))
	require.NoError(k.t, cmd.Wait(), "interrupted is not failed: %s", out)
}

func (k console) members() {
	var out struct {
		Members []struct {
			Name string `json:"name"`
		} `json:"members"`
	}
	k.json("member list", &out)
	require.Len(k.t, out.Members, 1)
	name := out.Members[0].Name
	k.has("member list", name, "leader", k.c.Endpoints()[0])
	k.has("member transfer "+name, name+" gets the leadership")
	k.fails("member remove "+name, "transfer the leadership first")
	k.lacks("member promote nobody", `no member "nobody"`)
	k.has("member loglevel debug", name+": log level debug")
	k.has("member loglevel info", name+": log level info")
	k.has("member resign", name+" gave the leadership up")
	k.has("store limit", "0 of 8") // waits for the next term
}
