package callroom

import (
	"net"
	"sync"
	"sync/atomic"
)

// Room is what the connections of one server may make it hold.
type Room struct {
	limit   int64
	largest int64
	held    atomic.Int64
	closed  atomic.Uint64
	refused Refused
	// shedding makes room: by one at a time, so that no more connections are closed than needed.
	shedding sync.Mutex
	mu       struct {
		sync.Mutex
		conns map[*Conn]struct{}
	}
}

// Refused counts what the server did not take, by the limit that it passed.
type Refused struct {
	Calls    atomic.Uint64 // more of one connection than it may have
	Headers  atomic.Uint64 // of a call, too large
	Messages atomic.Uint64 // too large
	Pings    atomic.Uint64 // connections with too many of them
}

// New makes a room of limit bytes for a server whose messages have at most largest bytes.
func New(limit, largest int64) *Room {
	r := &Room{limit: limit, largest: largest}
	r.mu.conns = map[*Conn]struct{}{}
	return r
}

// Held is what the connections hold now, in bytes.
func (r *Room) Held() int64 { return r.held.Load() }

// Closed counts the connections that were closed for want of room.
func (r *Room) Closed() uint64 { return r.closed.Load() }

// Refused returns the counters.
func (r *Room) Refused() *Refused { return &r.refused }

// Watch charges what passes over nc, the server's side of a connection that speaks HTTP/2 and has
// not read the preface yet, to host. end closes it without waiting for anything.
func (r *Room) Watch(nc net.Conn, host string, end func() error) *Conn {
	c := &Conn{Conn: nc, room: r, host: host, end: end}
	c.mu.preface, c.mu.calls = prefaceLen, map[uint32]*call{}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.conns[c] = struct{}{}
	return c
}

// shed closes connections until the rest has room.
func (r *Room) shed() {
	for r.held.Load() > r.limit {
		c := r.shedOne()
		if c == nil {
			return
		}
		_ = c.end() // what is left of it ends with the next read
	}
}

func (r *Room) shedOne() *Conn {
	r.shedding.Lock()
	defer r.shedding.Unlock()
	if r.held.Load() <= r.limit {
		return nil
	}
	c := r.heaviest()
	if c != nil {
		c.leave()
		r.closed.Add(1)
	}
	return c
}

// heaviest is the connection with the largest charge, of the host with the largest charge.
func (r *Room) heaviest() *Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	hosts := map[string]int64{}
	for c := range r.mu.conns {
		hosts[c.host] += c.held.Load()
	}
	var most *Conn
	var mostOfHost, mostOfConn int64
	for c := range r.mu.conns {
		host, held := hosts[c.host], c.held.Load()
		if held > 0 && (host > mostOfHost || host == mostOfHost && held > mostOfConn) {
			most, mostOfHost, mostOfConn = c, host, held
		}
	}
	return most
}

func (r *Room) forget(c *Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mu.conns, c)
}
