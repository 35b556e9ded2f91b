package rpc

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
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	getPath    = "/tinykvpb.TinyKv/RawGet"
	streamPath = "/tinykvpb.TinyKv/BatchCommands"
	// patience is how long a test waits for what must happen; it is never waited out by a test that passes.
	patience = 20 * time.Second
)

// kv is a service of one unary method and one of streams; both echo unless a test says otherwise.
type kv struct {
	tinykvpb.UnimplementedTinyKvServer
	get    func(context.Context, *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error)
	stream func(grpc.ServerStream) error
}

func (k *kv) RawGet(ctx context.Context, req *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error) {
	if k.get != nil {
		return k.get(ctx, req)
	}
	return &kvrpcpb.RawGetResponse{Value: req.Key}, nil
}

func (k *kv) BatchCommands(st tinykvpb.TinyKv_BatchCommandsServer) error {
	if k.stream != nil {
		return k.stream(st)
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

// dial makes a client that lives as long as the test.
func dial(t testing.TB, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, opts...)
	cc, err := grpc.NewClient(addr, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func dialKv(t testing.TB, addr string, opts ...grpc.DialOption) tinykvpb.TinyKvClient {
	return tinykvpb.NewTinyKvClient(dial(t, addr, append(opts, grpc.WithDefaultCallOptions(codec.CallOption()))...))
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// wait fails the test if ch has nothing to say.
func wait[T any](t testing.TB, ch <-chan T, what string) (v T) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v = <-ch:
	case <-timer.C:
		require.FailNow(t, "timed out", what)
	}
	return v
}

// returns fails the test if f does not return.
func returns(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	wait(t, done, what)
}

// raw is a client that says what it likes.
type raw struct {
	t   testing.TB
	nc  net.Conn
	fr  *http2.Framer
	enc *hpack.Encoder
	buf bytes.Buffer
}

// dialRaw opens a connection and says nothing yet.
func dialRaw(t testing.TB, addr string) *raw {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	return newRaw(t, nc)
}

func newRaw(t testing.TB, nc net.Conn) *raw {
	t.Cleanup(func() { _ = nc.Close() })
	r := &raw{t: t, nc: nc, fr: http2.NewFramer(nc, nc)}
	r.fr.ReadMetaHeaders = hpack.NewDecoder(tableSize, nil)
	r.fr.AllowIllegalWrites = true
	r.enc = hpack.NewEncoder(&r.buf)
	return r
}

// greet opens a connection as HTTP/2 asks for.
func greet(t testing.TB, addr string, settings ...http2.Setting) *raw {
	t.Helper()
	r := dialRaw(t, addr)
	r.write([]byte(preface))
	require.NoError(t, r.fr.WriteSettings(settings...))
	return r
}

func (r *raw) write(b []byte) {
	r.t.Helper()
	_, err := r.nc.Write(b)
	require.NoError(r.t, err)
}

// block encodes the headers of a call.
func (r *raw) block(path string, extra ...string) []byte {
	r.buf.Reset()
	fields := append([]string{":method", "POST", ":scheme", "http", ":path", path, ":authority", "x",
		"content-type", "application/grpc", "te", "trailers"}, extra...)
	for i := 0; i < len(fields); i += 2 {
		_ = r.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(r.buf.Bytes())
}

// open sends the headers of a call.
func (r *raw) open(id uint32, path string, end bool, extra ...string) {
	r.t.Helper()
	require.NoError(r.t, r.fr.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: r.block(path, extra...), EndStream: end, EndHeaders: true}))
}

func (r *raw) data(id uint32, b []byte, end bool) {
	r.t.Helper()
	for len(b) > maxFrameIn {
		require.NoError(r.t, r.fr.WriteData(id, false, b[:maxFrameIn]))
		b = b[maxFrameIn:]
	}
	require.NoError(r.t, r.fr.WriteData(id, end, b))
}

// call sends a whole unary call.
func (r *raw) call(id uint32, key []byte) {
	r.t.Helper()
	r.open(id, getPath, false)
	r.data(id, message5(key), true)
}

// message5 is an encoded get with its prefix.
func message5(key []byte) []byte {
	body, _ := (&kvrpcpb.RawGetRequest{Key: key}).Marshal()
	n := len(body)
	return append([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, body...)
}

// next reads a frame.
func (r *raw) next() (http2.Frame, error) {
	_ = r.nc.SetReadDeadline(time.Now().Add(patience))
	return r.fr.ReadFrame()
}

// until reads until a frame is the one that is waited for.
func (r *raw) until(what string, match func(http2.Frame) bool) http2.Frame {
	r.t.Helper()
	for {
		f, err := r.next()
		require.NoError(r.t, err, what)
		if match(f) {
			return f
		}
	}
}

// reply is what a call got.
type reply struct {
	value         []byte
	status, http  string
	message       string
	reset         bool
	code          http2.ErrCode
	headerBlocks  int
	dataFrames    int
	largestDataIn int
}

// answer reads until the call has ended.
func (r *raw) answer(id uint32) (a reply) {
	r.t.Helper()
	var body []byte
	r.until("an answer", func(f http2.Frame) bool {
		if f.Header().StreamID != id {
			return false
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			a.headerBlocks++
			for _, h := range f.Fields {
				switch h.Name {
				case ":status":
					a.http = h.Value
				case "grpc-status":
					a.status = h.Value
				case "grpc-message":
					a.message = h.Value
				}
			}
			return f.StreamEnded()
		case *http2.DataFrame:
			a.dataFrames++
			a.largestDataIn = max(a.largestDataIn, len(f.Data()))
			body = append(body, f.Data()...)
			return f.StreamEnded()
		case *http2.RSTStreamFrame:
			a.reset, a.code = true, f.ErrCode
			return true
		}
		return false
	})
	if len(body) >= prefixSize && len(body) == prefixSize+int(binary.BigEndian.Uint32(body[1:])) { // all of it
		resp := new(kvrpcpb.RawGetResponse)
		require.NoError(r.t, resp.Unmarshal(body[prefixSize:]))
		a.value = resp.Value
	}
	return a
}

// works makes a call and compares the answer.
func (r *raw) works(id uint32, key string) {
	r.t.Helper()
	r.call(id, []byte(key))
	a := r.answer(id)
	require.Equal(r.t, "0", a.status, a.message)
	require.Equal(r.t, key, string(a.value))
}

// goAway reads until the server gives the connection up, and that it is closed then.
func (r *raw) goAway() *http2.GoAwayFrame {
	r.t.Helper()
	f := *r.until("GOAWAY", func(f http2.Frame) bool { _, ok := f.(*http2.GoAwayFrame); return ok }).(*http2.GoAwayFrame)
	r.closed()
	return &f
}

// closed reads until the server has closed.
func (r *raw) closed() {
	r.t.Helper()
	for {
		if _, err := r.next(); err != nil {
			var timeout interface{ Timeout() bool }
			if ne, ok := err.(net.Error); ok {
				timeout = ne
			}
			require.False(r.t, timeout != nil && timeout.Timeout(), "the server did not close")
			return
		}
	}
}

// sync returns when the server has handled everything that was sent.
func (r *raw) sync() {
	r.t.Helper()
	data := [8]byte{'s', 'y', 'n', 'c'}
	require.NoError(r.t, r.fr.WritePing(false, data))
	r.until("a ping's answer", func(f http2.Frame) bool {
		p, ok := f.(*http2.PingFrame)
		return ok && p.IsAck() && p.Data == data
	})
}

// group waits for goroutines, of whose errors it returns one.
type group struct {
	wg  sync.WaitGroup
	err atomic.Pointer[error]
}

func (g *group) Go(f func() error) {
	g.wg.Go(func() {
		if err := f(); err != nil {
			g.err.CompareAndSwap(nil, &err)
		}
	})
}

func (g *group) Wait() error {
	g.wg.Wait()
	if err := g.err.Load(); err != nil {
		return *err
	}
	return nil
}

// bufferConn takes what is written.
type bufferConn struct{ b []byte }

func (w *bufferConn) Write(p []byte) (int, error) { w.b = append(w.b, p...); return len(p), nil }

func newDecoder() *hpack.Decoder { return hpack.NewDecoder(tableSize, nil) }

func newEncoder(w io.Writer) *hpack.Encoder { return hpack.NewEncoder(w) }

func initial(n uint32) http2.Setting {
	return http2.Setting{ID: http2.SettingInitialWindowSize, Val: n}
}

// dataOf reads until n bytes have come for a call, and that nothing more comes until the server has seen all.
func (r *raw) dataOf(id uint32, n int) {
	r.t.Helper()
	got := 0
	for got < n {
		f, err := r.next()
		require.NoError(r.t, err)
		if d, ok := f.(*http2.DataFrame); ok && d.StreamID == id {
			got += len(d.Data())
		}
	}
	require.NoError(r.t, r.fr.WritePing(false, [8]byte{9}))
	for {
		f, err := r.next()
		require.NoError(r.t, err)
		if d, ok := f.(*http2.DataFrame); ok && d.StreamID == id {
			got += len(d.Data())
		}
		if p, ok := f.(*http2.PingFrame); ok && p.IsAck() && p.Data == [8]byte{9} {
			break
		}
	}
	require.Equal(r.t, n, got)
}

// script records what a client sends after its SETTINGS.
func script(f func(r *raw)) []byte {
	var buf bytes.Buffer
	r := &raw{fr: http2.NewFramer(&buf, nil)}
	r.fr.AllowIllegalWrites = true
	r.enc = newEncoder(&r.buf)
	f(r)
	return buf.Bytes()
}
