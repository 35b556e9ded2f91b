package rpc

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

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// serveAt serves k at an address that was in use before.
func serveAt(t *testing.T, addr string, k *kv) *Server {
	t.Helper()
	s := New(Options{})
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
		r := <-get(within(t), c, []byte("k"))
		return r.err == nil && string(r.value) == "k"
	}, patience, time.Millisecond)
}

// TestClientOfAServerThatComesLater and goes and comes again.
func TestClientOfAServerThatComesLater(t *testing.T) {
	l := listen(t)
	addr := l.addr()
	require.NoError(t, l.Close())
	c := client(t, addr, ClientOptions{MaxBackoff: 30 * time.Millisecond})
	for range 2 {
		for range 100 { // most of them within the pause
			r := wait(t, get(within(t), c, nil), "an error")
			require.Equal(t, codes.Unavailable, status.Code(r.err))
			require.True(t, NotSent(r.err))
		}
		h := newHanging()
		h.get = nil
		s := serveAt(t, addr, &h.kv)
		comesUp(t, c)
		st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(within(t))
		require.NoError(t, err)
		wait(t, h.left, "the stream's handler")
		s.Stop()
		err = st.RecvMsg(new(kvrpcpb.RawGetResponse))
		require.Equal(t, codes.Unavailable, status.Code(err), err)
		require.False(t, NotSent(err), err)
	}
}

// TestClientLosesCallsUnderWay: a call that may have been carried out is not made again.
func TestClientLosesCallsUnderWay(t *testing.T) {
	h := newHanging()
	_, addr := startC(t, Options{}, &h.kv, nil)
	dialed := make(chan net.Conn, 1)
	c := client(t, addr, ClientOptions{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		dialed <- nc
		return nc, err
	}})
	res := get(context.Background(), c, nil)
	wait(t, h.left, "the handler")
	require.NoError(t, (<-dialed).Close())
	r := wait(t, res, "the call")
	require.Equal(t, codes.Unavailable, status.Code(r.err))
	require.False(t, NotSent(r.err))
	require.Empty(t, h.left, "it was made again")
}

// TestClientBackoff: the pause grows by half each time, up to a limit, give or take a fifth.
func TestClientBackoff(t *testing.T) {
	c := client(t, "127.0.0.1:1", ClientOptions{MinBackoff: 20 * time.Second, MaxBackoff: 100 * time.Second})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, want := range []float64{20, 30, 45, 67.5, 100, 100, 100} {
		c.failedLocked(io.EOF)
		require.InDelta(t, want, time.Until(c.mu.retry).Seconds(), want/5+1)
	}
}

// TestClientShortBackoff: any pause will do.
func TestClientShortBackoff(t *testing.T) {
	c := client(t, "127.0.0.1:1", ClientOptions{MinBackoff: 1, MaxBackoff: 1})
	c.mu.Lock()
	defer c.mu.Unlock()
	for range 3 {
		c.failedLocked(io.EOF)
		require.LessOrEqual(t, time.Until(c.mu.retry), time.Microsecond)
	}
}

// TestClientOutOfIDs: a connection whose numbers are used up ends with its last call; others get another one.
func TestClientOutOfIDs(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	first := get(within(t), c, []byte("first"))
	p := l.greeted()
	id, _ := p.asked()
	link := onlyLink(t, c)
	link.mu.Lock()
	link.mu.nextID = 1<<31 - 3
	link.mu.Unlock()
	works(p, c, "last")
	next := get(within(t), c, []byte("next"))
	q := l.greeted()
	id2, key := q.asked()
	require.Equal(t, "next", key)
	q.reply(id2, "")
	require.NoError(t, wait(t, next, "the next call").err)
	p.reply(id, "late")
	require.Equal(t, "late", string(wait(t, first, "the first call").value))
	p.closed()
	works(q, c, "after")
}

