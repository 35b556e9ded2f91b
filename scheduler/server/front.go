package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/scheduler/server/callroom"
	"github.com/tinykv/tinykv/scheduler/server/config"
)

const (
	sniffTimeout = 10 * time.Second // for a handshake and the first bytes of a connection
	answerStall  = 30 * time.Second // for a part of an answer over HTTP to be taken
	frontStop    = time.Second      // for answers under way when the member stops
)

// front is a member's client port. gRPC and HTTP share it: what begins with the preface of HTTP/2
// is gRPC, as is what chose h2 in the TLS handshake, which prefers HTTP/1.1 so that browsers get
// that.
//
// Embedded etcd could listen here too, with our handlers added to its own, as it was before. But
// then its own ones are there for everybody: its gateway, its key-value and member services,
// headers that let any web page read. So etcd gets no client port at all.
type front struct {
	listeners []net.Listener
	tls       *tls.Config        // nil without TLS
	plain     bool               // connections without TLS are served too
	id        *security.Identity // whose tls is; nil without
	grpc      *grpc.Server
	http      *http.Server
	h1, h2    *handed
	failed    chan error
	wg        sync.WaitGroup
	// open counts the connections, of which there may be limit, and perHost from one address;
	// refused counts those that there was no room for, slow those that ended because they had not
	// said what they speak while too many others came.
	limit, perHost int
	open           atomic.Int64
	refused, slow  atomic.Uint64
	// stall is how long a part of an answer over HTTP may go unread; unread counts the connections
	// that ended so.
	stall  time.Duration
	unread atomic.Uint64
	// room bounds what calls by gRPC hold, in sum.
	room *callroom.Room

	mu struct {
		sync.Mutex
		// sniffed are connections of which it is not known yet what they speak, and since when they
		// are there.
		sniffed map[net.Conn]time.Time
		// hosts counts the connections by address. Invariant: no count is 0.
		hosts   map[string]int
		stopped bool
	}
}

// newFront makes one that has no listeners yet. secure is nil without TLS.
func newFront(limit, perHost int, secure *tls.Config, plain bool) *front {
	f := &front{
		failed: make(chan error, 1), limit: limit, perHost: perHost, tls: secure, plain: plain,
		stall: answerStall, room: callroom.New(config.DefaultRequestBytes, maxMessage),
	}
	f.mu.sniffed, f.mu.hosts = map[net.Conn]time.Time{}, map[string]int{}
	return f
}

// listenFront takes the addresses; nothing is served before serve.
func listenFront(ctx context.Context, cfg *config.Config) (_ *front, err error) {
	f := newFront(cfg.MaxConnections, cfg.MaxConnectionsPerHost, nil, false)
	f.room = callroom.New(cfg.MaxRequestBytes, maxMessage)
	defer func() {
		if err != nil {
			f.closeListeners()
		}
	}()
	if sec := cfg.Security; sec.CertPath != "" {
		id, err := security.LoadNamed(sec.Files(), sec.CertAllowedCN, sec.Names())
		if err != nil {
			return nil, fmt.Errorf("security: %w", err)
		}
		f.tls, f.plain, f.id = id.Server("http/1.1", "h2"), sec.AllowPlain, id
	}
	urls, err := config.ParseURLs(cfg.ClientUrls)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	for _, u := range urls {
		network, addr := "tcp", u.Host
		if strings.HasPrefix(u.Scheme, "unix") {
			network, addr = "unix", u.Host+u.Path
		}
		l, err := lc.Listen(ctx, network, addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil,
				fmt.Errorf(
					"client-urls: address %s is already in use; stop the other process or choose another with "+
						"--client-urls", addr)
		}
		if err != nil {
			return nil, fmt.Errorf("client-urls: cannot listen on %s: %w", addr, err)
		}
		f.listeners = append(f.listeners, l)
	}
	f.h1, f.h2 = newHanded(f.addr()), newHanded(f.addr())
	return f, nil
}

// addr is host:port of the first listener.
func (f *front) addr() net.Addr { return f.listeners[0].Addr() }

