package rpc

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// client makes a Client that lives as long as the test.
func client(t testing.TB, addr string, o ClientOptions) *Client {
	c := NewClient(addr, o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestClientSmoke(t *testing.T) {
	_, addr := start(t, Options{}, &kv{}, echoInline)
	c := tinykvpb.NewTinyKvClient(client(t, addr, ClientOptions{}))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range 500 {
				key := make([]byte, i)
				res, err := c.RawGet(within(t), &kvrpcpb.RawGetRequest{Key: key})
				if err != nil || len(res.Value) != i {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkClient(b *testing.B) {
	_, addr := start(b, Options{}, &kv{}, echoInline)
	c := tinykvpb.NewTinyKvClient(client(b, addr, ClientOptions{}))
	ctx := context.Background()
	req := &kvrpcpb.RawGetRequest{Key: make([]byte, 16)}
	_, err := c.RawGet(ctx, req)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.RawGet(ctx, req); err != nil {
			b.Fatal(err)
		}
	}
}