// TestClientAttempts: callers share an attempt, and one that fails is followed by a pause.
func TestClientAttempts(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{MinBackoff: time.Hour, MaxBackoff: time.Hour})
	var all []<-chan result
	for range 50 {
		all = append(all, get(within(t), c, nil))
	}
	p := l.silent()
	_ = p.nc.Close()
	for range 50 {
		all = append(all, get(within(t), c, nil))
	}
	for _, res := range all {
		require.True(t, NotSent(wait(t, res, "an error").err))
	}
	_ = l.Listener.(*net.TCPListener).SetDeadline(time.Now().Add(time.Millisecond))
	_, err := l.Accept()
	require.Error(t, err, "a second attempt")
}

// TestClientOfAConnectionThatIsSoonLost: callers must not connect again and again.
func TestClientOfAConnectionThatIsSoonLost(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{MinBackoff: time.Hour, MaxBackoff: time.Hour})
	res := get(within(t), c, nil)
	p := l.greeted()
	p.asked()
	_ = p.nc.Close()
	require.False(t, NotSent(wait(t, res, "the call").err))
	require.Eventually(t, func() bool { return len(c.allLinks()) == 0 }, patience, time.Millisecond)
	r := wait(t, get(within(t), c, nil), "the next call")
	require.True(t, NotSent(r.err))
	require.Contains(t, r.err.Error(), "lost a moment ago")
}

// TestClientContextEndsDuringConnect: callers return; the attempt goes on for others.
func TestClientContextEndsDuringConnect(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{ConnectTimeout: patience})
	ctx, cancel := context.WithCancel(within(t))
	res := get(ctx, c, nil)
	p := l.silent()
	cancel()
	r := wait(t, res, "the call")
	require.Equal(t, codes.Canceled, status.Code(r.err))
	require.True(t, NotSent(r.err))
	ctx, cancel = context.WithTimeout(within(t), time.Millisecond)
	defer cancel()
	_, err := tinykvpb.NewTinyKvClient(c).BatchCommands(ctx)
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.True(t, NotSent(err))
	res = get(within(t), c, []byte("k"))
	require.NoError(t, p.fr.WriteSettings())
	id, key := p.asked()
	require.Equal(t, "k", key)
	p.reply(id, "v")
	require.NoError(t, wait(t, res, "the answer").err)
}

// TestClientClose ends calls, streams, and an attempt to connect; twice at once.
func TestClientClose(t *testing.T) {
	closeTwice := func(c *Client) {
		returns(t, "Close", func() {
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() { _ = c.Close() })
			}
			wg.Wait()
		})
		r := wait(t, get(within(t), c, nil), "a call after Close")
		require.Equal(t, codes.Canceled, status.Code(r.err))
		require.True(t, NotSent(r.err))
		_, err := tinykvpb.NewTinyKvClient(c).BatchCommands(within(t))
		require.Equal(t, codes.Canceled, status.Code(err))
		require.Empty(t, c.allLinks())
	}
	t.Run("unused", func(*testing.T) { closeTwice(NewClient("127.0.0.1:1", ClientOptions{})) })
	t.Run("calls", func(t *testing.T) {
		h := newHanging()
		_, addr := startC(t, Options{}, &h.kv, nil)
		c := NewClient(addr, ClientOptions{})
		res := get(context.Background(), c, nil)
		st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(context.Background())
		require.NoError(t, err)
		wait(t, h.left, "a handler")
		wait(t, h.left, "the other handler")
		closeTwice(c)
		require.Equal(t, codes.Canceled, status.Code(wait(t, res, "the call").err))
		require.Equal(t, codes.Canceled, status.Code(st.RecvMsg(new(kvrpcpb.RawGetResponse))))
		require.Equal(t, io.EOF, st.SendMsg(&kvrpcpb.RawGetRequest{}))
	})
	t.Run("connecting", func(t *testing.T) {
		l := listen(t)
		c := NewClient(l.addr(), ClientOptions{ConnectTimeout: time.Hour})
		res := get(context.Background(), c, nil)
		l.silent()
		closeTwice(c)
		r := wait(t, res, "the call")
		require.Equal(t, codes.Canceled, status.Code(r.err), r.err)
		require.True(t, NotSent(r.err))
	})
}

