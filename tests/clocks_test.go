package tests

import (
	"testing"
	"time"

	"github.com/tinykv/tinykv/kv/raftstore"
)

// oddClock shows a time that is off, and runs at another rate than others.
type oddClock struct {
	begin time.Time // when it was made
	base  time.Time // what it showed then
	rate  float64
}

// newOddClock makes the clock of a store: those of odd ids run slow, those of even ids fast, and no
// two show the same time.
func newOddClock(store uint64) raftstore.Clock {
	now := time.Now()
	off := time.Duration(store) * time.Hour
	if store%2 == 0 {
		return &oddClock{begin: now, base: now.Add(-off), rate: 1.1}
	}
	return &oddClock{begin: now, base: now.Add(off), rate: 0.9}
}

func (c *oddClock) Base() time.Time { return c.base }

func (c *oddClock) Now() time.Time {
	return c.base.Add(time.Duration(float64(time.Since(c.begin)) * c.rate))
}

// TestClocksApart: with leases, as by default. What a client reads and writes does not depend on
// what any clock shows, nor on its rate within ten percent.
func TestClocksApart(t *testing.T) {
	round{clients: 5, clocks: true, partitions: true, transfer: true}.run(t)
}

// TestClocksApartUnreliable: besides, stores crash, messages get lost, and regions split.
func TestClocksApartUnreliable(t *testing.T) {
	round{clients: 5, clocks: true, unreliable: true, crash: true, split: true, minOps: 100}.run(t)
}
