// Package gate decides which gets are answered on the goroutine that reads their connection. Both
// faces of a store share it.
package gate

import (
	"sync/atomic"
	"time"
)

// Gate decides whether gets are answered on the goroutine that reads their connection. That is the
// fastest way as long as what they read is in memory; but a get that waits for the disk holds up
// all others of its connection. When a good part of them is slow, the next ones go to goroutines,
// which wait for the disk side by side. The zero value is open.
type Gate struct {
	score  atomic.Int32
	detour atomic.Int32
}

const (
	// SlowGet is longer than a get from memory takes, and shorter than one from most disks.
	SlowGet = 300 * time.Microsecond
	// A slow get weighs as much as SlowWeight fast ones: the gate closes when more than one in 32
	// is slow.
	SlowWeight = 32
	// Limit is the score at which the gate closes.
	Limit = 4 * SlowWeight
	// DetourGets is how many gets go round the gate before it is tried again.
	DetourGets = 512
)

// Open tells whether the next get may be answered at once.
func (g *Gate) Open() bool {
	return g.detour.Load() <= 0 || g.detour.Add(-1) < 0
}

// Closed tells whether gets go round the gate now.
func (g *Gate) Closed() bool { return g.detour.Load() > 0 }

// Note counts a get that was begun at start.
func (g *Gate) Note(start time.Time) {
	if time.Since(start) < SlowGet {
		if g.score.Load() > 0 {
			g.score.Add(-1)
		}
		return
	}
	if g.score.Add(SlowWeight) >= Limit {
		g.score.Store(0)
		g.detour.Store(DetourGets)
	}
}
