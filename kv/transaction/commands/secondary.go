package commands

import (
	"context"

	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// SecondaryLocks are the locks of a transaction with asynchronous commit at some of its keys.
// Without locks and commit timestamp it is rolled back.
type SecondaryLocks struct {
	// Locks has one for each key, or none.
	Locks    []mvcc.KeyLock
	CommitTS uint64
}

// CheckSecondaryLocks finds out whether keys are locked, or already committed. One that is neither
// can not be locked by the transaction any more, which is rolled back by that.
func (e *Executor) CheckSecondaryLocks(
	ctx context.Context, c *kvrpcpb.Context, keys [][]byte, startTS uint64,
) (res SecondaryLocks, err error) {
	if err := checkStartTS(startTS); err != nil {
		return SecondaryLocks{}, err
	}
	if err := e.raise(ctx, startTS); err != nil {
		return SecondaryLocks{}, err
	}
	keys = distinct(keys)
	err = e.update(ctx, c, keys, ends, func(tx *txn) error {
		res = SecondaryLocks{}
		for _, k := range keys {
			l, commitTS, err := tx.checkSecondary(k, startTS)
			if err != nil {
				return err
			}
			if l == nil {
				res = SecondaryLocks{CommitTS: commitTS}
				return nil
			}
			res.Locks = append(res.Locks, mvcc.KeyLock{Key: k, Lock: *l})
		}
		return nil
	})
	if err != nil {
		return SecondaryLocks{}, err
	}
	return res, nil
}

// checkSecondary is CheckSecondaryLocks of one key. Without lock and commit timestamp the
// transaction is rolled back.
func (tx *txn) checkSecondary(
	key []byte, startTS uint64,
) (own *mvcc.Lock, commitTS uint64, err error) {
	l, err := tx.Lock(key)
	if err != nil {
		return nil, 0, err
	}
	mine := l != nil && l.Ts == startTS
	if mine && l.Kind != mvcc.WriteKindPessimistic {
		return l, 0, nil
	}
	rec, err := tx.OwnRecord(key, startTS)
	if err != nil {
		return nil, 0, err
	}
	switch {
	case mine: // it was never prewritten, and now it cannot be
		if !rec.Committed() {
			return nil, 0, tx.rollbackLock(key, l, rec, true)
		}
		tx.DeleteLock(key) // a request that came late has taken it again
		return nil, rec.Own.CommitTS, nil
	case rec.Committed():
		return nil, rec.Own.CommitTS, nil
	case rec.RolledBack():
		return nil, 0, nil
	}
	return nil, 0, tx.rollbackMissing(key, startTS, l, rec, true)
}
