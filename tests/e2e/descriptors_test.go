package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// fewFiles makes a directory of binaries whose stores may have n files open.
func fewFiles(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t,
		os.Symlink(filepath.Join(binDir, "tinyscheduler"), filepath.Join(dir, "tinyscheduler")))
	script := fmt.Sprintf("#!/bin/sh\nulimit -n %d || exit 3\nexec '%s' \"$@\"\n", n,
		filepath.Join(binDir, "tinykv-server"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tinykv-server"), []byte(script), 0o755))
	return dir
}

// openFiles counts the descriptors of a process.
func openFiles(t *testing.T, p *localcluster.Process) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	require.NoError(t, err)
	return len(list)
}

// TestFewDescriptors: 1,000 idle connections to each of three stores with 400 descriptors. Tables
// are written and read, another client is served, and no store comes near its limit.
func TestFewDescriptors(t *testing.T) {
	const limit = 400
	c, err := localcluster.New(localcluster.Options{
		BinDir: fewFiles(t, limit), Dir: t.TempDir(), Stores: 3, Schedulers: 1,
		StoreConfig: fastStores,
		OnExit: func(p *localcluster.Process, err error) {
			t.Errorf("%s ended by itself (%s): %s", p.Name, localcluster.ExitText(err),
				p.LastWords())
		},
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	require.NoError(t, c.Start(t.Context()))
	cl := open(t, c)
	require.NoError(t, cl.Put(t.Context(), []byte("first"), nil))
	for _, p := range c.Stores {
		for range 1000 {
			nc, err := net.Dial("tcp", p.Addr)
			require.NoError(t, err)
			t.Cleanup(func() { _ = nc.Close() })
			_, err = nc.Write(append([]byte(http2.ClientPreface), 0, 0, 0,
				byte(http2.FrameSettings), 0, 0, 0, 0, 0))
			require.NoError(t, err)
		}
	}
	value := make([]byte, 64<<10)
	key := func(i int) []byte { return fmt.Appendf(nil, "k%04d", i) }
	for i := range 300 { // several memtables of 4 MiB
		require.NoError(t, cl.Put(t.Context(), key(i), value))
	}
	other := open(t, c)
	for i := range 300 {
		_, found, err := other.Get(t.Context(), key(i))
		require.NoError(t, err)
		require.True(t, found)
	}
	for _, p := range c.Stores {
		require.Less(t, openFiles(t, p), limit*3/4, p.Name)
	}
}

// TestTooFewDescriptors: a server says what it needs and does not start.
func TestTooFewDescriptors(t *testing.T) {
	for _, bin := range []string{"tinykv-server", "tinyscheduler"} {
		dir := t.TempDir()
		cmd := exec.Command("sh", "-c",
			fmt.Sprintf("ulimit -n 200; exec %s --data-dir %s", filepath.Join(binDir, bin), dir))
		timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		out, err := cmd.CombinedOutput()
		timer.Stop()
		require.Error(t, err)
		require.Equal(t, 1, cmd.ProcessState.ExitCode(), string(out))
		require.Contains(t, string(out),
			"the limit of open files is 200, and at least 256 are needed", bin)
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, left, "nothing was written")
	}
}
