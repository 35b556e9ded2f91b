package tikv

import (
	"context"
	"testing"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/server/gate"
	"github.com/tinykv/tinykv/kv/storage/standalone"
	"github.com/tinykv/tinykv/pkg/clustermode"
)

// TestRawIsRefusedAmongTransactions: by every call that would read or change bytes which
// transactions have encoded.
func TestRawIsRefusedAmongTransactions(t *testing.T) {
	s := New(config.Default(), 1, standalone.New(memengine.New()), new(gate.Gate))
	s.SetMode(clustermode.Txn)
	ctx, c := context.Background(), &kvrpcpb.Context{RegionId: 1}
	for name, call := range map[string]func() (string, error){
		"put": func() (string, error) {
			r, err := s.RawPut(ctx,
				&kvrpcpb.RawPutRequest{Context: c, Key: []byte("k"), Value: []byte("v")})
			return r.GetError(), err
		},
		"swap": func() (string, error) {
			r, err := s.RawCompareAndSwap(ctx,
				&kvrpcpb.RawCASRequest{Context: c, Key: []byte("k"), PreviousNotExist: true})
			return r.GetError(), err
		},
		"delete range": func() (string, error) {
			r, err := s.RawDeleteRange(ctx,
				&kvrpcpb.RawDeleteRangeRequest{
					Context: c, StartKey: []byte("a"), EndKey: []byte("b"),
				})
			return r.GetError(), err
		},
		"destroy range": func() (string, error) {
			r, err := s.UnsafeDestroyRange(ctx,
				&kvrpcpb.UnsafeDestroyRangeRequest{
					Context: c, StartKey: []byte("a"), EndKey: []byte("b"),
				})
			return r.GetError(), err
		},
	} {
		text, err := call()
		require.NoError(t, err, name)
		require.Contains(t, text, "mode txn", name)
	}
}
