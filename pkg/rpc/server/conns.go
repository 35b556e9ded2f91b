package server

import (
	"cmp"
	"errors"
	"net"
	"slices"
	"time"

	"golang.org/x/net/http2"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// errShed is why a connection ends that had no call when there was no room for others.
var errShed = errors.New("rpc: idle while there were too many connections")

// A connection is of one of three classes. Clients' connections are bounded together and for each
// host. When a limit is reached, those go first that have no call and were silent for the longest
// time. Connections between stores make calls of internal methods (Internal): they have a reserve
// of their own, so that clients cannot cut a store off. A connection that comes when clients have
// no room is on trial: it may prove by its first call that it is internal, and any other call ends
// it.
type connClass byte

const (
	classClient connClass = iota
	classTrial
	classInternal
)

// maxShed bounds how many idle connections end for one new one: a look at all of them should do for
// several.
const maxShed = 64

// registry is what a Server knows of its connections. Guarded by Server.mu.
//
// Invariant: classes counts the connections in conns, hosts those of classClient by address. The
// sum of classes is at most Options.MaxConns.
type registry struct {
	classes [3]int
	hosts   map[string]int
	// greeting counts the connections in conns that have not greeted.
	greeting int
	// looked is when the connections were last looked at for signs of life.
	looked time.Time
}

// place is a connection's part of the registry. Guarded by Server.mu.
type place struct {
	class    connClass
	host     string
	accepted time.Time
	// frames is how many had come at time active; later looks have found no more.
	frames uint64
	active time.Time
	called bool
	// greeted: the client has said that it speaks HTTP/2.
	greeted bool
}

// reserved is how many connections are kept for internal ones, and for those on trial.
func (o *Options) reserved() int { return min(max(o.MaxConns/8, 1), 256) }

// hostOf is what connections are counted by; "" for what has no address.
func hostOf(nc net.Conn) string {
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().String()
	}
	return ""
}

// admitLocked finds the class of a new connection from host, and the connections that must end for
// it. ok is false if there is no room.
func (s *Server) admitLocked(
	host string, now time.Time,
) (class connClass, victims []*conn, ok bool) {
	r := &s.mu.registry
	if len(s.mu.conns) >= s.opts.MaxConns*3/4 && now.Sub(r.looked) >= time.Second {
		s.lookLocked(now)
	}
	of := func(c *conn) bool { return c.place.class == classClient }
	switch {
	case r.hosts[host] >= s.opts.MaxConnsPerHost:
		of = func(c *conn) bool { return c.place.class == classClient && c.place.host == host }
	case r.classes[classClient] < s.opts.MaxConns-s.opts.reserved():
		return classClient, nil, true
	}
	if victims = s.shedLocked(of, maxShed); len(victims) > 0 {
		return classClient, victims, true
	}
	if len(s.mu.conns) < s.opts.MaxConns {
		return classTrial, nil, true
	}
	victims = s.shedLocked(func(c *conn) bool { return c.place.class == classTrial }, 1)
	return classTrial, victims, len(victims) > 0
}

// slowAfter is how long a handshake takes at least until it may be ended for another one. Most take
// milliseconds.
const slowAfter = time.Second

// roomToGreetLocked tells whether one more connection may begin its handshake. If too many are at
// it, the one that is at it for the longest time has to end; it is returned, and its owner must end
// it. If that is short, the server is slow, not the client, and there is no room: clients come
// again after a pause, and handshakes under way come to their end.
func (s *Server) roomToGreetLocked(now time.Time) (slow []*conn, ok bool) {
	if s.mu.registry.greeting < s.opts.MaxHandshakes {
		return nil, true
	}
	var oldest *conn
	for c := range s.mu.conns {
		if !c.place.greeted && (oldest == nil || c.place.accepted.Before(oldest.place.accepted)) {
			oldest = c
		}
	}
	if oldest == nil || now.Sub(oldest.place.accepted) < slowAfter {
		return nil, false
	}
	s.forgetLocked(oldest)
	s.stats.slowHandshakes.Add(1)
	return []*conn{oldest}, true
}

// hasGreeted notes that a connection has had its handshake.
func (s *Server) hasGreeted(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.mu.conns[c]; ok && !c.place.greeted {
		c.place.greeted = true
		s.mu.registry.greeting--
	}
}

