package latch

import (
	"context"
	"sync"
	"time"
)

// Barriers keep commands that touch some keys of a region apart from one that touches all of them.
// The zero value is ready. Safe for concurrent use.
type Barriers struct {
	mu struct {
		sync.Mutex
		gates map[Domain]*gate
	}
}

// gate is the state of one region in one term; there is none while nobody is inside.
type gate struct {
	inside int
	// closed: one that excludes all others is inside, or waits for them to leave.
	closed bool
	// changed is closed at the next change, if somebody waits for one.
	changed chan struct{}
}

func (b *Barriers) gateLocked(d Domain) *gate {
	g := b.mu.gates[d]
	if g == nil {
		if b.mu.gates == nil {
			b.mu.gates = map[Domain]*gate{}
		}
		g = &gate{}
		b.mu.gates[d] = g
	}
	return g
}

// changedLocked wakes those who wait, and drops a gate that nobody uses.
func (b *Barriers) changedLocked(d Domain, g *gate) {
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
	if g.inside == 0 && !g.closed {
		delete(b.mu.gates, d)
	}
}

// Enter lets a command in beside others of its kind, once no Exclude of the domain is under way.
// leave is to be called once. useless is asked now and then during a wait, and its error ends it.
func (b *Barriers) Enter(
	ctx context.Context, d Domain, useless func() error,
) (leave func(), err error) {
	for {
		b.mu.Lock()
		g := b.gateLocked(d)
		if !g.closed {
			g.inside++
			b.mu.Unlock()
			return func() { b.leave(d) }, nil
		}
		if err := b.waitUnlocking(ctx, g, useless); err != nil {
			return nil, err
		}
	}
}

func (b *Barriers) leave(d Domain) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.mu.gates[d]
	g.inside--
	b.changedLocked(d, g)
}

// waitUnlocking waits for a change of the gate.
func (b *Barriers) waitUnlocking(ctx context.Context, g *gate, useless func() error) error {
	if g.changed == nil {
		g.changed = make(chan struct{})
	}
	changed := g.changed
	b.mu.Unlock()
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for {
		select {
		case <-changed:
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

// Exclude lets a command in alone: it waits until those inside have left, while no other enters.
// leave is to be called once.
func (b *Barriers) Exclude(
	ctx context.Context, d Domain, useless func() error,
) (leave func(), err error) {
	for {
		b.mu.Lock()
		g := b.gateLocked(d)
		if !g.closed {
			g.closed = true
			b.mu.Unlock()
			break
		}
		if err := b.waitUnlocking(ctx, g, useless); err != nil {
			return nil, err
		}
	}
	open := func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		g := b.mu.gates[d]
		g.closed = false
		b.changedLocked(d, g)
	}
	for {
		b.mu.Lock()
		g := b.mu.gates[d]
		if g.inside == 0 {
			b.mu.Unlock()
			return open, nil
		}
		if err := b.waitUnlocking(ctx, g, useless); err != nil {
			open()
			return nil, err
		}
	}
}
