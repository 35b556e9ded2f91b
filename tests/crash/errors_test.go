package crash

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/tests/cluster"
)

var (
	flagErrors = flag.Int("errors", 5000,
		"at least so many runs, over all scenarios; each operation fails at least once")
	flagErrorWorkers = flag.Int("error-workers", 32,
		"how many of them at the same time: they wait most of the time")
)

// errorScenarios are those that a crash does not need.
var errorScenarios = []*scenario{
	{
		name: "catch-up-leader", stores: 3, replicas: 3, crash: 1, before: leaveFarBehind(2),
		run: catchUp, tune: nothingCached,
	},
	{name: "restart", stores: 3, replicas: 3, crash: 1, before: logOf, run: restart},
}

// leaveFarBehind leaves a follower behind for so long that the leader has to read for it from the
// disk.
func leaveFarBehind(store uint64) func(*cluster.Cluster, *writer) {
	return func(c *cluster.Cluster, w *writer) {
		leaveBehind(store)(c, w)
		c.Eventually(10*time.Second, func() string {
			if c.Node(1).Log().Stats().CacheBytes > 0 {
				return "the leader keeps the log in memory"
			}
			return ""
		})
	}
}

// nothingCached is for raft's own cache.
func nothingCached(cfg *config.Config) { cfg.Raftstore.MaxMessageEntries = 64 }

// logOf leaves something to recover.
func logOf(c *cluster.Cluster, w *writer) {
	c.Split([]byte("c"))
	w.put(keys...)
	c.CheckConsistency()
}

// restart stops a store and starts it until it runs: an error while it starts ends the attempt.
func restart(c *cluster.Cluster, w *writer) {
	c.Node(1).Crash(faultfs.KeepAll)
	c.Eventually(20*time.Second, func() string {
		if err := c.Node(1).TryRestart(); err != nil {
			return err.Error()
		}
		return ""
	})
	w.put(keys...)
	c.CheckConsistency()
}

// failure is one run of a scenario in which the k-th operation of one store's raft log or engine,
// reads too, fails with an IO error. A store that fails over that is killed and started again at
// once, as a supervisor of the process would do.
type failure struct {
	t    testing.TB
	s    *scenario
	c    *cluster.Cluster
	w    *writer
	ctl  *faultfs.Controller
	loss faultfs.Loss
	op   atomic.Pointer[faultfs.Op]
	// restarts counts the restarts after a failure; mu is held meanwhile.
	mu       sync.Mutex
	restarts int
}

var lossNames = map[faultfs.Loss]string{
	faultfs.KeepAll: "keep", faultfs.DropAll: "drop", faultfs.Torn: "torn",
}

// start brings a cluster to where the scenario begins, and has the k-th operation from there on
// fail; 0: none.
func (s *scenario) start(t testing.TB, seed uint64, k int64) (f *failure, count func() int64) {
	ctl := &faultfs.Controller{}
	f = &failure{
		t: t, s: s, ctl: ctl,
		loss: []faultfs.Loss{faultfs.KeepAll, faultfs.DropAll, faultfs.Torn}[k%3],
	}
	f.c = cluster.New(t, cluster.Options{
		Stores: s.stores, Replicas: s.replicas, Seed: seed, LogSegment: logSegment,
		Failed:      f.failed,
		Controllers: map[uint64]*faultfs.Controller{s.crash: ctl},
		Tune: func(cfg *config.Config) {
			quick(cfg)
			if s.tune != nil {
				s.tune(cfg)
			}
		},
	})
	f.w = newWriter(f.c)
	f.c.WaitLeader(cluster.FirstRegionID)
	s.prepare(f.c, f.w)
	var n atomic.Int64
	ctl.Set(func(op faultfs.Op) error {
		if op.N = n.Add(1); op.N != k {
			return nil
		}
		f.op.Store(&op)
		return syscall.EIO
	})
	ctl.SetReads(true)
	return f, n.Load
}

// failed restarts the store.
func (f *failure) failed(n *cluster.Node, err error) {
	if f.op.Load() == nil {
		f.t.Errorf("store %d failed without an error of its disk: %v", n.ID, err)
	}
	f.restart()
}

func (f *failure) restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restarts++
	f.c.Node(f.s.crash).Crash(f.loss)
	f.c.Node(f.s.crash).Restart()
}

