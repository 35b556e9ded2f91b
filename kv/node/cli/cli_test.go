package cli

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	shared "github.com/tinykv/tinykv/pkg/cli"
)

// TestRefusedAtOnce: addresses that cannot work, and doors that would be open, end the start with one line.
func TestRefusedAtOnce(t *testing.T) {
	for want, args := range map[string][]string{
		"in the same way":        {"--scheduler", "https://a:1,http://b:1"},
		"no such file":           {"--scheduler", "https://a:1", "--ca", "/does/not/exist"},
		"certificate and key go": {"--scheduler", "https://a:1", "--cert", "/does/not/exist"},
		"--insecure":             {"--addr", "10.0.0.1:20160"},
		"advertise-addr":         {"--addr", "0.0.0.0:20160", "--insecure"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, shared.ExitUsage, Main(append(args, "--config-check"), &out, &errs), "%v", args)
		require.Contains(t, errs.String(), want)
		require.Equal(t, 1, bytes.Count(errs.Bytes(), []byte("\n")), errs.String())
	}
	for _, args := range [][]string{
		{"--addr", "10.0.0.1:20160", "--insecure"}, {"--scheduler", "https://a:1,b:1"}, {"--pd", "http://a:1,b:1"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, shared.ExitOK, Main(append(args, "--config-check"), &out, &errs), "%v: %s", args, &errs)
	}
}
