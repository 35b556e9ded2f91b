package server

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/pkg/rpc/client"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// received is a message that a handler has taken, and what it holds.
type received struct {
	size int
	hold *Hold
}

// startHolding serves streams whose handler keeps charges and hands out what it has received.
func startHolding(t *testing.T, o Options) (s *Server, addr string, got chan received) {
	got = make(chan received, 100)
	s, addr = startBusy(t, o, &rpctest.KV{Stream: func(st grpc.ServerStream) error {
		in := StreamOf(st.Context())
		in.KeepCharges()
		in.OnMessage(func(msg []byte) bool {
			got <- received{size: -len(msg)}
			return true
		})
		for {
			req := new(kvrpcpb.RawGetRequest)
			if err := st.RecvMsg(req); err != nil {
				return err
			}
			got <- received{len(req.Key), in.Hold()}
		}
	}})
	return s, addr, got
}

// sendOn sends a message of so many bytes on a stream of its own.
func sendOn(t *testing.T, addr string, ctx context.Context, size int) *rpctest.Group {
	t.Helper()
	c := client.New(addr, client.Options{})
	t.Cleanup(func() { _ = c.Close() })
	st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(ctx)
	require.NoError(t, err)
	g := new(rpctest.Group)
	g.Go(func() error { return st.SendMsg(&kvrpcpb.RawGetRequest{Key: make([]byte, size)}) })
	return g
}

// TestMessageIsChargedUntilItIsGivenBack: a message that its handler has taken stays charged, also
// when its call has been cancelled. Another message waits meanwhile, and comes when enough has been
// given back.
func TestMessageIsChargedUntilItIsGivenBack(t *testing.T) {
	const size = 900 << 10
	s, addr, got := startHolding(t,
		Options{MaxRecv: 1 << 20, MaxRequests: 2 << 20, MaxStreamWindows: 1, MaxWait: time.Hour})
	ctx, cancel := context.WithCancel(rpctest.Within(t))
	require.NoError(t, sendOn(t, addr, ctx, size).Wait())
	first := rpctest.Wait(t, got, "the first message")
	require.Equal(t, size, first.size)
	require.GreaterOrEqual(t, first.hold.Left(), int64(size))
	require.Equal(t, first.hold.Left(), s.Stats().RequestBytes)
	cancel()
	idle(t, s)
	require.Equal(t, first.hold.Left(), s.Stats().RequestBytes, "the call has ended, not the work")

	other := sendOn(t, addr, rpctest.Within(t), size)
	in := s.intakes[0]
	require.Eventually(t, func() bool {
		in.mu.Lock()
		defer in.mu.Unlock()
		return len(in.mu.waiting) == 1
	}, rpctest.Patience, time.Millisecond)
	require.Less(t, s.Stats().RequestBytes, int64(size+100<<10), "what waits is not charged whole")
	first.hold.Give(size / 2)
	require.Less(t, first.hold.Left(), int64(size/2+100))
	first.hold.Give(size) // more than is left
	require.Zero(t, first.hold.Left())
	first.hold.End()
	require.NoError(t, other.Wait())
	second := rpctest.Wait(t, got, "the second message")
	require.Equal(t, size, second.size)
	require.Equal(t, second.hold.Left(), s.Stats().RequestBytes)
	second.hold.End()
	require.Zero(t, s.Stats().RequestBytes)
}

// TestSmallMessagesHoldNothing: what comes in one frame is not charged, and goes to OnMessage or
// through RecvMsg.
func TestSmallMessagesHoldNothing(t *testing.T) {
	s, addr, got := startHolding(t, Options{MaxStreamWindows: 1})
	require.NoError(t, sendOn(t, addr, rpctest.Within(t), 100).Wait())
	m := rpctest.Wait(t, got, "the message")
	require.Nil(t, m.hold, fmt.Sprint(m.size))
	require.Zero(t, s.Stats().RequestBytes)
}

// TestHoldIsNotAskedFor: a handler that keeps charges and does not ask for them gives each back with
// its next RecvMsg.
func TestHoldIsNotAskedFor(t *testing.T) {
	var s *Server
	received, left := 0, make(chan int64, 1)
	s, addr := startBusy(t, Options{MaxStreamWindows: 1}, &rpctest.KV{
		Stream: func(st grpc.ServerStream) error {
			StreamOf(st.Context()).KeepCharges()
			for ; ; received++ {
				if err := st.RecvMsg(new(kvrpcpb.RawGetRequest)); err != nil {
					left <- s.Stats().RequestBytes
					return err
				}
				if s.Stats().RequestBytes == 0 {
					t.Error("a message that was taken is not charged any more")
				}
			}
		},
	})
	c := client.New(addr, client.Options{})
	t.Cleanup(func() { _ = c.Close() })
	st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(rpctest.Within(t))
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, st.SendMsg(&kvrpcpb.RawGetRequest{Key: make([]byte, 100_000)}))
	}
	require.NoError(t, st.CloseSend())
	require.Zero(t, rpctest.Wait(t, left, "the end of the stream"))
	require.Equal(t, 3, received)
}
