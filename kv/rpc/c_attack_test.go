package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"strings"
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

// TestClientOfNoServer: whatever answers that is no HTTP/2 server, callers hear of it soon, and that nothing was sent.
func TestClientOfNoServer(t *testing.T) {
	for name, say := range map[string]func(p *peer){
		"closes":   func(p *peer) { _ = p.nc.Close() },
		"HTTP/1":   func(p *peer) { p.write([]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")) },
		"garbage":  func(p *peer) { p.write(bytes.Repeat([]byte("\x00\x00\x01\xee\x00garbage"), 20)) },
		"silent":   func(*peer) {},
		"a ping":   func(p *peer) { _ = p.fr.WritePing(false, [8]byte{}) },
		"an ack":   func(p *peer) { _ = p.fr.WriteSettingsAck() },
		"trickles": func(p *peer) { p.write([]byte{0, 0}) },
		"goes away": func(p *peer) {
			_ = p.fr.WriteSettings()
			_ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			c := client(t, l.addr(), ClientOptions{ConnectTimeout: 30 * time.Millisecond, MinBackoff: time.Minute, MaxBackoff: time.Hour})
			res := get(within(t), c, nil)
			p := l.silent()
			say(p)
			for range 2 { // the second within the pause
				r := wait(t, res, "the call")
				require.Equal(t, codes.Unavailable, status.Code(r.err), r.err)
				require.True(t, NotSent(r.err), r.err)
				require.Contains(t, r.err.Error(), "error while dialing")
				res = get(within(t), c, nil)
			}
			p.closed()
			c.mu.Lock()
			failures := c.mu.failures
			c.mu.Unlock()
			require.Equal(t, 1, failures, "one attempt, one failure")
		})
	}
}

// TestClientFatalFrames: frames that break the connection end it and the call under way, which may have been carried
// out. The next call connects anew.
func TestClientFatalFrames(t *testing.T) {
	for name, say := range map[string]func(p *peer, id uint32){
		"frame too large": func(p *peer, id uint32) { p.write([]byte{1, 0, 0, 0, 0, 0, 0, 0, byte(id)}) },
		"push": func(p *peer, id uint32) {
			_ = p.fr.WritePushPromise(http2.PushPromiseParam{StreamID: id, PromiseID: 2, BlockFragment: []byte{0x88}, EndHeaders: true})
		},
		"window overflow": func(p *peer, _ uint32) { _ = p.fr.WriteWindowUpdate(0, maxWindow) },
		"settings overflow": func(p *peer, id uint32) {
			_ = p.fr.WriteWindowUpdate(id, 1<<20)
			_ = p.fr.WriteSettings(initial(maxWindow))
		},
		"window of nothing": func(p *peer, _ uint32) { _ = p.fr.WriteWindowUpdate(0, 0) },
		"header compression": func(p *peer, id uint32) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0xff, 0xff}, EndHeaders: true})
		},
		"continuation": func(p *peer, id uint32) { _ = p.fr.WriteContinuation(id, true, []byte{0x88}) },
		"torn headers": func(p *peer, id uint32) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x88}})
			_ = p.fr.WritePing(false, [8]byte{})
		},
		"padding larger than the headers": func(p *peer, id uint32) { p.write([]byte{0, 0, 2, 1, 0xc, 0, 0, 0, byte(id), 200, 0x88}) },
		"endless headers": func(p *peer, id uint32) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x88}})
			for p.fr.WriteContinuation(id, false, nil) == nil { // until the client has enough
			}
		},
		"bad settings":      func(p *peer, _ uint32) { _ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) },
		"too many settings": func(p *peer, _ uint32) { _ = p.fr.WriteSettings(make([]http2.Setting, maxSettings+1)...) },
		"an error": func(p *peer, id uint32) {
			_ = p.fr.WriteGoAway(id, http2.ErrCodeEnhanceYourCalm, []byte("too_many_pings"))
		},
		"closed": func(p *peer, _ uint32) { _ = p.nc.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			c := client(t, l.addr(), ClientOptions{ConnWindow: initialWindow, StreamWindow: 1 << 20, MaxBackoff: 1})
			res := get(within(t), c, nil)
			p := l.greeted()
			id, _ := p.asked()
			say(p, id)
			r := wait(t, res, "the call")
			require.Equal(t, codes.Unavailable, status.Code(r.err), r.err)
			require.False(t, NotSent(r.err), r.err)
			_ = p.nc.Close()
			next := make(chan result, 1)
			go func() {
				for {
					if r := <-get(within(t), c, nil); !NotSent(r.err) {
						next <- r
						return
					}
				}
			}()
			p = l.greeted()
			id, _ = p.asked()
			p.reply(id, "")
			require.NoError(t, wait(t, next, "the next call").err)
		})
	}
}

