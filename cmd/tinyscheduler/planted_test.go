package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// planted are bugs that the tests must find: source text and what takes its place, the test that
// finds it, and in how many tries or how much time. They are compiled by way of an overlay, so that
// the service's own code knows nothing of them.
var planted = []struct {
	name, file string
	change     [2]string
	pkg, run   string
	env        string        // %d is the number of the try
	tries      int           // 1 if not given
	limit      time.Duration // for one try without compiling; none if not given
}{
	{
		name: "B16-stale-heartbeat-accepted", file: "scheduler/server/core/heartbeat.go",
		change: [2]string{
			"	if n.version < old.version || n.confVer < old.confVer {\n		return true\n	}\n", "",
		},
		pkg: "./scheduler/server/core", run: "TestRegionMapAgainstModel3C", limit: 10 * time.Second,
	},
	{
		name: "B16-stale-term-accepted", file: "scheduler/server/core/heartbeat.go",
		change: [2]string{" && n.term != 0 && n.term < old.term", " && false"},
		pkg:    "./scheduler/server/core", run: "TestRegionMapAgainstModel3C",
		limit: 10 * time.Second,
	},
	{
		name: "B16-stale-overlap-accepted", file: "scheduler/server/core/heartbeat.go",
		change: [2]string{
			"	return n.version < old.version || (n.version == old.version && n.confVer < old.confVer)\n", "	return false\n",
		},
		pkg: "./scheduler/server/core", run: "TestRegionMapAgainstModel3C", limit: 10 * time.Second,
	},
	{
		name: "B17-window-not-rebased", file: "scheduler/server/id/id.go",
		change: [2]string{
			"	next := end + 1\n",
			"	next := end + 1\n	if a.mu.end == 0 && end >= Window {\n		next = end + 1 - Window\n	}\n",
		},
		pkg: "./cmd/tinyscheduler", run: "TestKills3C", env: "SCHED_KILLS=2 SCHED_SEED=%d",
		tries: 5,
	},
	{
		name: "B17-window-of-a-former-term-kept", file: "scheduler/server/id/id.go",
		change: [2]string{"	if a.mu.term != term {\n", "	if a.mu.term == 0 {\n"},
		pkg:    "./scheduler/server/member", run: "TestIDsAndTimestampsOver200Leaders3C", tries: 5,
	},
	{
		name: "ids-reserved-without-fence", file: "scheduler/server/id/id.go",
		change: [2]string{
			"storage.RevisionIs(a.key, kv.ModRevision), fence}",
			"storage.RevisionIs(a.key, kv.ModRevision)}",
		},
		pkg: "./scheduler/server/member", run: "TestDeposedLeaderWritesNothing",
	},
	{
		name: "bound-saved-without-fence", file: "scheduler/server/tso/tso.go",
		change: [2]string{
			"[]storage.Cond{fence}, []storage.Op{storage.Put(o.key, value)}",
			"nil, []storage.Op{storage.Put(o.key, value)}",
		},
		pkg: "./scheduler/server/member", run: "TestDeposedLeaderWritesNothing",
	},
	{
		name: "timestamp-bound-not-respected", file: "scheduler/server/tso/tso.go",
		change: [2]string{
			"	start := max(o.now().UnixMilli(), bound)\n",
			"	start := o.now().UnixMilli()\n	_ = bound\n",
		},
		pkg: "./scheduler/server/member", run: "TestIDsAndTimestampsOver200Leaders3C", tries: 5,
	},
	{
		name: "voters-added-empty", file: "scheduler/server/schedule/view/view.go",
		change: [2]string{
			"	if !v.Settings.Schedule.LearnerFirst {\n",
			"	if v.Settings.Schedule.LearnerFirst {\n",
		},
		pkg: "./scheduler/sim", run: "TestScenarios3C/learners",
	},
	{
		name: "learner-promoted-before-its-data", file: "scheduler/server/schedule/controller.go",
		change: [2]string{
			"; !ok || !v.Healthy(r, p) {\n			return // its vote",
			"; !ok || p.ID == 0 {\n			return // its vote",
		},
		pkg: "./scheduler/server/schedule", run: "TestTranscripts/learners",
	},
	{
		name: "learner-counts-as-a-replica", file: "scheduler/server/schedule/checker/replica.go",
		change: [2]string{
			"	if r.Voters() > v.MaxReplicas() {\n		return remove(v, r, d,",
			"	if len(r.Peers()) > v.MaxReplicas() {\n		return remove(v, r, d,",
		},
		pkg: "./scheduler/server/schedule", run: "TestTranscripts/learners",
	},
	{
		name: "learner-left-for-ever", file: "scheduler/server/schedule/controller.go",
		change: [2]string{
			"	_, ok := c.mu.givenUp[peerID]\n	return ok\n", "	return false\n",
		},
		pkg: "./scheduler/server/schedule", run: "TestTranscripts/learners",
	},
	{
		name: "isolation-need-not-rise", file: "scheduler/server/schedule/checker/location.go",
		change: [2]string{"c.gain > 0 &&", "c.gain >= 0 &&"},
		pkg:    "./scheduler/sim", run: "TestScenarios3C/labels",
	},
	{
		name:   "moved-before-all-labels-are-there",
		file:   "scheduler/server/schedule/checker/location.go",
		change: [2]string{"	if v.Unlabeled() != 0 {", "	if false {"},
		pkg:    "./scheduler/sim", run: "TestScenarios3C/labels",
	},
	{
		name: "slow-disk-without-comparison", file: "scheduler/server/core/slow.go",
		change: [2]string{"own < slowSync || own < slowFactor*usual", "own < slowSync"},
		pkg:    "./scheduler/sim", run: "TestScenarios3C/disk",
	},
	{
		name: "slow-disk-by-one-report", file: "scheduler/server/core/slow.go",
		change: [2]string{"now.Sub(s.suspect) < suspicion", "false"},
		pkg:    "./scheduler/sim", run: "TestScenarios3C/disk",
	},
	{
		name: "slow-disk-is-forgiven-at-once", file: "scheduler/server/core/slow.go",
		change: [2]string{"now.Before(s.slow.Until)", "s.slow.Now()"},
		pkg:    "./scheduler/sim", run: "TestScenarios3C/disk",
	},
	{
		name: "slow-majority-changes-its-leader", file: "scheduler/server/schedulers/evict_slow.go",
		change: [2]string{"|| !quickMajority(v, r)", ""},
		pkg:    "./scheduler/server/schedulers", run: "TestEvictSlowStore",
	},
	{
		name: "unconfirmed-record-moves-an-operator",
		file: "scheduler/server/schedule/controller.go",
		change: [2]string{
			"	if !r.Confirmed() {\n		if now.After", "	if false {\n		if now.After",
		},
		pkg: "./scheduler/sim", run: "TestScenarios3C/every_event",
	},
	{
		name: "held-regions-are-merged", file: mergeFile,
		change: [2]string{"p.held(r, v.Now); ok {", "p.held(r, v.Now); ok && false {"},
		pkg:    "./scheduler/sim", run: "TestScenarios3C/merge",
	},
	{
		name: "merged-right-after-a-split", file: mergeFile,
		change: [2]string{"p.splitAt(r.ID()); ok &&", "p.splitAt(r.ID()); ok && false &&"},
		pkg:    "./scheduler/sim", run: "TestScenarios3C/merge",
	},
	{
		name: "merged-beyond-the-size-of-a-split", file: mergeFile,
		change: [2]string{"sum > lim.Joined {", "sum > 1000*lim.Joined {"},
		pkg:    "./scheduler/sim", run: "TestScenarios3C/merge",
	},
	{
		name: "guessed-sizes-are-believed", file: mergeFile,
		change: [2]string{"	case !r.Measured():", "	case false:"},
		pkg:    "./scheduler/server/schedule/merge", run: "TestTranscripts",
	},
	{
		name: "failed-merges-come-again-at-once", file: mergeFile,
		change: [2]string{"v.Now, interval); waits {", "v.Now, interval); waits && false {"},
		pkg:    "./scheduler/server/schedule/merge", run: "TestTranscripts",
	},
	{
		name: "balance-moves-what-is-merged", file: "scheduler/server/schedulers/balance_region.go",
		change: [2]string{
			"if nearly(v, source, mean) &&", "if false && nearly(v, source, mean) &&",
		},
		pkg: "./scheduler/sim", run: "TestScenarios3C/merge",
	},
	{
		name: "half-of-a-merge-goes-on", file: "scheduler/server/schedule/controller.go",
		change: [2]string{
			"other.Partner() == op.RegionID() && st != operator.Success {", "false {",
		},
		pkg: "./scheduler/server/schedule", run: "TestTranscripts/merges",
	},
}

