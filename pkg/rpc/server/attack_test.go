package server

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

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
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

// TestRapidReset: calls that are cancelled count until their handlers return (CVE-2023-44487), also
// if the client has made the server cancel them (CVE-2025-8671).
func TestRapidReset(t *testing.T) {
	for name, reset := range map[string]func(r *rpctest.Raw, id uint32){
		"by the client": func(r *rpctest.Raw, id uint32) {
			_ = r.Framer.WriteRSTStream(id, http2.ErrCodeCancel)
		},
		"window of nothing": func(r *rpctest.Raw, id uint32) {
			_ = r.Framer.WriteWindowUpdate(id, 0)
		},
		"window overflow": func(r *rpctest.Raw, id uint32) {
			_ = r.Framer.WriteWindowUpdate(id, rpc.MaxWindow)
		},
		"data after the end": func(r *rpctest.Raw, id uint32) {
			_ = r.Framer.WriteData(id, false, nil)
		},
		"depends on itself": func(r *rpctest.Raw, id uint32) {
			_ = r.Framer.WritePriority(id, http2.PriorityParam{StreamDep: id})
		},
	} {
		t.Run(name, func(t *testing.T) { rapidReset(t, reset) })
	}
}

func rapidReset(t *testing.T, reset func(r *rpctest.Raw, id uint32)) {
	g := newGate()
	s, addr := start(t, Options{MaxStreams: 10}, &rpctest.KV{Get: g.get}, nil)
	r := rpctest.Greet(t, addr)
	refused := make(chan int, 1)
	go func() {
		n := 0
		for {
			f, err := r.Next()
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
		r.Call(2*i+1, []byte("wait"))
		reset(r, 2*i+1)
	}
	require.NoError(t, r.Framer.WritePing(false, [8]byte{}))
	// A call that was cancelled before its handler began leaves room for another one.
	n := rpctest.Wait(t, refused, "the refusals")
	require.GreaterOrEqual(t, n, calls/2)
	require.EqualValues(t, n, s.Stats().RefusedCalls)
	require.LessOrEqual(t, int(g.most.Load()), 10)
	rpctest.Greet(t, addr).Works(1, "other") // another connection does not suffer
	close(g.open)
	idle(t, s)
}

// TestRapidResetOfHalfCalls: calls that will never be complete take no place.
func TestRapidResetOfHalfCalls(t *testing.T) {
	s, addr := start(t, Options{MaxStreams: 10}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	for i := range uint32(1000) {
		r.Open(2*i+1, rpctest.GetPath, false)
		r.Data(2*i+1, []byte{0, 0, 0, 0, 9, 1}, false)
		require.NoError(t, r.Framer.WriteRSTStream(2*i+1, http2.ErrCodeCancel))
	}
	r.Works(2001, "after")
	idle(t, s)
}

// TestAnswersThatWaitForWindowsAreBounded: a client that takes no answers makes no more than
// MaxStreams of them.
func TestAnswersThatWaitForWindowsAreBounded(t *testing.T) {
	s, addr := start(t, Options{MaxStreams: 8}, &rpctest.KV{}, echoInline)
	r := rpctest.Greet(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	for i := range uint32(100) {
		r.Call(2*i+1, []byte("k"))
	}
	r.Sync()
	_, streams := only(t, s).counts()
	require.Equal(t, 8, streams)
	require.NoError(t,
		r.Framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000}))
	for i := range uint32(8) {
		require.Equal(t, "k", string(r.Answer(2*i+1).Value))
	}
	r.Works(1001, "after")
	idle(t, s)
}

func TestContinuationFlood(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	block := r.Block(rpctest.GetPath)
	require.NoError(t,
		r.Framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block}))
	var junk []byte
	for i := range 200 { // literals that are not remembered
		junk = append(junk, 0, 1, 'a'+byte(i%26), 60)
		junk = append(junk, make([]byte, 60)...)
		for j := range 60 {
			junk[len(junk)-1-j] = 'v'
		}
	}
	for range 100 {
		if r.Framer.WriteContinuation(1, false, junk) != nil {
			break
		}
	}
	require.Equal(t, http2.ErrCodeEnhanceYourCalm, r.GoAway().ErrCode)
	r.Closed()
	require.EqualValues(t, 1, s.Stats().Floods)
}

