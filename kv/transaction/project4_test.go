// Package transaction_test holds the course suites 4B and 4C, in words of our own.
package transaction_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/server"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/kv/util/engine_util"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// bench is a server over a storage in memory.
type bench struct {
	t   *testing.T
	mem *storage.MemStorage
	srv *server.Server
}

var ctx = context.Background()

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, mem: storage.NewMemStorage()}
	b.srv = server.NewServer(b.mem)
	b.srv.Latches.Validation = func(txn *mvcc.MvccTxn, keys [][]byte) {
		for _, w := range txn.Writes() {
			key := w.Key()
			if w.Cf() != engine_util.CfLock {
				key = mvcc.DecodeUserKey(key)
			}
			found := false
			for _, k := range keys {
				found = found || bytes.Equal(k, key)
			}
			require.True(t, found, "key %x is written without its latch", key)
		}
	}
	return b
}

func (b *bench) lock(key, primary byte, ts, ttl uint64, kind mvcc.WriteKind) {
	l := mvcc.Lock{Primary: []byte{primary}, Ts: ts, Ttl: ttl, Kind: kind}
	b.mem.Set(engine_util.CfLock, []byte{key}, l.ToBytes())
}

func (b *bench) write(key byte, commit, start uint64, kind mvcc.WriteKind) {
	w := mvcc.Write{StartTS: start, Kind: kind}
	b.mem.Set(engine_util.CfWrite, mvcc.EncodeKey([]byte{key}, commit), w.ToBytes())
}

func (b *bench) value(key byte, start uint64, value byte) {
	b.mem.Set(engine_util.CfDefault, mvcc.EncodeKey([]byte{key}, start), []byte{value})
}

// lens checks how many records each column family has.
func (b *bench) lens(def, lock, write int) {
	b.t.Helper()
	require.Equal(b.t, [3]int{def, lock, write}, [3]int{
		b.mem.Len(engine_util.CfDefault), b.mem.Len(engine_util.CfLock),
		b.mem.Len(engine_util.CfWrite),
	}, "default, lock, write")
}

func (b *bench) record(key byte, commit uint64) *mvcc.Write {
	b.t.Helper()
	w, err := mvcc.ParseWrite(b.mem.Get(engine_util.CfWrite, mvcc.EncodeKey([]byte{key}, commit)))
	require.NoError(b.t, err)
	return w
}

func (b *bench) get(key byte, version uint64) *kvrpcpb.GetResponse {
	b.t.Helper()
	resp, err := b.srv.KvGet(ctx, &kvrpcpb.GetRequest{Key: []byte{key}, Version: version})
	require.NoError(b.t, err)
	require.Nil(b.t, resp.RegionError)
	return resp
}

func (b *bench) prewrite(start uint64, muts ...*kvrpcpb.Mutation) []*kvrpcpb.KeyError {
	b.t.Helper()
	resp, err := b.srv.KvPrewrite(ctx,
		&kvrpcpb.PrewriteRequest{
			Mutations: muts, PrimaryLock: []byte{1}, StartVersion: start, LockTtl: 1000,
		})
	require.NoError(b.t, err)
	return resp.Errors
}

func (b *bench) commit(start, commit uint64, keys ...byte) *kvrpcpb.KeyError {
	b.t.Helper()
	resp, err := b.srv.KvCommit(ctx,
		&kvrpcpb.CommitRequest{StartVersion: start, CommitVersion: commit, Keys: split(keys)})
	require.NoError(b.t, err)
	return resp.Error
}

func (b *bench) rollback(start uint64, keys ...byte) *kvrpcpb.KeyError {
	b.t.Helper()
	resp, err := b.srv.KvBatchRollback(ctx,
		&kvrpcpb.BatchRollbackRequest{StartVersion: start, Keys: split(keys)})
	require.NoError(b.t, err)
	return resp.Error
}

