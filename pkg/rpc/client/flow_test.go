package client

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// TestClientTinyWindows: requests come in as many pieces as the server's window asks for, none
// before there is one.
func TestClientTinyWindows(t *testing.T) {
	for _, window := range []uint32{0, 1, 10} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			l := rpctest.Listen(t)
			c := client(t, l.Address(), Options{})
			key := "0123456789abcdefghijklmnopqrstuvwxyz"
			res := rpctest.Get(rpctest.Within(t), c, []byte(key))
			p := l.Greeted(rpctest.Initial(window))
			id := p.Opened().StreamID
			if window == 0 {
				p.DataOf(id, 0)
				require.NoError(t, p.Framer.WriteWindowUpdate(id, 1))
			}
			var body []byte
			p.Until("the request", func(f http2.Frame) bool {
				d, ok := f.(*http2.DataFrame)
				if !ok {
					return false
				}
				require.LessOrEqual(t, len(d.Data()), int(max(window, 1)))
				body = append(body, d.Data()...)
				if !d.StreamEnded() {
					require.NoError(t, p.Framer.WriteWindowUpdate(id, uint32(len(d.Data()))))
				}
				return d.StreamEnded()
			})
			require.Equal(t, rpctest.EncodedGet([]byte(key)), body)
			p.Reply(id, "v")
			require.NoError(t, rpctest.Wait(t, res, "the answer").Err)
		})
	}
}

// TestClientWindowsChangeDuringACall also to below zero.
func TestClientWindowsChangeDuringACall(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	res := rpctest.Get(rpctest.Within(t), c, make([]byte, 1000))
	p := l.Greeted(rpctest.Initial(100))
	id := p.Opened().StreamID
	p.DataOf(id, 100)
	require.NoError(t, p.Framer.WriteSettings(rpctest.Initial(150)))
	p.DataOf(id, 50)
	require.NoError(t, p.Framer.WriteSettings(rpctest.Initial(50))) // 100 below zero
	require.NoError(t, p.Framer.WriteWindowUpdate(id, 100))         // zero
	p.DataOf(id, 0)
	require.NoError(t, p.Framer.WriteWindowUpdate(id, 7))
	p.DataOf(id, 7)
	require.NoError(t, p.Framer.WriteSettings(rpctest.Initial(60)))
	p.DataOf(id, 10)
	require.NoError(t, p.Framer.WriteSettings(rpctest.Initial(10000)))
	p.Until("the end", func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		return ok && d.StreamEnded()
	})
	p.Reply(id, "v")
	require.NoError(t, rpctest.Wait(t, res, "the answer").Err)
}

// TestClientConnectionWindow: all calls share it, and none is forgotten. A call that has no window
// of its own does not hold up others.
func TestClientConnectionWindow(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	// more than the connection's window
	big := rpctest.Get(rpctest.Within(t), c, bytes.Repeat([]byte{'b'}, 100_000))
	p := l.Greeted(rpctest.Initial(1 << 20))
	id := p.Opened().StreamID
	p.DataOf(id, rpc.InitialWindow)
	small := rpctest.Get(rpctest.Within(t), c, []byte("small"))
	sid := p.Opened().StreamID
	p.DataOf(sid, 0)
	require.NoError(t, p.Framer.WriteWindowUpdate(0, 1<<20))
	ended := map[uint32]bool{}
	p.Until("both requests", func(f http2.Frame) bool {
		if d, ok := f.(*http2.DataFrame); ok && d.StreamEnded() {
			ended[d.StreamID] = true
		}
		return len(ended) == 2
	})
	p.Reply(sid, "s")
	require.Equal(t, "s", string(rpctest.Wait(t, small, "the small call").Value))
	p.Reply(id, "b")
	require.Equal(t, "b", string(rpctest.Wait(t, big, "the big call").Value))

	require.NoError(t, p.Framer.WriteSettings(rpctest.Initial(10)))
	p.Sync()
	stuck := rpctest.Get(rpctest.Within(t), c, make([]byte, 1000))
	stuckID := p.Opened().StreamID
	p.DataOf(stuckID, 10)
	works(p, c, "x")
	require.NoError(t, p.Framer.WriteWindowUpdate(stuckID, 1000))
	p.Until("the end", func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		return ok && d.StreamEnded()
	})
	p.Reply(stuckID, "")
	require.NoError(t, rpctest.Wait(t, stuck, "the call").Err)
}

