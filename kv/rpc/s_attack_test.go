package rpc

import (
	"context"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// gate is a handler whose calls wait, whatever their client does, until the gate is opened.
type gate struct {
	open               chan struct{}
	running, most, all atomic.Int32
}

func newGate() *gate { return &gate{open: make(chan struct{})} }

func (g *gate) get(_ context.Context, req *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error) {
	if string(req.Key) == "wait" {
		n := g.running.Add(1)
		defer g.running.Add(-1)
		g.all.Add(1)
		for m := g.most.Load(); n > m && !g.most.CompareAndSwap(m, n); m = g.most.Load() {
		}
		<-g.open
	}
	return &kvrpcpb.RawGetResponse{Value: req.Key}, nil
}

// TestRapidReset: calls that are cancelled count until their handlers return (CVE-2023-44487), also if the client has
// made the server cancel them (CVE-2025-8671).
func TestRapidReset(t *testing.T) {
	for name, reset := range map[string]func(r *raw, id uint32){
		"by the client":      func(r *raw, id uint32) { _ = r.fr.WriteRSTStream(id, http2.ErrCodeCancel) },
		"window of nothing":  func(r *raw, id uint32) { _ = r.fr.WriteWindowUpdate(id, 0) },
		"window overflow":    func(r *raw, id uint32) { _ = r.fr.WriteWindowUpdate(id, maxWindow) },
		"data after the end": func(r *raw, id uint32) { _ = r.fr.WriteData(id, false, nil) },
		"depends on itself":  func(r *raw, id uint32) { _ = r.fr.WritePriority(id, http2.PriorityParam{StreamDep: id}) },
	} {
		t.Run(name, func(t *testing.T) { rapidReset(t, reset) })
	}
}

func rapidReset(t *testing.T, reset func(r *raw, id uint32)) {
	g := newGate()
	s, addr := start(t, Options{MaxStreams: 10}, &kv{get: g.get}, nil)
	r := greet(t, addr)
	refused := make(chan int, 1)
	go func() {
		n := 0
		for {
			f, err := r.next()
			if err != nil {
				return
			}
			switch f := f.(type) {
			case *http2.RSTStreamFrame:
				if f.ErrCode == http2.ErrCodeRefusedStream {
					n++
				}
			case *http2.PingFrame:
				refused <- n
			}
		}
	}()
	const calls = 1500
	for i := range uint32(calls) {
		r.call(2*i+1, []byte("wait"))
		reset(r, 2*i+1)
	}
	require.NoError(t, r.fr.WritePing(false, [8]byte{}))
	// A call that was cancelled before its handler began leaves room for another one.
	require.GreaterOrEqual(t, wait(t, refused, "the refusals"), calls/2)
	require.LessOrEqual(t, int(g.most.Load()), 10)
	greet(t, addr).works(1, "other") // another connection does not suffer
	close(g.open)
	idle(t, s)
}

// TestRapidResetOfHalfCalls: calls that will never be complete take no place.
func TestRapidResetOfHalfCalls(t *testing.T) {
	s, addr := start(t, Options{MaxStreams: 10}, &kv{}, nil)
	r := greet(t, addr)
	for i := range uint32(1000) {
		r.open(2*i+1, getPath, false)
		r.data(2*i+1, []byte{0, 0, 0, 0, 9, 1}, false)
		require.NoError(t, r.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel))
	}
	r.works(2001, "after")
	idle(t, s)
}

// TestAnswersThatWaitForWindowsAreBounded: a client that takes no answers makes no more than MaxStreams of them.
func TestAnswersThatWaitForWindowsAreBounded(t *testing.T) {
	s, addr := start(t, Options{MaxStreams: 8}, &kv{}, echoInline)
	r := greet(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	for i := range uint32(100) {
		r.call(2*i+1, []byte("k"))
	}
	r.sync()
	_, streams := only(t, s).counts()
	require.Equal(t, 8, streams)
	require.NoError(t, r.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000}))
	for i := range uint32(8) {
		require.Equal(t, "k", string(r.answer(2*i+1).value))
	}
	r.works(1001, "after")
	idle(t, s)
}