// serve begins to answer. register adds the gRPC services.
func (f *front) serve(handler http.Handler, register func(*grpc.Server), opts []grpc.ServerOption) {
	f.grpc = grpc.NewServer(opts...)
	register(f.grpc)
	healthpb.RegisterHealthServer(f.grpc, health.NewServer())
	f.http = &http.Server{
		Handler: handler, ReadHeaderTimeout: sniffTimeout, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10,
		// h2 goes to the gRPC server before net/http sees it.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	f.run(func() error { return f.http.Serve(f.h1) })
	f.run(func() error { return f.grpc.Serve(f.h2) })
	for _, l := range f.listeners {
		f.run(func() error { return f.accept(l) })
	}
}

// run has f serve until stop; ending earlier is a failure.
func (f *front) run(serve func() error) {
	f.wg.Add(1)
	go func() { // ends with stop
		defer f.wg.Done()
		err := serve()
		f.mu.Lock()
		stopped := f.mu.stopped
		f.mu.Unlock()
		if stopped {
			return
		}
		select {
		case f.failed <- fmt.Errorf("serve %s: %w", f.addr(), err):
		default:
		}
	}()
}

func (f *front) accept(l net.Listener) error {
	for pause := time.Millisecond; ; {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// No file descriptors, or a client that is gone again: neither is a reason to stop
			// serving.
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
			continue
		}
		pause = time.Millisecond
		if conn, err = f.admit(conn); err != nil {
			return err
		}
		if conn == nil {
			continue
		}
		f.wg.Add(1)
		go func() { // ends after sniffTimeout at the latest, or with stop, which closes conn
			defer f.wg.Done()
			f.sniff(conn)
		}()
	}
}

const (
	// minSniffed is how many connections may be in their handshakes whatever the limit of
	// connections; else a quarter of that.
	minSniffed = 16
	// slowAfter is how long a handshake takes at least until it may be ended for another one. Most
	// take milliseconds.
	slowAfter = time.Second
)

// admit counts a new connection, or closes it and returns nil if there is no room. It fails once
// the front has stopped.
func (f *front) admit(raw net.Conn) (net.Conn, error) {
	host, now := hostOf(raw), time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.stopped {
		_ = raw.Close()
		return nil, net.ErrClosed
	}
	if int(f.open.Load()) >= f.limit || host != "" && f.mu.hosts[host] >= f.perHost ||
		!f.roomToSniffLocked(now) {
		f.refused.Add(1)
		_ = raw.Close()
		return nil, nil
	}
	f.open.Add(1)
	if host != "" {
		f.mu.hosts[host]++
	}
	conn := &counted{Conn: raw, f: f, host: host}
	f.mu.sniffed[conn] = now
	return conn, nil
}

// roomToSniffLocked tells whether one more connection may begin its handshake. If too many are at
// it, the one that is at it for the longest time has to end, unless that is short: then the server
// is slow, and not the client.
func (f *front) roomToSniffLocked(now time.Time) bool {
	if len(f.mu.sniffed) < max(f.limit/4, minSniffed) {
		return true
	}
	var oldest net.Conn
	since := now
	for conn, at := range f.mu.sniffed {
		if at.Before(since) {
			oldest, since = conn, at
		}
	}
	if now.Sub(since) < slowAfter {
		return false
	}
	delete(f.mu.sniffed, oldest)
	f.slow.Add(1)
	_ = oldest.(*counted).Conn.Close() // sniff, which finds it closed, counts it out
	return true
}

// hostOf is what connections are counted by; "" for what has no address, such as a unix socket.
func hostOf(nc net.Conn) string {
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().String()
	}
	return ""
}

// counted is a connection that counts until it is closed.
type counted struct {
	net.Conn
	f    *front
	host string
	once sync.Once
	// bounded has each part of an answer end the connection if the client does not take it within
	// f.stall. Set before the connection is handed to HTTP/1; gRPC has its own keepalive.
	bounded bool
}

// answerPart is how much of an answer has f.stall, so that a slow client that reads has its time.
const answerPart = 64 << 10

// Write implements net.Conn.
func (c *counted) Write(p []byte) (n int, err error) {
	for c.bounded && len(p)-n > answerPart {
		m, err := c.writePart(p[n : n+answerPart])
		if n += m; err != nil {
			return n, err
		}
	}
	m, err := c.writePart(p[n:])
	return n + m, err
}

func (c *counted) writePart(p []byte) (int, error) {
	if c.bounded {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(c.f.stall)); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Write(p)
	if ne := net.Error(nil); c.bounded && errors.As(err, &ne) && ne.Timeout() {
		c.f.unread.Add(1)
	}
	return n, err
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.once.Do(func() { c.f.leave(c.host) })
	return c.Conn.Close()
}

func (f *front) leave(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open.Add(-1)
	if host == "" {
		return
	}
	if f.mu.hosts[host]--; f.mu.hosts[host] == 0 {
		delete(f.mu.hosts, host)
	}
}

