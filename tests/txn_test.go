package tests

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// bank is accounts that transactions move money between. Every value names the transaction that
// wrote it, so that what was read can be held against what was committed.
type bank struct {
	t        *testing.T
	c        *cluster.Cluster
	cl       *txn.Client
	accounts int
	ids      atomic.Uint64
	mu       sync.Mutex
	done     []bankTxn
	unknown  map[uint64]bool
	failed   map[uint64]bool
}

// bankTxn is a transaction that was committed, or one that has only read.
type bankTxn struct {
	id, start, commit uint64
	reads             map[int]uint64 // account -> the transaction that wrote what was read
	writes            []int
}

const bankMoney = 100

// commitKinds are the ways in which transactions are committed, side by side.
var commitKinds = []txn.Commits{txn.Fastest, txn.NoOnePhase, txn.TwoPhases}

func bankKey(i int) []byte { return fmt.Appendf(nil, "account-%03d", i) }

func bankValue(id uint64, money int64) []byte {
	b := binary.BigEndian.AppendUint64(nil, id)
	b = binary.BigEndian.AppendUint64(b, uint64(money))
	if id%3 == 0 {
		b = append(b, make([]byte, 300)...) // beyond what is stored inline
	}
	return b
}

func parseBank(v []byte) (id uint64, money int64) {
	return binary.BigEndian.Uint64(v), int64(binary.BigEndian.Uint64(v[8:]))
}

func newBank(t *testing.T, c *cluster.Cluster, cl *txn.Client, accounts int) *bank {
	t.Helper()
	b := &bank{
		t: t, c: c, cl: cl, accounts: accounts, unknown: map[uint64]bool{},
		failed: map[uint64]bool{},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	id := b.ids.Add(1)
	var begun *txn.Txn
	all := bankTxn{id: id}
	for i := range accounts {
		all.writes = append(all.writes, i)
	}
	require.NoError(t, cl.Run(ctx, func(x *txn.Txn) error {
		begun = x
		for i := range accounts {
			x.Set(bankKey(i), bankValue(id, bankMoney))
		}
		return nil
	}))
	all.start, all.commit = begun.StartTS(), begun.CommitTS()
	b.done = append(b.done, all)
	return b
}

// transfer moves money between accounts once; conflicts are its end.
func (b *bank) transfer(ctx context.Context, r *rand.Rand) error {
	x, err := b.cl.Begin(ctx)
	if err != nil {
		return err
	}
	rec := bankTxn{id: b.ids.Add(1), start: x.StartTS(), reads: map[int]uint64{}}
	rec.writes = r.Perm(b.accounts)[:2+r.IntN(2)]
	if r.IntN(3) == 0 { // neighbours are in one region, mostly
		at := r.IntN(b.accounts - 1)
		rec.writes = []int{at + 1, at}
	}
	x.SetCommits(commitKinds[r.IntN(len(commitKinds))])
	sum := int64(0)
	for _, i := range rec.writes {
		v, found, err := x.Get(ctx, bankKey(i))
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("account %d is gone", i)
		}
		id, money := parseBank(v)
		rec.reads[i] = id
		sum += money
	}
	for n, i := range rec.writes {
		share := r.Int64N(50)
		if n == len(rec.writes)-1 {
			share = sum
		}
		sum -= share
		x.Set(bankKey(i), bankValue(rec.id, share))
	}
	err = x.Commit(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err == nil:
		rec.commit = x.CommitTS()
		b.done = append(b.done, rec)
	case txn.IsUnknown(err):
		b.unknown[rec.id] = true
	default:
		b.failed[rec.id] = true
	}
	return err
}

