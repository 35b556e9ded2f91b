package commands

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
)

// points is a placement service's safe points.
type points struct {
	txn, gc atomic.Uint64
	asked   atomic.Int64
	fail    atomic.Bool
}

var errNoPlacement = errors.New("no placement service")

func (p *points) fetch(context.Context) (txn, gc uint64, err error) {
	p.asked.Add(1)
	if p.fail.Load() {
		return 0, 0, errNoPlacement
	}
	return p.txn.Load(), p.gc.Load(), nil
}

func (p *points) publish(at uint64) {
	p.txn.Store(at)
	p.gc.Store(at)
}

func collecting(st storage.BoundStorage) (*Executor, *points) {
	p := &points{}
	e := New(st, Disk(), time.Minute)
	e.SetSafePoints(NewSafePoints(p.fetch))
	return e, p
}

// collectAll collects the whole region.
func collectAll(t require.TestingT, e *Executor, safePoint uint64) (versions int) {
	var from []byte
	for {
		done, err := e.Collect(context.Background(), nil, from, safePoint)
		require.NoError(t, err)
		versions += done.Versions
		if from = done.Next; from == nil {
			return versions
		}
	}
}

// reads shows what reads at a timestamp see of all keys, in every way.
func reads(t require.TestingT, e *Executor, ts uint64) string {
	var out strings.Builder
	show := func(p Pair) error {
		fmt.Fprintf(&out, "%q=%x@%d %v;", p.Key, p.Value, p.CommitTS, p.Err)
		return nil
	}
	ctx := context.Background()
	require.NoError(t, e.Scan(ctx, nil, &Scan{Read: At(ts), Limit: 100}, show))
	require.NoError(t, e.Scan(ctx, nil, &Scan{Read: At(ts), Limit: 100, Reverse: true}, show))
	require.NoError(t, e.BatchGet(ctx, nil, keys("a", "b", "c"), At(ts), show))
	return out.String()
}

// TestCollectAgainstATwin: random histories; what reads at the safe point and later see is the same
// before and after, nothing is left that they do not see, and values and records stay together.
func TestCollectAgainstATwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mem := storage.NewMemStorage()
		e, p := collecting(newLeader(mem))
		ctx := context.Background()
		for ts := uint64(10); ts < 10*uint64(rapid.IntRange(2, 40).Draw(t,
			"transactions")); ts += 10 {
			kind := rapid.SampledFrom([]mvcc.WriteKind{
				mvcc.WriteKindPut, mvcc.WriteKindPut, mvcc.WriteKindDelete, mvcc.WriteKindLock,
			}).Draw(t, "kind")
			names := keys(rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 3,
				rapid.ID).Draw(t, "keys")...)
			pre := &Prewrite{StartTS: ts, Primary: names[0]}
			for _, k := range names {
				value := []byte(fmt.Sprint(ts,
					strings.Repeat("v", 300*rapid.IntRange(0, 1).Draw(t, "long"))))
				pre.Mutations = append(pre.Mutations, Mutation{Kind: kind, Key: k, Value: value})
			}
			res, err := e.Prewrite(ctx, nil, pre)
			require.NoError(t, errors.Join(append(res.InWay, err)...))
			switch rapid.IntRange(0, 3).Draw(t, "end") {
			case 0:
				require.NoError(t, e.Rollback(ctx, nil, names, ts))
			case 1:
				require.NoError(t, e.Rollback(ctx, nil, names[:1], ts))
				require.NoError(t, e.ResolveLocks(ctx, nil, Outcomes{ts: 0}))
			default:
				require.NoError(t,
					e.Commit(ctx, nil, names, ts, ts+uint64(rapid.IntRange(1, 9).Draw(t, "later"))))
			}
		}
		safePoint := rapid.Uint64Range(1, 420).Draw(t, "safe point")
		want := map[uint64]string{}
		for ts := safePoint; ts < 430; ts++ {
			want[ts] = reads(t, e, ts)
		}
		p.publish(safePoint)
		removed := collectAll(t, e, safePoint)
		for ts, w := range want {
			require.Equal(t, w, reads(t, e, ts), "reads at %d", ts)
		}
		require.Zero(t, collectAll(t, e, safePoint), "after %d records", removed)
		requireLean(t, mem, safePoint)
	})
}

