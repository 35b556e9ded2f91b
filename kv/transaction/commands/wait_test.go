package commands

import (
	"context"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/deadlock"
)

func early(start uint64, wait time.Duration, keys ...string) *PessimisticLock {
	p := &PessimisticLock{
		Primary: []byte(keys[0]), StartTS: start, ForUpdateTS: start, TTL: 1000, Wait: wait,
		ReturnValues: true,
	}
	for _, k := range keys {
		p.Keys = append(p.Keys, LockedKey{Key: []byte(k)})
	}
	return p
}

type acquired struct {
	start uint64
	err   error
}

// acquireLater has transactions wait for the lock of a key, and returns when they do.
func acquireLater(t *testing.T, e *Executor, out chan<- acquired, key string, starts ...uint64) {
	t.Helper()
	for _, s := range starts {
		go func() {
			_, err := e.AcquireLocks(context.Background(), nil, early(s, time.Minute, key))
			out <- acquired{s, err}
		}()
		require.Eventually(t, func() bool {
			for _, w := range e.Waits() {
				if w.Waiter == s {
					return true
				}
			}
			return false
		}, time.Minute, time.Millisecond)
	}
}

// TestWaitersTakeTheLock: a lock that goes is taken by the one that began first; one that is
// committed is a conflict to all.
func TestWaitersTakeTheLock(t *testing.T) {
	for name, end := range map[string]func(ctx context.Context, e *Executor) error{
		"rolled back": func(ctx context.Context, e *Executor) error {
			return e.Rollback(ctx, nil, keys("k"), 10)
		},
		"released": func(ctx context.Context, e *Executor) error {
			return e.ReleaseLocks(ctx, nil, keys("k"), 10, 10)
		},
		"resolved": func(ctx context.Context, e *Executor) error {
			return e.ResolveLocks(ctx, nil, Outcomes{10: 0})
		},
		"time is over": func(ctx context.Context, e *Executor) error {
			_, err := e.CheckTxnStatus(ctx, nil,
				&StatusQuery{
					Primary: []byte("k"), LockTS: 10, CurrentTS: 2000 << 18, Pessimistic: true,
				})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			e := New(storage.NewMemStorage().Storage(), Disk(), time.Minute)
			_, err := e.AcquireLocks(ctx, nil, early(10, 0, "k"))
			require.NoError(t, err)
			out := make(chan acquired)
			acquireLater(t, e, out, "k", 30, 20)
			require.NoError(t, end(ctx, e))
			got := <-out
			require.Equal(t, acquired{start: 20}, got, "the one that began first")
			require.NoError(t, e.Rollback(ctx, nil, keys("k"), 20))
			require.Equal(t, acquired{start: 30}, <-out)
			require.True(t, e.waiting.Idle())
			require.Empty(t, e.Waits())
		})
	}
	t.Run("committed", func(t *testing.T) {
		ctx := context.Background()
		e := New(storage.NewMemStorage().Storage(), Disk(), time.Minute)
		_, err := e.AcquireLocks(ctx, nil, early(10, 0, "k"))
		require.NoError(t, err)
		out := make(chan acquired)
		acquireLater(t, e, out, "k", 20, 30)
		p := put(10, "k")
		p.OnePC, p.ForUpdateTS = false, 10
		p.Mutations[0].Check = LockedBefore
		_, err = e.Prewrite(ctx, nil, p)
		require.NoError(t, err)
		require.NoError(t, e.Commit(ctx, nil, keys("k"), 10, 50))
		for range 2 {
			var conflict *ConflictError
			require.ErrorAs(t, (<-out).err, &conflict)
			require.Equal(t, ConflictPessimistic, conflict.Reason)
		}
	})
}

