package server_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// TestHolds: ranges that are held are listed, kept by the leaders that follow, and released by
// name.
func TestHolds(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	leader, rest := leaderOf(t, members)
	_, _ = bootstrapped(t, leader, 1)
	require.Empty(t, call(t, leader, "GET", "/holds", "", 200)["holds"])
	for _, bad := range []string{
		`{"start":"x"}`, `{"start":"62","end":"61"}`, `{"for":"-1h"}`, `{"for":"1000000h"}`,
		`{"untl":"1h"}`,
	} {
		call(t, leader, "POST", "/holds", bad, 400)
	}
	call(t, leader, "POST", "/holds", `{"start":"61","end":"62","for":"2h","why":"import"}`, 200)
	call(t, rest[0], "POST", "/holds", `{"start":"70"}`, 200) // a follower passes it on
	call(t, leader, "POST", "/holds", `{"start":"61","end":"62","for":"4h","why":"import"}`, 200)
	next := nextLeader(t, members, leader)
	holds := call(t, next, "GET", "/holds", "", 200)["holds"].([]any)
	require.Len(t, holds, 2)
	first := holds[0].(map[string]any)
	require.Equal(t, "61", first["start"])
	require.Equal(t, "import", first["why"])
	require.InDelta(t, (4 * time.Hour).Seconds(), first["seconds"], 120)
	require.InDelta(t, (24 * time.Hour).Seconds(), holds[1].(map[string]any)["seconds"], 120)
	call(t, next, "DELETE", "/holds?start=61&end=63", "", 404)
	require.Len(t, call(t, next, "DELETE", "/holds?start=61&end=62", "", 200)["holds"], 1)
	last := nextLeader(t, members, next)
	require.Len(t, call(t, last, "GET", "/holds", "", 200)["holds"], 1)
}

// TestExplainMerge says why a region is not merged, without the feature.
func TestExplainMerge(t *testing.T) {
	s := servertest.StartTest(t)
	_, _ = bootstrapped(t, s, 1)
	out := call(t, s, "GET", "/explain?scheduler=merge&region=1000", "", 200)
	decision := out["decisions"].([]any)[0].(map[string]any)
	require.Equal(t, "merge", decision["scheduler"])
	require.NotEmpty(t, decision["lines"])
	call(t, s, "GET", "/explain?scheduler=merge&region=7", "", 404)
	call(t, s, "GET", "/explain?scheduler=balance-region&region=1000", "", 400)
	call(t, s, "GET", "/explain?scheduler=merge&region=x", "", 400)
	// The policy can be paused like a scheduler.
	call(t, s, "POST", "/schedulers/merge/pause?for=1h", "", 200)
	require.True(t, s.Cluster().Planner().PausedUntil("merge").After(time.Now()))
}
