package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/client"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// startBusy serves k, with busy answers that have their reason in the region error.
func startBusy(t *testing.T, o Options, k *rpctest.KV) (*Server, string) {
	return startWith(t, o, func(s *Server) {
		tinykvpb.RegisterTinyKvServer(s, k)
		s.OnBusy(rpctest.GetPath, func(reason string) any {
			return &kvrpcpb.RawGetResponse{
				RegionError: &errorpb.Error{ServerIsBusy: &errorpb.ServerIsBusy{Reason: reason}},
			}
		})
	})
}

// sizeOf answers a get with the size of its key.
func sizeOf(_ context.Context, req *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error) {
	return &kvrpcpb.RawGetResponse{Value: fmt.Append(nil, len(req.Key))}, nil
}

// nothingHeld waits until nothing of requests is held, and no call is left.
func nothingHeld(t *testing.T, s *Server) {
	t.Helper()
	idle(t, s)
	require.Eventually(t, func() bool {
		return s.Stats().RequestBytes == 0
	}, rpctest.Patience, time.Millisecond)
	for _, in := range s.intakes {
		in.mu.Lock()
		require.Empty(t, in.mu.live)
		require.Empty(t, in.mu.waiting)
		in.mu.Unlock()
	}
}

// TestLargeRequestsOverOneConnection: a connection does not block itself, whatever part of its
// requests must wait. With our client and grpc's, as calls and as messages of streams.
func TestLargeRequestsOverOneConnection(t *testing.T) {
	k := &rpctest.KV{Get: sizeOf, Stream: func(st grpc.ServerStream) error {
		for {
			req := new(kvrpcpb.RawGetRequest)
			if err := st.RecvMsg(req); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			resp, _ := sizeOf(st.Context(), req)
			if err := st.SendMsg(resp); err != nil {
				return err
			}
		}
	}}
	s, addr := startBusy(t, Options{MaxRecv: 16 << 20, MaxRequests: 32 << 20, MaxWait: time.Hour},
		k)
	ours := client.New(addr, client.Options{MaxSend: 16 << 20, Checksum: true})
	t.Cleanup(func() { _ = ours.Close() })
	key := make([]byte, 15<<20)
	for name, c := range map[string]tinykvpb.TinyKvClient{
		"ours": tinykvpb.NewTinyKvClient(ours), "grpc": rpctest.DialKV(t, addr),
	} {
		t.Run(name, func(t *testing.T) {
			var g rpctest.Group
			for i := range 6 {
				size := (8 + i%8) << 20
				g.Go(func() error {
					resp, err := c.RawGet(rpctest.Within(t),
						&kvrpcpb.RawGetRequest{Key: key[:size]})
					if err == nil && string(resp.Value) != fmt.Sprint(size) {
						err = fmt.Errorf("%d bytes, got %s %v", size, resp.Value, resp.RegionError)
					}
					return err
				})
				g.Go(func() error {
					st, err := c.BatchCommands(rpctest.Within(t))
					if err != nil {
						return err
					}
					resp := new(kvrpcpb.RawGetResponse)
					for _, n := range []int{size, 100, 70_000} {
						if err := st.SendMsg(&kvrpcpb.RawGetRequest{Key: key[:n]}); err != nil {
							return err
						}
						if err := st.RecvMsg(resp); err != nil ||
							string(resp.Value) != fmt.Sprint(n) {
							return fmt.Errorf("%d bytes, got %s, %w", n, resp.Value, err)
						}
					}
					return st.CloseSend()
				})
			}
			require.NoError(t, g.Wait())
			nothingHeld(t, s)
			require.Zero(t, s.Stats().BusyRequests)
		})
	}
}

// half opens calls of which only a part of the request comes: one that takes the first window, or
// all that is given.
func half(t *testing.T, addr string, calls, size int) *rpctest.Raw {
	t.Helper()
	r := rpctest.Greet(t, addr)
	msg := rpctest.EncodedGet(make([]byte, size))
	for i := range calls {
		r.Open(uint32(2*i+1), rpctest.GetPath, false)
		r.Data(uint32(2*i+1), msg[:rpc.InitialWindow], false)
	}
	r.Sync()
	return r
}

