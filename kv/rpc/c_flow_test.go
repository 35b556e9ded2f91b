package rpc

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

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// TestClientTinyWindows: requests come in as many pieces as the server's window asks for, none before there is one.
func TestClientTinyWindows(t *testing.T) {
	for _, window := range []uint32{0, 1, 10} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			l := listen(t)
			c := client(t, l.addr(), ClientOptions{})
			key := "0123456789abcdefghijklmnopqrstuvwxyz"
			res := get(within(t), c, []byte(key))
			p := l.greeted(initial(window))
			id := p.opened().StreamID
			if window == 0 {
				p.dataOf(id, 0)
				require.NoError(t, p.fr.WriteWindowUpdate(id, 1))
			}
			var body []byte
			p.until("the request", func(f http2.Frame) bool {
				d, ok := f.(*http2.DataFrame)
				if !ok {
					return false
				}
				require.LessOrEqual(t, len(d.Data()), int(max(window, 1)))
				body = append(body, d.Data()...)
				if !d.StreamEnded() {
					require.NoError(t, p.fr.WriteWindowUpdate(id, uint32(len(d.Data()))))
				}
				return d.StreamEnded()
			})
			require.Equal(t, message5([]byte(key)), body)
			p.reply(id, "v")
			require.NoError(t, wait(t, res, "the answer").err)
		})
	}
}

// TestClientWindowsChangeDuringACall also to below zero.
func TestClientWindowsChangeDuringACall(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	res := get(within(t), c, make([]byte, 1000))
	p := l.greeted(initial(100))
	id := p.opened().StreamID
	p.dataOf(id, 100)
	require.NoError(t, p.fr.WriteSettings(initial(150)))
	p.dataOf(id, 50)
	require.NoError(t, p.fr.WriteSettings(initial(50))) // 100 below zero
	require.NoError(t, p.fr.WriteWindowUpdate(id, 100)) // zero
	p.dataOf(id, 0)
	require.NoError(t, p.fr.WriteWindowUpdate(id, 7))
	p.dataOf(id, 7)
	require.NoError(t, p.fr.WriteSettings(initial(60)))
	p.dataOf(id, 10)
	require.NoError(t, p.fr.WriteSettings(initial(10000)))
	p.until("the end", func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && d.StreamEnded() })
	p.reply(id, "v")
	require.NoError(t, wait(t, res, "the answer").err)
}

// TestClientConnectionWindow: all calls share it, and none is forgotten. A call that has no window of its own does not
// hold up others.
func TestClientConnectionWindow(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	big := get(within(t), c, bytes.Repeat([]byte{'b'}, 100_000)) // more than the connection's window
	p := l.greeted(initial(1 << 20))
	id := p.opened().StreamID
	p.dataOf(id, initialWindow)
	small := get(within(t), c, []byte("small"))
	sid := p.opened().StreamID
	p.dataOf(sid, 0)
	require.NoError(t, p.fr.WriteWindowUpdate(0, 1<<20))
	ended := map[uint32]bool{}
	p.until("both requests", func(f http2.Frame) bool {
		if d, ok := f.(*http2.DataFrame); ok && d.StreamEnded() {
			ended[d.StreamID] = true
		}
		return len(ended) == 2
	})
	p.reply(sid, "s")
	require.Equal(t, "s", string(wait(t, small, "the small call").value))
	p.reply(id, "b")
	require.Equal(t, "b", string(wait(t, big, "the big call").value))

	require.NoError(t, p.fr.WriteSettings(initial(10)))
	p.sync()
	stuck := get(within(t), c, make([]byte, 1000))
	stuckID := p.opened().StreamID
	p.dataOf(stuckID, 10)
	works(p, c, "x")
	require.NoError(t, p.fr.WriteWindowUpdate(stuckID, 1000))
	p.until("the end", func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && d.StreamEnded() })
	p.reply(stuckID, "")
	require.NoError(t, wait(t, stuck, "the call").err)
}

func TestClientMaxFrameSize(t *testing.T) {
	const most = 1 << 20
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	res := get(within(t), c, make([]byte, most+100))
	p := l.greeted(initial(4<<20), http2.Setting{ID: http2.SettingMaxFrameSize, Val: most})
	require.NoError(t, p.fr.WriteWindowUpdate(0, 4<<20))
	p.fr.SetMaxReadFrameSize(most)
	id, largest := p.opened().StreamID, 0
	p.until("the request", func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		if ok {
			largest = max(largest, len(d.Data()))
		}
		return ok && d.StreamEnded()
	})
	require.GreaterOrEqual(t, largest, initialWindow)
	p.reply(id, "v")
	require.NoError(t, wait(t, res, "the answer").err)
}

