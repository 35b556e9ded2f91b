package server

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// stopping starts GracefulStop and returns when all connections know; the channel is closed when it
// has returned.
func stopping(t *testing.T, s *Server) <-chan struct{} {
	conns := s.allConns()
	done := make(chan struct{})
	go func() { defer close(done); s.GracefulStop() }()
	require.Eventually(t, func() bool {
		for _, c := range conns {
			c.mu.Lock()
			ok := c.mu.drained
			c.mu.Unlock()
			if !ok {
				return false
			}
		}
		return s.isStopped()
	}, rpctest.Patience, time.Millisecond)
	return done
}

// TestGracefulStop: calls under way end as they would have, new ones are refused.
func TestGracefulStop(t *testing.T) {
	g := newGate()
	began := make(chan *Call, 1)
	s, addr := start(t, Options{}, &rpctest.KV{Get: g.get}, func(call *Call, request []byte) bool {
		if string(request) != string(rpctest.EncodedGet([]byte("later"))[rpc.PrefixSize:]) {
			return false
		}
		began <- call
		return true
	})
	c := rpctest.DialKV(t, addr)
	st, err := c.BatchCommands(rpctest.Within(t))
	require.NoError(t, err)
	require.NoError(t, st.SendMsg(&kvrpcpb.RawGetRequest{Key: []byte("1")}))
	require.NoError(t, st.RecvMsg(new(kvrpcpb.RawGetResponse)))
	var calls rpctest.Group
	for _, key := range []string{"wait", "later"} {
		calls.Go(func() error {
			_, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte(key)})
			return err
		})
	}
	late := rpctest.Wait(t, began, "the inline call")
	require.Eventually(t, func() bool {
		return g.running.Load() == 1
	}, rpctest.Patience, time.Millisecond)
	done := stopping(t, s)
	_, err = net.Dial("tcp", addr)
	require.Error(t, err)
	require.Eventually(t, func() bool {
		_, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{Key: []byte("new")})
		return status.Code(err) == codes.Unavailable
	}, rpctest.Patience, time.Millisecond, "new calls are refused")

	require.NoError(t, st.SendMsg(&kvrpcpb.RawGetRequest{Key: []byte("2")}))
	resp := new(kvrpcpb.RawGetResponse)
	require.NoError(t, st.RecvMsg(resp))
	require.Equal(t, "2", string(resp.Value))
	select {
	case <-done:
		require.FailNow(t, "GracefulStop did not wait")
	default:
	}
	close(g.open)
	late.Reply(&kvrpcpb.RawGetResponse{})
	require.NoError(t, calls.Wait())
	require.NoError(t, st.CloseSend())
	require.Equal(t, io.EOF, st.RecvMsg(resp))
	rpctest.Wait(t, done, "GracefulStop")
}

// TestGracefulStopLosesNoAnswer: whatever a server took, it answers; what it refuses may be sent
// elsewhere.
func TestGracefulStopLosesNoAnswer(t *testing.T) {
	for range 20 {
		half := func(call *Call, request []byte) bool {
			return len(request)%2 == 0 && echoInline(call, request)
		}
		s, addr := start(t, Options{}, &rpctest.KV{}, half)
		var g rpctest.Group
		var begun sync.WaitGroup
		for range 2 {
			c := rpctest.DialKV(t, addr)
			for worker := range 4 {
				begun.Add(1)
				g.Go(func() error {
					for i := 0; ; i++ {
						_, err := c.RawGet(rpctest.Within(t),
							&kvrpcpb.RawGetRequest{Key: make([]byte, i*worker*100%5000)})
						if i == 5 {
							begun.Done()
						}
						switch {
						case err == nil:
						case status.Code(err) != codes.Unavailable:
							return err
						case !refused(err):
							return err
						default:
							return nil
						}
					}
				})
			}
		}
		begun.Wait()
		rpctest.Returns(t, "GracefulStop", s.GracefulStop)
		require.NoError(t, g.Wait())
	}
}