// TestClientBrokenAnswers end their call, not the connection.
func TestClientBrokenAnswers(t *testing.T) {
	answer := answer5([]byte("v"))
	for name, say := range map[string]struct {
		code codes.Code
		do   func(p *peer, id uint32)
	}{
		"data before headers": {codes.Internal, func(p *peer, id uint32) { p.data(id, answer, false) }},
		"two answers":         {codes.Internal, func(p *peer, id uint32) { p.begin(id); p.data(id, append(bytes.Clone(answer), answer...), false) }},
		"no answer":           {codes.Internal, func(p *peer, id uint32) { p.begin(id); p.end(id) }},
		"only an end": {codes.Internal, func(p *peer, id uint32) {
			p.headers(id, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "0")
		}},
		"half an answer": {codes.Internal, func(p *peer, id uint32) { p.begin(id); p.data(id, answer[:6], false); p.end(id) }},
		"nonsense":       {codes.Internal, func(p *peer, id uint32) { p.begin(id); p.data(id, []byte{0, 0, 0, 0, 1, 0xff}, false); p.end(id) }},
		"no trailers":    {codes.Internal, func(p *peer, id uint32) { p.begin(id); p.data(id, answer, true) }},
		"headers twice":  {codes.Internal, func(p *peer, id uint32) { p.begin(id); p.begin(id) }},
		"no status":      {codes.Unknown, func(p *peer, id uint32) { p.begin(id); p.data(id, answer, false); p.headers(id, true, "x", "y") }},
		"odd status":     {codes.Unknown, func(p *peer, id uint32) { p.begin(id); p.headers(id, true, "grpc-status", "-1") }},
		"unknown status": {codes.Code(77), func(p *peer, id uint32) { p.begin(id); p.headers(id, true, "grpc-status", "77") }},
		"404":            {codes.Unimplemented, func(p *peer, id uint32) { p.headers(id, true, ":status", "404") }},
		"503":            {codes.Unavailable, func(p *peer, id uint32) { p.headers(id, false, ":status", "503"); p.data(id, []byte("busy"), true) }},
		"no HTTP status": {codes.Unknown, func(p *peer, id uint32) { p.headers(id, false, "content-type", "application/grpc") }},
		"a page": {codes.Unknown, func(p *peer, id uint32) {
			p.headers(id, false, ":status", "200", "content-type", "text/html")
			p.data(id, []byte("<html>"), true)
		}},
		"unknown flag":            {codes.Internal, func(p *peer, id uint32) { p.begin(id); p.data(id, []byte{2, 0, 0, 0, 0}, false) }},
		"not said how compressed": {codes.Internal, func(p *peer, id uint32) { p.begin(id); p.data(id, []byte{1, 0, 0, 0, 0}, false); p.end(id) }},
		"compressed as nobody does": {codes.Unimplemented, func(p *peer, id uint32) {
			p.headers(id, false, ":status", "200", "content-type", "application/grpc", "grpc-encoding", "no-such")
			p.data(id, []byte{1, 0, 0, 0, 0}, false)
			p.end(id)
		}},
		"window overflow":   {codes.Internal, func(p *peer, id uint32) { _ = p.fr.WriteWindowUpdate(id, maxWindow) }},
		"too large":         {codes.ResourceExhausted, func(p *peer, id uint32) { p.begin(id); p.data(id, []byte{0, 0xff, 0, 0, 0}, false) }},
		"headers too large": {codes.ResourceExhausted, func(p *peer, id uint32) { headerBomb(p, id, false) }},
		"end too large":     {codes.ResourceExhausted, func(p *peer, id uint32) { p.begin(id); p.data(id, answer, false); headerBomb(p, id, true) }},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			c := client(t, l.addr(), ClientOptions{StreamWindow: initialWindow})
			res := get(within(t), c, nil)
			p := l.greeted()
			id, _ := p.asked()
			say.do(p, id)
			r := wait(t, res, "the call")
			require.Equal(t, say.code, status.Code(r.err), r.err)
			require.False(t, NotSent(r.err))
			works(p, c, "next")
		})
	}
}