func TestClientMaxFrameSize(t *testing.T) {
	const most = 1 << 20
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	res := rpctest.Get(rpctest.Within(t), c, make([]byte, most+100))
	p := l.Greeted(rpctest.Initial(4<<20), http2.Setting{ID: http2.SettingMaxFrameSize, Val: most})
	require.NoError(t, p.Framer.WriteWindowUpdate(0, 4<<20))
	p.Framer.SetMaxReadFrameSize(most)
	id, largest := p.Opened().StreamID, 0
	p.Until("the request", func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		if ok {
			largest = max(largest, len(d.Data()))
		}
		return ok && d.StreamEnded()
	})
	require.GreaterOrEqual(t, largest, rpc.InitialWindow)
	p.Reply(id, "v")
	require.NoError(t, rpctest.Wait(t, res, "the answer").Err)
}

// TestClientLargeMessages: many times the windows, both ways.
func TestClientLargeMessages(t *testing.T) {
	const size = 8 << 20
	kvServers(t, &rpctest.KV{}, func(t *testing.T, addr string) {
		c := client(t, addr,
			Options{
				MaxRecv: 16 << 20, MaxSend: 16 << 20, StreamWindow: rpc.InitialWindow,
				ConnWindow: rpc.InitialWindow,
			})
		key := bytes.Repeat([]byte("k"), size)
		r := rpctest.Wait(t, rpctest.Get(rpctest.Within(t), c, key), "the answer")
		require.NoError(t, r.Err)
		require.True(t, bytes.Equal(key, r.Value))
	})
}

// TestClientBackpressure: a receiver that takes nothing bounds what the server can send, and holds
// up nobody else.
func TestClientBackpressure(t *testing.T) {
	const size, window, messages = 10_000, 65535, 100
	sent := make(chan int, messages)
	_, addr := start(t, server.Options{}, &rpctest.KV{Stream: func(st grpc.ServerStream) error {
		for i := range messages {
			if err := st.SendMsg(&kvrpcpb.RawGetResponse{
				Value: bytes.Repeat([]byte{byte(i)}, size),
			}); err != nil {
				return err
			}
			sent <- i
		}
		return nil
	}}, echoInline)
	c := client(t, addr, Options{StreamWindow: window})
	st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(rpctest.Within(t))
	require.NoError(t, err)
	for range window / (size + 10) {
		rpctest.Wait(t, sent, "a message within the window")
	}
	for range 50 {
		r := rpctest.Wait(t, rpctest.Get(rpctest.Within(t), c, []byte("k")), "another call")
		require.NoError(t, r.Err)
	}
	require.LessOrEqual(t, len(sent), 1, "sent beyond the window")
	_, queued, _ := StreamOf(st.Context()).in.Queued()
	require.LessOrEqual(t, queued, window)
	for i := range messages {
		resp := new(kvrpcpb.RawGetResponse)
		require.NoError(t, st.RecvMsg(resp))
		require.Equal(t, bytes.Repeat([]byte{byte(i)}, size), resp.Value)
	}
	require.Equal(t, io.EOF, st.RecvMsg(new(kvrpcpb.RawGetResponse)))
}

// TestClientOnMessage: messages are seen in order, inline or by RecvMsg, and the windows are given
// back either way.
func TestClientOnMessage(t *testing.T) {
	const messages, size = 400, 5000 // many times the window
	_, addr := start(t, server.Options{}, &rpctest.KV{Stream: func(st grpc.ServerStream) error {
		for i := range messages {
			if err := st.SendMsg(&kvrpcpb.RawGetResponse{
				Value: bytes.Repeat([]byte{byte(i)}, size),
			}); err != nil {
				return err
			}
		}
		return nil
	}}, nil)
	st, err := tinykvpb.NewTinyKvClient(client(t, addr,
		Options{StreamWindow: rpc.InitialWindow})).BatchCommands(rpctest.Within(t))
	require.NoError(t, err)
	var seen []byte // by one of the two at a time: the race detector would tell
	StreamOf(st.Context()).OnMessage(func(msg []byte) bool {
		resp := new(kvrpcpb.RawGetResponse)
		if len(seen)%7 == 3 || resp.Unmarshal(msg) != nil {
			return false
		}
		seen = append(seen, resp.Value[0])
		return true
	})
	for {
		resp := new(kvrpcpb.RawGetResponse)
		if err = st.RecvMsg(resp); err != nil {
			break
		}
		seen = append(seen, resp.Value[0])
	}
	require.Equal(t, io.EOF, err)
	require.Len(t, seen, messages)
	for i, b := range seen {
		require.Equal(t, byte(i), b)
	}
}

