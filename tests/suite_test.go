// Package tests holds the course suites 2B, 2C and 3B and other tests on clusters in one process.
package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/tests/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// round is one run of the generic test of the course suites, hardened: clients share keys, their
// history must be linearizable, crashes lose what was not synced, and after each round the cluster
// must be consistent.
type round struct {
	clients     int
	unreliable  bool // up to 30 % of raft messages are lost, doubled or late
	crash       bool
	partitions  bool
	confChange  bool
	transfer    bool
	clocks      bool // each store has a clock of its own, see newOddClock
	split       bool
	merge       bool
	maxRaftLog  uint64 // log entries kept: snapshots are needed when it is small
	duration    time.Duration
	minOps      int
	minSplits   int
	minMerges   int
	minSnaps    int
	regionSplit config.Size
}

func (r round) run(t *testing.T) {
	t.Helper()
	if r.duration == 0 {
		r.duration = 4 * time.Second
	}
	if testing.Short() {
		r.duration /= 2
	}
	if r.minOps == 0 {
		r.minOps = 200
	}
	var clock func(uint64) raftstore.Clock
	if r.clocks {
		clock = newOddClock
	}
	c := cluster.New(t, cluster.Options{Stores: 5, Clock: clock, Tune: func(cfg *config.Config) {
		if r.maxRaftLog > 0 {
			cfg.Raftstore.LogGCCountLimit, cfg.Raftstore.LogGCThreshold = r.maxRaftLog, 1
		}
		cfg.Raftstore.Merge = r.merge
		if r.regionSplit > 0 {
			cfg.Raftstore.RegionSplitSize, cfg.Raftstore.RegionMaxSize = r.regionSplit,
				r.regionSplit*3/2
		}
	}})
	c.WaitLeader(cluster.FirstRegionID)
	h := cluster.NewHistory()
	cl, once := c.Client(), c.ClientOnce()
	defer cl.Close()
	defer once.Close()

	stop := make(chan struct{})
	var clients, faults sync.WaitGroup
	for i := range r.clients {
		clients.Add(1)
		kind := cl
		if i%2 == 1 {
			kind = once
		}
		go func() { defer clients.Done(); runClient(kind, h, i, stop) }()
	}
	var counts faultCounts
	begin := func(f func(*cluster.Cluster, *faultCounts, <-chan struct{})) {
		faults.Add(1)
		go func() { defer faults.Done(); f(c, &counts, stop) }()
	}
	if r.unreliable {
		begin(loser)
	}
	if r.partitions {
		begin(partitioner)
	}
	if r.confChange {
		begin(confChanger)
	}
	if r.transfer {
		begin(transferer)
	}
	if r.split {
		begin(splitter)
	}
	if r.merge {
		begin(mergerOf)
	}
	if r.crash {
		begin(crasher)
	}
	// The faults rage for the duration, and on until the round has seen what it is about.
	for begun := time.Now(); time.Since(begun) < r.duration ||
		(!r.saw(c, h, &counts) && time.Since(begun) < 5*r.duration); {
		time.Sleep(20 * time.Millisecond) // not a synchronisation: the length of the round
	}
	close(stop)
	faults.Wait()
	c.Net.SetFaults(0, 0, 0)
	c.Net.Heal()
	for _, n := range c.Nodes() {
		n.Restart()
	}
	clients.Wait()
	probe(t, c, cl)
	c.CheckConsistency()
	h.Check(t)
	require.Positive(t, h.Swapped, "nothing was swapped")
	require.GreaterOrEqual(t, h.OK, r.minOps, "too few operations for the round to mean anything")
	require.GreaterOrEqual(t, int(counts.splits.Load()), r.minSplits, "too few splits")
	require.GreaterOrEqual(t, int(counts.merges.Load()), r.minMerges, "too few merges")
	require.GreaterOrEqual(t, int(c.Net.Snaps.Load()), r.minSnaps, "too few raft snapshots")
	if !r.crash && !r.partitions && !r.unreliable {
		t.Logf("unknown: %v", h.Notes())
	}
	t.Logf(
		"%d operations, %d unknown, %d swapped; crashes %d, partitions %d, conf changes %d, transfers %d, splits %d, merges %d of %d, raft snapshots %d, messages %d (%d lost)",
		h.OK, h.Unknown, h.Swapped, counts.crashes.Load(), counts.partitions.Load(),
		counts.confChanges.Load(), counts.transfers.Load(),
		counts.splits.Load(), counts.merges.Load(), counts.freezes.Load(), c.Net.Snaps.Load(),
		c.Net.Sent.Load(), c.Net.Dropped.Load())
}

