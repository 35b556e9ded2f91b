package security

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"
)

// handshakeTimeout is for a TLS handshake, first bytes included.
const handshakeTimeout = 10 * time.Second

// RecordHandshake is the first byte of a TLS connection. No other protocol that is served here
// begins with it.
const RecordHandshake = 0x16

// ErrPlain is why a connection without TLS is closed.
var ErrPlain = errors.New("security: a connection without TLS, which this port does not serve")

// Listen makes a listener serve TLS, and connections without it too if plain is true: for the time
// in which a cluster changes to TLS. A connection's handshake takes place when it is first read or
// written, on that goroutine; who only accepts is not held up.
func (i *Identity) Listen(l net.Listener, plain bool, protocols ...string) net.Listener {
	return &listener{Listener: l, cfg: i.Server(protocols...), plain: plain, id: i}
}

type listener struct {
	net.Listener
	cfg   *tls.Config
	plain bool
	id    *Identity
}

func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: nc, l: l}, nil
}

// Conn is a connection of which it turns out with its first byte whether it has TLS.
type Conn struct {
	net.Conn
	l    *listener
	once sync.Once
	err  error
	// inner is what is read and written after once.
	inner net.Conn
	state *tls.ConnectionState // nil without TLS
	// below is what TLS reads; nil without TLS.
	below *prefixed

	// deadlines are those that the owner has set. While the handshake is under way, none is later
	// than its end.
	deadlines struct {
		sync.Mutex
		read, write time.Time
		// end is when the handshake must be over; zero if none is under way.
		end time.Time
	}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if err := c.begin(); err != nil {
		return 0, err
	}
	n, err := c.inner.Read(p)
	if c.below == nil || n == 0 || err != nil {
		return n, err
	}
	// TLS gives one record at a time, also when it has read others with it. The reader is to have
	// all that have come at once, since it answers when it has worked off what it was given.
	c.below.empty = true
	for n < len(p) {
		more, err := c.inner.Read(p[n:])
		if n += more; err != nil {
			break // errEmpty, or an error that TLS repeats
		}
	}
	c.below.empty = false
	return n, nil
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	if err := c.begin(); err != nil {
		return 0, err
	}
	return c.inner.Write(p)
}

// Handshake has the handshake take place, as the first Read or Write does.
func (c *Conn) Handshake() error { return c.begin() }

// State is what the handshake came to; nil without TLS, or while nothing was read or written.
func (c *Conn) State() *tls.ConnectionState { return c.state }

// StateOf is the state of a connection of a listener of Listen or of crypto/tls; nil without TLS.
// What was read of the connection happened before.
func StateOf(nc net.Conn) *tls.ConnectionState {
	switch c := nc.(type) {
	case *Conn:
		return c.State()
	case *tls.Conn:
		s := c.ConnectionState()
		return &s
	}
	return nil
}

// CloseWrite ends what is sent, as far as the connection can do that.
func (c *Conn) CloseWrite() error {
	if err := c.begin(); err != nil {
		return err
	}
	nc := c.inner
	if p, ok := nc.(*prefixed); ok {
		nc = p.Conn
	}
	if half, ok := nc.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadlines(&t, &t) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadlines(&t, nil) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(nil, &t) }

// setDeadlines sets those that are not nil.
func (c *Conn) setDeadlines(read, write *time.Time) error {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	if read != nil {
		c.deadlines.read = *read
	}
	if write != nil {
		c.deadlines.write = *write
	}
	return c.applyLocked(read != nil, write != nil)
}

// bound begins the handshake's time, or ends it: then the owner's deadlines are in force again.
// Without them a connection that has had its handshake and says nothing more would be held for
// ever.
func (c *Conn) bound(end time.Time) error {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	c.deadlines.end = end
	return c.applyLocked(true, true)
}

func (c *Conn) applyLocked(read, write bool) (err error) {
	d := &c.deadlines
	if read {
		err = c.Conn.SetReadDeadline(earlier(d.read, d.end))
	}
	if write && err == nil {
		err = c.Conn.SetWriteDeadline(earlier(d.write, d.end))
	}
	return err
}

// earlier is the first of two deadlines, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (c *Conn) begin() error {
	c.once.Do(func() {
		if c.err = c.bound(time.Now().Add(handshakeTimeout)); c.err != nil {
			return
		}
		if c.err = c.handshake(); c.err == nil {
			c.err = c.bound(time.Time{})
		}
		if c.err != nil {
			_ = c.Conn.Close()
		}
	})
	return c.err
}

func (c *Conn) handshake() error {
	first := make([]byte, 1)
	if _, err := c.Conn.Read(first); err != nil {
		return err
	}
	begun := &prefixed{Conn: c.Conn, prefix: first}
	if first[0] != RecordHandshake {
		if !c.l.plain {
			return c.l.id.Refuse(c.RemoteAddr(), ErrPlain)
		}
		c.inner = begun
		return nil
	}
	secure := tls.Server(begun, c.l.cfg)
	if err := secure.Handshake(); err !=
		nil { //nolint:noctx // the deadline of the connection ends it
		return c.l.id.Refuse(c.RemoteAddr(), err)
	}
	state := secure.ConnectionState()
	c.inner, c.state, c.below = secure, &state, begun
	return nil
}

// prefixed is a connection of which something was read already.
type prefixed struct {
	net.Conn
	prefix []byte
	// empty has Read return errEmpty instead of waiting. Owned by the one that reads.
	empty bool
}

// errEmpty is a temporary error, which TLS forgets.
var errEmpty net.Error = emptyError{}

type emptyError struct{}

func (emptyError) Error() string   { return "security: nothing more has been read" }
func (emptyError) Timeout() bool   { return true }
func (emptyError) Temporary() bool { return true }

func (p *prefixed) Read(b []byte) (int, error) {
	if p.empty {
		return 0, errEmpty
	}
	if len(p.prefix) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.prefix)
	p.prefix = p.prefix[n:]
	return n, nil
}
