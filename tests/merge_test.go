package tests

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

func mergeOn(c *config.Config) { c.Raftstore.Merge = true }

// regionAt is the id of the region that has a key, as the placement service knows it.
func regionAt(t testing.TB, c *cluster.Cluster, key string) uint64 {
	t.Helper()
	r, err := c.Placement.GetRegion(context.Background(), []byte(key))
	require.NoError(t, err)
	require.NotNil(t, r)
	return r.Meta.Id
}

// TestMerge merges a region into its right and into its left neighbour. What was written is there,
// is served by the joined region, and nothing is left of the source.
func TestMerge(t *testing.T) {
	for _, replicas := range []int{1, 2, 3, 5} {
		t.Run(fmt.Sprint(replicas, " replicas"), func(t *testing.T) { checkMerge(t, replicas) })
	}
}

func checkMerge(t *testing.T, replicas int) {
	c := cluster.New(t, cluster.Options{Stores: replicas, Replicas: replicas, Tune: mergeOn})
	cl := c.Client()
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for i := range 26 {
		require.NoError(t,
			cl.Put(ctx, fmt.Appendf(nil, "%c", 'a'+i), fmt.Appendf(nil, "value %d", i)))
	}
	for _, key := range []string{"h", "p", "t"} {
		c.Split([]byte(key))
	}
	check := func() {
		t.Helper()
		for i := range 26 {
			v, _, err := cl.Get(ctx, fmt.Appendf(nil, "%c", 'a'+i))
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("value %d", i), string(v))
		}
	}
	check()
	left, middle, right, last := regionAt(t, c, "a"), regionAt(t, c, "i"), regionAt(t, c, "q"),
		regionAt(t, c, "u")
	c.Merge(middle, right)
	require.Equal(t, right, regionAt(t, c, "i"))
	check()
	c.Merge(right, left)
	require.Equal(t, left, regionAt(t, c, "i"))
	require.NoError(t, cl.Put(ctx, []byte("i"), []byte("value 8")))
	check()
	c.Merge(left, last)
	require.Len(t, c.Placement.All(), 1)
	check()
	c.CheckConsistency()
}

// The suites of splits, with merges beside them.

func TestMergeManyClients(t *testing.T) {
	round{clients: 10, split: true, merge: true, minSplits: 3, minMerges: 3}.run(t)
}

func TestMergeRecover(t *testing.T) {
	round{clients: 10, crash: true, split: true, merge: true, minSplits: 2, minMerges: 2}.run(t)
}

func TestMergeUnreliable(t *testing.T) {
	round{
		clients: 5, unreliable: true, split: true, merge: true, minOps: 100, minSplits: 2,
		minMerges: 1,
	}.run(t)
}

func TestMergeTransfersUnderLoad(t *testing.T) {
	round{
		clients: 8, transfer: true, split: true, merge: true, clocks: true, minSplits: 2,
		minMerges: 2,
	}.run(t)
}

func TestMergeSnapshotUnreliableRecoverPartition(t *testing.T) {
	round{clients: 5, unreliable: true, crash: true, partitions: true, split: true, merge: true,
		transfer: true, maxRaftLog: 20,
		minOps: 20, minSplits: 1}.run(t)
}

func TestMergeConfChangeSnapshotUnreliableRecoverPartition(t *testing.T) {
	round{clients: 5, unreliable: true, crash: true, partitions: true, split: true, merge: true,
		confChange: true, transfer: true,
		maxRaftLog: 20, minOps: 20}.run(t)
}

// mergeTimes are when a merge passed its stages, by the messages that are sent. The first message
// counts, for acknowledgements the last.
type mergeTimes struct {
	sync.Mutex
	frozen, acked, ordered, proposed time.Time
}

func (m *mergeTimes) note(_ uint64, rm *rspb.RaftMessage) {
	m.Lock()
	defer m.Unlock()
	now := time.Now()
	if cluster.CommitsMerge(rm) && m.proposed.IsZero() {
		m.proposed = now
	}
	if rm.Merge == nil {
		return
	}
	switch rm.Merge.Kind {
	case rspb.MergeMessage_Ack:
		if m.frozen.IsZero() {
			m.frozen = now
		}
		if m.ordered.IsZero() {
			m.acked = now
		}
	case rspb.MergeMessage_Ready:
		if m.ordered.IsZero() {
			m.ordered = now
		}
	}
}