// saw tells whether the round has had enough of what it is about to mean anything.
func (r round) saw(c *cluster.Cluster, h *cluster.History, n *faultCounts) bool {
	return h.Known() >= r.minOps && int(n.splits.Load()) >= r.minSplits &&
		int(n.merges.Load()) >= r.minMerges &&
		int(c.Net.Snaps.Load()) >= r.minSnaps
}

type faultCounts struct{ crashes, partitions, confChanges, transfers, splits, freezes, merges atomic.Int64 }

const suiteKeys = 40

func suiteKey(i int) []byte { return fmt.Appendf(nil, "key-%03d", i*7%suiteKeys) }

// change writes a key in one of the ways there are, and records it. known is what the client last
// saw of the key, nil for nothing. True: the outcome is unknown.
func change(
	ctx context.Context, cl *client.Client, h *cluster.History, id, kind int, key, value, known []byte,
) (bool, error) {
	var err error
	call := h.Now()
	switch kind {
	case 9:
		err = cl.Delete(ctx, key)
	case 8:
		err = cl.DeleteRange(ctx, key, append(bytes.Clone(key), 0))
	case 7, 6:
		previous, swapped, err := cl.CompareAndSwap(ctx, key, known, value)
		unknown := client.IsUnknown(err)
		if err == nil || unknown {
			h.Swap(id, string(key), known, value, call, previous, swapped, unknown)
		}
		return unknown, err
	default:
		err = cl.Put(ctx, key, value)
	}
	unknown := client.IsUnknown(err)
	if err == nil || unknown {
		h.Put(id, string(key), value, kind > 7, call, unknown)
	}
	return unknown, err
}

// runClient reads and writes shared keys with unique values until stopped.
func runClient(cl *client.Client, h *cluster.History, seed int, stop <-chan struct{}) {
	r := rand.New(rand.NewPCG(uint64(seed), uint64(time.Now().UnixNano())))
	id, seen := h.Client(), map[string][]byte{}
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		key := suiteKey(r.IntN(suiteKeys))
		call := h.Now()
		switch n := r.IntN(10); {
		case n < 5:
			value, found, err := cl.Get(ctx, key)
			if err == nil {
				h.Get(id, string(key), call, value, found)
				if seen[string(key)] = nil; found {
					seen[string(key)] = value
				}
			}
		default:
			kind := n
			if n == 8 && r.IntN(2) == 0 {
				kind = 5 // fewer keys are deleted than given values
			}
			value := fmt.Appendf(nil, "%d-%d", seed, i)
			unknown, err := change(ctx, cl, h, id, kind, key, value, seen[string(key)])
			if seen[string(key)] = nil; err == nil && kind < 8 {
				seen[string(key)] = value // most likely
			}
			if unknown {
				h.Note(fmt.Sprintf("%s after %s: %v", key, time.Duration(h.Now()-call), err))
				id = h.Client()
			}
		}
		cancel()
	}
}

// probe verifies that the healed cluster serves.
func probe(t *testing.T, c *cluster.Cluster, cl *client.Client) {
	t.Helper()
	c.Eventually(20*time.Second, func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		for i := range suiteKeys {
			key := append(suiteKey(i), "-probe"...)
			if err := cl.Put(ctx, key, key); err != nil {
				return fmt.Sprintf("put %s after healing: %v", key, err)
			}
			if v, found, err := cl.Get(ctx, key); err != nil || !found || string(v) != string(key) {
				return fmt.Sprintf("get %s after healing: %q %v %v", key, v, found, err)
			}
		}
		return ""
	})
}

func pause(stop <-chan struct{}, lo, hi time.Duration) bool {
	select {
	case <-stop:
		return false
	case <-time.After(lo + rand.N(hi-lo)):
		return true
	}
}

// loser makes the network lose up to 30 % of the messages, double and delay others, worse at some
// times than at others.
func loser(c *cluster.Cluster, _ *faultCounts, stop <-chan struct{}) {
	for worse := 0; ; worse++ {
		c.Net.SetFaults([]float64{0.3, 0.1, 0.2}[worse%3], 0.1, 8*time.Millisecond)
		if !pause(stop, 200*time.Millisecond, 600*time.Millisecond) {
			return
		}
	}
}

