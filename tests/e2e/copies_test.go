package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// quarantined is what a store says of its damaged replicas.
func quarantined(p *localcluster.Process) (map[string]string, error) {
	resp, err := http.Get("http://" + p.Status + "/status")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var st struct {
		Quarantined map[string]string `json:"quarantined"`
	}
	return st.Quarantined, json.NewDecoder(resp.Body).Decode(&st)
}

// replace puts a copy in the place of a directory.
func replace(t *testing.T, dir, by string) {
	t.Helper()
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, os.CopyFS(dir, os.DirFS(by)))
}

// TestOlderCopiesAreRebuilt: a store is started on an older copy of its data directory, or without
// its raft log. It serves none of its replicas and they are replaced, without anybody's help; what
// was acknowledged is there.
func TestOlderCopiesAreRebuilt(t *testing.T) {
	c := start(t, 3)
	cl := open(t, c)
	require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("0")))
	waitReplicas(t, c, 3)
	victim := c.Stores[1]
	dir, old := victim.DataDir, filepath.Join(t.TempDir(), "copy")
	n := 0
	write := func() {
		for range 50 {
			n++
			require.NoError(t, cl.Put(t.Context(), []byte("k"), fmt.Append(nil, n)))
		}
	}
	// acknowledged returns when the victim's replica has all entries of the leader's log.
	acknowledged := func() {
		eventually(t, 60*time.Second, func() error {
			all, err := peers(c)
			if err != nil {
				return err
			}
			var leader uint64
			for _, infos := range all {
				for _, info := range infos {
					if info.IsLeader {
						leader = info.LastIndex
					}
				}
			}
			own := all[victim.Name]
			if leader == 0 || len(own) != 1 || own[0].LastIndex < leader {
				return fmt.Errorf("the leader has %d entries, the store %+v", leader, own)
			}
			return nil
		})
	}
	// replica is the id of the victim's only replica.
	replica := func() (uint64, error) {
		all, err := peers(c)
		if err != nil {
			return 0, err
		}
		if len(all[victim.Name]) != 1 {
			return 0, fmt.Errorf("%d replicas", len(all[victim.Name]))
		}
		return all[victim.Name][0].Peer.GetId(), nil
	}
	before, err := replica()
	require.NoError(t, err)
	rebuilt := func(what string) {
		t.Helper()
		require.NoError(t, victim.Start(), what)
		require.NoError(t, victim.WaitReady(t.Context()), what)
		eventually(t, 60*time.Second, func() error {
			q, err := quarantined(victim)
			if err != nil {
				return err
			}
			if len(q) > 0 {
				return fmt.Errorf("%s: still quarantined: %v", what, q)
			}
			id, err := replica()
			if err == nil && id == before {
				err = fmt.Errorf("%s: replica %d is served", what, id)
			}
			if err != nil {
				return err
			}
			before = id
			return nil
		})
		waitReplicas(t, c, 3)
		value, found, err := cl.Get(t.Context(), []byte("k"))
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, fmt.Sprint(n), string(value), what)
		checkReplicas(t, c)
	}
	end := func() {
		_, err := victim.End(syscall.SIGTERM, 20*time.Second)
		require.NoError(t, err)
	}

	end()
	require.NoError(t, os.CopyFS(old, os.DirFS(dir)))
	require.NoError(t, victim.Start())
	require.NoError(t, victim.WaitReady(t.Context()))
	write()
	acknowledged() // a run that has promised nothing leaves nothing behind that a copy could break
	end()
	replace(t, dir, old)
	rebuilt("a copy from before the last run")

	end()
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "raft")))
	rebuilt("without raft log")
}

// TestCopyBesideTheOriginal: a copy of a running store's directory is refused, and the original
// goes on.
func TestCopyBesideTheOriginal(t *testing.T) {
	c := start(t, 3)
	cl := open(t, c)
	require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("v")))
	waitReplicas(t, c, 3)
	original := c.Stores[0]
	original.Kill() // a copy of a running directory may be torn; what counts is whose it is
	dir := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.CopyFS(dir, os.DirFS(original.DataDir)))
	require.NoError(t, original.Start())
	require.NoError(t, original.WaitReady(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(binDir, "tinykv-server"), "--addr",
		"127.0.0.1:0", "--status-addr", "127.0.0.1:0",
		"--data-dir", dir, "--scheduler", c.Schedulers[0].Addr).CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", out)
	require.Equal(t, 1, exit.ExitCode(), "%s", out)
	require.Contains(t, string(out), "is a copy of its data directory")
	require.True(t, original.Running())
	require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("w")))
	checkReplicas(t, c)
}
