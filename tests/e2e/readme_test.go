package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var readmeCommand = regexp.MustCompile(`(?m)^bin/(tinyctl|tinyscheduler|tinykv-server)(?: (.*))?$`)

// readme returns the commands of a binary in README.md, each as its words.
func readme(t *testing.T, binary string) (out [][]string) {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	for _, m := range readmeCommand.FindAllStringSubmatch(string(text), -1) {
		if m[1] == binary {
			out = append(out, strings.Fields(m[2]))
		}
	}
	require.NotEmpty(t, out, "README.md has no command of %s", binary)
	return out
}

// TestReadmeSession runs the first session of README.md as it is written: the playground, at other
// ports, and what the reader enters in another terminal; the benchmark is shortened.
func TestReadmeSession(t *testing.T) {
	commands := readme(t, "tinyctl")
	require.Equal(t, []string{"playground", "--tmp"}, commands[0])
	base := freeBase(t)
	playground := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"),
		append(commands[0], "--base-port", strconv.Itoa(base))...)
	out := new(output)
	playground.Stdout, playground.Stderr = out, out
	require.NoError(t, playground.Start())
	ended := make(chan error, 1)
	go func() { ended <- playground.Wait() }()
	out.waitFor(t, "Ctrl-C stops everything.")
	prints := map[string]string{
		"put": "", "get": "world\n", "scan": "hello", "cas": "", "status": "replicas and a leader",
		"region": "LEADER", "trace": "append-log", "bench": "put",
	}
	for _, words := range commands[1:] {
		want, known := prints[words[0]]
		require.True(t, known, "this test does not know tinyctl %s", words[0])
		delete(prints, words[0])
		if words[0] == "bench" { // the last of two equal flags counts
			words = append(words, "--duration", "200ms", "--warmup", "0s", "--keys", "1000")
		}
		eventually(t, time.Minute, func() error { // status is not ok before all replicas are there
			cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"), words...)
			cmd.Env = append(os.Environ(), fmt.Sprintf("TINYCTL_SCHEDULER=127.0.0.1:%d", base))
			printed, err := cmd.CombinedOutput()
			if err == nil && !strings.Contains(string(printed), want) {
				err = fmt.Errorf("no %q", want)
			}
			if err != nil {
				return fmt.Errorf("tinyctl %s: %w: %s", strings.Join(words, " "), err, printed)
			}
			return nil
		})
	}
	require.Empty(t, prints, "not in README.md any more")
	require.NoError(t, playground.Process.Signal(syscall.SIGINT))
	select {
	case err := <-ended:
		require.NoError(t, err, "%s", out)
	case <-time.After(30 * time.Second):
		_ = playground.Process.Kill()
		t.Fatalf("did not end: %s", out)
	}
}

// TestReadmeServers: the servers take the flags that README.md gives them for a cluster by hand.
func TestReadmeServers(t *testing.T) {
	for _, binary := range []string{"tinyscheduler", "tinykv-server"} {
		for _, words := range readme(t, binary) {
			cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, binary),
				append(words, "--config-check")...)
			cmd.Dir = t.TempDir()
			printed, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s %s: %s", binary, strings.Join(words, " "), printed)
		}
	}
}