// TestClientOnMessageAfterTheEnd: once RecvMsg has said that the stream ended, nothing is seen any
// more.
func TestClientOnMessageAfterTheEnd(t *testing.T) {
	var q rpc.Inbox
	q.Init(1000)
	q.OnMessage(func([]byte) bool { return true })
	_, _, ok, end := q.Pop()
	require.False(t, ok)
	require.NoError(t, end)
	require.NotNil(t, q.Inline())
	q.EndRecv(io.EOF)
	_, _, _, end = q.Pop()
	require.Equal(t, io.EOF, end)
	require.Nil(t, q.Inline())
}

// TestClientSendWaits for a window until the stream ends, by the server, its context, or the
// connection; what was not sent is not said to be.
func TestClientSendWaits(t *testing.T) {
	for name, end := range map[string]struct {
		how  func(p *rpctest.Peer, id uint32, cancel func())
		code codes.Code
	}{
		"status": {func(p *rpctest.Peer, id uint32, _ func()) {
			p.Begin(id)
			p.Headers(id, true, "grpc-status", "9")
		}, codes.FailedPrecondition},
		"reset": {func(p *rpctest.Peer, id uint32, _ func()) {
			_ = p.Framer.WriteRSTStream(id, http2.ErrCodeEnhanceYourCalm)
		}, codes.ResourceExhausted},
		"context": {func(_ *rpctest.Peer, _ uint32, cancel func()) { cancel() }, codes.Canceled},
		"close": {func(p *rpctest.Peer, _ uint32, _ func()) {
			_ = p.Conn.Close()
		}, codes.Unavailable},
		"goaway": {func(p *rpctest.Peer, _ uint32, _ func()) {
			_ = p.Framer.WriteGoAway(0, http2.ErrCodeNo, nil)
		}, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			l := rpctest.Listen(t)
			c := client(t, l.Address(), Options{})
			ctx, cancel := context.WithCancel(rpctest.Within(t))
			defer cancel()
			sent, received := make(chan error, 2), make(chan error, 1)
			go func() {
				st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(ctx)
				if err != nil {
					sent <- err
					return
				}
				sent <- st.SendMsg(&kvrpcpb.RawGetRequest{Key: make([]byte, 1000)})
				sent <- st.SendMsg(&kvrpcpb.RawGetRequest{})
				received <- st.RecvMsg(new(kvrpcpb.RawGetResponse))
			}()
			p := l.Greeted(rpctest.Initial(10))
			id := p.Opened().StreamID
			p.DataOf(id, 10)
			end.how(p, id, cancel)
			require.Equal(t, io.EOF, rpctest.Wait(t, sent, "SendMsg"))
			require.Equal(t, io.EOF, rpctest.Wait(t, sent, "SendMsg again"))
			err := rpctest.Wait(t, received, "RecvMsg")
			require.Equal(t, end.code, status.Code(err), err)
			require.Equal(t, name == "goaway", NotSent(err))
		})
	}
}

// TestClientMaxStreams: callers wait for their turn, until their deadlines, and nothing of them is
// left then.
func TestClientMaxStreams(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	limit := func(n uint32) http2.Setting {
		return http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: n}
	}
	first := rpctest.Get(rpctest.Within(t), c, []byte("1"))
	p := l.Greeted(limit(1))
	id, _ := p.Asked()
	for range 20 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		r := rpctest.Wait(t, rpctest.Get(ctx, c, []byte("2")), "the deadline")
		cancel()
		require.Equal(t, codes.DeadlineExceeded, status.Code(r.Err))
		require.True(t, NotSent(r.Err))
	}
	link := onlyLink(t, c)
	waiters := func() int {
		link.mu.Lock()
		defer link.mu.Unlock()
		return len(link.mu.waiters)
	}
	require.Zero(t, waiters())
	third := rpctest.Get(rpctest.Within(t), c, []byte("3"))
	require.Eventually(t, func() bool { return waiters() == 1 }, rpctest.Patience, time.Millisecond)
	p.Reply(id, "to 1")
	require.Equal(t, "to 1", string(rpctest.Wait(t, first, "the first").Value))
	id3, key := p.Asked()
	require.Equal(t, "3", key)
	fourth := rpctest.Get(rpctest.Within(t), c, []byte("4"))
	require.Eventually(t, func() bool { return waiters() == 1 }, rpctest.Patience, time.Millisecond)
	require.NoError(t, p.Framer.WriteSettings(limit(2)))
	id4, key := p.Asked()
	require.Equal(t, "4", key)
	p.Reply(id4, "")
	p.Reply(id3, "")
	require.NoError(t, rpctest.Wait(t, third, "the third").Err)
	require.NoError(t, rpctest.Wait(t, fourth, "the fourth").Err)
}

