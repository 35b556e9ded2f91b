package server

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// damaged is a connection that changes what is written from a place on: it puts bytes in.
type damaged struct {
	net.Conn
	at  int
	put []byte
}

func (d *damaged) Write(b []byte) (int, error) {
	if d.at < 0 || d.at > len(b) {
		d.at -= len(b)
		return d.Conn.Write(b)
	}
	out := append(append(append([]byte(nil), b[:d.at]...), d.put...), b[d.at:]...)
	d.at = -1
	if _, err := d.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// How a client of FuzzTLS speaks.
const (
	rawBytes   = iota // it writes the bytes, and no TLS of its own
	withinTLS         // it has a handshake, and writes the bytes within TLS
	inTheShake        // the bytes stand between those of its handshake
	underTLS          // it has a handshake and greets, and writes the bytes below TLS
	ways
)

// speak has a client send data, and leave then unless it stays until it is sent away.
func speak(nc net.Conn, cfg *tls.Config, way int, at uint16, data []byte, stays bool) {
	defer nc.Close()
	var out io.ReadWriter = nc
	if way != rawBytes {
		d := &damaged{Conn: nc, at: -1}
		if way == inTheShake {
			d.at, d.put = int(at), data
		}
		c := tls.Client(d, cfg)
		if c.Handshake() != nil {
			return
		}
		out = c
		if way != withinTLS {
			_, _ = c.Write([]byte(rpc.Preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		}
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { defer wg.Done(); _, _ = io.Copy(io.Discard, out) }()
	switch cut := min(int(at), len(data)); way {
	case rawBytes, withinTLS: // in two parts
		_, _ = out.Write(data[:cut])
		_, _ = out.Write(data[cut:])
	case underTLS:
		_, _ = nc.Write(data)
	}
	if !stays {
		_ = nc.Close()
	}
	wg.Wait()
}

func tlsSeeds() [][]byte {
	hello := []byte{0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3}
	return [][]byte{
		nil, []byte(rpc.Preface), {0x16}, {0x16, 3, 1, 0xff, 0xff}, {0x16, 3, 1, 0, 0}, hello,
		{0x15, 3, 3, 0, 2, 2, 0}, {0x15, 3, 3, 0, 2, 1, 0},
		{0x14, 3, 3, 0, 1, 1}, {0x17, 3, 3, 0x40, 0}, {0x17, 3, 3, 0, 0, 0x17, 3, 3, 0, 0},
		{0x80, 0x2e, 1, 3, 1}, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		[]byte(rpc.Preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
		{0x16, 3, 0, 0, 4, 1, 0xff, 0xff, 0xff},
	}
}

// certificates are those of a server and a client. They are made in a bubble, whose clock begins
// years ago.
type certificates struct {
	dir          string
	once         sync.Once
	node, client *security.Identity
}

func (c *certificates) make(t *testing.T) {
	require.NoError(t, security.CreateCA(c.dir))
	one := func(r security.CertRequest) *security.Identity {
		files, err := security.CreateCert(c.dir, r)
		require.NoError(t, err)
		id, err := security.LoadIdentity(files, nil)
		require.NoError(t, err)
		return id
	}
	c.node = one(security.CertRequest{
		Name: "node", Role: security.RoleNode, Hosts: []string{"localhost"},
	})
	c.client = one(security.CertRequest{Name: "app", Role: security.RoleClient})
}

// FuzzTLS: whatever a client sends to a port with TLS, before, in or after the handshake, nothing
// panics; its connection ends with it or, if it stays and says nothing, by the limits of handshakes
// and signs of life; and nothing is left.
func FuzzTLS(f *testing.F) {
	for i, b := range tlsSeeds() {
		for way := range ways {
			f.Add(byte(way), uint16(7*i), i%2 == 0, i%3 == 0, b)
		}
	}
	for _, b := range seeds() {
		f.Add(byte(withinTLS), uint16(24), false, true,
			append([]byte(rpc.Preface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"), b...))
	}
	certs := &certificates{dir: f.TempDir() + "/certs"}
	f.Fuzz(func(t *testing.T, way byte, at uint16, plain, stays bool, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			certs.once.Do(func() { certs.make(t) })
			s := New(Options{
				MaxRecv: 1 << 16, MaxStreams: 4, MaxHeaderBytes: 4 << 10, StreamWindow: 1 << 16,
				ConnWindow: 1 << 17,
			})
			tinykvpb.RegisterTinyKvServer(s, &rpctest.KV{})
			s.HandleInline(rpctest.GetPath, echoInline)
			l := bufconn.Listen(64 << 10)
			served := make(chan error, 1)
			go func() { served <- s.Serve(certs.node.Listen(l, plain, http2.NextProtoTLS)) }()
			nc, err := l.Dial()
			require.NoError(t, err)
			cfg := certs.client.Client(http2.NextProtoTLS)
			cfg.ServerName = "localhost"
			began := time.Now()
			speak(nc, cfg, int(way)%ways, at, data, stays)
			// Handshake of TLS, greeting, silence, sign of life; and what was sent may have asked
			// for as much again.
			require.Less(t, time.Since(began), 2*time.Minute, "the connection was held")
			synctest.Wait()
			s.mu.Lock()
			open := len(s.mu.conns)
			s.mu.Unlock()
			if open > 0 { // the server finds out by its next read
				time.Sleep(time.Minute)
				synctest.Wait()
			}
			s.mu.Lock()
			require.Empty(t, s.mu.conns)
			s.mu.Unlock()
			s.Stop()
			require.ErrorIs(t, <-served, ErrStopped)
		})
	})
}