// TestClientLargeMessages: many times the windows, both ways.
func TestClientLargeMessages(t *testing.T) {
	const size = 8 << 20
	kvServers(t, &kv{}, func(t *testing.T, addr string) {
		c := client(t, addr, ClientOptions{MaxRecv: 16 << 20, MaxSend: 16 << 20, StreamWindow: initialWindow, ConnWindow: initialWindow})
		key := bytes.Repeat([]byte("k"), size)
		r := wait(t, get(within(t), c, key), "the answer")
		require.NoError(t, r.err)
		require.True(t, bytes.Equal(key, r.value))
	})
}

// TestClientBackpressure: a receiver that takes nothing bounds what the server can send, and holds up nobody else.
func TestClientBackpressure(t *testing.T) {
	const size, window, messages = 10_000, 65535, 100
	sent := make(chan int, messages)
	_, addr := startC(t, Options{}, &kv{stream: func(st grpc.ServerStream) error {
		for i := range messages {
			if err := st.SendMsg(&kvrpcpb.RawGetResponse{Value: bytes.Repeat([]byte{byte(i)}, size)}); err != nil {
				return err
			}
			sent <- i
		}
		return nil
	}}, echoInlineC)
	c := client(t, addr, ClientOptions{StreamWindow: window})
	st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(within(t))
	require.NoError(t, err)
	for range window / (size + 10) {
		wait(t, sent, "a message within the window")
	}
	for range 50 {
		r := wait(t, get(within(t), c, []byte("k")), "another call")
		require.NoError(t, r.err)
	}
	require.LessOrEqual(t, len(sent), 1, "sent beyond the window")
	_, queued, _ := ClientStreamOf(st.Context()).in.queued()
	require.LessOrEqual(t, queued, window)
	for i := range messages {
		resp := new(kvrpcpb.RawGetResponse)
		require.NoError(t, st.RecvMsg(resp))
		require.Equal(t, bytes.Repeat([]byte{byte(i)}, size), resp.Value)
	}
	require.Equal(t, io.EOF, st.RecvMsg(new(kvrpcpb.RawGetResponse)))
}

// TestClientOnMessage: messages are seen in order, inline or by RecvMsg, and the windows are given back either way.
func TestClientOnMessage(t *testing.T) {
	const messages, size = 400, 5000 // many times the window
	_, addr := startC(t, Options{}, &kv{stream: func(st grpc.ServerStream) error {
		for i := range messages {
			if err := st.SendMsg(&kvrpcpb.RawGetResponse{Value: bytes.Repeat([]byte{byte(i)}, size)}); err != nil {
				return err
			}
		}
		return nil
	}}, nil)
	st, err := tinykvpb.NewTinyKvClient(client(t, addr, ClientOptions{StreamWindow: initialWindow})).BatchCommands(within(t))
	require.NoError(t, err)
	var seen []byte // by one of the two at a time: the race detector would tell
	ClientStreamOf(st.Context()).OnMessage(func(msg []byte) bool {
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

// TestClientOnMessageAfterTheEnd: once RecvMsg has said that the stream ended, nothing is seen any more.
func TestClientOnMessageAfterTheEnd(t *testing.T) {
	var q inbox
	q.init(1000)
	q.onMessage(func([]byte) bool { return true })
	_, _, ok, end := q.pop()
	require.False(t, ok)
	require.NoError(t, end)
	require.NotNil(t, q.inline())
	q.endRecv(io.EOF)
	_, _, _, end = q.pop()
	require.Equal(t, io.EOF, end)
	require.Nil(t, q.inline())
}

// TestClientSendWaits for a window until the stream ends, by the server, its context, or the connection; what was not
// sent is not said to be.
func TestClientSendWaits(t *testing.T) {
	for name, end := range map[string]struct {
		how  func(p *peer, id uint32, cancel func())
		code codes.Code
	}{
		"status":  {func(p *peer, id uint32, _ func()) { p.begin(id); p.headers(id, true, "grpc-status", "9") }, codes.FailedPrecondition},
		"reset":   {func(p *peer, id uint32, _ func()) { _ = p.fr.WriteRSTStream(id, http2.ErrCodeEnhanceYourCalm) }, codes.ResourceExhausted},
		"context": {func(_ *peer, _ uint32, cancel func()) { cancel() }, codes.Canceled},
		"close":   {func(p *peer, _ uint32, _ func()) { _ = p.nc.Close() }, codes.Unavailable},
		"goaway":  {func(p *peer, _ uint32, _ func()) { _ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil) }, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			c := client(t, l.addr(), ClientOptions{})
			ctx, cancel := context.WithCancel(within(t))
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
			p := l.greeted(initial(10))
			id := p.opened().StreamID
			p.dataOf(id, 10)
			end.how(p, id, cancel)
			require.Equal(t, io.EOF, wait(t, sent, "SendMsg"))
			require.Equal(t, io.EOF, wait(t, sent, "SendMsg again"))
			err := wait(t, received, "RecvMsg")
			require.Equal(t, end.code, status.Code(err), err)
			require.Equal(t, name == "goaway", NotSent(err))
		})
	}
}

// TestClientMaxStreams: callers wait for their turn, until their deadlines, and nothing of them is left then.
func TestClientMaxStreams(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	limit := func(n uint32) http2.Setting {
		return http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: n}
	}
	first := get(within(t), c, []byte("1"))
	p := l.greeted(limit(1))
	id, _ := p.asked()
	for range 20 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		r := wait(t, get(ctx, c, []byte("2")), "the deadline")
		cancel()
		require.Equal(t, codes.DeadlineExceeded, status.Code(r.err))
		require.True(t, NotSent(r.err))
	}
	link := onlyLink(t, c)
	waiters := func() int {
		link.mu.Lock()
		defer link.mu.Unlock()
		return len(link.mu.waiters)
	}
	require.Zero(t, waiters())
	third := get(within(t), c, []byte("3"))
	require.Eventually(t, func() bool { return waiters() == 1 }, patience, time.Millisecond)
	p.reply(id, "to 1")
	require.Equal(t, "to 1", string(wait(t, first, "the first").value))
	id3, key := p.asked()
	require.Equal(t, "3", key)
	fourth := get(within(t), c, []byte("4"))
	require.Eventually(t, func() bool { return waiters() == 1 }, patience, time.Millisecond)
	require.NoError(t, p.fr.WriteSettings(limit(2)))
	id4, key := p.asked()
	require.Equal(t, "4", key)
	p.reply(id4, "")
	p.reply(id3, "")
	require.NoError(t, wait(t, third, "the third").err)
	require.NoError(t, wait(t, fourth, "the fourth").err)
}

