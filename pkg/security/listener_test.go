package security_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tinykv/tinykv/pkg/security"
)

// echo serves what it reads on connections of a listener, with whether they had TLS.
func echo(t *testing.T, l net.Listener) (secured chan bool) {
	t.Helper()
	secured = make(chan bool, 16)
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 5)
			if _, err := io.ReadFull(nc, b); err == nil {
				_, _ = nc.Write(b)
				secured <- security.StateOf(nc) != nil
			}
			_ = nc.Close()
		}
	}()
	return secured
}

func say(nc net.Conn) (string, error) {
	defer nc.Close()
	if _, err := nc.Write([]byte("hello")); err != nil {
		return "", err
	}
	b := make([]byte, 5)
	_, err := io.ReadFull(nc, b)
	return string(b), err
}

func TestListener(t *testing.T) {
	dir := authority(t)
	node := identity(t, certificate(t, dir, "node", security.RoleNode, "127.0.0.1"))
	client := identity(t, certificate(t, dir, "app", security.RoleClient))
	for _, plain := range []bool{false, true} {
		raw, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		secured := echo(t, node.Listen(raw, plain, "h2"))
		nc, err := tls.Dial("tcp", raw.Addr().String(), client.Client("h2"))
		require.NoError(t, err)
		text, err := say(nc)
		require.NoError(t, err)
		require.Equal(t, "hello", text)
		require.True(t, <-secured)

		open, err := net.Dial("tcp", raw.Addr().String())
		require.NoError(t, err)
		text, err = say(open)
		if !plain {
			require.Error(t, err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, "hello", text)
		require.False(t, <-secured)
	}
}

// connected is a connection of a port that serves connections with and without TLS: the client's
// end and the server's.
func connected(t *testing.T, node *security.Identity) (dialed, accepted net.Conn) {
	t.Helper()
	raw, got := bufconn.Listen(1<<16), make(chan net.Conn, 1)
	go func() {
		nc, err := node.Listen(raw, true, "h2").Accept()
		assert.NoError(t, err)
		got <- nc
	}()
	dialed, err := raw.Dial()
	require.NoError(t, err)
	return dialed, <-got
}

// TestDeadlinesOutliveTheHandshake: who has a connection and bounds its reads finds them bounded
// also when the handshake, which has a time of its own, was within the first one: a client that is
// silent afterwards is sent away.
func TestDeadlinesOutliveTheHandshake(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	synctest.Test(t, func(t *testing.T) { // its clock is not that of other certificates
		require.NoError(t, security.CreateCA(dir))
		node := identity(t, certificate(t, dir, "node", security.RoleNode, "127.0.0.1"))
		client := identity(t, certificate(t, dir, "app", security.RoleClient))
		for _, secure := range []bool{true, false} {
			dialed, nc := connected(t, node)
			began, bound := time.Now(), 3*time.Second
			require.NoError(t, nc.SetReadDeadline(began.Add(bound)))
			spoken := make(chan error, 1)
			go func() {
				if !secure {
					_, err := dialed.Write([]byte("P"))
					spoken <- err
					return
				}
				cfg := client.Client("h2")
				cfg.ServerName = "127.0.0.1"
				spoken <- tls.Client(dialed, cfg).Handshake()
			}()
			n, err := io.ReadFull(nc, make([]byte, 2))
			require.ErrorContains(t, err, "timeout")
			require.Equal(t, bound, time.Since(began))
			require.Equal(t, secure, n == 0)
			require.NoError(t, <-spoken)
			require.Equal(t, secure, security.StateOf(nc) != nil)
			require.NoError(t, nc.SetDeadline(time.Time{}))
			_ = nc.Close()
			_ = dialed.Close()
		}
	})
}

// TestSilentClientsAreSentAway: a client that says nothing, or half of a handshake, has ten
// seconds, whatever its reader allows.
func TestSilentClientsAreSentAway(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	synctest.Test(t, func(t *testing.T) {
		require.NoError(t, security.CreateCA(dir))
		node := identity(t, certificate(t, dir, "node", security.RoleNode, "127.0.0.1"))
		for _, says := range []string{"", "\x16", "\x16\x03\x01\x02\x00\x01"} {
			dialed, nc := connected(t, node)
			require.NoError(t, nc.SetReadDeadline(time.Now().Add(time.Hour)))
			began := time.Now()
			_, err := dialed.Write([]byte(says))
			require.NoError(t, err)
			_, err = nc.Read(make([]byte, 1))
			require.ErrorContains(t, err, "timeout")
			require.Equal(t, 10*time.Second, time.Since(began))
			_, err = dialed.Read(make([]byte, 1))
			require.Error(t, err, "it was closed")
			_ = dialed.Close()
		}
	})
}

// TestBodiesThatNeverEnd: a request whose body does not come holds its connection for half a
// minute, whether or not its handler reads the body, or is reached.
func TestBodiesThatNeverEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
		})
		g := &security.Guard{}
		mux := http.NewServeMux()
		mux.Handle("/reads", reads)
		mux.Handle("/refused", g.Admin(reads))
		mux.Handle("/ignores", http.NotFoundHandler())
		l := bufconn.Listen(1 << 16)
		s := &http.Server{
			Handler: g.Wrap(mux), ReadHeaderTimeout: 10 * time.Second,
			IdleTimeout: 10 * time.Second,
		}
		served := make(chan struct{})
		go func() { defer close(served); _ = s.Serve(l) }()
		for _, path := range []string{"/reads", "/refused", "/ignores"} {
			for _, body := range []string{
				"Content-Length: 1000\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
			} {
				nc, err := l.Dial()
				require.NoError(t, err)
				began := time.Now()
				_, err = io.WriteString(nc, "POST "+path+" HTTP/1.1\r\nHost: localhost\r\n"+body)
				require.NoError(t, err)
				_, _ = io.Copy(io.Discard, nc)
				require.LessOrEqual(t, time.Since(began), 31*time.Second, "%s %q", path, body)
				_ = nc.Close()
			}
		}
		_ = s.Close()
		<-served
	})
}