// sniff finds out what a connection speaks and hands it on.
func (f *front) sniff(raw net.Conn) {
	_ = raw.SetDeadline(time.Now().Add(sniffTimeout))
	conn, h2, err := f.protocol(raw)
	f.mu.Lock()
	delete(f.mu.sniffed, raw)
	f.mu.Unlock()
	if err != nil || raw.SetDeadline(time.Time{}) != nil {
		_ = raw.Close()
		return
	}
	if h2 {
		own := raw.(*counted)
		f.h2.hand(f.room.Watch(conn, own.host, own.Close))
	} else {
		raw.(*counted).bounded = true // nobody else has the connection yet
		f.h1.hand(conn)
	}
}

func (f *front) protocol(raw net.Conn) (conn net.Conn, h2 bool, err error) {
	if f.tls != nil && f.plain {
		first := make([]byte, 1)
		if _, err := io.ReadFull(raw, first); err != nil {
			return nil, false, err
		}
		plain := first[0] != security.RecordHandshake
		if raw = (&begun{Conn: raw, seen: first}); plain {
			return sniffPlain(raw)
		}
	}
	if f.tls != nil {
		secure := tls.Server(raw, f.tls)
		err := secure.HandshakeContext(context.Background()) // the deadline of raw ends it
		if err != nil && f.id != nil {
			err = f.id.Refuse(raw.RemoteAddr(), err)
		}
		return secure, secure.ConnectionState().NegotiatedProtocol == "h2", err
	}
	return sniffPlain(raw)
}

// sniffPlain finds out what a connection without TLS speaks.
func sniffPlain(raw net.Conn) (conn net.Conn, h2 bool, err error) {
	seen := make([]byte, 0, len(http2.ClientPreface))
	for len(seen) < cap(seen) && strings.HasPrefix(http2.ClientPreface, string(seen)) {
		n, err := raw.Read(seen[len(seen):cap(seen)])
		if err != nil {
			return nil, false, err
		}
		if seen = seen[:len(seen)+n]; seen[0] == security.RecordHandshake {
			return nil, false, refuseTLS(raw)
		}
	}
	return &begun{Conn: raw, seen: seen}, string(seen) == http2.ClientPreface, nil
}

var errTLS = errors.New("server: a connection with TLS, which this port does not serve")

// refuseTLS answers in the clear, so that clients say that the other side does not speak TLS. Left
// to HTTP/1, they would wait until its header is late.
func refuseTLS(raw net.Conn) error {
	// What is not read when the connection is closed may cost the client the answer.
	_, _ = raw.Read(make([]byte, 16<<10))
	_, err := io.WriteString(raw,
		"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\nThis port does not serve TLS.\n")
	return errors.Join(errTLS, err)
}

// stop ends all connections, after the answers under way if they do not take long.
func (f *front) stop() {
	f.mu.Lock()
	f.mu.stopped = true
	for conn := range f.mu.sniffed {
		_ = conn.(*counted).Conn.Close() // sniff counts it out
	}
	f.mu.Unlock()
	f.closeListeners()
	if f.grpc != nil {
		ctx, cancel := context.WithTimeout(context.Background(), frontStop)
		defer cancel()
		graceful := make(chan struct{})
		go func() { // ends with Stop below at the latest
			defer close(graceful)
			f.grpc.GracefulStop()
		}()
		_ = f.http.Shutdown(ctx) // what is left is closed in the next line
		_ = f.http.Close()
		select {
		case <-graceful:
		case <-ctx.Done():
		}
		f.grpc.Stop()
		<-graceful
	}
	f.wg.Wait()
}

func (f *front) closeListeners() {
	for _, l := range f.listeners {
		_ = l.Close()
	}
}

// begun is a connection of which the first bytes were read.
type begun struct {
	net.Conn
	seen []byte
}

func (b *begun) Read(p []byte) (int, error) {
	if len(b.seen) > 0 {
		n := copy(p, b.seen)
		b.seen = b.seen[n:]
		return n, nil
	}
	return b.Conn.Read(p)
}

// handed is a listener for connections that front has accepted.
type handed struct {
	at    net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHanded(at net.Addr) *handed {
	return &handed{at: at, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handed) hand(conn net.Conn) {
	select {
	case h.conns <- conn:
	case <-h.done:
		_ = conn.Close()
	}
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.done:
		return nil, io.EOF
	}
}

func (h *handed) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handed) Addr() net.Addr { return h.at }
