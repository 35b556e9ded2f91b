package rpc

import (
	"errors"
	"time"
)

var errSilent = errors.New("client gave no sign of life")

// pingPolicy finds clients that ping too often: each ping costs both sides a packet and a wake-up. As grpc's server
// does, it forgives two, and forgets them whenever the server has sent something.
type pingPolicy struct {
	min     time.Duration
	last    time.Time
	strikes int
	// sent is how much had been sent at the last ping.
	sent uint64
}

const maxStrikes = 2

// allow counts a ping; sent counts what was sent to the client. The connection's lock must be held.
func (p *pingPolicy) allow(now time.Time, sent uint64) bool {
	if sent != p.sent {
		p.sent, p.strikes, p.last = sent, 0, time.Time{}
	}
	if !p.last.IsZero() && now.Sub(p.last) < p.min {
		p.strikes++
	}
	p.last = now
	return p.strikes <= maxStrikes
}

// checkAlive runs when the keep-alive timer fires.
func (c *conn) checkAlive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed != nil {
		return
	}
	switch c.keep.lookLocked() {
	case keepDead:
		c.closeLocked(errSilent)
	case keepAsk:
		_ = c.mu.out.fw.WritePing(false, [8]byte{})
		c.wakeWriter()
	}
}