// look reads all accounts in one of three ways; the sum must be what it always was.
func (b *bank) look(ctx context.Context, r *rand.Rand) error {
	x, err := b.cl.Begin(ctx)
	if err != nil {
		return err
	}
	got := map[string][]byte{}
	switch way := r.IntN(4); way {
	case 0, 1:
		scan := x.Scan
		if way == 1 {
			scan = x.ReverseScan
		}
		pairs, err := scan(ctx, bankKey(0), []byte("account-~"), 0)
		if err != nil {
			return err
		}
		for _, kv := range pairs {
			got[string(kv.Key)] = kv.Value
		}
	case 2:
		var keys [][]byte
		for i := range b.accounts {
			keys = append(keys, bankKey(i))
		}
		if got, err = x.BatchGet(ctx, keys); err != nil {
			return err
		}
	default:
		for i := range b.accounts {
			v, found, err := x.Get(ctx, bankKey(i))
			if err != nil {
				return err
			}
			if found {
				got[string(bankKey(i))] = v
			}
		}
	}
	rec := bankTxn{start: x.StartTS(), reads: map[int]uint64{}}
	sum := int64(0)
	for i := range b.accounts {
		v, ok := got[string(bankKey(i))]
		if !ok {
			return fmt.Errorf("at %d: account %d is gone", x.StartTS(), i)
		}
		id, money := parseBank(v)
		rec.reads[i] = id
		sum += money
	}
	if want := int64(b.accounts * bankMoney); sum != want {
		b.t.Errorf("at %d the sum is %d instead of %d: %v", x.StartTS(), sum, want, rec.reads)
	}
	b.mu.Lock()
	b.done = append(b.done, rec)
	b.mu.Unlock()
	return nil
}

// check holds all reads against all commits: a read at S sees the newest commit up to S; of two
// transactions that write the same key, the second one begins after the first is committed; nothing
// is read of those that failed.
func (b *bank) check() {
	b.t.Helper()
	type version struct{ id, start, commit uint64 }
	byKey := map[int][]version{}
	commits := map[uint64]uint64{}
	for _, x := range b.done {
		if x.commit == 0 {
			continue
		}
		commits[x.id] = x.commit
		for _, k := range x.writes {
			byKey[k] = append(byKey[k], version{x.id, x.start, x.commit})
		}
	}
	for k, vs := range byKey {
		sort.Slice(vs, func(i, j int) bool { return vs[i].commit < vs[j].commit })
		for i := 1; i < len(vs); i++ {
			require.GreaterOrEqual(b.t, vs[i].start, vs[i-1].commit,
				"lost update of account %d: %v and %v", k, vs[i-1], vs[i])
		}
	}
	reads := 0
	for _, x := range b.done {
		for k, id := range x.reads {
			reads++
			require.False(b.t, b.failed[id], "account %d: read a transaction that failed", k)
			commit, known := commits[id]
			require.True(b.t, known || b.unknown[id],
				"account %d: read transaction %d, which nobody made", k, id)
			if !known {
				continue
			}
			vs := byKey[k]
			n := sort.Search(len(vs), func(i int) bool { return vs[i].commit > x.start })
			require.Equal(b.t, commit, vs[n-1].commit, "account %d at %d: an old version was read",
				k, x.start)
		}
	}
	b.t.Logf("%d transactions and looks, %d reads, %d of unknown outcome, %d failed", len(b.done),
		reads, len(b.unknown), len(b.failed))
}

// run has workers transfer and look until stop is closed.
func (b *bank) run(workers int, stop <-chan struct{}) (wait func()) {
	var wg sync.WaitGroup
	for w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(uint64(w), uint64(time.Now().UnixNano())))
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
				if r.IntN(3) == 0 {
					_ = b.look(ctx, r) // it may not be possible; what is seen is checked
				} else {
					_ = b.transfer(ctx, r)
				}
				cancel()
			}
		}()
	}
	return wg.Wait
}

