package crash

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

var (
	flagScale   = flag.Int("scale", 1, "how often each scenario is run")
	flagSeed    = flag.Uint64("seed", 1, "seed of what is lost")
	flagK       = flag.Int64("k", 0, "only this crash point of each scenario")
	flagLoss    = flag.String("loss", "", "only this loss, as printed")
	flagAll     = flag.Bool("all", false, "every combination of losses at every point")
	flagMaxFail = flag.Int64("maxfail", 5, "give a scenario up after so many failures")
	flagWorkers = flag.Int("workers", 10, "how many crash points are checked at the same time")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// loss is what the crash does to one store, and to the others.
type loss struct {
	name   string
	one    cluster.Loss
	others faultfs.Loss
}

// The first five are tried at every point; the rest with -all.
var losses = []loss{
	{"keep-keep", cluster.Loss{Log: faultfs.KeepAll, Engine: faultfs.KeepAll}, faultfs.KeepAll},
	{"drop-keep", cluster.Loss{Log: faultfs.DropAll, Engine: faultfs.KeepAll}, faultfs.KeepAll},
	{"keep-drop", cluster.Loss{Log: faultfs.KeepAll, Engine: faultfs.DropAll}, faultfs.KeepAll},
	{"drop-drop", cluster.Loss{Log: faultfs.DropAll, Engine: faultfs.DropAll}, faultfs.DropAll},
	{"torn-torn", cluster.Loss{Log: faultfs.Torn, Engine: faultfs.Torn}, faultfs.KeepAll},
	{"torn-keep", cluster.Loss{Log: faultfs.Torn, Engine: faultfs.KeepAll}, faultfs.KeepAll},
	{"keep-torn", cluster.Loss{Log: faultfs.KeepAll, Engine: faultfs.Torn}, faultfs.DropAll},
	{"torn-drop", cluster.Loss{Log: faultfs.Torn, Engine: faultfs.DropAll}, faultfs.DropAll},
	{"drop-torn", cluster.Loss{Log: faultfs.DropAll, Engine: faultfs.Torn}, faultfs.DropAll},
}

func chosenLosses() []loss {
	if *flagLoss != "" {
		for _, l := range losses {
			if l.name == *flagLoss {
				return []loss{l}
			}
		}
		panic("no loss " + *flagLoss)
	}
	if *flagAll {
		return losses
	}
	if testing.Short() {
		return losses[:4]
	}
	return losses[:5]
}

// point is a moment at which the world stops.
type point struct {
	op       faultfs.Op
	images   []cluster.Image // of the crashed store, one for each loss
	keep     map[uint64]cluster.Image
	drop     map[uint64]cluster.Image
	values   values
	promises promises
	lastID   uint64
	files    string // which state of the snapshot files this is, if not the one that was found
}

// recorder takes the points of a run.
type recorder struct {
	c      *cluster.Cluster
	w      *writer
	crash  uint64
	seen   *witness
	losses []cluster.Loss
	rng    *rand.Rand

	mu     sync.Mutex
	n      int64
	points []point
	err    error
}

// step is called by the crashed store's goroutines, one at a time, before each operation.
func (r *recorder) step(op faultfs.Op) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	op.N = r.n
	if r.err != nil || (*flagK != 0 && op.N != *flagK) {
		return nil
	}
	defer r.c.Net.Freeze()()
	p := point{op: op, keep: map[uint64]cluster.Image{}, drop: map[uint64]cluster.Image{}}
	// What was promised, before the copies; what was asked for, also after them.
	p.values, p.promises = r.w.values(), r.seen.promises(r.crash)
	p.images, r.err = r.c.Node(r.crash).Images(r.losses, r.rng)
	for _, n := range r.c.Nodes() {
		if n.ID == r.crash || r.err != nil {
			continue
		}
		var im []cluster.Image
		im, r.err = n.Images([]cluster.Loss{
			{Log: faultfs.KeepAll, Engine: faultfs.KeepAll},
			{Log: faultfs.DropAll, Engine: faultfs.DropAll},
		}, r.rng)
		if r.err == nil {
			p.keep[n.ID], p.drop[n.ID] = im[0], im[1]
		}
	}
	p.values.join(r.w.values())
	p.lastID = r.c.Placement.LastID()
	r.points = append(r.points, p)
	return nil
}

// record runs the scenario once and returns its points.
func (s *scenario) record(t *testing.T, seed uint64) []point {
	t.Helper()
	ctls := map[uint64]*faultfs.Controller{}
	for id := range uint64(s.stores) {
		ctls[id+1] = &faultfs.Controller{}
	}
	c := cluster.New(t, cluster.Options{
		Stores: s.stores, Replicas: s.replicas, Seed: seed, LogSegment: logSegment,
		Controllers: ctls,
		Tune:        s.tune,
	})
	w := newWriter(c)
	defer w.close()
	r := &recorder{c: c, w: w, seen: newWitness(), rng: rand.New(rand.NewPCG(seed, 3))}
	for _, l := range chosenLosses() {
		r.losses = append(r.losses, l.one)
	}
	c.Net.Tap(r.seen.sent)
	c.WaitLeader(cluster.FirstRegionID)
	r.crash = s.prepare(c, w)
	ctls[r.crash].Set(r.step)
	s.run(c, w)
	ctls[r.crash].Set(nil)
	require.NoError(t, r.err)
	return r.points
}

const logSegment = 16 << 10

