package commands

import (
	"context"

	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// SetSafePoints has the executor refuse transactions that are too old, and lets it collect garbage.
// To be called before the first command.
func (e *Executor) SetSafePoints(s *SafePoints) { e.safe = s }

// errTooOld has the words by which programs recognize it.
func errTooOld(startTS, safePoint uint64) error {
	return abortf(
		"GC life time is shorter than transaction duration: the transaction started at %d, "+
			"the safe point is %d", startTS, safePoint)
}

// readable refuses a read of versions that may be gone. It is asked after the view was taken: who
// removes versions has raised what is known here before.
func (e *Executor) readable(ctx context.Context, c *kvrpcpb.Context, rd *Read) error {
	if e.safe == nil || rd.TS == mvcc.TsMax { // the newest version is never removed
		return nil
	}
	term, err := e.st.Leadership(c)
	if err != nil {
		return err
	}
	safePoint, err := e.safe.txnIn(ctx, c.GetRegionId(), tenureOf(c, term))
	if err == nil && rd.TS < safePoint {
		err = errTooOld(rd.TS, safePoint)
	}
	return err
}

// young refuses a transaction whose records may be gone: a request of it may be an old one, sent
// again. It is called under latches.
func (tx *txn) young(startTS uint64) error {
	safePoint, err := tx.safePoint()
	if err == nil && safePoint > 0 && startTS <= safePoint {
		err = errTooOld(startTS, safePoint)
	}
	return err
}

// OldLocks is ScanLocks of all transactions that began by a safe point, from a key on. The safe
// point must be in force for transactions. None of those that began by then locks a key of the
// region any more once OldLocks has begun.
func (e *Executor) OldLocks(
	ctx context.Context, c *kvrpcpb.Context, safePoint uint64, start, end []byte, limit int,
) ([]mvcc.KeyLock, error) {
	ctx, cancel := e.bound(ctx)
	defer cancel()
	if err := e.safe.inForce(ctx, safePoint, func(txn, _ uint64) uint64 {
		return txn
	}); err != nil {
		return nil, err
	}
	// Prewrites that were decided before this store knew of the safe point are in the view once all
	// have left.
	if err := e.quiesce(ctx, c); err != nil {
		return nil, err
	}
	return e.ScanLocks(ctx, c, safePoint, start, end, limit)
}

// quiesce waits for the commands of the region that have begun.
func (e *Executor) quiesce(ctx context.Context, c *kvrpcpb.Context) error {
	for {
		term, err := e.st.Leadership(c)
		if err != nil {
			return err
		}
		leave, err := e.exclude(ctx, c, term)
		if err == nil {
			leave()
			return nil
		}
		if err != error(termEnded{}) {
			return err
		}
	}
}

const (
	// collectRecords and collectKeys bound what one step of Collect reads, collectBytes and
	// collectVersions what it writes.
	collectRecords  = 8192
	collectKeys     = 512
	collectBytes    = 32 << 10
	collectVersions = 1024
)

// Collected is what a step of Collect has done.
type Collected struct {
	// Next is where to go on; nil at the region's end.
	Next []byte
	// Versions are the records that were removed, Bytes what the deletes take in the log. Locked
	// are keys that were left alone, because a transaction up to the safe point still has a lock on
	// them.
	Versions, Bytes, Locked int
}

// Collect removes, in one step, some of the records that no transaction can see which begins at
// safePoint or later, from a key on. The safe point must be in force, and all locks of transactions
// that began by then must have been resolved in the whole cluster: what became of a transaction is
// read from its primary's record, which may be garbage.
//
// The deletes go through the log like any write, so replicas stay equal.
func (e *Executor) Collect(
	ctx context.Context, c *kvrpcpb.Context, from []byte, safePoint uint64,
) (Collected, error) {
	ctx, cancel := e.bound(ctx)
	defer cancel()
	if err := e.safe.inForce(ctx, safePoint, func(_, gc uint64) uint64 { return gc }); err != nil {
		return Collected{}, err
	}
	keys, next, err := e.suspects(ctx, c, from, safePoint)
	if err != nil || len(keys) == 0 {
		return Collected{Next: next}, err
	}
	var done Collected
	err = e.update(ctx, c, keys, ends, func(tx *txn) error {
		done = Collected{Next: next}
		for _, k := range keys {
			full, err := tx.collect(k, safePoint, &done)
			if err != nil {
				return err
			}
			if full {
				done.Next = k
				break
			}
		}
		done.Bytes = tx.Size()
		return nil
	})
	if err != nil {
		return Collected{}, err
	}
	return done, nil
}

// collect removes the garbage of a key; full says that there is more of it than this step takes.
func (tx *txn) collect(key []byte, safePoint uint64, done *Collected) (full bool, err error) {
	l, err := tx.Lock(key)
	if err != nil {
		return false, err
	}
	if l != nil && l.Ts <= safePoint {
		done.Locked++
		return false, nil
	}
	room := min(collectVersions-done.Versions, (collectBytes-tx.Size())/(2*len(key)+32))
	switch {
	case room <= 0 && done.Versions > 0:
		return true, nil
	case room <= 0:
		room = 1
	}
	garbage, more, err := tx.Garbage(key, safePoint, room)
	if err != nil {
		return false, err
	}
	for i := range garbage {
		tx.Remove(key, &garbage[i])
	}
	done.Versions += len(garbage)
	return more, nil
}

func (e *Executor) suspects(
	ctx context.Context, c *kvrpcpb.Context, from []byte, safePoint uint64,
) (keys [][]byte, next []byte, err error) {
	view, err := e.st.Reader(ctx, c, nil)
	if err != nil {
		return nil, nil, err
	}
	defer view.Close()
	r := mvcc.NewReader(view, e.policy.Codec)
	defer r.Close()
	return r.Suspects(from, safePoint, collectRecords, collectKeys)
}
