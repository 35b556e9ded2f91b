package client

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

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// TestClientOfNoServer: whatever answers that is no HTTP/2 server, callers soon get an error which
// says that nothing was sent.
func TestClientOfNoServer(t *testing.T) {
	for name, say := range map[string]func(p *rpctest.Peer){
		"closes": func(p *rpctest.Peer) { _ = p.Conn.Close() },
		"HTTP/1": func(p *rpctest.Peer) {
			p.Write([]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"))
		},
		"garbage": func(p *rpctest.Peer) {
			p.Write(bytes.Repeat([]byte("\x00\x00\x01\xee\x00garbage"), 20))
		},
		"silent":   func(*rpctest.Peer) {},
		"a ping":   func(p *rpctest.Peer) { _ = p.Framer.WritePing(false, [8]byte{}) },
		"an ack":   func(p *rpctest.Peer) { _ = p.Framer.WriteSettingsAck() },
		"trickles": func(p *rpctest.Peer) { p.Write([]byte{0, 0}) },
		"goes away": func(p *rpctest.Peer) {
			_ = p.Framer.WriteSettings()
			_ = p.Framer.WriteGoAway(0, http2.ErrCodeNo, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := rpctest.Listen(t)
			c := client(t, l.Address(),
				Options{
					ConnectTimeout: 30 * time.Millisecond, MinBackoff: time.Minute,
					MaxBackoff: time.Hour,
				})
			res := rpctest.Get(rpctest.Within(t), c, nil)
			p := l.Silent()
			say(p)
			for range 2 { // the second within the pause
				r := rpctest.Wait(t, res, "the call")
				require.Equal(t, codes.Unavailable, status.Code(r.Err), r.Err)
				require.True(t, NotSent(r.Err), r.Err)
				require.Contains(t, r.Err.Error(), "error while dialing")
				res = rpctest.Get(rpctest.Within(t), c, nil)
			}
			p.Closed()
			c.mu.Lock()
			failures := c.mu.failures
			c.mu.Unlock()
			require.Equal(t, 1, failures, "one attempt, one failure")
		})
	}
}

// TestClientFatalFrames: frames that break the connection end it and the call under way, which may
// have been carried out. The next call connects anew.
func TestClientFatalFrames(t *testing.T) {
	for name, say := range map[string]func(p *rpctest.Peer, id uint32){
		"frame too large": func(p *rpctest.Peer, id uint32) {
			p.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0, byte(id)})
		},
		"push": func(p *rpctest.Peer, id uint32) {
			_ = p.Framer.WritePushPromise(http2.PushPromiseParam{
				StreamID: id, PromiseID: 2, BlockFragment: []byte{0x88}, EndHeaders: true,
			})
		},
		"window overflow": func(p *rpctest.Peer, _ uint32) {
			_ = p.Framer.WriteWindowUpdate(0, rpc.MaxWindow)
		},
		"settings overflow": func(p *rpctest.Peer, id uint32) {
			_ = p.Framer.WriteWindowUpdate(id, 1<<20)
			_ = p.Framer.WriteSettings(rpctest.Initial(rpc.MaxWindow))
		},
		"window of nothing": func(p *rpctest.Peer, _ uint32) {
			_ = p.Framer.WriteWindowUpdate(0, 0)
		},
		"header compression": func(p *rpctest.Peer, id uint32) {
			_ = p.Framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, BlockFragment: []byte{0xff, 0xff}, EndHeaders: true,
			})
		},
		"continuation": func(p *rpctest.Peer, id uint32) {
			_ = p.Framer.WriteContinuation(id, true, []byte{0x88})
		},
		"torn headers": func(p *rpctest.Peer, id uint32) {
			_ = p.Framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, BlockFragment: []byte{0x88},
			})
			_ = p.Framer.WritePing(false, [8]byte{})
		},
		"padding larger than the headers": func(p *rpctest.Peer, id uint32) {
			p.Write([]byte{0, 0, 2, 1, 0xc, 0, 0, 0, byte(id), 200, 0x88})
		},
		"endless headers": func(p *rpctest.Peer, id uint32) {
			_ = p.Framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, BlockFragment: []byte{0x88},
			})
			for p.Framer.WriteContinuation(id, false, nil) == nil { // until the client has enough
			}
		},
		"bad settings": func(p *rpctest.Peer, _ uint32) {
			_ = p.Framer.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1})
		},
		"too many settings": func(p *rpctest.Peer, _ uint32) {
			_ = p.Framer.WriteSettings(make([]http2.Setting, rpc.MaxSettings+1)...)
		},
		"an error": func(p *rpctest.Peer, id uint32) {
			_ = p.Framer.WriteGoAway(id, http2.ErrCodeEnhanceYourCalm, []byte("too_many_pings"))
		},
		"closed": func(p *rpctest.Peer, _ uint32) { _ = p.Conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			l := rpctest.Listen(t)
			c := client(t, l.Address(),
				Options{ConnWindow: rpc.InitialWindow, StreamWindow: 1 << 20, MaxBackoff: 1})
			res := rpctest.Get(rpctest.Within(t), c, nil)
			p := l.Greeted()
			id, _ := p.Asked()
			say(p, id)
			r := rpctest.Wait(t, res, "the call")
			require.Equal(t, codes.Unavailable, status.Code(r.Err), r.Err)
			require.False(t, NotSent(r.Err), r.Err)
			_ = p.Conn.Close()
			next := make(chan rpctest.Result, 1)
			go func() {
				for {
					if r := <-rpctest.Get(rpctest.Within(t), c, nil); !NotSent(r.Err) {
						next <- r
						return
					}
				}
			}()
			p = l.Greeted()
			id, _ = p.Asked()
			p.Reply(id, "")
			require.NoError(t, rpctest.Wait(t, next, "the next call").Err)
		})
	}
}

