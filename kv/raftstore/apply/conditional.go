package apply

import (
	"bytes"
	"fmt"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// Conditional requests: their effect depends on the state at their place in the log, which is the
// same on every replica. An older program does not know them; a leader proposes them only once
// every store does (pkg/feature).

// applyConditional carries out the one request of an entry. A refusal is a result, an error is for
// this replica alone.
func (w *Worker) applyConditional(a *applier, cmd *message.Entry) (message.Result, error) {
	switch c := cmd.Conditional; {
	case c.DeleteRange != nil:
		return w.applyDeleteRange(a, c.DeleteRange)
	case c.Expire != nil:
		return w.applyExpire(a, c.Expire)
	}
	return w.applySwap(a, cmd)
}

// applySwap compares and swaps. The value is read from the engine, so what the worker's batch has
// for earlier entries is written first. A read that fails stops the store: going on would mean to
// decide otherwise than the other replicas.
func (w *Worker) applySwap(a *applier, cmd *message.Entry) (message.Result, error) {
	r := cmd.Conditional.CompareAndSwap
	cf, err := engine.ParseCF(r.Cf)
	if err != nil {
		return message.Result{Err: &regionerr.InvalidError{Reason: err.Error()}},
			nil //nolint:nilerr // a refusal is a result
	}
	if err := regions.CheckKey(a.region, r.Key); err != nil {
		return message.Result{Err: err}, nil //nolint:nilerr // a refusal is a result
	}
	if r.Ttl > 0 && a.region.ExpiryFloor == 0 {
		return message.Result{Err: errNotExpiring}, nil
	}
	if w.batch.Len() > 0 {
		if err := w.flush(); err != nil {
			return message.Result{}, err
		}
	}
	key := engine.DataKey(cf, r.Key)
	previous, found, err := w.engine.Get(key)
	if err != nil {
		return message.Result{}, fmt.Errorf("read the value to compare with: %w", err)
	}
	expired, err := w.expired(a, cf, r.Key, r.Now)
	if err != nil {
		return message.Result{}, err
	}
	if expired {
		// What this entry does not see no later one may see: another leader's clock may be behind.
		w.remove(a, cf, r.Key, len(previous))
		previous, found = nil, false
	}
	out := &message.Swap{Previous: previous, Found: found, Swapped: found == (r.Expected != nil)}
	if found && out.Swapped {
		out.Swapped = bytes.Equal(previous, r.Expected.Value)
	}
	if out.Swapped {
		w.swap(a, cf, r, out)
	}
	cmd.VisitIDs(func(id message.WriteID) { w.swaps.Note(id, out.Swapped) })
	return message.Result{Answer: &message.Answer{Swap: out}}, nil
}

// swap makes the change of a compare-and-swap whose condition holds.
func (w *Worker) swap(
	a *applier, cf engine.CF, r *raft_cmdpb.CompareAndSwapRequest, was *message.Swap,
) {
	key := engine.DataKey(cf, r.Key)
	if was.Found {
		a.report.KeysDelta--
		a.report.SizeDelta -= int64(len(r.Key) + len(was.Previous))
	}
	a.report.WrittenKeys++
	a.report.Written += int64(len(r.Key))
	if r.Delete {
		w.batch.Delete(key)
		w.live(a, cf, r.Key, message.Life{})
		return
	}
	w.batch.Put(key, r.Value)
	w.live(a, cf, r.Key, message.Life{Now: r.Now, TTL: r.Ttl})
	a.report.Written += int64(len(r.Value))
	a.report.KeysDelta++
	a.report.SizeDelta += int64(len(r.Key) + len(r.Value))
}

// applyDeleteRange deletes [start, end) within the region. Engines with range tombstones take one,
// in the batch. Others delete key by key, in batches of their own: a crash in between leaves a part
// deleted and the applied index before the entry, which is then applied again.
func (w *Worker) applyDeleteRange(
	a *applier, r *raft_cmdpb.DeleteRangeRequest,
) (message.Result, error) {
	cf, err := engine.ParseCF(r.Cf)
	if err != nil {
		return message.Result{Err: &regionerr.InvalidError{Reason: err.Error()}},
			nil //nolint:nilerr // a refusal is a result
	}
	if err := regions.CheckRange(a.region, r.Start, r.End); err != nil {
		return message.Result{Err: err}, nil //nolint:nilerr // a refusal is a result
	}
	families := []engine.CF{cf}
	if a.region.ExpiryFloor > 0 {
		// behind the values: a value without its time would live for ever
		families = append(families, cf.Expiry())
	}
	native := false
	if d, ok := w.engine.(engine.RangeDeleter); ok {
		native = d.NativeRangeDelete()
	}
	if !native {
		if err := w.flush(); err != nil {
			return message.Result{}, err
		}
	}
	for _, f := range families {
		start, end := engine.DataKey(f, r.Start), engine.DataEndKey(f, r.End)
		if native {
			w.batch.DeleteRange(start, end)
		} else if err := engine.ClearRange(w.engine, start, end); err != nil {
			return message.Result{}, fmt.Errorf("delete a range: %w", err)
		}
	}
	a.report.Shrunk = true
	a.report.WrittenKeys++
	a.report.Written += int64(len(r.Start) + len(r.End))
	return message.Result{}, nil
}
