package server

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

const mib = 1 << 20

// large answers a get with a value of one MiB; a key that begins with s gets a small answer.
func large(_ context.Context, req *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error) {
	if len(req.Key) > 0 && req.Key[0] == 's' {
		return &kvrpcpb.RawGetResponse{Value: req.Key}, nil
	}
	return &kvrpcpb.RawGetResponse{Value: make([]byte, mib)}, nil
}

// nothingWaits waits until no answers are held.
func nothingWaits(t *testing.T, s *Server) {
	t.Helper()
	idle(t, s)
	require.Eventually(t, func() bool {
		return s.Stats().AnswerBytes == 0
	}, rpctest.Patience, time.Millisecond)
	s.readers.mu.Lock()
	defer s.readers.mu.Unlock()
	require.Empty(t, s.readers.mu.conns)
}

// greedy is a client that gives windows for everything and reads nothing.
func greedy(t *testing.T, addr string) *rpctest.Raw {
	r := rpctest.Greet(t, addr, rpctest.Initial(rpc.MaxWindow))
	require.NoError(t, r.Framer.WriteWindowUpdate(0, rpc.MaxWindow-rpc.InitialWindow))
	return r
}

// TestAnswersNotTakenAreBounded: with and without windows, clients that read nothing hold no more
// than the server may hold. Others are served, and large answers are again when those were closed.
func TestAnswersNotTakenAreBounded(t *testing.T) {
	const limit = 8 * mib
	for name, dial := range map[string]func(*testing.T, string) *rpctest.Raw{
		"no window": func(t *testing.T, addr string) *rpctest.Raw {
			return rpctest.Greet(t, addr)
		},
		"all windows": greedy,
	} {
		t.Run(name, func(t *testing.T) {
			s, addr := startBusy(t,
				Options{MaxSend: 2 * mib, MaxAnswers: limit, Stall: 300 * time.Millisecond},
				&rpctest.KV{Get: large})
			var last *rpctest.Raw
			for range 20 {
				last = dial(t, addr)
				for i := range 8 {
					last.Call(uint32(2*i+1), []byte("k"))
				}
			}
			require.Eventually(t, func() bool {
				return s.Stats().BusyAnswers > 0
			}, rpctest.Patience, time.Millisecond)
			require.LessOrEqual(t, s.Stats().AnswerBytes, int64(limit+20*(freeAnswers+4*mib/100)))
			c := rpctest.DialKV(t, addr)
			resp, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte("small")})
			require.NoError(t, err)
			require.Equal(t, "small", string(resp.Value))
			require.Eventually(t, func() bool {
				resp, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte("k")})
				require.NoError(t, err)
				if busy := resp.RegionError; busy != nil {
					require.Equal(t, NoRoom, busy.ServerIsBusy.Reason)
				}
				return len(resp.Value) == mib
			}, rpctest.Patience, time.Millisecond)
			id := uint32(17)
			require.Eventually(t, func() bool {
				if s.Stats().StalledReaders > 0 {
					return true
				}
				// The kernel may have taken all that the twenty were given.
				_ = last.Framer.WriteHeaders(http2.HeadersFrameParam{
					StreamID: id, BlockFragment: last.Block(rpctest.GetPath), EndHeaders: true})
				_ = last.Framer.WriteData(id, true, rpctest.EncodedGet([]byte("k")))
				id += 2
				return false
			}, rpctest.Patience, time.Millisecond)
			require.Eventually(t, func() bool {
				return s.Stats().AnswerBytes == 0
			}, rpctest.Patience, time.Millisecond)
		})
	}
}

