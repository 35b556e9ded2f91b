package client

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	rpc "github.com/tinykv/tinykv/pkg/rpc/client"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// TestOutcomeOfRPCErrors: a write is of unknown outcome if a store may have seen it, and only then.
func TestOutcomeOfRPCErrors(t *testing.T) {
	regions, keys := filledCache(1)
	c := New(nil, Options{})
	c.cache = regions
	nobody := rpc.New("127.0.0.1:1", rpc.Options{})
	defer nobody.Close()
	call := func(ctx context.Context) error {
		_, err := tinykvpb.NewTinyKvClient(nobody).RawPut(ctx, &kvrpcpb.RawPutRequest{})
		require.Error(t, err)
		return err
	}
	late, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	gone, cancelGone := context.WithCancel(t.Context())
	cancelGone()
	for what, tc := range map[string]struct {
		err     error
		unknown bool
	}{
		"nobody listens":             {call(t.Context()), false},
		"the deadline came first":    {call(late), false},
		"cancelled before":           {call(gone), false},
		"another transport, refused": {status.Error(codes.Unavailable, "connection refused"), true},
		"never left the queue":       {errNotSent, false},
		"connection lost": {
			status.Error(codes.Unavailable, "connection to a:1 lost: EOF"), true,
		},
		"no answer in time": {
			status.Error(codes.DeadlineExceeded, "context deadline exceeded"), true,
		},
		"cancelled":               {status.Error(codes.Canceled, "context canceled"), true},
		"the store made no sense": {status.Error(codes.Internal, "unmarshal"), true},
		"refused for good":        {status.Error(codes.ResourceExhausted, "too large"), false},
	} {
		v := c.onRPCError(regions.lookup(keys[0]), tc.err)
		require.Equal(t, tc.unknown, v.unknown, what)
	}
}
