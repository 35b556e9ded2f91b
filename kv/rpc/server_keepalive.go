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
}

const maxStrikes = 2

// allow counts a ping. The connection's lock must be held.
func (p *pingPolicy) allow(now time.Time) bool {
	if !p.last.IsZero() && now.Sub(p.last) < p.min {
		p.strikes++
	}
	p.last = now
	return p.strikes <= maxStrikes
}

// forgive is called for whatever is sent to the client. The connection's lock must be held.
func (p *pingPolicy) forgive() {
	if p.strikes != 0 {
		p.strikes = 0
	}
	if !p.last.IsZero() {
		p.last = time.Time{}
	}
}

// keepAlive closes a connection whose client is gone without a word.
type keepAlive struct {
	timer *time.Timer
	// seen is how many frames had come when the timer was set; asked, that a ping has been sent since.
	seen  uint64
	asked bool
}

func (k *keepAlive) start(c *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.timer = time.AfterFunc(c.s.opts.KeepAlive, func() { k.check(c) })
}

func (k *keepAlive) stop() { k.timer.Stop() }

// check runs when the timer fires. Everything but the timer itself belongs to it.
func (k *keepAlive) check(c *conn) {
	n := c.frames.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mu.closed != nil:
		return
	case n != k.seen:
		k.seen, k.asked = n, false
		k.timer.Reset(c.s.opts.KeepAlive)
	case k.asked:
		c.closeLocked(errSilent)
	default:
		k.asked = true
		_ = c.mu.fw.WritePing(false, [8]byte{})
		c.wakeWriter()
		k.timer.Reset(c.s.opts.KeepAliveTimeout)
	}
}
