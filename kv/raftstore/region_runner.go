package raftstore

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// regionRunner does what is too slow for the workers. Installations, destructions and the clearing
// of ranges are carried out one after the other by one goroutine, in the order in which they were
// given, so that a late deletion can never hit data of a newer peer (G9). Builds run beside.
type regionRunner struct {
	store      *Store
	installing atomic.Int32
	building   sync.WaitGroup
	builds     chan uint64

	mu struct {
		sync.Mutex
		cond   *sync.Cond
		jobs   []func() error
		closed bool
		// canceled marks regions whose installation is pointless: their peer is being destroyed.
		canceled map[uint64]bool
	}
}

func newRegionRunner(s *Store) *regionRunner {
	r := &regionRunner{store: s, builds: make(chan uint64, 1024)}
	r.mu.cond = sync.NewCond(&r.mu)
	r.mu.canceled = map[uint64]bool{}
	return r
}

func (r *regionRunner) run(ctx context.Context) {
	for range maxBuilds {
		r.building.Add(1)
		// Owned by run; ends with ctx.
		go func() {
			defer r.building.Done()
			for {
				select {
				case <-ctx.Done():
					return
				case id := <-r.builds:
					r.doBuild(id)
				}
			}
		}()
	}
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		r.mu.closed = true
		r.mu.Unlock()
		r.mu.cond.Broadcast()
	})
	defer stop()
	defer r.building.Wait()
	for {
		r.mu.Lock()
		for len(r.mu.jobs) == 0 && !r.mu.closed {
			r.mu.cond.Wait()
		}
		if r.mu.closed {
			r.mu.Unlock()
			return
		}
		job := r.mu.jobs[0]
		r.mu.jobs = r.mu.jobs[1:]
		r.mu.Unlock()
		if err := job(); err != nil {
			r.store.fail(fmt.Errorf("region runner: %w", err))
			return
		}
	}
}

func (r *regionRunner) add(job func() error) {
	r.mu.Lock()
	r.mu.jobs = append(r.mu.jobs, job)
	r.mu.Unlock()
	r.mu.cond.Signal()
}
