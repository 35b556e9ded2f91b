package commands

import (
	"bytes"
	"context"
	"slices"

	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Commit makes a transaction's changes of keys visible at commitTS: of all of them, or none.
func (e *Executor) Commit(ctx context.Context, c *kvrpcpb.Context, keys [][]byte, startTS, commitTS uint64) error {
	if len(keys) == 0 {
		return nil
	}
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

func checkCommitTS(startTS, commitTS uint64) error {
	if commitTS <= startTS || commitTS == mvcc.TsMax {
		return abortf("InvalidTxnTso: a transaction that started at %d cannot commit at %d", startTS, commitTS)
	}
	return nil
}

// distinct drops keys that come again: a command reads the state before it, and would do the same to them twice.
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
		}
		return &LockNotFoundError{Key: key, StartTS: startTS}
	}
	if commitTS < l.MinCommitTS {
		return &CommitTooEarlyError{Key: key, StartTS: startTS, CommitTS: commitTS, MinCommitTS: l.MinCommitTS}
	}
	if l.Kind != mvcc.WriteKindPessimistic { // a lock that was never prewritten changes nothing
		tx.PutWrite(key, commitTS, &mvcc.Write{
			StartTS: startTS, Kind: l.Kind, ShortValue: l.ShortValue, LastChange: l.LastChange, TxnSource: l.TxnSource,
			OverlappedRollback: slices.Contains(l.RollbackTS, commitTS),
		})
	}
	tx.DeleteLock(key)
	return nil
}

// Rollback ends a transaction's part in keys, so that it can not be prewritten there any more. It fails if one of them
// is committed.
func (e *Executor) Rollback(ctx context.Context, c *kvrpcpb.Context, keys [][]byte, startTS uint64) error {
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
		return abortf("Committed: key %x of the transaction %d is committed at %d", key, startTS, rec.Own.CommitTS)
	case rec.RolledBack():
		return nil
	}
	return tx.putRollback(key, startTS, rec, false)
}

// rollbackLock removes the lock and what came with it, and leaves the record of a rollback.
func (tx *txn) rollbackLock(key []byte, l *mvcc.Lock, rec mvcc.Record, protected bool) error {
	if l.Kind == mvcc.WriteKindPut && l.ShortValue == nil {
		tx.DeleteValue(key, l.Ts)
	}
	tx.DeleteLock(key)
	return tx.putRollback(key, l.Ts, rec, protected)
}

// putRollback writes that a transaction was rolled back at the key. Where another transaction's commit record has the
// place, it stays: a protected rollback is noted in it, and an unprotected one is not needed, since a late prewrite meets
// that record.
func (tx *txn) putRollback(key []byte, startTS uint64, rec mvcc.Record, protected bool) error {
	switch o := rec.Overlapped; {
	case o == nil:
		w := mvcc.Rollback(startTS, protected)
		tx.PutWrite(key, startTS, &w)
	case protected && !o.OverlappedRollback:
		w := o.Write
		w.OverlappedRollback, w.Fence = true, &rec.Newer
		tx.PutWrite(key, startTS, &w)
	}
	return tx.collapse(key, startTS)
}

// collapse removes the unprotected rollback before a record at ts: a late prewrite of that transaction meets the newer
// record.
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

// Action is what CheckTxnStatus has done.
type Action int

// The actions.
const (
	NoAction Action = iota
	// TTLExpireRollback: the lock had expired, and the transaction is rolled back.
	TTLExpireRollback
	// LockNotExistRollback: nothing was known of the transaction, and now it can not be prewritten any more.
	LockNotExistRollback
)

// Status is what became of a transaction. With neither LockTTL nor CommitTS it is rolled back.
type Status struct {
	LockTTL, CommitTS uint64
	Action            Action
}

// CheckTxnStatus looks at a transaction's primary key, and ends the transaction if its lock has expired by currentTS, or
// was never there.
func (e *Executor) CheckTxnStatus(
	ctx context.Context, c *kvrpcpb.Context, primary []byte, lockTS, currentTS uint64,
) (st Status, err error) {
	err = e.update(ctx, c, [][]byte{primary}, ends, func(tx *txn) error {
		st, err = tx.checkStatus(primary, lockTS, currentTS)
		return err
	})
	if err != nil {
		return Status{}, err
	}
	return st, nil
}

func (tx *txn) checkStatus(primary []byte, lockTS, currentTS uint64) (Status, error) {
	l, err := tx.Lock(primary)
	if err != nil {
		return Status{}, err
	}
	rec, err := tx.OwnRecord(primary, lockTS)
	if err != nil {
		return Status{}, err
	}
	if l != nil && l.Ts == lockTS {
		if l.AsyncCommit || !expired(l, currentTS) {
			return Status{LockTTL: l.Ttl}, nil
		}
		return Status{Action: TTLExpireRollback}, tx.rollbackLock(primary, l, rec, true)
	}
	switch {
	case rec.Committed():
		return Status{CommitTS: rec.Own.CommitTS}, nil
	case rec.RolledBack():
		return Status{}, nil
	}
	return Status{Action: LockNotExistRollback}, tx.putRollback(primary, lockTS, rec, true)
}

// expired compares milliseconds, the only part of timestamps that is a time.
func expired(l *mvcc.Lock, currentTS uint64) bool {
	lives, end := mvcc.PhysicalTime(l.Ts), mvcc.PhysicalTime(currentTS)
	return end > lives && end-lives > l.Ttl
}

const (
	// resolveLocks and resolveBytes bound what one step of ResolveLock does under latches.
	resolveLocks = 256
	resolveBytes = 32 << 10
)

// ResolveLock ends all locks of a transaction in the region: commits them at commitTS, or rolls them back if that is 0.
// It takes several steps; one that fails leaves those before it done.
func (e *Executor) ResolveLock(ctx context.Context, c *kvrpcpb.Context, startTS, commitTS uint64) error {
	if commitTS > 0 {
		if err := checkCommitTS(startTS, commitTS); err != nil {
			return err
		}
	}
	var from []byte
	for {
		keys, err := e.locksOf(ctx, c, from, startTS)
		if err != nil || len(keys) == 0 {
			return err
		}
		err = e.update(ctx, c, keys, ends, func(tx *txn) error {
			for _, k := range keys {
				var err error
				if commitTS > 0 {
					err = tx.commit(k, startTS, commitTS)
				} else {
					err = tx.rollback(k, startTS)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		from = append(keys[len(keys)-1], 0)
	}
}

// locksOf are keys that the transaction has locked, some of them.
func (e *Executor) locksOf(ctx context.Context, c *kvrpcpb.Context, from []byte, startTS uint64) ([][]byte, error) {
	view, err := e.st.Reader(ctx, c, nil)
	if err != nil {
		return nil, err
	}
	defer view.Close()
	r := mvcc.NewReader(view, e.policy.Codec)
	defer r.Close()
	locks, err := r.Locks(from, resolveLocks, resolveBytes, func(l *mvcc.Lock) bool { return l.Ts == startTS })
	keys := make([][]byte, len(locks))
	for i, l := range locks {
		keys[i] = l.Key
	}
	return keys, err
}