// TestHalfRequestsAreBounded: whatever many clients begin, the server holds no more than it may,
// small calls are served, and a whole large request has its turn when those that stand still were
// given up.
func TestHalfRequestsAreBounded(t *testing.T) {
	const limit = 8 << 20
	s, addr := startBusy(t,
		Options{
			MaxRecv: 4 << 20, MaxRequests: limit, Stall: 200 * time.Millisecond,
			MaxWait: time.Second,
		}, &rpctest.KV{Get: sizeOf})
	for range 10 {
		half(t, addr, 10, 4<<20-100)
		require.LessOrEqual(t, s.Stats().RequestBytes, int64(limit))
	}
	c := rpctest.DialKV(t, addr)
	small, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: make([]byte, 1000)})
	require.NoError(t, err)
	require.Equal(t, "1000", string(small.Value))
	require.Eventually(t, func() bool {
		large, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: make([]byte, 3<<20)})
		require.NoError(t, err)
		require.LessOrEqual(t, s.Stats().RequestBytes, int64(limit))
		return large.RegionError == nil
	}, rpctest.Patience, time.Millisecond)
	nothingHeld(t, s)
	st := s.Stats()
	require.Positive(t, st.StalledRequests)
	require.GreaterOrEqual(t, st.StalledRequests+st.BusyRequests, uint64(100),
		"no half request was forgotten")
}

// TestStalledRequest: a request that does not go on is answered, its memory is given up, and its
// stream is reset. The message of a stream ends that stream.
func TestStalledRequest(t *testing.T) {
	ended := make(chan error, 1)
	s, addr := startBusy(t, Options{Stall: time.Millisecond},
		&rpctest.KV{Stream: func(st grpc.ServerStream) error {
			err := st.RecvMsg(new(kvrpcpb.RawGetRequest))
			ended <- err
			return err
		}})
	r := half(t, addr, 1, 1<<20)
	require.Equal(t, reasonStalled, busyReason(t, r, 1))
	r.Until("a reset", func(f http2.Frame) bool { _, ok := f.(*http2.RSTStreamFrame); return ok })
	nothingHeld(t, s)
	r.Open(3, rpctest.StreamPath, false)
	r.Data(3, rpctest.EncodedGet(make([]byte, 2<<20))[:rpc.InitialWindow], false)
	require.Equal(t, codes.Unavailable, status.Code(rpctest.Wait(t, ended, "the handler")))
	require.Equal(t, fmt.Sprint(int(codes.Unavailable)), r.Answer(3).Status)
	r.Data(3, make([]byte, 100), false) // was on its way
	r.Works(5, "k")
	nothingHeld(t, s)
	require.EqualValues(t, 2, s.Stats().StalledRequests)
}

// busyReason is why a call was refused.
func busyReason(t *testing.T, r *rpctest.Raw, id uint32) (reason string) {
	t.Helper()
	r.Until("the answer", func(f http2.Frame) bool {
		if d, ok := f.(*http2.DataFrame); ok && d.StreamID == id {
			resp := new(kvrpcpb.RawGetResponse)
			require.NoError(t, resp.Unmarshal(d.Data()[rpc.PrefixSize:]))
			reason = resp.GetRegionError().GetServerIsBusy().GetReason()
		}
		h, ok := f.(*http2.MetaHeadersFrame)
		return ok && h.StreamID == id && h.StreamEnded()
	})
	return reason
}

// occupy holds all that large requests may take, in calls whose handlers wait until the test ends
// them.
func occupy(t *testing.T, o Options) (s *Server, addr string, free func()) {
	open := make(chan struct{})
	entered := make(chan struct{}, 10)
	s, addr = startBusy(t, o,
		&rpctest.KV{Get: func(
			ctx context.Context, req *kvrpcpb.RawGetRequest,
		) (*kvrpcpb.RawGetResponse, error) {
			if bytes.HasPrefix(req.Key, []byte("hold")) {
				entered <- struct{}{}
				<-open
			}
			return sizeOf(ctx, req)
		}})
	c := rpctest.DialKV(t, addr)
	var g rpctest.Group
	for range 3 {
		g.Go(func() error {
			_, err := c.RawGet(rpctest.Within(t),
				&kvrpcpb.RawGetRequest{Key: append([]byte("hold"), make([]byte, 2<<20-1000)...)})
			return err
		})
		rpctest.Wait(t, entered, "the handler")
	}
	freed := false
	free = func() {
		if !freed {
			freed = true
			close(open)
			require.NoError(t, g.Wait())
		}
	}
	t.Cleanup(free)
	return s, addr, free
}