// headerBomb is a few bytes that become many: a field of the table, again and again.
func headerBomb(p *peer, id uint32, end bool) {
	p.t.Helper()
	p.buf.Reset()
	f := []string{":status", "200", "content-type", "application/grpc", "x", strings.Repeat("x", 3000)}
	p.headers(id, end, append(f, bytesOf(2000, f[4:])...)...)
}

func bytesOf(n int, f []string) (out []string) {
	for range n {
		out = append(out, f...)
	}
	return out
}

// TestClientIgnoredFrames that say nothing about a call.
func TestClientIgnoredFrames(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	res := get(within(t), c, []byte("k"))
	p := l.greeted()
	id, _ := p.asked()
	for _, other := range []uint32{2, 4, 99} {
		p.headers(other, other == 2, ":status", "200", "x", "in the table")
		p.data(other, []byte("nobody's"), true)
		_ = p.fr.WriteWindowUpdate(other, maxWindow)
		_ = p.fr.WriteRSTStream(other, http2.ErrCodeCancel)
	}
	_ = p.fr.WriteRawFrame(77, 0xff, id, []byte("unknown"))
	_ = p.fr.WritePriority(id, http2.PriorityParam{})
	_ = p.fr.WriteSettingsAck()
	_ = p.fr.WritePing(true, [8]byte{1})
	_ = p.fr.WriteSettings(http2.Setting{ID: 0xee, Val: 1})
	p.sync()
	p.reply(id, "v")
	require.Equal(t, "v", string(wait(t, res, "the answer").value))
	p.reply(id, "twice")
	_ = p.fr.WriteRSTStream(id, http2.ErrCodeNo)
	works(p, c, "next")
}

// TestClientResets: every code has its meaning; only one says that nothing was done.
func TestClientResets(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	var p *peer
	for code, want := range map[http2.ErrCode]codes.Code{
		http2.ErrCodeNo: codes.Internal, http2.ErrCodeProtocol: codes.Internal, http2.ErrCodeInternal: codes.Internal,
		http2.ErrCodeFlowControl: codes.Internal, http2.ErrCodeCancel: codes.Canceled,
		http2.ErrCodeEnhanceYourCalm: codes.ResourceExhausted, http2.ErrCodeInadequateSecurity: codes.PermissionDenied,
		http2.ErrCode(0xffff): codes.Internal,
	} {
		res := get(within(t), c, nil)
		if p == nil {
			p = l.greeted()
		}
		id, _ := p.asked()
		require.NoError(t, p.fr.WriteRSTStream(id, code))
		r := wait(t, res, "the call")
		require.Equal(t, want, status.Code(r.err), code)
		require.False(t, NotSent(r.err))
	}
	res := get(within(t), c, []byte("again"))
	for range maxReplays {
		id, key := p.asked()
		require.Equal(t, "again", key)
		require.NoError(t, p.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream))
	}
	id, key := p.asked()
	require.Equal(t, "again", key)
	p.reply(id, "at last")
	require.Equal(t, "at last", string(wait(t, res, "the answer").value))
	res = get(within(t), c, nil)
	for range maxReplays + 1 {
		id, _ := p.asked()
		require.NoError(t, p.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream))
	}
	r := wait(t, res, "the call")
	require.Equal(t, codes.Unavailable, status.Code(r.err))
	require.True(t, NotSent(r.err))
}

// TestClientGoAway: calls that the server has not looked at are made on another connection, the others end on theirs,
// which ends then.
func TestClientGoAway(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	below := get(within(t), c, []byte("below"))
	p := l.greeted()
	id, _ := p.asked()
	above := get(within(t), c, []byte("above"))
	p.asked()
	st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(within(t))
	require.NoError(t, err)
	p.opened()
	require.NoError(t, p.fr.WriteGoAway(id, http2.ErrCodeNo, nil))
	err = st.RecvMsg(new(kvrpcpb.RawGetResponse))
	require.True(t, NotSent(err), err)
	q := l.greeted()
	id2, key := q.asked()
	require.Equal(t, "above", key)
	q.reply(id2, "to above")
	require.Equal(t, "to above", string(wait(t, above, "the call").value))
	works(q, c, "new")
	p.reply(id, "to below")
	require.Equal(t, "to below", string(wait(t, below, "the call").value))
	p.closed()
	works(q, c, "newer")
}

