package tikv

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/pdpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
)

// What a compare-and-swap answers, and that it sees the puts of clients that are not in atomic
// mode.
func TestCompareAndSwap(t *testing.T) {
	c := startCluster(t, 1)
	plain, atomic := c.client(t), c.client(t).SetAtomicForCAS(true)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	key := []byte("k")
	swap := func(expected, value, previous []byte, swapped bool) {
		t.Helper()
		got, ok, err := atomic.CompareAndSwap(ctx, key, expected, value)
		require.NoError(t, err)
		require.Equal(t, swapped, ok)
		require.Equal(t, previous == nil, got == nil)
		require.Equal(t, string(previous), string(got))
	}
	swap([]byte("x"), []byte("1"), nil, false)
	swap([]byte{}, []byte("1"), nil, false)
	swap(nil, []byte("1"), nil, true)
	swap(nil, []byte("2"), []byte("1"), false)
	require.NoError(t, plain.Put(ctx, key, []byte("3")))
	swap([]byte("1"), []byte("4"), []byte("3"), false)
	swap([]byte("3"), []byte{}, []byte("3"), true)
	swap(nil, []byte("5"), []byte{}, false)
	swap([]byte{}, []byte("6"), []byte{}, true)
	require.NoError(t, plain.Delete(ctx, key))
	swap([]byte("6"), []byte("7"), nil, false)
	swap(nil, []byte("8"), nil, true)

	store, rc := c.target(t, "k")
	for name, req := range map[string]*kvrpcpb.RawCASRequest{
		"empty": {Context: rc}, "longest": {Context: rc, Key: key, Ttl: math.MaxUint64},
		"column family": {Context: rc, Key: key, Cf: "holidays"},
	} {
		resp, err := store.RawCompareAndSwap(ctx, req)
		require.NoError(t, err)
		require.Contains(t, resp.Error, name)
	}
}

// moveLeader has the scheduler give the region of a key to another store.
func (c *cluster) moveLeader(t *testing.T, key string) {
	t.Helper()
	pd := pdpb.NewPDClient(dial(t, c.scheduler.addr))
	ms, err := pd.GetMembers(context.Background(), &pdpb.GetMembersRequest{})
	require.NoError(t, err)
	r, err := pd.GetRegion(context.Background(), &pdpb.GetRegionRequest{
		Header: &pdpb.RequestHeader{ClusterId: ms.Header.ClusterId}, RegionKey: []byte(key),
	})
	require.NoError(t, err)
	for _, p := range r.Region.GetPeers() {
		if p.StoreId == r.Leader.GetStoreId() {
			continue
		}
		url := fmt.Sprintf("http://%s/api/v1/regions/%d/transfer-leader", c.scheduler.addr,
			r.Region.Id)
		req, err := http.NewRequest("POST", url,
			strings.NewReader(fmt.Sprintf(`{"to":%d}`, p.StoreId)))
		require.NoError(t, err)
		req.Header.Set("Tinykv-Request", "1")
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return // refused while another move runs: the next one comes soon
	}
}

// Many callers count by compare-and-swap while the leader moves: no increment is lost, and none is
// made twice.
func TestSwapsCountWhileLeadersMove(t *testing.T) {
	c := startCluster(t, 3)
	cl := c.client(t).SetAtomicForCAS(true)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	require.NoError(t, cl.Put(ctx, []byte("counter"), []byte("0")))
	const workers, each = 16, 60
	var done, unknown atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			last := []byte("0")
			for n := 0; n < each && ctx.Err() == nil; {
				v, err := strconv.Atoi(string(last))
				if err != nil {
					t.Errorf("the counter is %q", last)
					return
				}
				next := []byte(strconv.Itoa(v + 1))
				previous, swapped, err := cl.CompareAndSwap(ctx, []byte("counter"), last, next)
				switch {
				case err != nil && strings.Contains(err.Error(), "the outcome is unknown"):
					unknown.Add(1)
					n++
				case err != nil:
					t.Errorf("swap: %v", err)
					return
				case swapped:
					if !bytes.Equal(previous, last) {
						t.Errorf("%q was swapped for %q", previous, last)
					}
					done.Add(1)
					n++
					last = next
				default:
					last = previous
				}
			}
		}()
	}
	moved := make(chan struct{})
	go func() { wg.Wait(); close(moved) }()
	for moves := 0; ; moves++ {
		select {
		case <-moved:
			got, err := cl.Get(ctx, []byte("counter"))
			require.NoError(t, err)
			n, err := strconv.ParseInt(string(got), 10, 64)
			require.NoError(t, err)
			t.Logf("%d increments, %d of unknown outcome, %d orders to move", done.Load(),
				unknown.Load(), moves)
			require.GreaterOrEqual(t, n, done.Load(), "an increment is lost")
			require.LessOrEqual(t, n, done.Load()+unknown.Load(), "an increment was made twice")
			require.Less(t, unknown.Load(), int64(workers*each/10))
			return
		case <-time.After(200 * time.Millisecond):
			c.moveLeader(t, "counter")
		}
	}
}

