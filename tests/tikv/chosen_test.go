package tikv

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/txnkv"
	"github.com/tikv/client-go/v2/txnkv/transaction"
)

// way is how TiKV's client has committed a transaction.
func way(
	t *testing.T, cl *txnkv.Client, onePC, async bool, keys ...string,
) (how string, commitTS uint64) {
	t.Helper()
	txn := begin(t, cl)
	txn.SetEnable1PC(onePC)
	txn.SetEnableAsyncCommit(async)
	for _, k := range keys {
		require.NoError(t, txn.Set([]byte(k), bytes.Repeat([]byte(k), 200)))
	}
	require.NoError(t, txn.Commit(context.Background()))
	probe := transaction.TxnProbe{KVTxn: txn}
	require.Greater(t, commitTSOf(probe), txn.StartTS())
	switch c := probe.GetCommitter(); {
	case c.IsOnePC():
		how = "one phase"
	case c.IsAsyncCommit():
		how = "asynchronous"
	default:
		how = "two phases"
	}
	return how, commitTSOf(probe)
}

// fast waits until the stores choose commit timestamps: they do once all have said that they can.
func (c *cluster) fast(t *testing.T, cl *txnkv.Client) {
	t.Helper()
	require.Eventually(t, func() bool {
		how, _ := way(t, cl, true, true, "first")
		return how == "one phase"
	}, time.Minute, 50*time.Millisecond)
}

// TiKV's client commits in one phase and asynchronously, over one region and several, while leaders
// move.
func TestTxnFastCommits(t *testing.T) {
	c := startTxnCluster(t, 3)
	cl := c.txnClient(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c.fast(t, cl)
	c.splitTxn(t, cl, "g", "s")
	c.awaitReplicas(t)
	last := uint64(0)
	for range 5 {
		for _, k := range []string{"a", "m", "z"} {
			c.moveLeader(t, place(k))
		}
		for _, x := range []struct {
			onePC, async bool
			keys         []string
			want         string
		}{
			{true, true, []string{"a", "b"}, "one phase"},
			{true, false, []string{"a", "b"}, "one phase"},
			{false, true, []string{"a", "b"}, "asynchronous"},
			{true, true, []string{"a", "m", "z"}, "asynchronous"},
			{true, false, []string{"a", "m", "z"}, "two phases"},
			{false, false, []string{"a"}, "two phases"},
		} {
			how, at := way(t, cl, x.onePC, x.async, x.keys...)
			require.Equal(t, x.want, how, x.keys)
			require.Greater(t, at, last,
				"a commit that begins after another one has ended is behind it")
			last = at
			got, err := begin(t, cl).BatchGet(ctx, bytesOf(x.keys...))
			require.NoError(t, err)
			require.Len(t, got, len(x.keys))
		}
	}
}

// asyncPrewritten locks keys for an asynchronous commit, as a client that has died since: those of
// missing are not locked. The first key is the primary.
func (c *cluster) asyncPrewritten(
	t *testing.T, cl *txnkv.Client, value string, missing string, keys ...string,
) {
	t.Helper()
	start, err := cl.GetTimestamp(context.Background())
	require.NoError(t, err)
	for i, k := range keys {
		if k == missing {
			continue
		}
		req := &kvrpcpb.PrewriteRequest{
			PrimaryLock: []byte(keys[0]), StartVersion: start, LockTtl: 10, MinCommitTs: start + 1,
			TxnSize: uint64(len(keys)), UseAsyncCommit: true,
			Mutations: []*kvrpcpb.Mutation{
				{Op: kvrpcpb.Op_Put, Key: []byte(k), Value: []byte(value)},
			},
		}
		if i == 0 {
			req.Secondaries = bytesOf(keys[1:]...)
		}
		require.Eventually(t, func() bool {
			store, rc := c.target(t, place(k))
			req.Context = rc
			resp, err := store.KvPrewrite(context.Background(), req)
			require.NoError(t, err)
			require.Empty(t, resp.Errors)
			require.True(t, resp.RegionError != nil || resp.MinCommitTs > start)
			return resp.RegionError == nil
		}, 30*time.Second, 20*time.Millisecond)
	}
}

// An asynchronous commit of a client that has died has happened if all keys are locked. TiKV's
// client and the native one find out alike.
func TestTxnAsyncCommitOfADeadClient(t *testing.T) {
	c := startTxnCluster(t, 3)
	cl, natives := c.txnClient(t), startNatives(t, c)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c.fast(t, cl)
	c.splitTxn(t, cl, "g", "s")
	keys := []string{"a", "m", "z"}
	sum := func() string {
		t.Helper()
		got, err := natives.do(nativeOp{Kind: "sum", Key: []byte("a"), Expected: []byte("zz")})
		require.NoError(t, err)
		require.Empty(t, got.Error)
		return string(got.Value)
	}
	del := begin(t, cl)
	require.NoError(t, del.Delete([]byte("first")))
	require.NoError(t, del.Commit(ctx))
	write(t, cl, "a", "1", "m", "1", "z", "1")
	for _, by := range []string{"TiKV's client", "native"} {
		for missing, want := range map[string]string{"": "2", "a": "1", "m": "1", "z": "1"} {
			write(t, cl, "a", "1", "m", "1", "z", "1")
			c.asyncPrewritten(t, cl, "2", missing, keys...)
			if by == "native" {
				require.Equal(t, map[string]string{"1": "3", "2": "6"}[want], sum(), "without %q",
					missing)
			}
			got, err := begin(t, cl).BatchGet(ctx, bytesOf("z", "m", "a"))
			require.NoError(t, err)
			require.Equal(t,
				map[string][]byte{"a": []byte(want), "m": []byte(want), "z": []byte(want)}, got,
				"%s, without %q", by, missing)
		}
	}
}