func TestContinuationFlood(t *testing.T) {
	_, addr := start(t, Options{}, &kv{}, nil)
	r := greet(t, addr)
	block := r.block(getPath)
	require.NoError(t, r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block}))
	var junk []byte
	for i := range 200 { // literals that are not remembered
		junk = append(junk, 0, 1, 'a'+byte(i%26), 60)
		junk = append(junk, make([]byte, 60)...)
		for j := range 60 {
			junk[len(junk)-1-j] = 'v'
		}
	}
	for range 100 {
		if r.fr.WriteContinuation(1, false, junk) != nil {
			break
		}
	}
	r.closed()
}

// TestEndlessHeaders: headers that consist of nothing, for ever, are no sign of life.
func TestEndlessHeaders(t *testing.T) {
	_, addr := start(t, Options{KeepAlive: 10 * time.Millisecond, KeepAliveTimeout: 10 * time.Millisecond}, &kv{}, nil)
	r := greet(t, addr)
	require.NoError(t, r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(getPath)}))
	returns(t, "the connection was not closed", func() {
		for r.fr.WriteContinuation(1, false, nil) == nil {
		}
	})
}

// TestAnswersDoNotWaitForHeaders: headers that are not complete do not hold up the answers of other calls.
func TestAnswersDoNotWaitForHeaders(t *testing.T) {
	_, addr := start(t, Options{}, &kv{}, echoInline)
	r := greet(t, addr)
	r.sync()
	nc := r.nc
	var all bufferConn
	r.fr = http2.NewFramer(&all, nc) // so that all of it arrives at once
	r.fr.ReadMetaHeaders = newDecoder()
	r.call(1, []byte("first"))
	block := r.block(getPath)
	require.NoError(t, r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block[:3], EndStream: false}))
	r.write(all.b)
	require.Equal(t, "first", string(r.answer(1).value))
	all.b = nil
	require.NoError(t, r.fr.WriteContinuation(3, true, block[3:]))
	r.data(3, message5([]byte("second")), true)
	r.write(all.b)
	require.Equal(t, "second", string(r.answer(3).value))
}

func TestHeaderListTooLarge(t *testing.T) {
	s, addr := start(t, Options{MaxHeaderBytes: 1 << 10}, &kv{}, nil)
	r := greet(t, addr)
	var extra []string
	for range 40 {
		extra = append(extra, "x-filler", "abcdefghijklmnop")
	}
	r.open(1, getPath, true, extra...)
	require.Equal(t, "8", r.answer(1).status)
	r.works(3, "after")
	idle(t, s)
}

// TestMalformedHeaders: a call whose headers are nonsense is reset, and whatever else comes for it does no harm.
func TestMalformedHeaders(t *testing.T) {
	s, addr := start(t, Options{}, &kv{}, nil)
	r := greet(t, addr)
	// A stream that depends on itself.
	require.NoError(t, r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 101, BlockFragment: r.block(getPath), EndHeaders: true,
		Priority: http2.PriorityParam{StreamDep: 101, Weight: 1}}))
	r.data(101, []byte("abc"), false)
	require.Equal(t, http2.ErrCodeProtocol, r.answer(101).code)
	r.works(103, "after")
	for i, extra := range [][]string{
		{"Upper-Case", "x"}, {":path", "/twice/twice"}, {":unknown", "x"}, {"connection", "close"}, {"te", "gzip"}, {"x", "a\nb"},
	} {
		id := uint32(4*i + 201)
		r.open(id, getPath, false, extra...)
		r.data(id, []byte("abc"), false)
		require.NoError(t, r.fr.WriteWindowUpdate(id, 1))
		require.NoError(t, r.fr.WriteRSTStream(id, http2.ErrCodeCancel))
		a := r.answer(id)
		require.True(t, a.reset, extra)
		require.Equal(t, http2.ErrCodeProtocol, a.code)
		r.works(id+2, "after")
	}
	idle(t, s)
}

