package tikv

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/pdpb"
	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/config"
	tikverr "github.com/tikv/client-go/v2/error"
	"github.com/tikv/client-go/v2/kv"
	"github.com/tikv/client-go/v2/oracle"
	"github.com/tikv/client-go/v2/txnkv"
	"github.com/tikv/client-go/v2/txnkv/transaction"
	"github.com/tikv/client-go/v2/util/codec"
)

func startTxnCluster(t *testing.T, stores int) *cluster {
	return startClusterWith(t, stores, "http://", []string{"--mode", "txn"}, nil)
}

// txnClient is a client of TiKV's transactions that knows nothing but the scheduler's address.
func (c *cluster) txnClient(t *testing.T) *txnkv.Client {
	t.Helper()
	cl, err := txnkv.NewClient([]string{c.scheduler.addr})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cl.Close()) })
	return cl
}

// place is a user key as regions are bounded by.
func place(key string) string { return string(codec.EncodeBytes(nil, []byte(key))) }

func begin(t *testing.T, cl *txnkv.Client) *transaction.KVTxn {
	t.Helper()
	txn, err := cl.Begin()
	require.NoError(t, err)
	return txn
}

// splitTxn has TiKV's client split regions at keys, and waits until the placement service knows
// them.
func (c *cluster) splitTxn(t *testing.T, cl *txnkv.Client, keys ...string) {
	t.Helper()
	_, err := cl.SplitRegions(context.Background(), bytesOf(keys...), false, nil)
	require.NoError(t, err)
	pd, ctx := pdpb.NewPDClient(dial(t, c.scheduler.addr)), context.Background()
	require.Eventually(t, func() bool {
		got, err := pd.ScanRegions(ctx,
			&pdpb.ScanRegionsRequest{Header: &pdpb.RequestHeader{ClusterId: cl.GetClusterID()}})
		require.NoError(t, err)
		starts := map[string]bool{}
		for _, r := range got.Regions {
			starts[string(r.Region.StartKey)] = r.Leader.GetId() != 0
		}
		for _, k := range keys {
			if !starts[place(k)] {
				return false
			}
		}
		return true
	}, 30*time.Second, 20*time.Millisecond)
}

// write commits a transaction that sets keys to values.
func write(t *testing.T, cl *txnkv.Client, pairs ...string) {
	t.Helper()
	txn := begin(t, cl)
	for i := 0; i < len(pairs); i += 2 {
		require.NoError(t, txn.Set([]byte(pairs[i]), []byte(pairs[i+1])))
	}
	require.NoError(t, txn.Commit(context.Background()))
}

type iterator interface {
	Valid() bool
	Key() []byte
	Value() []byte
	Next() error
	Close()
}

func all(t *testing.T, it iterator, err error) string {
	t.Helper()
	require.NoError(t, err)
	defer it.Close()
	var out []string
	for it.Valid() {
		out = append(out, string(it.Key())+"="+string(it.Value()))
		require.NoError(t, it.Next())
	}
	return fmt.Sprint(out)
}