// refused tells that a call was not begun: there was no connection to begin it on.
func refused(err error) bool {
	m := status.Convert(err).Message()
	for _, part := range []string{
		"connection refused", "the connection is draining", "connection error", "closing",
	} {
		if strings.Contains(m, part) {
			return true
		}
	}
	return false
}

// TestGracefulStopTakesWhatIsOnItsWay: between the two GOAWAYs calls are served.
func TestGracefulStopTakesWhatIsOnItsWay(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	r.Works(1, "before")
	done := stopping(t, s)
	isGoAway := func(f http2.Frame) bool { _, ok := f.(*http2.GoAwayFrame); return ok }
	require.EqualValues(t, forever, r.Until("GOAWAY", isGoAway).(*http2.GoAwayFrame).LastStreamID)
	ping := r.Until("a ping", func(f http2.Frame) bool {
		_, ok := f.(*http2.PingFrame)
		return ok
	}).(*http2.PingFrame)
	require.Equal(t, drainPing, ping.Data)
	r.Open(5, rpctest.GetPath, false)
	r.Works(3+4, "on its way")
	require.NoError(t, r.Framer.WritePing(true, drainPing))
	require.EqualValues(t, 7, r.Until("GOAWAY", isGoAway).(*http2.GoAwayFrame).LastStreamID)
	r.Open(9, rpctest.GetPath, false)
	require.Equal(t, http2.ErrCodeRefusedStream, r.Answer(9).Code)
	r.Data(5, rpctest.EncodedGet([]byte("late")), true)
	require.Equal(t, "late", string(r.Answer(5).Value))
	r.Closed()
	_ = r.Conn.Close()
	rpctest.Wait(t, done, "GracefulStop")
}

// TestGracefulStopDuringTheHandshake: a client gets its SETTINGS before it is sent away.
func TestGracefulStopDuringTheHandshake(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{}, nil)
	r := rpctest.DialRaw(t, addr)
	only(t, s)
	done := stopping(t, s)
	r.Write([]byte(rpc.Preface))
	require.NoError(t, r.Framer.WriteSettings())
	r.Call(1, []byte("k"))
	f, err := r.Next()
	require.NoError(t, err)
	require.IsType(t, new(http2.SettingsFrame), f)
	require.NoError(t, r.Framer.WritePing(true, drainPing))
	require.Equal(t, "k", string(r.Answer(1).Value))
	r.Closed()
	_ = r.Conn.Close()
	rpctest.Wait(t, done, "GracefulStop")
}

// TestGracefulStopOfStubbornClients: those who do not answer its ping, or do not go but keep
// talking.
func TestGracefulStopOfStubbornClients(t *testing.T) {
	for name, ack := range map[string]bool{"no answer to the ping": false, "does not close": true} {
		t.Run(name, func(t *testing.T) {
			s, addr := start(t, Options{KeepAliveTimeout: 50 * time.Millisecond}, &rpctest.KV{},
				nil)
			r := rpctest.Greet(t, addr)
			r.Works(1, "k")
			done := stopping(t, s)
			if ack {
				require.NoError(t, r.Framer.WritePing(true, drainPing))
			}
			talk := make(chan struct{})
			go func() {
				defer close(talk)
				tick := time.NewTicker(time.Millisecond) // endless talk, but not a flood
				defer tick.Stop()
				for range tick.C {
					if r.Framer.WritePriority(1, http2.PriorityParam{Weight: 1}) != nil {
						return
					}
				}
			}()
			rpctest.Wait(t, done, "GracefulStop")
			rpctest.Wait(t, talk, "the client")
		})
	}
}

