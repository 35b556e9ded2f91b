package tikv

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	tikverr "github.com/tikv/client-go/v2/error"
	"github.com/tikv/client-go/v2/kv"
	"github.com/tikv/client-go/v2/oracle"
	"github.com/tikv/client-go/v2/txnkv"
	"github.com/tikv/client-go/v2/txnkv/transaction"
)

// beginPessimistic begins a transaction that locks keys before its commit.
func beginPessimistic(t *testing.T, cl *txnkv.Client) *transaction.KVTxn {
	t.Helper()
	txn := begin(t, cl)
	txn.SetPessimistic(true)
	return txn
}

// lockKeys locks keys at a new timestamp and returns their values.
func lockKeys(
	ctx context.Context, cl *txnkv.Client, txn *transaction.KVTxn, wait int64, keys ...string,
) (map[string]string, error) {
	ts, err := cl.GetTimestamp(ctx)
	if err != nil {
		return nil, err
	}
	lock := kv.NewLockCtx(ts, wait, time.Now())
	lock.InitReturnValues(len(keys))
	if err := txn.LockKeys(ctx, lock, bytesOf(keys...)...); err != nil {
		return nil, err
	}
	values := map[string]string{}
	for k, v := range lock.Values {
		values[k] = string(v.Value)
	}
	return values, nil
}