// TestClientGoAwayOfACallThatIsCancelled: the connection ends with its last call, however that ends.
func TestClientGoAwayOfACallThatIsCancelled(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{KeepAlive: time.Hour}) // which would end it too
	ctx, cancel := context.WithCancel(within(t))
	res := get(ctx, c, nil)
	p := l.greeted()
	id, _ := p.asked()
	require.NoError(t, p.fr.WriteGoAway(id, http2.ErrCodeNo, nil))
	p.sync()
	cancel()
	require.Equal(t, codes.Canceled, status.Code(wait(t, res, "the call").err))
	p.closed()
	require.Eventually(t, func() bool { return len(c.allLinks()) == 0 }, patience, time.Millisecond)
}

// TestClientTrickle: a server may send a byte at a time.
func TestClientTrickle(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	res := get(within(t), c, []byte("k"))
	p := l.greeted()
	id, _ := p.asked()
	var w bufferConn
	trickle := &peer{&raw{t: t, fr: http2.NewFramer(&w, nil)}}
	trickle.enc = newEncoder(&trickle.buf)
	trickle.reply(id, "a byte at a time")
	for i := range w.b {
		p.write(w.b[i : i+1])
	}
	require.Equal(t, "a byte at a time", string(wait(t, res, "the answer").value))
}

// TestClientOfAServerThatReadsNothing: callers return at their deadlines, and what they wanted does not fill the memory.
func TestClientOfAServerThatReadsNothing(t *testing.T) {
	const size, callers = 100_000, 8
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{KeepAlive: time.Hour})
	first := get(within(t), c, nil)
	p := l.greeted(initial(maxWindow))
	require.NoError(t, p.fr.WriteWindowUpdate(0, maxWindow-initialWindow))
	id, _ := p.asked()
	p.reply(id, "")
	require.NoError(t, wait(t, first, "the first call").err)
	link := onlyLink(t, c)
	var g group
	for range callers {
		g.Go(func() error { // until there is no room for its call
			for {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
				r := <-get(ctx, c, make([]byte, size))
				cancel()
				if status.Code(r.err) != codes.DeadlineExceeded {
					return r.err
				}
				if NotSent(r.err) {
					return nil
				}
			}
		})
	}
	returns(t, "callers", func() { require.NoError(t, g.Wait()) })
	link.mu.Lock()
	require.Less(t, link.mu.out.size, maxOut+callers*(size+1000))
	require.Empty(t, link.mu.calls)
	link.mu.Unlock()
	_, _ = io.CopyN(io.Discard, p.nc, 4<<20) // it reads on: the connection goes on
	go func() { _, _ = io.Copy(io.Discard, p.nc) }()
	require.Eventually(t, func() bool {
		link.mu.Lock()
		defer link.mu.Unlock()
		return link.mu.out.size == 0 && link.usable()
	}, patience, time.Millisecond)
}

// TestClientFlood: a server that asks for answers and does not read them is given up.
func TestClientFlood(t *testing.T) {
	for name, frame := range map[string][]byte{
		"pings":    {0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8},
		"settings": {0, 0, 0, 4, 0, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			c := client(t, l.addr(), ClientOptions{KeepAlive: time.Hour})
			res := get(within(t), c, nil)
			p := l.greeted()
			p.asked()
			many := bytes.Repeat(frame, 10_000)
			link := onlyLink(t, c)
			for link.usable() {
				_ = p.nc.SetWriteDeadline(time.Now().Add(patience))
				if _, err := p.nc.Write(many); err != nil {
					break
				}
			}
			require.Equal(t, codes.Unavailable, status.Code(wait(t, res, "the call").err))
		})
	}
}

// TestClientPings are answered, and settings too.
func TestClientPings(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	res := get(within(t), c, nil)
	p := l.greeted()
	p.until("an ack", func(f http2.Frame) bool { s, ok := f.(*http2.SettingsFrame); return ok && s.IsAck() })
	id, _ := p.asked()
	for i := range uint64(3) {
		var data [8]byte
		binary.BigEndian.PutUint64(data[:], i+1000)
		require.NoError(t, p.fr.WritePing(false, data))
		p.until("an answer", func(f http2.Frame) bool {
			a, ok := f.(*http2.PingFrame)
			return ok && a.IsAck() && a.Data == data
		})
	}
	p.reply(id, "")
	require.NoError(t, wait(t, res, "the call").err)
}