// TestEndlessHeaders: headers that consist of nothing, for ever, are no sign of life.
func TestEndlessHeaders(t *testing.T) {
	_, addr := start(t,
		Options{KeepAlive: 10 * time.Millisecond, KeepAliveTimeout: 10 * time.Millisecond},
		&rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	require.NoError(t,
		r.Framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: 1, BlockFragment: r.Block(rpctest.GetPath),
		}))
	rpctest.Returns(t, "the connection was not closed", func() {
		for r.Framer.WriteContinuation(1, false, nil) == nil {
		}
	})
}

// TestAnswersDoNotWaitForHeaders: headers that are not complete do not hold up the answers of other
// calls.
func TestAnswersDoNotWaitForHeaders(t *testing.T) {
	_, addr := start(t, Options{}, &rpctest.KV{}, echoInline)
	r := rpctest.Greet(t, addr)
	r.Sync()
	nc := r.Conn
	var all rpctest.BufferConn
	r.Framer = http2.NewFramer(&all, nc) // so that all of it arrives at once
	r.Framer.ReadMetaHeaders = rpctest.NewDecoder()
	r.Call(1, []byte("first"))
	block := r.Block(rpctest.GetPath)
	require.NoError(t,
		r.Framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: 3, BlockFragment: block[:3], EndStream: false,
		}))
	r.Write(all.B)
	require.Equal(t, "first", string(r.Answer(1).Value))
	all.B = nil
	require.NoError(t, r.Framer.WriteContinuation(3, true, block[3:]))
	r.Data(3, rpctest.EncodedGet([]byte("second")), true)
	r.Write(all.B)
	require.Equal(t, "second", string(r.Answer(3).Value))
}

func TestHeaderListTooLarge(t *testing.T) {
	s, addr := start(t, Options{MaxHeaderBytes: 1 << 10}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	var extra []string
	for range 40 {
		extra = append(extra, "x-filler", "abcdefghijklmnop")
	}
	r.Open(1, rpctest.GetPath, true, extra...)
	require.Equal(t, "8", r.Answer(1).Status)
	r.Works(3, "after")
	idle(t, s)
}

// TestMalformedHeaders: a call whose headers are nonsense is reset, and whatever else comes for it
// does no harm.
func TestMalformedHeaders(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	// A stream that depends on itself.
	require.NoError(t,
		r.Framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 101,
			BlockFragment: r.Block(rpctest.GetPath), EndHeaders: true,
			Priority: http2.PriorityParam{StreamDep: 101, Weight: 1}}))
	r.Data(101, []byte("abc"), false)
	require.Equal(t, http2.ErrCodeProtocol, r.Answer(101).Code)
	r.Works(103, "after")
	for i, extra := range [][]string{
		{"Upper-Case", "x"}, {":path", "/twice/twice"}, {":unknown", "x"}, {"connection", "close"},
		{"te", "gzip"}, {"x", "a\nb"},
	} {
		id := uint32(4*i + 201)
		r.Open(id, rpctest.GetPath, false, extra...)
		r.Data(id, []byte("abc"), false)
		require.NoError(t, r.Framer.WriteWindowUpdate(id, 1))
		require.NoError(t, r.Framer.WriteRSTStream(id, http2.ErrCodeCancel))
		a := r.Answer(id)
		require.True(t, a.Reset, extra)
		require.Equal(t, http2.ErrCodeProtocol, a.Code)
		r.Works(id+2, "after")
	}
	idle(t, s)
}