// spread is what is printed of many durations.
func spread(all []time.Duration) string {
	slices.Sort(all)
	n := len(all)
	return fmt.Sprintf("p50 %v, p99 %v, max %v", all[n/2].Round(10*time.Microsecond),
		all[n*99/100].Round(10*time.Microsecond), all[n-1].Round(10*time.Microsecond))
}

// BenchmarkMergeStall merges two regions of three stores again and again while clients write to
// both, with the intervals of the defaults, and prints for how long the slowest write of each merge
// took, and what passes between its stages. Source and target are led by different stores.
//
//	go test ./tests -run NONE -bench MergeStall -benchtime 100x
func BenchmarkMergeStall(b *testing.B) {
	defaults := config.Default().Raftstore
	c := cluster.New(b, cluster.Options{
		Stores: 3, Replicas: 3, Tune: func(cfg *config.Config) {
			mergeOn(cfg)
			r := &cfg.Raftstore
			r.TickInterval, r.HeartbeatTicks = defaults.TickInterval, defaults.HeartbeatTicks
			r.ElectionTicks, r.HibernateAfter = defaults.ElectionTicks, defaults.HibernateAfter
		},
	})
	cl := c.Client()
	defer cl.Close()
	const writers = 4
	var slowest, done [writers]atomic.Int64
	var since atomic.Pointer[time.Time] // writes that began earlier do not count
	since.Store(&time.Time{})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range writers {
		wg.Add(1)
		go func() { // ends with ctx
			defer wg.Done()
			for ctx.Err() == nil {
				begun := time.Now()
				err := cl.Put(ctx, []byte{"ax"[i%2], byte(i)}, []byte("value"))
				if took := int64(time.Since(begun)); err == nil && begun.After(*since.Load()) &&
					took > slowest[i].Load() {
					slowest[i].Store(took)
				}
				done[i].Add(1)
			}
		}()
	}
	anew := func() {
		now := time.Now()
		since.Store(&now)
		for i := range slowest {
			slowest[i].Store(0)
		}
	}
	next := func(n int64) { // waits for n more writes of each writer
		for i := range writers {
			for before := done[i].Load(); done[i].Load() < before+n; {
				runtime.Gosched()
			}
		}
	}
	var calm, source, target, frozen, acked, ordered, proposed, merged []time.Duration
	c.WaitLeader(cluster.FirstRegionID)
	for b.Loop() {
		c.Split([]byte("m"))
		s, t := regionAt(b, c, "x"), regionAt(b, c, "a")
		c.TransferLeader(s, cluster.OnStore(c.Placement.Region(s), 1))
		c.TransferLeader(t, cluster.OnStore(c.Placement.Region(t), 2))
		next(2)
		anew()
		next(8)
		for i := range writers {
			calm = append(calm, time.Duration(slowest[i].Load()))
		}
		anew()
		var times mergeTimes
		c.Net.Tap(times.note)
		begun := time.Now()
		c.Merge(s, t)
		times.Lock()
		ended := times.proposed
		times.Unlock()
		c.Net.Tap(nil)
		next(2)
		for i := range writers {
			took := time.Duration(slowest[i].Load())
			if i%2 == 1 {
				source = append(source, took)
			} else {
				target = append(target, took)
			}
		}
		frozen = append(frozen, times.frozen.Sub(begun))
		acked = append(acked, times.acked.Sub(times.frozen))
		ordered = append(ordered, times.ordered.Sub(times.acked))
		proposed = append(proposed, times.proposed.Sub(times.ordered))
		merged = append(merged, time.Since(ended))
	}
	cancel()
	wg.Wait()
	b.Logf("%d merges; slowest of some ten writes before it: %s; slowest during it, of the "+
		"source: %s; of the target: %s", len(frozen), spread(calm), spread(source), spread(target))
	b.Logf("proposed to first acknowledgement: %s; to the last: %s; to the order: %s; "+
		"to CommitMerge: %s; until all have written to the joined region: %s",
		spread(frozen), spread(acked), spread(ordered), spread(proposed), spread(merged))
}
