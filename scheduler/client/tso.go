package client

import (
	"context"
	"errors"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// maxTSBatch bounds how many callers share one request; the service refuses more than twice as
// many.
const maxTSBatch = 1 << 16

// tsRange is the answer to a batch: the first caller's timestamp, the others' follow.
type tsRange struct{ physical, first int64 }

// timestamps owns the timestamp stream.
type timestamps struct {
	*batcher[struct{}, tsRange]
	c      *Client
	stream schedulerpb.Scheduler_TsoClient // nil if there is none; owned by run
	cancel func()
	leader target // of the stream
}

func newTimestamps(c *Client) *timestamps {
	return &timestamps{batcher: newBatcher[struct{}, tsRange](maxTSBatch), c: c, cancel: func() {}}
}

// GetTS returns a timestamp larger than every one returned before this call began.
func (c *Client) GetTS(ctx context.Context) (physical, logical int64, err error) {
	r, i, err := c.ts.ask(ctx, struct{}{})
	return r.physical, r.first + int64(i), err
}

func (t *timestamps) run() {
	defer t.c.wg.Done()
	defer func() { t.cancel() }()
	t.batcher.run(t.c.ctx, t.exchange, func(err error) error {
		t.cancel()
		t.stream = nil
		t.c.logger.Debug("timestamp stream ended", zap.Error(err))
		return t.c.rediscover(t.leader.version)
	})
}

func (t *timestamps) open() error {
	var err error
	if t.leader, err = t.c.leader(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(t.leader.reign)
	if t.stream, err = t.leader.Tso(ctx, codec.StreamOption()); err != nil {
		t.stream = nil
		cancel()
		return err
	}
	t.cancel = cancel
	return nil
}

func (t *timestamps) exchange(asked []struct{}) (tsRange, error) {
	if t.stream == nil {
		if err := t.open(); err != nil {
			return tsRange{}, err
		}
	}
	// A member that hangs must not hold the callers for ever.
	defer t.c.try(t.leader, t.cancel)()
	n := int64(len(asked))
	if err := t.stream.Send(&schedulerpb.TsoRequest{
		Header: t.c.header(), Count: uint32(n),
	}); err != nil {
		_, err = t.stream.Recv() // the reason is with the receiver
		if err == nil {
			err = errors.New("timestamp stream broke")
		}
		return tsRange{}, err
	}
	resp, err := t.stream.Recv()
	if err != nil {
		return tsRange{}, err
	}
	if err := headerError(resp.GetHeader()); err != nil {
		return tsRange{}, err
	}
	if resp.GetTimestamp() == nil || resp.GetCount() != uint32(n) {
		return tsRange{}, errors.New("malformed timestamp answer")
	}
	// The answer carries the last of the batch.
	return tsRange{resp.Timestamp.Physical, resp.Timestamp.Logical - n + 1}, nil
}
