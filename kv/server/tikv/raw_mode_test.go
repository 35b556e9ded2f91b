package tikv

import (
	"context"
	"testing"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/metapb"
	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/server/gate"
	"github.com/tinykv/tinykv/kv/storage/standalone"
	"github.com/tinykv/tinykv/pkg/clustermode"
)

// TestRawCallsAreRefusedInModeTxn: by each raw call, in words that name the mode, and nothing is
// written.
func TestRawCallsAreRefusedInModeTxn(t *testing.T) {
	e := memengine.New()
	s := New(config.Default(), 1, standalone.New(e), new(gate.Gate))
	s.SetMode(clustermode.Txn)
	ctx := context.Background()
	to := &kvrpcpb.Context{
		RegionId: 1, RegionEpoch: &metapb.RegionEpoch{Version: 1},
		Peer: &metapb.Peer{Id: 1, StoreId: 1},
	}
	put, err := s.RawPut(ctx,
		&kvrpcpb.RawPutRequest{Context: to, Key: []byte("k"), Value: []byte("v")})
	require.NoError(t, err)
	require.Contains(t, put.Error, "mode txn")
	get, err := s.RawGet(ctx, &kvrpcpb.RawGetRequest{Context: to, Key: []byte("k")})
	require.NoError(t, err)
	require.Contains(t, get.Error, "mode txn")
	del, err := s.RawDelete(ctx, &kvrpcpb.RawDeleteRequest{Context: to, Key: []byte("k")})
	require.NoError(t, err)
	require.Contains(t, del.Error, "mode txn")
	batch, err := s.RawBatchPut(ctx,
		&kvrpcpb.RawBatchPutRequest{Context: to, Pairs: []*kvrpcpb.KvPair{{Key: []byte("k")}}})
	require.NoError(t, err)
	require.Contains(t, batch.Error, "mode txn")
	ttl, err := s.RawGetKeyTTL(ctx, &kvrpcpb.RawGetKeyTTLRequest{Context: to, Key: []byte("k")})
	require.NoError(t, err)
	require.Contains(t, ttl.Error, "mode txn")
	view := e.NewSnapshot()
	defer view.Close()
	it := view.NewIterator(nil, nil)
	defer it.Close()
	it.First()
	require.False(t, it.Valid())
}
