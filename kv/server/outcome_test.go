package server

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// TestUnknownOutcomeOnTheWire: a write of unknown outcome is reported as such on each way to the
// client, whatever the reason.
func TestUnknownOutcomeOnTheWire(t *testing.T) {
	check := func(e *errorpb.Error) {
		t.Helper()
		require.NotNil(t, e.GetStaleCommand())
		require.Nil(t, e.RegionNotFound)
		require.Nil(t, e.NotLeader)
	}
	for _, cause := range []error{
		&regionerr.RegionNotFoundError{RegionID: 1}, &regionerr.NotLeaderError{RegionID: 1},
		regionerr.ErrStopping, regionerr.ErrFailed,
	} {
		err := &regionerr.UnknownError{Cause: cause}
		resp, rpc := putAnswer(0, err)
		require.NoError(t, rpc)
		check(resp.RegionError)
		del, rpc := deleteAnswer(0, err)
		require.NoError(t, rpc)
		check(del.RegionError)

		f := new(fakeStorage)
		c := overTheWire(t, newFake(f))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		stream, openErr := c.BatchCommands(ctx)
		require.NoError(t, openErr)
		req := &kvrpcpb.RawPutRequest{Key: []byte("k")}
		require.NoError(t,
			stream.Send(&kvrpcpb.BatchCommandsRequest{
				Commands: []*kvrpcpb.BatchCommand{{Id: 1, Put: req}},
			}))
		unary := make(chan *errorpb.Error, 1)
		go func() {
			resp, err := c.RawPut(ctx, req)
			if err != nil {
				t.Errorf("put: %v", err)
			}
			unary <- resp.GetRegionError()
		}()
		require.Eventually(t, func() bool {
			return f.pending() == 2
		}, 10*time.Second, time.Millisecond)
		f.finish(err)
		check(<-unary)
		batch, recvErr := stream.Recv()
		require.NoError(t, recvErr)
		require.Len(t, batch.Replies, 1)
		check(batch.Replies[0].Put.GetRegionError())
	}
}
