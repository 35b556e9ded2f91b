package rpc

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// result is what a call came to.
type result struct {
	value []byte
	err   error
}

// get makes a call; the result comes when it has ended.
func get(ctx context.Context, c grpc.ClientConnInterface, key []byte) <-chan result {
	ch := make(chan result, 1)
	go func() {
		resp, err := tinykvpb.NewTinyKvClient(c).RawGet(ctx, &kvrpcpb.RawGetRequest{Key: key})
		ch <- result{resp.GetValue(), err}
	}()
	return ch
}

// peer is a server that says what it likes.
type peer struct{ *raw }

// listener is where peers come from.
type listener struct {
	t testing.TB
	net.Listener
}

func listen(t testing.TB) *listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return &listener{t, l}
}

func (l *listener) addr() string { return l.Addr().String() }

// silent takes a connection and says nothing.
func (l *listener) silent() *peer {
	l.t.Helper()
	_ = l.Listener.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	nc, err := l.Accept()
	require.NoError(l.t, err)
	p := &peer{newRaw(l.t, nc)}
	_ = nc.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(preface))
	_, err = io.ReadFull(nc, got)
	require.NoError(l.t, err)
	require.Equal(l.t, preface, string(got))
	return p
}

// greeted takes a connection as HTTP/2 asks for.
func (l *listener) greeted(settings ...http2.Setting) *peer {
	l.t.Helper()
	p := l.silent()
	require.NoError(l.t, p.fr.WriteSettings(settings...))
	return p
}

// headers answers, or ends the answer.
func (p *peer) headers(id uint32, end bool, fields ...string) {
	p.t.Helper()
	p.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	require.NoError(p.t, p.fr.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: bytes.Clone(p.buf.Bytes()), EndStream: end, EndHeaders: true}))
}

func (p *peer) begin(id uint32) {
	p.t.Helper()
	p.headers(id, false, ":status", "200", "content-type", "application/grpc")
}

func (p *peer) end(id uint32) { p.t.Helper(); p.headers(id, true, "grpc-status", "0") }

// reply answers a call well.
func (p *peer) reply(id uint32, value string) {
	p.t.Helper()
	p.begin(id)
	p.data(id, answer5([]byte(value)), false)
	p.end(id)
}

// answer5 is an encoded answer with its prefix.
func answer5(value []byte) []byte {
	body, _ := (&kvrpcpb.RawGetResponse{Value: value}).Marshal()
	n := len(body)
	return append([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, body...)
}

// opened reads until a call begins.
func (p *peer) opened() *http2.MetaHeadersFrame {
	p.t.Helper()
	return p.until("a call", func(f http2.Frame) bool { _, ok := f.(*http2.MetaHeadersFrame); return ok }).(*http2.MetaHeadersFrame)
}

// asked reads a whole unary call.
func (p *peer) asked() (id uint32, key string) {
	p.t.Helper()
	h := p.opened()
	return h.StreamID, p.key(h.StreamID)
}

// key reads the request of a unary call.
func (p *peer) key(id uint32) string {
	p.t.Helper()
	var body []byte
	p.until("a request", func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		if ok && d.StreamID == id {
			body = append(body, d.Data()...)
			return d.StreamEnded()
		}
		return false
	})
	req := new(kvrpcpb.RawGetRequest)
	require.NoError(p.t, req.Unmarshal(body[prefixSize:]))
	return string(req.Key)
}

// reset reads until the client has reset a call.
func (p *peer) reset(id uint32) http2.ErrCode {
	p.t.Helper()
	return p.until("a reset", func(f http2.Frame) bool {
		r, ok := f.(*http2.RSTStreamFrame)
		return ok && r.StreamID == id
	}).(*http2.RSTStreamFrame).ErrCode
}
