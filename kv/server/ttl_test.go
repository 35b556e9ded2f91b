package server

import (
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// movedClock is the process's clock, as far ahead as a test wants it.
type movedClock struct {
	base  time.Time
	ahead atomic.Int64
}

func (c *movedClock) Base() time.Time { return c.base }
func (c *movedClock) Now() time.Time  { return time.Now().Add(time.Duration(c.ahead.Load())) }

// TestTTL: puts and compare-and-swaps set a TTL, by which gets, scans and RawGetKeyTTL go.
func TestTTL(t *testing.T) {
	clock := &movedClock{base: time.Now()}
	s := newReplicatedWith(t, raftstore.Options{Clock: clock})
	to := &kvrpcpb.Context{
		RegionId: 1, Peer: &metapb.Peer{Id: 1, StoreId: 1},
		RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
	}
	put := func(key string, ttl uint64) string {
		t.Helper()
		resp, err := s.RawPut(t.Context(),
			&kvrpcpb.RawPutRequest{Context: to, Key: []byte(key), Value: []byte("v"), Ttl: ttl})
		require.NoError(t, err)
		require.Nil(t, resp.RegionError)
		return resp.Error
	}
	left := func(key string) *kvrpcpb.RawGetKeyTTLResponse {
		t.Helper()
		resp, err := s.RawGetKeyTTL(t.Context(),
			&kvrpcpb.RawGetKeyTTLRequest{Context: to, Key: []byte(key)})
		require.NoError(t, err)
		return resp
	}
	require.Empty(t, put("b", 0))
	require.Empty(t, put("c", 100))
	require.Contains(t, put("d", math.MaxUint64), "longest")
	swap, err := s.RawCAS(t.Context(),
		&kvrpcpb.RawCASRequest{Context: to, Key: []byte("e"), PreviousNotExist: true, Ttl: 200})
	require.NoError(t, err)
	require.True(t, swap.Succeed, swap.String())
	require.Equal(t, &kvrpcpb.RawGetKeyTTLResponse{}, left("b"))
	require.InDelta(t, 100, left("c").Ttl, 20)
	require.True(t, left("d").NotFound)
	require.InDelta(t, 200, left("e").Ttl, 20)
	require.Contains(t, left("").Error, "empty")
	require.NotNil(t, left("z").RegionError)
	clock.ahead.Store(int64(150 * time.Second))
	scan, err := s.RawScan(t.Context(),
		&kvrpcpb.RawScanRequest{Context: to, StartKey: []byte("a"), Limit: 2})
	require.NoError(t, err)
	require.Len(t, scan.Kvs, 2)
	require.Equal(t, "be", string(scan.Kvs[0].Key)+string(scan.Kvs[1].Key))
	get, err := s.RawGet(t.Context(), &kvrpcpb.RawGetRequest{Context: to, Key: []byte("c")})
	require.NoError(t, err)
	require.True(t, get.NotFound)
}

// TestTTLIsRefused where a storage has none, until every store has it, and among transactions.
func TestTTLIsRefused(t *testing.T) {
	to := &kvrpcpb.Context{
		RegionId: 1, Peer: &metapb.Peer{Id: 1, StoreId: 1},
		RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
	}
	older := newReplicatedWith(t,
		raftstore.Options{Features: func() feature.Set { return feature.ConditionalOps }})
	txn := newReplicated(t)
	txn.SetMode(clustermode.Txn)
	for want, s := range map[string]*Server{
		"not replicated": newServer(), "ttl": older, "mode txn": txn,
	} {
		put, err := s.RawPut(t.Context(),
			&kvrpcpb.RawPutRequest{Context: to, Key: []byte("b"), Ttl: 1})
		require.NoError(t, err)
		require.Contains(t, put.Error, want)
		swap, err := s.RawCAS(t.Context(),
			&kvrpcpb.RawCASRequest{Context: to, Key: []byte("b"), PreviousNotExist: true, Ttl: 1})
		require.NoError(t, err)
		require.Contains(t, swap.Error, want)
		left, err := s.RawGetKeyTTL(t.Context(),
			&kvrpcpb.RawGetKeyTTLRequest{Context: to, Key: []byte("b")})
		require.NoError(t, err)
		require.Equal(t, want != "mode txn", left.NotFound)
	}
}
