package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// settingsConsole runs tinyctl against a secured cluster, with one certificate.
type settingsConsole struct {
	*testing.T
	c           *localcluster.Cluster
	certs, name string
}

func (k settingsConsole) try(line string) (code int, printed string) {
	k.Helper()
	f := filesOf(k.certs, k.name)
	argv := append([]string{
		"-s", strings.Join(k.c.Endpoints(), ","), "--ca", f.CA, "--cert", f.Cert, "--key", f.Key,
	}, strings.Fields(line)...)
	out, err := exec.CommandContext(k.Context(), filepath.Join(binDir, "tinyctl"),
		argv...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), string(out)
	}
	require.NoError(k, err)
	return 0, string(out)
}

func (k settingsConsole) run(code int, line string, want ...string) {
	k.Helper()
	got, out := k.try(line)
	require.Equal(k, code, got, "%s: %s", line, out)
	for _, w := range want {
		require.Contains(k, out, w, line)
	}
}

// logged is how often a text is in the logs of the stores.
func (k settingsConsole) logged(text string) (n int) {
	k.Helper()
	for _, p := range k.c.Stores {
		data, err := os.ReadFile(p.LogFile)
		require.NoError(k, err)
		n += strings.Count(string(data), text)
	}
	return n
}

// TestStoreSettings: each setting that can change while a store runs takes effect; only admins
// change it; each change is a line in the store's log, and is gone with the next start.
func TestStoreSettings(t *testing.T) {
	c, certs := startSecured(t, 1)
	client := settingsConsole{t, c, certs, "client"}
	admin := settingsConsole{t, c, certs, "admin"}
	cl := openAs(t, c, filesOf(certs, "client"))
	require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("v")))
	waitSecuredReplicas(t, cl, 3)

	for _, line := range []string{
		"store config get --all", "store config set --all region-max-size 200MiB",
		"store loglevel debug",
	} {
		client.run(1, line, "this is for admins; the certificate of \"client\" is for")
	}
	require.Zero(t, admin.logged("changed a setting"))
	admin.run(0, "store config get --all region-max-size", "144MiB")

	// The log level, and the threshold of slow requests.
	admin.run(0, "store loglevel error")
	require.Equal(t, 3, admin.logged("changed a setting"))
	admin.run(0, "store config set --all slow-log-threshold 1ns")
	require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("v")))
	require.Zero(t, admin.logged("slow "))
	admin.run(0, "store loglevel info")
	require.Equal(t, 6, admin.logged("changed a setting"))
	eventually(t, time.Minute, func() error {
		require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("v")))
		for _, line := range []string{"slow write", "slow request"} {
			if admin.logged(line) == 0 {
				return fmt.Errorf("no line %q", line)
			}
		}
		return nil
	})
	admin.run(0, "store config set --all slow-log-threshold 0s")

	// Writes in flight.
	admin.run(0, "store config set --all max-store-inflight-bytes 1B")
	client.run(1, "--timeout 1s put key value")
	admin.run(0, "store config set --all max-store-inflight-bytes 256MiB")
	require.NoError(t, cl.Put(t.Context(), []byte("key"), []byte("value")))

	// The rate of comparisons: a mebibyte at 64 KiB a second takes 15 s.
	value := make([]byte, 256<<10)
	for i := range 4 {
		require.NoError(t, cl.Put(t.Context(), fmt.Appendf(nil, "large%d", i), value))
	}
	admin.run(0, "store config set --all compare-max-bytes-per-sec 64KiB")
	client.run(3, "check consistency --wait 1s", "incomplete")
	admin.run(0, "store config set --all compare-max-bytes-per-sec 0B")
	eventually(t, time.Minute, func() error {
		if code, out := client.try("check consistency --wait 10s"); code != 0 {
			return errors.New(out)
		}
		return nil
	})

	// The sizes of regions, which bound each other.
	admin.run(2, "store config set --all region-max-size 64KiB",
		"must be at least region-split-size")
	admin.run(0, "store config set --all region-split-size 256KiB")
	admin.run(0, "store config set --all region-max-size 384KiB")
	eventually(t, time.Minute, func() error { // regions that grow are looked at
		require.NoError(t, cl.Put(t.Context(), []byte("large4"), value))
		if code, out := client.try("region list"); code != 0 || strings.Count(out, "\n") < 3 {
			return fmt.Errorf("exit code %d: %s", code, out)
		}
		return nil
	})

	// What a request names wrongly, and what a start takes back.
	admin.run(4, "store config set --all none 1", "no such setting")
	admin.run(4, "store config get 99999 log.level", "no store 99999")
	admin.run(2, "store config set --all cache-size 1MiB", "several sections")
	admin.run(1, "store config set --all data-dir x", "needs a restart")
	p := c.Stores[0]
	p.Stop(20 * time.Second)
	require.NoError(t, p.Start())
	require.NoError(t, p.WaitReady(t.Context()), p.LastWords())
	eventually(t, time.Minute, func() error {
		if code, out := admin.try("store config get --all region-max-size"); code != 0 ||
			strings.Count(out, "\n") != 4 || strings.Count(out, "384KiB") != 2 {
			return errors.New(out)
		}
		return nil
	})
}