// TestWaitsEnd: by their time, by the client's, with the leadership; without a wait at once.
func TestWaitsEnd(t *testing.T) {
	ctx := context.Background()
	l := newLeader(storage.NewMemStorage())
	e := New(l, Disk(), time.Minute)
	_, err := e.AcquireLocks(ctx, nil, early(10, 0, "k"))
	require.NoError(t, err)
	var locked *LockedError
	for _, wait := range []time.Duration{-1, 0, 5 * time.Millisecond} {
		_, err = e.AcquireLocks(ctx, nil, early(20, wait, "j", "k"))
		require.ErrorAs(t, err, &locked)
		require.Equal(t, uint64(10), locked.Ts)
	}
	_, err = e.AcquireLocks(ctx, nil, early(30, 0, "j"))
	require.NoError(t, err, "nothing of a request that fails is kept")
	short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	_, err = e.AcquireLocks(short, nil, early(20, time.Minute, "k"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	out := make(chan acquired)
	acquireLater(t, e, out, "k", 40)
	l.set(func() { l.mu.lost = errStale })
	require.ErrorIs(t, (<-out).err, errStale)
	require.True(t, e.waiting.Idle())
	require.Empty(t, e.Waits())
}

// TestDeadlocks: the one that would close the circle gets the error; when it ends, the others go
// on.
func TestDeadlocks(t *testing.T) {
	ctx := context.Background()
	e := New(storage.NewMemStorage().Storage(), Disk(), time.Minute)
	for i, k := range []string{"a", "b", "c"} {
		_, err := e.AcquireLocks(ctx, nil, early(uint64(10+i), 0, k))
		require.NoError(t, err)
	}
	out := make(chan acquired)
	acquireLater(t, e, out, "b", 10)
	acquireLater(t, e, out, "c", 11)
	_, err := e.AcquireLocks(ctx, nil, early(12, time.Minute, "a"))
	var dead *DeadlockError
	require.ErrorAs(t, err, &dead)
	require.Equal(t, uint64(10), dead.HolderTS)
	require.Equal(t, "a", string(dead.Key))
	require.Equal(t,
		[]deadlock.Edge{
			{Waiter: 10, Holder: 11, Key: []byte("b")}, {Waiter: 11, Holder: 12, Key: []byte("c")},
		}, dead.Chain)
	require.NoError(t, e.Rollback(ctx, nil, keys("c"), 12))
	require.Equal(t, acquired{start: 11}, <-out)
	require.NoError(t, e.Rollback(ctx, nil, keys("b", "c"), 11))
	require.Equal(t, acquired{start: 10}, <-out)
	require.Empty(t, e.Waits())
	_, err = e.DetectDeadlock(ctx, nil, deadlock.Edge{Waiter: 5, Holder: 5}, false)
	require.Error(t, err)
}

func TestLockWait(t *testing.T) {
	require.Equal(t, []time.Duration{0, MaxLockWait, 7 * time.Millisecond, MaxLockWait},
		[]time.Duration{LockWait(-1), LockWait(0), LockWait(7), LockWait(math.MaxInt64)})
}

// silentDetector never answers.
type silentDetector struct{}

func (silentDetector) Detect(ctx context.Context, _ deadlock.Edge) ([]deadlock.Edge, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (silentDetector) Remove(context.Context, deadlock.Edge) { panic("nothing was added") }

// TestWithoutADetector: waits end by their time.
func TestWithoutADetector(t *testing.T) {
	ctx := context.Background()
	e := New(storage.NewMemStorage().Storage(), Disk(), time.Minute)
	e.SetDetector(silentDetector{})
	_, err := e.AcquireLocks(ctx, nil, early(10, 0, "k"))
	require.NoError(t, err)
	var locked *LockedError
	_, err = e.AcquireLocks(ctx, nil, early(20, 10*time.Millisecond, "k"))
	require.ErrorAs(t, err, &locked)
	p := early(20, 10*time.Millisecond, "k")
	p.First = true // it holds nothing, and asks nobody
	_, err = e.AcquireLocks(ctx, nil, p)
	require.ErrorAs(t, err, &locked)
}

// TestCountersUnderPessimisticLocks: many transactions raise the same counters, with locks taken
// first. No raise is lost, and circles are broken.
func TestCountersUnderPessimisticLocks(t *testing.T) {
	o := &oracle{}
	e := choosing(storage.NewMemStorage().Storage(), o)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	names := []string{"a", "b"}
	raise := func(order []string) bool {
		start := o.at.Add(1)
		held := [][]byte{}
		read := map[string]int{}
		for _, k := range order {
			for {
				p := early(start, time.Second, k)
				p.ForUpdateTS = o.at.Add(1)
				values, err := e.AcquireLocks(ctx, nil, p)
				if _, again := err.(*ConflictError); again {
					continue
				}
				if _, again := err.(*LockedError); again {
					continue
				}
				if _, dead := err.(*DeadlockError); dead {
					if len(held) > 0 {
						require.NoError(t, e.ReleaseLocks(ctx, nil, held, start, p.ForUpdateTS))
					}
					return false
				}
				if err != nil {
					t.Error(err)
					return true
				}
				n := 0
				_, _ = fmt.Sscan(string(values[0].Data), &n)
				read[k] = n
				held = append(held, []byte(k))
				break
			}
		}
		p := &Prewrite{
			StartTS: start, Primary: []byte(order[0]), TTL: 1000, ForUpdateTS: o.at.Load(),
			OnePC: true,
		}
		for _, k := range order {
			p.Mutations = append(p.Mutations,
				Mutation{
					Key: []byte(k), Kind: 1, Value: fmt.Append(nil, read[k]+1), Check: LockedBefore,
				})
		}
		res, err := e.Prewrite(ctx, nil, p)
		require.NoError(t, err)
		require.NotZero(t, res.CommitTS)
		return true
	}
	const workers, times = 4, 15
	var wg sync.WaitGroup
	for n := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			order := []string{names[n%2], names[(n+1)%2]}
			for range times {
				for !raise(order) {
				}
			}
		}()
	}
	wg.Wait()
	for _, k := range names {
		v, err := e.Get(ctx, nil, []byte(k), At(o.at.Add(100)))
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(workers*times), string(v.Data))
	}
	require.True(t, e.waiting.Idle())
}
