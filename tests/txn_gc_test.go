package tests

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/gcworker"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

func collector(c *cluster.Cluster, cl *txn.Client, life time.Duration) *gcworker.Worker {
	return gcworker.New(gcworker.Options{
		LifeTime: life, Interval: time.Hour, Rate: 64 << 20,
		Leads:     func(context.Context) bool { return true },
		Placement: c.Placement, Cluster: cl, Logger: zap.NewNop(),
	})
}

// leftovers counts records of the write family, by kind, and locks, at the leaders of all regions.
func leftovers(t *testing.T, c *cluster.Cluster) (kinds map[mvcc.WriteKind]int, locks int) {
	t.Helper()
	kinds = map[mvcc.WriteKind]int{}
	for _, region := range c.Placement.All() {
		snap := c.WaitLeader(region.Id).Engine().NewSnapshot()
		st, err := meta.LoadRegionState(snap, region.Id)
		require.NoError(t, err)
		view := storage.NewView(snap, st.Region.StartKey, st.Region.EndKey)
		it := view.Iterate(engine.CFWrite, nil, nil)
		for it.First(); it.Valid(); it.Next() {
			w, err := mvcc.CodecTiKV.DecodeWrite(it.Value())
			require.NoError(t, err)
			kinds[w.Kind]++
		}
		it.Close()
		it = view.Iterate(engine.CFLock, nil, nil)
		for it.First(); it.Valid(); it.Next() {
			locks++
		}
		it.Close()
		view.Close()
	}
	return kinds, locks
}

// nextMillisecond returns when a new timestamp is of a later millisecond than all before: safe
// points are of whole ones.
func nextMillisecond(t *testing.T, ctx context.Context, cl *txn.Client) {
	t.Helper()
	last, err := cl.Timestamp(ctx)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		now, err := cl.Timestamp(ctx)
		return err == nil && mvcc.PhysicalTime(now) > mvcc.PhysicalTime(last)
	}, time.Second, time.Millisecond)
}

// TestGarbageIsCollected: over several regions, of every kind; what is left is one version of each
// key that exists. The transactions of dead clients end first, as their primaries have.
func TestGarbageIsCollected(t *testing.T) {
	c, cl := txnCluster(t, 20, 4)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for n := range 5 {
		require.NoError(t, cl.Run(ctx, func(x *txn.Txn) error {
			for i := range 20 {
				x.Set(bankKey(i), bytes.Repeat([]byte{byte(n)}, 1+i*100))
			}
			return nil
		}))
	}
	require.NoError(t, cl.Run(ctx, func(x *txn.Txn) error {
		x.Delete(bankKey(3))
		x.Lock(bankKey(4))
		return nil
	}))
	old, err := cl.Begin(ctx)
	require.NoError(t, err)
	old.Set(bankKey(5), []byte("too late"))
	// One client dies when its primary is committed, another before.
	for _, dies := range []struct {
		committed int // the key that it still commits
		keys      []int
	}{{1, []int{1, 7, 15}}, {-1, []int{2, 8, 19}}} {
		kv := c.ClientThrough(func(s tinykvpb.TinyKvClient) tinykvpb.TinyKvClient {
			return dying{s, bankKey(dies.committed)}
		})
		dead := txn.New(kv, c.Placement)
		dead.SetCommits(txn.TwoPhases)
		x, err := dead.Begin(ctx)
		require.NoError(t, err)
		for _, i := range dies.keys {
			x.Set(bankKey(i), []byte("of the dead"))
		}
		if err := x.Commit(ctx); dies.committed > 0 {
			require.NoError(t, err)
		} else {
			require.True(t, txn.IsUnknown(err), err)
		}
		dead.Close()
		kv.Close()
	}
	_, locks := leftovers(t, c)
	require.Equal(t, 5, locks)

	nextMillisecond(t, ctx, cl)
	w := collector(c, cl, 0) // all that has happened is old
	require.NoError(t, w.Round(ctx))
	kinds, locks := leftovers(t, c)
	require.Zero(t, locks)
	require.Equal(t, map[mvcc.WriteKind]int{mvcc.WriteKindPut: 19}, kinds)
	require.EqualValues(t, 5, w.Stats().Ended)
	require.Greater(t, w.Stats().Versions, uint64(80))
	now, err := cl.Begin(ctx)
	require.NoError(t, err)
	pairs, err := now.Scan(ctx, nil, nil, 0)
	require.NoError(t, err)
	require.Len(t, pairs, 19)
	for _, kv := range pairs {
		i := int(kv.Key[len(kv.Key)-1]-'0') + 10*int(kv.Key[len(kv.Key)-2]-'0')
		want := bytes.Repeat([]byte{4}, 1+i*100)
		if i == 1 || i == 7 || i == 15 {
			want = []byte("of the dead")
		}
		require.Equal(t, want, kv.Value, i)
	}
	// Who began before is refused.
	_, _, err = old.Get(ctx, bankKey(6))
	require.ErrorContains(t, err, "GC life time is shorter than transaction duration")
	require.ErrorContains(t, old.Commit(ctx), "GC life time is shorter than transaction duration")
	c.CheckConsistency()
}