// audit looks at every record of a region's leader: each transaction has one commit timestamp or
// was rolled back, each long value is there, each version has its value.
func (b *bank) audit() {
	b.t.Helper()
	ends := map[uint64]map[string]bool{}
	for _, region := range b.c.Placement.All() {
		n := b.c.WaitLeader(region.Id)
		snap := n.Engine().NewSnapshot()
		st, err := meta.LoadRegionState(snap, region.Id)
		require.NoError(b.t, err)
		view := storage.NewView(snap, st.Region.StartKey, st.Region.EndKey)
		values := map[string]bool{}
		it := view.Iterate(engine.CFDefault, nil, nil)
		for it.First(); it.Valid(); it.Next() {
			values[string(it.Key())] = true
		}
		it.Close()
		it = view.Iterate(engine.CFWrite, nil, nil)
		for it.First(); it.Valid(); it.Next() {
			key, commit, err := mvcc.SplitKey(it.Key())
			require.NoError(b.t, err)
			w, err := mvcc.CodecTiKV.DecodeWrite(it.Value())
			require.NoError(b.t, err)
			end := fmt.Sprintf("committed at %d", commit)
			if w.Kind == mvcc.WriteKindRollback {
				end = "rolled back"
			}
			if ends[w.StartTS] == nil {
				ends[w.StartTS] = map[string]bool{}
			}
			ends[w.StartTS][end] = true
			if w.OverlappedRollback {
				if ends[commit] == nil {
					ends[commit] = map[string]bool{}
				}
				ends[commit]["rolled back"] = true
			}
			if at := string(mvcc.EncodeKey(key, w.StartTS)); w.Kind == mvcc.WriteKindPut &&
				w.ShortValue == nil {
				require.True(b.t, values[at], "key %q at %d has lost its value", key, commit)
				delete(values, at)
			}
		}
		it.Close()
		it = view.Iterate(engine.CFLock, nil, nil)
		for it.First(); it.Valid(); it.Next() {
			b.t.Errorf("a lock is left on %x", it.Key())
		}
		it.Close()
		require.Empty(b.t, values, "values without a version")
		view.Close()
	}
	for start, e := range ends {
		require.Len(b.t, e, 1, "transaction %d", start)
	}
	require.Greater(b.t, len(ends), 10)
}

// rage returns after the length of a round, and when the round has committed enough to mean
// anything: a lock that is left behind may hold everybody up for as long as it lives.
func (b *bank) rage(length time.Duration) {
	enough := func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		n := 0
		for _, x := range b.done {
			if len(x.writes) > 0 {
				n++
			}
		}
		return n > 20
	}
	for begun := time.Now(); time.Since(begun) < length ||
		!enough() && time.Since(begun) < 20*length; {
		time.Sleep(20 * time.Millisecond) // not a synchronisation: the length of the round
	}
}

// txnCluster is a cluster of transactions with accounts in several regions.
func txnCluster(t *testing.T, accounts, regions int) (*cluster.Cluster, *txn.Client) {
	t.Helper()
	c := cluster.New(t, cluster.Options{Stores: 3, Txn: true, Tune: mergeOn})
	c.WaitLeader(cluster.FirstRegionID)
	for i := 1; i < regions; i++ {
		c.Split(memcomparable.Encode(bankKey(i * accounts / regions)))
	}
	cl, closeAll := c.TxnClient()
	t.Cleanup(closeAll)
	return c, cl
}

// TestBank: sums stay the same while leaders move, stores crash, and regions split and merge, and
// every read is of a snapshot.
func TestBank(t *testing.T) {
	for name, faults := range map[string][]func(*cluster.Cluster, *faultCounts, <-chan struct{}){
		"quiet":      nil,
		"transfers":  {transferer},
		"crashes":    {crasher},
		"partitions": {partitioner, loser},
		"merges":     {mergerOf, bankSplitter, transferer},
		"all":        {crasher, transferer, partitioner, loser},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name != "all" {
				t.Skip("short")
			}
			c, cl := txnCluster(t, 20, 5)
			b := newBank(t, c, cl, 20)
			stop := make(chan struct{})
			wait := b.run(6, stop)
			var counts faultCounts
			var wg sync.WaitGroup
			for _, f := range faults {
				wg.Add(1)
				go func() { defer wg.Done(); f(c, &counts, stop) }()
			}
			b.rage(3 * time.Second)
			if name == "quiet" {
				c.Split(memcomparable.Encode(bankKey(3))) // under load
			}
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
			require.NoError(t, b.look(ctx, r), "and it resolves what is left")
			require.NoError(t, b.look(ctx, r))
			b.check()
			b.audit()
			c.CheckConsistency()
			if name == "merges" {
				require.NotZero(t, counts.merges.Load(), "%d began", counts.freezes.Load())
			}
			t.Logf("crashes %d, partitions %d, transfers %d, splits %d, merges %d of %d",
				counts.crashes.Load(), counts.partitions.Load(),
				counts.transfers.Load(), counts.splits.Load(), counts.merges.Load(),
				counts.freezes.Load())
		})
	}
}