const mergeFile = "scheduler/server/schedule/merge/merge.go"

var took = regexp.MustCompile(`--- FAIL: \S+ \(([0-9.]+s)\)`)

// TestPlanted builds each bug in; its finder must fail.
func TestPlanted(t *testing.T) {
	if os.Getenv("PLANTED") == "" {
		t.Skip("PLANTED=1 runs it; it compiles the service and runs a test once for each bug")
	}
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	for _, bug := range planted {
		t.Run(bug.name, func(t *testing.T) {
			overlay := plant(t, filepath.Join(root, bug.file), bug.change)
			for try := 1; ; try++ {
				require.LessOrEqual(t, try, max(1, bug.tries), "not found")
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-overlay", overlay,
					"-run", "^"+bug.run+"$", bug.pkg)
				cmd.Dir = root
				cmd.Env = os.Environ()
				if bug.env != "" {
					env := strings.Replace(bug.env, "%d", fmt.Sprint(try), 1)
					cmd.Env = append(cmd.Env, strings.Fields(env)...)
				}
				out, err := cmd.CombinedOutput()
				cancel()
				if err == nil {
					continue
				}
				found := took.FindSubmatch(out)
				require.NotNil(t, found, "%s", out)
				d, err := time.ParseDuration(string(found[1]))
				require.NoError(t, err)
				t.Logf("found by %s in try %d, in %v", bug.run, try, d)
				if bug.limit > 0 {
					require.LessOrEqual(t, d, bug.limit)
				}
				return
			}
		})
	}
}

// plant writes an overlay in which the file has the change.
func plant(t *testing.T, file string, change [2]string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(data), change[0]), "the place of the bug is gone: %s",
		change[0])
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.go")
	require.NoError(t,
		os.WriteFile(bad, []byte(strings.Replace(string(data), change[0], change[1], 1)), 0o600))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{file: bad}})
	require.NoError(t, err)
	path := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(path, overlay, 0o600))
	return path
}
