package ctl

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestBenchUsage: what cannot be measured is refused before anything is connected.
func TestBenchUsage(t *testing.T) {
	for argv, want := range map[string]string{
		"bench --phases put,pet":                   `unknown phase "pet"`,
		"bench --workers 0":                        "must be positive",
		"bench --key-size 7":                       "at least 8 bytes",
		"bench --zipf --zipf-theta 1.1":            "between 0 and 1",
		"bench --format xml":                       `"xml" is neither table nor json`,
		"bench --driver redis":                     `"redis" is neither tinykv nor etcd`,
		"bench --driver etcd --unary":              "--unary is for the driver tinykv",
		"bench --leader-only":                      "--leader-only is for the driver etcd",
		"bench --conns -1":                         "--conns must be positive",
		"bench ycsb walk":                          `"walk" is neither load nor run`,
		"bench ycsb run z":                         `workload "z" is none of core, a, b, c, d, e, f`,
		"bench ycsb run a -p recordcount=many":     "recordcount=many: want a whole number",
		"bench ycsb run a -p recordcount":          "is not key=value",
		"bench ycsb run -P /does/not/exist":        "no such file",
		"bench ycsb run --threads -1 -p x=1":       "threadcount=-1",
		"bench ycsb load a --driver x -p target=5": `"x" is neither tinykv nor etcd`,
	} {
		code, out, errs := run(strings.Fields(argv)...)
		require.Equal(t, exitUsage, code, "%s: %s", argv, errs)
		require.Contains(t, errs, want, argv)
		require.Equal(t, 1, strings.Count(errs, "\n"), errs)
		require.Empty(t, out)
	}
}

// TestGeneratesLoad: what counts is the command, not a word among its arguments.
func TestGeneratesLoad(t *testing.T) {
	for line, want := range map[string]bool{
		"bench": true, "bench --workers 3": true, "--scheduler h:1 bench": true,
		"-s h:1 bench ycsb load a": true,
		"put bench 1":              false, "get bench": false, "--scheduler bench status": false,
		"": false, "bnech": false, "--help": false,
	} {
		require.Equal(t, want, GeneratesLoad(strings.Fields(line)), line)
	}
}
