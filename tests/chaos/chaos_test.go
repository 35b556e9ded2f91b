package chaos

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/vfs/undo"
	"github.com/tinykv/tinykv/tests/cluster"
	"github.com/tinykv/tinykv/tests/netproxy"
)

var (
	flagSeed      = flag.Uint64("seed", 1, "seed of the first history; the next ones follow")
	flagHistories = flag.Int("histories", 0, "how many histories")
	flagDuration  = flag.Duration("duration", 8*time.Second,
		"how long the faults of a history rage")
	flagStores = flag.Int("stores", 0, "stores; 0 draws 3 to 5")
	flagScheds = flag.Int("schedulers", 0, "members of the placement service; 0 draws 1 or 3")
	flagFaults = flag.String("faults", "", "comma-separated faults instead of drawn ones")
	flagMerge  = flag.Bool("merge", false,
		"small regions go into their neighbours by themselves, and are split again")
	flagKeep = flag.String("keep", "", "keep logs and data of failed histories in this directory")
)

var binDir string

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "tinykv-chaos-")
	if err != nil {
		panic(err)
	}
	// The tag lets the tests make disks slow or broken, and changes nothing else.
	out, err := exec.Command("go", "build", "-tags", "chaos", "-o", dir+string(filepath.Separator),
		"../../cmd/...").CombinedOutput()
	code := 1
	if err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
	} else {
		binDir = dir
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// Timeouts are small, so that much happens in a short history: elections take half a second, the
// raft log is cut after 100 entries, a split check comes every second.
const storeConfig = `
[server]
request-timeout = "3s"
shutdown-timeout = "3s"
[storage]
cache-size = "8MiB"
memtable-size = "1MiB"
reserve-space = "16MiB"
capacity = "512MiB"
[raftlog]
segment-size = "1MiB"
cache-size = "4MiB"
[raftstore]
tick-interval = "50ms"
log-gc-count-limit = 100
log-gc-interval = "200ms"
split-check-interval = "500ms"
region-split-size = "64KiB"
region-max-size = "96KiB"
region-heartbeat-interval = "300ms"
store-heartbeat-interval = "500ms"
stale-peer-check = "2s"
peer-down-after = "5s"
hibernate-after = "200ms"
scheduler-timeout = "1s"
`

const schedulerConfig = `
lease = 2
[schedule]
patrol-region-interval = "200ms"
store-disconnect = "2s"
leader-cooldown = "1s"
peer-step-timeout = "10s"
`

// merging are the configurations with merges: regions are split by order only, and merged as soon
// as may be.
func merging(stores, placement string) (string, string) {
	if !*flagMerge {
		return stores, placement
	}
	stores = strings.Replace(stores, "[raftstore]\n", "[raftstore]\nregion-merge = true\n", 1)
	stores = strings.NewReplacer("\"64KiB\"", "\"32MiB\"", "\"96KiB\"", "\"48MiB\"").Replace(stores)
	return stores, placement + "split-merge-interval = \"1s\"\n"
}

const (
	keyCount = 48
	clients  = 10
)

func key(i int) []byte { return fmt.Appendf(nil, "key-%03d", i) }

// history is one cluster with its clients and faults.
type history struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand // draws the faults
	c    *localcluster.Cluster
	net  *netproxy.Network
	// cl has the options of users; once does not send writes of unknown outcome again.
	cl, once *client.Client
	rec      *cluster.History
	stop     chan struct{}
	ops      atomic.Int64
	pairs    atomic.Int64 // pairs seen within one page
	// tikvOps and tikvUnknown are what clients of TiKV's protocol have done, and what they do not
	// know of.
	tikvOps, tikvUnknown atomic.Int64
	bitten               map[string]int
	// lists are the work of a cluster of transactions; nil in one of raw keys.
	lists *lists
	// Used by the track of process faults alone: what has been replaced already.
	wiped, wipedMember bool
	// names of processes that may end: their disk fails, or the cluster they are to join
	broken sync.Map
	lost   undo.Lost
	// busy is held while a process is down or stopped by one track, so that no other starts it.
	busy sync.Mutex
}

func TestChaos(t *testing.T) {
	if *flagHistories == 0 {
		t.Skip("minutes of work for all cores: make chaos N=10, or -args -histories 10")
	}
	for i := range *flagHistories {
		seed := *flagSeed + uint64(i)
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { runHistory(t, seed, nil) })
		if !ok {
			t.Logf(
				"again: go test ./tests/chaos -run TestChaos -args -seed %d -histories 1 -duration %s", seed, *flagDuration)
		}
	}
}

