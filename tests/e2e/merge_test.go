package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// TestMergeCommand merges regions of a cluster of processes while clients write, with a store that dies in between. What
// was acknowledged is there, and the cluster is well.
func TestMergeCommand(t *testing.T) {
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: 3, Schedulers: 1,
		StoreConfig: strings.Replace(fastStores, "[raftstore]", "[raftstore]\nregion-merge = true", 1),
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	cl := open(t, c)
	const keys = 26
	key := func(i int) []byte { return fmt.Appendf(nil, "%c", 'a'+i) }
	for i := range keys {
		require.NoError(t, cl.Put(t.Context(), key(i), fmt.Append(nil, 0)))
	}
	waitReplicas(t, c, 3)
	k := console{t, c}

	stop, last := make(chan struct{}), make([]int, keys)
	var writers sync.WaitGroup
	for i := range keys {
		writers.Add(1)
		go func() {
			defer writers.Done()
			for n := 1; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if cl.Put(t.Context(), key(i), fmt.Append(nil, n)) == nil {
					last[i] = n
				} else {
					return // its outcome is unknown, so it is the last one
				}
			}
		}()
	}
	ids := func() (out []uint64) {
		t.Helper()
		var rs []regionView
		k.json("region list", &rs)
		for _, r := range rs {
			out = append(out, r.ID)
		}
		return out
	}
	eventually(t, 30*time.Second, func() error {
		if code, out := k.try(fmt.Sprintf("region split %d h p --wait", ids()[0])); code != 0 {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	mergeAll := func() {
		t.Helper()
		eventually(t, 90*time.Second, func() error {
			all := ids()
			if len(all) == 1 {
				return nil
			}
			code, out := k.try(fmt.Sprintf("region merge %d %d --wait", all[1], all[0]))
			return fmt.Errorf("%d regions; %d: %s", len(all), code, out)
		})
	}
	mergeAll()
	k.has("operator history", "admin-merge", "success")

	victim := c.Stores[2]
	eventually(t, 30*time.Second, func() error {
		if code, out := k.try(fmt.Sprintf("region split %d m --wait", ids()[0])); code != 0 {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	all := ids()
	require.Len(t, all, 2)
	victim.Kill()
	_, _ = k.try(fmt.Sprintf("region merge %d %d", all[0], all[1])) // refused, or given up: a replica is away
	require.NoError(t, victim.Start())
	mergeAll()
	close(stop)
	writers.Wait()
	for i := range keys {
		v, found, err := cl.Get(t.Context(), key(i))
		require.NoError(t, err)
		require.True(t, found)
		var n int
		_, err = fmt.Sscan(string(v), &n)
		require.NoError(t, err)
		require.GreaterOrEqual(t, n, last[i], "key %s", key(i))
		require.LessOrEqual(t, n, last[i]+1, "key %s", key(i))
	}
	k.fails(fmt.Sprintf("region merge %d %d", ids()[0], ids()[0]), "cannot go into itself")
	k.until(0)
}
