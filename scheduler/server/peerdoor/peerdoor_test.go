package peerdoor_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/scheduler/server/peerdoor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

func identity(t *testing.T, dir, name string, role security.Role) *security.Identity {
	t.Helper()
	files, err := security.CreateCert(dir,
		security.CertRequest{Name: name, Role: role, Hosts: []string{"127.0.0.1"}})
	require.NoError(t, err)
	id, err := security.LoadIdentity(files, nil)
	require.NoError(t, err)
	return id
}

// echo answers with what it reads, as it reads it, and with the number of bytes for /lease.
func echo(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/lease" {
		n, err := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n, " ", err)
		return
	}
	out := http.NewResponseController(w)
	_ = out.EnableFullDuplex()
	_ = out.Flush()
	buf := make([]byte, 1<<10)
	for {
		n, err := r.Body.Read(buf)
		_, _ = w.Write(buf[:n])
		_ = out.Flush()
		if err != nil {
			return
		}
	}
}

// open starts a door, plain without identity, and returns its address.
func open(
	t *testing.T, id *security.Identity, options ...func(*peerdoor.Door),
) (*peerdoor.Door, string) {
	t.Helper()
	scheme := "http"
	if id != nil {
		scheme = "https"
	}
	d, err := peerdoor.Open(t.Context(), peerdoor.Options{
		URLs: []url.URL{{Scheme: scheme, Host: "127.0.0.1:0"}}, Identity: id, Logger: zap.NewNop(),
	})
	require.NoError(t, err)
	t.Cleanup(d.Close)
	for _, o := range options {
		o(d)
	}
	d.Serve(http.HandlerFunc(echo), func() []string { return []string{"m1.example:2380"} })
	return d, d.Addrs()[0].String()
}

// dial connects to a door, with TLS if cfg is not nil.
func dial(t *testing.T, addr string, cfg *tls.Config) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = nc.Close() })
	require.NoError(t, nc.SetDeadline(time.Now().Add(patience)))
	if cfg != nil {
		cfg.ServerName = "127.0.0.1"
		nc = tls.Client(nc, cfg)
	}
	return nc
}

// echoes tells whether what is behind the door answers, to a long request.
func echoes(t *testing.T, addr string, cfg *tls.Config) bool {
	t.Helper()
	nc := dial(t, addr, cfg)
	text := strings.Repeat("0123456789", 20000)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = fmt.Fprintf(nc, "POST /raft HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s",
			addr, len(text), text)
	}()
	defer func() { _ = nc.Close(); <-sent }()
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		return false
	}
	got, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	return err == nil && string(got) == text
}

// TestFloodOfPeers: connections above the limit are refused and counted, and members come in again
// when the others have gone.
func TestFloodOfPeers(t *testing.T) {
	const limit = 256
	dir := t.TempDir() + "/certs"
	require.NoError(t, security.CreateCA(dir))
	for name, node := range map[string]*security.Identity{
		"plain": nil, "TLS": identity(t, dir, "node", security.RoleNode),
	} {
		t.Run(name, func(t *testing.T) {
			config := func() *tls.Config {
				if node == nil {
					return nil
				}
				return node.Client("http/1.1")
			}
			d, addr := open(t, node)
			var flood []net.Conn
			for range limit {
				flood = append(flood, dial(t, addr, nil))
			}
			conns := func(n int) func() bool { return func() bool { return d.Conns() == n } }
			require.Eventually(t, conns(limit), patience, time.Millisecond)
			require.Zero(t, d.Full())
			require.False(t, echoes(t, addr, config()), "no room")
			require.EqualValues(t, 1, d.Full())
			for _, nc := range flood {
				require.NoError(t, nc.Close())
			}
			require.Eventually(t, conns(0), patience, time.Millisecond)
			require.True(t, echoes(t, addr, config()))
		})
	}
}

// TestSlowHeaders: a connection that does not end the header of a request is closed.
func TestSlowHeaders(t *testing.T) {
	d, addr := open(t, nil, func(d *peerdoor.Door) { d.SetHeaderTimeout(50 * time.Millisecond) })
	nc := dial(t, addr, nil)
	_, err := io.WriteString(nc, "GET /members HTTP/1.1\r\nHost: ")
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, nc)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Eventually(t, func() bool { return d.Conns() == 0 }, patience, time.Millisecond)
}