func TestNotGRPC(t *testing.T) {
	s, addr := start(t, Options{}, &kv{}, nil)
	r := greet(t, addr)
	r.open(1, getPath, true, "grpc-timeout", "soon")
	require.Equal(t, "13", r.answer(1).status)
	r.open(3, getPath, true, "content-type", "text/html")
	require.Equal(t, "415", r.answer(3).http)
	r.open(5, "nonsense", true)
	require.Equal(t, "12", r.answer(5).status)
	r.open(7, getPath, true) // no request
	require.Equal(t, "13", r.answer(7).status)
	r.open(9, getPath, false)
	r.data(9, append(message5([]byte("a")), message5([]byte("b"))...), true)
	require.Equal(t, "13", r.answer(9).status)
	r.open(11, getPath, false)
	r.data(11, []byte{0, 0, 0, 0, 9, 1, 2}, true) // ends within
	require.Equal(t, "13", r.answer(11).status)
	r.open(13, getPath, false)
	r.data(13, []byte{7, 0, 0, 0, 0}, true) // no such flag
	require.Equal(t, "13", r.answer(13).status)
	r.open(15, getPath, false)
	r.data(15, []byte{1, 0, 0, 0, 0}, true) // compressed, but how
	require.Equal(t, "13", r.answer(15).status)
	r.open(17, getPath, false, "grpc-encoding", "zebra")
	r.data(17, []byte{1, 0, 0, 0, 0}, true)
	require.Equal(t, "12", r.answer(17).status)
	r.open(19, getPath, false, "grpc-encoding", "gzip")
	r.data(19, []byte{1, 0, 0, 0, 3, 1, 2, 3}, true)
	require.Equal(t, "13", r.answer(19).status)
	r.open(21, getPath, false)
	r.data(21, []byte{0, 0, 0, 0, 2, 0xff, 0xff}, true) // no message
	require.Equal(t, "13", r.answer(21).status)
	r.works(23, "after")
	idle(t, s)
}

func TestPings(t *testing.T) {
	t.Run("flood", func(t *testing.T) {
		_, addr := start(t, Options{}, &kv{}, nil)
		r := greet(t, addr)
		for range 10 {
			_ = r.fr.WritePing(false, [8]byte{1})
		}
		require.Equal(t, http2.ErrCodeEnhanceYourCalm, r.goAway().ErrCode)
	})
	t.Run("spaced", func(t *testing.T) {
		_, addr := start(t, Options{MinPing: 1}, &kv{}, nil)
		r := greet(t, addr)
		for range 20 {
			r.sync()
		}
		r.works(1, "after")
	})
	t.Run("between answers", func(t *testing.T) {
		_, addr := start(t, Options{MinPing: time.Hour}, &kv{}, echoInline)
		r := greet(t, addr)
		for i := range uint32(20) {
			r.sync()
			r.works(2*i+1, "k")
		}
	})
}

// TestPingsBetweenMessages: grpc's client pings when data comes, to measure the connection.
func TestPingsBetweenMessages(t *testing.T) {
	s, addr := start(t, Options{MinPing: time.Hour}, &kv{}, nil)
	r := greet(t, addr)
	r.open(1, streamPath, false)
	for range 20 {
		r.data(1, message5([]byte("k")), false)
		r.until("an answer", func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok })
		r.sync()
	}
	r.data(1, nil, true)
	require.Equal(t, "0", r.answer(1).status)
	idle(t, s)
}

func TestPingPolicy(t *testing.T) {
	p := pingPolicy{min: time.Second}
	now := time.Unix(1000, 0)
	for range 10 {
		require.True(t, p.allow(now, 0))
		now = now.Add(time.Second)
	}
	now = now.Add(-500 * time.Millisecond)
	require.True(t, p.allow(now, 0))
	require.True(t, p.allow(now, 0))
	require.False(t, p.allow(now, 0))
	require.True(t, p.allow(now, 1), "something was sent since")
}