// partitioner cuts the stores into random halves, or isolates one, or cuts one way.
func partitioner(c *cluster.Cluster, n *faultCounts, stop <-chan struct{}) {
	for pause(stop, 200*time.Millisecond, 500*time.Millisecond) {
		var a, b []uint64
		nodes := c.Nodes()
		switch rand.IntN(3) {
		case 0:
			for _, s := range nodes {
				if rand.IntN(2) == 0 {
					a = append(a, s.ID)
				} else {
					b = append(b, s.ID)
				}
			}
			c.Net.Partition(a, b)
		case 1:
			one := nodes[rand.IntN(len(nodes))].ID
			for _, s := range nodes {
				if s.ID != one {
					b = append(b, s.ID)
				}
			}
			c.Net.Partition([]uint64{one}, b)
		default:
			from := nodes[rand.IntN(len(nodes))].ID
			for _, s := range nodes {
				if s.ID != from {
					c.Net.Cut(from, s.ID)
				}
			}
		}
		n.partitions.Add(1)
		if !pause(stop, 150*time.Millisecond, 400*time.Millisecond) {
			break
		}
		c.Net.Heal()
	}
	c.Net.Heal()
}

// crasher crashes one store, or all, and starts them again.
func crasher(c *cluster.Cluster, n *faultCounts, stop <-chan struct{}) {
	for pause(stop, 300*time.Millisecond, 700*time.Millisecond) {
		victims := c.Nodes()
		if rand.IntN(3) > 0 {
			i := rand.IntN(len(victims))
			victims = victims[i : i+1]
		}
		loss := []faultfs.Loss{faultfs.DropAll, faultfs.Torn, faultfs.KeepAll}[rand.IntN(3)]
		var wg sync.WaitGroup
		for _, v := range victims {
			wg.Add(1)
			go func() { defer wg.Done(); v.Crash(loss) }()
		}
		wg.Wait()
		n.crashes.Add(1)
		pause(stop, 50*time.Millisecond, 250*time.Millisecond)
		for _, v := range victims {
			v.Restart()
		}
	}
}

// transferer moves leaders around.
func transferer(c *cluster.Cluster, n *faultCounts, stop <-chan struct{}) {
	for pause(stop, 20*time.Millisecond, 60*time.Millisecond) {
		regions := c.Placement.All()
		if len(regions) == 0 {
			continue
		}
		r := regions[rand.IntN(len(regions))]
		to := r.Peers[rand.IntN(len(r.Peers))]
		if c.Transfer(r.Id, to) == nil {
			n.transfers.Add(1)
		}
	}
}

// confChanger removes and adds replicas, never below three.
func confChanger(c *cluster.Cluster, n *faultCounts, stop <-chan struct{}) {
	for pause(stop, 60*time.Millisecond, 200*time.Millisecond) {
		regions := c.Placement.All()
		if len(regions) == 0 {
			continue
		}
		r := regions[rand.IntN(len(regions))]
		if c.RandomConfChange(r, 3) {
			n.confChanges.Add(1)
		}
	}
}

// splitter splits at random keys.
func splitter(c *cluster.Cluster, n *faultCounts, stop <-chan struct{}) {
	for pause(stop, 100*time.Millisecond, 400*time.Millisecond) {
		if err := c.SplitOnce(suiteKey(rand.IntN(suiteKeys))); err == nil {
			n.splits.Add(1)
		} else if errors.Is(err, context.Canceled) {
			return
		}
	}
}

// mergerOf merges random neighbours, in either direction.
func mergerOf(c *cluster.Cluster, n *faultCounts, stop <-chan struct{}) {
	for pause(stop, 50*time.Millisecond, 200*time.Millisecond) {
		regions := c.Placement.All()
		if len(regions) < 2 {
			continue
		}
		for _, i := range rand.Perm(len(regions) - 1) {
			source, target := regions[i], regions[i+1]
			if rand.IntN(2) == 0 {
				source, target = target, source
			}
			if c.MergeOnce(source.Id, target.Id) != nil {
				continue // they may not be on the same stores
			}
			n.freezes.Add(1)
			for range 20 {
				if c.Placement.Region(source.Id) == nil {
					n.merges.Add(1)
					break
				}
				if !pause(stop, 5*time.Millisecond, 50*time.Millisecond) {
					return
				}
			}
			break
		}
	}
}
