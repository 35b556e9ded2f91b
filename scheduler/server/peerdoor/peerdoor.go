// Package peerdoor is the peer port of a member of the placement service. It stands in the place of
// the listeners of etcd, which take every request that reaches them. The door serves etcd's peer
// handler itself, so each request is parsed once, also a later one on the same connection.
//
// With TLS the door lets in certificates of nodes only, and reads its files again when they change.
// With and without TLS it refuses requests that a browser made, or that were sent to a name which
// is no member's: a page that is open next to a member reaches its port.
package peerdoor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/pkg/security"
)

const (
	// maxConns bounds the connections. Each pair of members has about eight.
	maxConns = 256
	// stall is how long a member may take nothing of what is sent to it.
	stall = 30 * time.Second
	// headerTimeout is for the header of a request, counted from its first byte, or from the
	// beginning of the connection.
	headerTimeout = 10 * time.Second
	// readTimeout is for a whole request, as in etcd: the largest carries a snapshot.
	readTimeout = 5 * time.Minute
	// maxHeader bounds the header of a request. Those of members have a few hundred bytes.
	maxHeader = 64 << 10
	// maxBody bounds the bodies of requests that do not carry messages of raft.
	maxBody = 1 << 20
	// warnEvery bounds how often refusals are logged.
	warnEvery = 10 * time.Second
)

// Options say what a door is for.
type Options struct {
	// URLs are the addresses to listen on; https and unixs need an Identity.
	URLs []url.URL
	// Identity, if set, is the certificate to serve with.
	Identity *security.Identity
	Logger   *zap.Logger
}

// Door is a peer port. It owns its listeners, connections and goroutines, which end with Close.
type Door struct {
	logger    *zap.Logger
	listeners []net.Listener
	server    *http.Server
	names     func() []string
	// headerTimeout is that constant, except in tests.
	headerTimeout time.Duration
	admitted      *admitted
	wg            sync.WaitGroup
	// full counts the connections that there was no room for, requests those refused.
	full, requests atomic.Uint64
	mu             struct {
		sync.Mutex
		// conns are the connections. Invariant: none is added once closed.
		conns  map[net.Conn]struct{}
		warned time.Time
		closed bool
	}
}

// Open takes the addresses. Connections wait until Serve.
func Open(ctx context.Context, opts Options) (*Door, error) {
	d := &Door{logger: opts.Logger, admitted: newAdmitted(), headerTimeout: headerTimeout}
	d.mu.conns = map[net.Conn]struct{}{}
	for _, u := range opts.URLs {
		l, err := listen(ctx, u, opts.Identity)
		if err != nil {
			d.Close()
			return nil, err
		}
		d.listeners = append(d.listeners, l)
	}
	return d, nil
}

func listen(ctx context.Context, u url.URL, id *security.Identity) (net.Listener, error) {
	network, addr := "tcp", u.Host
	if strings.HasPrefix(u.Scheme, "unix") {
		network, addr = "unix", u.Host+u.Path
		if err := os.Remove(addr); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	secure := strings.HasSuffix(u.Scheme, "s")
	if secure && id == nil {
		return nil, fmt.Errorf("%s needs a certificate", u.String())
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, addr)
	if err == nil && secure {
		l = id.Listen(l, false, "http/1.1")
	}
	return l, err
}

// Serve has the requests of members handled, until Close. It may be called once, and returns at
// once. The function names returns the names of members, with or without port; literal IPs and
// localhost need not be among them. It is called by several goroutines.
func (d *Door) Serve(handler http.Handler, names func() []string) {
	d.names = names
	d.server = &http.Server{
		Handler: d.guard(handler), ReadHeaderTimeout: d.headerTimeout, ReadTimeout: readTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: log.New(io.Discard, "", 0),
		ConnState: func(c net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				d.leave(c)
			}
		},
	}
	d.wg.Add(1)
	go func() { defer d.wg.Done(); _ = d.server.Serve(d.admitted) }() // ends with Close
	for _, l := range d.listeners {
		d.wg.Add(1)
		go func() { defer d.wg.Done(); d.accept(l) }() // ends with Close
	}
}

// Addrs are the addresses on which the door listens, in the order of Options.URLs.
func (d *Door) Addrs() []net.Addr {
	var out []net.Addr
	for _, l := range d.listeners {
		out = append(out, l.Addr())
	}
	return out
}

// Close ends all connections, and returns when nothing of the door runs any more. What the handler
// waits for must have ended before. Idempotent; not to be called together with Serve.
func (d *Door) Close() {
	d.mu.Lock()
	d.mu.closed = true
	for c := range d.mu.conns {
		_ = c.Close()
	}
	d.mu.Unlock()
	for _, l := range d.listeners {
		_ = l.Close()
	}
	_ = d.admitted.Close()
	if d.server != nil {
		_ = d.server.Close()
	}
	d.wg.Wait()
}