// TestFatalFrames: what ends a connection, and the reason that is given.
func TestFatalFrames(t *testing.T) {
	big := func(r *raw, id uint32, n uint32) { _ = r.fr.WriteWindowUpdate(id, n) }
	for name, tc := range map[string]struct {
		code http2.ErrCode
		do   func(r *raw)
	}{
		"frame larger than 16 KiB": {http2.ErrCodeFrameSize, func(r *raw) {
			r.open(1, getPath, false)
			_ = r.fr.WriteData(1, false, make([]byte, maxFrameIn+1))
		}},
		"connection window overflow": {http2.ErrCodeFlowControl, func(r *raw) { big(r, 0, maxWindow) }},
		"initial window overflow": {http2.ErrCodeFlowControl, func(r *raw) {
			r.open(1, streamPath, false)
			big(r, 1, maxWindow-initialWindow)
			_ = r.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: initialWindow + 1})
		}},
		"initial window too large": {http2.ErrCodeFlowControl, func(r *raw) {
			_ = r.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		}},
		"maximal frame too small": {http2.ErrCodeProtocol, func(r *raw) {
			_ = r.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 100})
		}},
		"endless settings": {http2.ErrCodeEnhanceYourCalm, func(r *raw) {
			all := make([]http2.Setting, 2000)
			for i := range all {
				all[i] = http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)}
			}
			_ = r.fr.WriteSettings(all...)
		}},
		"even stream":               {http2.ErrCodeProtocol, func(r *raw) { r.open(2, getPath, true) }},
		"stream that began already": {http2.ErrCodeStreamClosed, func(r *raw) { r.open(5, getPath, true); r.open(3, getPath, true) }},
		"data on no stream":         {http2.ErrCodeProtocol, func(r *raw) { r.data(1, []byte("x"), true) }},
		"reset of no stream":        {http2.ErrCodeProtocol, func(r *raw) { _ = r.fr.WriteRSTStream(1, http2.ErrCodeCancel) }},
		"window of no stream":       {http2.ErrCodeProtocol, func(r *raw) { big(r, 1, 1) }},
		"window of nothing":         {http2.ErrCodeProtocol, func(r *raw) { big(r, 0, 0) }},
		"push": {http2.ErrCodeProtocol, func(r *raw) {
			_ = r.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}},
		"continuation of nothing": {http2.ErrCodeProtocol, func(r *raw) { _ = r.fr.WriteContinuation(1, true, nil) }},
		"headers that are no headers": {http2.ErrCodeCompression, func(r *raw) {
			_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}},
		"ping with too few bytes": {http2.ErrCodeFrameSize, func(r *raw) { _ = r.fr.WriteRawFrame(http2.FramePing, 0, 0, []byte{1}) }},
	} {
		t.Run(name, func(t *testing.T) {
			_, addr := start(t, Options{}, &kv{}, nil)
			r := greet(t, addr)
			tc.do(r)
			require.Equal(t, tc.code, r.goAway().ErrCode)
		})
	}
}

func TestGarbage(t *testing.T) {
	_, addr := start(t, Options{}, &kv{}, nil)
	rnd := rand.NewChaCha8([32]byte{1})
	for range 20 {
		b := make([]byte, 1000)
		_, _ = rnd.Read(b)
		r := dialRaw(t, addr)
		r.write(b)
		r.closed()
		r = greet(t, addr)
		b[0] = 0xff // a frame of 16 MiB
		r.write(b)
		require.Equal(t, http2.ErrCodeFrameSize, r.goAway().ErrCode)
	}
}

func TestHTTP1(t *testing.T) {
	_, addr := start(t, Options{}, &kv{}, nil)
	for _, method := range []string{"GET", "HEAD", "POST", "PUT"} {
		r := dialRaw(t, addr)
		r.write([]byte(method + " / HTTP/1.1\r\nHost: x\r\n\r\n"))
		_ = r.nc.SetReadDeadline(time.Now().Add(patience))
		text, err := io.ReadAll(r.nc)
		require.NoError(t, err)
		require.Contains(t, string(text), "400 Bad Request")
		require.Contains(t, string(text), "speaks gRPC")
	}
}

func TestNoHandshake(t *testing.T) {
	_, addr := start(t, Options{Handshake: 10 * time.Millisecond}, &kv{}, nil)
	r := dialRaw(t, addr)
	r.write([]byte(preface[:10]))
	r.closed()
	dialRaw(t, addr).closed()
}