func TestNotGRPC(t *testing.T) {
	s, addr := start(t, Options{}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	r.Open(1, rpctest.GetPath, true, "grpc-timeout", "soon")
	require.Equal(t, "13", r.Answer(1).Status)
	r.Open(3, rpctest.GetPath, true, "content-type", "text/html")
	require.Equal(t, "415", r.Answer(3).HTTP)
	r.Open(5, "nonsense", true)
	require.Equal(t, "12", r.Answer(5).Status)
	r.Open(7, rpctest.GetPath, true) // no request
	require.Equal(t, "13", r.Answer(7).Status)
	r.Open(9, rpctest.GetPath, false)
	r.Data(9, append(rpctest.EncodedGet([]byte("a")), rpctest.EncodedGet([]byte("b"))...), true)
	require.Equal(t, "13", r.Answer(9).Status)
	r.Open(11, rpctest.GetPath, false)
	r.Data(11, []byte{0, 0, 0, 0, 9, 1, 2}, true) // ends within
	require.Equal(t, "13", r.Answer(11).Status)
	r.Open(13, rpctest.GetPath, false)
	r.Data(13, []byte{7, 0, 0, 0, 0}, true) // no such flag
	require.Equal(t, "13", r.Answer(13).Status)
	r.Open(15, rpctest.GetPath, false)
	r.Data(15, []byte{1, 0, 0, 0, 0}, true) // compressed, but how
	require.Equal(t, "13", r.Answer(15).Status)
	r.Open(17, rpctest.GetPath, false, "grpc-encoding", "zebra")
	r.Data(17, []byte{1, 0, 0, 0, 0}, true)
	require.Equal(t, "12", r.Answer(17).Status)
	r.Open(19, rpctest.GetPath, false, "grpc-encoding", "gzip")
	r.Data(19, []byte{1, 0, 0, 0, 3, 1, 2, 3}, true)
	require.Equal(t, "13", r.Answer(19).Status)
	r.Open(21, rpctest.GetPath, false)
	r.Data(21, []byte{0, 0, 0, 0, 2, 0xff, 0xff}, true) // no message
	require.Equal(t, "13", r.Answer(21).Status)
	r.Works(23, "after")
	idle(t, s)
}

func TestPings(t *testing.T) {
	t.Run("flood", func(t *testing.T) {
		s, addr := start(t, Options{}, &rpctest.KV{}, nil)
		r := rpctest.Greet(t, addr)
		for range 10 {
			_ = r.Framer.WritePing(false, [8]byte{1})
		}
		require.Equal(t, http2.ErrCodeEnhanceYourCalm, r.GoAway().ErrCode)
		require.EqualValues(t, 1, s.Stats().Floods)
	})
	t.Run("spaced", func(t *testing.T) {
		_, addr := start(t, Options{MinPing: 1}, &rpctest.KV{}, nil)
		r := rpctest.Greet(t, addr)
		for range 20 {
			r.Sync()
		}
		r.Works(1, "after")
	})
	t.Run("between answers", func(t *testing.T) {
		_, addr := start(t, Options{MinPing: time.Hour}, &rpctest.KV{}, echoInline)
		r := rpctest.Greet(t, addr)
		for i := range uint32(20) {
			r.Sync()
			r.Works(2*i+1, "k")
		}
	})
}

// TestPingsBetweenMessages: grpc's client pings when data comes, to measure the connection.
func TestPingsBetweenMessages(t *testing.T) {
	s, addr := start(t, Options{MinPing: time.Hour}, &rpctest.KV{}, nil)
	r := rpctest.Greet(t, addr)
	r.Open(1, rpctest.StreamPath, false)
	for range 20 {
		r.Data(1, rpctest.EncodedGet([]byte("k")), false)
		r.Until("an answer", func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok })
		r.Sync()
	}
	r.Data(1, nil, true)
	require.Equal(t, "0", r.Answer(1).Status)
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
	big := func(r *rpctest.Raw, id uint32, n uint32) { _ = r.Framer.WriteWindowUpdate(id, n) }
	for name, tc := range map[string]struct {
		code http2.ErrCode
		do   func(r *rpctest.Raw)
	}{
		"frame larger than 16 KiB": {http2.ErrCodeFrameSize, func(r *rpctest.Raw) {
			r.Open(1, rpctest.GetPath, false)
			_ = r.Framer.WriteData(1, false, make([]byte, rpc.MaxFrameIn+1))
		}},
		"connection window overflow": {http2.ErrCodeFlowControl, func(r *rpctest.Raw) {
			big(r, 0, rpc.MaxWindow)
		}},
		"initial window overflow": {http2.ErrCodeFlowControl, func(r *rpctest.Raw) {
			r.Open(1, rpctest.StreamPath, false)
			big(r, 1, rpc.MaxWindow-rpc.InitialWindow)
			_ = r.Framer.WriteSettings(http2.Setting{
				ID: http2.SettingInitialWindowSize, Val: rpc.InitialWindow + 1,
			})
		}},
		"initial window too large": {http2.ErrCodeFlowControl, func(r *rpctest.Raw) {
			_ = r.Framer.WriteSettings(http2.Setting{
				ID: http2.SettingInitialWindowSize, Val: 1 << 31,
			})
		}},
		"maximal frame too small": {http2.ErrCodeProtocol, func(r *rpctest.Raw) {
			_ = r.Framer.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 100})
		}},
		"endless settings": {http2.ErrCodeEnhanceYourCalm, func(r *rpctest.Raw) {
			all := make([]http2.Setting, 2000)
			for i := range all {
				all[i] = http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)}
			}
			_ = r.Framer.WriteSettings(all...)
		}},
		"even stream": {http2.ErrCodeProtocol, func(r *rpctest.Raw) {
			r.Open(2, rpctest.GetPath, true)
		}},
		"stream that began already": {http2.ErrCodeStreamClosed, func(r *rpctest.Raw) {
			r.Open(5, rpctest.GetPath, true)
			r.Open(3, rpctest.GetPath, true)
		}},
		"data on no stream": {http2.ErrCodeProtocol, func(r *rpctest.Raw) {
			r.Data(1, []byte("x"), true)
		}},
		"reset of no stream": {http2.ErrCodeProtocol, func(r *rpctest.Raw) {
			_ = r.Framer.WriteRSTStream(1, http2.ErrCodeCancel)
		}},
		"window of no stream": {http2.ErrCodeProtocol, func(r *rpctest.Raw) { big(r, 1, 1) }},
		"window of nothing":   {http2.ErrCodeProtocol, func(r *rpctest.Raw) { big(r, 0, 0) }},
		"push": {http2.ErrCodeProtocol, func(r *rpctest.Raw) {
			_ = r.Framer.WritePushPromise(http2.PushPromiseParam{
				StreamID: 1, PromiseID: 2, EndHeaders: true,
			})
		}},
		"continuation of nothing": {http2.ErrCodeProtocol, func(r *rpctest.Raw) {
			_ = r.Framer.WriteContinuation(1, true, nil)
		}},
		"headers that are no headers": {http2.ErrCodeCompression, func(r *rpctest.Raw) {
			_ = r.Framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: 1,
				BlockFragment: []byte{
					0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
				}, EndHeaders: true,
			})
		}},
		"ping with too few bytes": {http2.ErrCodeFrameSize, func(r *rpctest.Raw) {
			_ = r.Framer.WriteRawFrame(http2.FramePing, 0, 0, []byte{1})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			_, addr := start(t, Options{}, &rpctest.KV{}, nil)
			r := rpctest.Greet(t, addr)
			tc.do(r)
			require.Equal(t, tc.code, r.GoAway().ErrCode)
		})
	}
}

