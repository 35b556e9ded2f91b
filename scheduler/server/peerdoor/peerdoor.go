// Package peerdoor stands before the peer port of etcd where that has TLS. Etcd itself lets every
// certificate of its authority in, also a client's, and reads its authorities once. The door lets
// in nodes only, and reads the files again when they change. Behind it etcd listens on a socket in
// a directory that only this process's user may enter.
package peerdoor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/pkg/durable"
	"github.com/tinykv/tinykv/pkg/security"
)

const (
	// maxConns bounds the connections. Each pair of members has about eight.
	maxConns = 256
	// stall is how long a member may take nothing of what is sent to it.
	stall = 30 * time.Second
	// warnEvery bounds how often refused connections are logged.
	warnEvery = 10 * time.Second
	// maxSocketPath is what a path of a socket may have, on all systems.
	maxSocketPath = 100
)

// Door is a peer port. It owns its listeners, connections and goroutines, which end with Close.
type Door struct {
	identity *security.Identity
	logger   *zap.Logger
	dir      string
	wg       sync.WaitGroup
	// full counts the connections that there was no room for.
	full atomic.Uint64
	mu   struct {
		sync.Mutex
		listeners []net.Listener
		// conns are those of both sides. Invariant: none is added once closed.
		conns  map[net.Conn]struct{}
		count  int
		warned time.Time
		closed bool
	}
}

// Open takes the addresses (host:port). Connections wait until etcd listens at Socket. The
// directory of the socket is made in dataDir, or where its path is too long for a socket, in the
// directory for temporary files.
func Open(
	ctx context.Context, addrs []string, id *security.Identity, dataDir string, logger *zap.Logger,
) (*Door, error) {
	d := &Door{identity: id, logger: logger, dir: filepath.Join(dataDir, "peer")}
	d.mu.conns = map[net.Conn]struct{}{}
	if abs, err := filepath.Abs(d.dir); err != nil {
		return nil, err
	} else if d.dir = abs; len(d.Socket()) > maxSocketPath {
		if d.dir, err = os.MkdirTemp("", "tinyscheduler-"); err != nil {
			return nil, err
		}
	}
	if err := durable.MkdirAll(durable.OS, d.dir); err != nil {
		return nil, err
	}
	if err := os.Chmod(d.dir, 0o700); err != nil { //nolint:gosec // a directory
		return nil, err
	}
	var lc net.ListenConfig
	for _, addr := range addrs {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			d.Close()
			return nil, err
		}
		d.mu.listeners = append(d.mu.listeners, l)
	}
	for _, l := range d.mu.listeners {
		d.wg.Add(1)
		// ends with Close
		go func() { defer d.wg.Done(); d.accept(id.Listen(l, false, "http/1.1")) }()
	}
	return d, nil
}

// Socket is the path at which etcd has to listen.
func (d *Door) Socket() string { return filepath.Join(d.dir, "etcd.sock") }

// Close ends all connections, and returns when nothing of the door runs any more. Idempotent; a nil
// Door has nothing to close.
func (d *Door) Close() {
	if d == nil {
		return
	}
	d.mu.Lock()
	d.mu.closed = true
	for _, l := range d.mu.listeners {
		_ = l.Close()
	}
	for c := range d.mu.conns {
		_ = c.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
	_ = os.RemoveAll(d.dir) // a socket at most; the next start takes it away, too
}

func (d *Door) accept(l net.Listener) {
	for pause := time.Millisecond; ; {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no file descriptors, most likely
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
			continue
		}
		pause = time.Millisecond
		if !d.enter(conn, true) {
			_ = conn.Close()
			continue
		}
		d.wg.Add(1)
		go func() { // ends with the connection, at the latest with Close
			defer d.wg.Done()
			defer d.leave(conn, true)
			if err := d.serve(conn.(*security.Conn)); err != nil {
				d.refused(conn, err)
			}
		}()
	}
}

// enter notes a connection, so that Close ends it; false if there is no room. member: it comes from
// outside.
func (d *Door) enter(c net.Conn, member bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.closed {
		return false
	}
	if member && d.mu.count >= maxConns {
		d.full.Add(1)
		return false
	}
	d.mu.conns[c] = struct{}{}
	if member {
		d.mu.count++
	}
	return true
}

func (d *Door) leave(c net.Conn, member bool) {
	_ = c.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.mu.conns, c)
	if member {
		d.mu.count--
	}
}

// Conns is how many connections from outside there are, and Full how many there was no room for
// since the start. A nil Door has none. Safe for concurrent use.
func (d *Door) Conns() int {
	if d == nil {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.count
}

// Full is documented at Conns.
func (d *Door) Full() uint64 {
	if d == nil {
		return 0
	}
	return d.full.Load()
}

// refused logs why a connection was not served, now and then.
func (d *Door) refused(c net.Conn, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); !d.mu.closed && now.Sub(d.mu.warned) >= warnEvery {
		d.mu.warned = now
		d.logger.Warn("refused a connection to the peer port",
			zap.Stringer("remote", c.RemoteAddr()), zap.Error(err))
	}
}

// serve lets a member in, and carries what both sides say until one has ended. The error says why
// somebody was not let in.
func (d *Door) serve(c *security.Conn) error {
	if err := c.Handshake(); err != nil {
		return err
	}
	if !security.MayConn(c, security.RoleNode) {
		return fmt.Errorf(
			"the peer port is for members of the placement service; the certificate of %q is for something else",
			c.State().PeerCertificates[0].Subject.CommonName)
	}
	inner, err := net.DialTimeout("unix", d.Socket(), stall)
	if err != nil {
		return err
	}
	if !d.enter(inner, false) {
		return inner.Close()
	}
	defer d.leave(inner, false)
	d.wg.Add(1)
	go func() { // ends with either connection
		defer d.wg.Done()
		carry(inner, c)
		_ = inner.Close()
		_ = c.Close()
	}()
	carry(c, inner)
	_ = inner.Close()
	return nil
}

// carry copies until one side ends: HTTP/1.1 does not go on when half of a connection is closed. A
// side that takes nothing ends.
func carry(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if to.SetWriteDeadline(time.Now().Add(stall)) != nil {
				return
			}
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
