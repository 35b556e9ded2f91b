package client

import (
	"context"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// WithDeadline returns a context for calls of a Client, which end with DeadlineExceeded at d or at
// the parent's deadline, whichever is first. It costs no timer, since a connection has one for all
// its calls, and needs no cancelling. Nothing else ends by it: Done is the parent's, although Err
// tells that the deadline has passed.
func WithDeadline(parent context.Context, d time.Time) context.Context {
	if p, ok := parent.Deadline(); ok && p.Before(d) {
		d = p
	}
	return &deadlineContext{parent, d}
}

type deadlineContext struct {
	context.Context
	deadline time.Time
}

// Deadline implements context.Context.
func (c *deadlineContext) Deadline() (time.Time, bool) { return c.deadline, true }

// Err implements context.Context.
func (c *deadlineContext) Err() error {
	if err := c.Context.Err(); err != nil || time.Now().Before(c.deadline) {
		return err
	}
	return context.DeadlineExceeded
}

// timed returns a context that is done at its deadline, for what does not look at the clock itself.
func timed(ctx context.Context) (context.Context, context.CancelFunc) {
	if c, ok := ctx.(*deadlineContext); ok {
		return context.WithDeadline(c.Context, c.deadline)
	}
	return ctx, func() {}
}

// sweep ends calls at their deadlines. It is due when the first of them may be: calls that end
// earlier do not touch the timer, so that it fires about once in the time that calls are given.
type sweep struct {
	timer *time.Timer
	// at is when the timer fires; zero if it does not.
	at time.Time
}

// boundLocked has the connection end a call at its deadline.
func (l *link) boundLocked(call *clientCall, deadline time.Time) {
	call.mu.deadline = deadline
	if s := &l.mu.sweep; s.at.IsZero() || deadline.Before(s.at) {
		l.sweepAtLocked(deadline)
	}
}

func (l *link) sweepAtLocked(at time.Time) {
	s := &l.mu.sweep
	s.at = at
	if s.timer == nil {
		s.timer = time.AfterFunc(time.Until(at), l.endLate)
		return
	}
	s.timer.Reset(time.Until(at))
}

// endLate ends the calls whose deadlines have passed.
func (l *link) endLate() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.sweep.at = time.Time{}
	if l.mu.closed != nil {
		return
	}
	now, next := time.Now(), time.Time{}
	for id, call := range l.mu.calls {
		switch d := call.mu.deadline; {
		case d.IsZero():
		case !d.After(now):
			_ = l.mu.out.Framer.WriteRSTStream(id, http2.ErrCodeCancel)
			l.endLocked(call, errDeadline)
		case next.IsZero() || d.Before(next):
			next = d
		}
	}
	if !next.IsZero() {
		l.sweepAtLocked(next)
	}
	l.kickLocked()
	l.endIfDrainedLocked()
}

var errDeadline = status.Error(codes.DeadlineExceeded, context.DeadlineExceeded.Error())
