package commands

import (
	"bytes"
	"context"

	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Action is what CheckTxnStatus has done.
type Action int

// The actions; their numbers are those of the protocols.
const (
	NoAction Action = iota
	// TTLExpireRollback: the lock had expired, and the transaction is rolled back.
	TTLExpireRollback
	// LockNotExistRollback: nothing was known of the transaction, and now it can not be prewritten
	// any more.
	LockNotExistRollback
	// MinCommitTSPushed: the transaction commits behind the caller, which need not wait for it.
	MinCommitTSPushed
	// TTLExpirePessimisticRollback: the expired pessimistic lock is gone.
	TTLExpirePessimisticRollback
	// LockNotExistDoNothing: nothing was known of the transaction, and nothing was done.
	LockNotExistDoNothing
)

// StatusQuery asks what became of a transaction.
type StatusQuery struct {
	Primary []byte
	LockTS  uint64
	// CurrentTS is the time by which locks expire.
	CurrentTS uint64
	// CallerTS is the start timestamp of a reader that would pass the lock if the transaction
	// committed behind it; 0 is nobody.
	CallerTS uint64
	// RollbackIfMissing rolls back a transaction of which nothing is known; without it that is a
	// *TxnNotFoundError.
	RollbackIfMissing bool
	// ForceSyncCommit treats a lock of asynchronous commit as any other.
	ForceSyncCommit bool
	// Pessimistic: the lock that is to be resolved was not prewritten.
	Pessimistic bool
	// VerifyPrimary refuses a key that is locked as a secondary with a *PrimaryMismatchError.
	VerifyPrimary bool
}

// Status is what became of a transaction. With neither LockTTL nor CommitTS it is rolled back.
type Status struct {
	LockTTL, CommitTS uint64
	Action            Action
	// Lock is the lock of a transaction that lives.
	Lock *mvcc.KeyLock
}

// CheckTxnStatus looks at a transaction's primary key, and ends the transaction if its lock has
// expired, or was never there. One with asynchronous commit is not ended: CheckSecondaryLocks finds
// out what became of it.
func (e *Executor) CheckTxnStatus(
	ctx context.Context, c *kvrpcpb.Context, q *StatusQuery,
) (st Status, err error) {
	if err := checkStartTS(q.LockTS); err != nil {
		return Status{}, err
	}
	for _, ts := range []uint64{q.LockTS, q.CurrentTS, q.CallerTS} {
		if err := e.raise(ctx, ts); err != nil {
			return Status{}, err
		}
	}
	err = e.update(ctx, c, [][]byte{q.Primary}, ends, func(tx *txn) error {
		st, err = tx.checkStatus(q)
		return err
	})
	if err != nil {
		return Status{}, err
	}
	return st, nil
}

func (tx *txn) checkStatus(q *StatusQuery) (Status, error) {
	l, err := tx.Lock(q.Primary)
	if err != nil {
		return Status{}, err
	}
	rec, err := tx.OwnRecord(q.Primary, q.LockTS)
	if err != nil {
		return Status{}, err
	}
	if l != nil && l.Ts == q.LockTS {
		if !q.VerifyPrimary || bytes.Equal(l.Primary, q.Primary) {
			return tx.lockedStatus(q, l, rec)
		}
		if q.Pessimistic || l.Kind != mvcc.WriteKindPessimistic {
			return Status{}, &PrimaryMismatchError{mvcc.KeyLock{Key: q.Primary, Lock: *l}}
		}
		tx.letGo(q.Primary) // the transaction has another primary by now, which alone decides
		l = nil
	}
	switch {
	case rec.Committed():
		return Status{CommitTS: rec.Own.CommitTS}, nil
	case rec.RolledBack():
		return Status{}, nil
	case !q.RollbackIfMissing:
		return Status{}, &TxnNotFoundError{StartTS: q.LockTS, Primary: q.Primary}
	case q.Pessimistic:
		return Status{Action: LockNotExistDoNothing}, nil
	}
	return Status{Action: LockNotExistRollback},
		tx.rollbackMissing(q.Primary, q.LockTS, l, rec, true)
}

// lockedStatus is the status of a transaction whose primary is locked.
func (tx *txn) lockedStatus(q *StatusQuery, l *mvcc.Lock, rec mvcc.Record) (Status, error) {
	alive := func(a Action) (Status, error) {
		return Status{LockTTL: l.Ttl, Action: a, Lock: &mvcc.KeyLock{Key: q.Primary, Lock: *l}}, nil
	}
	if l.AsyncCommit && !q.ForceSyncCommit {
		return alive(NoAction)
	}
	if expired(l, q.CurrentTS) {
		if q.Pessimistic && l.Kind == mvcc.WriteKindPessimistic {
			tx.letGo(q.Primary)
			return Status{Action: TTLExpirePessimisticRollback}, nil
		}
		return Status{Action: TTLExpireRollback}, tx.rollbackLock(q.Primary, l, rec, true)
	}
	if l.MinCommitTS != 0 && q.CallerTS >= l.MinCommitTS && q.CallerTS != mvcc.TsMax {
		l.MinCommitTS = max(q.CallerTS+1, q.CurrentTS)
		tx.PutLock(q.Primary, l)
	}
	if q.CallerTS == mvcc.TsMax || q.CallerTS > 0 && l.MinCommitTS > q.CallerTS {
		return alive(MinCommitTSPushed)
	}
	return alive(NoAction)
}

// expired compares milliseconds, the only part of timestamps that is a time. At the end of time
// every lock has expired.
func expired(l *mvcc.Lock, currentTS uint64) bool {
	if currentTS == mvcc.TsMax {
		return true
	}
	lives, end := mvcc.PhysicalTime(l.Ts), mvcc.PhysicalTime(currentTS)
	return end > lives && end-lives > l.Ttl
}

// HeartBeat has the lock of a transaction that goes on live for at least ttl, and returns for how
// long it does.
func (e *Executor) HeartBeat(
	ctx context.Context, c *kvrpcpb.Context, primary []byte, startTS, ttl uint64,
) (lives uint64, err error) {
	if err := checkStartTS(startTS); err != nil {
		return 0, err
	}
	err = e.update(ctx, c, [][]byte{primary}, ends, func(tx *txn) error {
		l, err := tx.Lock(primary)
		if err != nil {
			return err
		}
		if l == nil || l.Ts != startTS {
			return &TxnNotFoundError{StartTS: startTS, Primary: primary}
		}
		if ttl > l.Ttl {
			l.Ttl = ttl
			tx.PutLock(primary, l)
		}
		lives = l.Ttl
		return nil
	})
	return lives, err
}
