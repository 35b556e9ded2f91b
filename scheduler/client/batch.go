package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// batch is one request and all who wait for its answer. Joining is an append under a lock and
// waiting is for one channel that all share: a channel or a timer per caller would cost more than
// the answer.
type batch[Q, R any] struct {
	asked  []Q           // guarded by batcher.mu until the batch is taken
	done   chan struct{} // closed once what is below is set
	result R
	err    error
	final  bool // err will not be cured by another try
}

// batcher gathers callers while earlier requests are on their way: under load a round trip serves
// all who came during the one before, and a lone caller is served at once.
//
// Invariant: every batch that was joined gets its done closed, the last one by shut.
type batcher[Q, R any] struct {
	limit int
	wake  chan struct{} // has room for one: somebody joined an empty batch

	mu struct {
		sync.Mutex
		next   *batch[Q, R] // not sent yet
		closed bool
	}
}

func newBatcher[Q, R any](limit int) *batcher[Q, R] {
	b := &batcher[Q, R]{limit: limit, wake: make(chan struct{}, 1)}
	b.mu.next = &batch[Q, R]{done: make(chan struct{})}
	return b
}

// join adds a caller to the next batch. The index is -1 if that is full.
func (b *batcher[Q, R]) join(q Q) (*batch[Q, R], int) {
	b.mu.Lock()
	next := b.mu.next
	i := len(next.asked)
	if i >= b.limit {
		b.mu.Unlock()
		return next, -1
	}
	next.asked = append(next.asked, q)
	b.mu.Unlock()
	if i == 0 {
		b.signal()
	}
	return next, i
}

func (b *batcher[Q, R]) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns the batch that is next, nil if nobody waits.
func (b *batcher[Q, R]) take() *batch[Q, R] {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := b.mu.next
	if b.mu.closed || len(next.asked) == 0 {
		return nil
	}
	b.mu.next = &batch[Q, R]{done: make(chan struct{})}
	return next
}

// shut ends the batch that will not be sent any more; a caller that joins it from now on ends at
// once.
func (b *batcher[Q, R]) shut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.mu.closed {
		b.mu.closed = true
		b.mu.next.err, b.mu.next.final = ErrClosed, true
		close(b.mu.next.done)
	}
}

// ask joins batches until one succeeds, is refused for good, or ctx ends. It returns the batch's
// result and which part of it is the caller's.
func (b *batcher[Q, R]) ask(ctx context.Context, q Q) (R, int, error) {
	var none R
	var failing time.Time // since when; bounds calls whose context has no deadline
	for wait := firstBackoff; ; wait = min(2*wait, maxBackoff) {
		at, i := b.join(q)
		select {
		case <-at.done:
		case <-ctx.Done():
			return none, 0, ctx.Err()
		}
		switch {
		case at.err == nil && i >= 0:
			return at.result, i, nil
		case at.final:
			return none, 0, at.err
		case i < 0:
			continue // that batch was full
		case failing.IsZero():
			failing = time.Now()
		case time.Since(failing) > defaultDeadline:
			return none, 0, errors.Join(context.DeadlineExceeded, at.err)
		}
		if pause(ctx, jitter(wait)) != nil {
			return none, 0, fmt.Errorf("%w (last: %v)", ctx.Err(), at.err)
		}
	}
}

// run exchanges batches until ctx ends. Several may run at once; then as many requests are on their
// way. failed is called after a batch that was not served, before the next one.
func (b *batcher[Q, R]) run(
	ctx context.Context, exchange func(asked []Q) (R, error), failed func(error) error,
) {
	defer b.shut()
	for {
		select {
		case <-b.wake:
		case <-ctx.Done():
			return
		}
		for at := b.take(); at != nil; at = b.take() {
			at.result, at.err = exchange(at.asked)
			if at.err != nil {
				var retry bool
				at.err, retry = rpcError(at.err)
				at.final = !retry || errors.Is(at.err, ErrNotBootstrapped) ||
					errors.Is(at.err, ErrRejected)
			}
			err := at.err
			if close(at.done); err != nil && failed(err) != nil {
				return
			}
		}
	}
}
