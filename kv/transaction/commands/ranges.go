package commands

import (
	"bytes"
	"context"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// rangeOrder is the order in which a range is deleted. A crash in between leaves values without a
// record, which nobody sees, but never a record or a lock without its value.
var rangeOrder = []engine.CF{engine.CFLock, engine.CFWrite, engine.CFDefault}

// DeleteRange removes all versions, locks and records of the keys of [start, end) in the region; an
// empty bound is the end of the key space. It is no part of any transaction: readers of every
// timestamp lose the keys. No other command of the region runs meanwhile, so that none decides on a
// state of which a part is gone.
func (e *Executor) DeleteRange(ctx context.Context, c *kvrpcpb.Context, start, end []byte) error {
	st, ok := e.st.(storage.BoundRangeDeleter)
	if !ok {
		return abortf("this store has no range deletes")
	}
	ctx, cancel := e.bound(ctx)
	defer cancel()
	for {
		term, err := e.st.Leadership(c)
		if err != nil {
			return err
		}
		ended, err := e.deleteRangeIn(ctx, c, st, term, start, end)
		if !ended {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// deleteRangeIn is DeleteRange under one leadership. ended is as for updateIn.
func (e *Executor) deleteRangeIn(
	ctx context.Context, c *kvrpcpb.Context, st storage.BoundRangeDeleter, term uint64, start, end []byte,
) (ended bool, err error) {
	leave, err := e.exclude(ctx, c, term)
	if err != nil {
		return err == error(termEnded{}), err
	}
	known := true
	defer func() {
		if known {
			leave()
		}
	}()
	view, at, err := e.st.BoundReader(ctx, c, nil)
	if err != nil {
		return false, err
	}
	lower, upper := clip(view, start, end)
	view.Close()
	if at != term {
		return true, nil
	}
	if len(upper) > 0 && bytes.Compare(lower, upper) >= 0 {
		return false, nil
	}
	for _, cf := range rangeOrder {
		b := storage.Bound{Term: term, Ends: true}
		if known, err = deleteBound(ctx, c, st, b, cf, lower, upper); err != nil {
			return false, err
		}
	}
	return false, nil
}

// clip is the part of [start, end) that lies in the view, as places.
func clip(view storage.Reader, start, end []byte) (lower, upper []byte) {
	lower, upper = view.Range()
	if len(start) > 0 {
		if from := memcomparable.Encode(start); bytes.Compare(from, lower) > 0 {
			lower = from
		}
	}
	if len(end) > 0 {
		if to := memcomparable.Encode(end); len(upper) == 0 || bytes.Compare(to, upper) < 0 {
			upper = to
		}
	}
	return lower, upper
}

// deleteBound waits for the outcome until ctx ends. known is false if it may still come.
func deleteBound(
	ctx context.Context, c *kvrpcpb.Context, st storage.BoundRangeDeleter, b storage.Bound, cf engine.CF, lower, upper []byte,
) (known bool, err error) {
	type outcome struct {
		err   error
		known bool
	}
	deadline, _ := ctx.Deadline()
	done := make(chan outcome, 1)
	st.DeleteRangeBound(c, b, cf, lower, upper, deadline, func(err error, known bool) {
		done <- outcome{err, known}
	})
	select {
	case o := <-done:
		return o.known, o.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// maxInspect bounds what Inspect reads of a key.
const maxInspect = 8 << 20

// Inspect reads all that is stored of a key.
func (e *Executor) Inspect(
	ctx context.Context, c *kvrpcpb.Context, key []byte,
) (*mvcc.Records, error) {
	view, err := e.st.Reader(ctx, c, memcomparable.Encode(key))
	if err != nil {
		return nil, err
	}
	defer view.Close()
	r := mvcc.NewReader(view, e.policy.Codec)
	defer r.Close()
	return r.Records(key, maxInspect)
}

// InspectTxn reads all that is stored of a key of the region that the transaction has locked or
// written; nil if there is none.
func (e *Executor) InspectTxn(
	ctx context.Context, c *kvrpcpb.Context, startTS uint64,
) (*mvcc.Records, error) {
	ctx, cancel := e.bound(ctx)
	defer cancel()
	view, err := e.st.Reader(ctx, c, nil)
	if err != nil {
		return nil, err
	}
	defer view.Close()
	r := mvcc.NewReader(view, e.policy.Codec)
	defer r.Close()
	key, err := r.KeyOf(startTS, ctx.Err)
	if err != nil || key == nil {
		return nil, err
	}
	return r.Records(key, maxInspect)
}

// DestroyRange removes all versions, locks and records of the keys of [start, end) in the regions
// of which this store has a replica. Nothing may use them any more.
func (e *Executor) DestroyRange(ctx context.Context, start, end []byte) error {
	st, ok := e.st.(storage.Conditional)
	switch {
	case !ok:
		return abortf("this store has no range deletes")
	case len(start) == 0 || len(end) == 0:
		return abortf("a range to destroy needs two bounds")
	}
	ctx, cancel := e.bound(ctx)
	defer cancel()
	return st.DestroyRange(ctx, memcomparable.Encode(start), memcomparable.Encode(end))
}