func runHistory(t *testing.T, seed uint64, work *lists) {
	rng := rand.New(rand.NewPCG(seed, 5))
	stores := 3 + rng.IntN(3)
	if *flagStores > 0 {
		stores = *flagStores
	}
	schedulers := 1 + 2*rng.IntN(2)
	if *flagScheds > 0 {
		schedulers = *flagScheds
	}
	dir := t.TempDir()
	h := &history{
		t: t, seed: seed, rng: rng, rec: cluster.NewHistory(), stop: make(chan struct{}),
		bitten: map[string]int{}, lists: work,
	}
	placement := schedulerConfig
	if work != nil {
		placement = "mode = \"txn\"\n" + placement
	}
	onStores, placement := merging(storeConfig, placement)
	h.net = netproxy.New(h.pid)
	t.Cleanup(h.net.Close)
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: dir, Stores: stores, Schedulers: schedulers,
		StoreConfig: onStores, SchedulerConfig: placement, OnExit: h.ended, Advertise: h.net.Listen,
	})
	require.NoError(t, err)
	h.c = c
	for _, p := range c.Stores {
		p.Env = append(p.Env, "TINYKV_CHAOS_DISK="+diskFile(p), undo.Variable+"="+undoDir(p))
	}
	t.Cleanup(func() { keepFiles(t, dir, seed) })
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	h.cl, err = client.Open(ctx, c.Endpoints(), client.Options{})
	require.NoError(t, err)
	t.Cleanup(h.cl.Close)
	h.once, err = client.Open(ctx, c.Endpoints(), client.Options{NoRetryUnknown: true})
	require.NoError(t, err)
	t.Cleanup(h.once.Close)
	h.prepare()
	h.rage()
	h.check()
}

// pid is for the network: it is asked before the cluster is laid out as well.
func (h *history) pid(name string) int {
	if h.c == nil {
		return 0
	}
	for _, p := range h.c.Processes() {
		if p.Name == name {
			return p.PID()
		}
	}
	return 0
}

// ended handles the end of a process that no test has killed. Only a broken disk may be a reason.
func (h *history) ended(p *localcluster.Process, err error) {
	if _, broken := h.broken.Load(p.Name); broken {
		return
	}
	h.t.Errorf("%s ended by itself (%s): %s", p.Name, localcluster.ExitText(err), p.LastWords())
}

// prepare waits for three replicas and at least eight regions.
func (h *history) prepare() {
	h.eventually(20*time.Second, func() error {
		for i := range keyCount / 6 {
			if err := h.splitAt(h.place(key(i * 6))); err != nil {
				return err
			}
		}
		regs, err := h.regions()
		if err != nil {
			return err
		}
		if len(regs) < 8 && !*flagMerge { // those that are merged already are split again
			return fmt.Errorf("%d regions", len(regs))
		}
		for _, r := range regs {
			if len(r.Peers) < 3 ||
				slices.ContainsFunc(r.Peers, func(p apiPeer) bool { return p.Learner }) {
				return fmt.Errorf("region %d has not three voters: %v", r.ID, r.Peers)
			}
		}
		return nil
	})
}

// rage runs clients alone for a second, then with the faults, then alone again.
func (h *history) rage() {
	var wg sync.WaitGroup
	if h.lists == nil {
		h.fill()
		h.useRaw(&wg)
	} else {
		h.lists.use(h, &wg)
	}
	if *flagMerge {
		wg.Add(1)
		go func() { defer wg.Done(); h.keepSplitting() }()
	}
	calm := time.Second
	time.Sleep(calm) // how long the cluster is left alone; not a synchronisation
	before := float64(h.ops.Load()) / calm.Seconds()
	calmOps := h.ops.Load()
	h.runFaults()
	during := h.ops.Load() - calmOps
	h.heal()
	healed := h.ops.Load()
	h.eventually(20*time.Second, func() error {
		if n := h.ops.Load() - healed; n < 50 {
			return fmt.Errorf("%d operations since healing", n)
		}
		return nil
	})
	h.checkHealth()
	close(h.stop)
	wg.Wait()
	held, delayed, reset := h.net.Met()
	h.t.Logf("network: %d pieces held, %d delayed, %d connections reset", held, delayed, reset)
	h.t.Logf(
		"%d stores, %d schedulers, %.0f ops/s before the faults; %d operations during them, %d in the history, %d unknown, %d pairs seen; seen in the logs: %+v; without power lost: %s; faults %v",
		len(h.c.Stores), len(h.c.Schedulers), before, during, h.rec.OK, h.rec.Unknown,
		h.pairs.Load(), h.happened(), h.lost, h.bitten)
	require.Positive(h.t, during, "nothing was done during the faults")
	require.GreaterOrEqual(h.t, len(h.bitten), 4, "too few faults")
	if *flagMerge {
		require.Positive(h.t, h.happened().Merges, "nothing was merged")
	}
	if h.lists != nil {
		require.Positive(h.t, before, "nothing was done before the faults")
		return
	}
	h.t.Logf("by TiKV's protocol: %d operations, %d of unknown outcome", h.tikvOps.Load(),
		h.tikvUnknown.Load())
	require.Positive(h.t, h.tikvOps.Load(), "nothing was done by TiKV's protocol")
	require.GreaterOrEqual(h.t, before, 100.0,
		"too slow before the faults for the history to count")
	require.Positive(h.t, h.pairs.Load(), "no page showed a pair")
}