// TestRequestsWaitForTheirTurn: a request waits until others were answered; one that waits too long
// gets the reason. Middling requests do not wait for large ones.
func TestRequestsWaitForTheirTurn(t *testing.T) {
	for name, wait := range map[string]time.Duration{"patient": time.Hour, "impatient": 1} {
		t.Run(name, func(t *testing.T) {
			s, addr, free := occupy(t,
				Options{MaxRecv: 2 << 20, MaxRequests: 8 << 20, MaxWait: wait})
			r := half(t, addr, 1, 1<<20)
			r.Call(3, make([]byte, 40_000))
			require.Equal(t, "40000", string(r.Answer(3).Value))
			if name == "impatient" {
				require.Equal(t, reasonRequests, busyReason(t, r, 1))
				require.EqualValues(t, 1, s.Stats().BusyRequests)
			} else {
				free()
				r.Until("a window", func(f http2.Frame) bool {
					w, ok := f.(*http2.WindowUpdateFrame)
					return ok && w.StreamID == 1
				})
				r.Data(1, rpctest.EncodedGet(make([]byte, 1<<20))[rpc.InitialWindow:], true)
				require.Equal(t, fmt.Sprint(1<<20), string(r.Answer(1).Value))
			}
			free()
			nothingHeld(t, s)
		})
	}
}

// TestWaitingCallsThatEnd give back what they hold, and what was granted to them meanwhile.
func TestWaitingCallsThatEnd(t *testing.T) {
	s, addr, free := occupy(t, Options{MaxRecv: 2 << 20, MaxRequests: 8 << 20, MaxWait: time.Hour})
	first, second := half(t, addr, 3, 1<<20), half(t, addr, 3, 1<<20)
	require.NoError(t, first.Framer.WriteRSTStream(1, http2.ErrCodeCancel))
	first.Sync()
	require.NoError(t, second.Conn.Close())
	free()
	require.NoError(t, first.Conn.Close())
	nothingHeld(t, s)
}

// TestTooManyWaitingRequests: the queue is bounded, and a request that finds it full is refused
// with the reason.
func TestTooManyWaitingRequests(t *testing.T) {
	s, addr, _ := occupy(t, Options{MaxRecv: 20 << 20, MaxRequests: 64 << 20, MaxWait: time.Hour})
	r := half(t, addr, 3, 18<<20)
	for s.Stats().BusyRequests == 0 {
		half(t, addr, 16, 10<<20)
		require.LessOrEqual(t, s.Stats().RequestBytes, int64(64<<20))
	}
	in := s.intakes[0]
	in.mu.Lock()
	require.LessOrEqual(t, len(in.mu.waiting), maxWaiting)
	in.mu.Unlock()
	r.Call(101, []byte("k"))
	require.Equal(t, "1", string(r.Answer(101).Value))
}