// dying is a store's service as a client sees it that dies after the commit of a key.
type dying struct {
	tinykvpb.TinyKvClient
	last []byte
}

func (d dying) KvCommit(
	ctx context.Context, in *kvrpcpb.CommitRequest, _ ...grpc.CallOption,
) (*kvrpcpb.CommitResponse, error) {
	if !bytes.Equal(in.Keys[0], d.last) {
		return nil, status.Error(codes.InvalidArgument, "dead")
	}
	return d.TinyKvClient.KvCommit(ctx, in)
}

// TestTransactionOfADeadClient: a client that dies between the phases. Its transaction ends when
// its time is over; one whose primary is committed has happened.
func TestTransactionOfADeadClient(t *testing.T) {
	c, cl := txnCluster(t, 20, 2)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	set := func(cl *txn.Client, value string, keys ...int) error {
		return cl.Run(ctx, func(x *txn.Txn) error {
			for _, k := range keys {
				x.Set(bankKey(k), []byte(value))
			}
			return nil
		})
	}
	require.NoError(t, set(cl, "old", 1, 15))
	// The client dies right after its primary is committed: the other key stays locked.
	kv := c.ClientThrough(func(s tinykvpb.TinyKvClient) tinykvpb.TinyKvClient {
		return dying{s, bankKey(1)}
	})
	dead := txn.New(kv, c.Placement)
	dead.SetCommits(txn.TwoPhases)
	x, err := dead.Begin(ctx)
	require.NoError(t, err)
	x.Set(bankKey(1), []byte("new"))
	x.Set(bankKey(15), []byte("new"))
	require.NoError(t, x.Commit(ctx))
	dead.Close()
	kv.Close()
	got, err := cl.Begin(ctx)
	require.NoError(t, err)
	for _, k := range []int{15, 1} {
		v, found, err := got.Get(ctx, bankKey(k))
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, "new", string(v))
	}

	// And one that dies before: the next client that meets its lock rolls the transaction back when
	// its time is over.
	n, _, rc := leaderStorage(t, c, cluster.FirstRegionID)
	start, err := cl.Timestamp(ctx)
	require.NoError(t, err)
	resp, err := n.Server().KvPrewrite(ctx, &kvrpcpb.PrewriteRequest{
		Context: rc, StartVersion: start, LockTtl: 100, PrimaryLock: bankKey(2),
		Mutations: []*kvrpcpb.Mutation{{Key: bankKey(2), Value: []byte("never")}},
	})
	require.NoError(t, err)
	require.Equal(t, kvrpcpb.PrewriteResponse{}, *resp)
	require.NoError(t, set(cl, "later", 2, 16))
	com, err := n.Server().KvCommit(ctx, &kvrpcpb.CommitRequest{
		Context: rc, StartVersion: start, CommitVersion: start + 1<<40, Keys: [][]byte{bankKey(2)},
	})
	require.NoError(t, err)
	require.Contains(t, com.Error.GetRetryable(), "TxnLockNotFound")
}