func (b *bench) status(key byte, lockTS, now uint64) *kvrpcpb.CheckTxnStatusResponse {
	b.t.Helper()
	resp, err := b.srv.KvCheckTxnStatus(ctx,
		&kvrpcpb.CheckTxnStatusRequest{PrimaryKey: []byte{key}, LockTs: lockTS, CurrentTs: now})
	require.NoError(b.t, err)
	return resp
}

func (b *bench) resolve(start, commit uint64) *kvrpcpb.KeyError {
	b.t.Helper()
	resp, err := b.srv.KvResolveLock(ctx,
		&kvrpcpb.ResolveLockRequest{StartVersion: start, CommitVersion: commit})
	require.NoError(b.t, err)
	return resp.Error
}

func (b *bench) scan(start byte, limit uint32, version uint64) []*kvrpcpb.KvPair {
	b.t.Helper()
	resp, err := b.srv.KvScan(ctx,
		&kvrpcpb.ScanRequest{StartKey: []byte{start}, Limit: limit, Version: version})
	require.NoError(b.t, err)
	return resp.Pairs
}

func split(keys []byte) [][]byte {
	out := make([][]byte, len(keys))
	for i, k := range keys {
		out[i] = []byte{k}
	}
	return out
}

func put(key, value byte) *kvrpcpb.Mutation {
	return &kvrpcpb.Mutation{Op: kvrpcpb.Op_Put, Key: []byte{key}, Value: []byte{value}}
}

func del(key byte) *kvrpcpb.Mutation {
	return &kvrpcpb.Mutation{Op: kvrpcpb.Op_Del, Key: []byte{key}}
}

// TestGetsAreOfASnapshot4B: by commit timestamp; deleted and never written keys are absent.
func TestGetsAreOfASnapshot4B(t *testing.T) {
	b := newBench(t)
	for i, commit := range []uint64{54, 64, 84} {
		b.value(99, commit-4, byte(i))
		b.write(99, commit, commit-4, mvcc.WriteKindPut)
	}
	b.write(99, 94, 90, mvcc.WriteKindDelete)
	for version, want := range map[uint64]int{
		53: -1, 54: 0, 63: 0, 64: 1, 80: 1, 84: 2, 93: 2, 94: -1, 1000: -1,
	} {
		resp := b.get(99, version)
		require.Nil(t, resp.Error)
		require.Equal(t, want < 0, resp.NotFound, "at %d", version)
		if want >= 0 {
			require.Equal(t, []byte{byte(want)}, resp.Value, "at %d", version)
		}
	}
	require.True(t, b.get(1, 100).NotFound)
}

// TestGetOfALockedKey4B: a lock hides what comes after it, and says whose it is.
func TestGetOfALockedKey4B(t *testing.T) {
	b := newBench(t)
	b.value(99, 50, 42)
	b.write(99, 54, 50, mvcc.WriteKindPut)
	b.lock(99, 98, 200, 7, mvcc.WriteKindPut)
	require.Equal(t, []byte{42}, b.get(99, 199).Value)
	locked := b.get(99, 200).Error.GetLocked()
	require.Equal(t,
		&kvrpcpb.LockInfo{PrimaryLock: []byte{98}, LockVersion: 200, Key: []byte{99}, LockTtl: 7},
		locked)
}