// TestClientBrokenAnswers end their call, not the connection.
func TestClientBrokenAnswers(t *testing.T) {
	answer := rpctest.EncodedAnswer([]byte("v"))
	for name, say := range map[string]struct {
		code codes.Code
		do   func(p *rpctest.Peer, id uint32)
	}{
		"data before headers": {codes.Internal, func(p *rpctest.Peer, id uint32) {
			p.Data(id, answer, false)
		}},
		"two answers": {codes.Internal, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Data(id, append(bytes.Clone(answer), answer...), false)
		}},
		"no answer": {codes.Internal, func(p *rpctest.Peer, id uint32) { p.Begin(id); p.End(id) }},
		"only an end": {codes.Internal, func(p *rpctest.Peer, id uint32) {
			p.Headers(id, true, ":status", "200", "content-type", "application/grpc", "grpc-status",
				"0")
		}},
		"half an answer": {codes.Internal, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Data(id, answer[:6], false)
			p.End(id)
		}},
		"nonsense": {codes.Internal, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Data(id, []byte{0, 0, 0, 0, 1, 0xff}, false)
			p.End(id)
		}},
		"no trailers": {codes.Internal, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Data(id, answer, true)
		}},
		"headers twice": {codes.Internal, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Begin(id)
		}},
		"no status": {codes.Unknown, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Data(id, answer, false)
			p.Headers(id, true, "x", "y")
		}},
		"odd status": {codes.Unknown, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Headers(id, true, "grpc-status", "-1")
		}},
		"unknown status": {codes.Code(77), func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Headers(id, true, "grpc-status", "77")
		}},
		"404": {codes.Unimplemented, func(p *rpctest.Peer, id uint32) {
			p.Headers(id, true, ":status", "404")
		}},
		"503": {codes.Unavailable, func(p *rpctest.Peer, id uint32) {
			p.Headers(id, false, ":status", "503")
			p.Data(id, []byte("busy"), true)
		}},
		"no HTTP status": {codes.Unknown, func(p *rpctest.Peer, id uint32) {
			p.Headers(id, false, "content-type", "application/grpc")
		}},
		"a page": {codes.Unknown, func(p *rpctest.Peer, id uint32) {
			p.Headers(id, false, ":status", "200", "content-type", "text/html")
			p.Data(id, []byte("<html>"), true)
		}},
		"unknown flag": {codes.Internal, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Data(id, []byte{2, 0, 0, 0, 0}, false)
		}},
		"not said how compressed": {codes.Internal, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Data(id, []byte{1, 0, 0, 0, 0}, false)
			p.End(id)
		}},
		"compressed as nobody does": {codes.Unimplemented, func(p *rpctest.Peer, id uint32) {
			p.Headers(id, false, ":status", "200", "content-type", "application/grpc",
				"grpc-encoding", "no-such")
			p.Data(id, []byte{1, 0, 0, 0, 0}, false)
			p.End(id)
		}},
		"window overflow": {codes.Internal, func(p *rpctest.Peer, id uint32) {
			_ = p.Framer.WriteWindowUpdate(id, rpc.MaxWindow)
		}},
		"too large": {codes.ResourceExhausted, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Data(id, []byte{0, 0xff, 0, 0, 0}, false)
		}},
		"headers too large": {codes.ResourceExhausted, func(p *rpctest.Peer, id uint32) {
			headerBomb(p, id, false)
		}},
		"end too large": {codes.ResourceExhausted, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Data(id, answer, false)
			headerBomb(p, id, true)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := rpctest.Listen(t)
			c := client(t, l.Address(), Options{StreamWindow: rpc.InitialWindow})
			res := rpctest.Get(rpctest.Within(t), c, nil)
			p := l.Greeted()
			id, _ := p.Asked()
			say.do(p, id)
			r := rpctest.Wait(t, res, "the call")
			require.Equal(t, say.code, status.Code(r.Err), r.Err)
			require.False(t, NotSent(r.Err))
			works(p, c, "next")
		})
	}
}

