package tikv

import (
	"context"
	"encoding/json"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/rawkv"

	"github.com/tinykv/tinykv/tests/tikv/load"
)

// loads: the load by TiKV's client finds the keys that tinyctl's has written, and its result has
// tinyctl's fields.
func (c *cluster) loads(t *testing.T, cl *rawkv.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	t.Cleanup(func() {
		start := load.Key(0)[:8]
		end := append(slices.Clone(start), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
		require.NoError(t, cl.DeleteRange(context.Background(), start, end))
	})
	bench := exec.CommandContext(ctx, filepath.Join(binDir, "tinyctl"), "-s", c.scheduler.addr,
		"bench", "--phases", "load", "--keys", "500",
		"--value-size", "20", "--format", "json")
	out, err := bench.Output()
	require.NoError(t, err)
	measuring := 0
	conf := load.Config{
		Phase: "get", Workers: 4, Keys: 500, ValueSize: 20, Warmup: 10 * time.Millisecond,
		Duration: 300 * time.Millisecond,
		PIDs:     []int{c.stores[0].cmd.Process.Pid}, OnMeasure: func() { measuring++ },
	}
	res, err := load.Run(ctx, cl, conf)
	require.NoError(t, err)
	require.Equal(t, 1, measuring)
	require.Positive(t, res.Ops)
	require.Zero(t, res.Errors, res.FirstError)
	conf.Phase = "put"
	_, err = load.Run(ctx, cl, conf)
	require.NoError(t, err)
	conf.Phase, conf.Keys = "get", 5000
	res, err = load.Run(ctx, cl, conf)
	require.True(t, err != nil || res.Errors > 0, "keys that are not there")

	var own, ours map[string]any
	require.NoError(t, json.Unmarshal(out, &own))
	text, err := json.Marshal(res)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &ours))
	known := append(slices.Collect(maps.Keys(own)), "first_error")
	for name := range ours {
		require.Contains(t, known, name)
	}
	for _, name := range []string{"ops", "ops_per_s", "p50_us", "p99_us", "errors", "workers"} {
		require.Contains(t, ours, name)
	}
}
