package client

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// serveAt serves k at an address that was in use before.
func serveAt(t *testing.T, addr string, k *rpctest.KV) *server.Server {
	t.Helper()
	s := server.New(server.Options{})
	tinykvpb.RegisterTinyKvServer(s, k)
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return s
}

// comesUp waits until calls succeed.
func comesUp(t *testing.T, c *Client) {
	t.Helper()
	require.Eventually(t, func() bool {
		r := <-rpctest.Get(rpctest.Within(t), c, []byte("k"))
		return r.Err == nil && string(r.Value) == "k"
	}, rpctest.Patience, time.Millisecond)
}

// TestClientOfAServerThatComesLater and goes and comes again.
func TestClientOfAServerThatComesLater(t *testing.T) {
	l := rpctest.Listen(t)
	addr := l.Address()
	require.NoError(t, l.Close())
	c := client(t, addr, Options{MaxBackoff: 30 * time.Millisecond})
	for range 2 {
		for range 100 { // most of them within the pause
			r := rpctest.Wait(t, rpctest.Get(rpctest.Within(t), c, nil), "an error")
			require.Equal(t, codes.Unavailable, status.Code(r.Err))
			require.True(t, NotSent(r.Err))
		}
		h := newHanging()
		h.Get = nil
		s := serveAt(t, addr, &h.KV)
		comesUp(t, c)
		st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(rpctest.Within(t))
		require.NoError(t, err)
		rpctest.Wait(t, h.left, "the stream's handler")
		s.Stop()
		err = st.RecvMsg(new(kvrpcpb.RawGetResponse))
		require.Equal(t, codes.Unavailable, status.Code(err), err)
		require.False(t, NotSent(err), err)
	}
}

// TestClientLosesCallsUnderWay: a call that may have been carried out is not made again.
func TestClientLosesCallsUnderWay(t *testing.T) {
	h := newHanging()
	_, addr := start(t, server.Options{}, &h.KV, nil)
	dialed := make(chan net.Conn, 1)
	c := client(t, addr, Options{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		dialed <- nc
		return nc, err
	}})
	res := rpctest.Get(context.Background(), c, nil)
	rpctest.Wait(t, h.left, "the handler")
	require.NoError(t, (<-dialed).Close())
	r := rpctest.Wait(t, res, "the call")
	require.Equal(t, codes.Unavailable, status.Code(r.Err))
	require.False(t, NotSent(r.Err))
	require.Empty(t, h.left, "it was made again")
}

// TestClientBackoff: the pause grows by half each time, up to a limit, give or take a fifth.
func TestClientBackoff(t *testing.T) {
	c := client(t, "127.0.0.1:1",
		Options{MinBackoff: 20 * time.Second, MaxBackoff: 100 * time.Second})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, want := range []float64{20, 30, 45, 67.5, 100, 100, 100} {
		c.failedLocked(io.EOF)
		require.InDelta(t, want, time.Until(c.mu.retry).Seconds(), want/5+1)
	}
}

// TestClientShortBackoff: any pause will do.
func TestClientShortBackoff(t *testing.T) {
	c := client(t, "127.0.0.1:1", Options{MinBackoff: 1, MaxBackoff: 1})
	c.mu.Lock()
	defer c.mu.Unlock()
	for range 3 {
		c.failedLocked(io.EOF)
		require.LessOrEqual(t, time.Until(c.mu.retry), time.Microsecond)
	}
}

// TestClientOutOfIDs: a connection whose numbers are used up ends with its last call; others get
// another one.
func TestClientOutOfIDs(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	first := rpctest.Get(rpctest.Within(t), c, []byte("first"))
	p := l.Greeted()
	id, _ := p.Asked()
	link := onlyLink(t, c)
	link.mu.Lock()
	link.mu.nextID = 1<<31 - 3
	link.mu.Unlock()
	works(p, c, "last")
	next := rpctest.Get(rpctest.Within(t), c, []byte("next"))
	q := l.Greeted()
	id2, key := q.Asked()
	require.Equal(t, "next", key)
	q.Reply(id2, "")
	require.NoError(t, rpctest.Wait(t, next, "the next call").Err)
	p.Reply(id, "late")
	require.Equal(t, "late", string(rpctest.Wait(t, first, "the first call").Value))
	p.Closed()
	works(q, c, "after")
}

// TestClientAttempts: callers share an attempt, and one that fails is followed by a pause.
func TestClientAttempts(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{MinBackoff: time.Hour, MaxBackoff: time.Hour})
	var all []<-chan rpctest.Result
	for range 50 {
		all = append(all, rpctest.Get(rpctest.Within(t), c, nil))
	}
	p := l.Silent()
	_ = p.Conn.Close()
	for range 50 {
		all = append(all, rpctest.Get(rpctest.Within(t), c, nil))
	}
	for _, res := range all {
		require.True(t, NotSent(rpctest.Wait(t, res, "an error").Err))
	}
	_ = l.Listener.(*net.TCPListener).SetDeadline(time.Now().Add(time.Millisecond))
	_, err := l.Accept()
	require.Error(t, err, "a second attempt")
}

