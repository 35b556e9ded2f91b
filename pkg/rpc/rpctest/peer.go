package rpctest

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

// Result is what a call came to.
type Result struct {
	Value []byte
	Err   error
}

// Get makes a call; the result comes when it has ended.
func Get(ctx context.Context, c grpc.ClientConnInterface, key []byte) <-chan Result {
	ch := make(chan Result, 1)
	go func() {
		resp, err := tinykvpb.NewTinyKvClient(c).RawGet(ctx, &kvrpcpb.RawGetRequest{Key: key})
		ch <- Result{resp.GetValue(), err}
	}()
	return ch
}

// Peer is a server that says what it likes.
type Peer struct{ *Raw }

// Listener is where peers come from.
type Listener struct {
	t testing.TB
	net.Listener
}

// Listen opens a port for as long as the test lasts.
func Listen(t testing.TB) *Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return &Listener{t, l}
}

// Address is host:port.
func (l *Listener) Address() string { return l.Addr().String() }

// Silent takes a connection and says nothing.
func (l *Listener) Silent() *Peer {
	l.t.Helper()
	_ = l.Listener.(*net.TCPListener).SetDeadline(time.Now().Add(Patience))
	nc, err := l.Accept()
	require.NoError(l.t, err)
	p := &Peer{NewRaw(l.t, nc)}
	_ = nc.SetReadDeadline(time.Now().Add(Patience))
	got := make([]byte, len(http2.ClientPreface))
	_, err = io.ReadFull(nc, got)
	require.NoError(l.t, err)
	require.Equal(l.t, http2.ClientPreface, string(got))
	return p
}

// Greeted takes a connection as HTTP/2 asks for.
func (l *Listener) Greeted(settings ...http2.Setting) *Peer {
	l.t.Helper()
	p := l.Silent()
	require.NoError(l.t, p.Framer.WriteSettings(settings...))
	return p
}

// Headers answers, or ends the answer.
func (p *Peer) Headers(id uint32, end bool, fields ...string) {
	p.T.Helper()
	p.Buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = p.Encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	require.NoError(p.T, p.Framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: bytes.Clone(p.Buf.Bytes()), EndStream: end, EndHeaders: true}))
}

// Begin sends the first headers of an answer.
func (p *Peer) Begin(id uint32) {
	p.T.Helper()
	p.Headers(id, false, ":status", "200", "content-type", "application/grpc")
}

// End ends an answer well.
func (p *Peer) End(id uint32) { p.T.Helper(); p.Headers(id, true, "grpc-status", "0") }

// Reply answers a call well.
func (p *Peer) Reply(id uint32, value string) {
	p.T.Helper()
	p.Begin(id)
	p.Data(id, EncodedAnswer([]byte(value)), false)
	p.End(id)
}

// EncodedAnswer is an encoded answer with its prefix.
func EncodedAnswer(value []byte) []byte {
	body, _ := (&kvrpcpb.RawGetResponse{Value: value}).Marshal()
	n := len(body)
	return append([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, body...)
}

// Opened reads until a call begins.
func (p *Peer) Opened() *http2.MetaHeadersFrame {
	p.T.Helper()
	return p.Until("a call", func(f http2.Frame) bool {
		_, ok := f.(*http2.MetaHeadersFrame)
		return ok
	}).(*http2.MetaHeadersFrame)
}

// Asked reads a whole unary call.
func (p *Peer) Asked() (id uint32, key string) {
	p.T.Helper()
	h := p.Opened()
	return h.StreamID, p.key(h.StreamID)
}

// key reads the request of a unary call.
func (p *Peer) key(id uint32) string {
	p.T.Helper()
	var body []byte
	p.Until("a request", func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		if ok && d.StreamID == id {
			body = append(body, d.Data()...)
			return d.StreamEnded()
		}
		return false
	})
	req := new(kvrpcpb.RawGetRequest)
	require.NoError(p.T, req.Unmarshal(body[prefix:]))
	return string(req.Key)
}

// Reset reads until the client has reset a call.
func (p *Peer) Reset(id uint32) http2.ErrCode {
	p.T.Helper()
	return p.Until("a reset", func(f http2.Frame) bool {
		r, ok := f.(*http2.RSTStreamFrame)
		return ok && r.StreamID == id
	}).(*http2.RSTStreamFrame).ErrCode
}