// TestStop cancels the handlers, waits for them, and leaves nothing.
func TestStop(t *testing.T) {
	began, ended := make(chan struct{}, 8), make(chan error, 8)
	until := func(ctx context.Context) {
		began <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
	}
	s, addr := start(t, Options{}, &rpctest.KV{
		Get: func(ctx context.Context, _ *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error) {
			until(ctx)
			return nil, ctx.Err()
		},
		Stream: func(st grpc.ServerStream) error { until(st.Context()); return st.Context().Err() },
	}, nil)
	c := rpctest.DialKV(t, addr)
	_, err := c.BatchCommands(rpctest.Within(t))
	require.NoError(t, err)
	var g rpctest.Group
	g.Go(func() error {
		_, err := c.RawGet(rpctest.Within(t), &kvrpcpb.RawGetRequest{})
		if status.Code(err) != codes.Unavailable {
			return err
		}
		return nil
	})
	rpctest.Wait(t, began, "a handler")
	rpctest.Wait(t, began, "a handler")
	conn := only(t, s)
	rpctest.Returns(t, "Stop", s.Stop)
	require.Len(t, ended, 2)
	require.ErrorIs(t, <-ended, context.Canceled)
	require.NoError(t, g.Wait())
	active, streams := conn.counts()
	require.Zero(t, active)
	require.Zero(t, streams)
}

// TestStopOfHalfCalls: calls whose requests never came leave no trace either.
func TestStopOfHalfCalls(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	r.Open(1, rpctest.GetPath, false)
	r.Sync()
	conn := only(t, s)
	rpctest.Returns(t, "Stop", s.Stop)
	active, streams := conn.counts()
	require.Zero(t, active)
	require.Zero(t, streams)
}

// TestStopWhileCallsBegin is for the race detector.
func TestStopWhileCallsBegin(t *testing.T) {
	for range 30 {
		later := make(chan *Call, 1000)
		s, addr := start(t, Options{}, &rpctest.KV{}, func(call *Call, request []byte) bool {
			select {
			case later <- call:
				return true
			default:
				return false
			}
		})
		r := rpctest.Greet(t, addr)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for id := uint32(1); id < 1000; id += 4 {
				if r.Framer.WriteHeaders(http2.HeadersFrameParam{
					StreamID: id, BlockFragment: r.Block(rpctest.StreamPath), EndHeaders: true,
				}) != nil {
					return
				}
				_ = r.Framer.WriteHeaders(http2.HeadersFrameParam{
					StreamID: id + 2, BlockFragment: r.Block(rpctest.GetPath), EndHeaders: true,
				})
				_ = r.Framer.WriteData(id+2, true, []byte{0, 0, 0, 0, 0})
			}
		}()
		first := rpctest.Wait(t, later, "a call")
		conn := only(t, s)
		var g sync.WaitGroup
		g.Go(s.Stop)
		g.Go(func() { first.Reply(&kvrpcpb.RawGetResponse{}) })
		g.Wait()
		rpctest.Wait(t, done, "the client")
		close(later)
		for call := range later {
			call.Fail(errors.New("late"))
		}
		active, streams := conn.counts()
		require.Zero(t, active)
		require.Zero(t, streams)
	}
}

// TestStopsTogether: Stop and GracefulStop, several times and at once, before and after Serve.
func TestStopsTogether(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{Stream: func(st grpc.ServerStream) error {
		<-st.Context().Done()
		return st.Context().Err()
	}}, nil)
	c := rpctest.DialKV(t, addr)
	st, err := c.BatchCommands(rpctest.Within(t))
	require.NoError(t, err)
	require.NoError(t, st.SendMsg(&kvrpcpb.RawGetRequest{}))
	only(t, s)
	var g sync.WaitGroup
	for range 3 {
		g.Go(s.GracefulStop)
		g.Go(s.Stop)
	}
	rpctest.Returns(t, "the stops", g.Wait)
	s.Stop()
	s.GracefulStop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.ErrorIs(t, s.Serve(l), ErrStopped)
	_, err = net.Dial("tcp", l.Addr().String())
	require.Error(t, err, "Serve closes the listener")
}

func TestRegistration(t *testing.T) {
	s := New(Options{})
	require.Panics(t, func() {
		tinykvpb.RegisterTinyKvServer(s, nil)
		s.RegisterService(&grpc.ServiceDesc{
			ServiceName: "tinykvpb.TinyKv", HandlerType: (*any)(nil),
		}, nil)
	})
	require.Panics(t, func() { s.HandleInline("/nothing", nil) })
	require.Panics(t, func() { s.HandleInline(rpctest.StreamPath, nil) }, "a stream")
	require.Panics(t, func() {
		s.RegisterService(&grpc.ServiceDesc{ServiceName: "x", HandlerType: (*error)(nil)}, 1)
	})
	other := grpc.NewServer()
	tinykvpb.RegisterTinyKvServer(other, &rpctest.KV{})
	require.ElementsMatch(t, other.GetServiceInfo()["tinykvpb.TinyKv"].Methods,
		s.GetServiceInfo()["tinykvpb.TinyKv"].Methods)
	s.Stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.ErrorIs(t, s.Serve(l), ErrStopped)
	require.Panics(t, func() { s.HandleInline(rpctest.GetPath, nil) }, "too late")
}

