package client

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// answers are what a server may say after its SETTINGS to a client with a stream, 1, and a unary
// call, 3.
func answers() [][]byte {
	ok := []string{":status", "200", "content-type", "application/grpc"}
	return [][]byte{
		rpctest.Script(func(r *rpctest.Raw) { p := say(r); p.Reply(3, "a"); p.Reply(1, "b") }),
		rpctest.Script(func(r *rpctest.Raw) {
			p := say(r)
			p.Begin(1)
			for range 3 {
				p.Data(1, bytes.Repeat(rpctest.EncodedAnswer([]byte("x")), 20), false)
			}
			_ = r.Framer.WriteDataPadded(1, false, rpctest.EncodedAnswer([]byte("in parts"))[:7],
				make([]byte, 3))
			_ = r.Framer.WritePing(false, [8]byte{1})
			_ = r.Framer.WriteSettings(rpctest.Initial(1),
				http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
			_ = r.Framer.WriteWindowUpdate(3, 100)
			p.Headers(3, true, append(ok, "grpc-status", "5", "grpc-message", "not%20there")...)
			p.End(1)
		}),
		rpctest.Script(func(r *rpctest.Raw) {
			p := say(r)
			p.Headers(1, false, append(ok, "grpc-encoding", "gzip")...)
			p.Data(1, []byte{1, 0, 0, 0, 3, 1, 2, 3}, false)
			_ = r.Framer.WriteRSTStream(3, http2.ErrCodeRefusedStream)
			_ = r.Framer.WriteGoAway(1, http2.ErrCodeNo, nil)
			_ = r.Framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: 1, BlockFragment: []byte{0x40, 1, 'a'},
			})
			_ = r.Framer.WriteContinuation(1, true, []byte{1, 'b'})
		}),
		rpctest.Script(func(r *rpctest.Raw) {
			p := say(r)
			p.Begin(3)
			p.Data(3, rpctest.EncodedAnswer([]byte("v")), true)
			p.Reply(2, "x")
		}),
	}
}

// say lets a script speak as a server.
func say(r *rpctest.Raw) *rpctest.Peer { r.T = new(testing.T); return &rpctest.Peer{Raw: r} }

// FuzzClient: whatever a server sends, nothing panics, all calls end when the server has closed,
// and nothing is left.
func FuzzClient(f *testing.F) {
	for _, b := range answers() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := New("x", Options{MaxRecv: 1 << 16, StreamWindow: 1 << 16, ConnWindow: 1 << 17})
		server, conn := net.Pipe()
		l := newLink(c, conn)
		c.mu.links[l] = struct{}{}
		greeted, ended := make(chan struct{}), make(chan struct{}, 4)
		run := func(f func()) { go func() { defer func() { ended <- struct{}{} }(); f() }() }
		run(func() { _, _ = io.Copy(io.Discard, server) })
		run(func() { l.serve(greeted) })
		_, _ = server.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0})
		rpctest.Wait(t, greeted, "the greeting")
		st, err := l.newStream(context.Background(), new(callInfo),
			&grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, rpctest.StreamPath)
		require.NoError(t, err)
		run(func() {
			for st.RecvMsg(new(kvrpcpb.RawGetResponse)) == nil {
			}
		})
		run(func() {
			_ = l.invoke(context.Background(), nil, rpctest.GetPath, &kvrpcpb.RawGetRequest{},
				new(kvrpcpb.RawGetResponse))
		})
		require.Eventually(t, func() bool {
			return l.open() == 2
		}, rpctest.Patience, 10*time.Microsecond)
		_ = server.SetWriteDeadline(time.Now().Add(rpctest.Patience))
		// the client has had enough, but it reads until then
		if _, err := server.Write(b); err != nil {
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		}
		_ = server.Close()
		for range 4 {
			rpctest.Wait(t, ended, "a goroutine")
		}
		rpctest.Returns(t, "Close", func() { _ = c.Close() })
		require.Zero(t, l.open())
		require.Empty(t, c.allLinks())
	})
}
