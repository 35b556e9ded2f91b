package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
)

// TestMergeCommand merges regions of a cluster of processes while clients write, with a store that
// dies in between. What was acknowledged is there, and the cluster is well.
func TestMergeCommand(t *testing.T) {
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: 3, Schedulers: 1,
		StoreConfig: strings.Replace(fastStores, "[raftstore]", "[raftstore]\nregion-merge = true",
			1),
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
	// refused, or given up: a replica is away
	_, _ = k.try(fmt.Sprintf("region merge %d %d", all[0], all[1]))
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

// TestSmallRegionsShrink: many small regions become one by themselves, while clients write with
// their defaults. A range that is held stays as it is until it is released, also when the placement
// leader has changed. Afterwards the replicas are equal, and everything that was acknowledged is
// there.
func TestSmallRegionsShrink(t *testing.T) {
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: 4, Schedulers: 1,
		StoreConfig: strings.Replace(fastStores, "[raftstore]",
			"[raftstore]\nregion-merge = true", 1),
		SchedulerConfig: "[schedule]\nsplit-merge-interval = \"2s\"\n",
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	cl := open(t, c)
	require.NoError(t, cl.Put(t.Context(), []byte("k"), nil))
	waitReplicas(t, c, 3)
	k := console{t, c}

	const parts, writers = 24, 12
	k.run(0, fmt.Sprintf("keyspace split --prefix k --into %d --hold 1h", parts))
	key := func(i int) []byte { return []byte{'k', byte(256 * i / writers), 'x'} }
	stop, last := make(chan struct{}), make([]int, writers)
	var failed [writers]error
	var took [writers][]time.Duration // while regions are merged
	var merging atomic.Bool
	var wg sync.WaitGroup
	for i := range writers {
		wg.Add(1)
		go func() { // ends before the test does
			defer wg.Done()
			for n := 1; failed[i] == nil; n++ {
				select {
				case <-stop:
					return
				default:
				}
				sent := time.Now()
				if failed[i] = cl.Put(t.Context(), key(i), fmt.Append(nil, n)); failed[i] == nil {
					last[i] = n
				}
				if merging.Load() {
					took[i] = append(took[i], time.Since(sent))
				}
			}
		}()
	}
	count := func() int {
		t.Helper()
		var rs []regionView
		k.json("region list", &rs)
		return len(rs)
	}
	leader := c.Schedulers[0]
	leader.Kill()
	require.NoError(t, leader.Start())
	// What balance moves while the range is held would not be moved back for a merge within the
	// hour.
	eventually(t, 30*time.Second, func() error {
		if code, out := k.try("scheduler pause balance-region --for 1h"); code != 0 {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	eventually(t, 60*time.Second, func() error {
		if _, out := k.try("explain merge"); !strings.Contains(out, "refused by held") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	require.GreaterOrEqual(t, count(), parts)
	k.has("region holds", "keyspace split")
	var holds struct {
		Holds []struct {
			Start string `json:"start_hex"`
			End   string `json:"end_hex"`
		}
	}
	k.json("region holds", &holds)
	require.Len(t, holds.Holds, 1)
	merging.Store(true)
	k.run(0,
		fmt.Sprintf("region release -e hex --range %s..%s", holds.Holds[0].Start,
			holds.Holds[0].End))
	began := time.Now()
	eventually(t, 120*time.Second, func() error {
		if n := count(); n > 1 {
			_, why := k.try("explain merge")
			_, done := k.try("operator history")
			return fmt.Errorf("%d regions; %s\n%s", n, why, done)
		}
		return nil
	})
	t.Logf("%d regions became one in %v", parts, time.Since(began).Round(time.Millisecond))
	close(stop)
	wg.Wait()
	all := slices.Sorted(slices.Values(slices.Concat(took[:]...)))
	require.NotEmpty(t, all)
	t.Logf("%d writes meanwhile: p50 %v, p99 %v, p99.9 %v, max %v", len(all), all[len(all)/2],
		all[len(all)*99/100], all[len(all)*999/1000], all[len(all)-1])
	for i := range writers {
		v, found, err := cl.Get(t.Context(), key(i))
		require.NoError(t, err)
		require.True(t, found)
		var n int
		_, err = fmt.Sscan(string(v), &n)
		require.NoError(t, err)
		require.GreaterOrEqual(t, n, last[i], "key %d", i)
		require.LessOrEqual(t, n, last[i]+1, "key %d", i)
		// a retried write of which no store can tell whether it was carried out before
		// (docs/merge.md)
		if failed[i] != nil {
			var unknown *client.UnknownError
			require.ErrorAs(t, failed[i], &unknown)
			t.Logf("key %d: %v", i, failed[i])
		}
	}
	k.has("operator history", "merge-region", "success")
	for line := range strings.Lines(k.run(0, "operator history")) {
		if strings.Contains(line, "merge-region") && !strings.Contains(line, "success") {
			t.Log(line)
		}
	}
	eventually(t, 60*time.Second, func() error {
		if _, out := k.try("check consistency"); !strings.Contains(out,
			"1 of 1 regions have equal replicas") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	k.until(0)
}
