package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// statusOf are the status addresses of processes.
func statusOf(ps ...*localcluster.Process) string {
	var out []string
	for _, p := range ps {
		out = append(out, p.Status)
	}
	return strings.Join(out, ",")
}

// storeIDs are the ids of the stores by the names of their processes.
func storeIDs(t *testing.T, c *localcluster.Cluster) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	for _, p := range c.Stores {
		resp, err := http.Get("http://" + p.Status + "/status")
		require.NoError(t, err)
		var st struct {
			StoreID uint64 `json:"store_id"`
		}
		require.NoError(t, json.NewDecoder(resp.Body).Decode(&st))
		require.NoError(t, resp.Body.Close())
		out[p.Name] = st.StoreID
	}
	return out
}

// tinyctl runs a command that needs no cluster.
func tinyctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"),
		args...).CombinedOutput()
	require.NoError(t, err, "tinyctl %v: %s", args, out)
	return string(out)
}

// inRecovery returns the arguments of the command in docs/recovery.md that begins as given, with
// what the page says as an example replaced.
func inRecovery(t *testing.T, begin string, replace map[string]string) []string {
	t.Helper()
	page, err := os.ReadFile("../../docs/recovery.md")
	require.NoError(t, err)
	for line := range strings.Lines(string(page)) {
		line, ok := strings.CutPrefix(strings.TrimSpace(line), "tinyctl "+begin)
		if !ok {
			continue
		}
		line, _, _ = strings.Cut(line, "  ") // what it does
		args := strings.Fields(begin + line)
		left := len(replace)
		for i, a := range args {
			if with, ok := replace[a]; ok {
				args[i] = with
				left--
			}
		}
		require.Zero(t, left, "%v lacks some of %v", args, replace)
		return args
	}
	require.FailNow(t, "docs/recovery.md has no such command", begin)
	return nil
}

// TestRecoverScheduler: the placement service's only member is lost with its disk. Another one
// takes the cluster over from the stores: same id, ids and timestamps above all that were given
// out, all data there, splits go on.
func TestRecoverScheduler(t *testing.T) {
	c := start(t, 3)
	cl := open(t, c)
	k := console{t, c}
	for i := range 50 {
		require.NoError(t,
			cl.Put(t.Context(), fmt.Appendf(nil, "%c%d", 'a'+i%26, i), fmt.Append(nil, i)))
	}
	waitReplicas(t, c, 3)
	eventually(t, 20*time.Second, k.splitAt("m"))
	k.regionCount(2)
	before, err := cl.Placement().AllocID(t.Context())
	require.NoError(t, err)
	ts, _, err := cl.Placement().GetTS(t.Context())
	require.NoError(t, err)

	sched := c.Schedulers[0]
	sched.Kill()
	require.NoError(t, os.RemoveAll(sched.DataDir))
	plan := filepath.Join(t.TempDir(), "plan.json")
	out := tinyctl(t, inRecovery(t, "recover scheduler", map[string]string{
		"127.0.0.1:20180,127.0.0.1:20181,127.0.0.1:20182": statusOf(c.Stores...), "plan.json": plan,
	})...)
	require.Contains(t, out, "3 stores report")
	text, err := os.ReadFile(plan)
	require.NoError(t, err)
	require.Contains(t, string(text), "conditional-ops", "what the stores use stays in force")
	sched.Recover(plan)
	require.NoError(t, sched.Start())
	require.NoError(t, sched.WaitReady(t.Context()))

	fresh := open(t, c)
	for i := range 50 {
		v, found, err := fresh.Get(t.Context(), fmt.Appendf(nil, "%c%d", 'a'+i%26, i))
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, fmt.Sprint(i), string(v))
	}
	after, err := fresh.Placement().AllocID(t.Context())
	require.NoError(t, err)
	require.Greater(t, after, before)
	now, _, err := fresh.Placement().GetTS(t.Context())
	require.NoError(t, err)
	require.Greater(t, now, ts)
	eventually(t, 30*time.Second, k.splitAt("g"))
	k.regionCount(3)
	// each joins the recovered service, whose first incarnations are new
	for _, p := range c.Stores {
		_, err := p.End(syscall.SIGTERM, 20*time.Second)
		require.NoError(t, err)
		require.NoError(t, p.Start())
		require.NoError(t, p.WaitReady(t.Context()))
	}
	waitReplicas(t, c, 3)
	checkReplicas(t, c)
}

