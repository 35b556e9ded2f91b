package tikv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	tikverr "github.com/tikv/client-go/v2/error"
	"github.com/tikv/client-go/v2/txnkv"
)

const (
	accounts = 40
	fortune  = 100
)

func account(i int) string { return fmt.Sprintf("account-%02d", i) }

// bank is money that clients of both kinds move between accounts.
type bank struct {
	t       *testing.T
	cl      *txnkv.Client
	natives *natives
	stop    chan struct{}
	// moved and seen count transfers and looks by client; conflicts are transfers that came to
	// nothing.
	moved, seen, conflicts [2]atomic.Int64
}

const (
	byTiKV = iota
	byNative
)

// transfer moves money by a transaction of TiKV's client, which is committed in the n-th way.
func (b *bank) transfer(ctx context.Context, n int, from, to string, amount int) error {
	txn, err := b.cl.Begin()
	if err != nil {
		return err
	}
	txn.SetEnable1PC(n%3 == 0)
	txn.SetEnableAsyncCommit(n%3 != 1)
	for _, m := range []struct {
		key    string
		change int
	}{{from, -amount}, {to, amount}} {
		v, err := txn.Get(ctx, []byte(m.key))
		if err != nil {
			return err
		}
		has, err := strconv.Atoi(string(v))
		if err != nil {
			return err
		}
		if err := txn.Set([]byte(m.key), []byte(strconv.Itoa(has+m.change))); err != nil {
			return err
		}
	}
	return txn.Commit(ctx)
}

// look adds up all accounts by the n-th way of reading a snapshot.
func (b *bank) look(ctx context.Context, n int) (total int, err error) {
	txn, err := b.cl.Begin()
	if err != nil {
		return 0, err
	}
	add := func(v []byte) error {
		has, err := strconv.Atoi(string(v))
		total += has
		return err
	}
	var it iterator
	switch n % 4 {
	case 0:
		for i := range accounts {
			v, err := txn.Get(ctx, []byte(account(i)))
			if err == nil {
				err = add(v)
			}
			if err != nil {
				return 0, err
			}
		}
		return total, nil
	case 1:
		var keys [][]byte
		for i := range accounts {
			keys = append(keys, []byte(account(i)))
		}
		got, err := txn.BatchGet(ctx, keys)
		for _, v := range got {
			if err == nil {
				err = add(v)
			}
		}
		return total, err
	case 2:
		it, err = txn.Iter([]byte("account"), []byte("b"))
	default:
		it, err = iterReverse(txn, []byte("b"))
	}
	if err != nil {
		return 0, err
	}
	defer it.Close()
	for it.Valid() {
		if err := add(it.Value()); err != nil {
			return 0, err
		}
		if err := it.Next(); err != nil {
			return 0, err
		}
	}
	return total, nil
}

func (b *bank) stopped() bool {
	select {
	case <-b.stop:
		return true
	default:
		return false
	}
}

// tikvClient moves money, or looks, until stopped. Errors are those of faults.
func (b *bank) tikvClient(n int) {
	rng := rand.New(rand.NewPCG(3, uint64(n)))
	for i := 0; !b.stopped(); i++ {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		if rng.IntN(3) > 0 {
			p := rng.Perm(accounts)
			err := b.transfer(ctx, i, account(p[0]), account(p[1]), 1+rng.IntN(5))
			if err == nil {
				b.moved[byTiKV].Add(1)
			} else if tikverr.IsErrWriteConflict(err) {
				b.conflicts[byTiKV].Add(1)
			}
		} else if total, err := b.look(ctx, i); err == nil {
			if total != accounts*fortune {
				b.t.Errorf("TiKV's client sees %d in all, in the way %d", total, i%4)
			}
			b.seen[byTiKV].Add(1)
		}
		cancel()
	}
}

// nativeClient does the same by this project's own client.
func (b *bank) nativeClient(n int) {
	rng := rand.New(rand.NewPCG(4, uint64(n)))
	for !b.stopped() {
		p := rng.Perm(accounts)
		op := nativeOp{
			Kind: "transfer", Key: []byte(account(p[0])), Expected: []byte(account(p[1])),
			Value: []byte("1"),
		}
		look := rng.IntN(3) == 0
		if look {
			op = nativeOp{Kind: "sum", Key: []byte("account"), Expected: []byte("b")}
		}
		got, err := b.natives.do(op)
		switch {
		case err != nil:
			b.t.Error(err)
			return
		case got.Error != "":
		case !look:
			b.moved[byNative].Add(1)
		default:
			if string(got.Value) != strconv.Itoa(accounts*fortune) {
				b.t.Errorf("the native client sees %s in all", got.Value)
			}
			b.seen[byNative].Add(1)
		}
	}
}

// Clients of TiKV and of this project move money between the same accounts, which lie in several
// regions, while regions split, leaders move and each store is killed once. Every snapshot has all
// the money.
func TestTxnBank(t *testing.T) {
	c := startTxnCluster(t, 3)
	b := &bank{t: t, cl: c.txnClient(t), natives: startNatives(t, c), stop: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var first []string
	for i := range accounts {
		first = append(first, account(i), strconv.Itoa(fortune))
	}
	write(t, b.cl, first...)
	c.splitTxn(t, b.cl, account(8), account(16), account(24), account(32))
	c.awaitReplicas(t)
	var wg sync.WaitGroup
	for n := range 6 {
		wg.Add(1)
		go func() { defer wg.Done(); b.tikvClient(n) }()
	}
	for n := range 2 {
		wg.Add(1)
		go func() { defer wg.Done(); b.nativeClient(n) }()
	}
	more := func(n int64) {
		t.Helper()
		for _, counter := range []*atomic.Int64{
			&b.moved[byTiKV], &b.moved[byNative], &b.seen[byTiKV], &b.seen[byNative],
		} {
			from := counter.Load()
			require.Eventually(t, func() bool {
				return counter.Load() >= from+n || t.Failed()
			}, time.Minute, 5*time.Millisecond)
		}
	}
	more(5)
	for i, s := range c.stores {
		for range 4 {
			c.moveLeader(t, place(account(rand.IntN(accounts))))
			more(3)
		}
		c.splitAt(t, place(account(3+9*i)))
		s.kill()
		more(5)
		s.start(t)
		c.awaitReplicas(t)
	}
	more(10)
	close(b.stop)
	wg.Wait()
	total, err := b.look(ctx, 2)
	require.NoError(t, err)
	require.Equal(t, accounts*fortune, total)
	t.Logf("TiKV's client: %d transfers, %d conflicts, %d looks; native: %d transfers, %d looks",
		b.moved[byTiKV].Load(), b.conflicts[byTiKV].Load(), b.seen[byTiKV].Load(),
		b.moved[byNative].Load(), b.seen[byNative].Load())
}