// TestClientOfAConnectionThatIsSoonLost: callers must not connect again and again.
func TestClientOfAConnectionThatIsSoonLost(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{MinBackoff: time.Hour, MaxBackoff: time.Hour})
	res := rpctest.Get(rpctest.Within(t), c, nil)
	p := l.Greeted()
	p.Asked()
	_ = p.Conn.Close()
	require.False(t, NotSent(rpctest.Wait(t, res, "the call").Err))
	require.Eventually(t, func() bool {
		return len(c.allLinks()) == 0
	}, rpctest.Patience, time.Millisecond)
	r := rpctest.Wait(t, rpctest.Get(rpctest.Within(t), c, nil), "the next call")
	require.True(t, NotSent(r.Err))
	require.Contains(t, r.Err.Error(), "lost a moment ago")
}

// TestClientContextEndsDuringConnect: callers return; the attempt goes on for others.
func TestClientContextEndsDuringConnect(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{ConnectTimeout: rpctest.Patience})
	ctx, cancel := context.WithCancel(rpctest.Within(t))
	res := rpctest.Get(ctx, c, nil)
	p := l.Silent()
	cancel()
	r := rpctest.Wait(t, res, "the call")
	require.Equal(t, codes.Canceled, status.Code(r.Err))
	require.True(t, NotSent(r.Err))
	ctx, cancel = context.WithTimeout(rpctest.Within(t), time.Millisecond)
	defer cancel()
	_, err := tinykvpb.NewTinyKvClient(c).BatchCommands(ctx)
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	require.True(t, NotSent(err))
	res = rpctest.Get(rpctest.Within(t), c, []byte("k"))
	require.NoError(t, p.Framer.WriteSettings())
	id, key := p.Asked()
	require.Equal(t, "k", key)
	p.Reply(id, "v")
	require.NoError(t, rpctest.Wait(t, res, "the answer").Err)
}

// TestClientClose ends calls, streams, and an attempt to connect; twice at once.
func TestClientClose(t *testing.T) {
	closeTwice := func(c *Client) {
		rpctest.Returns(t, "Close", func() {
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() { _ = c.Close() })
			}
			wg.Wait()
		})
		r := rpctest.Wait(t, rpctest.Get(rpctest.Within(t), c, nil), "a call after Close")
		require.Equal(t, codes.Canceled, status.Code(r.Err))
		require.True(t, NotSent(r.Err))
		_, err := tinykvpb.NewTinyKvClient(c).BatchCommands(rpctest.Within(t))
		require.Equal(t, codes.Canceled, status.Code(err))
		require.Empty(t, c.allLinks())
	}
	t.Run("unused", func(*testing.T) { closeTwice(New("127.0.0.1:1", Options{})) })
	t.Run("calls", func(t *testing.T) {
		h := newHanging()
		_, addr := start(t, server.Options{}, &h.KV, nil)
		c := New(addr, Options{})
		res := rpctest.Get(context.Background(), c, nil)
		st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(context.Background())
		require.NoError(t, err)
		rpctest.Wait(t, h.left, "a handler")
		rpctest.Wait(t, h.left, "the other handler")
		closeTwice(c)
		require.Equal(t, codes.Canceled, status.Code(rpctest.Wait(t, res, "the call").Err))
		require.Equal(t, codes.Canceled, status.Code(st.RecvMsg(new(kvrpcpb.RawGetResponse))))
		require.Equal(t, io.EOF, st.SendMsg(&kvrpcpb.RawGetRequest{}))
	})
	t.Run("connecting", func(t *testing.T) {
		l := rpctest.Listen(t)
		c := New(l.Address(), Options{ConnectTimeout: time.Hour})
		res := rpctest.Get(context.Background(), c, nil)
		l.Silent()
		closeTwice(c)
		r := rpctest.Wait(t, res, "the call")
		require.Equal(t, codes.Canceled, status.Code(r.Err), r.Err)
		require.True(t, NotSent(r.Err))
	})
}

// TestClientCloseWhileCallsBegin at every moment of a connection's life.
func TestClientCloseWhileCallsBegin(t *testing.T) {
	_, addr := start(t, server.Options{}, &rpctest.KV{}, nil)
	for round := range 40 {
		c := New(addr, Options{})
		begun := make(chan struct{}, 1000)
		var g rpctest.Group
		for range 4 {
			g.Go(func() error {
				for {
					begun <- struct{}{}
					if r := <-rpctest.Get(context.Background(), c, []byte("k")); r.Err != nil {
						if status.Code(r.Err) != codes.Canceled {
							return r.Err
						}
						return nil
					}
				}
			})
		}
		for range 1 + round {
			<-begun
		}
		go func() {
			for range begun { // so that they go on
			}
		}()
		rpctest.Returns(t, "Close", func() { _ = c.Close() })
		rpctest.Returns(t, "callers", func() { require.NoError(t, g.Wait()) })
		close(begun)
	}
}

