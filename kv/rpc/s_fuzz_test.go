package rpc

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

func seeds() [][]byte {
	call := func(r *raw, id uint32, path, key string) {
		_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.block(path), EndHeaders: true})
		_ = r.fr.WriteData(id, true, message5([]byte(key)))
	}
	return [][]byte{
		script(func(r *raw) { call(r, 1, getPath, "now"); call(r, 3, getPath, "later"); call(r, 5, getPath, "handler") }),
		script(func(r *raw) { call(r, 1, streamPath, "now"); call(r, 3, "/no/such", "x") }),
		script(func(r *raw) {
			_ = r.fr.WriteSettings(initial(3))
			call(r, 1, getPath, "a long answer in many parts")
			call(r, 3, streamPath, "another")
			_ = r.fr.WriteWindowUpdate(1, 5)
			_ = r.fr.WriteSettings(initial(1), http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
			_ = r.fr.WriteWindowUpdate(3, 100)
			_ = r.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		}),
		script(func(r *raw) {
			block := r.block(getPath, "grpc-timeout", "5m", "grpc-encoding", "gzip")
			_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:5]})
			_ = r.fr.WriteContinuation(1, true, block[5:])
			m := message5([]byte("in parts"))
			_ = r.fr.WriteDataPadded(1, false, m[:2], make([]byte, 3))
			_ = r.fr.WriteData(1, false, m[2:7])
			_ = r.fr.WritePing(false, [8]byte{1})
			_ = r.fr.WriteData(1, true, m[7:])
			_ = r.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
		}),
		script(func(r *raw) {
			_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(streamPath), EndHeaders: true})
			for range 3 {
				_ = r.fr.WriteData(1, false, bytes.Repeat(message5([]byte("x")), 20))
			}
			_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x40, 1, 'a', 1, 'b'}, EndHeaders: true, EndStream: true})
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

// FuzzConn: whatever a client sends, nothing panics, the connection ends when the client has closed, and nothing is left.
func FuzzConn(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(Options{MaxRecv: 1 << 16, MaxStreams: 4, MaxHeaderBytes: 4 << 10, StreamWindow: 1 << 16, ConnWindow: 1 << 17})
		tinykvpb.RegisterTinyKvServer(s, &kv{})
		s.HandleInline(getPath, fuzzInline)
		client, server := net.Pipe()
		c := newConn(s, server)
		served, drained := make(chan struct{}), make(chan struct{})
		go func() { defer close(served); c.serve() }()
		go func() { defer close(drained); _, _ = io.Copy(io.Discard, client) }()
		_, _ = client.Write([]byte(preface))
		_, _ = client.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0})
		_, _ = client.Write(b)
		_ = client.Close()
		returns(t, "serve", func() { <-served; <-drained })
		s.Stop() // waits for the handlers
		require.Eventually(t, func() bool { active, _ := c.counts(); return active == 0 }, patience, 100*time.Microsecond)
		_, streams := c.counts()
		require.Zero(t, streams)
	})
}
