package server

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

func seeds() [][]byte {
	call := func(r *rpctest.Raw, id uint32, path, key string) {
		_ = r.Framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: id, BlockFragment: r.Block(path), EndHeaders: true,
		})
		_ = r.Framer.WriteData(id, true, rpctest.EncodedGet([]byte(key)))
	}
	return [][]byte{
		rpctest.Script(func(r *rpctest.Raw) {
			call(r, 1, rpctest.GetPath, "now")
			call(r, 3, rpctest.GetPath, "later")
			call(r, 5, rpctest.GetPath, "handler")
		}),
		rpctest.Script(func(r *rpctest.Raw) {
			call(r, 1, rpctest.StreamPath, "now")
			call(r, 3, "/no/such", "x")
		}),
		rpctest.Script(func(r *rpctest.Raw) {
			_ = r.Framer.WriteSettings(rpctest.Initial(3))
			call(r, 1, rpctest.GetPath, "a long answer in many parts")
			call(r, 3, rpctest.StreamPath, "another")
			_ = r.Framer.WriteWindowUpdate(1, 5)
			_ = r.Framer.WriteSettings(rpctest.Initial(1),
				http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
			_ = r.Framer.WriteWindowUpdate(3, 100)
			_ = r.Framer.WriteRSTStream(1, http2.ErrCodeCancel)
		}),
		rpctest.Script(func(r *rpctest.Raw) {
			block := r.Block(rpctest.GetPath, "grpc-timeout", "5m", "grpc-encoding", "gzip")
			_ = r.Framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: 1, BlockFragment: block[:5],
			})
			_ = r.Framer.WriteContinuation(1, true, block[5:])
			m := rpctest.EncodedGet([]byte("in parts"))
			_ = r.Framer.WriteDataPadded(1, false, m[:2], make([]byte, 3))
			_ = r.Framer.WriteData(1, false, m[2:7])
			_ = r.Framer.WritePing(false, [8]byte{1})
			_ = r.Framer.WriteData(1, true, m[7:])
			_ = r.Framer.WriteGoAway(0, http2.ErrCodeNo, nil)
		}),
		rpctest.Script(func(r *rpctest.Raw) {
			_ = r.Framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: 1, BlockFragment: r.Block(rpctest.StreamPath), EndHeaders: true,
			})
			for range 3 {
				_ = r.Framer.WriteData(1, false, bytes.Repeat(rpctest.EncodedGet([]byte("x")), 20))
			}
			_ = r.Framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: 1, BlockFragment: []byte{0x40, 1, 'a', 1, 'b'}, EndHeaders: true,
				EndStream: true,
			})
		}),
	}
}

// fuzzInline answers at once, later or not, as the request's length has it.
func fuzzInline(call *Call, request []byte) bool {
	switch len(request) % 3 {
	case 0:
		return echoInline(call, request)
	case 1:
		go call.Reply(&kvrpcpb.RawGetResponse{Value: make([]byte, 300)})
		return true
	}
	return false
}

// FuzzConn: whatever a client sends, nothing panics, the connection ends when the client has
// closed, and nothing is left.
func FuzzConn(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(Options{
			MaxRecv: 1 << 16, MaxStreams: 4, MaxHeaderBytes: 4 << 10, StreamWindow: 1 << 16,
			ConnWindow: 1 << 17,
		})
		tinykvpb.RegisterTinyKvServer(s, &rpctest.KV{})
		s.HandleInline(rpctest.GetPath, fuzzInline)
		client, server := net.Pipe()
		c := newConn(s, server)
		served, drained := make(chan struct{}), make(chan struct{})
		go func() { defer close(served); c.serve() }()
		go func() { defer close(drained); _, _ = io.Copy(io.Discard, client) }()
		_, _ = client.Write([]byte(rpc.Preface))
		_, _ = client.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0})
		_, _ = client.Write(b)
		_ = client.Close()
		rpctest.Returns(t, "serve", func() { <-served; <-drained })
		s.Stop() // waits for the handlers
		require.Eventually(t, func() bool {
			active, _ := c.counts()
			return active == 0
		}, rpctest.Patience, 100*time.Microsecond)
		_, streams := c.counts()
		require.Zero(t, streams)
	})
}
