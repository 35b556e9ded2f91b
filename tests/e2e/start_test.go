package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMessagesAreRegisteredOnce: a store executes itself again before its packages are initialized,
// not after; the registration of TiKV's messages is half of what a start costs.
func TestMessagesAreRegisteredOnce(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("no timer slack on " + runtime.GOOS)
	}
	for env, want := range map[string]int{"": 2, "off": 1} { // executions
		cmd := exec.Command(filepath.Join(binDir, "tinykv-server"), "--version")
		cmd.Env = append(cmd.Environ(), "GODEBUG=inittrace=1", "TINYKV_TIMER_SLACK="+env)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		trace := string(out)
		require.Equal(t, want, strings.Count(trace, "init os @"), "%q: %s", env, trace)
		require.Equal(t, 1, strings.Count(trace, "init github.com/pingcap/kvproto/pkg/kvrpcpb @"),
			"%q: %s", env, trace)
	}
}

// TestKeyspaceSplit: one command makes 64 regions of a prefix, led by all stores alike; and a file
// of keys 4 of another one.
func TestKeyspaceSplit(t *testing.T) {
	c := start(t, 3)
	waitReplicas(t, c, 3)
	split := func(args ...string) (got struct {
		Regions int
		Leaders map[string]int
	}) {
		args = append([]string{
			"--scheduler", c.Endpoints()[0], "-o", "json", "--timeout", "1m", "keyspace", "split",
		}, args...)
		require.NoError(t, json.Unmarshal([]byte(tinyctl(t, args...)), &got))
		return got
	}
	got := split("--prefix", "user:", "--into", "64", "--like", "uuid")
	require.Equal(t, 64, got.Regions)
	require.Len(t, got.Leaders, 3)
	for store, n := range got.Leaders {
		require.InDelta(t, 64.0/3, n, 4, "store %s of %v", store, got.Leaders)
	}
	sample := filepath.Join(t.TempDir(), "keys")
	require.NoError(t, os.WriteFile(sample, []byte("a1\na2\na3\na4\na5\na6\na7\na8\n"), 0o600))
	require.Equal(t, 4, split("--prefix", "a", "--into", "4", "--like", sample).Regions)
	var list []struct {
		Start string `json:"start_key"`
	}
	require.NoError(t,
		json.Unmarshal(
			[]byte(tinyctl(t, "--scheduler", c.Endpoints()[0], "-o", "json", "region", "list")),
			&list))
	require.Len(t, list, 1+64+4)
}
