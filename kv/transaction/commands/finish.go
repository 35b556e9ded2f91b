package commands

import (
	"bytes"
	"context"
	"slices"

	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Commit makes a transaction's changes of keys visible at commitTS: of all of them, or none.
func (e *Executor) Commit(
	ctx context.Context, c *kvrpcpb.Context, keys [][]byte, startTS, commitTS uint64,
) error {
	if err := checkCommitTS(startTS, commitTS); err != nil {
		return err
	}
	return e.update(ctx, c, keys, ends, func(tx *txn) error {
		for _, k := range distinct(keys) {
			if err := tx.commit(k, startTS, commitTS); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkStartTS refuses what no transaction starts at: a record of a rollback there would be in the
// way of all others.
func checkStartTS(startTS uint64) error {
	if startTS == 0 || startTS == mvcc.TsMax {
		return abortf("InvalidTxnTso: a transaction cannot start at %d", startTS)
	}
	return nil
}

func checkCommitTS(startTS, commitTS uint64) error {
	if err := checkStartTS(startTS); err != nil {
		return err
	}
	if commitTS <= startTS || commitTS == mvcc.TsMax {
		return abortf("InvalidTxnTso: a transaction that started at %d cannot commit at %d",
			startTS, commitTS)
	}
	return nil
}

// distinct drops keys that come again: a command reads the state before it, and would do the same
// to them twice.
func distinct(keys [][]byte) [][]byte {
	out := slices.Clone(keys)
	slices.SortFunc(out, bytes.Compare)
	return slices.CompactFunc(out, bytes.Equal)
}

func (tx *txn) commit(key []byte, startTS, commitTS uint64) error {
	l, err := tx.Lock(key)
	if err != nil {
		return err
	}
	if l == nil || l.Ts != startTS {
		rec, err := tx.OwnRecord(key, startTS)
		switch {
		case err != nil:
			return err
		case rec.Committed():
			return nil
		case l == nil && !rec.RolledBack() && tx.policy.MissingCommits:
			return nil
		case !rec.RolledBack():
			// Nothing is known of it. If it is too old, its record may have been removed, which can
			// have been either.
			if err := tx.young(startTS); err != nil {
				return err
			}
		}
		return &LockNotFoundError{Key: key, StartTS: startTS}
	}
	if commitTS < l.MinCommitTS {
		return &CommitTooEarlyError{
			Key: key, StartTS: startTS, CommitTS: commitTS, MinCommitTS: l.MinCommitTS,
		}
	}
	if l.Kind != mvcc.WriteKindPessimistic { // a lock that was never prewritten changes nothing
		if err := tx.known(commitTS, commitsAhead); err != nil {
			return err
		}
		tx.PutWrite(key, commitTS, &mvcc.Write{
			StartTS: startTS, Kind: l.Kind, ShortValue: l.ShortValue, LastChange: l.LastChange,
			TxnSource:          l.TxnSource,
			OverlappedRollback: slices.Contains(l.RollbackTS, commitTS),
		})
	}
	tx.DeleteLock(key)
	return nil
}

// Rollback ends a transaction's part in keys, so that it can not be prewritten there any more. It
// fails if one of them is committed.
func (e *Executor) Rollback(
	ctx context.Context, c *kvrpcpb.Context, keys [][]byte, startTS uint64,
) error {
	if err := checkStartTS(startTS); err != nil {
		return err
	}
	return e.update(ctx, c, keys, ends, func(tx *txn) error {
		for _, k := range distinct(keys) {
			if err := tx.rollback(k, startTS); err != nil {
				return err
			}
		}
		return nil
	})
}

func (tx *txn) rollback(key []byte, startTS uint64) error {
	l, err := tx.Lock(key)
	if err != nil {
		return err
	}
	rec, err := tx.OwnRecord(key, startTS)
	if err != nil {
		return err
	}
	if l != nil && l.Ts == startTS {
		return tx.rollbackLock(key, l, rec, bytes.Equal(key, l.Primary))
	}
	switch {
	case rec.Committed():
		return committed(key, rec)
	case rec.RolledBack():
		return nil
	}
	return tx.rollbackMissing(key, startTS, l, rec, false)
}

// rollbackMissing is putRollback where the transaction has no lock; foreign is another one's, nil
// if there is none. A foreign lock whose commit timestamp a store chooses may commit at startTS: it
// must know then that the place has a rollback. A record in the future is refused: until then it
// would be in the way of all other transactions.
func (tx *txn) rollbackMissing(
	key []byte, startTS uint64, foreign *mvcc.Lock, rec mvcc.Record, protected bool,
) error {
	if err := tx.known(startTS, drift); err != nil {
		return err
	}
	if foreign != nil && foreign.AsyncCommit && startTS >= foreign.MinCommitTS {
		noted := *foreign
		noted.RollbackTS = append(slices.Clone(foreign.RollbackTS), startTS)
		tx.PutLock(key, &noted)
	}
	return tx.putRollback(key, startTS, rec, protected)
}

func committed(key []byte, rec mvcc.Record) error {
	return abortf("Committed: key %v of the transaction %d is committed at %d", redact.Key(key),
		rec.Own.StartTS, rec.Own.CommitTS)
}

// Cleanup is Rollback of one key, unless its lock lives at currentTS; 0 is the end of time. It
// returns the commit timestamp of a transaction that is committed.
func (e *Executor) Cleanup(
	ctx context.Context, c *kvrpcpb.Context, key []byte, startTS, currentTS uint64,
) (commitTS uint64, err error) {
	if err := checkStartTS(startTS); err != nil {
		return 0, err
	}
	err = e.update(ctx, c, [][]byte{key}, ends, func(tx *txn) error {
		commitTS = 0
		l, err := tx.Lock(key)
		if err != nil {
			return err
		}
		rec, err := tx.OwnRecord(key, startTS)
		if err != nil {
			return err
		}
		if l != nil && l.Ts == startTS {
			if currentTS > 0 && !expired(l, currentTS) {
				return &LockedError{mvcc.KeyLock{Key: key, Lock: *l}}
			}
			return tx.rollbackLock(key, l, rec, true)
		}
		switch {
		case rec.Committed():
			commitTS = rec.Own.CommitTS
			return nil
		case rec.RolledBack():
			return nil
		}
		return tx.rollbackMissing(key, startTS, l, rec, true)
	})
	return commitTS, err
}

// rollbackLock removes the lock and what came with it, and leaves the record of a rollback.
func (tx *txn) rollbackLock(key []byte, l *mvcc.Lock, rec mvcc.Record, protected bool) error {
	if l.Kind == mvcc.WriteKindPut && l.ShortValue == nil {
		tx.DeleteValue(key, l.Ts)
	}
	if l.ForUpdateTS > 0 {
		tx.letGo(key)
	} else {
		tx.DeleteLock(key)
	}
	return tx.putRollback(key, l.Ts, rec, protected)
}

// putRollback writes that a transaction was rolled back at the key. Where another transaction's
// commit record has the place, it stays, and the rollback is noted in it.
func (tx *txn) putRollback(key []byte, startTS uint64, rec mvcc.Record, protected bool) error {
	switch o := rec.Overlapped; {
	case o == nil:
		w := mvcc.Rollback(startTS, protected)
		tx.PutWrite(key, startTS, &w)
	case !o.OverlappedRollback:
		w := o.Write
		w.OverlappedRollback, w.Fence = true, &rec.Newer
		tx.PutWrite(key, startTS, &w)
	}
	return tx.collapse(key, startTS)
}

// collapse removes the unprotected rollback before a record at ts: a late prewrite of that
// transaction meets the newer record.
func (tx *txn) collapse(key []byte, ts uint64) error {
	if !tx.policy.Collapse || ts == 0 {
		return nil
	}
	prev, err := tx.SeekWrite(key, ts-1)
	if err == nil && prev != nil && prev.Kind == mvcc.WriteKindRollback && !prev.Protected() {
		tx.DeleteWrite(key, prev.CommitTS)
	}
	return err
}