// keepSplitting orders splits until stopped: what is merged has to be split before. Most orders are
// for keys at which a region begins already, and some reach nobody.
func (h *history) keepSplitting() {
	every := time.NewTicker(100 * time.Millisecond)
	defer every.Stop()
	for i := 0; ; i++ {
		select {
		case <-h.stop:
			return
		case <-every.C:
			_ = h.splitAt(h.place(key(i * 7 % keyCount)))
		}
	}
}

// useRaw begins the clients of a cluster of raw keys.
func (h *history) useRaw(wg *sync.WaitGroup) {
	for i := range clients {
		wg.Add(1)
		go func() { defer wg.Done(); h.client(i) }()
	}
	for i := range pairWriters {
		wg.Add(2)
		go func() { defer wg.Done(); h.writePairs(i) }()
		go func() { defer wg.Done(); h.readPairs() }()
	}
	face := h.newTikvFace()
	for i := range tikvClients {
		wg.Add(1)
		go func() { defer wg.Done(); h.tikvClient(face, i) }()
	}
}

// fill writes so much beside the keys that regions split by size as well.
func (h *history) fill() {
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	pad := []byte(strings.Repeat("p", 4<<10))
	for i := range keyCount {
		_ = h.cl.Put(ctx, append(key(i), "-pad"...), pad) // only ballast
	}
}

// client reads, writes, deletes and scans until stopped, with unique values.
func (h *history) client(n int) {
	rng := rand.New(rand.NewPCG(h.seed, uint64(1000+n)))
	id, last := h.rec.Client(), map[int][]byte{}
	cl := h.cl
	if n%4 == 3 {
		cl = h.once
	}
	for i := 0; ; i++ {
		select {
		case <-h.stop:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		k := rng.IntN(keyCount)
		call := h.rec.Now()
		var err error
		switch p := rng.IntN(100); {
		case p < 40:
			var v []byte
			var found bool
			if v, found, err = cl.Get(ctx, key(k)); err == nil {
				h.rec.Get(id, string(key(k)), call, v, found)
				last[k] = v // nil if there is none
			}
		case p < 48: // with what this client last saw
			value := fmt.Appendf(nil, "%d-%d", n, i)
			var previous []byte
			var swapped bool
			previous, swapped, err = cl.CompareAndSwap(ctx, key(k), last[k], value)
			unknown := client.IsUnknown(err)
			if err == nil || unknown {
				h.rec.Swap(id, string(key(k)), last[k], value, call, previous, swapped, unknown)
			}
			if last[k] = previous; swapped {
				last[k] = value
			}
			if unknown {
				id = h.rec.Client()
			}
		case p < 90:
			del := p >= 80
			value := fmt.Appendf(nil, "%d-%d", n, i)
			if p%7 == 0 {
				value = append(value, strings.Repeat(".", rng.IntN(2000))...)
			}
			if del {
				err = cl.Delete(ctx, key(k))
			} else {
				err = cl.Put(ctx, key(k), value)
			}
			unknown := client.IsUnknown(err)
			if err == nil || unknown {
				h.rec.Put(id, string(key(k)), value, del, call, unknown)
			}
			if unknown {
				id = h.rec.Client()
			}
			if last[k] = nil; err == nil && !del {
				last[k] = value
			}
		default:
			err = h.scan(ctx, id, k, min(k+1+rng.IntN(12), keyCount), call)
		}
		cancel()
		if err == nil {
			h.ops.Add(1)
		} else {
			time.Sleep(5 * time.Millisecond) // do not spin while a region has no leader
		}
	}
}

// scan reads [from, to) and counts as a read of each key in it, present or not.
func (h *history) scan(ctx context.Context, id, from, to int, call int64) error {
	kvs, err := h.cl.Scan(ctx, key(from), key(to), 10_000)
	if err != nil {
		return err
	}
	got := map[string][]byte{}
	for i, kv := range kvs {
		if i > 0 && string(kvs[i-1].Key) >= string(kv.Key) {
			h.t.Errorf("scan is not in order: %q then %q", kvs[i-1].Key, kv.Key)
		}
		got[string(kv.Key)] = kv.Value
	}
	for i := from; i < to; i++ {
		v, found := got[string(key(i))]
		h.rec.Get(id, string(key(i)), call, v, found)
	}
	return nil
}

func (h *history) eventually(timeout time.Duration, check func() error) {
	h.t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			require.NoError(h.t, err, "the deadline passed")
		}
		time.Sleep(50 * time.Millisecond) // polls a condition
	}
}

// keepFiles saves the logs and data of a failed history: of each one, also when several run in a
// row.
func keepFiles(t *testing.T, dir string, seed uint64) {
	if !t.Failed() {
		return
	}
	parent := *flagKeep
	if parent == "" {
		parent = filepath.Join(os.TempDir(), "tinykv-chaos")
	}
	to := filepath.Join(parent,
		fmt.Sprintf("seed-%d-%s", seed, time.Now().UTC().Format("20060102T150405")))
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Logf("keep: %v", err)
		return
	}
	t.Logf("logs and data are in %s", to)
}