// TestClientCloseWhileCallsBegin at every moment of a connection's life.
func TestClientCloseWhileCallsBegin(t *testing.T) {
	_, addr := startC(t, Options{}, &kv{}, nil)
	for round := range 40 {
		c := NewClient(addr, ClientOptions{})
		begun := make(chan struct{}, 1000)
		var g group
		for range 4 {
			g.Go(func() error {
				for {
					begun <- struct{}{}
					if r := <-get(context.Background(), c, []byte("k")); r.err != nil {
						if status.Code(r.err) != codes.Canceled {
							return r.err
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
		returns(t, "Close", func() { _ = c.Close() })
		returns(t, "callers", func() { require.NoError(t, g.Wait()) })
		close(begun)
	}
}

func TestClientKeepAlive(t *testing.T) {
	isPing := func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && !p.IsAck() }
	t.Run("silent", func(t *testing.T) {
		l := listen(t)
		c := client(t, l.addr(), ClientOptions{KeepAlive: 5 * time.Millisecond, KeepAliveTimeout: 5 * time.Millisecond})
		res := get(within(t), c, nil)
		p := l.greeted()
		p.until("a ping", isPing)
		r := wait(t, res, "the call")
		require.Equal(t, codes.Unavailable, status.Code(r.err))
		require.Contains(t, r.err.Error(), "no sign of life")
		require.False(t, NotSent(r.err))
		p.closed()
	})
	t.Run("silent, and reads nothing", func(t *testing.T) {
		l := listen(t)
		c := client(t, l.addr(), ClientOptions{KeepAlive: 50 * time.Millisecond, KeepAliveTimeout: 50 * time.Millisecond, MaxSend: 64 << 20})
		res := get(within(t), c, make([]byte, 32<<20))
		p := l.greeted(initial(maxWindow))
		require.NoError(t, p.fr.WriteWindowUpdate(0, maxWindow-initialWindow))
		require.Equal(t, codes.Unavailable, status.Code(wait(t, res, "the call").err))
	})
	t.Run("alive", func(t *testing.T) {
		l := listen(t)
		c := client(t, l.addr(), ClientOptions{KeepAlive: 5 * time.Millisecond, KeepAliveTimeout: 300 * time.Millisecond})
		res := get(within(t), c, nil)
		p := l.greeted()
		id, _ := p.asked()
		for range 2 {
			ping := p.until("a ping", isPing).(*http2.PingFrame)
			require.NoError(t, p.fr.WritePing(true, ping.Data))
		}
		p.reply(id, "late")
		require.Equal(t, "late", string(wait(t, res, "the answer").value))
	})
}

// TestClientLosesNoAnswerOfGracefulStop: what the server took it answers, and what it refused was not sent.
func TestClientLosesNoAnswerOfGracefulStop(t *testing.T) {
	for range 10 {
		half := func(call *Call, request []byte) bool { return len(request)%2 == 0 && echoInlineC(call, request) }
		s, addr := startC(t, Options{}, &kv{}, half)
		c := client(t, addr, ClientOptions{})
		var g group
		var begun sync.WaitGroup
		for worker := range 6 {
			begun.Add(1)
			g.Go(func() error {
				for i := 0; ; i++ {
					r := <-get(within(t), c, make([]byte, i*worker*100%5000))
					if i == 5 {
						begun.Done()
					}
					if NotSent(r.err) {
						return nil
					}
					if r.err != nil {
						return r.err
					}
				}
			})
		}
		begun.Wait()
		returns(t, "GracefulStop", s.GracefulStop)
		require.NoError(t, g.Wait())
	}
}