// headerBomb is a few bytes that become many: a field of the table, again and again.
func headerBomb(p *rpctest.Peer, id uint32, end bool) {
	p.T.Helper()
	p.Buf.Reset()
	f := []string{
		":status", "200", "content-type", "application/grpc", "x", strings.Repeat("x", 3000),
	}
	p.Headers(id, end, append(f, bytesOf(2000, f[4:])...)...)
}

func bytesOf(n int, f []string) (out []string) {
	for range n {
		out = append(out, f...)
	}
	return out
}

// TestClientIgnoredFrames that say nothing about a call.
func TestClientIgnoredFrames(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	res := rpctest.Get(rpctest.Within(t), c, []byte("k"))
	p := l.Greeted()
	id, _ := p.Asked()
	_ = p.Framer.WriteRawFrame(77, 0xff, id, []byte("unknown"))
	_ = p.Framer.WritePriority(id, http2.PriorityParam{})
	_ = p.Framer.WriteSettingsAck()
	_ = p.Framer.WritePing(true, [8]byte{1})
	_ = p.Framer.WriteSettings(http2.Setting{ID: 0xee, Val: 1})
	p.Sync()
	p.Reply(id, "v")
	require.Equal(t, "v", string(rpctest.Wait(t, res, "the answer").Value))
	// as servers do that have not seen the end of a request
	_ = p.Framer.WriteRSTStream(id, http2.ErrCodeNo)
	_ = p.Framer.WriteWindowUpdate(id, 1)
	works(p, c, "next")
}

