package client

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestInterceptors: with a unary interceptor each request is an RPC that passes through it, and may
// be refused by it; with a stream one alone, the shared stream passes once.
func TestInterceptors(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	note := func(method string) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, method)
	}
	taken := func() []string {
		mu.Lock()
		defer mu.Unlock()
		out := seen
		seen = nil
		return out
	}
	unary := func(
		ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
		next grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		note(method)
		if method == "/tinykvpb.TinyKv/RawDelete" {
			return status.Error(codes.PermissionDenied, "no deletes here")
		}
		return next(ctx, method, req, reply, cc, opts...)
	}
	stream := func(
		ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
		next grpc.Streamer, opts ...grpc.CallOption,
	) (grpc.ClientStream, error) {
		note(method)
		return next(ctx, desc, cc, method, opts...)
	}
	f := &fakeStore{data: map[string]string{}, batch: "serve"}
	use := func(o Options) error {
		o.Conns = 1
		c := New(serve(t, f), o)
		defer c.Close()
		require.NoError(t, c.Put(t.Context(), []byte("k"), []byte("v")))
		v, found, err := c.Get(t.Context(), []byte("k"))
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, "v", string(v))
		if len(o.UnaryInterceptors) > 0 {
			return c.Delete(t.Context(), []byte("k"))
		}
		return nil
	}
	err := use(Options{
		UnaryInterceptors:  []grpc.UnaryClientInterceptor{unary},
		StreamInterceptors: []grpc.StreamClientInterceptor{stream},
	})
	require.ErrorContains(t, err, "no deletes here")
	require.Equal(t, []string{
		"/tinykvpb.TinyKv/RawPut", "/tinykvpb.TinyKv/RawGet", "/tinykvpb.TinyKv/RawDelete",
	}, taken())
	require.NoError(t, use(Options{StreamInterceptors: []grpc.StreamClientInterceptor{stream}}))
	require.Equal(t, []string{"/tinykvpb.TinyKv/BatchCommands"}, taken())
}