func TestGarbage(t *testing.T) {
	_, addr := start(t, Options{}, &rpctest.KV{}, nil)
	rnd := rand.NewChaCha8([32]byte{1})
	for range 20 {
		b := make([]byte, 1000)
		_, _ = rnd.Read(b)
		r := rpctest.DialRaw(t, addr)
		r.Write(b)
		r.Closed()
		r = rpctest.Greet(t, addr)
		b[0] = 0xff // a frame of 16 MiB
		r.Write(b)
		require.Equal(t, http2.ErrCodeFrameSize, r.GoAway().ErrCode)
	}
}

func TestHTTP1(t *testing.T) {
	_, addr := start(t, Options{}, &rpctest.KV{}, nil)
	for _, method := range []string{"GET", "HEAD", "POST", "PUT"} {
		r := rpctest.DialRaw(t, addr)
		r.Write([]byte(method + " / HTTP/1.1\r\nHost: x\r\n\r\n"))
		_ = r.Conn.SetReadDeadline(time.Now().Add(rpctest.Patience))
		text, err := io.ReadAll(r.Conn)
		require.NoError(t, err)
		require.Contains(t, string(text), "400 Bad Request")
		require.Contains(t, string(text), "speaks gRPC")
	}
}

func TestNoHandshake(t *testing.T) {
	_, addr := start(t, Options{Handshake: 10 * time.Millisecond}, &rpctest.KV{}, nil)
	r := rpctest.DialRaw(t, addr)
	r.Write([]byte(rpc.Preface[:10]))
	r.Closed()
	rpctest.DialRaw(t, addr).Closed()
}

