package chaos

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/tests/cluster"
)

// latencies are those of the writes of an interval.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, d)
}

// take returns the 99th percentile and the number of writes since it was called before.
func (l *latencies) take() (time.Duration, int) {
	l.mu.Lock()
	all := l.all
	l.all = nil
	l.mu.Unlock()
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	return all[len(all)*99/100], len(all)
}

// TestLeadersLeaveSlowDisk: each sync of one store takes 200 ms longer. Its leaders leave, no
// replica moves, writes are as quick as before, and the health report says which disk it is.
func TestLeadersLeaveSlowDisk(t *testing.T) {
	h := &history{t: t, seed: 1, rec: cluster.NewHistory(), bitten: map[string]int{}}
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: 3, Schedulers: 1, StoreConfig: storeConfig,
		SchedulerConfig: schedulerConfig, OnExit: h.ended,
	})
	require.NoError(t, err)
	h.c = c
	for _, p := range c.Stores {
		p.Env = append(p.Env, "TINYKV_CHAOS_DISK="+diskFile(p))
	}
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	h.cl, err = client.Open(ctx, c.Endpoints(), client.Options{})
	require.NoError(t, err)
	t.Cleanup(h.cl.Close)
	h.prepare()
	victim := c.Stores[0]
	var id uint64
	leads := func() (n int) {
		regs, err := h.regions()
		require.NoError(t, err)
		for _, r := range regs {
			if r.Leader == id {
				n++
			}
		}
		return n
	}
	h.eventually(30*time.Second, func() error {
		addrs, err := h.stores()
		if err != nil {
			return err
		}
		for s, addr := range addrs {
			if addr == victim.Addr {
				id = s
			}
		}
		if leads() < 2 {
			return fmt.Errorf("store %d leads %d regions", id, leads())
		}
		return nil
	})

	var took latencies
	var failed atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := w; ; i += 4 {
				select {
				case <-stop:
					return
				default:
				}
				began := time.Now()
				if err := h.cl.Put(ctx, key(i%keyCount), make([]byte, 256)); err != nil {
					failed.Add(1)
				}
				took.add(time.Since(began))
			}
		}()
	}
	written := func(n int) { // returns when so many more were written
		h.eventually(time.Minute, func() error {
			took.mu.Lock()
			defer took.mu.Unlock()
			if len(took.all) < n {
				return fmt.Errorf("%d writes", len(took.all))
			}
			return nil
		})
	}
	took.take()
	written(1000)
	usual, _ := took.take()
	require.NoError(t, os.WriteFile(diskFile(victim), []byte("200ms"), 0o600))
	began := time.Now()
	h.eventually(time.Minute, func() error {
		_, conditions, err := h.report()
		if err != nil {
			return err
		}
		if n := leads(); n > 0 ||
			!slices.Contains(conditions, fmt.Sprintf("slow-disk store %d", id)) {
			return fmt.Errorf("store %d leads %d regions; %v", id, n, conditions)
		}
		return nil
	})
	until := time.Since(began)
	slow, n := took.take()
	written(1000)
	after, _ := took.take()
	t.Logf("p99 of writes %v, %v while leaders left (%d writes, %v), %v afterwards", usual, slow, n,
		until.Round(time.Millisecond), after)
	close(stop)
	wg.Wait()
	require.Zero(t, failed.Load())
	require.Less(t, after, 200*time.Millisecond, "writes wait for the slow disk")
	regs, err := h.regions()
	require.NoError(t, err)
	for _, r := range regs {
		require.True(t, r.on(id), "region %d moved away", r.ID)
	}
}
