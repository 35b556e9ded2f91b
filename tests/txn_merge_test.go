package tests

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// apart is a cluster of transactions of two regions that two stores lead: accounts below 10 and the
// others. The leader of the second one has chosen a commit timestamp, and asked for the safe point,
// in its term.
func apart(
	t *testing.T, ctx context.Context,
) (c *cluster.Cluster, cl *txn.Client, source, target uint64) {
	t.Helper()
	c = cluster.New(t, cluster.Options{Stores: 3, Txn: true, Tune: mergeOn})
	c.WaitLeader(cluster.FirstRegionID)
	c.Split(memcomparable.Encode(bankKey(10)))
	at := func(account int) uint64 {
		return regionAt(t, c, string(memcomparable.Encode(bankKey(account))))
	}
	source, target = at(1), at(15)
	leader := c.WaitLeader(target).ID
	if c.WaitLeader(source).ID == leader {
		for _, p := range c.Placement.Region(source).Peers {
			if p.StoreId != leader {
				c.TransferLeader(source, p)
				break
			}
		}
	}
	kv := c.ClientThrough(func(s tinykvpb.TinyKvClient) tinykvpb.TinyKvClient { return early{s} })
	cl = txn.New(kv, c.Placement)
	t.Cleanup(func() { cl.Close(); kv.Close() })
	require.NoError(t, setAll(ctx, cl, "0", 1))
	require.NoError(t, setAll(ctx, cl, "0", 15))
	return c, cl, source, target
}

// TestCommitsAfterAMerge: a leader serves a read, and its region goes into one that another store
// leads. What that one commits there by a timestamp of its choice is behind the read.
func TestCommitsAfterAMerge(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, cl, source, target := apart(t, ctx)
	writer, err := cl.Begin(ctx)
	require.NoError(t, err)
	writer.Set(bankKey(1), []byte("1"))
	reader, err := cl.Begin(ctx)
	require.NoError(t, err)
	see := func() string {
		v, _, err := reader.Get(ctx, bankKey(1))
		require.NoError(t, err)
		return string(v)
	}
	require.Equal(t, "0", see())
	leader := c.WaitLeader(target).ID
	c.Merge(source, target)
	require.Equal(t, leader, c.WaitLeader(target).ID)
	require.NoError(t, writer.Commit(ctx))
	require.Greater(t, writer.CommitTS(), reader.StartTS())
	require.Equal(t, "0", see(), "a snapshot has changed")
}

// TestSafePointAfterAMerge: old versions of a region were removed before it went into one whose
// leader knows only an older safe point. A transaction that may have had records there is refused.
func TestSafePointAfterAMerge(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, cl, source, target := apart(t, ctx)
	old, err := cl.Begin(ctx)
	require.NoError(t, err)
	old.Set(bankKey(1), []byte("1"))
	physical, logical, err := c.Placement.GetTS(ctx)
	require.NoError(t, err)
	now := mvcc.Timestamp(physical, logical)
	_, _, err = c.Placement.AdvanceSafePoints(ctx, now, now)
	require.NoError(t, err)
	c.Merge(source, target)
	require.ErrorContains(t, old.Commit(ctx), "safe point")
}

// bankSplitter splits regions at accounts.
func bankSplitter(c *cluster.Cluster, n *faultCounts, stop <-chan struct{}) {
	for pause(stop, 100*time.Millisecond, 300*time.Millisecond) {
		if c.SplitOnce(memcomparable.Encode(bankKey(rand.IntN(20)))) == nil {
			n.splits.Add(1)
		}
	}
}