// TestRecoverRegions: two of three stores are lost with their disks. The third goes on with its
// replicas; two new stores bring the regions back to three, and the lost ones can not come back.
func TestRecoverRegions(t *testing.T) {
	c := start(t, 5)
	cl := open(t, c)
	k := console{t, c}
	for i := range 50 {
		require.NoError(t,
			cl.Put(t.Context(), fmt.Appendf(nil, "%c%d", 'a'+i%26, i), fmt.Append(nil, i)))
	}
	waitReplicas(t, c, 3)
	var rs []regionView
	k.json("region list", &rs)
	require.Len(t, rs, 1)
	ids := storeIDs(t, c)
	has := map[uint64]bool{}
	for _, p := range rs[0].Peers {
		has[p.Store] = true
	}
	var left, lost []*localcluster.Process
	var lostIDs []string
	kept := false
	for _, p := range c.Stores {
		if id := ids[p.Name]; has[id] && kept {
			lost, lostIDs = append(lost, p), append(lostIDs, fmt.Sprint(id))
		} else {
			kept = kept || has[id]
			left = append(left, p)
		}
	}
	require.Len(t, lost, 2)
	for _, p := range lost {
		p.Kill()
	}
	plan := filepath.Join(t.TempDir(), "plan.json")
	var out string
	// a store is buried once it has been silent for a while
	eventually(t, 60*time.Second, func() error {
		args := append(inRecovery(t, "recover regions", map[string]string{
			"2,3": strings.Join(lostIDs, ","), "127.0.0.1:20180": statusOf(left...),
			"plan.json": plan,
		}), "--yes", "-s", c.Schedulers[0].Addr)
		cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"), args...)
		data, err := cmd.CombinedOutput()
		out = string(data)
		if err != nil {
			return fmt.Errorf("%w: %s", err, data)
		}
		return nil
	})
	require.Contains(t, out, "1 regions have none")
	for _, p := range left {
		_, err := p.End(syscall.SIGTERM, 20*time.Second)
		require.NoError(t, err)
		dir := map[string]string{"DIR": p.DataDir}
		require.Contains(t, tinyctl(t, inRecovery(t, "debug verify", dir)...), "regions")
		apply := inRecovery(t, "recover apply",
			map[string]string{"DIR": p.DataDir, "plan.json": plan})
		out := tinyctl(t, apply...)
		again := tinyctl(t, apply...)
		require.Contains(t, again, ": 0 regions go on", "after %s", out)
		require.Contains(t, tinyctl(t, inRecovery(t, "debug regions", dir)...), "store ")
		require.NotContains(t, tinyctl(t, inRecovery(t, "debug keys", dir)...), "error")
		require.NoError(t, p.Start())
		require.NoError(t, p.WaitReady(t.Context()))
	}
	waitReplicas(t, c, 3)
	fresh := open(t, c)
	for i := range 50 {
		v, found, err := fresh.Get(t.Context(), fmt.Appendf(nil, "%c%d", 'a'+i%26, i))
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, fmt.Sprint(i), string(v))
	}
	require.NoError(t, fresh.Put(t.Context(), []byte("after"), []byte("x")))
	for _, p := range lost {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		out, err := exec.CommandContext(ctx, filepath.Join(binDir, "tinykv-server"), "--addr",
			"127.0.0.1:0", "--status-addr", "127.0.0.1:0",
			"--data-dir", p.DataDir, "--scheduler", c.Schedulers[0].Addr).CombinedOutput()
		cancel()
		require.Error(t, err)
		require.Contains(t, string(out), "was removed from the cluster")
	}
}
