package rpctest

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// What tests share.
const (
	// GetPath and StreamPath are the methods of KV.
	GetPath    = "/tinykvpb.TinyKv/RawGet"
	StreamPath = "/tinykvpb.TinyKv/BatchCommands"
	// Patience is how long a test waits for what must happen; it is never waited out by a test that
	// passes.
	Patience = 20 * time.Second
	// prefix stands before a message; maxFrame is the largest frame that either side takes.
	prefix, maxFrame = 5, 16 << 10
)

// KV is a service of one unary method and one of streams; both echo unless a test says otherwise.
type KV struct {
	tinykvpb.UnimplementedTinyKvServer
	// Get and Stream replace the echoes.
	Get    func(context.Context, *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error)
	Stream func(grpc.ServerStream) error
}

// RawGet implements tinykvpb.TinyKvServer.
func (k *KV) RawGet(
	ctx context.Context, req *kvrpcpb.RawGetRequest,
) (*kvrpcpb.RawGetResponse, error) {
	if k.Get != nil {
		return k.Get(ctx, req)
	}
	return &kvrpcpb.RawGetResponse{Value: req.Key}, nil
}

// BatchCommands implements tinykvpb.TinyKvServer.
func (k *KV) BatchCommands(st tinykvpb.TinyKv_BatchCommandsServer) error {
	if k.Stream != nil {
		return k.Stream(st)
	}
	for {
		req := new(kvrpcpb.RawGetRequest)
		if err := st.RecvMsg(req); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := st.SendMsg(&kvrpcpb.RawGetResponse{Value: req.Key}); err != nil {
			return err
		}
	}
}

// Dial makes a client of grpc-go that lives as long as the test.
func Dial(t testing.TB, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		opts...)
	cc, err := grpc.NewClient(addr, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// DialKV is Dial for the service of KV, with the project's codec.
func DialKV(t testing.TB, addr string, opts ...grpc.DialOption) tinykvpb.TinyKvClient {
	return tinykvpb.NewTinyKvClient(Dial(t, addr,
		append(opts, grpc.WithDefaultCallOptions(codec.CallOption()))...))
}

// Within is a context that ends when a test has waited for too long.
func Within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// Wait receives from ch, and fails the test if nothing comes.
func Wait[T any](t testing.TB, ch <-chan T, what string) (v T) {
	t.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case v = <-ch:
	case <-timer.C:
		require.FailNow(t, "timed out", what)
	}
	return v
}

// Returns fails the test if f does not return.
func Returns(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	Wait(t, done, what)
}

// Raw is a client that says what it likes.
type Raw struct {
	// T is the test, Conn the connection; Encoder writes header blocks to Buf.
	T       testing.TB
	Conn    net.Conn
	Framer  *http2.Framer
	Encoder *hpack.Encoder
	Buf     bytes.Buffer
}

// DialRaw opens a connection and says nothing yet.
func DialRaw(t testing.TB, addr string) *Raw {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	return NewRaw(t, nc)
}

// NewRaw is a Raw over a connection, which the test closes.
func NewRaw(t testing.TB, nc net.Conn) *Raw {
	t.Cleanup(func() { _ = nc.Close() })
	r := &Raw{T: t, Conn: nc, Framer: http2.NewFramer(nc, nc)}
	r.Framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	r.Framer.AllowIllegalWrites = true
	r.Encoder = hpack.NewEncoder(&r.Buf)
	return r
}

// Greet opens a connection as HTTP/2 asks for.
func Greet(t testing.TB, addr string, settings ...http2.Setting) *Raw {
	t.Helper()
	r := DialRaw(t, addr)
	r.Write([]byte(http2.ClientPreface))
	require.NoError(t, r.Framer.WriteSettings(settings...))
	return r
}

// Write sends bytes.
func (r *Raw) Write(b []byte) {
	r.T.Helper()
	_, err := r.Conn.Write(b)
	require.NoError(r.T, err)
}

// Block encodes the headers of a call.
func (r *Raw) Block(path string, extra ...string) []byte {
	r.Buf.Reset()
	fields := append([]string{":method", "POST", ":scheme", "http", ":path", path, ":authority",
		"x",
		"content-type", "application/grpc", "te", "trailers"}, extra...)
	for i := 0; i < len(fields); i += 2 {
		_ = r.Encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(r.Buf.Bytes())
}

// Open sends the headers of a call.
func (r *Raw) Open(id uint32, path string, end bool, extra ...string) {
	r.T.Helper()
	require.NoError(r.T, r.Framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: r.Block(path, extra...), EndStream: end, EndHeaders: true}))
}

// Data sends bytes of messages, in as many frames as they take.
func (r *Raw) Data(id uint32, b []byte, end bool) {
	r.T.Helper()
	for len(b) > maxFrame {
		require.NoError(r.T, r.Framer.WriteData(id, false, b[:maxFrame]))
		b = b[maxFrame:]
	}
	require.NoError(r.T, r.Framer.WriteData(id, end, b))
}

// Call sends a whole unary call.
func (r *Raw) Call(id uint32, key []byte) {
	r.T.Helper()
	r.Open(id, GetPath, false)
	r.Data(id, EncodedGet(key), true)
}