// Locks before the commit: what they return, who waits for them and for how long, and what becomes
// of them.
func TestTxnPessimistic(t *testing.T) {
	c := startTxnCluster(t, 3)
	cl := c.txnClient(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	write(t, cl, "a", "1", "m", "1", "z", "1")
	c.splitTxn(t, cl, "g", "s")
	t.Run("values and conflicts", func(t *testing.T) {
		txn := beginPessimistic(t, cl)
		write(t, cl, "a", "2")
		values, err := lockKeys(ctx, cl, txn, kv.LockNoWait, "a", "m", "nothing")
		require.NoError(t, err)
		require.Equal(t, map[string]string{"a": "2", "m": "1", "nothing": ""}, values,
			"as of the lock, not of the start")
		_, err = lockKeys(ctx, cl, beginPessimistic(t, cl), kv.LockNoWait, "a")
		require.ErrorIs(t, err, tikverr.ErrLockAcquireFailAndNoWaitSet)
		began := time.Now()
		_, err = lockKeys(ctx, cl, beginPessimistic(t, cl), 300, "a")
		require.ErrorIs(t, err, tikverr.ErrLockWaitTimeout)
		require.Greater(t, time.Since(began), 290*time.Millisecond)
		got, err := begin(t, cl).Get(ctx, []byte("a"))
		require.NoError(t, err)
		require.Equal(t, "2", string(got), "readers pass the lock")
		require.NoError(t, txn.Set([]byte("a"), []byte("3")))
		require.NoError(t, txn.Set([]byte("z"), []byte("3")))
		require.NoError(t, txn.Commit(ctx))
		it, err := begin(t, cl).Iter(nil, nil)
		require.Equal(t, "[a=3 m=1 z=3]", all(t, it, err))
		late := beginPessimistic(t, cl)
		ts, err := cl.GetTimestamp(ctx)
		require.NoError(t, err)
		write(t, cl, "a", "4")
		err = late.LockKeys(ctx, kv.NewLockCtx(ts, kv.LockNoWait, time.Now()), []byte("a"))
		require.True(t, tikverr.IsErrWriteConflict(err), err)
		require.NoError(t, late.Rollback())
	})
	t.Run("a waiter takes the lock", func(t *testing.T) {
		first, second := beginPessimistic(t, cl), beginPessimistic(t, cl)
		_, err := lockKeys(ctx, cl, first, kv.LockNoWait, "m")
		require.NoError(t, err)
		locked := make(chan error, 1)
		go func() {
			_, err := lockKeys(ctx, cl, second, kv.LockAlwaysWait, "m")
			locked <- err
		}()
		require.Never(t, func() bool {
			return len(locked) > 0
		}, 1500*time.Millisecond, 100*time.Millisecond, "longer than one request waits")
		require.NoError(t, first.Rollback())
		require.NoError(t, <-locked)
		require.NoError(t, second.Set([]byte("m"), []byte("of the second")))
		require.NoError(t, second.Commit(ctx))
		got, err := begin(t, cl).Get(ctx, []byte("m"))
		require.NoError(t, err)
		require.Equal(t, "of the second", string(got))
	})
	t.Run("deadlock", func(t *testing.T) {
		for _, keys := range [][2]string{{"a", "b"}, {"a", "z"}, {"h", "m"}, {"z", "m"}} {
			first, second := beginPessimistic(t, cl), beginPessimistic(t, cl)
			_, err := lockKeys(ctx, cl, first, kv.LockNoWait, keys[0])
			require.NoError(t, err)
			_, err = lockKeys(ctx, cl, second, kv.LockNoWait, keys[1])
			require.NoError(t, err)
			type answer struct {
				txn *transaction.KVTxn
				err error
			}
			answers := make(chan answer, 2)
			for txn, key := range map[*transaction.KVTxn]string{first: keys[1], second: keys[0]} {
				go func() {
					_, err := lockKeys(ctx, cl, txn, kv.LockAlwaysWait, key)
					answers <- answer{txn, err}
				}()
			}
			// the one that has closed the circle; the other one waits until its locks go
			victim := <-answers
			var dead *tikverr.ErrDeadlock
			require.ErrorAs(t, victim.err, &dead)
			require.Contains(t, keys, string(dead.LockKey))
			require.Len(t, dead.WaitChain, 1)
			require.Contains(t, keys, string(dead.WaitChain[0].Key))
			require.NoError(t, victim.txn.Rollback())
			other := <-answers
			require.NoError(t, other.err)
			require.NoError(t, other.txn.Rollback())
		}
	})
	t.Run("optimistic ones wait", func(t *testing.T) {
		txn := beginPessimistic(t, cl)
		_, err := lockKeys(ctx, cl, txn, kv.LockNoWait, "a")
		require.NoError(t, err)
		other := begin(t, cl)
		require.NoError(t, other.Set([]byte("a"), []byte("other")))
		short, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		require.Error(t, other.Commit(short))
		require.NoError(t, txn.Rollback())
		write(t, cl, "a", "5")
	})
	t.Run("heartbeats", func(t *testing.T) {
		txn := beginPessimistic(t, cl)
		_, err := lockKeys(ctx, cl, txn, kv.LockNoWait, "a")
		require.NoError(t, err)
		began, err := cl.GetTimestamp(ctx)
		require.NoError(t, err)
		require.Eventually(t, func() bool { // longer than a lock lives by itself
			now, err := cl.GetTimestamp(ctx)
			return err == nil &&
				oracle.ExtractPhysical(now)-oracle.ExtractPhysical(began) > int64(
					transaction.ManagedLockTTL)
		}, time.Minute, 100*time.Millisecond)
		_, err = lockKeys(ctx, cl, beginPessimistic(t, cl), kv.LockNoWait, "a")
		require.ErrorIs(t, err, tikverr.ErrLockAcquireFailAndNoWaitSet)
		require.NoError(t, txn.Set([]byte("a"), []byte("6")))
		require.NoError(t, txn.Commit(ctx))
	})
	t.Run("keys that exist", func(t *testing.T) {
		txn := beginPessimistic(t, cl)
		ts, err := cl.GetTimestamp(ctx)
		require.NoError(t, err)
		lock := kv.NewLockCtx(ts, kv.LockNoWait, time.Now())
		lock.InitReturnValues(1)
		lock.LockOnlyIfExists = true
		require.NoError(t, txn.LockKeys(ctx, lock, []byte("missing")))
		_, err = lockKeys(ctx, cl, beginPessimistic(t, cl), kv.LockNoWait, "missing")
		require.NoError(t, err, "it is not locked")
		require.NoError(t, txn.Rollback())
	})
}

// Counters that pessimistic transactions raise, in several regions, in any order, committed in all
// ways, while leaders move and each store is killed. None is raised twice, or lost.
func TestTxnPessimisticCounters(t *testing.T) {
	c := startTxnCluster(t, 3)
	cl := c.txnClient(t)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	keys := []string{"a", "m", "z"}
	write(t, cl, "a", "0", "m", "0", "z", "0")
	c.splitTxn(t, cl, "g", "s")
	c.awaitReplicas(t)
	stop := make(chan struct{})
	var mu sync.Mutex
	raised, unknown := map[string]int{}, map[string]int{}
	total := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, k := range keys {
			n += raised[k]
		}
		return n
	}
	var wg sync.WaitGroup
	for n := range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := n; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				pair := []string{keys[i%3], keys[(i+1+n%2)%3]}
				done, sure := raise(cl, i, pair)
				mu.Lock()
				for _, k := range pair {
					if done {
						raised[k]++
					} else if !sure {
						unknown[k]++
					}
				}
				mu.Unlock()
			}
		}()
	}
	more := func(n int) {
		t.Helper()
		from := total()
		require.Eventually(t, func() bool {
			return total() >= from+n
		}, time.Minute, 5*time.Millisecond)
	}
	more(20)
	for _, s := range c.stores {
		for _, k := range keys {
			c.moveLeader(t, place(k))
			more(4)
		}
		s.kill()
		more(6)
		s.start(t)
		c.awaitReplicas(t)
	}
	more(20)
	close(stop)
	wg.Wait()
	got, err := begin(t, cl).BatchGet(ctx, bytesOf(keys...))
	require.NoError(t, err)
	for _, k := range keys {
		n, err := strconv.Atoi(string(got[k]))
		require.NoError(t, err)
		require.GreaterOrEqual(t, n, raised[k], k)
		require.LessOrEqual(t, n, raised[k]+unknown[k], k)
	}
	t.Logf("raised %v, of unknown outcome %v", raised, unknown)
}

// raise raises two counters in one transaction. sure: it knows whether it has.
func raise(cl *txnkv.Client, way int, keys []string) (done, sure bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	txn, err := cl.Begin()
	if err != nil {
		return false, true
	}
	txn.SetPessimistic(true)
	txn.SetEnable1PC(way%3 == 0)
	txn.SetEnableAsyncCommit(way%3 != 1)
	for _, k := range keys {
		values, err := lockKeys(ctx, cl, txn, 2000, k)
		for err != nil && tikverr.IsErrWriteConflict(err) {
			values, err = lockKeys(ctx, cl, txn, 2000, k)
		}
		if err != nil {
			_ = txn.Rollback()
			return false, true
		}
		has, err := strconv.Atoi(values[k])
		if err != nil {
			panic(err)
		}
		if err := txn.Set([]byte(k), []byte(strconv.Itoa(has+1))); err != nil {
			return false, true
		}
	}
	err = txn.Commit(ctx)
	return err == nil, false
}