// TestClientFramesOfNoStream end the connection: of streams that were never opened, or that the
// server has ended (RFC 9113,
// 5.1). What comes of a call that was cancelled was on its way.
func TestClientFramesOfNoStream(t *testing.T) {
	headers := func(p *rpctest.Peer, id uint32) { p.Headers(id, false, ":status", "200") }
	data := func(p *rpctest.Peer, id uint32) { p.Data(id, []byte("x"), false) }
	for name, tc := range map[string]struct {
		do   func(p *rpctest.Peer, id uint32)
		code http2.ErrCode
	}{
		"headers, even": {func(p *rpctest.Peer, _ uint32) {
			headers(p, 2)
		}, http2.ErrCodeProtocol},
		"headers, idle": {func(p *rpctest.Peer, id uint32) {
			headers(p, id+2)
		}, http2.ErrCodeProtocol},
		"data, idle": {func(p *rpctest.Peer, id uint32) {
			data(p, id+2)
		}, http2.ErrCodeProtocol},
		"window, idle": {func(p *rpctest.Peer, id uint32) {
			_ = p.Framer.WriteWindowUpdate(id+2, 1)
		}, http2.ErrCodeProtocol},
		"reset, idle": {func(p *rpctest.Peer, id uint32) {
			_ = p.Framer.WriteRSTStream(id+2, http2.ErrCodeNo)
		}, http2.ErrCodeProtocol},
		"headers after end": {func(p *rpctest.Peer, id uint32) {
			p.Reply(id, "v")
			headers(p, id)
		}, http2.ErrCodeStreamClosed},
		"data after end": {func(p *rpctest.Peer, id uint32) {
			p.Reply(id, "v")
			data(p, id)
		}, http2.ErrCodeStreamClosed},
		"data after reset": {func(p *rpctest.Peer, id uint32) {
			_ = p.Framer.WriteRSTStream(id, http2.ErrCodeCancel)
			data(p, id)
		}, http2.ErrCodeStreamClosed},
	} {
		t.Run(name, func(t *testing.T) {
			l := rpctest.Listen(t)
			c := client(t, l.Address(), Options{})
			res := rpctest.Get(rpctest.Within(t), c, nil)
			p := l.Greeted()
			id, _ := p.Asked()
			tc.do(p, id)
			for { // the reason is sent if that can be done at once
				f, err := p.Next()
				if err != nil {
					break
				}
				if f, ok := f.(*http2.GoAwayFrame); ok {
					require.Equal(t, tc.code, f.ErrCode)
				}
			}
			p.Closed()
			rpctest.Wait(t, res, "the call")
		})
	}
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	ctx, cancel := context.WithCancel(rpctest.Within(t))
	res := rpctest.Get(ctx, c, nil)
	p := l.Greeted()
	id, _ := p.Asked()
	cancel()
	require.Equal(t, codes.Canceled, status.Code(rpctest.Wait(t, res, "the call").Err))
	require.Equal(t, http2.ErrCodeCancel, p.Reset(id))
	p.Reply(id, "late")
	works(p, c, "next")
}

// TestClientForeignAnswers: the error has the beginning of an answer that is not gRPC, however long
// it is.
func TestClientForeignAnswers(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	res := rpctest.Get(rpctest.Within(t), c, nil)
	p := l.Greeted()
	id, _ := p.Asked()
	p.Headers(id, false, ":status", "503", "content-type", "text/plain")
	p.Data(id, []byte("over"), false)
	p.Data(id, []byte("loaded"), true)
	r := rpctest.Wait(t, res, "the call")
	require.Equal(t, codes.Unavailable, status.Code(r.Err))
	require.ErrorContains(t, r.Err, `"overloaded"`)

	res = rpctest.Get(rpctest.Within(t), c, nil)
	id, _ = p.Asked()
	p.Headers(id, false, ":status", "200", "content-type", "text/html")
	p.Data(id, bytes.Repeat([]byte("x"), 2000), false)
	r = rpctest.Wait(t, res, "the call")
	require.Equal(t, codes.Unknown, status.Code(r.Err))
	require.ErrorContains(t, r.Err, strings.Repeat("x", maxForeign))
	require.Equal(t, http2.ErrCodeCancel, p.Reset(id))

	res = rpctest.Get(rpctest.Within(t), c, nil)
	id, _ = p.Asked()
	p.Headers(id, false, ":status", "404")
	p.Headers(id, true, "grpc-status", "0")
	require.Equal(t, codes.Unimplemented, status.Code(rpctest.Wait(t, res, "the call").Err))
	works(p, c, "next")
}

