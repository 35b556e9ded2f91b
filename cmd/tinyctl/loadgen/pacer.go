package loadgen

import (
	"context"
	"sync/atomic"
	"time"
)

// Pacer lets a limited number of operations begin per second. A nil Pacer does not limit. Safe for
// concurrent use.
type Pacer struct {
	began time.Time
	gap   time.Duration
	next  atomic.Int64
}

// NewPacer makes a pacer of a rate per second that begins now, nil for a rate of 0.
func NewPacer(rate float64) *Pacer {
	if rate <= 0 {
		return nil
	}
	return &Pacer{began: time.Now(), gap: time.Duration(float64(time.Second) / rate)}
}

// Wait returns when the caller may begin, false if ctx ends before. The time is the one that was
// planned: latencies count from there, so that a stall is felt by all the operations that it
// delays. Turns that were missed are taken at once.
func (p *Pacer) Wait(ctx context.Context) (begin time.Time, ok bool) {
	if p == nil {
		return time.Now(), true
	}
	at := p.began.Add(time.Duration(p.next.Add(1)) * p.gap)
	d := time.Until(at)
	if d <= 0 {
		return at, true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return at, true
	case <-ctx.Done():
		return at, false
	}
}
