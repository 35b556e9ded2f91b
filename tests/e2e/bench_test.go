package e2e

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
)

// TestBench: every phase works over both protocols without an error, and the servers are found by
// their addresses; then the same cluster takes a workload of YCSB.
func TestBench(t *testing.T) {
	c := start(t, 3)
	// waits until the cluster serves
	require.NoError(t, open(t, c).Put(t.Context(), []byte("first"), nil))
	tinyctl := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"),
			append([]string{"-s", c.Endpoints()[0]}, args...)...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		require.NoError(t, err, errs.String())
		require.Empty(t, errs.String())
		return string(out)
	}
	phases := "load,put,get,mixed,scan,delete"
	for _, unary := range []bool{false, true} {
		// Long enough that a disk which hangs for some hundred milliseconds does not fill a whole
		// phase.
		args := strings.Fields(
			"bench --format json -w 4 --keys 200 --value-size 100 --key-size 20 --zipf --duration 2s --warmup 50ms --phases " + phases)
		name := "tinykv"
		if unary {
			args, name = append(args, "--unary"), "tinykv-unary"
		}
		var seen []string
		for line := range strings.Lines(tinyctl(args...)) {
			var r loadgen.Result
			d := json.NewDecoder(strings.NewReader(line))
			d.DisallowUnknownFields()
			require.NoError(t, d.Decode(&r), line)
			seen = append(seen, r.Phase)
			require.Equal(t, name, r.Driver)
			require.Positive(t, r.Ops, line)
			require.Zero(t, r.Errors, line)
			require.True(t,
				r.P50Us <= r.P95Us && r.P95Us <= r.P99Us && r.P99Us <= r.P999Us &&
					r.P999Us <= r.MaxUs, line)
			if r.Phase == "load" {
				require.EqualValues(t, 200, r.Ops)
			}
			if runtime.GOOS == "linux" {
				require.NotNil(t, r.ServerCPUPerKop, line)
				require.Greater(t, *r.ServerRSS, int64(4*10<<20), "four processes")
			}
		}
		require.Equal(t, phases, strings.Join(seen, ","))
	}
	require.Contains(t, tinyctl("bench", "-w", "1", "--keys", "10", "--phases", "load"), "OPS/S")

	require.Contains(t,
		tinyctl(strings.Fields("bench ycsb load f -p recordcount=50 -p threadcount=2")...),
		"INSERT - ")
	out := tinyctl(
		strings.Fields(
			"bench ycsb run f -p recordcount=50 -p operationcount=100 -p threadcount=2")...)
	require.Contains(t, out, "READ_MODIFY_WRITE - ")
	require.Contains(t, out, "Count: 100,")
	require.NotContains(t, out, "ERROR")
}
