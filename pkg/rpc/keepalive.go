package rpc

import (
	"sync/atomic"
	"time"
)

// KeepAlive finds a connection whose other side is gone without a word. The goroutine that reads
// calls Read and Waits; everything else belongs to the connection's lock.
type KeepAlive struct {
	// after is how long the other side may be silent until it is asked for a sign of life, patience
	// how long that may take.
	after, patience time.Duration
	// Began is when the connection did; it does not change.
	Began time.Time
	// frames counts what was read, and quiet is when the reading goroutine last began to wait,
	// since Began. Without quiet the silence is measured from one look to the next: precise tells.
	frames  atomic.Uint64
	quiet   atomic.Int64
	precise bool

	timer *time.Timer
	// seen is how many frames had come when the timer was set; asked, that a ping has been sent
	// since.
	seen  uint64
	asked bool
}

// StartLocked has look called, without the lock, whenever the connection is to be looked at; look
// calls LookLocked.
func (k *KeepAlive) StartLocked(after, patience time.Duration, precise bool, look func()) {
	k.after, k.patience, k.precise = after, patience, precise
	k.timer = time.AfterFunc(after, look)
}

// StopLocked ends the looks.
func (k *KeepAlive) StopLocked() {
	if k.timer != nil {
		k.timer.Stop()
	}
}

// Read counts a frame.
func (k *KeepAlive) Read() { k.frames.Add(1) }

// Count is how many frames were read. Any goroutine may ask.
func (k *KeepAlive) Count() uint64 { return k.frames.Load() }

// Waits notes that all that has come is read.
func (k *KeepAlive) Waits() { k.quiet.Store(int64(time.Since(k.Began))) }

// What LookLocked finds.
const (
	// KeepGood: nothing is to be done. KeepAsk: send a ping. KeepDead: end the connection.
	KeepGood = iota
	KeepAsk
	KeepDead
)

// LookLocked says what is to be done.
func (k *KeepAlive) LookLocked() int {
	n := k.frames.Load()
	next := k.after
	silent := time.Duration(0)
	if k.precise {
		silent = time.Since(k.Began) - time.Duration(k.quiet.Load())
	}
	switch {
	case k.asked && n == k.seen:
		return KeepDead
	case k.precise && silent < k.after:
		next = k.after - silent
	case n != k.seen:
		if k.precise { // the reading goroutine does not come to wait
			next = k.after/4 + 1
		}
	default:
		k.asked = true
		k.timer.Reset(k.patience)
		return KeepAsk
	}
	k.seen, k.asked = n, false
	k.timer.Reset(next)
	return KeepGood
}
