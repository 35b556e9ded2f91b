package tests

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/tests/cluster"
)

func mergeOn(c *config.Config) { c.Raftstore.Merge = true }

// regionAt is the id of the region that has a key, as the placement service knows it.
func regionAt(t *testing.T, c *cluster.Cluster, key string) uint64 {
	t.Helper()
	r, err := c.Placement.GetRegion(context.Background(), []byte(key))
	require.NoError(t, err)
	require.NotNil(t, r)
	return r.Meta.Id
}

// TestMerge merges a region into its right and into its left neighbour. What was written is there,
// is served by the joined region, and nothing is left of the source.
func TestMerge(t *testing.T) {
	for _, replicas := range []int{1, 2, 3, 5} {
		t.Run(fmt.Sprint(replicas, " replicas"), func(t *testing.T) { checkMerge(t, replicas) })
	}
}

func checkMerge(t *testing.T, replicas int) {
	c := cluster.New(t, cluster.Options{Stores: replicas, Replicas: replicas, Tune: mergeOn})
	cl := c.Client()
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for i := range 26 {
		require.NoError(t,
			cl.Put(ctx, fmt.Appendf(nil, "%c", 'a'+i), fmt.Appendf(nil, "value %d", i)))
	}
	for _, key := range []string{"h", "p", "t"} {
		c.Split([]byte(key))
	}
	check := func() {
		t.Helper()
		for i := range 26 {
			v, _, err := cl.Get(ctx, fmt.Appendf(nil, "%c", 'a'+i))
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("value %d", i), string(v))
		}
	}
	check()
	left, middle, right, last := regionAt(t, c, "a"), regionAt(t, c, "i"), regionAt(t, c, "q"),
		regionAt(t, c, "u")
	c.Merge(middle, right)
	require.Equal(t, right, regionAt(t, c, "i"))
	check()
	c.Merge(right, left)
	require.Equal(t, left, regionAt(t, c, "i"))
	require.NoError(t, cl.Put(ctx, []byte("i"), []byte("value 8")))
	check()
	c.Merge(left, last)
	require.Len(t, c.Placement.All(), 1)
	check()
	c.CheckConsistency()
}

// The suites of splits, with merges beside them.

func TestMergeManyClients(t *testing.T) {
	round{clients: 10, split: true, merge: true, minSplits: 3, minMerges: 3}.run(t)
}

func TestMergeRecover(t *testing.T) {
	round{clients: 10, crash: true, split: true, merge: true, minSplits: 2, minMerges: 2}.run(t)
}

func TestMergeUnreliable(t *testing.T) {
	round{
		clients: 5, unreliable: true, split: true, merge: true, minOps: 100, minSplits: 2,
		minMerges: 1,
	}.run(t)
}

func TestMergeTransfersUnderLoad(t *testing.T) {
	round{
		clients: 8, transfer: true, split: true, merge: true, clocks: true, minSplits: 2,
		minMerges: 2,
	}.run(t)
}

func TestMergeSnapshotUnreliableRecoverPartition(t *testing.T) {
	round{clients: 5, unreliable: true, crash: true, partitions: true, split: true, merge: true,
		transfer: true, maxRaftLog: 20,
		minOps: 20, minSplits: 1}.run(t)
}

func TestMergeConfChangeSnapshotUnreliableRecoverPartition(t *testing.T) {
	round{clients: 5, unreliable: true, crash: true, partitions: true, split: true, merge: true,
		confChange: true, transfer: true,
		maxRaftLog: 20, minOps: 20}.run(t)
}
