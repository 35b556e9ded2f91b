package snap

import (
	"context"

	"golang.org/x/time/rate"
)

// paceBytes are worked off between two looks at the limit. A wait is no longer than they take.
const paceBytes = 64 << 10

// Pace limits how many bytes a second are built, and how many are installed; 0 is without limit, as
// at first. Building and installing take a processor for as long as they last, and requests wait;
// nobody waits for a replica that takes a second longer. What is under way follows after the part
// it waits for: a store that stops lifts the limit.
func (m *Manager) Pace(bytesPerSecond int64) {
	limit := rate.Inf
	if bytesPerSecond > 0 {
		limit = rate.Limit(bytesPerSecond)
	}
	m.builds.SetLimit(limit)
	m.installs.SetLimit(limit)
}

// pace is what one goroutine has worked off under a limit.
type pace struct {
	limit *rate.Limiter
	done  int
}

// spend waits for n more bytes to be due.
func (p *pace) spend(n int) {
	for p.done += n; p.done >= paceBytes; p.done -= paceBytes {
		_ = p.limit.WaitN(context.Background(), paceBytes) // fails only for more than the burst
	}
}