// verify starts a cluster from what the crash left and checks it.
func (s *scenario) verify(t *testing.T, p *point, crash uint64, i int, l loss, seed uint64) {
	images := map[uint64]cluster.Image{crash: p.images[i]}
	others := p.keep
	if l.others == faultfs.DropAll {
		others = p.drop
	}
	for id, im := range others {
		images[id] = im.Again()
	}
	c := cluster.New(t, cluster.Options{
		Stores: s.stores, Seed: seed, LogSegment: logSegment, Images: images, FirstID: p.lastID,
		Tune: quick,
		Inspect: func(n *cluster.Node, log *raftlog.Log) {
			if n.ID == crash {
				p.promises.check(t, n.Engine(), log)
			}
		},
	})
	for _, n := range c.Nodes() {
		require.Empty(t, n.Store().Quarantined(), "store %d", n.ID)
	}
	w := newWriter(c)
	defer w.close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for key, allowed := range p.values {
		got, err := w.get(ctx, key)
		require.NoError(t, err, "get %s", key)
		require.Contains(t, allowed, got, "key %s: the value that was acknowledged is gone", key)
		right, err := w.hasTTL(ctx, key, got)
		require.NoError(t, err, "TTL of %s", key)
		require.True(t, right, "key %s: the value %q and its TTL are not of one write", key, got)
	}
	for key := range p.values {
		require.NoError(t, w.putCtx(ctx, key, "after"), "put %s", key)
	}
	c.Eventually(20*time.Second, c.Fault)
}

// quick is the configuration of restarted clusters.
func quick(cfg *config.Config) {
	r := &cfg.Raftstore
	r.TickInterval = config.Dur(4 * time.Millisecond)
	r.RaftWorkers, r.ApplyWorkers = 1, 1
	r.RegionHeartbeatInterval = config.Dur(30 * time.Millisecond)
	r.StoreHeartbeatInterval = config.Dur(time.Second)
	r.StalePeerCheck = config.Dur(100 * time.Millisecond)
}

// withFileStates derives more points from those at which the crashed store holds the files of a
// received raft snapshot that nothing refers to yet or any more: each file may be half written,
// there, or removed already. The files live in a real directory, whose operations are not counted.
func withFileStates(t *testing.T, points []point) []point {
	t.Helper()
	var out []point
	for _, p := range points {
		im := p.images[0]
		st, err := meta.LoadRegionState(im.Engine, cluster.FirstRegionID)
		require.NoError(t, err)
		if len(im.Snapshots) == 0 || st.GetState() == rspb.PeerState_Applying ||
			chosenLosses()[0].name != "keep-keep" {
			continue
		}
		// In the order in which they are written: the meta file last; they are removed in any.
		names := slices.SortedFunc(maps.Keys(im.Snapshots), func(a, b string) int {
			return cmp.Or(strings.Count(a, ".meta")-strings.Count(b, ".meta"), cmp.Compare(a, b))
		})
		add := func(what string, files map[string][]byte) {
			q := p
			again := im.Again()
			again.Snapshots = files
			q.images, q.files = []cluster.Image{again}, what
			out = append(out, q)
		}
		written := map[string][]byte{}
		for i, name := range names {
			half := maps.Clone(written)
			half[name+".tmp"] = im.Snapshots[name][:len(im.Snapshots[name])/2]
			add(fmt.Sprintf(",file-%d-half", i), half)
			add(fmt.Sprintf(",files-before-%d", i), maps.Clone(written))
			left := maps.Clone(im.Snapshots)
			delete(left, name)
			add(fmt.Sprintf(",without-file-%d", i), left)
			written[name] = im.Snapshots[name]
		}
	}
	return out
}

type job struct {
	p *point
	i int
	l loss
}

func (s *scenario) test(t *testing.T, total *atomic.Int64) {
	for round := range *flagScale {
		seed := *flagSeed + uint64(round)
		points := s.record(t, seed)
		operations := len(points)
		points = append(points, withFileStates(t, points)...)
		jobs := make(chan job)
		var wg sync.WaitGroup
		var failed atomic.Int64
		for range *flagWorkers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for j := range jobs {
					name := fmt.Sprintf("k=%d/loss=%s%s/seed=%d", j.p.op.N, j.l.name, j.p.files,
						seed)
					ok := t.Run(name, func(t *testing.T) {
						s.verify(t, j.p, s.crash, j.i, j.l, seed)
					})
					if !ok {
						failed.Add(1)
						t.Logf(
							"crash before %s: go test ./tests/crash -run '^TestCrash$/^%s$' -args -k %d -loss %s -seed %d",
							j.p.op, s.name, j.p.op.N, j.l.name, seed)
					}
					total.Add(1)
				}
			}()
		}
		n := 0
		for i := range points {
			for j, l := range chosenLosses() {
				if failed.Load() < *flagMaxFail && j < len(points[i].images) {
					n++
					jobs <- job{&points[i], j, l}
				}
			}
		}
		close(jobs)
		wg.Wait()
		t.Logf("%s: %d operations, %d crash points", s.name, operations, n)
		require.NotEmpty(t, points, "the crashed store did nothing")
	}
}

func TestCrash(t *testing.T) {
	var total atomic.Int64
	start := time.Now()
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) { s.test(t, &total) })
	}
	fmt.Printf("crash: %d points in %s\n", total.Load(), time.Since(start).Round(time.Second))
}
