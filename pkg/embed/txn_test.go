package embed

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/client/txn"
)

// TestTransactions: a cluster in mode txn, with the placement service's timestamps; raw requests
// are refused, and after a restart of a store it still is one.
func TestTransactions(t *testing.T) {
	c, raw := begin(t, Config{Txn: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var refused *client.RequestError
	require.ErrorAs(t, raw.Put(ctx, []byte("k"), []byte("v")), &refused)
	require.ErrorContains(t, refused, "mode txn")
	cl, err := c.TxnClient(ctx)
	require.NoError(t, err)
	defer cl.Close()
	add := func() error {
		return cl.Run(ctx, func(x *txn.Txn) error {
			v, _, err := x.Get(ctx, []byte("counter"))
			if err == nil {
				x.Set([]byte("counter"), append(v, '+'))
			}
			return err
		})
	}
	require.NoError(t, add())
	c.Stores()[0].Stop()
	require.NoError(t, c.Stores()[0].Start(ctx))
	require.NoError(t, add())
	x, err := cl.Begin(ctx)
	require.NoError(t, err)
	pairs, err := x.Scan(ctx, nil, nil, 0)
	require.NoError(t, err)
	require.Equal(t, []txn.KV{{Key: []byte("counter"), Value: []byte("++")}}, pairs)
}

// TestTransactionsAreRefused: a cluster is in mode raw unless its configuration names another.
func TestTransactionsAreRefused(t *testing.T) {
	c, _ := begin(t, Config{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl, err := c.TxnClient(ctx)
	require.NoError(t, err)
	defer cl.Close()
	err = cl.Run(ctx, func(x *txn.Txn) error { x.Set([]byte("k"), []byte("v")); return nil })
	require.ErrorContains(t, err, "mode raw")
	require.False(t, txn.IsUnknown(err))
}