// TestTransactionSeesItself: own writes, deletes, scans over both, and conflicts.
func TestTransactionSeesItself(t *testing.T) {
	_, cl := txnCluster(t, 20, 4)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(t, cl.Run(ctx, func(x *txn.Txn) error {
		for i := range 10 {
			x.Set(bankKey(2*i), []byte{byte(i)})
		}
		return nil
	}))
	x, err := cl.Begin(ctx)
	require.NoError(t, err)
	x.Set(bankKey(3), []byte("mine"))
	x.Set(bankKey(4), []byte("mine"))
	x.Delete(bankKey(6))
	x.Lock(bankKey(8))
	pairs, err := x.Scan(ctx, bankKey(2), bankKey(10), 0)
	require.NoError(t, err)
	var got []string
	for _, kv := range pairs {
		got = append(got, string(kv.Key[8:])+"="+string(bytes.Trim(kv.Value, "\x01\x02\x03\x04")))
	}
	require.Equal(t, []string{"002=", "003=mine", "004=mine", "008="}, got)
	pairs, err = x.Scan(ctx, nil, nil, 3)
	require.NoError(t, err)
	require.Len(t, pairs, 3)
	_, found, err := x.Get(ctx, bankKey(6))
	require.NoError(t, err)
	require.False(t, found)
	some, err := x.BatchGet(ctx, [][]byte{bankKey(2), bankKey(3), bankKey(6), bankKey(5)})
	require.NoError(t, err)
	require.Len(t, some, 2)

	y, err := cl.Begin(ctx)
	require.NoError(t, err)
	y.Set(bankKey(8), []byte("theirs"))
	require.NoError(t, y.Commit(ctx))
	err = x.Commit(ctx)
	require.ErrorIs(t, err, txn.ErrConflict)
	require.False(t, txn.IsUnknown(err))
	require.ErrorIs(t, x.Commit(ctx), txn.ErrFinished)
	z, err := cl.Begin(ctx)
	require.NoError(t, err)
	_, found, err = z.Get(ctx, bankKey(3))
	require.NoError(t, err)
	require.False(t, found, "nothing of the one that failed is there")
	stopped := errors.New("stopped")
	require.ErrorIs(t, cl.Run(ctx, func(*txn.Txn) error { return stopped }), stopped)
}

// TestWriteSkew: two transactions that each read what the other writes both commit, unless they
// lock what they read.
func TestWriteSkew(t *testing.T) {
	_, cl := txnCluster(t, 20, 2)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, lock := range []bool{false, true} {
		x, err := cl.Begin(ctx)
		require.NoError(t, err)
		y, err := cl.Begin(ctx)
		require.NoError(t, err)
		for _, tx := range []struct {
			*txn.Txn
			read, write int
		}{{x, 1, 15}, {y, 15, 1}} {
			_, _, err := tx.Get(ctx, bankKey(tx.read))
			require.NoError(t, err)
			if lock {
				tx.Lock(bankKey(tx.read))
			}
			tx.Set(bankKey(tx.write), []byte("x"))
		}
		require.NoError(t, x.Commit(ctx))
		if err = y.Commit(ctx); lock {
			require.ErrorIs(t, err, txn.ErrConflict)
		} else {
			require.NoError(t, err)
		}
	}
}

// TestSplitKeysOfATransactionalCluster: a key with a timestamp is cut, one that is not encoded is
// refused.
func TestSplitKeysOfATransactionalCluster(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 1, Txn: true})
	n := c.WaitLeader(cluster.FirstRegionID)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := n.Store().SplitAt(ctx, cluster.FirstRegionID, []byte("plain"))
	require.ErrorContains(t, err, "mode txn")
	_, err = n.Store().SplitAt(ctx, cluster.FirstRegionID, mvcc.EncodeKey([]byte("k"), 7))
	require.NoError(t, err)
	c.Eventually(10*time.Second, func() string {
		for _, r := range c.Placement.All() {
			if bytes.Equal(r.StartKey, memcomparable.Encode([]byte("k"))) {
				return ""
			}
		}
		return "the region does not begin at the encoded key"
	})
}