// TestPrewriteLocksAllOrNothing4B: values, locks, and what is in the way.
func TestPrewriteLocksAllOrNothing4B(t *testing.T) {
	b := newBench(t)
	require.Empty(t, b.prewrite(90))
	b.lens(0, 0, 0)
	require.Empty(t, b.prewrite(100, put(3, 42), del(4)))
	b.lens(1, 2, 0)
	require.Equal(t, []byte{42}, b.mem.Get(engine_util.CfDefault, mvcc.EncodeKey([]byte{3}, 100)))
	l, err := mvcc.ParseLock(b.mem.Get(engine_util.CfLock, []byte{4}))
	require.NoError(t, err)
	require.Equal(t, &mvcc.Lock{Primary: []byte{1}, Ts: 100, Ttl: 1000, Kind: mvcc.WriteKindDelete},
		l)

	require.Empty(t, b.prewrite(100, put(3, 42), del(4)), "sent again")
	b.lens(1, 2, 0)

	errs := b.prewrite(110, put(5, 1), put(3, 1))
	require.Len(t, errs, 1)
	require.Equal(t, []byte{3}, errs[0].GetLocked().GetKey())
	b.lens(1, 2, 0)

	b.write(6, 120, 115, mvcc.WriteKindPut)
	errs = b.prewrite(119, put(6, 1))
	require.Len(t, errs, 1)
	require.NotNil(t, errs[0].Conflict)
	require.Empty(t, b.prewrite(121, put(6, 2), put(6, 3)), "the last mutation of a key counts")
	require.Equal(t, []byte{3}, b.mem.Get(engine_util.CfDefault, mvcc.EncodeKey([]byte{6}, 121)))

	b.write(7, 130, 130, mvcc.WriteKindRollback)
	errs = b.prewrite(130, put(7, 1))
	require.Len(t, errs, 1)
	require.NotNil(t, errs[0].Conflict, "the transaction was rolled back")
}

// TestCommits4B: what is locked becomes visible; each other case has an answer of its own.
func TestCommits4B(t *testing.T) {
	b := newBench(t)
	require.Nil(t, b.commit(100, 110), "no keys")
	require.Empty(t, b.prewrite(100, put(3, 42), put(4, 43), del(5)))
	require.Nil(t, b.commit(100, 110, 3, 5, 4))
	b.lens(2, 0, 3)
	require.Equal(t, &mvcc.Write{StartTS: 100, Kind: mvcc.WriteKindDelete}, b.record(5, 110))
	require.Equal(t, []byte{43}, b.get(4, 110).Value)
	require.Nil(t, b.commit(100, 110, 3), "sent again")
	b.lens(2, 0, 3)

	require.Nil(t, b.commit(120, 121, 9), "nothing is known of the key")
	b.lens(2, 0, 3)
	b.lock(9, 9, 119, 1, mvcc.WriteKindPut)
	require.NotEmpty(t, b.commit(120, 121, 9).Retryable, "another transaction's lock")
	b.write(10, 120, 120, mvcc.WriteKindRollback)
	require.NotEmpty(t, b.commit(120, 121, 10).Retryable, "rolled back")
	b.lens(2, 1, 4)
	require.NotEmpty(t, b.commit(120, 120, 3).Abort)
}

// TestRollbacks4C: what was prewritten goes, and a record stays that stops a late prewrite.
func TestRollbacks4C(t *testing.T) {
	b := newBench(t)
	require.Nil(t, b.rollback(100))
	b.lens(0, 0, 0)
	require.Empty(t, b.prewrite(100, put(3, 42), put(4, 43)))
	require.Nil(t, b.rollback(100, 3, 4, 3))
	b.lens(0, 0, 2)
	require.Equal(t, &mvcc.Write{StartTS: 100, Kind: mvcc.WriteKindRollback}, b.record(3, 100))
	require.Nil(t, b.rollback(100, 3), "sent again")
	b.lens(0, 0, 2)
	require.Nil(t, b.rollback(100, 5), "never prewritten")
	b.lens(0, 0, 3)
	require.NotNil(t, b.prewrite(100, put(5, 1))[0].Conflict)

	b.lock(6, 6, 90, 1, mvcc.WriteKindPut)
	require.Nil(t, b.rollback(100, 6), "another transaction's lock stays")
	b.lens(0, 1, 4)
	b.write(7, 110, 100, mvcc.WriteKindPut)
	require.NotEmpty(t, b.rollback(100, 7).Abort, "committed")
}

