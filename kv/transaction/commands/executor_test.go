package commands

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// leader is a storage whose leadership changes, and whose writes are held or refused.
type leader struct {
	storage.BoundStorage
	mu struct {
		sync.Mutex
		term uint64
		// viewTerm, if not 0, is the term of the next view.
		viewTerm uint64
		lost     error
		held     []func()
	}
	hold bool
	// outcome, if set, answers a write: before it is carried out, or instead.
	outcome func(write func()) (err error, known bool)
	// ranges are the terms of the range deletes.
	ranges []uint64
}

func (l *leader) DeleteRangeBound(
	c *kvrpcpb.Context, b storage.Bound, cf engine.CF, start, end []byte, d time.Time,
	done func(error, bool),
) {
	l.ranges = append(l.ranges, b.Term)
	l.BoundStorage.(storage.BoundRangeDeleter).DeleteRangeBound(c, b, cf, start, end, d, done)
}

func newLeader(mem *storage.MemStorage) *leader {
	l := &leader{BoundStorage: mem.Storage()}
	l.mu.term = 5
	return l
}

func (l *leader) Leadership(*kvrpcpb.Context) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.term, l.mu.lost
}

func (l *leader) BoundReader(
	ctx context.Context, c *kvrpcpb.Context, key []byte,
) (storage.Reader, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, _, err := l.BoundStorage.BoundReader(ctx, c, key)
	return r, l.viewedLocked(), err
}

// viewedLocked is the term of a view.
func (l *leader) viewedLocked() uint64 {
	if l.mu.viewTerm != 0 {
		l.mu.term, l.mu.viewTerm = l.mu.viewTerm, 0
	}
	return l.mu.term
}

// ReadLocal implements storage.LocalReader.
func (l *leader) ReadLocal(c *kvrpcpb.Context, key []byte) (storage.LocalRead, bool, error) {
	if _, err := l.Leadership(c); err != nil {
		return storage.LocalRead{}, false, nil
	}
	var term uint64
	l.set(func() { term = l.viewedLocked() })
	r, err := l.Reader(context.Background(), c, key)
	valid := func() bool { now, err := l.Leadership(c); return err == nil && now == term }
	return storage.LocalRead{Reader: r, Term: term, Valid: valid}, true, err
}

// eitherWay runs a test of prewrites that try the way without waits first, and of those that
// cannot.
func eitherWay(t *testing.T, test func(t *testing.T, executor func(l *leader) *Executor)) {
	t.Run("without a wait", func(t *testing.T) {
		test(t, func(l *leader) *Executor { return New(l, Disk(), time.Minute) })
	})
	t.Run("with one", func(t *testing.T) {
		test(t, func(l *leader) *Executor {
			noLocalReads := struct{ storage.BoundStorage }{l}
			return New(noLocalReads, Disk(), time.Minute)
		})
	})
}

var errStale = errors.New("stale")

func (l *leader) WriteBound(
	c *kvrpcpb.Context, b storage.Bound, mods []storage.Modify, d time.Time, done func(error, bool),
) {
	write := func() { l.BoundStorage.WriteBound(c, b, mods, d, func(error, bool) {}) }
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.outcome != nil:
		err, known := l.outcome(write)
		done(err, known)
	case l.mu.term != b.Term:
		done(errStale, true)
	case l.hold:
		l.mu.held = append(l.mu.held, func() { write(); done(nil, true) })
	default:
		write()
		done(nil, true)
	}
}

func (l *leader) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

func prewriteOne(ctx context.Context, e *Executor, key string, start uint64) ([]error, error) {
	res, err := e.Prewrite(ctx, nil, &Prewrite{
		Mutations: []Mutation{{Kind: mvcc.WriteKindPut, Key: []byte(key), Value: []byte("v")}},
		Primary:   []byte(key), StartTS: start, TTL: 1,
	})
	return res.InWay, err
}

// TestLatchesOutliveTheClient: a command whose client has given up keeps its latches until its
// write is known, so that the next one does not decide on the state before it.
func TestLatchesOutliveTheClient(t *testing.T) {
	eitherWay(t, func(t *testing.T, executor func(l *leader) *Executor) {
		l := newLeader(storage.NewMemStorage())
		e := executor(l)
		l.hold = true
		short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		_, err := prewriteOne(short, e, "k", 10)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		l.set(func() { l.hold = false })
		short, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		_, err = prewriteOne(short, e, "k", 20)
		require.ErrorIs(t, err, context.DeadlineExceeded,
			"the latch is free although the write is not known")

		type answer struct {
			keyErrs []error
			err     error
		}
		got := make(chan answer)
		go func() {
			keyErrs, err := prewriteOne(context.Background(), e, "k", 30)
			got <- answer{keyErrs, err}
		}()
		l.set(func() { l.mu.held[0]() })
		a := <-got
		require.NoError(t, a.err)
		require.Len(t, a.keyErrs, 1)
		var locked *LockedError
		require.ErrorAs(t, a.keyErrs[0], &locked)
		require.Equal(t, uint64(10), locked.Ts)
	})
}

