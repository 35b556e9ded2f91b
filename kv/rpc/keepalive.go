package rpc

import (
	"sync/atomic"
	"time"
)

// keepAlive finds a connection whose other side is gone without a word. The goroutine that reads calls read and waits;
// everything else belongs to the connection's lock.
type keepAlive struct {
	// after is how long the other side may be silent until it is asked for a sign of life, patience how long that may
	// take.
	after, patience time.Duration
	began           time.Time
	// frames counts what was read, and quiet is when the reading goroutine last began to wait, since began. Without quiet
	// the silence is measured from one look to the next: precise tells.
	frames  atomic.Uint64
	quiet   atomic.Int64
	precise bool

	timer *time.Timer
	// seen is how many frames had come when the timer was set; asked, that a ping has been sent since.
	seen  uint64
	asked bool
}

// startLocked has look called, without the lock, whenever the connection is to be looked at; look calls lookLocked.
func (k *keepAlive) startLocked(after, patience time.Duration, precise bool, look func()) {
	k.after, k.patience, k.precise = after, patience, precise
	k.timer = time.AfterFunc(after, look)
}

func (k *keepAlive) stopLocked() {
	if k.timer != nil {
		k.timer.Stop()
	}
}

// read counts a frame.
func (k *keepAlive) read() { k.frames.Add(1) }

// count is how many frames were read. Any goroutine may ask.
func (k *keepAlive) count() uint64 { return k.frames.Load() }

// waits notes that all that has come is read.
func (k *keepAlive) waits() { k.quiet.Store(int64(time.Since(k.began))) }

// What lookLocked finds.
const (
	keepGood = iota
	keepAsk
	keepDead
)

// lookLocked says what is to be done: nothing, send a ping, or end the connection.
func (k *keepAlive) lookLocked() int {
	n := k.frames.Load()
	next, verdict := k.after, keepGood
	silent := time.Duration(0)
	if k.precise {
		silent = time.Since(k.began) - time.Duration(k.quiet.Load())
	}
	switch {
	case k.asked && n == k.seen:
		return keepDead
	case k.precise && silent < k.after:
		next = k.after - silent
	case n != k.seen:
		if k.precise { // the reading goroutine does not come to wait
			next = k.after/4 + 1
		}
	default:
		k.asked = true
		k.timer.Reset(k.patience)
		return keepAsk
	}
	k.seen, k.asked = n, false
	k.timer.Reset(next)
	return verdict
}