// TestClientTrySend sends only what needs no waiting, in order with what SendMsg sends, and nothing
// of the rest.
func TestClientTrySend(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{MaxSend: 40_000})
	type opened struct {
		st  *Stream
		err error
	}
	res := make(chan opened, 1)
	go func() {
		s, err := tinykvpb.NewTinyKvClient(c).RaftBatch(rpctest.Within(t))
		if err != nil {
			res <- opened{nil, err}
			return
		}
		res <- opened{StreamOf(s.Context()), nil}
	}()
	p := l.Greeted(rpctest.Initial(100))
	id := p.Opened().StreamID
	o := rpctest.Wait(t, res, "the stream")
	require.NoError(t, o.err)
	st := o.st
	p.Sync()

	key := func(n int) *kvrpcpb.RawGetRequest {
		return &kvrpcpb.RawGetRequest{Key: make([]byte, n)}
	}
	size := func(n int) int { return rpc.PrefixSize + key(n).Size() }
	require.True(t, st.TrySend(key(40)))
	p.DataOf(id, size(40))
	left := 100 - size(40)
	require.False(t, st.TrySend(key(left)), "larger than the window")
	require.True(t, st.TrySend(key(left-rpc.PrefixSize-2)), "it fits exactly")
	p.DataOf(id, left)
	require.False(t, st.TrySend(key(0)), "no window")
	p.DataOf(id, 0)

	sent := make(chan error, 1)
	go func() { sent <- st.SendMsg(key(200)) }()
	require.NoError(t, p.Framer.WriteWindowUpdate(id, 50))
	p.DataOf(id, 50)
	require.NoError(t, p.Framer.WriteWindowUpdate(id, 10))
	p.DataOf(id, 10)
	require.False(t, st.TrySend(key(1)), "not before the rest of what is being sent")
	require.NoError(t, p.Framer.WriteWindowUpdate(id, 1<<20))
	p.DataOf(id, size(200)-60)
	require.NoError(t, rpctest.Wait(t, sent, "the message"))
	require.True(t, st.TrySend(key(1)))
	p.DataOf(id, size(1))
	require.False(t, st.TrySend(key(rpc.ChunkSize)), "too large for either")
	require.False(t, st.TrySend(key(40_000)), "larger than the limit")

	require.NoError(t, st.CloseSend())
	require.False(t, st.TrySend(key(1)), "all was sent")
	p.End(id)
	require.Error(t, st.RecvMsg(new(kvrpcpb.RawGetResponse)))
	require.False(t, st.TrySend(key(1)), "it has ended")
}

// TestClientPaddingIsGivenBack: it takes part of the windows, though nobody ever takes it.
func TestClientPaddingIsGivenBack(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(),
		Options{StreamWindow: rpc.InitialWindow, ConnWindow: rpc.InitialWindow})
	res := rpctest.Get(rpctest.Within(t), c, nil)
	p := l.Greeted()
	id, _ := p.Asked()
	p.Begin(id)
	const frames = 1000 // a quarter of a MiB
	windows := map[uint32]int{}
	for i := range frames {
		require.NoError(t, p.Framer.WriteDataPadded(id, false, nil, make([]byte, 255)))
		if i%100 == 99 {
			p.Until("the window", func(f http2.Frame) bool {
				if w, ok := f.(*http2.WindowUpdateFrame); ok {
					windows[w.StreamID] += int(w.Increment)
				}
				return windows[id] == (i+1)*256
			})
		}
	}
	require.GreaterOrEqual(t, windows[0], frames*256-rpc.InitialWindow/4)
	p.Data(id, rpctest.EncodedAnswer([]byte("v")), false)
	p.End(id)
	require.Equal(t, "v", string(rpctest.Wait(t, res, "the answer").Value))
}
