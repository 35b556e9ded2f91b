package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	shared "github.com/tinykv/tinykv/pkg/cli"
)

// TestRefusedAtOnce: addresses that cannot work, and doors that would be open, end the start with
// one line.
func TestRefusedAtOnce(t *testing.T) {
	for want, args := range map[string][]string{
		"in the same way":        {"--scheduler", "https://a:1,http://b:1"},
		"no such file":           {"--scheduler", "https://a:1", "--ca", "/does/not/exist"},
		"certificate and key go": {"--scheduler", "https://a:1", "--cert", "/does/not/exist"},
		"--insecure":             {"--addr", "10.0.0.1:20160"},
		"advertise-addr":         {"--addr", "0.0.0.0:20160", "--insecure"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, shared.ExitUsage, Main(append(args, "--config-check"), &out, &errs), "%v",
			args)
		require.Contains(t, errs.String(), want)
		require.Equal(t, 1, bytes.Count(errs.Bytes(), []byte("\n")), errs.String())
	}
	for _, args := range [][]string{
		{"--addr", "10.0.0.1:20160", "--insecure"}, {"--scheduler", "https://a:1,b:1"},
		{"--pd", "http://a:1,b:1"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, shared.ExitOK, Main(append(args, "--config-check"), &out, &errs), "%v: %s",
			args, &errs)
	}
}

// TestFaultsOfFilesHaveTheirPlace: --config-check says where the file is wrong, and that the
// command line is where it is.
func TestFaultsOfFilesHaveTheirPlace(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "c.toml")
	check := func(text string, args ...string) string {
		require.NoError(t, os.WriteFile(conf, []byte(text), 0o600))
		var out, errs bytes.Buffer
		require.Equal(t, shared.ExitUsage,
			Main(append(args, "--config", conf, "--config-check"), &out, &errs))
		return errs.String()
	}
	require.Contains(t, check("addr = 127\n"), "c.toml, line 1, column 1: addr: incompatible types")
	require.Contains(t, check("[storage\n"), "c.toml, line 1, column 9: ")
	require.Contains(t, check("[storage]\n  engin = \"x\"\n"),
		"c.toml, line 2, column 3: unknown key")
	both := check("data-dir = \"\"\n[storage]\n  engine = \"x\"\n")
	require.Contains(t, both, "c.toml, line 1, column 1: data-dir: must not be empty")
	require.Contains(t, both, "c.toml, line 3, column 3: storage.engine: ")
	require.NotContains(t, check("[storage]\nengine = \"x\"\n", "--engine", "y"), "line")
}
