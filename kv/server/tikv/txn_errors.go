package tikv

import (
	"errors"

	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"

	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/transaction/commands"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/clustermode"
)

var (
	errTxnRefused  = &requestError{clustermode.Raw.Refusal()}
	errFairLocking = &requestError{
		"locks that are taken in spite of a conflict are not served by this version: use the normal mode",
	}
	errAnswerSize = &requestError{
		"the answer exceeds what one message may hold; lower the limit or ask for fewer keys",
	}
)

// staleReadError refuses a read that may be old: this store keeps no timestamp at which all is
// known.
type staleReadError struct{ regionID, peerID uint64 }

func (e *staleReadError) Error() string { return "data is not ready: stale reads are not served" }

// lockTypes are the kinds of locks as TiKV's messages name them.
var lockTypes = map[mvcc.WriteKind]kvrpcpb.Op{
	mvcc.WriteKindPut: kvrpcpb.Op_Put, mvcc.WriteKindDelete: kvrpcpb.Op_Del,
	mvcc.WriteKindLock:        kvrpcpb.Op_Lock,
	mvcc.WriteKindRollback:    kvrpcpb.Op_Rollback,
	mvcc.WriteKindPessimistic: kvrpcpb.Op_PessimisticLock,
}

func lockInfo(l *mvcc.KeyLock) *kvrpcpb.LockInfo {
	return &kvrpcpb.LockInfo{
		Key: l.Key, PrimaryLock: l.Primary, LockVersion: l.Ts, LockTtl: l.Ttl, TxnSize: l.TxnSize,
		LockType: lockTypes[l.Kind], LockForUpdateTs: l.ForUpdateTS, UseAsyncCommit: l.AsyncCommit,
		MinCommitTs: l.MinCommitTS, Secondaries: l.Secondaries,
	}
}

var conflictReasons = map[commands.ConflictReason]kvrpcpb.WriteConflict_Reason{
	commands.ConflictOptimistic:  kvrpcpb.WriteConflict_Optimistic,
	commands.ConflictRolledBack:  kvrpcpb.WriteConflict_SelfRolledBack,
	commands.ConflictPessimistic: kvrpcpb.WriteConflict_PessimisticRetry,
	commands.ConflictLazy:        kvrpcpb.WriteConflict_LazyUniquenessCheck,
	commands.ConflictNewest:      kvrpcpb.WriteConflict_RcCheckTs,
}

var assertions = map[commands.Assertion]kvrpcpb.Assertion{
	commands.AssertExists: kvrpcpb.Assertion_Exist,
	commands.AssertAbsent: kvrpcpb.Assertion_NotExist,
}

// keyError is an error's place in an answer, if it speaks of a key or of the request itself; else
// nil.
func keyError(err error) *kvrpcpb.KeyError {
	var (
		conflict *commands.ConflictError
		notFound *commands.LockNotFoundError
		abort    *commands.AbortError
		invalid  *requestError
	)
	switch {
	case errors.As(err, &conflict):
		return &kvrpcpb.KeyError{
			Retryable: err.Error(), // for clients that do not know the field below
			Conflict: &kvrpcpb.WriteConflict{
				StartTs: conflict.StartTS, ConflictTs: conflict.ConflictTS,
				ConflictCommitTs: conflict.CommitTS,
				Key:              conflict.Key, Primary: conflict.Primary,
				Reason: conflictReasons[conflict.Reason],
			},
		}
	case errors.As(err, &notFound):
		return &kvrpcpb.KeyError{
			Retryable: err.Error(), TxnLockNotFound: &kvrpcpb.TxnLockNotFound{Key: notFound.Key},
		}
	case errors.As(err, &abort), errors.As(err, &invalid), errors.Is(err, mvcc.ErrCorrupt):
		return &kvrpcpb.KeyError{Abort: err.Error()}
	}
	return lockError(err)
}

// lockError is keyError for errors that speak of locks and of what a transaction expects.
func lockError(err error) *kvrpcpb.KeyError {
	var (
		locked   *commands.LockedError
		early    *commands.CommitTooEarlyError
		exists   *commands.ExistsError
		asserted *commands.AssertionError
		unknown  *commands.TxnNotFoundError
		primary  *commands.PrimaryMismatchError
		dead     *commands.DeadlockError
	)
	switch {
	case errors.As(err, &dead):
		return &kvrpcpb.KeyError{Deadlock: deadlockOf(dead)}
	case errors.As(err, &locked):
		return &kvrpcpb.KeyError{Locked: lockInfo(&locked.KeyLock)}
	case errors.As(err, &early):
		return &kvrpcpb.KeyError{CommitTsExpired: &kvrpcpb.CommitTsExpired{
			StartTs: early.StartTS, AttemptedCommitTs: early.CommitTS, Key: early.Key,
			MinCommitTs: early.MinCommitTS,
		}}
	case errors.As(err, &exists):
		return &kvrpcpb.KeyError{AlreadyExist: &kvrpcpb.AlreadyExist{Key: exists.Key}}
	case errors.As(err, &asserted):
		return &kvrpcpb.KeyError{AssertionFailed: &kvrpcpb.AssertionFailed{
			StartTs: asserted.StartTS, Key: asserted.Key, Assertion: assertions[asserted.Assertion],
			ExistingStartTs: asserted.Existing, ExistingCommitTs: asserted.Written,
		}}
	case errors.As(err, &unknown):
		return &kvrpcpb.KeyError{TxnNotFound: &kvrpcpb.TxnNotFound{
			StartTs: unknown.StartTS, PrimaryKey: unknown.Primary,
		}}
	case errors.As(err, &primary):
		return &kvrpcpb.KeyError{
			PrimaryMismatch: &kvrpcpb.PrimaryMismatch{LockInfo: lockInfo(&primary.KeyLock)},
		}
	}
	return nil
}

// txnOutcome sorts an error into the three places where a client finds it.
func txnOutcome(err error) (region *errorpb.Error, key *kvrpcpb.KeyError, rpc error) {
	if err == nil {
		return nil, nil, nil
	}
	var stale *staleReadError
	if errors.As(err, &stale) {
		return &errorpb.Error{Message: err.Error(), DataIsNotReady: &errorpb.DataIsNotReady{
			RegionId: stale.regionID, PeerId: stale.peerID,
		}}, nil, nil
	}
	if key = keyError(err); key != nil {
		return nil, key, nil
	}
	if commands.NoPlacement(err) {
		err = &regionerr.BusyError{Reason: err.Error()}
	}
	region, text, rpc := outcome(err)
	if text != "" {
		key = &kvrpcpb.KeyError{Abort: text}
	}
	return region, key, rpc
}

// textOutcome is txnOutcome for answers whose errors are texts.
func textOutcome(err error) (region *errorpb.Error, text string, rpc error) {
	region, key, rpc := txnOutcome(err)
	if key != nil {
		text = err.Error()
	}
	return region, text, rpc
}
