package tikv

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/pdpb"
	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/rawkv"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// splitAt has the cluster split its regions, as PD's clients ask for it.
func (c *cluster) splitAt(t *testing.T, keys ...string) {
	t.Helper()
	conn, err := grpc.Dial(
		c.scheduler.addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	)
	require.NoError(t, err)
	defer conn.Close()
	pd := pdpb.NewPDClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ms, err := pd.GetMembers(ctx, &pdpb.GetMembersRequest{})
	require.NoError(t, err)
	resp, err := pd.SplitRegions(ctx, &pdpb.SplitRegionsRequest{
		Header: &pdpb.RequestHeader{ClusterId: ms.Header.ClusterId}, SplitKeys: bytesOf(keys...),
	})
	require.NoError(t, err)
	require.EqualValues(t, 100, resp.FinishedPercentage)
	require.Len(t, resp.RegionsId, len(keys))
}

// Every raw operation, over several regions.
func TestRaw(t *testing.T) {
	c := startCluster(t, 3)
	cl := c.client(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	require.NoError(t, cl.Put(ctx, []byte("a"), []byte("1")))
	c.splitAt(t, "c", "e", "g")

	t.Run("put, get, delete", func(t *testing.T) {
		got, err := cl.Get(ctx, []byte("a"))
		require.NoError(t, err)
		require.Equal(t, "1", string(got))
		got, err = cl.Get(ctx, []byte("absent"))
		require.NoError(t, err)
		require.Nil(t, got)
		require.NoError(t, cl.Delete(ctx, []byte("a")))
		got, err = cl.Get(ctx, []byte("a"))
		require.NoError(t, err)
		require.Nil(t, got)
		require.NoError(t, cl.Delete(ctx, []byte("absent")))
	})
	t.Run("what pd-ctl reads", c.pdctlReads)
	t.Run("load", func(t *testing.T) { c.loads(t, cl) })
	keys := bytesOf("a", "b", "c", "d", "e", "f", "g", "h")
	t.Run("batches", func(t *testing.T) {
		var values [][]byte
		for _, k := range keys {
			values = append(values, append([]byte("v"), k...))
		}
		require.NoError(t, cl.BatchPut(ctx, keys, values))
		got, err := cl.BatchGet(ctx, append(bytesOf("nothing"), keys...))
		require.NoError(t, err)
		require.Nil(t, got[0])
		require.Equal(t, values, got[1:])
	})
	t.Run("scans", func(t *testing.T) {
		ks, vs, err := cl.Scan(ctx, []byte("b"), []byte("h"), 100)
		require.NoError(t, err)
		require.Equal(t, "b c d e f g", joined(ks))
		require.Equal(t, "vb vc vd ve vf vg", joined(vs))
		ks, vs, err = cl.Scan(ctx, nil, nil, 5, rawkv.ScanKeyOnly())
		require.NoError(t, err)
		require.Equal(t, "a b c d e", joined(ks))
		require.Empty(t, bytes.Join(vs, nil))
		ks, _, err = cl.ReverseScan(ctx, []byte("g"), []byte("b"), 100)
		require.NoError(t, err)
		require.Equal(t, "f e d c b", joined(ks))
		ks, _, err = cl.ReverseScan(ctx, []byte("z"), nil, 3)
		require.NoError(t, err)
		require.Equal(t, "h g f", joined(ks))
	})
	t.Run("checksum", func(t *testing.T) {
		sum, err := cl.Checksum(ctx, []byte("a"), []byte("z"))
		require.NoError(t, err)
		require.EqualValues(t, 8, sum.TotalKvs)
		require.EqualValues(t, 8*3, sum.TotalBytes)
		again, err := cl.Checksum(ctx, []byte("a"), []byte("z"))
		require.NoError(t, err)
		require.Equal(t, sum, again)
	})
	t.Run("batch delete", func(t *testing.T) {
		require.NoError(t, cl.BatchDelete(ctx, keys[:4]))
		ks, _, err := cl.Scan(ctx, nil, nil, 100)
		require.NoError(t, err)
		require.Equal(t, "e f g h", joined(ks))
	})
	t.Run("TTL", func(t *testing.T) { checkTTL(ctx, t, c, cl) })
	t.Run("large values", func(t *testing.T) {
		var ks, vs [][]byte
		for i := range 16 {
			ks = append(ks, fmt.Appendf(nil, "large%02d", i))
			vs = append(vs, bytes.Repeat([]byte{byte(i)}, 1<<20))
		}
		var wg sync.WaitGroup
		for i := range ks { // they meet in a few messages of the stream
			wg.Add(1)
			go func() {
				defer wg.Done()
				if err := cl.Put(ctx, ks[i], vs[i]); err != nil {
					t.Error(err)
				}
			}()
		}
		wg.Wait()
		_, got, err := cl.Scan(ctx, []byte("large"), []byte("largf"), 100)
		require.NoError(t, err)
		require.Equal(t, vs, got)
	})
}

// checkTTL has keys of several regions expire: b, d, f of a short TTL, a of a long one.
func checkTTL(ctx context.Context, t *testing.T, c *cluster, cl *rawkv.Client) {
	t.Helper()
	keys := bytesOf("a", "b", "d", "e", "f", "g", "h")
	require.NoError(t, cl.BatchPutWithTTL(ctx, keys, keys, []uint64{1000, 2, 2, 0, 2, 0, 2}))
	require.NoError(t, cl.Put(ctx, []byte("h"), []byte("for ever")))
	ttl, err := cl.GetKeyTTL(ctx, []byte("a"))
	require.NoError(t, err)
	require.InDelta(t, 1000, *ttl, 60)
	ttl, err = cl.GetKeyTTL(ctx, []byte("e"))
	require.NoError(t, err)
	require.Zero(t, *ttl)
	swaps := c.client(t).SetAtomicForCAS(true)
	require.Eventually(t, func() bool {
		ttl, err := cl.GetKeyTTL(ctx, []byte("f"))
		require.NoError(t, err)
		return ttl == nil
	}, 30*time.Second, 50*time.Millisecond)
	ks, _, err := cl.Scan(ctx, nil, nil, 100)
	require.NoError(t, err)
	require.Equal(t, "a e g h", joined(ks))
	ks, _, err = cl.ReverseScan(ctx, []byte("z"), nil, 3, rawkv.ScanKeyOnly())
	require.NoError(t, err)
	require.Equal(t, "h g e", joined(ks))
	got, err := cl.BatchGet(ctx, keys)
	require.NoError(t, err)
	require.Equal(t,
		[][]byte{[]byte("a"), nil, nil, []byte("e"), nil, []byte("g"), []byte("for ever")}, got)
	sum, err := cl.Checksum(ctx, []byte("a"), []byte("z"))
	require.NoError(t, err)
	require.EqualValues(t, 4, sum.TotalKvs)
	previous, swapped, err := swaps.CompareAndSwap(ctx, []byte("b"), []byte("b"), []byte("2"))
	require.NoError(t, err)
	require.False(t, swapped)
	require.Nil(t, previous)

	store, rc := c.target(t, "b")
	resp, err := store.RawCompareAndSwap(ctx, &kvrpcpb.RawCASRequest{
		Context: rc, Key: []byte("b"), Value: []byte("2"), PreviousNotExist: true, Ttl: 1000,
	})
	require.NoError(t, err)
	require.True(t, resp.Succeed, resp.String())
	ttl, err = cl.GetKeyTTL(ctx, []byte("b"))
	require.NoError(t, err)
	require.InDelta(t, 1000, *ttl, 60)
	require.NoError(t, cl.PutWithTTL(ctx, []byte("b"), []byte("2"), 5000))
	ttl, err = cl.GetKeyTTL(ctx, []byte("b"))
	require.NoError(t, err)
	require.InDelta(t, 5000, *ttl, 60)
	require.ErrorContains(t, cl.PutWithTTL(ctx, []byte("b"), []byte("2"), 1<<63), "longest")
	require.NoError(t, cl.BatchDelete(ctx, keys))
}

// Many callers share the client's streams while regions split and a store is killed; what was
// acknowledged stays.
func TestRawUnderFaults(t *testing.T) {
	c := startCluster(t, 3)
	cl := c.client(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	require.NoError(t, cl.Put(ctx, []byte("key-000-0"), []byte("begin")))
	const writers, writes = 16, 150
	var done atomic.Int64
	var wg sync.WaitGroup
	for w := range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range writes {
				key := fmt.Appendf(nil, "key-%03d-%d", w, i%7)
				want := fmt.Appendf(nil, "%d", i)
				if err := cl.Put(ctx, key, want); err != nil {
					t.Errorf("put %s: %v", key, err)
					return
				}
				if got, err := cl.Get(ctx, key); err != nil || !bytes.Equal(got, want) {
					t.Errorf("get %s: %q, %v; want %q", key, got, err, want)
					return
				}
				done.Add(1)
			}
		}()
	}
	require.Eventually(
		t,
		func() bool { return done.Load() > writers*writes/4 },
		time.Minute,
		10*time.Millisecond,
	)
	c.splitAt(t, "key-004", "key-008", "key-012")
	require.Eventually(
		t,
		func() bool { return done.Load() > writers*writes/2 },
		time.Minute,
		10*time.Millisecond,
	)
	c.stores[0].kill()
	c.stores[0].start(t)
	wg.Wait()
	require.EqualValues(t, writers*writes, done.Load())
}
