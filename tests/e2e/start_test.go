package e2e

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMessagesAreRegisteredOnce: a store executes itself again before its packages are initialized, not after; the
// registration of TiKV's messages is half of what a start costs.
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
		require.Equal(t, 1, strings.Count(trace, "init github.com/pingcap/kvproto/pkg/kvrpcpb @"), "%q: %s", env, trace)
	}
}