// TestFloodOfBytes: headers and bodies are bounded; those of raft, which carry messages and
// snapshots, are not.
func TestFloodOfBytes(t *testing.T) {
	_, addr := open(t, nil)
	nc := dial(t, addr, nil)
	go func() {
		_, _ = fmt.Fprintf(nc, "GET / HTTP/1.1\r\nHost: %s\r\nX: %s\r\n\r\n", addr,
			strings.Repeat("x", 1<<20))
	}()
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err == nil { // else the connection was reset before the answer was read
		require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, resp.StatusCode)
		_ = resp.Body.Close()
	}
	nc = dial(t, addr, nil)
	const size = 2 << 20
	go func() {
		_, _ = fmt.Fprintf(nc, "POST /lease HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n",
			addr, size)
		_, _ = nc.Write(make([]byte, size))
	}()
	resp, err = http.ReadResponse(bufio.NewReader(nc), nil)
	require.NoError(t, err)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, fmt.Sprint(1<<20, " http: request body too large"), string(text))
}

// TestDoor: nodes reach what is behind the door, others do not; an end of the door ends all.
func TestDoor(t *testing.T) {
	dir := t.TempDir() + "/certs"
	require.NoError(t, security.CreateCA(dir))
	node := identity(t, dir, "node", security.RoleNode)
	d, addr := open(t, node)
	require.True(t, echoes(t, addr, node.Client("http/1.1")))
	for _, role := range []security.Role{security.RoleClient, security.RoleAdmin} {
		id := identity(t, dir, fmt.Sprint(role), role)
		require.False(t, echoes(t, addr, id.Client("http/1.1")), role)
	}
	require.False(t, echoes(t, addr, nil), "without TLS")
	plain, plainAddr := open(t, nil)
	require.True(t, echoes(t, plainAddr, nil))

	for _, o := range []struct {
		door *peerdoor.Door
		addr string
		cfg  *tls.Config
	}{{d, addr, node.Client("http/1.1")}, {plain, plainAddr, nil}} {
		stream := dial(t, o.addr, o.cfg)
		_, err := fmt.Fprintf(stream,
			"POST /raft HTTP/1.1\r\nHost: %s\r\nContent-Length: 9\r\n\r\nabc", o.addr)
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(stream), nil)
		require.NoError(t, err)
		got := make([]byte, 3)
		_, err = io.ReadFull(resp.Body, got)
		require.NoError(t, err)
		require.Equal(t, "abc", string(got), "before the request has ended")
		silent := dial(t, o.addr, nil)
		require.Eventually(t, func() bool { return o.door.Conns() >= 2 }, patience,
			time.Millisecond)
		o.door.Close()
		for _, nc := range []net.Conn{stream, silent} {
			_, err = io.Copy(io.Discard, nc)
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		}
		_ = resp.Body.Close()
		_, err = net.DialTimeout("tcp", o.addr, time.Second)
		require.Error(t, err, "nobody listens")
		o.door.Close()
	}
}

// TestRequestsOfBrowsers: what a page can have a browser send is refused, also after a request of a
// member on the same connection.
func TestRequestsOfBrowsers(t *testing.T) {
	d, addr := open(t, nil)
	send := func(nc net.Conn, r *bufio.Reader, host, header string) int {
		_, err := fmt.Fprintf(nc, "POST /members/promote/1 HTTP/1.1\r\nHost: %s\r\n%s\r\n", host,
			header)
		require.NoError(t, err)
		resp, err := http.ReadResponse(r, nil)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return resp.StatusCode
	}
	for i, c := range []struct {
		host, header string
		status       int
	}{
		{addr, "Origin: https://evil.example\r\n", 403},
		{addr, "origin: null\r\n", 403},
		{addr, "Origin: http://" + addr + "\r\n", 403},
		{addr, "Origin:\r\n", 403},
		{addr, "Sec-Fetch-Site: none\r\n", 403},
		{addr, "sec-ch-ua: x\r\n", 403},
		{addr, "Referer: https://evil.example/\r\n", 403},
		{addr, "Cookie: a=b\r\n", 403},
		{addr, "Access-Control-Request-Method: POST\r\n", 403},
		{"evil.example", "", 421},
		{"m1.example.evil.example", "", 421},
		{"127.0.0.1.evil.example", "", 421},
		{"m1.example:2380", "", 200},
		{"M1.example.", "", 200},
		{"localhost:1", "", 200},
		{"[::1]:2380", "", 200},
		{"10.1.2.3", "X-Etcd-Cluster-ID: 1\r\nX-Server-From: 2\r\n", 200},
	} {
		before := d.Refused()
		nc := dial(t, addr, nil)
		r := bufio.NewReader(nc)
		require.Equal(t, 200, send(nc, r, addr, ""), "a member's")
		require.Equal(t, c.status, send(nc, r, c.host, c.header), "%d: %q", i, c)
		if c.status != 200 {
			require.Equal(t, before+1, d.Refused())
			_, err := io.Copy(io.Discard, r)
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection ends")
		}
		require.NoError(t, nc.Close())
	}
}
