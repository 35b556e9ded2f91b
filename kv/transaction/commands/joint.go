package commands

import (
	"context"
	"sync"
)

// joint carries out a call for several callers at once. Safe for concurrent use, once made by
// newJoint.
type joint struct {
	mu struct {
		sync.Mutex
		// started counts the calls, done is the last one that has succeeded.
		started, done uint64
	}
	// running has one place, for the one who calls.
	running chan struct{}
}

func newJoint() *joint { return &joint{running: make(chan struct{}, 1)} }

// do returns after a call of f that has begun after it was asked, and has succeeded. Those who wait
// while one is under way share the next.
func (j *joint) do(ctx context.Context, f func(ctx context.Context) error) error {
	j.mu.Lock()
	before := j.mu.started
	j.mu.Unlock()
	select {
	case j.running <- struct{}{}:
		defer func() { <-j.running }()
	case <-ctx.Done():
		return ctx.Err()
	}
	j.mu.Lock()
	if j.mu.done > before {
		j.mu.Unlock()
		return nil
	}
	j.mu.started++
	n := j.mu.started
	j.mu.Unlock()
	if err := f(ctx); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.mu.done = n
	return nil
}
