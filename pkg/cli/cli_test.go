package cli

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	for line, want := range map[string]string{
		"--data-dir d -L debug": "d debug", "-data-dir d -Ldebug": "d debug",
		"-data-dir=d": "d info", "-L=warn": " warn",
		"--data-dri d":      "unknown flag --data-dri, did you mean --data-dir?",
		"-data-dri d":       "unknown flag --data-dri, did you mean --data-dir?",
		"--zzzzzzzzzzzzzzz": "unknown flag --zzzzzzzzzzzzzzz",
		"start":             `unexpected argument "start"`,
		"-- -data-dir":      `unexpected argument "-data-dir"`,
		"--data-dir":        "flag needs an argument: --data-dir",
	} {
		set := pflag.NewFlagSet("x", pflag.ContinueOnError)
		set.SetOutput(new(strings.Builder))
		dir, level := set.String("data-dir", "", ""), set.StringP("log-level", "L", "info", "")
		if err := Parse(set, strings.Fields(line)); err != nil {
			require.Equal(t, want, err.Error(), line)
			continue
		}
		require.Equal(t, want, *dir+" "+*level, line)
	}
}

// TestEditDistance compares with the definition.
func TestEditDistance(t *testing.T) {
	var naive func(a, b string) int
	naive = func(a, b string) int {
		switch {
		case a == "" || b == "":
			return len(a) + len(b)
		case a[0] == b[0]:
			return naive(a[1:], b[1:])
		}
		return 1 + min(naive(a[1:], b), naive(a, b[1:]), naive(a[1:], b[1:]))
	}
	word := rapid.StringMatching("[ab]{0,6}")
	rapid.Check(t, func(t *rapid.T) {
		a, b := word.Draw(t, "a"), word.Draw(t, "b")
		require.Equal(t, naive(a, b), editDistance(a, b), "%q %q", a, b)
	})
	require.Equal(t, "", DidYouMean("%q", "pd", nil))
}

func TestVersionText(t *testing.T) {
	require.True(t, strings.HasPrefix(VersionText("tiny"), "tiny "+Version+"\n"))
	Commit, CommitTime = "abc", "2026-01-02T03:04:05Z"
	t.Cleanup(func() { Commit, CommitTime = "", "" })
	require.Contains(t, VersionText("tiny"),
		"\nGit Commit Hash: abc\nCommit Time: 2026-01-02T03:04:05Z\n")
}