// TestClientResets: every code has its meaning; only one says that nothing was done.
func TestClientResets(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	var p *rpctest.Peer
	for code, want := range map[http2.ErrCode]codes.Code{
		http2.ErrCodeNo: codes.Internal, http2.ErrCodeProtocol: codes.Internal,
		http2.ErrCodeInternal:    codes.Internal,
		http2.ErrCodeFlowControl: codes.Internal, http2.ErrCodeCancel: codes.Canceled,
		http2.ErrCodeEnhanceYourCalm:    codes.ResourceExhausted,
		http2.ErrCodeInadequateSecurity: codes.PermissionDenied,
		http2.ErrCode(0xffff):           codes.Internal,
	} {
		res := rpctest.Get(rpctest.Within(t), c, nil)
		if p == nil {
			p = l.Greeted()
		}
		id, _ := p.Asked()
		require.NoError(t, p.Framer.WriteRSTStream(id, code))
		r := rpctest.Wait(t, res, "the call")
		require.Equal(t, want, status.Code(r.Err), code)
		require.False(t, NotSent(r.Err))
	}
	res := rpctest.Get(rpctest.Within(t), c, []byte("again"))
	for range maxReplays {
		id, key := p.Asked()
		require.Equal(t, "again", key)
		require.NoError(t, p.Framer.WriteRSTStream(id, http2.ErrCodeRefusedStream))
	}
	id, key := p.Asked()
	require.Equal(t, "again", key)
	p.Reply(id, "at last")
	require.Equal(t, "at last", string(rpctest.Wait(t, res, "the answer").Value))
	res = rpctest.Get(rpctest.Within(t), c, nil)
	for range maxReplays + 1 {
		id, _ := p.Asked()
		require.NoError(t, p.Framer.WriteRSTStream(id, http2.ErrCodeRefusedStream))
	}
	r := rpctest.Wait(t, res, "the call")
	require.Equal(t, codes.Unavailable, status.Code(r.Err))
	require.True(t, NotSent(r.Err))
}

// TestClientGoAway: calls that the server has not looked at are made on another connection, the
// others end on theirs, which ends then.
func TestClientGoAway(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	below := rpctest.Get(rpctest.Within(t), c, []byte("below"))
	p := l.Greeted()
	id, _ := p.Asked()
	above := rpctest.Get(rpctest.Within(t), c, []byte("above"))
	p.Asked()
	st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(rpctest.Within(t))
	require.NoError(t, err)
	p.Opened()
	require.NoError(t, p.Framer.WriteGoAway(id, http2.ErrCodeNo, nil))
	err = st.RecvMsg(new(kvrpcpb.RawGetResponse))
	require.True(t, NotSent(err), err)
	q := l.Greeted()
	id2, key := q.Asked()
	require.Equal(t, "above", key)
	q.Reply(id2, "to above")
	require.Equal(t, "to above", string(rpctest.Wait(t, above, "the call").Value))
	works(q, c, "new")
	p.Reply(id, "to below")
	require.Equal(t, "to below", string(rpctest.Wait(t, below, "the call").Value))
	p.Closed()
	works(q, c, "newer")
}

// TestClientGoAwayOfACallThatIsCancelled: the connection ends with its last call, however that
// ends.
func TestClientGoAwayOfACallThatIsCancelled(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{KeepAlive: time.Hour}) // which would end it too
	ctx, cancel := context.WithCancel(rpctest.Within(t))
	res := rpctest.Get(ctx, c, nil)
	p := l.Greeted()
	id, _ := p.Asked()
	require.NoError(t, p.Framer.WriteGoAway(id, http2.ErrCodeNo, nil))
	p.Sync()
	cancel()
	require.Equal(t, codes.Canceled, status.Code(rpctest.Wait(t, res, "the call").Err))
	p.Closed()
	require.Eventually(t, func() bool {
		return len(c.allLinks()) == 0
	}, rpctest.Patience, time.Millisecond)
}

// TestClientTrickle: a server may send a byte at a time.
func TestClientTrickle(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	res := rpctest.Get(rpctest.Within(t), c, []byte("k"))
	p := l.Greeted()
	id, _ := p.Asked()
	var w rpctest.BufferConn
	trickle := &rpctest.Peer{Raw: &rpctest.Raw{T: t, Framer: http2.NewFramer(&w, nil)}}
	trickle.Encoder = rpctest.NewEncoder(&trickle.Buf)
	trickle.Reply(id, "a byte at a time")
	for i := range w.B {
		p.Write(w.B[i : i+1])
	}
	require.Equal(t, "a byte at a time", string(rpctest.Wait(t, res, "the answer").Value))
}

