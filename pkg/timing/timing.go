// Package timing counts how long things take, in classes, cheaply enough for every request.
package timing

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Classes is how many classes of times a Histogram has. Class i is up to 16 us << i; the last has
// no bound.
const Classes = 22

// shortestBits: the first class is up to 1 << shortestBits microseconds.
const shortestBits = 4

// Histogram counts times by class. The zero value is ready. Safe for concurrent use.
type Histogram struct {
	classes [Classes]atomic.Uint64
	micros  atomic.Uint64
}

// Note counts n events, each of which took the given time; a negative one counts as 0.
func (h *Histogram) Note(took time.Duration, n int) {
	us := uint64(max(0, took.Microseconds()))
	h.classes[min(max(bits.Len64(us)-shortestBits, 0), Classes-1)].Add(uint64(n))
	h.micros.Add(us * uint64(n))
}

// Counts is what a Histogram has counted.
type Counts struct {
	// Classes counts events by Bound, Total is their time.
	Classes [Classes]uint64
	Total   time.Duration
}

// Read returns what was counted. It is not one moment: events that come meanwhile may be in a part
// of it.
func (h *Histogram) Read() Counts {
	var out Counts
	for i := range h.classes {
		out.Classes[i] = h.classes[i].Load()
	}
	out.Total = time.Duration(h.micros.Load()) * time.Microsecond
	return out
}

// Bound is the upper bound of a class; the last has none.
func Bound(class int) time.Duration {
	return time.Duration(1<<(shortestBits+class)) * time.Microsecond
}

// Buckets are the counts as Prometheus has them: how many events there are, and how many up to each
// bound, in seconds.
func (c *Counts) Buckets() (total uint64, upTo map[float64]uint64) {
	upTo = make(map[float64]uint64, Classes-1)
	for i, n := range c.Classes {
		if total += n; i < Classes-1 {
			upTo[Bound(i).Seconds()] = total
		}
	}
	return total, upTo
}