// TestStatusOfATransaction4C: alive, expired, committed, rolled back, never there.
func TestStatusOfATransaction4C(t *testing.T) {
	const ms = 1 << 18
	b := newBench(t)
	b.lock(3, 3, 100*ms, 8, mvcc.WriteKindPut)
	b.value(3, 100*ms, 1)
	resp := b.status(3, 100*ms, 105*ms)
	require.Equal(t, uint64(8), resp.LockTtl)
	require.Equal(t, kvrpcpb.Action_NoAction, resp.Action)
	b.lens(1, 1, 0)
	resp = b.status(3, 100*ms, 200*ms)
	require.Zero(t, resp.LockTtl)
	require.Equal(t, kvrpcpb.Action_TTLExpireRollback, resp.Action)
	b.lens(0, 0, 1)
	resp = b.status(3, 100*ms, 200*ms)
	require.Equal(t, kvrpcpb.CheckTxnStatusResponse{}, *resp)

	b.write(4, 110*ms, 100*ms, mvcc.WriteKindPut)
	require.Equal(t, uint64(110*ms), b.status(4, 100*ms, 200*ms).CommitVersion)
	require.Equal(t, kvrpcpb.Action_LockNotExistRollback, b.status(5, 100*ms, 100*ms).Action)
	require.Equal(t, mvcc.WriteKindRollback, b.record(5, 100*ms).Kind)
}

// TestResolvingLocks4C: those of one transaction, all of them, and no others.
func TestResolvingLocks4C(t *testing.T) {
	for _, commit := range []uint64{0, 120} {
		b := newBench(t)
		require.Nil(t, b.resolve(100, commit))
		require.Empty(t, b.prewrite(100, put(3, 42), put(4, 43)))
		b.lock(5, 5, 101, 1, mvcc.WriteKindPut)
		require.Nil(t, b.resolve(100, commit))
		require.False(t, b.mem.HasChanged(engine_util.CfLock, []byte{5}))
		if commit == 0 {
			b.lens(0, 1, 2)
			require.True(t, b.get(3, 100).NotFound)
		} else {
			b.lens(2, 1, 2)
			require.Equal(t, []byte{43}, b.get(4, 120).Value)
		}
	}
}

// TestManyLocks4C: more than one step of ResolveLock takes.
func TestManyLocks4C(t *testing.T) {
	b := newBench(t)
	for i := range 600 {
		l := mvcc.Lock{Primary: []byte{1}, Ts: 100, Ttl: 1, Kind: mvcc.WriteKindDelete}
		b.mem.Set(engine_util.CfLock, []byte{byte(i >> 8), byte(i)}, l.ToBytes())
	}
	require.Nil(t, b.resolve(100, 110))
	b.lens(0, 0, 600)
}

// TestScans4C: in key order, of a snapshot, with the errors of locked keys in their pairs.
func TestScans4C(t *testing.T) {
	b := newBench(t)
	require.Empty(t, b.scan(0, 10, 100))
	for k := byte(1); k <= 6; k++ {
		b.value(k, 50, k)
		b.write(k, 54, 50, mvcc.WriteKindPut)
		b.value(k, 60, k+100)
		b.write(k, 64, 60, mvcc.WriteKindPut)
	}
	b.write(2, 70, 69, mvcc.WriteKindDelete)
	b.write(3, 70, 70, mvcc.WriteKindRollback)
	b.lock(4, 4, 80, 1, mvcc.WriteKindPut)
	b.lock(9, 4, 80, 1, mvcc.WriteKindPut)
	require.Empty(t, b.scan(0, 0, 100))
	require.Empty(t, b.scan(0, 10, 53))
	require.Len(t, b.scan(0, 10, 64), 6)
	require.Len(t, b.scan(0, 3, 64), 3)
	pairs := b.scan(0, 10, 100)
	require.Len(t, pairs, 6)
	for i, want := range []byte{1, 3, 4, 5, 6, 9} {
		require.Equal(t, []byte{want}, pairs[i].Key)
		if want == 4 || want == 9 {
			require.Equal(t, uint64(80), pairs[i].Error.GetLocked().GetLockVersion())
		} else {
			require.Nil(t, pairs[i].Error)
			require.Equal(t, []byte{want + 100}, pairs[i].Value)
		}
	}
	require.Equal(t, []byte{5}, b.scan(5, 1, 100)[0].Key)
}
