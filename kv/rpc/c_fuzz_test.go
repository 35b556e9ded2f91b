package rpc

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

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// answers are what a server may say after its SETTINGS to a client with a stream, 1, and a unary call, 3.
func answers() [][]byte {
	ok := []string{":status", "200", "content-type", "application/grpc"}
	return [][]byte{
		script(func(r *raw) { p := say(r); p.reply(3, "a"); p.reply(1, "b") }),
		script(func(r *raw) {
			p := say(r)
			p.begin(1)
			for range 3 {
				p.data(1, bytes.Repeat(answer5([]byte("x")), 20), false)
			}
			_ = r.fr.WriteDataPadded(1, false, answer5([]byte("in parts"))[:7], make([]byte, 3))
			_ = r.fr.WritePing(false, [8]byte{1})
			_ = r.fr.WriteSettings(initial(1), http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
			_ = r.fr.WriteWindowUpdate(3, 100)
			p.headers(3, true, append(ok, "grpc-status", "5", "grpc-message", "not%20there")...)
			p.end(1)
		}),
		script(func(r *raw) {
			p := say(r)
			p.headers(1, false, append(ok, "grpc-encoding", "gzip")...)
			p.data(1, []byte{1, 0, 0, 0, 3, 1, 2, 3}, false)
			_ = r.fr.WriteRSTStream(3, http2.ErrCodeRefusedStream)
			_ = r.fr.WriteGoAway(1, http2.ErrCodeNo, nil)
			_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x40, 1, 'a'}})
			_ = r.fr.WriteContinuation(1, true, []byte{1, 'b'})
		}),
		script(func(r *raw) { p := say(r); p.begin(3); p.data(3, answer5([]byte("v")), true); p.reply(2, "x") }),
	}
}

// say lets a script speak as a server.
func say(r *raw) *peer { r.t = new(testing.T); return &peer{r} }

// FuzzClient: whatever a server sends, nothing panics, all calls end when the server has closed, and nothing is left.
func FuzzClient(f *testing.F) {
	for _, b := range answers() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := NewClient("x", ClientOptions{MaxRecv: 1 << 16, StreamWindow: 1 << 16, ConnWindow: 1 << 17})
		server, conn := net.Pipe()
		l := newLink(c, conn)
		c.mu.links[l] = struct{}{}
		greeted, ended := make(chan struct{}), make(chan struct{}, 4)
		run := func(f func()) { go func() { defer func() { ended <- struct{}{} }(); f() }() }
		run(func() { _, _ = io.Copy(io.Discard, server) })
		run(func() { l.serve(greeted) })
		_, _ = server.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0})
		wait(t, greeted, "the greeting")
		st, err := l.newStream(context.Background(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, streamPath)
		require.NoError(t, err)
		run(func() {
			for st.RecvMsg(new(kvrpcpb.RawGetResponse)) == nil {
			}
		})
		run(func() {
			_ = l.invoke(context.Background(), getPath, &kvrpcpb.RawGetRequest{}, new(kvrpcpb.RawGetResponse))
		})
		require.Eventually(t, func() bool { return l.open() == 2 }, patience, 10*time.Microsecond)
		_ = server.SetWriteDeadline(time.Now().Add(patience))
		if _, err := server.Write(b); err != nil { // the client has had enough, but it reads until then
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		}
		_ = server.Close()
		for range 4 {
			wait(t, ended, "a goroutine")
		}
		returns(t, "Close", func() { _ = c.Close() })
		require.Zero(t, l.open())
		require.Empty(t, c.allLinks())
	})
}
