package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	shared "github.com/tinykv/tinykv/pkg/cli"
)

// run calls the command and returns its exit code and what it printed.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Chdir(t.TempDir())
	var out, errOut bytes.Buffer
	code = Main(args, &out, &errOut)
	return code, out.String(), errOut.String()
}

func TestUsageErrors(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"--client-url x", "unknown flag --client-url, did you mean --client-urls?"},
		{"-datadir x", "did you mean --data-dir?"},
		{"--zzzzzzzzzzzz", "unknown flag --zzzzzzzzzzzz"},
		{"start", `unexpected argument "start"`},
		{"--name", "flag needs an argument"},
		{"--log-level loud", "is not one of debug, info"},
		{"--client-urls 127.0.0.1:1", "client-urls: "},
		{"--initial-cluster b=http://127.0.0.1:1 --name a", `does not name this member "a"`},
		{"--config /does/not/exist", "no such file"},
	} {
		code, _, stderr := call(t, strings.Fields(tc.args)...)
		require.Equal(t, shared.ExitUsage, code, tc.args)
		require.Contains(t, stderr, tc.want, tc.args)
		require.Len(t, strings.Split(strings.TrimSpace(stderr), "\n"), 2, "one line and a hint: %s",
			stderr)
	}
}

func TestSingleDashSpellings(t *testing.T) {
	f := newFlags()
	require.NoError(t, shared.Parse(f.set, []string{
		"-name", "a", "-client-urls=http://127.0.0.1:1", "-L", "debug", "-Lwarn", "-data-dir", "d",
		"-force-new-cluster",
	}))
	require.Equal(t, "a", f.values.Name)
	require.Equal(t, "http://127.0.0.1:1", f.values.ClientUrls)
	require.Equal(t, "warn", f.values.LogLevel)
	require.True(t, f.values.ForceNewCluster)
	cfg, err := f.build()
	require.NoError(t, err)
	require.Equal(t, "a=http://127.0.0.1:2380", cfg.InitialCluster)
}

func TestZeroFlags(t *testing.T) {
	f := newFlags()
	require.NoError(t, shared.Parse(f.set, nil))
	cfg, err := f.build()
	require.NoError(t, err)
	require.Equal(t, "default."+cfg.Name, cfg.DataDir)
	require.True(t, strings.HasPrefix(cfg.Name, "pd-"))
	require.Equal(t, "http://127.0.0.1:2379", cfg.AdvertiseClientUrls)
}

// The sample is a valid file, and flags override what a file says.
func TestSampleAndOverride(t *testing.T) {
	code, sample, _ := call(t, "--print-sample-config")
	require.Equal(t, shared.ExitOK, code)
	path := filepath.Join(t.TempDir(), "c.toml")
	require.NoError(t, os.WriteFile(path, []byte(sample), 0o600))
	code, out, stderr := call(t, "--config", path, "--config-check")
	require.Equal(t, shared.ExitOK, code, stderr)
	require.Contains(t, out, "fine")
	f := newFlags()
	require.NoError(t, shared.Parse(f.set, []string{"--config", path, "--name", "other"}))
	cfg, err := f.build()
	require.NoError(t, err)
	require.Equal(t, "other", cfg.Name)

	require.NoError(t,
		os.WriteFile(path, []byte("[schedule]\nmax-store-downtime = \"1m\"\n"), 0o600))
	code, _, stderr = call(t, "--config", path, "--config-check")
	require.Equal(t, shared.ExitUsage, code)
	require.Contains(t, stderr,
		`c.toml, line 2, column 1: unknown key "schedule.max-store-downtime", did you mean "schedule.max-store-down-time"?`)

	require.NoError(t, os.WriteFile(path, []byte("[replication]\n  max-replicas = 99\n"), 0o600))
	code, _, stderr = call(t, "--config", path, "--config-check")
	require.Equal(t, shared.ExitUsage, code)
	require.Contains(t, stderr,
		"c.toml, line 2, column 3: replication.max-replicas: 99 is not between 1 and 15")

	require.NoError(t, os.WriteFile(path, []byte("mode = \"x\"\n"), 0o600))
	code, _, stderr = call(t, "--config", path, "--config-check", "--mode", "y")
	require.Equal(t, shared.ExitUsage, code)
	require.NotContains(t, stderr, "line", "the flag is wrong, not the file")
}

func TestVersionAndHelp(t *testing.T) {
	for _, flag := range []string{"--version", "-V", "-version"} {
		code, out, _ := call(t, flag)
		require.Equal(t, shared.ExitOK, code)
		require.Contains(t, out, "Go Version:")
	}
	code, out, _ := call(t, "--help")
	require.Equal(t, shared.ExitOK, code)
	require.Contains(t, out, "--initial-cluster")
}
