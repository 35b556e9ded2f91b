package embed

import (
	"context"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// TestDestroyRangeByOneStore sends UnsafeDestroyRange to one store only, for each store: also one
// that leads nothing has the range deleted wherever it has a replica. So a region cannot be left
// out that changes its leader between the answers of two stores.
func TestDestroyRangeByOneStore(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, cl := begin(t, Config{Stores: 3})
	lead := storeOf(t, c, waitReplicas(t, c, cl)).index
	for i, s := range c.Stores() {
		for _, key := range []string{"a", "b", "c", "d"} {
			mustPut(t, cl, key, "v")
		}
		conn, err := grpc.NewClient(s.Addr(),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		resp, err := tikvpb.NewTikvClient(conn).UnsafeDestroyRange(ctx,
			&kvrpcpb.UnsafeDestroyRangeRequest{StartKey: []byte("b"), EndKey: []byte("d")})
		require.NoError(t, err)
		require.Empty(t, resp.Error)
		require.NoError(t, conn.Close())
		mustGet(t, cl, "a", "v")
		mustGet(t, cl, "d", "v")
		for _, key := range []string{"b", "c"} {
			_, found, err := cl.Get(ctx, []byte(key))
			require.NoError(t, err)
			require.False(t, found, "store %d: %s is still there", i, key)
		}
	}
	// A store that leads nothing and cannot reach the leader does not say that the range is gone.
	follower := (lead + 1) % 3
	c.Isolate(follower)
	conn, err := grpc.NewClient(c.Stores()[follower].Addr(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	short, cancelShort := context.WithTimeout(ctx, time.Second)
	defer cancelShort()
	resp, err := tikvpb.NewTikvClient(conn).UnsafeDestroyRange(short,
		&kvrpcpb.UnsafeDestroyRangeRequest{StartKey: []byte("a"), EndKey: []byte("b")})
	if err == nil {
		require.NotEmpty(t, resp.Error)
	}
	c.Heal()
	mustGet(t, cl, "a", "v")
}
