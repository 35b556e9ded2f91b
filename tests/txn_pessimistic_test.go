package tests

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// TestPessimisticTransactions: values as of the lock, waits, conflicts, keys that are only locked,
// and what is left of it all.
func TestPessimisticTransactions(t *testing.T) {
	c, cl := txnCluster(t, 20, 3)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(t, setAll(ctx, cl, "1", 1, 8, 15))
	x, err := cl.BeginPessimistic(ctx)
	require.NoError(t, err)
	require.NoError(t, setAll(ctx, cl, "2", 15))
	values, err := x.LockKeys(ctx, bankKey(15), bankKey(1), bankKey(2))
	require.NoError(t, err)
	require.Equal(t,
		map[string][]byte{string(bankKey(15)): []byte("2"), string(bankKey(1)): []byte("1")},
		values)
	v, _, err := x.Get(ctx, bankKey(15))
	require.NoError(t, err)
	require.Equal(t, "1", string(v), "reads are of the start")

	// Others wait, whichever way they come.
	for _, begin := range []func(context.Context) (*txn.Txn, error){cl.Begin, cl.BeginPessimistic} {
		y, err := begin(ctx)
		require.NoError(t, err)
		short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
		y.Set(bankKey(1), []byte("theirs"))
		require.Error(t, y.Commit(short))
		stop()
	}
	waited := make(chan error, 1)
	go func() {
		waited <- cl.RunPessimistic(ctx, func(y *txn.Txn) error {
			values, err := y.LockKeys(ctx, bankKey(1))
			y.Set(bankKey(1), append(values[string(bankKey(1))], '+'))
			return err
		})
	}()
	x.Set(bankKey(1), []byte("3"))
	x.Set(bankKey(8), []byte("3")) // not locked
	require.NoError(t, x.Commit(ctx))
	require.NoError(t, <-waited)
	require.Equal(t, "3+", getAll(t, ctx, cl, 1))
	require.Equal(t, "3", getAll(t, ctx, cl, 8))

	// A key that was not locked is checked at the commit.
	x, err = cl.BeginPessimistic(ctx)
	require.NoError(t, err)
	_, err = x.LockKeys(ctx, bankKey(1))
	require.NoError(t, err)
	require.NoError(t, setAll(ctx, cl, "4", 8))
	x.Set(bankKey(8), []byte("5"))
	require.ErrorIs(t, x.Commit(ctx), txn.ErrConflict)

	// What was only locked is free afterwards, also after a rollback.
	for _, end := range []func(x *txn.Txn) error{
		func(x *txn.Txn) error { return x.Commit(ctx) },
		func(x *txn.Txn) error { x.Rollback(); return nil },
	} {
		x, err = cl.BeginPessimistic(ctx)
		require.NoError(t, err)
		_, err = x.LockKeys(ctx, bankKey(1), bankKey(15))
		require.NoError(t, err)
		require.NoError(t, end(x))
		require.NoError(t, setAll(ctx, cl, "6", 1, 15))
	}
	plain, err := cl.Begin(ctx)
	require.NoError(t, err)
	_, err = plain.LockKeys(ctx, bankKey(1))
	require.ErrorIs(t, err, txn.ErrOptimistic)
	require.NoError(t, setAll(ctx, cl, "7", 1, 8, 15))
	require.Equal(t, "7", getAll(t, ctx, cl, 1, 8, 15))
	c.CheckConsistency()
}

// mute is a store's service for a client that dies with its locks: it sends no heartbeats, and
// drops nothing.
type mute struct{ tinykvpb.TinyKvClient }

func (mute) KvPessimisticRollback(
	context.Context, *kvrpcpb.PessimisticRollbackRequest, ...grpc.CallOption,
) (*kvrpcpb.PessimisticRollbackResponse, error) {
	return nil, status.Error(codes.InvalidArgument, "dead")
}

func (m mute) KvPessimisticLock(
	ctx context.Context, in *kvrpcpb.PessimisticLockRequest, o ...grpc.CallOption,
) (*kvrpcpb.PessimisticLockResponse, error) {
	req := *in
	req.LockTtl = 300
	return m.TinyKvClient.KvPessimisticLock(ctx, &req, o...)
}

// TestPessimisticLocksOfADeadClient: others take them when their time is over.
func TestPessimisticLocksOfADeadClient(t *testing.T) {
	c, cl := txnCluster(t, 20, 3)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	kv := c.ClientThrough(func(s tinykvpb.TinyKvClient) tinykvpb.TinyKvClient { return mute{s} })
	dead := txn.New(kv, c.Placement)
	x, err := dead.BeginPessimistic(ctx)
	require.NoError(t, err)
	_, err = x.LockKeys(ctx, bankKey(15), bankKey(1))
	require.NoError(t, err)
	x.Rollback()
	dead.Close()
	kv.Close()
	require.NoError(t, cl.RunPessimistic(ctx, func(y *txn.Txn) error {
		_, err := y.LockKeys(ctx, bankKey(1), bankKey(15))
		y.Set(bankKey(1), []byte("mine"))
		return err
	}))
	require.Equal(t, "mine", getAll(t, ctx, cl, 1))
}

// TestDeadlocksAcrossStores: transactions that lock counters in different orders, in regions that
// different stores lead. Circles are broken, and no raise is lost, while leaders move.
func TestDeadlocksAcrossStores(t *testing.T) {
	c, cl := txnCluster(t, 20, 3)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	accounts := []int{1, 8, 15}
	require.NoError(t, setAll(ctx, cl, "0", accounts...))
	stop := make(chan struct{})
	var counts faultCounts
	moved := make(chan struct{})
	go func() { defer close(moved); transferer(c, &counts, stop) }()
	const workers, times = 4, 8
	var wg sync.WaitGroup
	var mu sync.Mutex
	deadlocks := 0
	for n := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range times {
				order := []int{accounts[(n+i)%3], accounts[(n+2*i+1)%3]}
				if order[0] == order[1] {
					order = order[:1]
				}
				err := cl.RunPessimistic(ctx, func(x *txn.Txn) error {
					x.SetCommits(commitKinds[(n+i)%3])
					for _, a := range order {
						values, err := x.LockKeys(ctx, bankKey(a))
						if errors.Is(err, txn.ErrDeadlock) {
							mu.Lock()
							deadlocks++
							mu.Unlock()
						}
						if err != nil {
							return err
						}
						has, err := strconv.Atoi(string(values[string(bankKey(a))]))
						if err != nil {
							return err
						}
						x.Set(bankKey(a), fmt.Append(nil, has+1))
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	close(stop)
	<-moved
	want := 0
	for n := range workers {
		for i := range times {
			want += 2
			if (n+i)%3 == (n+2*i+1)%3 {
				want--
			}
		}
	}
	got := 0
	x, err := cl.Begin(ctx)
	require.NoError(t, err)
	for _, a := range accounts {
		v, _, err := x.Get(ctx, bankKey(a))
		require.NoError(t, err)
		n, err := strconv.Atoi(string(v))
		require.NoError(t, err)
		got += n
	}
	require.Equal(t, want, got)
	c.CheckConsistency()
	t.Logf("%d raises, %d deadlocks, %d transfers", want, deadlocks, counts.transfers.Load())
}