func (d *Door) accept(l net.Listener) {
	for pause := time.Millisecond; ; {
		nc, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no file descriptors, most likely
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
			continue
		}
		pause = time.Millisecond
		c := &conn{nc}
		if !d.enter(c) {
			_ = nc.Close()
			continue
		}
		go func() { // ends with the handshake, at the latest with Close
			if err := admit(nc); err != nil {
				d.warn("refused a connection to the peer port", nc.RemoteAddr().String(), err)
				d.leave(c)
			} else if !d.admitted.add(c) {
				d.leave(c)
			}
		}()
	}
}

// admit has the handshake of TLS take place. The error says why a connection is refused.
func admit(nc net.Conn) error {
	c, ok := nc.(*security.Conn)
	if !ok {
		return nil
	}
	if err := c.Handshake(); err != nil {
		return err
	}
	if !security.MayConn(c, security.RoleNode) {
		return fmt.Errorf(
			"the peer port is for members of the placement service; "+
				"the certificate of %q is for something else",
			c.State().PeerCertificates[0].Subject.CommonName)
	}
	return nil
}

// enter notes a connection, which must leave; false if there is no room.
func (d *Door) enter(c net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.closed {
		return false
	}
	if len(d.mu.conns) >= maxConns {
		d.full.Add(1)
		return false
	}
	d.mu.conns[c] = struct{}{}
	d.wg.Add(1)
	return true
}

func (d *Door) leave(c net.Conn) {
	_ = c.Close()
	d.mu.Lock()
	delete(d.mu.conns, c)
	d.mu.Unlock()
	d.wg.Done()
}

// Conns is how many connections there are, Full how many there was no room for, and Refused how
// many requests were refused since the start. Safe for concurrent use.
func (d *Door) Conns() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.mu.conns)
}

// Full is documented at Conns.
func (d *Door) Full() uint64 { return d.full.Load() }

// Refused is documented at Conns.
func (d *Door) Refused() uint64 { return d.requests.Load() }

// warn logs a refusal, now and then.
func (d *Door) warn(what, remote string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); !d.mu.closed && now.Sub(d.mu.warned) >= warnEvery {
		d.mu.warned = now
		d.logger.Warn(what, zap.String("remote", remote), zap.Error(err))
	}
}

// guard passes on what a member can have sent.
func (d *Door) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, err := d.check(r)
		if err != nil {
			d.requests.Add(1)
			d.warn("refused a request to the peer port", r.RemoteAddr, err)
			w.Header().Set("Connection", "close")
			http.Error(w, err.Error(), status)
			return
		}
		if r.URL.Path != "/raft" && !strings.HasPrefix(r.URL.Path, "/raft/") {
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		}
		next.ServeHTTP(w, r)
	})
}

// check refuses requests of browsers, and requests to other names. A page can have a browser send a
// POST without asking first, and, by DNS rebinding, under its own origin; browsers put an Origin
// into each POST of a page. Reads of pages have one of the other headers in most browsers, and
// change nothing. Members send none of them.
func (d *Door) check(r *http.Request) (int, error) {
	for name := range r.Header {
		if name == "Origin" || name == "Referer" || name == "Cookie" ||
			strings.HasPrefix(name, "Sec-") || strings.HasPrefix(name, "Access-Control-") {
			return http.StatusForbidden, fmt.Errorf(
				"a request with the header %s is one of a browser; "+
					"the peer port is for members of the placement service", name)
		}
	}
	if !security.NamesServer(r.Host, d.names) {
		return http.StatusMisdirectedRequest, fmt.Errorf(
			"%q is no name of a member; use an address, a name in advertise-peer-urls, "+
				"or one of [api] allowed-hosts", r.Host)
	}
	return 0, nil
}

// conn is a connection of which each write is bounded in time. HTTP has no bound for an answer that
// goes on, as the streams of raft do.
type conn struct{ net.Conn }

func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// admitted is the listener of connections that were let in.
type admitted struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newAdmitted() *admitted {
	return &admitted{conns: make(chan net.Conn), done: make(chan struct{})}
}

// add is false once the listener is closed.
func (a *admitted) add(c net.Conn) bool {
	select {
	case a.conns <- c:
		return true
	case <-a.done:
		return false
	}
}

func (a *admitted) Accept() (net.Conn, error) {
	select {
	case c := <-a.conns:
		return c, nil
	case <-a.done:
		return nil, net.ErrClosed
	}
}

func (a *admitted) Close() error {
	a.once.Do(func() { close(a.done) })
	return nil
}

func (a *admitted) Addr() net.Addr { return &net.TCPAddr{} }