func TestClientKeepAlive(t *testing.T) {
	isPing := func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && !p.IsAck() }
	t.Run("silent", func(t *testing.T) {
		l := rpctest.Listen(t)
		c := client(t, l.Address(),
			Options{KeepAlive: 5 * time.Millisecond, KeepAliveTimeout: 5 * time.Millisecond})
		res := rpctest.Get(rpctest.Within(t), c, nil)
		p := l.Greeted()
		p.Until("a ping", isPing)
		r := rpctest.Wait(t, res, "the call")
		require.Equal(t, codes.Unavailable, status.Code(r.Err))
		require.Contains(t, r.Err.Error(), "no sign of life")
		require.False(t, NotSent(r.Err))
		p.Closed()
	})
	t.Run("silent, and reads nothing", func(t *testing.T) {
		l := rpctest.Listen(t)
		c := client(t, l.Address(),
			Options{
				KeepAlive: 50 * time.Millisecond, KeepAliveTimeout: 50 * time.Millisecond,
				MaxSend: 64 << 20,
			})
		res := rpctest.Get(rpctest.Within(t), c, make([]byte, 32<<20))
		p := l.Greeted(rpctest.Initial(rpc.MaxWindow))
		require.NoError(t, p.Framer.WriteWindowUpdate(0, rpc.MaxWindow-rpc.InitialWindow))
		require.Equal(t, codes.Unavailable, status.Code(rpctest.Wait(t, res, "the call").Err))
	})
	t.Run("alive", func(t *testing.T) {
		l := rpctest.Listen(t)
		c := client(t, l.Address(),
			Options{KeepAlive: 5 * time.Millisecond, KeepAliveTimeout: 300 * time.Millisecond})
		res := rpctest.Get(rpctest.Within(t), c, nil)
		p := l.Greeted()
		id, _ := p.Asked()
		for range 2 {
			ping := p.Until("a ping", isPing).(*http2.PingFrame)
			require.NoError(t, p.Framer.WritePing(true, ping.Data))
		}
		p.Reply(id, "late")
		require.Equal(t, "late", string(rpctest.Wait(t, res, "the answer").Value))
	})
}

// TestClientLosesNoAnswerOfGracefulStop: what the server took it answers, and what it refused was
// not sent.
func TestClientLosesNoAnswerOfGracefulStop(t *testing.T) {
	for range 10 {
		half := func(call *server.Call, request []byte) bool {
			return len(request)%2 == 0 && echoInline(call, request)
		}
		s, addr := start(t, server.Options{}, &rpctest.KV{}, half)
		c := client(t, addr, Options{})
		var g rpctest.Group
		var begun sync.WaitGroup
		for worker := range 6 {
			begun.Add(1)
			g.Go(func() error {
				for i := 0; ; i++ {
					r := <-rpctest.Get(rpctest.Within(t), c, make([]byte, i*worker*100%5000))
					if i == 5 {
						begun.Done()
					}
					if NotSent(r.Err) {
						return nil
					}
					if r.Err != nil {
						return r.Err
					}
				}
			})
		}
		begun.Wait()
		rpctest.Returns(t, "GracefulStop", s.GracefulStop)
		require.NoError(t, g.Wait())
	}
}

// TestServerThatTakesNoCalls: on a connection whose settings allow no call, one without a deadline
// does not wait for ever, and the next connection serves. A server that takes calls again keeps its
// connection, and so does one that works on an earlier call.
func TestServerThatTakesNoCalls(t *testing.T) {
	none := http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0}
	some := http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 10}
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{MinBackoff: time.Microsecond, MaxBackoff: time.Microsecond})
	c.barLimit = 20 * time.Millisecond
	res := rpctest.Get(t.Context(), c, []byte("k"))
	first := l.Greeted(none)
	p := l.Greeted(some) // the same call
	first.Closed()
	id, _ := p.Asked()
	require.NoError(t, p.Framer.WriteSettings(none))
	acks := 0
	p.Until("the settings are known", func(f http2.Frame) bool {
		if s, ok := f.(*http2.SettingsFrame); ok && s.IsAck() {
			acks++
		}
		return acks > 0
	})
	time.Sleep(3 * c.barLimit) // the limit passes
	p.Reply(id, "v")
	r := rpctest.Wait(t, res, "the call")
	require.NoError(t, r.Err)
	p.Closed() // it has no call any more, and takes none

	c = client(t, l.Address(), Options{})
	res = rpctest.Get(t.Context(), c, []byte("k"))
	p = l.Greeted(none)
	require.NoError(t, p.Framer.WriteSettings(some))
	id, _ = p.Asked()
	p.Reply(id, "v")
	r = rpctest.Wait(t, res, "the call")
	require.NoError(t, r.Err)
}
