package tests

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/tests/cluster"
)

// movedClock is the process's clock, as far ahead as a test wants it.
type movedClock struct {
	base  time.Time
	ahead atomic.Int64
}

func (c *movedClock) Base() time.Time { return c.base }
func (c *movedClock) Now() time.Time  { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *movedClock) move(d time.Duration) { c.ahead.Add(int64(d)) }

// ttlCluster has stores whose clocks a test moves. sweep is the pause between two rounds of the
// sweep; 0: there are none.
func ttlCluster(
	t *testing.T, stores int, sweep time.Duration,
) (*cluster.Cluster, map[uint64]*movedClock) {
	t.Helper()
	clocks := map[uint64]*movedClock{}
	for id := uint64(1); id <= uint64(stores); id++ {
		clocks[id] = &movedClock{base: time.Now()}
	}
	return cluster.New(t, cluster.Options{
		Stores: stores, Replicas: 3,
		Tune:  func(c *config.Config) { c.Raftstore.ExpirySweep = config.Dur(sweep) },
		Clock: func(id uint64) raftstore.Clock { return clocks[id] },
	}), clocks
}

func mustPutTTL(
	t *testing.T, c *cluster.Cluster, cl *client.Client, key, value string, seconds uint64,
) {
	t.Helper()
	c.Eventually(20*time.Second, func() string {
		if err := cl.PutTTL(context.Background(), []byte(key), []byte(value), seconds); err != nil {
			return err.Error()
		}
		return ""
	})
}

// requireScan fails unless a scan shows these pairs.
func requireScan(t *testing.T, c *cluster.Cluster, cl *client.Client, want ...string) {
	t.Helper()
	c.Eventually(20*time.Second, func() string {
		kvs, err := cl.Scan(context.Background(), nil, nil, 1000)
		if err != nil {
			return err.Error()
		}
		got := []string{}
		for _, kv := range kvs {
			got = append(got, string(kv.Key)+"="+string(kv.Value))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Sprintf("the scan shows %v, not %v", got, want)
		}
		return ""
	})
}

// engineKeys counts what a store's engine holds in all families.
func engineKeys(n *cluster.Node) (values, times int) {
	snap := n.Engine().NewSnapshot()
	defer snap.Close()
	for _, cf := range engine.AllCFs {
		it := snap.NewIterator(engine.DataKey(cf, nil), engine.DataEndKey(cf, nil))
		for it.First(); it.Valid(); it.Next() {
			if cf.HoldsExpiry() {
				times++
			} else {
				values++
			}
		}
		it.Close()
	}
	return values, times
}

// TestTTLGoesWithTheData: what is known of expiry is kept over a split, a raft snapshot to a new
// replica, a crash of all stores.
func TestTTLGoesWithTheData(t *testing.T) {
	c, clocks := ttlCluster(t, 4, 0)
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "a", "1")
	mustPutTTL(t, c, cl, "b", "1", 10_000)
	mustPutTTL(t, c, cl, "x", "1", 10_000)
	mustPutTTL(t, c, cl, "y", "1", 20_000)
	mustPutTTL(t, c, cl, "z", "1", 20_000)
	mustPut(t, c, cl, "z", "2")
	c.Split([]byte("m"))
	right, err := c.Placement.GetRegion(context.Background(), []byte("x"))
	require.NoError(t, err)
	require.NoError(t, c.CompactLog(right.Meta.Id))
	c.AddPeer(right.Meta.Id, 4)
	c.CheckConsistency()
	for _, n := range c.Nodes() {
		n.Crash(faultfs.DropAll)
	}
	for _, n := range c.Nodes() {
		n.Restart()
	}
	requireScan(t, c, cl, "a=1", "b=1", "x=1", "y=1", "z=2")
	ttl, found, err := cl.TTL(context.Background(), []byte("y"))
	require.NoError(t, err)
	require.True(t, found)
	require.InDelta(t, 20_000, ttl, 300)
	for _, cl := range clocks {
		cl.move(15_000 * time.Second)
	}
	requireScan(t, c, cl, "a=1", "y=1", "z=2")
	_, found, err = cl.TTL(context.Background(), []byte("x"))
	require.NoError(t, err)
	require.False(t, found)
	mustPutTTL(t, c, cl, "w", "1", 10_000)
	requireScan(t, c, cl, "a=1", "w=1", "y=1", "z=2")
	c.CheckConsistency()
}

// TestTTLSweep: what has expired goes from every replica's engine, what has not or was put again
// stays, and replicas are equal.
func TestTTLSweep(t *testing.T) {
	c, clocks := ttlCluster(t, 3, 50*time.Millisecond)
	cl := c.Client()
	defer cl.Close()
	for i := range 1200 { // more than one entry of the sweep takes
		mustPutTTL(t, c, cl, fmt.Sprintf("k%04d", i), "v", 1000)
	}
	mustPutTTL(t, c, cl, "long", "v", 100_000)
	mustPut(t, c, cl, "k0007", "again")
	for _, cl := range clocks {
		cl.move(2000 * time.Second)
	}
	requireScan(t, c, cl, "k0007=again", "long=v")
	c.Eventually(20*time.Second, func() string {
		for _, n := range c.Nodes() {
			if values, times := engineKeys(n); values != 2 || times != 1 {
				return fmt.Sprintf("store %d has %d values and %d expiry times", n.ID, values,
					times)
			}
		}
		return ""
	})
	requireScan(t, c, cl, "k0007=again", "long=v")
	c.CheckConsistency()
}

