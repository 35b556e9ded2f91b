package core

import (
	"time"

	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// Skew bounds how far another clock is ahead of this member's: between Low and High; below zero it
// is behind. The zero Skew knows nothing.
type Skew struct {
	Low, High time.Duration
	Known     bool
}

// Beyond tells whether the clocks are certainly further apart than the bound.
func (s Skew) Beyond(bound time.Duration) bool {
	return s.Known && (s.Low > bound || s.High < -bound)
}

// Middle is the best guess.
func (s Skew) Middle() time.Duration { return s.Low + (s.High-s.Low)/2 }

// maxRoundTrip is beyond what a round trip can be. Whatever says more is not used.
const maxRoundTrip = time.Hour

// clockReading is what the store heartbeats tell of a store's clock.
//
// A report carries the store's clock at its sending. What that is ahead of this clock at its
// arrival is the skew less the time on the way. The next report says how long the call took, answer
// included: the way took between nothing and that. So each pair of reports bounds the skew,
// whatever the network did.
type clockReading struct {
	ahead time.Duration // at the arrival of the last report
	known bool
	skew  Skew
}

func (c clockReading) next(stats *schedulerpb.StoreStats, now time.Time) clockReading {
	if stats.GetClock() == 0 {
		return clockReading{}
	}
	out := clockReading{ahead: time.Unix(0, stats.Clock).Sub(now), known: true, skew: c.skew}
	if trip := stats.GetRoundTrip(); c.known && trip > 0 && trip < uint64(maxRoundTrip) {
		out.skew = Skew{Low: c.ahead, High: c.ahead + time.Duration(trip), Known: true}
	}
	return out
}
