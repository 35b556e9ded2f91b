package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// maxTSBatch bounds how many callers share one request; the service refuses more than twice as many.
const maxTSBatch = 1 << 16

// tsBatch is one request and all who wait for it. Joining is an addition under a lock and waiting is
// for one channel that all share: a channel or a timer per caller would cost more than the timestamp.
type tsBatch struct {
	n    int64         // callers; guarded by timestamps.mu until the batch is taken
	done chan struct{} // closed once the answer below is set

	physical, first int64 // of the first caller
	err             error
}

// timestamps owns the timestamp stream: callers join the batch that is next, and one loop exchanges
// batch after batch, one round trip each.
type timestamps struct {
	c    *Client
	wake chan struct{} // has room for one: somebody joined an empty batch

	mu struct {
		sync.Mutex
		next *tsBatch // not sent yet
	}
}

func newTimestamps(c *Client) *timestamps {
	t := &timestamps{c: c, wake: make(chan struct{}, 1)}
	t.mu.next = &tsBatch{done: make(chan struct{})}
	return t
}

// join adds a caller to the next batch. The index is -1 if that is full.
func (t *timestamps) join() (*tsBatch, int64) {
	t.mu.Lock()
	b := t.mu.next
	i := b.n
	if i >= maxTSBatch {
		t.mu.Unlock()
		return b, -1
	}
	b.n++
	t.mu.Unlock()
	if i == 0 {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
	return b, i
}

// take returns the batch that is next, nil if nobody waits.
func (t *timestamps) take() *tsBatch {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.mu.next
	if b.n == 0 {
		return nil
	}
	t.mu.next = &tsBatch{done: make(chan struct{})}
	return b
}

// GetTS returns a timestamp larger than every one returned before this call began.
func (c *Client) GetTS(ctx context.Context) (physical, logical int64, err error) {
	var failing time.Time // since when, in a row; also the limit of a call whose context has none
	for wait := firstBackoff; ; {
		b, i := c.ts.join()
		select {
		case <-b.done: // every batch ends, the last one by run
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
		switch {
		case errors.Is(b.err, ErrClosed):
			return 0, 0, ErrClosed
		case i < 0:
			continue // that batch was full
		case b.err == nil:
			return b.physical, b.first + i, nil
		case failing.IsZero():
			failing = time.Now()
		case time.Since(failing) > defaultDeadline:
			return 0, 0, errors.Join(context.DeadlineExceeded, b.err)
		}
		if pause(ctx, jitter(wait)) != nil {
			return 0, 0, errors.Join(ctx.Err(), b.err)
		}
		wait = min(2*wait, maxBackoff)
	}
}

// shut ends the batch that will not be sent any more; whoever joins it from now on ends at once.
func (t *timestamps) shut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.next.err = ErrClosed
	close(t.mu.next.done)
}

func (t *timestamps) run() {
	defer t.c.wg.Done()
	defer t.shut()
	var stream schedulerpb.Scheduler_TsoClient
	cancel := func() {}
	defer func() { cancel() }()
	var version uint64
	for {
		select {
		case <-t.wake:
		case <-t.c.ctx.Done():
			return
		}
		for b := t.take(); b != nil; b = t.take() {
			if stream == nil {
				stream, cancel, version, b.err = t.open()
			}
			if b.err == nil {
				b.err = t.serve(stream, b)
			}
			if close(b.done); b.err == nil {
				continue
			}
			cancel()
			stream = nil
			t.c.logger.Debug("timestamp stream ended", zap.Error(b.err))
			if err := t.c.discover(t.c.ctx, version); err != nil && pause(t.c.ctx, firstBackoff) != nil {
				return
			}
		}
	}
}

func (t *timestamps) open() (schedulerpb.Scheduler_TsoClient, func(), uint64, error) {
	stub, version, err := t.c.leader()
	if err != nil {
		return nil, func() {}, version, err
	}
	ctx, cancel := context.WithCancel(t.c.ctx)
	stream, err := stub.Tso(ctx)
	if err != nil {
		cancel()
		return nil, func() {}, version, err
	}
	return &tsoStream{stream, cancel}, cancel, version, nil
}

// tsoStream is a stream whose exchange can be cut short.
type tsoStream struct {
	schedulerpb.Scheduler_TsoClient
	cancel func()
}

func (t *timestamps) serve(stream schedulerpb.Scheduler_TsoClient, b *tsBatch) error {
	// A member that hangs must not hold the callers for ever.
	guard := time.AfterFunc(attemptTimeout, stream.(*tsoStream).cancel)
	defer guard.Stop()
	if err := stream.Send(&schedulerpb.TsoRequest{Header: t.c.header(), Count: uint32(b.n)}); err != nil {
		_, err = stream.Recv() // the reason is with the receiver
		if err == nil {
			err = errors.New("timestamp stream broke")
		}
		return err
	}
	resp, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := headerError(resp.GetHeader()); err != nil {
		return err
	}
	if resp.GetTimestamp() == nil || resp.GetCount() != uint32(b.n) {
		return errors.New("malformed timestamp answer")
	}
	// The answer carries the last of the batch.
	b.physical, b.first = resp.Timestamp.Physical, resp.Timestamp.Logical-b.n+1
	return nil
}