// TestFullDiskEndsTransactions: a store whose disk is full begins no transaction, and ends those
// that there are.
func TestFullDiskEndsTransactions(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 1, Txn: true})
	n, _, rc := leaderStorage(t, c, cluster.FirstRegionID)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	prewrite := func(key string) *kvrpcpb.PrewriteResponse {
		resp, err := n.Server().KvPrewrite(ctx, &kvrpcpb.PrewriteRequest{
			Context: rc, StartVersion: 10, LockTtl: 1, PrimaryLock: []byte(key),
			Mutations: []*kvrpcpb.Mutation{{Key: []byte(key), Value: []byte("v")}},
		})
		require.NoError(t, err)
		require.Empty(t, resp.Errors)
		return resp
	}
	for _, k := range []string{"a", "b", "c"} {
		require.Nil(t, prewrite(k).RegionError)
	}
	n.Store().SetDiskFull(true)
	require.NotNil(t, prewrite("d").RegionError.GetDiskFull())
	com, err := n.Server().KvCommit(ctx,
		&kvrpcpb.CommitRequest{
			Context: rc, StartVersion: 10, CommitVersion: 11, Keys: [][]byte{[]byte("a")},
		})
	require.NoError(t, err)
	require.Equal(t, kvrpcpb.CommitResponse{}, *com)
	back, err := n.Server().KvBatchRollback(ctx,
		&kvrpcpb.BatchRollbackRequest{Context: rc, StartVersion: 10, Keys: [][]byte{[]byte("b")}})
	require.NoError(t, err)
	require.Equal(t, kvrpcpb.BatchRollbackResponse{}, *back)
	res, err := n.Server().KvResolveLock(ctx,
		&kvrpcpb.ResolveLockRequest{Context: rc, StartVersion: 10})
	require.NoError(t, err)
	require.Equal(t, kvrpcpb.ResolveLockResponse{}, *res)
}

// TestTransactionsOfOneKeyAreLinearizable: reads and writes of single keys, each a transaction, and
// reads of newest values, while leaders move and stores crash. A transaction that begins after
// another one was acknowledged sees it.
func TestTransactionsOfOneKeyAreLinearizable(t *testing.T) {
	c, cl := txnCluster(t, 20, 4)
	h := cluster.NewHistory()
	stop := make(chan struct{})
	var clients, faults sync.WaitGroup
	for i := range 6 {
		clients.Add(1)
		go func() { defer clients.Done(); runTxnClient(cl, h, i, stop) }()
	}
	var counts faultCounts
	for _, f := range []func(*cluster.Cluster, *faultCounts, <-chan struct{}){transferer, crasher} {
		faults.Add(1)
		go func() { defer faults.Done(); f(c, &counts, stop) }()
	}
	for begun := time.Now(); time.Since(begun) < 3*time.Second ||
		h.Known() < 100 && time.Since(begun) < 30*time.Second; {
		time.Sleep(20 * time.Millisecond) // not a synchronisation: the length of the round
	}
	close(stop)
	faults.Wait()
	for _, n := range c.Nodes() {
		n.Restart()
	}
	clients.Wait()
	h.Check(t)
	t.Logf("%d operations, %d unknown; crashes %d, transfers %d", h.OK, h.Unknown,
		counts.crashes.Load(), counts.transfers.Load())
}

// runTxnClient reads and writes keys with unique values until stopped.
func runTxnClient(cl *txn.Client, h *cluster.History, seed int, stop <-chan struct{}) {
	r := rand.New(rand.NewPCG(uint64(seed), uint64(time.Now().UnixNano())))
	id := h.Client()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		key := bankKey(r.IntN(20))
		call := h.Now()
		if n := r.IntN(10); n < 2 {
			if value, found, err := cl.Get(ctx, key); err == nil {
				h.Get(id, string(key), call, value, found)
			}
		} else if n < 5 {
			if x, err := cl.Begin(ctx); err == nil {
				if value, found, err := x.Get(ctx, key); err == nil {
					h.Get(id, string(key), call, value, found)
				}
			}
		} else {
			value := fmt.Appendf(nil, "%d-%d", seed, i)
			err := cl.Run(ctx, func(x *txn.Txn) error {
				if n == 9 {
					x.Delete(key)
				} else {
					x.Set(key, value)
				}
				return nil
			})
			unknown := txn.IsUnknown(err)
			if err == nil || unknown {
				h.Put(id, string(key), value, n == 9, call, unknown)
			}
			if unknown {
				id = h.Client()
			}
		}
		cancel()
	}
}