// TestGarbageBesideTransactions: two collectors, each given up in the middle now and then, run
// beside a bank while leaders move, stores crash and networks part. All reads are of a snapshot, or
// refused; sums stay.
func TestGarbageBesideTransactions(t *testing.T) {
	c, cl := txnCluster(t, 20, 5)
	b := newBank(t, c, cl, 20)
	stop := make(chan struct{})
	wait := b.run(6, stop)
	var counts faultCounts
	var wg sync.WaitGroup
	for _, f := range []func(*cluster.Cluster, *faultCounts, <-chan struct{}){
		crasher, transferer, partitioner,
	} {
		wg.Add(1)
		go func() { defer wg.Done(); f(c, &counts, stop) }()
	}
	workers := []*gcworker.Worker{
		collector(c, cl, 300*time.Millisecond), collector(c, cl, 500*time.Millisecond),
	}
	for n, w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(7, uint64(n)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(),
					time.Duration(r.IntN(2000))*time.Millisecond)
				if err := w.Round(ctx); err != nil && ctx.Err() == nil {
					t.Logf("collector %d: %v", n, err)
				}
				cancel()
			}
		}()
	}
	b.rage(4 * time.Second)
	close(stop)
	wg.Wait()
	c.Net.SetFaults(0, 0, 0)
	c.Net.Heal()
	for _, n := range c.Nodes() {
		n.Restart()
	}
	wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r := rand.New(rand.NewPCG(1, 1))
	require.NoError(t, b.look(ctx, r))
	nextMillisecond(t, ctx, cl)
	last := collector(c, cl, 0)
	require.Eventually(t, func() bool {
		return last.Round(ctx) == nil
	}, 30*time.Second, 10*time.Millisecond)
	require.NoError(t, b.look(ctx, r))
	b.check()
	kinds, locks := leftovers(t, c)
	require.Zero(t, locks)
	require.Equal(t, 20, kinds[mvcc.WriteKindPut], "one version of each account")
	// A client rolls back in the background: what came behind the round is left to a later one.
	require.Eventually(t, func() bool {
		if last.Round(ctx) != nil {
			return false
		}
		kinds, locks = leftovers(t, c)
		return locks == 0 && len(kinds) == 1
	}, 30*time.Second, 10*time.Millisecond, "rollbacks are left")
	require.Equal(t, map[mvcc.WriteKind]int{mvcc.WriteKindPut: 20}, kinds)
	c.CheckConsistency()
	versions := last.Stats().Versions
	for _, w := range workers {
		versions += w.Stats().Versions
	}
	t.Logf("%d versions removed; crashes %d, partitions %d, transfers %d", versions,
		counts.crashes.Load(), counts.partitions.Load(), counts.transfers.Load())
	require.Greater(t, versions, uint64(50))
}
