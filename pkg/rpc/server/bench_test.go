package server

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// BenchmarkInline is one call after the other through grpc's client.
func BenchmarkInline(b *testing.B) {
	_, addr := start(b, Options{}, &rpctest.KV{}, echoInline)
	c := rpctest.DialKV(b, addr)
	ctx := context.Background()
	req := &kvrpcpb.RawGetRequest{Key: make([]byte, 16)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.RawGet(ctx, req); err != nil {
			b.Fatal(err)
		}
	}
}

// encoded is a client that allocates nothing: its frames are made beforehand, and answers are not
// looked at but for the end of a call.
type encoded struct {
	nc     net.Conn
	call   []byte
	id     uint32
	answer [4 << 10]byte
	got    int
}

// newEncoded greets over nc and makes a few calls, so that both sides know all headers.
func newEncoded(t testing.TB, nc net.Conn) *encoded {
	e := &encoded{nc: nc, id: 1}
	var buf bytes.Buffer
	r := &rpctest.Raw{Framer: http2.NewFramer(&buf, nil)}
	r.Encoder = rpctest.NewEncoder(&r.Buf)
	buf.WriteString(rpc.Preface)
	_ = r.Framer.WriteSettings(rpctest.Initial(rpc.MaxWindow))
	_ = r.Framer.WriteWindowUpdate(0, rpc.MaxWindow-rpc.InitialWindow)
	_ = r.Framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: e.id, BlockFragment: r.Block(rpctest.GetPath), EndHeaders: true,
	})
	_ = r.Framer.WriteData(e.id, true, rpctest.EncodedGet(make([]byte, 16)))
	first := bytes.Clone(buf.Bytes())
	buf.Reset()
	_ = r.Framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 3, BlockFragment: r.Block(rpctest.GetPath), EndHeaders: true,
	})
	_ = r.Framer.WriteData(3, true, rpctest.EncodedGet(make([]byte, 16)))
	e.call = bytes.Clone(buf.Bytes())
	go func() { _, _ = nc.Write(first) }() // over a pipe, the server writes before it has read all
	require.NoError(t, e.end())
	for range 10 {
		require.NoError(t, e.once())
	}
	return e
}

// once makes one call and reads its answer.
func (e *encoded) once() error {
	e.id += 2
	putID := func(b []byte) {
		b[5], b[6], b[7], b[8] = byte(e.id>>24), byte(e.id>>16), byte(e.id>>8), byte(e.id)
	}
	putID(e.call)
	putID(e.call[rpc.FrameHeader+(int(e.call[1])<<8|int(e.call[2])):])
	if _, err := e.nc.Write(e.call); err != nil {
		return err
	}
	return e.end()
}

// end reads until the call has ended.
func (e *encoded) end() error {
	for {
		at := 0
		for e.got-at >= rpc.FrameHeader {
			h := e.answer[at:]
			n := rpc.FrameHeader + (int(h[0])<<16 | int(h[1])<<8 | int(h[2]))
			if e.got-at < n {
				break
			}
			at += n
			if http2.FrameType(h[3]) == http2.FrameHeaders &&
				http2.Flags(h[4]).Has(http2.FlagHeadersEndStream) {
				e.got = copy(e.answer[:], e.answer[at:e.got])
				return nil
			}
		}
		e.got = copy(e.answer[:], e.answer[at:e.got])
		n, err := e.nc.Read(e.answer[e.got:])
		if err != nil {
			return err
		}
		if e.got += n; e.got == len(e.answer) {
			return io.ErrShortBuffer
		}
	}
}

// BenchmarkServer is the server's part alone, and what the kernel takes for the connection, beside
// grpc-go's server with the options that stores gave it.
func BenchmarkServer(b *testing.B) {
	for name, serve := range map[string]func() string{
		"inline": func() string {
			_, addr := start(b, Options{}, &rpctest.KV{}, fixedInline)
			return addr
		},
		"goroutine": func() string {
			_, addr := start(b, Options{}, &rpctest.KV{Get: fixedGet}, nil)
			return addr
		},
		"grpc-go": func() string {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(b, err)
			s := grpc.NewServer(codec.ServerOption(), grpc.NumStreamWorkers(128),
				grpc.InitialWindowSize(4<<20), grpc.InitialConnWindowSize(8<<20))
			tinykvpb.RegisterTinyKvServer(s, &rpctest.KV{Get: fixedGet})
			go func() { _ = s.Serve(l) }() // ends with Stop
			b.Cleanup(s.Stop)
			return l.Addr().String()
		},
	} {
		b.Run(name, func(b *testing.B) {
			nc, err := net.Dial("tcp", serve())
			require.NoError(b, err)
			b.Cleanup(func() { _ = nc.Close() })
			e := newEncoded(b, nc)
			b.ReportAllocs()
			for b.Loop() {
				if err := e.once(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func fixedGet(context.Context, *kvrpcpb.RawGetRequest) (*kvrpcpb.RawGetResponse, error) {
	return fixed, nil
}

var fixed = &kvrpcpb.RawGetResponse{Value: make([]byte, 256)}

// fixedInline allocates nothing.
func fixedInline(call *Call, _ []byte) bool { call.Reply(fixed); return true }

// TestAllocationsOfAnInlineCall: what the server allocates for one, as measured with Go 1.26.
func TestAllocationsOfAnInlineCall(t *testing.T) {
	s, _ := start(t, Options{}, &rpctest.KV{}, fixedInline)
	client, server := net.Pipe()
	s.start(server)
	t.Cleanup(func() { _ = client.Close() })
	e := newEncoded(t, client)
	allocs := testing.AllocsPerRun(500, func() {
		if err := e.once(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%v allocations", allocs)
	require.LessOrEqual(t, allocs, float64(inlineBudget))
}

const inlineBudget = 12