// requireLean: each key has at most one record up to the safe point, a Put, and each value has its
// record.
func requireLean(t require.TestingT, mem *storage.MemStorage, safePoint uint64) {
	view, err := mem.Reader(nil)
	require.NoError(t, err)
	old, values := map[string]int{}, map[string]bool{}
	it := view.Iterate("write", nil, nil)
	for it.First(); it.Valid(); it.Next() {
		key, c, err := mvcc.SplitKey(it.Key())
		require.NoError(t, err)
		w, err := mvcc.CodecTiKV.DecodeWrite(it.Value())
		require.NoError(t, err)
		if w.Kind == mvcc.WriteKindPut && w.ShortValue == nil {
			values[fmt.Sprintf("%q at %d", key, w.StartTS)] = true
		}
		if c <= safePoint {
			old[string(key)]++
			require.Equal(t, mvcc.WriteKindPut, w.Kind)
			require.Equal(t, 1, old[string(key)])
		}
	}
	it = view.Iterate("default", nil, nil)
	n := 0
	for it.First(); it.Valid(); it.Next() {
		key, s, err := mvcc.SplitKey(it.Key())
		require.NoError(t, err)
		require.True(t, values[fmt.Sprintf("%q at %d", key, s)])
		n++
	}
	require.Len(t, values, n)
}

// TestCollectInSteps: a key with many versions takes several steps, each of which leaves the same
// to be seen; its Delete goes last.
func TestCollectInSteps(t *testing.T) {
	mem := storage.NewMemStorage()
	e, p := collecting(newLeader(mem))
	ctx := context.Background()
	const versions = 3000
	for i := uint64(1); i <= versions; i++ {
		pre := &Prewrite{
			StartTS: 10 * i, Primary: []byte("k"),
			Mutations: []Mutation{{Kind: mvcc.WriteKindPut, Key: []byte("k"), Value: []byte("v")}},
		}
		if i == versions {
			pre.Mutations[0].Kind = mvcc.WriteKindDelete
		}
		_, err := e.Prewrite(ctx, nil, pre)
		require.NoError(t, err)
		require.NoError(t, e.Commit(ctx, nil, keys("k"), 10*i, 10*i+1))
	}
	safePoint := uint64(10*versions + 5)
	p.publish(safePoint)
	steps, from := 0, []byte(nil)
	for {
		done, err := e.Collect(ctx, nil, from, safePoint)
		require.NoError(t, err)
		require.LessOrEqual(t, done.Bytes, collectBytes)
		steps++
		v, err := e.Get(ctx, nil, []byte("k"), At(safePoint))
		require.NoError(t, err)
		require.False(t, v.Found)
		if from = done.Next; from == nil {
			break
		}
	}
	require.Greater(t, steps, 2)
	require.Equal(t, "nothing\n", dump(t, mem, mvcc.CodecTiKV))
}

// TestCollectLeavesLockedKeys: while a transaction up to the safe point has a lock, its key keeps
// its records.
func TestCollectLeavesLockedKeys(t *testing.T) {
	mem := storage.NewMemStorage()
	e, p := collecting(newLeader(mem))
	ctx := context.Background()
	for _, ts := range []uint64{10, 20} {
		_, err := prewriteOne(ctx, e, "k", ts)
		require.NoError(t, err)
		require.NoError(t, e.Commit(ctx, nil, keys("k"), ts, ts+1))
	}
	_, err := prewriteOne(ctx, e, "k", 30)
	require.NoError(t, err)
	p.publish(30)
	before := dump(t, mem, mvcc.CodecTiKV)
	done, err := e.Collect(ctx, nil, nil, 30)
	require.NoError(t, err)
	require.Equal(t, Collected{Locked: 1}, done)
	require.Equal(t, before, dump(t, mem, mvcc.CodecTiKV))
	require.NoError(t, e.Commit(ctx, nil, keys("k"), 30, 31))
	done, err = e.Collect(ctx, nil, nil, 30)
	require.NoError(t, err)
	require.Equal(t, 1, done.Versions)
}

