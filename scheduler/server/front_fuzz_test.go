package server

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tinykv/tinykv/pkg/security"
)

// bubbleCerts are made once, in a bubble, whose clock begins years ago.
type bubbleCerts struct {
	dir          string
	once         sync.Once
	node, client *security.Identity
}

func (c *bubbleCerts) make(t *testing.T) {
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

// asTCP fails as a listener of the net package does once it is closed.
type asTCP struct{ net.Listener }

func (l asTCP) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, net.ErrClosed
	}
	return nc, nil
}

// saying has a client send data to a port, within TLS of a protocol if there is one, and leave
// unless it stays until it is sent away.
func saying(nc net.Conn, cfg *tls.Config, protocol string, cut int, data []byte, stays bool) {
	defer nc.Close()
	out := nc
	if protocol != "" {
		cfg.NextProtos = []string{protocol}
		c := tls.Client(nc, cfg)
		if c.Handshake() != nil {
			return
		}
		out = c
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { defer wg.Done(); _, _ = io.Copy(io.Discard, out) }()
	_, _ = out.Write(data[:min(cut, len(data))])
	_, _ = out.Write(data[min(cut, len(data)):])
	if !stays {
		_ = nc.Close()
	}
	wg.Wait()
}

// FuzzFront: whatever a client sends to the client port, in the clear, in place of a handshake or
// within TLS, nothing panics; a client that stays and says nothing more is sent away; and no
// connection counts afterwards.
func FuzzFront(f *testing.F) {
	greeting := http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	for i, s := range []string{
		"", "\x16", "\x16\x03\x01\xff\xff", "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
		"\x15\x03\x03\x00\x02\x02\x00", "P", "PRI * HTTP/2.0\r\n\r\nS",
		http2.ClientPreface, greeting,
		greeting + "\x00\x00\x04\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41", "GET / HTTP/1.1\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAAA\r\n\r\n",
	} {
		for how := range 3 {
			f.Add(byte(how), uint16(i), i%2 == 0, (i+how)%2 == 0, []byte(s))
		}
	}
	certs := &bubbleCerts{dir: f.TempDir() + "/certs"}
	f.Fuzz(func(t *testing.T, how byte, cut uint16, plain, stays bool, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			certs.once.Do(func() { certs.make(t) })
			l := bufconn.Listen(64 << 10)
			s := newFront(4, 4, certs.node.Server("http/1.1", "h2"), plain)
			s.listeners = []net.Listener{asTCP{l}}
			s.h1, s.h2 = newHanded(l.Addr()), newHanded(l.Addr())
			s.serve((&security.Guard{}).Wrap(http.NotFoundHandler()), func(*grpc.Server) {},
				transportOptions())
			nc, err := l.Dial()
			require.NoError(t, err)
			cfg := certs.client.Client()
			cfg.ServerName = "localhost"
			began := time.Now()
			saying(nc, cfg, []string{"", "h2", "http/1.1"}[int(how)%3], int(cut), data, stays)
			require.Less(t, time.Since(began), 4*time.Minute, "the connection was held")
			time.Sleep(time.Minute)
			synctest.Wait()
			require.Zero(t, s.open.Load())
			s.stop()
		})
	})
}

// TestSlowHandshakesMakeRoom: connections that have not said what they speak are bounded; those of
// the moment stay, and one that takes its time ends for a new one.
func TestSlowHandshakesMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFront(4*minSniffed, 4*minSniffed, nil, false)
		var ours []net.Conn
		come := func() net.Conn {
			a, b := net.Pipe()
			ours = append(ours, a)
			conn, err := f.admit(b)
			require.NoError(t, err)
			return conn
		}
		first := come()
		time.Sleep(time.Millisecond)
		for range minSniffed - 1 {
			require.NotNil(t, come())
		}
		require.Nil(t, come(), "all of them have come just now")
		require.EqualValues(t, 1, f.refused.Load())
		time.Sleep(slowAfter - time.Millisecond)
		require.NotNil(t, come())
		require.EqualValues(t, 1, f.slow.Load())
		_, err := first.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.ErrClosedPipe, "the oldest one ended")
		f.sniff(first)
		require.EqualValues(t, minSniffed, f.open.Load(), "it does not count any more")
		f.stop()
		_, err = f.admit(ours[0])
		require.ErrorIs(t, err, net.ErrClosed)
		for _, nc := range ours {
			_ = nc.Close()
		}
	})
}
