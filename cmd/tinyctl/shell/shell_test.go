package shell

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// script runs lines and returns the commands that were run, the exit code and what was printed.
func script(t *testing.T, lines string, run func(args []string) int) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = Run(Options{In: strings.NewReader(lines), Out: &o, Err: &e, Run: run})
	return code, o.String(), e.String()
}

func TestScript(t *testing.T) {
	var ran [][]string
	run := func(args []string) int {
		ran = append(ran, args)
		if args[0] == "fail" {
			return 3
		}
		return 0
	}
	code, _, errs := script(t,
		"put 'a b' \"c\\\"d\"\n\n# a comment\nget k # its value\nexit\nget never\n", run)
	require.Zero(t, code, errs)
	require.Equal(t, [][]string{{"put", "a b", `c"d`}, {"get", "k"}}, ran)

	ran = nil
	code, _, errs = script(t, "get a\nfail now\nget never", run)
	require.Equal(t, 3, code)
	require.Equal(t, "tinyctl: line 2: fail now\n", errs)
	require.Len(t, ran, 2)

	for _, wrong := range []string{
		"get 'a", "shell", `\watch`, "get a\n\\watch soon", "get a\n\\watch 0",
	} {
		code, _, errs = script(t, wrong, run)
		require.Equal(t, 2, code, wrong)
		require.NotEmpty(t, errs)
	}
}

// TestWatchEndsWithAFailure: what is watched runs again and again until it fails.
func TestWatchEndsWithAFailure(t *testing.T) {
	n := 0
	code, out, _ := script(t, "status\n\\watch 0.1\n", func([]string) int {
		if n++; n == 4 {
			return 1
		}
		return 0
	})
	require.Equal(t, 1, code)
	require.Equal(t, 4, n)
	require.Equal(t, 2, strings.Count(out, "-- "))
}

func TestCompletion(t *testing.T) {
	o := &Options{Complete: func(words []string, partial string) (out []string) {
		all := map[string][]string{"": {"scan", "status", "store"}, "store": {"list", "show"}}
		for _, w := range all[strings.Join(words, " ")] {
			if strings.HasPrefix(w, partial) {
				out = append(out, w)
			}
		}
		return out
	}}
	for _, c := range []struct{ line, want, lists string }{
		{"sc|", "scan |", ""},
		{"s|", "s|", "scan  status  store\n"},
		{"st|", "st|", "status  store\n"},
		{"sto| x", "store | x", ""},
		{"store sh|", "store show |", ""},
		{"x|", "", ""},
		{"'|", "", ""},
	} {
		pos := strings.Index(c.line, "|")
		var listed bytes.Buffer
		line, at, ok := complete(o, strings.Replace(c.line, "|", "", 1), pos, &listed)
		require.Equal(t, c.want != "", ok, c.line)
		if ok {
			require.Equal(t, c.want, line[:at]+"|"+line[at:])
		}
		require.Equal(t, c.lists, listed.String())
	}
}

func TestHistory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	h := openHistory(path, os.Stderr)
	for _, line := range []string{"a", "b", "b", " ", "c"} {
		h.Add(line)
	}
	h.close()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	h = openHistory(path, os.Stderr)
	defer h.close()
	require.Equal(t, 3, h.Len())
	require.Equal(t, "c", h.At(0))
	require.Equal(t, "a", h.At(2))
	var errs bytes.Buffer
	require.Zero(t, openHistory(filepath.Join(path, "x"), &errs).Len())
	require.Contains(t, errs.String(), "there is no history")
}