// TestTTLUnderALeaderWhoseClockIsBehind: a key that one leader showed as expired is shown again by
// a leader whose clock is behind, until the floor or that clock says otherwise. What a
// compare-and-swap found expired stays away at once.
func TestTTLUnderALeaderWhoseClockIsBehind(t *testing.T) {
	c, clocks := ttlCluster(t, 3, 0)
	cl := c.Client()
	defer cl.Close()
	mustPutTTL(t, c, cl, "a", "1", 1000)
	mustPutTTL(t, c, cl, "b", "1", 1000)
	ahead := c.WaitLeader(first)
	clocks[ahead.ID].move(5000 * time.Second)
	requireScan(t, c, cl)
	previous, swapped, err := cl.CompareAndSwap(context.Background(), []byte("a"), []byte("1"),
		[]byte("2"))
	require.NoError(t, err)
	require.False(t, swapped)
	require.Nil(t, previous)

	behind := moveLeader(t, c)
	require.NotEqual(t, ahead.ID, behind.ID)
	requireScan(t, c, cl, "b=1")
	mustPutTTL(t, c, cl, "c", "1", 1000)
	clocks[behind.ID].move(5000 * time.Second)
	requireScan(t, c, cl)
	c.CheckConsistency()
}

// TestTTLUnderAClockFarAhead: a store whose clock is hours ahead of the placement service's neither
// hides nor sweeps keys that live, and gives new ones no longer life.
func TestTTLUnderAClockFarAhead(t *testing.T) {
	clocks := map[uint64]*movedClock{}
	for id := uint64(1); id <= 3; id++ {
		clocks[id] = &movedClock{base: time.Now()}
		clocks[id].move(time.Duration(id-1) * 10 * time.Hour)
	}
	c := cluster.New(t, cluster.Options{
		Stores: 3, Replicas: 3,
		Tune: func(c *config.Config) {
			c.Raftstore.ExpirySweep = config.Dur(20 * time.Millisecond)
		},
		Clock:         func(id uint64) raftstore.Clock { return clocks[id] },
		PlacementTime: func(context.Context) (time.Time, error) { return time.Now(), nil },
	})
	cl := c.Client()
	defer cl.Close()
	keys := []string{}
	for id := uint64(1); id <= 3; id++ {
		c.Eventually(20*time.Second, func() string {
			leader := c.WaitLeader(first)
			if leader.ID == id {
				return ""
			}
			c.TransferLeader(first, cluster.OnStore(c.Placement.Region(first), id))
			return fmt.Sprintf("store %d leads", leader.ID)
		})
		key := fmt.Sprintf("k%d", id)
		mustPutTTL(t, c, cl, key, "v", 3600)
		keys = append(keys, key+"=v")
		requireScan(t, c, cl, keys...)
		for n := range keys {
			seconds, found, err := cl.TTL(context.Background(), []byte(fmt.Sprintf("k%d", n+1)))
			require.NoError(t, err)
			require.True(t, found)
			require.InDelta(t, 3600, seconds, 120, "key %d under store %d", n+1, id)
		}
	}
	// A short TTL passes nevertheless, and the sweep goes on.
	mustPutTTL(t, c, cl, "short", "v", 1)
	c.Eventually(20*time.Second, func() string {
		for _, n := range c.Nodes() {
			if values, times := engineKeys(n); values != 3 || times != 3 {
				return fmt.Sprintf("store %d has %d values and %d expiry times", n.ID, values,
					times)
			}
		}
		return ""
	})
	requireScan(t, c, cl, keys...)
	c.CheckConsistency()
}

// TestTTLReplicasDecideAlike: the clocks of stores are hours apart, and run at other rates. Each
// replica decides by the clock in the entry: all have the same data.
func TestTTLReplicasDecideAlike(t *testing.T) {
	c := cluster.New(t, cluster.Options{
		Stores: 3, Clock: newOddClock,
		Tune: func(c *config.Config) {
			c.Raftstore.ExpirySweep = config.Dur(20 * time.Millisecond)
		},
	})
	cl := c.Client()
	defer cl.Close()
	ctx := context.Background()
	for i := range 120 {
		key := fmt.Sprint(i % 7)
		if i%40 == 39 {
			moveLeader(t, c)
		}
		switch i % 5 {
		case 0:
			mustPut(t, c, cl, key, fmt.Sprint(i))
		case 1, 2:
			mustPutTTL(t, c, cl, key, fmt.Sprint(i), 1+uint64(i%2)*4000)
		default:
			c.Eventually(20*time.Second, func() string {
				previous, swapped, err := cl.CompareAndSwapTTL(ctx, []byte(key), nil,
					[]byte("swapped"), 5000)
				if err != nil {
					return err.Error()
				}
				require.Equal(t, previous == nil, swapped)
				return ""
			})
		}
	}
	c.CheckConsistency()
}