// TestOneConnectionHoldsItsPart: it is refused more, before that is carried out, while another one
// has what it asks for.
func TestOneConnectionHoldsItsPart(t *testing.T) {
	carriedOut := make(chan struct{}, 100)
	s, addr := startBusy(t, Options{MaxSend: 2 * mib, MaxAnswers: 8 * mib}, &rpctest.KV{
		Get: func(
			ctx context.Context, req *kvrpcpb.RawGetRequest,
		) (*kvrpcpb.RawGetResponse, error) {
			carriedOut <- struct{}{}
			return large(ctx, req)
		},
	})
	r := rpctest.Greet(t, addr)
	for i := range 8 {
		r.Call(uint32(2*i+1), []byte("k"))
	}
	require.Eventually(t, func() bool {
		return s.Stats().BusyAnswers >= 6
	}, rpctest.Patience, time.Millisecond)
	require.False(t, only(t, s).full.Load(), "its client may be about to take them")
	for range 8 {
		rpctest.Wait(t, carriedOut, "the handler")
	}
	require.Eventually(t, only(t, s).full.Load, rpctest.Patience, time.Millisecond)
	r.Call(101, []byte("small"))
	r.Sync()
	require.Empty(t, carriedOut)
	resp, err := rpctest.DialKV(t, addr).RawGet(rpctest.Within(t),
		&kvrpcpb.RawGetRequest{Key: []byte("k")})
	require.NoError(t, err)
	require.Len(t, resp.Value, mib)
	require.NoError(t, r.Framer.WriteSettings(rpctest.Initial(rpc.MaxWindow)))
	require.NoError(t, r.Framer.WriteWindowUpdate(0, 16*mib))
	require.Equal(t, NoRoom, busyReason(t, r, 101))
	nothingWaits(t, s)
	r.Works(201, "small")
}

// TestSlowReaderIsNotClosed as long as it takes something.
func TestSlowReaderIsNotClosed(t *testing.T) {
	s, addr := start(t, Options{Stall: time.Hour}, &rpctest.KV{Get: large}, nil)
	r := rpctest.Greet(t, addr)
	r.Call(1, []byte("k"))
	look := time.Now()
	for got := 0; got < mib; {
		f, err := r.Next()
		require.NoError(t, err, "%v", s.Stats())
		if d, ok := f.(*http2.DataFrame); ok {
			got += len(d.Data())
			if got%rpc.InitialWindow == 0 { // the windows are used up
				look = look.Add(40 * time.Minute) // what it took may be counted at the next look
				s.readers.look(look)
				require.NoError(t, r.Framer.WriteWindowUpdate(0, rpc.InitialWindow))
				require.NoError(t, r.Framer.WriteWindowUpdate(1, rpc.InitialWindow))
			}
		}
	}
	require.Equal(t, "0", r.Answer(1).Status)
	nothingWaits(t, s)
	require.Zero(t, s.Stats().StalledReaders)
}

// TestStreamThatIsNotRead: what a handler sends to a client that takes nothing ends with the
// connection.
func TestStreamThatIsNotRead(t *testing.T) {
	ended := make(chan error, 1)
	s, addr := start(t, Options{Stall: time.Millisecond},
		&rpctest.KV{Stream: func(st grpc.ServerStream) error {
			for {
				if err := st.SendMsg(&kvrpcpb.RawGetResponse{
					Value: make([]byte, mib),
				}); err != nil {
					ended <- err
					return err
				}
			}
		}}, nil)
	r := rpctest.Greet(t, addr)
	r.Open(1, rpctest.StreamPath, false)
	require.Error(t, rpctest.Wait(t, ended, "the handler"))
	r.Closed()
	nothingWaits(t, s)
	require.EqualValues(t, 1, s.Stats().StalledReaders)
}

// TestRoom: handlers that gather share what there is, and give it back.
func TestRoom(t *testing.T) {
	b := rpc.NewBudget(100)
	a, c := NewRoom(b), NewRoom(b)
	require.True(t, a.Grow(60))
	require.True(t, a.Grow(10), "it has more")
	require.False(t, c.Grow(41))
	require.True(t, c.Grow(40))
	require.EqualValues(t, 60, a.Give())
	require.Zero(t, a.Give())
	require.True(t, c.Grow(100))
	c.Give()
	require.Zero(t, b.Used())
	require.True(t, (*Room)(nil).Grow(1<<40))
	require.True(t, NewRoom(nil).Grow(1<<40))
	require.Nil(t, RoomOf(t.Context()))
	require.Same(t, a, RoomOf(WithRoom(t.Context(), a)))
}