// TestSafePointIsLearntInEachTerm: a store that leads anew asks before it decides about
// transactions that may be too old; and refuses while it does not know.
func TestSafePointIsLearntInEachTerm(t *testing.T) {
	l := newLeader(storage.NewMemStorage())
	e, p := collecting(l)
	ctx := context.Background()
	tooOld := func(err error) {
		t.Helper()
		var abort *AbortError
		require.ErrorAs(t, err, &abort)
		require.ErrorContains(t, err, "GC life time is shorter than transaction duration")
	}
	_, err := prewriteOne(ctx, e, "k", 10)
	require.NoError(t, err)
	require.NoError(t, e.Commit(ctx, nil, keys("k"), 10, 11))
	p.publish(20)
	// Within a term it raises what it knows before it removes anything; until then it need not
	// know.
	_, err = prewriteOne(ctx, e, "old", 15)
	require.NoError(t, err)
	require.NoError(t, e.Rollback(ctx, nil, keys("old"), 15))
	require.EqualValues(t, 1, p.asked.Load())
	l.set(func() { l.mu.term++ })
	_, err = prewriteOne(ctx, e, "old", 20)
	tooOld(err)
	_, err = e.Get(ctx, nil, []byte("k"), At(19))
	tooOld(err)
	tooOld(e.BatchGet(ctx, nil, keys("k"), At(19), nil))
	tooOld(e.Scan(ctx, nil, &Scan{Read: At(19), Limit: 9}, nil))
	v, err := e.Get(ctx, nil, []byte("k"), At(20))
	require.NoError(t, err)
	require.True(t, v.Found)
	_, err = prewriteOne(ctx, e, "new", 21)
	require.NoError(t, err)
	require.EqualValues(t, 2, p.asked.Load())

	l.set(func() { l.mu.term++ })
	p.fail.Store(true)
	var unknown *SafePointError
	_, err = prewriteOne(ctx, e, "other", 22)
	require.ErrorAs(t, err, &unknown)
	_, err = e.Get(ctx, nil, []byte("k"), At(25))
	require.ErrorAs(t, err, &unknown)
	v, err = e.Get(ctx, nil, []byte("k"), At(mvcc.TsMax)) // the newest version is always there
	require.NoError(t, err)
	require.True(t, v.Found)
	require.NoError(t, e.Commit(ctx, nil, keys("new"), 21, 23), "what has begun can end")
}

// TestOldCommits: of a transaction that is too old, and of which nothing is known, it is not said
// that it was rolled back: its record may have been removed.
func TestOldCommits(t *testing.T) {
	mem := storage.NewMemStorage()
	l := newLeader(mem)
	e, p := collecting(l)
	ctx := context.Background()
	for _, ts := range []uint64{10, 20} {
		_, err := prewriteOne(ctx, e, "k", ts)
		require.NoError(t, err)
		require.NoError(t, e.Commit(ctx, nil, keys("k"), ts, ts+1))
	}
	p.publish(30)
	require.Equal(t, 1, collectAll(t, e, 30))
	l.set(func() { l.mu.term++ })
	require.ErrorContains(t, e.Commit(ctx, nil, keys("k"), 10, 11), "GC life time")
	require.NoError(t, e.Commit(ctx, nil, keys("k"), 20, 21), "its record is there")
	var gone *LockNotFoundError
	require.ErrorAs(t, e.Commit(ctx, nil, keys("k"), 40, 41), &gone)
}

// TestUnpublishedSafePoints: nothing is removed up to a safe point that the placement service does
// not have.
func TestUnpublishedSafePoints(t *testing.T) {
	e, p := collecting(newLeader(storage.NewMemStorage()))
	p.txn.Store(50)
	p.gc.Store(40)
	ctx := context.Background()
	_, err := e.Collect(ctx, nil, nil, 41)
	require.ErrorContains(t, err, "not in force")
	_, err = e.OldLocks(ctx, nil, 51, nil, nil, 1)
	require.ErrorContains(t, err, "not in force")
	_, err = e.OldLocks(ctx, nil, 50, nil, nil, 1)
	require.NoError(t, err)
	_, err = prewriteOne(ctx, e, "k", 50)
	require.ErrorContains(t, err, "GC life time")
	never := New(storage.NewMemStorage().Storage(), Disk(), time.Minute)
	_, err = never.Collect(ctx, nil, nil, 0)
	require.ErrorContains(t, err, "safe points")
}

// TestOldLocksSeesWhatIsUnderWay: a prewrite that was decided before the safe point was known is
// waited for, so that its lock is not missed.
func TestOldLocksSeesWhatIsUnderWay(t *testing.T) {
	l := newLeader(storage.NewMemStorage())
	e, p := collecting(l)
	ctx := context.Background()
	l.hold = true
	written := make(chan error, 1)
	go func() {
		_, err := prewriteOne(ctx, e, "k", 10)
		written <- err
	}()
	require.Eventually(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.mu.held) == 1
	}, 10*time.Second, time.Millisecond)
	p.publish(20)
	found := make(chan int, 1)
	go func() {
		locks, err := e.OldLocks(ctx, nil, 20, nil, nil, 10)
		if err != nil {
			t.Error(err)
		}
		found <- len(locks)
	}()
	select {
	case <-found:
		t.Fatal("it did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	l.set(func() { l.hold = false; l.mu.held[0]() })
	require.NoError(t, <-written)
	require.Equal(t, 1, <-found)
	_, err := prewriteOne(ctx, e, "other", 15)
	require.ErrorContains(t, err, "GC life time")
}