func TestKeepAlive(t *testing.T) {
	isPing := func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && !p.IsAck() }
	t.Run("silent", func(t *testing.T) {
		s, addr := start(t,
			Options{KeepAlive: 5 * time.Millisecond, KeepAliveTimeout: 5 * time.Millisecond},
			&rpctest.KV{}, nil)
		r := rpctest.Greet(t, addr)
		r.Until("a ping", isPing)
		r.Closed()
		require.Eventually(t, func() bool {
			return len(s.allConns()) == 0
		}, rpctest.Patience, time.Millisecond)
	})
	t.Run("alive", func(t *testing.T) {
		_, addr := start(t,
			Options{KeepAlive: 5 * time.Millisecond, KeepAliveTimeout: 300 * time.Millisecond},
			&rpctest.KV{}, nil)
		r := rpctest.Greet(t, addr)
		for range 3 {
			p := r.Until("a ping", isPing).(*http2.PingFrame)
			require.NoError(t, r.Framer.WritePing(true, p.Data))
		}
		r.Works(1, "after")
	})
}

// TestClientThatReadsNothing makes a client wait whose answers nobody takes.
func TestClientThatReadsNothing(t *testing.T) {
	const size = 100_000
	value := make([]byte, size)
	s, addr := start(t, Options{}, &rpctest.KV{Stream: func(st grpc.ServerStream) error {
		for {
			if err := st.SendMsg(&kvrpcpb.RawGetResponse{Value: value}); err != nil {
				return err
			}
		}
	}}, func(call *Call, _ []byte) bool {
		call.Reply(&kvrpcpb.RawGetResponse{Value: value})
		return true
	})
	r := rpctest.Greet(t, addr,
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: rpc.MaxWindow})
	require.NoError(t, r.Framer.WriteWindowUpdate(0, rpc.MaxWindow-rpc.InitialWindow))
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := &rpctest.Raw{T: t, Conn: r.Conn, Framer: r.Framer, Encoder: r.Encoder}
		r.Encoder = rpctest.NewEncoder(&r.Buf)
		_ = r.Framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: 1, BlockFragment: r.Block(rpctest.StreamPath), EndHeaders: true,
		})
		for id := uint32(3); ; id += 2 {
			if r.Framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, BlockFragment: r.Block(rpctest.GetPath), EndHeaders: true,
			}) != nil {
				return
			}
			if r.Framer.WriteData(id, true, []byte{0, 0, 0, 0, 0}) != nil {
				return
			}
		}
	}()
	c := only(t, s)
	// In the end a write hangs and nothing more is read; the output before that write may be in it,
	// or not.
	var frames uint64
	most, still := 0, 0
	require.Eventually(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		most = max(most, c.mu.out.Size)
		if n := c.keep.Count(); n != frames || !c.mu.writing {
			frames, still = n, 0
		}
		still++
		return still > 50
	}, rpctest.Patience, time.Millisecond)
	require.Less(t, most, rpc.MaxOut+3*(size+rpc.FrameHeader*8))
	rpctest.Returns(t, "Stop", s.Stop)
	rpctest.Wait(t, done, "the client")
}

