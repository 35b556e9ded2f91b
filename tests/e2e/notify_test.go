package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/freeport"
)

// TestServiceManagerIsNotified: units of Type=notify are up when the server serves, and not before.
func TestServiceManagerIsNotified(t *testing.T) {
	ports, err := freeport.Find(4)
	require.NoError(t, err)
	url := func(i int) string { return fmt.Sprintf("http://127.0.0.1:%d", ports[i]) }
	dir := t.TempDir()

	// A store waits for the placement service, and does not report meanwhile.
	store := startNotified(t, "tinykv-server", "--addr", url(2)[len("http://"):], "--status-addr",
		url(3)[len("http://"):],
		"--scheduler", url(0), "--data-dir", filepath.Join(dir, "store"))
	store.waitFor(t, "waiting for the scheduler")
	require.NoError(t, store.reports.SetReadDeadline(time.Now()))
	_, err = store.reports.Read(make([]byte, 64))
	require.ErrorContains(t, err, "timeout", "reported before it serves")

	scheduler := startNotified(t, "tinyscheduler", "--name", "a", "--client-urls", url(0),
		"--peer-urls", url(1),
		"--data-dir", filepath.Join(dir, "a"))
	scheduler.expect(t, "READY=1")
	requireAnswers(t, url(0)+"/api/v1/version")
	store.expect(t, "READY=1")
	requireAnswers(t, url(3)+"/status")

	for _, p := range []*notified{store, scheduler} {
		require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
		p.expect(t, "STOPPING=1")
		require.NoError(t, p.cmd.Wait(), "%s", p.output)
	}
}

type notified struct {
	*output
	cmd     *exec.Cmd
	reports *net.UnixConn
}

func startNotified(t *testing.T, program string, args ...string) *notified {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	reports, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = reports.Close() })
	p := &notified{
		output:  new(output),
		cmd:     exec.CommandContext(t.Context(), filepath.Join(binDir, program), args...),
		reports: reports,
	}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.Env = append(p.cmd.Environ(), "NOTIFY_SOCKET="+path)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	return p
}

func (p *notified) expect(t *testing.T, want string) {
	t.Helper()
	require.NoError(t, p.reports.SetReadDeadline(time.Now().Add(20*time.Second)))
	buf := make([]byte, 64)
	n, err := p.reports.Read(buf)
	require.NoError(t, err, "%s", p.output)
	require.Equal(t, want, string(buf[:n]))
}

// requireAnswers asks once: after the report nothing may be refused any more.
func requireAnswers(t *testing.T, url string) {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode, url)
}
