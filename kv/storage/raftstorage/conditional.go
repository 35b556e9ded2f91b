package raftstorage

import (
	"context"
	"errors"
	"time"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/pkg/trace"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// CompareAndSwap implements storage.Conditional.
func (s *Storage) CompareAndSwap(
	ctx context.Context, c *kvrpcpb.Context, swap *storage.Swap,
) (storage.Swapped, error) {
	if err := s.checkContext(c); err != nil {
		return storage.Swapped{}, err
	}
	req := &raft_cmdpb.CompareAndSwapRequest{
		Cf: string(swap.CF), Key: swap.Key, Value: swap.Value, Delete: swap.Delete,
	}
	var decided func()
	req.Now, decided = s.times.begin(c.RegionId)
	if !swap.Delete {
		req.Ttl = life(req.Now, swap.TTL).TTL
	}
	if !swap.ExpectAbsent {
		req.Expected = &raft_cmdpb.ExpectedValue{Value: swap.Expected}
	}
	w := &message.Write{
		Header: header(c), MinKey: swap.Key, MaxKey: swap.Key, Identity: identity(c),
		Expiring: req.Ttl > 0,
	}
	done := &message.Answer{
		Swap: &message.Swap{Swapped: true, Previous: swap.Expected, Found: !swap.ExpectAbsent},
	}
	w.Payload = message.AppendSwap(message.AppendWriteID(nil, w.Identity.ID), req)
	res, err := s.alone(ctx, w, done, decided)
	out := res.Swap()
	switch {
	case err != nil:
		return storage.Swapped{}, err
	case out == nil:
		return storage.Swapped{},
			errors.New("raftstorage: a compare-and-swap was answered without its outcome")
	}
	return storage.Swapped{
		Swapped: out.Swapped, Previous: out.Previous, Found: out.Found, Index: res.Index,
	}, nil
}

// DeleteRange implements storage.Conditional.
func (s *Storage) DeleteRange(
	ctx context.Context, c *kvrpcpb.Context, cf engine.CF, start, end []byte,
) (uint64, error) {
	if err := s.checkContext(c); err != nil {
		return 0, err
	}
	w := &message.Write{
		Header: header(c), MinKey: start, MaxKey: start, DeletesOnly: true, Identity: identity(c),
	}
	w.Payload = message.AppendDeleteRange(message.AppendWriteID(nil, w.Identity.ID), string(cf),
		start, end)
	res, err := s.alone(ctx, w, nil, func() {})
	return res.Index, err
}

// DeleteRangeBound implements storage.BoundRangeDeleter.
func (s *Storage) DeleteRangeBound(
	c *kvrpcpb.Context, b storage.Bound, cf engine.CF, start, end []byte, deadline time.Time, done func(err error, known bool),
) {
	cb := message.NewCallbackFunc(func(r message.Result) {
		var unknown *regionerr.UnknownError
		done(r.Err, !errors.As(r.Err, &unknown))
	})
	if err := s.checkContext(c); err != nil {
		cb.Fail(err)
		return
	}
	w := &message.Write{
		Header: header(c), MinKey: start, MaxKey: start, DeletesOnly: true,
		Deadline: s.store.Due(deadline), Callback: cb,
		Bound: true, Conditional: &message.Condition{Needs: feature.ConditionalOps},
	}
	w.Header.Term = b.Term
	w.Payload = message.AppendDeleteRange(message.AppendWriteID(nil, w.Identity.ID), string(cf),
		start, end)
	s.store.Write(w)
}

// alone sends a conditional request to its region and waits for the answer; done answers a retry of
// what was done. decided is called with the answer, which may come after the end of ctx.
func (s *Storage) alone(
	ctx context.Context, w *message.Write, done *message.Answer, decided func(),
) (message.Result, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	deadline, _ := ctx.Deadline()
	w.Deadline = s.store.Due(deadline)
	answer := message.NewCallback()
	w.Conditional = &message.Condition{Needs: feature.ConditionalOps, IfDone: done}
	w.Callback = message.NewCallbackFunc(func(r message.Result) {
		decided()
		answer.Done(r)
	})
	rec := trace.From(ctx)
	w.Traced = rec != nil
	s.send(w)
	res, err := answer.Wait(ctx)
	if err == nil {
		s.record(rec, res.Stages())
		err = res.Err
	}
	return res, err
}