// TestMemoryOfAnIdleConnection: the last call's messages are not kept.
func TestMemoryOfAnIdleConnection(t *testing.T) {
	for name, inline := range map[string]InlineFunc{"handler": nil, "inline": echoInline} {
		t.Run(name, func(t *testing.T) {
			s, addr := start(t, Options{}, &rpctest.KV{}, inline)
			r := rpctest.Greet(t, addr, rpctest.Initial(1<<20))
			require.NoError(t, r.Framer.WriteWindowUpdate(0, 1<<20))
			c := only(t, s)
			r.Works(1, strings.Repeat("k", 100_000))
			rpctest.Returns(t, "Stop", s.Stop) // now everything may be looked at
			require.Nil(t, c.last.request)
			require.Nil(t, c.last.parts.Msg)
			require.Zero(t, c.last.mu.Backlog())
		})
	}
	for name, path := range map[string]string{
		"half a request": rpctest.GetPath, "half a message": rpctest.StreamPath,
	} {
		t.Run(name, func(t *testing.T) {
			s, addr := start(t, Options{}, &rpctest.KV{}, nil)
			r := rpctest.Greet(t, addr)
			c := only(t, s)
			half := rpctest.EncodedGet(make([]byte, 50_000))[:40_000]
			r.Open(1, path, false)
			r.Data(1, half, false)
			require.NoError(t, r.Framer.WriteRSTStream(1, http2.ErrCodeCancel))
			r.Data(1, half, false) // against the rules
			a := r.Answer(1)
			require.Equal(t, http2.ErrCodeStreamClosed, a.Code)
			rpctest.Returns(t, "Stop", s.Stop)
			require.Nil(t, c.last)
		})
	}
}

// TestIdleFramesAreBounded: frames that bring no call on end the connection when there are too
// many, and count; those that clients send with their calls do not.
func TestIdleFramesAreBounded(t *testing.T) {
	for name, send := range map[string]func(r *rpctest.Raw){
		"settings": func(r *rpctest.Raw) { _ = r.Framer.WriteSettings(rpctest.Initial(100)) },
		"priorities": func(r *rpctest.Raw) {
			_ = r.Framer.WritePriority(1, http2.PriorityParam{StreamDep: 3})
		},
		"empty data": func(r *rpctest.Raw) { _ = r.Framer.WriteData(1, false, nil) },
		"unknown":    func(r *rpctest.Raw) { _ = r.Framer.WriteRawFrame(0x77, 0, 1, []byte("x")) },
	} {
		t.Run(name, func(t *testing.T) {
			s, addr := start(t, Options{MinPing: 1}, &rpctest.KV{}, nil)
			r := rpctest.Greet(t, addr)
			r.Open(1, rpctest.StreamPath, false)
			go func() {
				for range 2 * maxIdleFrames {
					send(r)
				}
			}()
			require.Equal(t, http2.ErrCodeEnhanceYourCalm, r.GoAway().ErrCode)
			require.EqualValues(t, 1, s.Stats().Floods)
		})
	}
	s, addr := start(t, Options{}, &rpctest.KV{}, echoInline)
	r := rpctest.Greet(t, addr)
	for i := range uint32(maxIdleFrames) {
		_ = r.Framer.WritePriority(2*i+1, http2.PriorityParam{StreamDep: 0})
		_ = r.Framer.WriteRawFrame(0x77, 0, 0, nil)
		r.Works(2*i+1, "k")
	}
	require.Zero(t, s.Stats().Floods)
}
