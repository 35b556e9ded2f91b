package ctl

import (
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestHelpOfUnknownCommands: help about what does not exist is a usage error, and help about what
// exists is not.
func TestHelpOfUnknownCommands(t *testing.T) {
	for _, line := range []string{
		"nothing --help", "store nothing --help", "store --help nothing", "help nothing",
		"help store nothing", "txn nothing", "txn nothing -h", "lock nothing", "gc nothing",
		"cert nothing", "check nothing --help", "-s a:1 region nothing --help", "store -o json x -h",
	} {
		code, out, errs := run(strings.Fields(line)...)
		require.Equal(t, exitUsage, code, "%s: %s", line, out)
		require.Contains(t, errs, "unknown command", line)
		require.Equal(t, 1, strings.Count(errs, "\n"), errs)
	}
	for _, line := range []string{
		"--help", "-h", "help", "store --help", "help store show", "store show --help", "txn", "help txn",
		"store show 1 --help", "get --help x", "help bench", "bench --help", "help help",
	} {
		code, out, errs := run(strings.Fields(line)...)
		require.Zero(t, code, "%s: %s", line, errs)
		require.Contains(t, out, "Usage:", line)
	}
}

// TestCompletion asks as the scripts of the shells do; each shell gets a script.
func TestCompletion(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.Equal(t, "/api/v1/stores", r.URL.Path)
		_, _ = w.Write([]byte(`{"stores":[{"id":1,"address":"kv1:20160"}]}`))
	}))
	defer s.Close()
	here := s.Listener.Addr().String()
	for line, want := range map[string]string{
		"-s " + here + " store show": "1\n:4\n",
		"get -e":                     "text\nhex\nescaped\n:4\n",
		"status -o":                  "table\njson\n:4\n",
		"-s 127.0.0.1:1 store show":  ":4\n",
	} {
		argv := append([]string{"__completeNoDesc"}, strings.Fields(line)...)
		code, out, _ := run(append(argv, "")...)
		require.Zero(t, code, line)
		require.Equal(t, want, out, line)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		code, out, errs := run("completion", shell)
		require.Zero(t, code, errs)
		require.Contains(t, out, "__complete", shell)
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("no %s to check its script with", shell)
			continue
		}
		cmd := exec.CommandContext(t.Context(), path, "-n")
		cmd.Stdin = strings.NewReader(out)
		said, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", shell, said)
	}
}

// TestManualPage: every command is in it, and man finds no fault where it is there.
func TestManualPage(t *testing.T) {
	code, page, errs := run("man")
	require.Zero(t, code, errs)
	for _, name := range Commands() {
		require.Contains(t, page, ".SS tinyctl "+strings.ReplaceAll(name, "-", `\-`), name)
	}
	for _, check := range [][]string{{"mandoc", "-Tlint", "-Werror"}, {"groff", "-man", "-ww", "-z"}} {
		path, err := exec.LookPath(check[0])
		if err != nil {
			t.Logf("no %s to check the page with", check[0])
			continue
		}
		cmd := exec.CommandContext(t.Context(), path, check[1:]...)
		cmd.Stdin = strings.NewReader(page)
		said, err := cmd.CombinedOutput()
		require.NoError(t, err, string(said))
		require.Empty(t, string(said))
	}
}
