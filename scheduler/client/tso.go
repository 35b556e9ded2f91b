package client

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// maxTSBatch bounds how many callers share one request.
const maxTSBatch = 8192

type tsRequest struct {
	done              chan error // gets exactly one value; room for it
	physical, logical int64
}

// timestamps owns the timestamp stream: it gathers waiting callers and serves them by one request.
type timestamps struct {
	c  *Client
	ch chan *tsRequest
}

func newTimestamps(c *Client) *timestamps {
	return &timestamps{c: c, ch: make(chan *tsRequest, maxTSBatch)}
}

// GetTS returns a timestamp larger than every one returned before this call began.
func (c *Client) GetTS(ctx context.Context) (physical, logical int64, err error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultDeadline)
		defer cancel()
	}
	for wait := firstBackoff; ; wait = min(2*wait, maxBackoff) {
		req := &tsRequest{done: make(chan error, 1)}
		select {
		case c.ts.ch <- req:
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		case <-c.ctx.Done():
			return 0, 0, ErrClosed
		}
		select {
		case err = <-req.done:
			if err == nil {
				return req.physical, req.logical, nil
			}
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		case <-c.ctx.Done():
			return 0, 0, ErrClosed
		}
		if pause(ctx, jitter(wait)) != nil {
			return 0, 0, errors.Join(ctx.Err(), err)
		}
	}
}

func (t *timestamps) run() {
	defer t.c.wg.Done()
	var stream schedulerpb.Scheduler_TsoClient
	cancel := func() {}
	defer func() { cancel() }()
	var version uint64
	batch := make([]*tsRequest, 0, maxTSBatch)
	for {
		batch = t.gather(batch[:0])
		if batch == nil {
			return
		}
		err := error(nil)
		if stream == nil {
			stream, cancel, version, err = t.open()
		}
		if err == nil {
			if err = t.serve(stream, batch); err == nil {
				continue
			}
			cancel()
			stream = nil
		}
		for _, r := range batch {
			r.done <- err
		}
		t.c.logger.Debug("timestamp stream ended", zap.Error(err))
		if err := t.c.discover(t.c.ctx, version); err != nil && t.c.ctx.Err() == nil {
			_ = pause(t.c.ctx, firstBackoff)
		}
	}
}

// gather waits for one caller and takes all others that wait too; nil when the client is closed.
func (t *timestamps) gather(batch []*tsRequest) []*tsRequest {
	select {
	case r := <-t.ch:
		batch = append(batch, r)
	case <-t.c.ctx.Done():
		return nil
	}
	for len(batch) < maxTSBatch {
		select {
		case r := <-t.ch:
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
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

func (t *timestamps) serve(stream schedulerpb.Scheduler_TsoClient, batch []*tsRequest) error {
	// A member that hangs must not hold the callers for ever.
	guard := time.AfterFunc(attemptTimeout, stream.(*tsoStream).cancel)
	defer guard.Stop()
	n := len(batch)
	if err := stream.Send(&schedulerpb.TsoRequest{Header: t.c.header(), Count: uint32(n)}); err != nil {
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
	if resp.GetTimestamp() == nil || resp.GetCount() != uint32(n) {
		return errors.New("malformed timestamp answer")
	}
	first := resp.Timestamp.Logical - int64(n) + 1 // the answer carries the last of the batch
	for i, r := range batch {
		r.physical, r.logical = resp.Timestamp.Physical, first+int64(i)
		r.done <- nil
	}
	return nil
}