// TestClientOfAServerThatReadsNothing: callers return at their deadlines, and what they wanted does
// not fill the memory.
func TestClientOfAServerThatReadsNothing(t *testing.T) {
	const size, callers = 100_000, 8
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{KeepAlive: time.Hour})
	first := rpctest.Get(rpctest.Within(t), c, nil)
	p := l.Greeted(rpctest.Initial(rpc.MaxWindow))
	require.NoError(t, p.Framer.WriteWindowUpdate(0, rpc.MaxWindow-rpc.InitialWindow))
	id, _ := p.Asked()
	p.Reply(id, "")
	require.NoError(t, rpctest.Wait(t, first, "the first call").Err)
	link := onlyLink(t, c)
	var g rpctest.Group
	for range callers {
		g.Go(func() error { // until there is no room for its call
			for {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
				r := <-rpctest.Get(ctx, c, make([]byte, size))
				cancel()
				if status.Code(r.Err) != codes.DeadlineExceeded {
					return r.Err
				}
				if NotSent(r.Err) {
					return nil
				}
			}
		})
	}
	rpctest.Returns(t, "callers", func() { require.NoError(t, g.Wait()) })
	link.mu.Lock()
	require.Less(t, link.mu.out.Size, rpc.MaxOut+callers*(size+1000))
	require.Empty(t, link.mu.calls)
	link.mu.Unlock()
	_, _ = io.CopyN(io.Discard, p.Conn, 4<<20) // it reads on: the connection goes on
	go func() { _, _ = io.Copy(io.Discard, p.Conn) }()
	require.Eventually(t, func() bool {
		link.mu.Lock()
		defer link.mu.Unlock()
		return link.mu.out.Size == 0 && link.usable()
	}, rpctest.Patience, time.Millisecond)
}

// TestClientFlood: a server that asks for answers and does not read them is given up.
func TestClientFlood(t *testing.T) {
	for name, frame := range map[string][]byte{
		"pings":    {0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8},
		"settings": {0, 0, 0, 4, 0, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := rpctest.Listen(t)
			c := client(t, l.Address(), Options{KeepAlive: time.Hour})
			res := rpctest.Get(rpctest.Within(t), c, nil)
			p := l.Greeted()
			p.Asked()
			many := bytes.Repeat(frame, 10_000)
			link := onlyLink(t, c)
			for link.usable() {
				_ = p.Conn.SetWriteDeadline(time.Now().Add(rpctest.Patience))
				if _, err := p.Conn.Write(many); err != nil {
					break
				}
			}
			require.Equal(t, codes.Unavailable, status.Code(rpctest.Wait(t, res, "the call").Err))
		})
	}
}

// TestClientPings are answered, and settings too.
func TestClientPings(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	res := rpctest.Get(rpctest.Within(t), c, nil)
	p := l.Greeted()
	p.Until("an ack", func(f http2.Frame) bool {
		s, ok := f.(*http2.SettingsFrame)
		return ok && s.IsAck()
	})
	id, _ := p.Asked()
	for i := range uint64(3) {
		var data [8]byte
		binary.BigEndian.PutUint64(data[:], i+1000)
		require.NoError(t, p.Framer.WritePing(false, data))
		p.Until("an answer", func(f http2.Frame) bool {
			a, ok := f.(*http2.PingFrame)
			return ok && a.IsAck() && a.Data == data
		})
	}
	p.Reply(id, "")
	require.NoError(t, rpctest.Wait(t, res, "the call").Err)
}

// TestClientEarlyAnswer: a server that answers before it has heard all gets no more.
func TestClientEarlyAnswer(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	res := rpctest.Get(rpctest.Within(t), c, make([]byte, 100_000))
	p := l.Greeted()
	id := p.Opened().StreamID
	p.DataOf(id, rpc.InitialWindow)
	p.Reply(id, "enough")
	r := rpctest.Wait(t, res, "the answer")
	require.NoError(t, r.Err)
	require.Equal(t, "enough", string(r.Value))
	require.Equal(t, http2.ErrCodeNo, p.Reset(id))
	require.NoError(t, p.Framer.WriteWindowUpdate(0, 100_000))
	require.NoError(t, p.Framer.WriteWindowUpdate(id, 100_000))
	works(p, c, "next")
}