// TestScanBackwards: over regions whose borders are near the bounds, a scan from the end shows what
// one from the start does.
func TestScanBackwards(t *testing.T) {
	c, _ := ttlCluster(t, 3, 0)
	cl := c.Client()
	defer cl.Close()
	keys := []string{
		"a", "a\x00", "a\xff", "b", "b\x00\x00", "c\xff\xff", "d", "da", "e\xff\xff\xff",
	}
	for _, k := range keys {
		mustPut(t, c, cl, k, "v")
	}
	for _, border := range []string{
		"b", "b\x00", "d", "c\xff\xff\xff",
		"e\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
	} {
		c.Split([]byte(border))
	}
	bounds := append([]string{"", "aa", "b\x00", "c\xff\xff\xff", "z"}, keys...)
	for _, start := range bounds {
		for _, end := range bounds {
			if end != "" && start >= end {
				continue
			}
			for _, limit := range []int{0, 1, 2, 100} {
				o := client.ScanOptions{Limit: limit, Reverse: true, KeysOnly: limit == 2}
				var want []string
				for i := range keys {
					k := keys[len(keys)-1-i]
					if k >= start && (end == "" || k < end) && (limit == 0 || len(want) < limit) {
						want = append(want, k)
					}
				}
				c.Eventually(20*time.Second, func() string {
					var got []string
					err := cl.ScanPages(context.Background(), []byte(start), []byte(end), o,
						func(page []client.KV) error {
							for _, kv := range page {
								got = append(got, string(kv.Key))
								require.Equal(t, o.KeysOnly, len(kv.Value) == 0)
							}
							return nil
						})
					if err != nil {
						return err.Error()
					}
					require.Equal(t, want, got, "[%q, %q) limit %d", start, end, limit)
					return ""
				})
			}
		}
	}
}

// TestBatches: over several regions, batches write, read and remove; sums do not depend on borders.
func TestBatches(t *testing.T) {
	c, clocks := ttlCluster(t, 3, 0)
	cl := c.Client()
	defer cl.Close()
	ctx := context.Background()
	var pairs []client.KV
	var keys [][]byte
	var ttls []uint64
	for i := range 2500 {
		key := []byte(fmt.Sprintf("k%04d", i))
		pairs, keys = append(pairs, client.KV{Key: key, Value: append([]byte("v"), key...)}),
			append(keys, key)
		ttls = append(ttls, uint64(i%2)*1000)
	}
	mustPut(t, c, cl, "a", "1")
	require.NoError(t, cl.BatchPut(ctx, pairs[:100]))
	one, err := cl.Checksum(ctx, nil, nil)
	require.NoError(t, err)
	require.EqualValues(t, 101, one.Pairs)
	require.EqualValues(t, 100*11+2, one.Bytes)
	for _, border := range []string{"k0030", "k1000", "k2000"} {
		c.Split([]byte(border))
	}
	again, err := cl.Checksum(ctx, nil, nil)
	require.NoError(t, err)
	require.Equal(t, one, again)
	part, err := cl.Checksum(ctx, []byte("k0000"), []byte("k0040"))
	require.NoError(t, err)
	require.EqualValues(t, 40, part.Pairs)

	require.NoError(t, cl.BatchPut(ctx, pairs, ttls...))
	require.NoError(t,
		cl.BatchPut(ctx,
			[]client.KV{
				{Key: []byte("twice"), Value: []byte("1")},
				{Key: []byte("twice"), Value: []byte("2")},
			}, 5000))
	mustGet(t, c, cl, "twice", "2")
	check := func(there func(i int) bool) {
		t.Helper()
		values, err := cl.BatchGet(ctx, append([][]byte{[]byte("absent")}, keys...))
		require.NoError(t, err)
		require.Nil(t, values[0])
		for i, p := range pairs {
			if !there(i) {
				require.Nil(t, values[i+1])
				continue
			}
			require.Equal(t, string(p.Value), string(values[i+1]))
		}
	}
	check(func(int) bool { return true })
	for _, clock := range clocks {
		clock.move(2000 * time.Second)
	}
	check(func(i int) bool { return i%2 == 0 })
	require.NoError(t, cl.BatchDelete(ctx, keys[1000:2000]))
	check(func(i int) bool { return i%2 == 0 && (i < 1000 || i >= 2000) })
	require.Error(t, cl.BatchPut(ctx, pairs[:3], 1, 2))
	require.Error(t, cl.BatchPut(ctx, pairs[:3], 1<<63))
	require.Error(t, cl.BatchPut(ctx, []client.KV{{}}))
	c.CheckConsistency()
}