// TestIntakeStress: clients that begin, break off, stand still and finish at random; nothing is
// held at the end.
func TestIntakeStress(t *testing.T) {
	s, addr := startBusy(t, Options{
		MaxRecv: 1 << 20, MaxRequests: 2 << 20, MaxStreamWindows: 1, Stall: 300 * time.Millisecond,
		MaxWait: 300 * time.Millisecond,
	}, &rpctest.KV{})
	var g rpctest.Group
	for i := range 8 {
		rnd := rand.New(rand.NewPCG(uint64(i), 1))
		c := tinykvpb.NewTinyKvClient(func() *client.Client {
			c := client.New(addr, client.Options{Checksum: i%2 == 0})
			t.Cleanup(func() { _ = c.Close() })
			return c
		}())
		g.Go(func() error {
			for range 60 {
				key := make([]byte, rnd.IntN(900<<10))
				ctx, cancel := context.WithTimeout(t.Context(),
					time.Duration(rnd.IntN(30)+1)*time.Millisecond)
				if rnd.IntN(2) == 0 {
					_, _ = c.RawGet(ctx, &kvrpcpb.RawGetRequest{Key: key})
				} else if st, err := c.BatchCommands(ctx); err == nil {
					for range rnd.IntN(4) {
						_ = st.SendMsg(&kvrpcpb.RawGetRequest{Key: key})
					}
					_ = st.RecvMsg(new(kvrpcpb.RawGetResponse))
				}
				cancel()
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	nothingHeld(t, s)
	c := rpctest.DialKV(t, addr)
	resp, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: make([]byte, 1<<19)})
	require.NoError(t, err)
	require.Len(t, resp.Value, 1<<19)
	require.Zero(t, s.windows[0].Used())
}

// TestStreamsShareTheRoom: messages that are larger than the window, sent one behind the other on
// streams whose windows are small, all arrive, whatever must wait for others or for the handler.
func TestStreamsShareTheRoom(t *testing.T) {
	s, addr := startBusy(t,
		Options{MaxRecv: 400 << 10, MaxRequests: 1 << 20, MaxStreamWindows: 1, MaxWait: time.Hour},
		&rpctest.KV{})
	var g rpctest.Group
	for i := range 6 {
		rnd := rand.New(rand.NewPCG(uint64(i), 2))
		c := client.New(addr, client.Options{Checksum: true})
		t.Cleanup(func() { _ = c.Close() })
		sizes := make([]int, 60)
		for j := range sizes {
			sizes[j] = rnd.IntN([]int{100, 70_000, 390_000}[rnd.IntN(3)])
		}
		st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(rpctest.Within(t))
		require.NoError(t, err)
		g.Go(func() error {
			for _, n := range sizes {
				if err := st.SendMsg(&kvrpcpb.RawGetRequest{Key: make([]byte, n)}); err != nil {
					return err
				}
			}
			return st.CloseSend()
		})
		g.Go(func() error {
			for _, n := range sizes {
				resp := new(kvrpcpb.RawGetResponse)
				if err := st.RecvMsg(resp); err != nil || len(resp.Value) != n {
					return fmt.Errorf("%d bytes, got %d: %w", n, len(resp.Value), err)
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	nothingHeld(t, s)
}

// TestLateHandlerIsNoStall: a message that has no window because the handler has not taken those
// before it is not given up, however long that takes.
func TestLateHandlerIsNoStall(t *testing.T) {
	take := make(chan struct{})
	s, addr := startBusy(t, Options{MaxStreamWindows: 1},
		&rpctest.KV{Stream: func(st grpc.ServerStream) error {
			select {
			case <-take:
			case <-st.Context().Done():
			}
			for {
				req := new(kvrpcpb.RawGetRequest)
				if err := st.RecvMsg(req); err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
				if err := st.SendMsg(&kvrpcpb.RawGetResponse{
					Value: fmt.Append(nil, len(req.Key)),
				}); err != nil {
					return err
				}
			}
		}})
	st, err := rpctest.DialKV(t, addr).BatchCommands(rpctest.Within(t))
	require.NoError(t, err)
	var g rpctest.Group
	g.Go(func() error {
		for _, n := range []int{20_000, 300_000} {
			if err := st.SendMsg(&kvrpcpb.RawGetRequest{Key: make([]byte, n)}); err != nil {
				return err
			}
		}
		return st.CloseSend()
	})
	in := s.intakes[0]
	require.Eventually(t, func() bool {
		in.mu.Lock()
		defer in.mu.Unlock()
		for cl := range in.mu.live {
			return cl.got.Load() > 40_000 // its window is used up
		}
		return false
	}, rpctest.Patience, time.Millisecond)
	in.look(time.Now().Add(time.Hour))
	require.Zero(t, s.Stats().StalledRequests)
	close(take)
	for _, n := range []int{20_000, 300_000} {
		resp := new(kvrpcpb.RawGetResponse)
		require.NoError(t, st.RecvMsg(resp))
		require.Equal(t, fmt.Sprint(n), string(resp.Value))
	}
	require.NoError(t, g.Wait())
	nothingHeld(t, s)
}

// TestRequestsOfOneConnectionShareItsWay: while one of them comes, another one is not given up;
// when none does, all are.
func TestRequestsOfOneConnectionShareItsWay(t *testing.T) {
	s, addr := startBusy(t, Options{Stall: time.Hour, MinPing: 1}, &rpctest.KV{Get: sizeOf})
	r := half(t, addr, 2, 1<<20)
	in := s.intakes[0]
	now := time.Now()
	for range 5 {
		r.Data(1, make([]byte, 1000), false)
		r.Sync()
		now = now.Add(40 * time.Minute)
		in.mu.Lock()
		for cl := range in.mu.live {
			cl.began = now // the time for all of a message is not what is tested
		}
		in.mu.Unlock()
		in.look(now)
		require.Zero(t, s.Stats().StalledRequests)
	}
	in.look(now.Add(2 * time.Hour))
	require.EqualValues(t, 2, s.Stats().StalledRequests)
	require.Equal(t, reasonStalled, busyReason(t, r, 3))
	nothingHeld(t, s)
}