// TestClientOneAnswerToAStream: as with a unary call it counts only if the call has ended well.
func TestClientOneAnswerToAStream(t *testing.T) {
	answer := rpctest.EncodedAnswer([]byte("v"))
	for name, say := range map[string]struct {
		code codes.Code
		do   func(p *rpctest.Peer, id uint32)
	}{
		"well": {codes.OK, func(p *rpctest.Peer, id uint32) { p.Reply(id, "v") }},
		"badly": {codes.Aborted, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Data(id, answer, false)
			p.Headers(id, true, "grpc-status", "10")
		}},
		"two answers": {codes.Internal, func(p *rpctest.Peer, id uint32) {
			p.Begin(id)
			p.Data(id, append(bytes.Clone(answer), answer...), false)
		}},
		"no answer": {codes.Internal, func(p *rpctest.Peer, id uint32) { p.Begin(id); p.End(id) }},
	} {
		t.Run(name, func(t *testing.T) {
			l := rpctest.Listen(t)
			c := client(t, l.Address(), Options{})
			ended := make(chan error, 1)
			go func() {
				st, err := c.NewStream(rpctest.Within(t), &grpc.StreamDesc{ClientStreams: true},
					"/s/collect")
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
			p := l.Greeted()
			id, _ := p.Asked()
			say.do(p, id)
			err := rpctest.Wait(t, ended, "the call")
			require.Equal(t, say.code, status.Code(err), err)
			works(p, c, "next")
		})
	}
}

// lateContext is one whose timer has not fired though its deadline has passed.
type lateContext struct{ context.Context }

func (lateContext) Deadline() (time.Time, bool) { return time.Now().Add(-time.Second), true }

// TestClientCancelledAtTheDeadline: a server that cancels calls at their deadlines may be quicker
// than the client's timer.
func TestClientCancelledAtTheDeadline(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{})
	late := lateContext{rpctest.Within(t)}
	unary, stream := rpctest.Get(late, c, nil), make(chan error, 1)
	p := l.Greeted()
	id, _ := p.Asked()
	require.NoError(t, p.Framer.WriteRSTStream(id, http2.ErrCodeCancel))
	require.Equal(t, codes.DeadlineExceeded, status.Code(rpctest.Wait(t, unary, "the call").Err))
	go func() {
		st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(late)
		if err == nil {
			err = st.RecvMsg(new(kvrpcpb.RawGetResponse))
		}
		stream <- err
	}()
	require.NoError(t, p.Framer.WriteRSTStream(p.Opened().StreamID, http2.ErrCodeCancel))
	require.Equal(t, codes.DeadlineExceeded, status.Code(rpctest.Wait(t, stream, "the stream")))
}

// TestClientStreamWindow: a server that sends more than a stream's receiver allows ends the stream.
func TestClientStreamWindow(t *testing.T) {
	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{StreamWindow: rpc.InitialWindow})
	opened := make(chan grpc.ClientStream, 1)
	go func() {
		st, _ := tinykvpb.NewTinyKvClient(c).BatchCommands(rpctest.Within(t))
		opened <- st
	}()
	p := l.Greeted()
	id := p.Opened().StreamID
	st := rpctest.Wait(t, opened, "the stream")
	p.Begin(id)
	msg := rpctest.EncodedAnswer(make([]byte, 1000))
	within, beyond := rpc.InitialWindow/len(msg), rpc.InitialWindow/len(msg)+1
	for range beyond {
		p.Data(id, msg, false)
	}
	require.Equal(t, http2.ErrCodeFlowControl, p.Reset(id))
	for range within { // what came in time is delivered
		require.NoError(t, st.RecvMsg(new(kvrpcpb.RawGetResponse)))
	}
	require.Equal(t, codes.Internal, status.Code(st.RecvMsg(new(kvrpcpb.RawGetResponse))))
	works(p, c, "next")
}