// TestGracefulStopWithASlowReader: what the client still says while the last answers are on their
// way does not cut them off.
func TestGracefulStopWithASlowReader(t *testing.T) {
	const size = 200_000
	s, addr := start(t, Options{}, &rpctest.KV{}, func(call *Call, _ []byte) bool {
		call.Reply(&kvrpcpb.RawGetResponse{Value: make([]byte, size)})
		return true
	})
	r := rpctest.Greet(t, addr, rpctest.Initial(rpc.MaxWindow))
	require.NoError(t, r.Conn.(*net.TCPConn).SetReadBuffer(32<<10))
	require.NoError(t, r.Framer.WriteWindowUpdate(0, rpc.MaxWindow-rpc.InitialWindow))
	r.Sync()
	c := only(t, s)
	require.NoError(t, c.nc.(*net.TCPConn).SetWriteBuffer(1<<20))
	r.Call(1, nil)
	require.Eventually(t, func() bool {
		return c.keep.Count() >= 5
	}, rpctest.Patience, time.Millisecond)
	done := stopping(t, s)
	require.NoError(t, r.Framer.WritePing(true, drainPing))
	require.Eventually(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.mu.endBy.IsZero()
	}, rpctest.Patience, time.Millisecond)
	for range 10 {
		n := c.keep.Count()
		// asks for an answer, but there is none any more
		require.NoError(t, r.Framer.WriteSettings())
		require.Eventually(t, func() bool {
			return c.keep.Count() > n
		}, rpctest.Patience, time.Millisecond)
	}
	a := r.Answer(1)
	require.Len(t, a.Value, size)
	require.Equal(t, "0", a.Status)
	r.Closed()
	_ = r.Conn.Close()
	rpctest.Wait(t, done, "GracefulStop")
}

// TestGoAwayBehindAnotherWrite: the reason comes after what somebody else is just writing.
func TestGoAwayBehindAnotherWrite(t *testing.T) {
	later := make(chan *Call, 1)
	s, _ := start(t, Options{}, &rpctest.KV{}, func(call *Call, _ []byte) bool {
		later <- call
		return true
	})
	client, server := net.Pipe() // nothing is written before it is read
	s.start(server)
	r := rpctest.NewRaw(t, client)
	r.Write([]byte(rpc.Preface))
	var g rpctest.Group
	g.Go(func() error { return r.Framer.WriteSettings() })
	r.Until("SETTINGS", func(f http2.Frame) bool {
		s, ok := f.(*http2.SettingsFrame)
		return ok && s.IsAck()
	})
	require.NoError(t, g.Wait())
	r.Call(1, []byte("k"))
	call := rpctest.Wait(t, later, "a call")
	c := only(t, s)
	locked := func(f func() bool) func() bool {
		return func() bool { c.mu.Lock(); defer c.mu.Unlock(); return f() }
	}
	// Only when the reader waits for more does the writer write.
	require.Eventually(t, locked(func() bool { return !c.mu.reading }), rpctest.Patience,
		time.Millisecond)
	call.Reply(value("k"))
	require.Eventually(t, locked(func() bool { return c.mu.writing }), rpctest.Patience,
		time.Millisecond)
	r.Open(2, rpctest.GetPath, true)
	require.Eventually(t, locked(func() bool { return c.mu.out.Size > 0 || c.mu.closed != nil }),
		rpctest.Patience, time.Millisecond)
	require.Equal(t, "k", string(r.Answer(1).Value))
	require.Equal(t, http2.ErrCodeProtocol, r.GoAway().ErrCode)
}
