package runner

import (
	"context"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// MaxClockAhead is how far a store's time may be ahead of the placement service's. A clock that is
// further ahead would make keys expire that should live; it counts as if it were ahead by this
// much.
const MaxClockAhead = 5 * time.Second

// ClockLimit holds a store's clock back if it is ahead of the placement service's time. What it
// knows is a time of the service and the moment at which it was asked for; from then on the limit
// passes with the store's monotonic clock, so that one answer holds for as long as the service is
// away.
//
// Invariant: the limit is not before the service's time plus MaxClockAhead, since the service
// answers after it is asked.
//
// Check has one caller at a time; the other methods are safe for concurrent use.
type ClockLimit struct {
	now    func() time.Time
	ask    func(ctx context.Context) (time.Time, error)
	logger *zap.Logger
	known  atomic.Pointer[clockAnswer]
	ahead  bool // as logged last
}

// clockAnswer is the latest time that the store may have at a moment.
type clockAnswer struct{ at, latest time.Time }

// NewClockLimit makes the limit of a clock. ask asks for the placement service's time; with nil
// there is no limit.
func NewClockLimit(
	now func() time.Time, ask func(ctx context.Context) (time.Time, error), logger *zap.Logger,
) *ClockLimit {
	return &ClockLimit{now: now, ask: ask, logger: logger}
}

// Check asks for the time. After an error the limit before stays.
func (l *ClockLimit) Check(ctx context.Context) error {
	if l.ask == nil {
		return nil
	}
	at := l.now()
	reference, err := l.ask(ctx)
	if err != nil {
		return err
	}
	// Wall clocks are compared: what the reference is, and what the store would say.
	answer := &clockAnswer{at: at, latest: reference.Add(MaxClockAhead)}
	l.known.Store(answer)
	by := at.Round(0).Sub(reference)
	if ahead := by > MaxClockAhead; ahead != l.ahead {
		if l.ahead = ahead; ahead {
			l.logger.Warn("the clock is ahead of the placement service's, TTLs go by that one's",
				zap.Duration("ahead", by), zap.Duration("allowed", MaxClockAhead))
		} else {
			l.logger.Info("the clock is no longer ahead of the placement service's",
				zap.Duration("ahead", by))
		}
	}
	return nil
}

// Known tells whether the limit is known, or there is none.
func (l *ClockLimit) Known() bool { return l.ask == nil || l.known.Load() != nil }

// Now is the store's time: its clock, or the limit if the clock is ahead of it. Until the limit is
// known it is the clock.
func (l *ClockLimit) Now() time.Time {
	now := l.now()
	a := l.known.Load()
	if a == nil {
		return now
	}
	if limit := a.latest.Add(now.Sub(a.at)); now.Round(0).After(limit) {
		return limit
	}
	return now
}
