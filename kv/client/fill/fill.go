// Package fill spreads requests over the connections to one server: over as few as will do, because
// requests that share a connection share its system calls, but no more than so many on each,
// because a connection is served by one goroutine at a time on either side.
package fill

import "sync/atomic"

// PerConn is how many requests a connection is filled up to. With 32 puts under way at once, one
// connection takes a fifth less CPU time than four, with 32 gets a little (docs/benchmarks.md);
// with 128, four are as good as any.
const PerConn = 32

// Loads counts the requests under way per connection. Safe for concurrent use.
type Loads struct {
	n     []atomic.Int32
	first atomic.Uint32 // the connection to fill first
}

// New makes the counters of so many connections.
func New(conns int) *Loads { return &Loads{n: make([]atomic.Int32, max(1, conns))} }

// Take chooses a connection for a request and returns its number, from 0: the first that has fewer
// than PerConn under way, or else the one with the fewest. Callers at the same moment may exceed
// that by as many as they are.
func (l *Loads) Take() int {
	least, fewest := 0, int32(-1)
	first := int(l.first.Load())
	for k := range l.n {
		i := (first + k) % len(l.n)
		n := l.n[i].Load()
		if n < PerConn {
			least = i
			break
		}
		if fewest < 0 || n < fewest {
			least, fewest = i, n
		}
	}
	l.n[least].Add(1)
	return least
}

// Done says that a request for which Take returned i has ended.
func (l *Loads) Done(i int) { l.n[i].Add(-1) }

// Avoid says that a request over connection i has failed: the others are filled first from now on.
// A connection that fails fast has few requests under way, and would get all of the next ones.
func (l *Loads) Avoid(i int) {
	l.first.CompareAndSwap(uint32(i), uint32((i+1)%len(l.n)))
}