// TestLatchesOfATermThatHasEnded: a write whose outcome is never known holds up nobody in the next
// term, and those who wait for it are let go; without leadership, with the error that says so.
func TestLatchesOfATermThatHasEnded(t *testing.T) {
	eitherWay(t, func(t *testing.T, executor func(l *leader) *Executor) {
		l := newLeader(storage.NewMemStorage())
		e := executor(l)
		l.outcome = func(func()) (error, bool) { return errors.New("unknown"), false }
		_, err := prewriteOne(context.Background(), e, "k", 10)
		require.ErrorContains(t, err, "unknown")
		l.outcome = nil
		got := make(chan error)
		begin := func(start uint64) {
			go func() {
				_, err := prewriteOne(context.Background(), e, "k", start)
				got <- err
			}()
		}
		begin(20)
		select {
		case err := <-got:
			t.Fatalf("it does not wait: %v", err)
		case <-time.After(20 * time.Millisecond): // may pass wrongly, never fail wrongly
		}
		l.set(func() { l.mu.term = 6 })
		require.NoError(t, <-got)

		l.outcome = func(func()) (error, bool) { return errors.New("unknown"), false }
		_, err = prewriteOne(context.Background(), e, "q", 10)
		require.ErrorContains(t, err, "unknown")
		l.outcome = nil
		gone := errors.New("not leader")
		go func() {
			_, err := prewriteOne(context.Background(), e, "q", 30)
			got <- err
		}()
		l.set(func() { l.mu.lost = gone })
		require.ErrorIs(t, <-got, gone)
	})
}

// TestViewOfAnotherTerm: the leadership changes between latch and view; the command begins again
// under the new one.
func TestViewOfAnotherTerm(t *testing.T) {
	eitherWay(t, func(t *testing.T, executor func(l *leader) *Executor) {
		mem := storage.NewMemStorage()
		l := newLeader(mem)
		l.mu.viewTerm = 9
		e := executor(l)
		keyErrs, err := prewriteOne(context.Background(), e, "k", 10)
		require.NoError(t, err)
		require.Empty(t, keyErrs)
		require.Equal(t, 1, mem.Len("lock"))
		// And between view and write: it is refused.
		l.outcome = func(func()) (error, bool) { return errStale, true }
		require.ErrorIs(t, e.Commit(context.Background(), nil, keys("k"), 10, 11), errStale)
		require.Equal(t, 1, mem.Len("lock"))
		l.outcome = nil
		require.NoError(t, e.Commit(context.Background(), nil, keys("k"), 10, 11))
	})
}

// TestDeleteRangeIsAlone: it waits for a write that is under way, and commands wait for it, so that
// no lock or record is left whose value it has deleted.
func TestDeleteRangeIsAlone(t *testing.T) {
	mem := storage.NewMemStorage()
	l := newLeader(mem)
	e := New(l, Disk(), time.Minute)
	ctx := context.Background()
	l.hold = true
	long := &Prewrite{
		Mutations: []Mutation{
			{Kind: mvcc.WriteKindPut, Key: []byte("k"), Value: make([]byte, 300)},
		}, Primary: []byte("k"), StartTS: 10,
	}
	written := make(chan error, 1)
	go func() {
		_, err := e.Prewrite(ctx, nil, long)
		written <- err
	}()
	require.Eventually(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.mu.held) == 1
	}, 10*time.Second, time.Millisecond)
	deleted := make(chan error, 1)
	go func() { deleted <- e.DeleteRange(ctx, nil, []byte("k"), []byte("l")) }()
	select {
	case err := <-deleted:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	l.set(func() { l.hold = false; l.mu.held[0]() })
	require.NoError(t, <-written)
	require.NoError(t, <-deleted)
	require.Equal(t, "nothing\n", dump(t, mem, mvcc.CodecTiKV))
	var gone *LockNotFoundError
	require.ErrorAs(t, e.Commit(ctx, nil, keys("k"), 10, 11), &gone)
	require.Equal(t, "nothing\n", dump(t, mem, mvcc.CodecTiKV))
}

// TestDeleteRangeOfAnEarlierTerm: it is refused by the store, and done in the term of now.
func TestDeleteRangeOfAnEarlierTerm(t *testing.T) {
	mem := storage.NewMemStorage()
	l := newLeader(mem)
	e := New(l, Disk(), time.Minute)
	_, err := prewriteOne(context.Background(), e, "k", 10)
	require.NoError(t, err)
	l.set(func() { l.mu.viewTerm = 6 })
	require.NoError(t, e.DeleteRange(context.Background(), nil, []byte("k"), []byte("l")))
	require.Equal(t, "nothing\n", dump(t, mem, mvcc.CodecTiKV))
	require.Equal(t, []uint64{6, 6, 6}, l.ranges)
}
