// Package schedule decides and carries out: the planner asks checkers and schedulers what to do,
// the controller admits their operators and sees them through.
//
// The planner is one goroutine. It takes a view of the cluster, checks regions that changed, a
// slice of the rest, and lets every scheduler whose time has come plan. Heartbeats are concurrent;
// decisions are not. Given the same clock, seed and heartbeats it decides the same, which is what
// the simulation in scheduler/sim builds on.
package schedule

import (
	"time"

	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

// Scheduler is one balancing algorithm.
type Scheduler interface {
	// Name is what configuration and explain call it.
	Name() string
	// GetMinInterval is the pause after it planned something.
	GetMinInterval() time.Duration
	// GetNextInterval is the pause after the given one, when there was nothing to do.
	GetNextInterval(interval time.Duration) time.Duration
	// IsScheduleAllowed tells whether more of its operators may run; running counts those by kind.
	IsScheduleAllowed(v *view.View, running func(operator.Kind) int) bool
	// Schedule plans at most one operator, nil if nothing is worth doing.
	Schedule(v *view.View) *operator.Operator
}

// NextInterval is the usual way to grow a pause: slowly, up to five seconds.
func NextInterval(interval time.Duration) time.Duration {
	return min(interval*13/10, 5*time.Second)
}