func TestKeepAlive(t *testing.T) {
	isPing := func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && !p.IsAck() }
	t.Run("silent", func(t *testing.T) {
		s, addr := start(t, Options{KeepAlive: 5 * time.Millisecond, KeepAliveTimeout: 5 * time.Millisecond}, &kv{}, nil)
		r := greet(t, addr)
		r.until("a ping", isPing)
		r.closed()
		require.Eventually(t, func() bool { return len(s.allConns()) == 0 }, patience, time.Millisecond)
	})
	t.Run("alive", func(t *testing.T) {
		_, addr := start(t, Options{KeepAlive: 5 * time.Millisecond, KeepAliveTimeout: 300 * time.Millisecond}, &kv{}, nil)
		r := greet(t, addr)
		for range 3 {
			p := r.until("a ping", isPing).(*http2.PingFrame)
			require.NoError(t, r.fr.WritePing(true, p.Data))
		}
		r.works(1, "after")
	})
}

// TestClientThatReadsNothing makes a client wait whose answers nobody takes.
func TestClientThatReadsNothing(t *testing.T) {
	const size = 100_000
	value := make([]byte, size)
	s, addr := start(t, Options{}, &kv{stream: func(st grpc.ServerStream) error {
		for {
			if err := st.SendMsg(&kvrpcpb.RawGetResponse{Value: value}); err != nil {
				return err
			}
		}
	}}, func(call *Call, _ []byte) bool { call.Reply(&kvrpcpb.RawGetResponse{Value: value}); return true })
	r := greet(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: maxWindow})
	require.NoError(t, r.fr.WriteWindowUpdate(0, maxWindow-initialWindow))
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := &raw{t: t, nc: r.nc, fr: r.fr, enc: r.enc}
		r.enc = newEncoder(&r.buf)
		_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(streamPath), EndHeaders: true})
		for id := uint32(3); ; id += 2 {
			if r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.block(getPath), EndHeaders: true}) != nil {
				return
			}
			if r.fr.WriteData(id, true, []byte{0, 0, 0, 0, 0}) != nil {
				return
			}
		}
	}()
	c := only(t, s)
	// In the end a write hangs and nothing more is read; the output before that write may be in it, or not.
	var frames uint64
	most, still := 0, 0
	require.Eventually(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		most = max(most, c.mu.out.size)
		if n := c.keep.count(); n != frames || !c.mu.writing {
			frames, still = n, 0
		}
		still++
		return still > 50
	}, patience, time.Millisecond)
	require.Less(t, most, maxOut+3*(size+frameHeader*8))
	returns(t, "Stop", s.Stop)
	wait(t, done, "the client")
}

// TestMemoryOfAnIdleConnection: the last call's messages are not kept.
func TestMemoryOfAnIdleConnection(t *testing.T) {
	for name, inline := range map[string]InlineFunc{"handler": nil, "inline": echoInline} {
		t.Run(name, func(t *testing.T) {
			s, addr := start(t, Options{}, &kv{}, inline)
			r := greet(t, addr, initial(1<<20))
			require.NoError(t, r.fr.WriteWindowUpdate(0, 1<<20))
			c := only(t, s)
			r.works(1, strings.Repeat("k", 100_000))
			returns(t, "Stop", s.Stop) // now everything may be looked at
			require.Nil(t, c.last.request)
			require.Nil(t, c.last.parts.msg)
			require.Zero(t, c.last.mu.backlog())
		})
	}
	for name, path := range map[string]string{"half a request": getPath, "half a message": streamPath} {
		t.Run(name, func(t *testing.T) {
			s, addr := start(t, Options{}, &kv{}, nil)
			r := greet(t, addr)
			c := only(t, s)
			half := message5(make([]byte, 50_000))[:40_000]
			r.open(1, path, false)
			r.data(1, half, false)
			require.NoError(t, r.fr.WriteRSTStream(1, http2.ErrCodeCancel))
			r.data(1, half, false) // on its way when the client cancelled
			r.sync()
			returns(t, "Stop", s.Stop)
			require.Nil(t, c.last.parts.msg)
			require.True(t, c.last.discard)
		})
	}
}