// watch restarts the store when it has quarantined a replica over the failed operation, which else
// waits for the placement service to replace it. It returns when stop is closed.
func (f *failure) watch(stop <-chan struct{}) {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		if s := f.c.Node(f.s.crash).Store(); s != nil && len(s.Quarantined()) > 0 {
			f.restart()
		}
	}
}

// verify checks the cluster after a restart of the store whose operation failed.
func (f *failure) verify(t *testing.T) {
	f.mu.Lock()
	restarts := f.restarts
	f.mu.Unlock()
	if restarts == 0 {
		f.restart()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for key, allowed := range f.w.values() {
		got, err := f.w.get(ctx, key)
		require.NoError(t, err, "get %s", key)
		require.Contains(t, allowed, got, "key %s: the value that was acknowledged is gone", key)
	}
	f.c.Eventually(20*time.Second, f.c.Fault)
}

// fail runs the scenario once with an operation that fails; false: there are not so many operations
// in this run.
func (s *scenario) fail(t *testing.T, seed uint64, k int64) bool {
	f, _ := s.start(t, seed, k)
	defer f.w.close()
	f.w.check = func(key, got string, allowed []string) {
		require.Contains(t, allowed, got, "key %s: an answer is wrong", key)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		f.watch(stop)
	}()
	defer func() {
		close(stop)
		<-stopped
	}()
	s.run(f.c, f.w)
	f.ctl.Set(nil)
	op := f.op.Load()
	if op == nil {
		return false
	}
	defer func() {
		if t.Failed() {
			t.Logf("failed operation: %s, loss %s: go test ./tests/crash "+
				"-run '^TestErrors$/^%s$' -args -errors 1 -k %d -seed %d",
				op, lossNames[f.loss], s.name, k, seed)
		}
	}()
	f.verify(t)
	return true
}

// operations is how many a run of the scenario has.
func (s *scenario) operations(t *testing.T, seed uint64) int64 {
	f, count := s.start(t, seed, 0)
	defer f.w.close()
	s.run(f.c, f.w)
	f.ctl.Set(nil)
	return count()
}

type errorJob struct {
	s    *scenario
	seed uint64
	k    int64
}

// TestErrors: whichever operation of a store's disk fails, nothing wrong is acknowledged, read or
// kept.
func TestErrors(t *testing.T) {
	start := time.Now()
	all := append(slices.Clone(scenarios), errorScenarios...)
	counts := make([]int64, len(all))
	var sum int64
	for i, s := range all {
		t.Run(s.name+"/count", func(t *testing.T) { counts[i] = s.operations(t, *flagSeed) })
		sum += counts[i]
	}
	jobs := make(chan errorJob)
	var wg sync.WaitGroup
	var failed atomic.Int64
	hits := make([]atomic.Int64, len(all))
	for range *flagErrorWorkers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range jobs {
				ok := t.Run(fmt.Sprintf("%s/k=%d/seed=%d", j.s.name, j.k, j.seed),
					func(t *testing.T) {
						if j.s.fail(t, j.seed, j.k) {
							hits[slices.Index(all, j.s)].Add(1)
						}
					})
				if !ok {
					failed.Add(1)
				}
			}
		}()
	}
	// Each run has a schedule of its own, so more of them are more points.
	rounds := max(1, (*flagErrors+int(sum)-1)/max(1, int(sum)))
	if testing.Short() {
		rounds = 1
	}
	var list []errorJob
	for seed := *flagSeed; seed < *flagSeed+uint64(rounds); seed++ {
		for i, s := range all {
			for k := int64(1); k <= counts[i]; k++ {
				if *flagK == 0 || k == *flagK {
					list = append(list, errorJob{s, seed, k})
				}
			}
		}
	}
	// Mixed, because some scenarios wait and others work.
	rand.New(rand.NewPCG(*flagSeed, 5)).Shuffle(len(list), func(i, j int) {
		list[i], list[j] = list[j], list[i]
	})
	for _, j := range list {
		if failed.Load() < *flagMaxFail {
			jobs <- j
		}
	}
	close(jobs)
	wg.Wait()
	var total int64
	for i, s := range all {
		total += hits[i].Load()
		t.Logf("%s: %d operations, %d failed in %d rounds", s.name, counts[i], hits[i].Load(),
			rounds)
	}
	fmt.Printf("errors: %d operations failed, each in a run of its own, in %s\n", total,
		time.Since(start).Round(time.Second))
}