// Every operation of TiKV's transactions, over several regions.
func TestTxn(t *testing.T) {
	c := startTxnCluster(t, 3)
	cl := c.txnClient(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	write(t, cl, "a", "1")
	c.splitTxn(t, cl, "c", "e", "g")
	long := string(bytes.Repeat([]byte("v"), 3000))
	write(t, cl, "b", "1", "c", "1", "d", long, "e", "1", "f", long, "h", "1")

	t.Run("reads", func(t *testing.T) {
		txn := begin(t, cl)
		got, err := txn.Get(ctx, []byte("d"))
		require.NoError(t, err)
		require.Equal(t, long, string(got))
		_, err = txn.Get(ctx, []byte("absent"))
		require.True(t, tikverr.IsErrNotFound(err), err)
		many, err := txn.BatchGet(ctx, bytesOf("a", "c", "f", "h", "nothing"))
		require.NoError(t, err)
		require.Len(t, many, 4)
		require.Equal(t, long, string(many["f"]))
		require.NoError(t, txn.Set([]byte("bb"), []byte("own")))
		it, err := txn.Iter([]byte("b"), []byte("d"))
		require.Equal(t, "[b=1 bb=own c=1]", all(t, it, err))
		it, err = txn.Iter(nil, nil)
		require.Equal(t, "[a=1 b=1 bb=own c=1 d="+long+" e=1 f="+long+" h=1]", all(t, it, err))
		it, err = iterReverse(txn, []byte("d"))
		require.Equal(t, "[c=1 bb=own b=1 a=1]", all(t, it, err))
		it, err = iterReverse(txn, []byte("i"))
		require.Equal(t, "[h=1 f="+long+" e=1 d="+long+" c=1 bb=own b=1 a=1]", all(t, it, err))
		require.NoError(t, txn.Rollback())
		snap := cl.GetSnapshot(math.MaxUint64)
		snap.SetKeyOnly(true)
		snap.SetScanBatchSize(2)
		it, err = snap.Iter([]byte("b"), nil)
		require.NoError(t, err)
		var keys []string
		for ; it.Valid(); require.NoError(t, it.Next()) {
			keys = append(keys, string(it.Key())) // one that is still locked comes with its value
		}
		it.Close()
		require.Equal(t, []string{"b", "c", "d", "e", "f", "h"}, keys)
	})
	t.Run("snapshots", func(t *testing.T) {
		old := begin(t, cl)
		write(t, cl, "a", "2", "h", "2")
		del := begin(t, cl)
		require.NoError(t, del.Delete([]byte("b")))
		require.NoError(t, del.Commit(ctx))
		it, err := old.Iter(nil, []byte("c"))
		require.Equal(t, "[a=1 b=1]", all(t, it, err))
		got, err := old.Get(ctx, []byte("h"))
		require.NoError(t, err)
		require.Equal(t, "1", string(got))
		it, err = begin(t, cl).Iter(nil, []byte("c"))
		require.Equal(t, "[a=2]", all(t, it, err))
	})
	t.Run("conflict", func(t *testing.T) {
		first, second := begin(t, cl), begin(t, cl)
		require.NoError(t, first.Set([]byte("a"), []byte("3")))
		require.NoError(t, second.Set([]byte("a"), []byte("4")))
		require.NoError(t, second.Set([]byte("h"), []byte("4")))
		require.NoError(t, first.Commit(ctx))
		err := second.Commit(ctx)
		require.True(t, tikverr.IsErrWriteConflict(err), err)
		it, err := begin(t, cl).Iter(nil, nil)
		require.Equal(t, "[a=3 c=1 d="+long+" e=1 f="+long+" h=2]", all(t, it, err))
	})
	t.Run("insert", func(t *testing.T) {
		txn := begin(t, cl)
		require.NoError(t,
			txn.GetMemBuffer().SetWithFlags([]byte("a"), []byte("5"), kv.SetPresumeKeyNotExists))
		require.NoError(t,
			txn.GetMemBuffer().SetWithFlags([]byte("x"), []byte("5"), kv.SetPresumeKeyNotExists))
		err := txn.Commit(ctx)
		require.True(t, tikverr.IsErrKeyExist(err), err)
		txn = begin(t, cl)
		require.NoError(t,
			txn.GetMemBuffer().SetWithFlags([]byte("x"), []byte("5"), kv.SetPresumeKeyNotExists))
		require.NoError(t, txn.Commit(ctx))
	})
	t.Run("faster commits", func(t *testing.T) {
		for _, keys := range [][]string{{"a", "b"}, {"a", "h"}} {
			txn := begin(t, cl)
			txn.SetEnableAsyncCommit(true)
			txn.SetEnable1PC(true)
			for _, k := range keys {
				require.NoError(t, txn.Set([]byte(k), []byte("6")))
			}
			require.NoError(t, txn.Commit(ctx))
		}
		many, err := begin(t, cl).BatchGet(ctx, bytesOf("a", "b", "h"))
		require.NoError(t, err)
		require.Equal(t, map[string][]byte{"a": []byte("6"), "b": []byte("6"), "h": []byte("6")},
			many)
	})
	t.Run("ranges", func(t *testing.T) {
		done, err := cl.DeleteRange(ctx, []byte("d"), []byte("g"), 2)
		require.NoError(t, err)
		require.Equal(t, 2, done)
		it, err := begin(t, cl).Iter(nil, nil)
		require.Equal(t, "[a=6 b=6 c=1 h=6 x=5]", all(t, it, err))
		require.NoError(t, cl.UnsafeDestroyRange(ctx, []byte("b"), []byte("h")))
		it, err = begin(t, cl).Iter(nil, nil)
		require.Equal(t, "[a=6 h=6 x=5]", all(t, it, err))
	})
	t.Run("garbage", func(t *testing.T) {
		ts, err := cl.GetTimestamp(ctx)
		require.NoError(t, err)
		at, err := cl.GC(ctx, ts)
		require.NoError(t, err)
		require.Less(t, oracle.ExtractPhysical(at), oracle.ExtractPhysical(ts)-59_000,
			"not so near to now")
		require.Greater(t, oracle.ExtractPhysical(at), oracle.ExtractPhysical(ts)-90_000)
		it, err := begin(t, cl).Iter(nil, nil)
		require.Equal(t, "[a=6 h=6 x=5]", all(t, it, err))
	})
}

// prewritten is a transaction whose client has died after it has locked its keys, the first of
// which is the primary.
func (c *cluster) prewritten(
	t *testing.T, cl *txnkv.Client, ttl uint64, keys ...string,
) (start uint64) {
	t.Helper()
	start, err := cl.GetTimestamp(context.Background())
	require.NoError(t, err)
	for _, k := range keys {
		require.Eventually(t, func() bool { // a new region has no leader for a moment
			store, rc := c.target(t, place(k))
			resp, err := store.KvPrewrite(context.Background(), &kvrpcpb.PrewriteRequest{
				Context: rc, PrimaryLock: []byte(keys[0]), StartVersion: start, LockTtl: ttl,
				MinCommitTs: start + 1, TxnSize: uint64(len(keys)),
				Mutations: []*kvrpcpb.Mutation{
					{Op: kvrpcpb.Op_Put, Key: []byte(k), Value: []byte("of the dead")},
				},
			})
			require.NoError(t, err)
			require.Empty(t, resp.Errors)
			return resp.RegionError == nil
		}, 30*time.Second, 20*time.Millisecond)
	}
	return start
}

// The locks of clients that have died: readers pass those of a transaction that may still be alive.
// All others are ended as their primary has ended.
func TestTxnOfADeadClient(t *testing.T) {
	c := startTxnCluster(t, 3)
	cl := c.txnClient(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	write(t, cl, "a", "1", "b", "1", "m", "1", "z", "1")
	c.splitTxn(t, cl, "g", "s")

	// It may live: readers push it, and do not wait. It can still commit, behind them.
	start := c.prewritten(t, cl, 60000, "a", "m", "z")
	began := time.Now()
	reader := begin(t, cl)
	many, err := reader.BatchGet(ctx, bytesOf("a", "m", "z"))
	require.NoError(t, err)
	require.Equal(t, map[string][]byte{"a": []byte("1"), "m": []byte("1"), "z": []byte("1")}, many)
	_, err = iterReverse(reader, nil)
	require.ErrorContains(t, err, "begins in the last region") // this client asks the first one
	it, err := iterReverse(reader, []byte("~"))
	require.Equal(t, "[z=1 m=1 b=1 a=1]", all(t, it, err))
	require.Less(t, time.Since(began), 30*time.Second)
	store, rc := c.target(t, place("a"))
	commit := func(ts uint64) *kvrpcpb.CommitResponse {
		t.Helper()
		resp, err := store.KvCommit(ctx, &kvrpcpb.CommitRequest{
			Context: rc, StartVersion: start, CommitVersion: ts, Keys: bytesOf("a"),
		})
		require.NoError(t, err)
		require.Nil(t, resp.RegionError)
		return resp
	}
	early := commit(start + 1).Error.GetCommitTsExpired()
	require.NotNil(t, early)
	require.Greater(t, early.MinCommitTs, reader.StartTS())
	ts, err := cl.GetTimestamp(ctx)
	require.NoError(t, err)
	require.Nil(t, commit(ts).Error)

	// Its primary is committed: readers commit the rest. The old reader sees what it has seen.
	many, err = begin(t, cl).BatchGet(ctx, bytesOf("a", "m", "z"))
	require.NoError(t, err)
	dead := []byte("of the dead")
	require.Equal(t, map[string][]byte{"a": dead, "m": dead, "z": dead}, many)
	many, err = cl.GetSnapshot(reader.StartTS()).BatchGet(ctx, bytesOf("a", "m", "z"))
	require.NoError(t, err)
	require.Equal(t, map[string][]byte{"a": []byte("1"), "m": []byte("1"), "z": []byte("1")}, many)

	// Its time is over: writers roll it back, and it cannot commit any more.
	start = c.prewritten(t, cl, 1, "b", "m", "y")
	write(t, cl, "b", "2", "m", "2")
	it, err = begin(t, cl).Iter([]byte("b"), nil)
	require.Equal(t, "[b=2 m=2 z=of the dead]", all(t, it, err))
	ts, err = cl.GetTimestamp(ctx)
	require.NoError(t, err)
	store, rc = c.target(t, place("b"))
	resp, err := store.KvCommit(ctx,
		&kvrpcpb.CommitRequest{
			Context: rc, StartVersion: start, CommitVersion: ts, Keys: bytesOf("b"),
		})
	require.NoError(t, err)
	require.Contains(t, resp.Error.GetRetryable(), "TxnLockNotFound")
}

// slowCheck holds a transaction between its two phases until it is released.
type slowCheck struct {
	prewritten chan struct{}
	release    chan struct{}
	calls      atomic.Int32
}

func (s *slowCheck) CheckBySchemaVer(
	uint64, transaction.SchemaVer,
) (*transaction.RelatedSchemaChange, error) {
	if s.calls.Add(1) == 1 {
		close(s.prewritten)
		<-s.release
	}
	return nil, nil
}

type schemaVersion struct{}

func (schemaVersion) SchemaMetaVersion() int64 { return 1 }

// A large transaction over many regions outlives the time of its first locks, because its client
// sends heartbeats.
func TestTxnHeartbeats(t *testing.T) {
	ttl := atomic.SwapUint64(&transaction.ManagedLockTTL, 1000)
	defer atomic.StoreUint64(&transaction.ManagedLockTTL, ttl)
	defer config.UpdateGlobal(func(conf *config.Config) {
		conf.TiKVClient.TTLRefreshedTxnSize = 1 << 10
	})()
	c := startTxnCluster(t, 3)
	cl := c.txnClient(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	write(t, cl, "a", "1")
	c.splitTxn(t, cl, "k1", "k2", "k3", "k4", "k5", "k6", "k7")
	large := begin(t, cl)
	for i := range 4000 {
		require.NoError(t,
			large.Set(fmt.Appendf(nil, "k%d-%04d", i%8, i), bytes.Repeat([]byte("v"), 100+i%300)))
	}
	check := &slowCheck{prewritten: make(chan struct{}), release: make(chan struct{})}
	large.SetSchemaVer(schemaVersion{})
	large.SetSchemaLeaseChecker(check)
	committed := make(chan error, 1)
	go func() { committed <- large.Commit(ctx) }()
	select {
	case <-check.prewritten:
	case err := <-committed:
		t.Fatalf("the transaction has ended: %v", err)
	}
	// One that needs a key of it waits until the lock would have expired twice over, and the
	// transaction is alive.
	other := begin(t, cl)
	require.NoError(t, other.Set([]byte("k3-0003"), []byte("other")))
	short, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	require.Error(t, other.Commit(short))
	now, err := cl.GetTimestamp(ctx)
	require.NoError(t, err)
	require.Greater(t, oracle.ExtractPhysical(now)-oracle.ExtractPhysical(large.StartTS()),
		int64(4000))
	close(check.release)
	require.NoError(t, <-committed)
	it, err := begin(t, cl).Iter([]byte("k"), nil)
	require.NoError(t, err)
	defer it.Close()
	n := 0
	for ; it.Valid(); n++ {
		require.NoError(t, it.Next())
	}
	require.Equal(t, 4000, n)
}