// TestClientTrySend sends only what needs no waiting, in order with what SendMsg sends, and nothing of the rest.
func TestClientTrySend(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{MaxSend: 40_000})
	type opened struct {
		st  *ClientStream
		err error
	}
	res := make(chan opened, 1)
	go func() {
		s, err := tinykvpb.NewTinyKvClient(c).RaftBatch(within(t))
		if err != nil {
			res <- opened{nil, err}
			return
		}
		res <- opened{ClientStreamOf(s.Context()), nil}
	}()
	p := l.greeted(initial(100))
	id := p.opened().StreamID
	o := wait(t, res, "the stream")
	require.NoError(t, o.err)
	st := o.st
	p.sync()

	key := func(n int) *kvrpcpb.RawGetRequest { return &kvrpcpb.RawGetRequest{Key: make([]byte, n)} }
	size := func(n int) int { return prefixSize + key(n).Size() }
	require.True(t, st.TrySend(key(40)))
	p.dataOf(id, size(40))
	left := 100 - size(40)
	require.False(t, st.TrySend(key(left)), "larger than the window")
	require.True(t, st.TrySend(key(left-prefixSize-2)), "it fits exactly")
	p.dataOf(id, left)
	require.False(t, st.TrySend(key(0)), "no window")
	p.dataOf(id, 0)

	sent := make(chan error, 1)
	go func() { sent <- st.SendMsg(key(200)) }()
	require.NoError(t, p.fr.WriteWindowUpdate(id, 50))
	p.dataOf(id, 50)
	require.NoError(t, p.fr.WriteWindowUpdate(id, 10))
	p.dataOf(id, 10)
	require.False(t, st.TrySend(key(1)), "not before the rest of what is being sent")
	require.NoError(t, p.fr.WriteWindowUpdate(id, 1<<20))
	p.dataOf(id, size(200)-60)
	require.NoError(t, wait(t, sent, "the message"))
	require.True(t, st.TrySend(key(1)))
	p.dataOf(id, size(1))
	require.False(t, st.TrySend(key(chunkSize)), "too large for either")
	require.False(t, st.TrySend(key(40_000)), "larger than the limit")

	require.NoError(t, st.CloseSend())
	require.False(t, st.TrySend(key(1)), "all was sent")
	p.end(id)
	require.Error(t, st.RecvMsg(new(kvrpcpb.RawGetResponse)))
	require.False(t, st.TrySend(key(1)), "it has ended")
}

// TestClientPaddingIsGivenBack: it takes part of the windows, though nobody ever takes it.
func TestClientPaddingIsGivenBack(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{StreamWindow: initialWindow, ConnWindow: initialWindow})
	res := get(within(t), c, nil)
	p := l.greeted()
	id, _ := p.asked()
	p.begin(id)
	const frames = 1000 // a quarter of a MiB
	windows := map[uint32]int{}
	for i := range frames {
		require.NoError(t, p.fr.WriteDataPadded(id, false, nil, make([]byte, 255)))
		if i%100 == 99 {
			p.until("the window", func(f http2.Frame) bool {
				if w, ok := f.(*http2.WindowUpdateFrame); ok {
					windows[w.StreamID] += int(w.Increment)
				}
				return windows[id] == (i+1)*256
			})
		}
	}
	require.GreaterOrEqual(t, windows[0], frames*256-initialWindow/4)
	p.data(id, answer5([]byte("v")), false)
	p.end(id)
	require.Equal(t, "v", string(wait(t, res, "the answer").value))
}