// EncodedGet is an encoded get with its prefix.
func EncodedGet(key []byte) []byte {
	body, _ := (&kvrpcpb.RawGetRequest{Key: key}).Marshal()
	n := len(body)
	return append([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, body...)
}

// Next reads a frame.
func (r *Raw) Next() (http2.Frame, error) {
	_ = r.Conn.SetReadDeadline(time.Now().Add(Patience))
	return r.Framer.ReadFrame()
}

// Until reads until a frame is the one that is waited for.
func (r *Raw) Until(what string, match func(http2.Frame) bool) http2.Frame {
	r.T.Helper()
	for {
		f, err := r.Next()
		require.NoError(r.T, err, what)
		if match(f) {
			return f
		}
	}
}

// Reply is what a call got.
type Reply struct {
	Value         []byte
	Status, HTTP  string
	Message       string
	Reset         bool
	Code          http2.ErrCode
	HeaderBlocks  int
	DataFrames    int
	LargestDataIn int
}

// Answer reads until the call has ended.
func (r *Raw) Answer(id uint32) (a Reply) {
	r.T.Helper()
	var body []byte
	r.Until("an answer", func(f http2.Frame) bool {
		if f.Header().StreamID != id {
			return false
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			a.HeaderBlocks++
			for _, h := range f.Fields {
				switch h.Name {
				case ":status":
					a.HTTP = h.Value
				case "grpc-status":
					a.Status = h.Value
				case "grpc-message":
					a.Message = h.Value
				}
			}
			return f.StreamEnded()
		case *http2.DataFrame:
			a.DataFrames++
			a.LargestDataIn = max(a.LargestDataIn, len(f.Data()))
			body = append(body, f.Data()...)
			return f.StreamEnded()
		case *http2.RSTStreamFrame:
			a.Reset, a.Code = true, f.ErrCode
			return true
		}
		return false
	})
	// all of it
	if len(body) >= prefix && len(body) == prefix+int(binary.BigEndian.Uint32(body[1:])) {
		resp := new(kvrpcpb.RawGetResponse)
		require.NoError(r.T, resp.Unmarshal(body[prefix:]))
		a.Value = resp.Value
	}
	return a
}

// Works makes a call and compares the answer.
func (r *Raw) Works(id uint32, key string) {
	r.T.Helper()
	r.Call(id, []byte(key))
	a := r.Answer(id)
	require.Equal(r.T, "0", a.Status, a.Message)
	require.Equal(r.T, key, string(a.Value))
}

// GoAway reads until the server gives the connection up, and that it is closed then.
func (r *Raw) GoAway() *http2.GoAwayFrame {
	r.T.Helper()
	f := *r.Until("GOAWAY", func(f http2.Frame) bool {
		_, ok := f.(*http2.GoAwayFrame)
		return ok
	}).(*http2.GoAwayFrame)
	r.Closed()
	return &f
}

// Closed reads until the server has closed.
func (r *Raw) Closed() {
	r.T.Helper()
	for {
		if _, err := r.Next(); err != nil {
			var timeout interface{ Timeout() bool }
			if ne, ok := err.(net.Error); ok {
				timeout = ne
			}
			require.False(r.T, timeout != nil && timeout.Timeout(), "the server did not close")
			return
		}
	}
}

// Sync returns when the server has handled everything that was sent.
func (r *Raw) Sync() {
	r.T.Helper()
	data := [8]byte{'s', 'y', 'n', 'c'}
	require.NoError(r.T, r.Framer.WritePing(false, data))
	r.Until("a ping's answer", func(f http2.Frame) bool {
		p, ok := f.(*http2.PingFrame)
		return ok && p.IsAck() && p.Data == data
	})
}

// Group waits for goroutines, of whose errors it returns one.
type Group struct {
	wg  sync.WaitGroup
	err atomic.Pointer[error]
}

// Go runs f on a goroutine.
func (g *Group) Go(f func() error) {
	g.wg.Go(func() {
		if err := f(); err != nil {
			g.err.CompareAndSwap(nil, &err)
		}
	})
}

// Wait returns when all have ended.
func (g *Group) Wait() error {
	g.wg.Wait()
	if err := g.err.Load(); err != nil {
		return *err
	}
	return nil
}

// BufferConn takes what is written.
type BufferConn struct {
	// B is what was written.
	B []byte
}

// Write never fails.
func (w *BufferConn) Write(p []byte) (int, error) { w.B = append(w.B, p...); return len(p), nil }

// NewDecoder is a decoder of header blocks as HTTP/2 has it at the beginning.
func NewDecoder() *hpack.Decoder { return hpack.NewDecoder(4096, nil) }

// NewEncoder is an encoder of header blocks.
func NewEncoder(w io.Writer) *hpack.Encoder { return hpack.NewEncoder(w) }

// Initial is the setting of the window of new streams.
func Initial(n uint32) http2.Setting {
	return http2.Setting{ID: http2.SettingInitialWindowSize, Val: n}
}

// DataOf reads until n bytes have come for a call, and that nothing more comes until the server has
// seen all.
func (r *Raw) DataOf(id uint32, n int) {
	r.T.Helper()
	got := 0
	for got < n {
		f, err := r.Next()
		require.NoError(r.T, err)
		if d, ok := f.(*http2.DataFrame); ok && d.StreamID == id {
			got += len(d.Data())
		}
	}
	require.NoError(r.T, r.Framer.WritePing(false, [8]byte{9}))
	for {
		f, err := r.Next()
		require.NoError(r.T, err)
		if d, ok := f.(*http2.DataFrame); ok && d.StreamID == id {
			got += len(d.Data())
		}
		if p, ok := f.(*http2.PingFrame); ok && p.IsAck() && p.Data == [8]byte{9} {
			break
		}
	}
	require.Equal(r.T, n, got)
}

// Script records what a client sends after its SETTINGS.
func Script(f func(r *Raw)) []byte {
	var buf bytes.Buffer
	r := &Raw{Framer: http2.NewFramer(&buf, nil)}
	r.Framer.AllowIllegalWrites = true
	r.Encoder = NewEncoder(&r.Buf)
	f(r)
	return buf.Bytes()
}