// A range is deleted over several regions, and nothing beside it.
func TestDeleteRange(t *testing.T) {
	c := startCluster(t, 3)
	cl := c.client(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var keys, values [][]byte
	for ch := 'a'; ch <= 'z'; ch++ {
		for i := range 10 {
			keys, values = append(keys, fmt.Appendf(nil, "%c%d", ch, i)),
				append(values, []byte("v"))
		}
	}
	require.NoError(t, cl.BatchPut(ctx, keys, values))
	c.splitAt(t, "f", "k", "p")
	count := func(from, to string) int {
		t.Helper()
		var end []byte
		if to != "" {
			end = []byte(to)
		}
		got, _, err := cl.Scan(ctx, []byte(from), end, 10000)
		require.NoError(t, err)
		return len(got)
	}
	require.NoError(t, cl.DeleteRange(ctx, []byte("c5"), []byte("q5")))
	require.Equal(t, 25, count("", "c5"))
	require.Zero(t, count("c5", "q5"))
	require.Equal(t, 95, count("q5", ""))
	require.NoError(t, cl.Put(ctx, []byte("g"), []byte("again")))
	require.Equal(t, 1, count("c5", "q5"))
	require.NoError(t, cl.DeleteRange(ctx, []byte("g"), []byte("g\x00")))
	require.Zero(t, count("c5", "q5"))

	store, rc := c.target(t, "a")
	one := func(start, end string) *kvrpcpb.RawDeleteRangeResponse {
		t.Helper()
		for {
			resp, err := store.RawDeleteRange(ctx, &kvrpcpb.RawDeleteRangeRequest{
				Context: rc, StartKey: []byte(start), EndKey: []byte(end),
			})
			require.NoError(t, err)
			if resp.RegionError.GetNotLeader() == nil {
				return resp
			}
			store, rc = c.target(t, "a") // it was moved to balance the stores
		}
	}
	require.NotNil(t, one("a", "f0").RegionError.KeyNotInRegion)
	require.NotNil(t, one("a", "").RegionError.KeyNotInRegion)
	require.NotNil(t, one("f", "g").RegionError.KeyNotInRegion)
	require.Contains(t, one("b", "a").Error, "empty")
	require.Equal(t, 25, count("", "c5"))
	require.Equal(t, &kvrpcpb.RawDeleteRangeResponse{}, one("", "b"))
	require.Equal(t, 15, count("", "c5"))

	stream, err := store.BatchCommands(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.Send(&tikvpb.BatchCommandsRequest{
		RequestIds: []uint64{7},
		Requests: []*tikvpb.BatchCommandsRequest_Request{{
			Cmd: &tikvpb.BatchCommandsRequest_Request_RawDeleteRange{RawDeleteRange: &kvrpcpb.RawDeleteRangeRequest{
				Context: rc, StartKey: []byte("b"), EndKey: []byte("f"),
			}},
		}},
	}))
	resp, err := stream.Recv()
	require.NoError(t, err)
	require.Equal(t, []uint64{7}, resp.RequestIds)
	require.Equal(t, &kvrpcpb.RawDeleteRangeResponse{}, resp.Responses[0].GetRawDeleteRange())
	require.NoError(t, stream.CloseSend())
	require.Zero(t, count("", "q5"))
	require.Equal(t, 95, count("q5", ""))

	for _, p := range c.stores { // as its clients do
		resp, err := tikvpb.NewTikvClient(dial(t, p.addr)).UnsafeDestroyRange(ctx,
			&kvrpcpb.UnsafeDestroyRangeRequest{
				StartKey: []byte("d"), EndKey: []byte("x"),
			})
		require.NoError(t, err)
		require.Equal(t, &kvrpcpb.UnsafeDestroyRangeResponse{}, resp)
	}
	require.Zero(t, count("", "x"))
	require.Equal(t, 30, count("x", ""))
}