// TestClientEarlyAnswer: a server that answers before it has heard all gets no more.
func TestClientEarlyAnswer(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	res := get(within(t), c, make([]byte, 100_000))
	p := l.greeted()
	id := p.opened().StreamID
	p.dataOf(id, initialWindow)
	p.reply(id, "enough")
	r := wait(t, res, "the answer")
	require.NoError(t, r.err)
	require.Equal(t, "enough", string(r.value))
	require.Equal(t, http2.ErrCodeNo, p.reset(id))
	require.NoError(t, p.fr.WriteWindowUpdate(0, 100_000))
	require.NoError(t, p.fr.WriteWindowUpdate(id, 100_000))
	works(p, c, "next")
}

// TestClientOneAnswerToAStream: as with a unary call it counts only if the call has ended well.
func TestClientOneAnswerToAStream(t *testing.T) {
	answer := answer5([]byte("v"))
	for name, say := range map[string]struct {
		code codes.Code
		do   func(p *peer, id uint32)
	}{
		"well": {codes.OK, func(p *peer, id uint32) { p.reply(id, "v") }},
		"badly": {codes.Aborted, func(p *peer, id uint32) {
			p.begin(id)
			p.data(id, answer, false)
			p.headers(id, true, "grpc-status", "10")
		}},
		"two answers": {codes.Internal, func(p *peer, id uint32) { p.begin(id); p.data(id, append(bytes.Clone(answer), answer...), false) }},
		"no answer":   {codes.Internal, func(p *peer, id uint32) { p.begin(id); p.end(id) }},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			c := client(t, l.addr(), ClientOptions{})
			ended := make(chan error, 1)
			go func() {
				st, err := c.NewStream(within(t), &grpc.StreamDesc{ClientStreams: true}, "/s/collect")
				if err == nil {
					err = st.SendMsg(&kvrpcpb.RawGetRequest{})
				}
				if err == nil {
					err = st.CloseSend()
				}
				if err == nil {
					err = st.RecvMsg(new(kvrpcpb.RawGetResponse))
				}
				ended <- err
			}()
			p := l.greeted()
			id, _ := p.asked()
			say.do(p, id)
			err := wait(t, ended, "the call")
			require.Equal(t, say.code, status.Code(err), err)
			works(p, c, "next")
		})
	}
}

// lateContext is one whose timer has not fired though its deadline has passed.
type lateContext struct{ context.Context }

func (lateContext) Deadline() (time.Time, bool) { return time.Now().Add(-time.Second), true }

// TestClientCancelledAtTheDeadline: a server that cancels calls at their deadlines may be quicker than the client's timer.
func TestClientCancelledAtTheDeadline(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{})
	late := lateContext{within(t)}
	unary, stream := get(late, c, nil), make(chan error, 1)
	p := l.greeted()
	id, _ := p.asked()
	require.NoError(t, p.fr.WriteRSTStream(id, http2.ErrCodeCancel))
	require.Equal(t, codes.DeadlineExceeded, status.Code(wait(t, unary, "the call").err))
	go func() {
		st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(late)
		if err == nil {
			err = st.RecvMsg(new(kvrpcpb.RawGetResponse))
		}
		stream <- err
	}()
	require.NoError(t, p.fr.WriteRSTStream(p.opened().StreamID, http2.ErrCodeCancel))
	require.Equal(t, codes.DeadlineExceeded, status.Code(wait(t, stream, "the stream")))
}

// TestClientStreamWindow: a server that sends more than a stream's receiver allows ends the stream.
func TestClientStreamWindow(t *testing.T) {
	l := listen(t)
	c := client(t, l.addr(), ClientOptions{StreamWindow: initialWindow})
	opened := make(chan grpc.ClientStream, 1)
	go func() {
		st, _ := tinykvpb.NewTinyKvClient(c).BatchCommands(within(t))
		opened <- st
	}()
	p := l.greeted()
	id := p.opened().StreamID
	st := wait(t, opened, "the stream")
	p.begin(id)
	msg := answer5(make([]byte, 1000))
	within, beyond := initialWindow/len(msg), initialWindow/len(msg)+1
	for range beyond {
		p.data(id, msg, false)
	}
	require.Equal(t, http2.ErrCodeFlowControl, p.reset(id))
	for range within { // what came in time is delivered
		require.NoError(t, st.RecvMsg(new(kvrpcpb.RawGetResponse)))
	}
	require.Equal(t, codes.Internal, status.Code(st.RecvMsg(new(kvrpcpb.RawGetResponse))))
	works(p, c, "next")
}
