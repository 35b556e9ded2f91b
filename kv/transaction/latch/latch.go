// Package latch orders the commands that read, decide and write the same keys within one store. A
// latch is in memory only; an MVCC lock, which is data, is another thing.
//
// A command takes the latches of all its keys before it reads, and gives them back when the outcome
// of its write is known: then no other command can decide on a state that it is about to change.
package latch

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
)

// stripes is how many mutexes share the latches; a power of two.
const stripes = 4096

// Table is a set of latches. The zero value is ready. Safe for concurrent use.
type Table struct{ stripes [stripes]stripe }

// stripe holds the latches that are taken, of the hashes that fall to it.
//
// Lock order: no two stripes are locked at once.
type stripe struct {
	mu struct {
		sync.Mutex
		taken []entry
	}
}

// entry is a latch that is taken. Those who wait are in order of arrival.
type entry struct {
	hash    uint64
	waiters []*waiter
}

type waiter struct{ granted chan struct{} }

// Domain separates the latches of regions and of terms of leadership: a command of a later term
// need not wait for one of an earlier term whose outcome is not known, since its view of the region
// holds what that one may have done.
type Domain struct{ RegionID, Term uint64 }

// Hashes are the sorted latches of the keys; equal keys have one latch.
func Hashes(d Domain, keys [][]byte) []uint64 {
	var seed [16]byte
	binary.LittleEndian.PutUint64(seed[:8], d.RegionID)
	binary.LittleEndian.PutUint64(seed[8:], d.Term)
	mix := xxhash.Sum64(seed[:])
	out := make([]uint64, len(keys))
	for i, k := range keys {
		out[i] = xxhash.Sum64(k) ^ mix
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Guard are the latches of one command. Release gives them back, once.
type Guard struct {
	table  *Table
	hashes []uint64
}

// recheck is how often a wait asks whether it still makes sense.
const recheck = 50 * time.Millisecond

// Acquire takes all latches of hashes, which are sorted and without duplicates, or none if ctx ends
// first or if useless, which is asked now and then during a wait, returns an error. Because all
// commands take latches in the same order, no two wait for each other.
func (t *Table) Acquire(
	ctx context.Context, hashes []uint64, useless func() error,
) (*Guard, error) {
	for i, h := range hashes {
		if err := t.take(ctx, h, useless); err != nil {
			t.release(hashes[:i])
			return nil, err
		}
	}
	return &Guard{table: t, hashes: hashes}, nil
}

// Release gives the latches back.
func (g *Guard) Release() {
	g.table.release(g.hashes)
	g.hashes = nil
}

func (t *Table) stripe(hash uint64) *stripe { return &t.stripes[hash%stripes] }

func (s *stripe) findLocked(hash uint64) int {
	return slices.IndexFunc(s.mu.taken, func(e entry) bool { return e.hash == hash })
}

// take takes one latch.
func (t *Table) take(ctx context.Context, hash uint64, useless func() error) error {
	s := t.stripe(hash)
	s.mu.Lock()
	i := s.findLocked(hash)
	if i < 0 {
		s.mu.taken = append(s.mu.taken, entry{hash: hash})
		s.mu.Unlock()
		return nil
	}
	w := &waiter{granted: make(chan struct{})}
	s.mu.taken[i].waiters = append(s.mu.taken[i].waiters, w)
	s.mu.Unlock()
	err := w.wait(ctx, useless)
	if err == nil {
		return nil
	}
	s.mu.Lock()
	select {
	case <-w.granted: // it came together with the end of the wait
		s.mu.Unlock()
		t.release([]uint64{hash})
		return err
	default:
	}
	i = s.findLocked(hash)
	s.mu.taken[i].waiters = slices.DeleteFunc(s.mu.taken[i].waiters, func(o *waiter) bool {
		return o == w
	})
	s.mu.Unlock()
	return err
}

// Waiting is how many commands wait for a latch, for tests and for people.
func (t *Table) Waiting() (n int) {
	for i := range t.stripes {
		s := &t.stripes[i]
		s.mu.Lock()
		for _, e := range s.mu.taken {
			n += len(e.waiters)
		}
		s.mu.Unlock()
	}
	return n
}

// wait returns nil when the latch is granted.
func (w *waiter) wait(ctx context.Context, useless func() error) error {
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for {
		select {
		case <-w.granted:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if err := useless(); err != nil {
				return err
			}
		}
	}
}

// release hands each latch to the one that has waited longest.
func (t *Table) release(hashes []uint64) {
	for _, h := range hashes {
		s := t.stripe(h)
		s.mu.Lock()
		i := s.findLocked(h)
		if e := &s.mu.taken[i]; len(e.waiters) > 0 {
			close(e.waiters[0].granted)
			e.waiters = e.waiters[1:]
		} else {
			last := len(s.mu.taken) - 1
			s.mu.taken[i] = s.mu.taken[last]
			s.mu.taken[last] = entry{}
			s.mu.taken = s.mu.taken[:last]
		}
		s.mu.Unlock()
	}
}