// lookLocked notes which connections have sent something since the last look.
func (s *Server) lookLocked(now time.Time) {
	s.mu.registry.looked = now
	for c := range s.mu.conns {
		if n := c.keep.Count(); n != c.place.frames {
			c.place.frames, c.place.active = n, now
			c.place.called = c.place.called || c.hasCalled()
		}
	}
}

// since is how long a connection without a call was silent, as far as the looks tell. One that has
// never called was silent from its beginning, whatever pings it has sent.
func (p *place) since() time.Time {
	if !p.called {
		return p.accepted
	}
	return p.active
}

// shedLocked takes at most n connections out that have no call, those first that are silent for the
// longest time. They take no calls any more, and their owner must end them. At most a sixteenth of
// the candidates go, but one.
func (s *Server) shedLocked(of func(*conn) bool, n int) []*conn {
	var idle []*conn
	for c := range s.mu.conns {
		if of(c) && c.isIdle() {
			c.place.called = c.place.called || c.hasCalled()
			idle = append(idle, c)
		}
	}
	slices.SortFunc(idle, func(a, b *conn) int {
		return cmp.Or(a.place.since().Compare(b.place.since()),
			a.place.accepted.Compare(b.place.accepted))
	})
	idle = idle[:min(len(idle), n, len(idle)/16+1)]
	victims := idle[:0]
	for _, c := range idle {
		if c.retire() {
			s.forgetLocked(c)
			victims = append(victims, c)
		}
	}
	s.stats.connsShed.Add(uint64(len(victims)))
	return victims
}

// enterLocked notes a new connection.
func (s *Server) enterLocked(c *conn, class connClass, host string, now time.Time) {
	c.place = place{class: class, host: host, accepted: now, active: now}
	c.onTrial = class == classTrial
	s.mu.conns[c] = struct{}{}
	s.mu.registry.greeting++
	s.mu.registry.classes[class]++
	if class == classClient {
		s.mu.registry.hosts[host]++
	}
}

// forgetLocked takes a connection out; it may be out already.
func (s *Server) forgetLocked(c *conn) {
	if _, ok := s.mu.conns[c]; !ok {
		return
	}
	delete(s.mu.conns, c)
	s.mu.registry.classes[c.place.class]--
	if !c.place.greeted {
		s.mu.registry.greeting--
	}
	if c.place.class == classClient {
		s.leaveHostLocked(c.place.host)
	}
}

func (s *Server) leaveHostLocked(host string) {
	r := &s.mu.registry
	if r.hosts[host]--; r.hosts[host] == 0 {
		delete(r.hosts, host)
	}
}

// promote makes a connection internal if there is room for another one; then it does not count as a
// client's.
func (s *Server) promote(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.mu.registry
	if _, ok := s.mu.conns[c]; !ok || r.classes[classInternal] >= s.opts.reserved() {
		return false
	}
	r.classes[c.place.class]--
	if c.place.class == classClient {
		s.leaveHostLocked(c.place.host)
	}
	r.classes[classInternal]++
	c.place.class = classInternal
	return true
}

// classify is called for the first internal call of a connection, and for any call of one on trial.
// m may be nil.
func (c *conn) classify(m *method) error {
	if m != nil && m.internal && c.s.promote(c) {
		c.internal, c.onTrial = true, false
	}
	if !c.onTrial {
		return nil
	}
	c.s.stats.connsRefused.Add(1)
	return &rpc.ConnError{Code: http2.ErrCodeEnhanceYourCalm, Why: "too many connections"}
}

func (c *conn) hasCalled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastID > 0
}

// isIdle tells whether a connection has no call.
func (c *conn) isIdle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.idleLocked()
}

func (c *conn) idleLocked() bool {
	return c.mu.closed == nil && c.mu.active == 0 && len(c.mu.streams) == 0 && c.mu.out.Size == 0
}

// retire has an idle connection take no further calls; false if it is not idle.
func (c *conn) retire() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.idleLocked() {
		return false
	}
	c.mu.goingAway = true
	return true
}

// shed ends a retired connection. Its output is empty, so the last words fit into the socket. It
// waits for another goroutine that is writing at the moment, and that writes them too.
func (c *conn) shed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.greeted && c.mu.closed == nil {
		_ = c.mu.out.Framer.WriteGoAway(c.lastID, http2.ErrCodeNo, []byte("too many connections"))
		_ = c.nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		c.flushYielding()
		for (c.mu.writing || c.mu.out.Size > 0) && c.mu.closed == nil {
			c.mu.space.Wait() // a write that fails, as at the deadline, closes the connection
		}
	}
	c.closeLocked(errShed)
}
