package commands

import (
	"fmt"

	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/pkg/redact"
)

// LockedError: another transaction's lock is in the way. The client finds out what became of that
// transaction, resolves the lock, and tries again.
type LockedError struct{ mvcc.KeyLock }

func (e *LockedError) Error() string {
	return fmt.Sprintf("key %v is locked by the transaction %d", redact.Key(e.Key), e.Ts)
}

// ConflictReason says why two transactions are in conflict.
type ConflictReason int

// The reasons.
const (
	// ConflictOptimistic: the key was written after the transaction began.
	ConflictOptimistic ConflictReason = iota
	// ConflictRolledBack: the record in the way is the transaction's own rollback.
	ConflictRolledBack
	// ConflictPessimistic: the key was written after the timestamp at which a transaction is to
	// lock it. Another attempt with a later one may succeed.
	ConflictPessimistic
	// ConflictLazy: a key that a pessimistic transaction has not locked was written after it began.
	ConflictLazy
	// ConflictNewest: a read of the newest value would not see it (ReadNewest).
	ConflictNewest
)

// ConflictError: another transaction has written the key since this one began, or this one was
// rolled back.
type ConflictError struct {
	StartTS uint64
	// ConflictTS and CommitTS are the other transaction's timestamps.
	ConflictTS, CommitTS uint64
	Key, Primary         []byte
	Reason               ConflictReason
}

func (e *ConflictError) Error() string {
	if e.Reason == ConflictRolledBack {
		return fmt.Sprintf("write conflict: the transaction %d was rolled back at key %v",
			e.StartTS, redact.Key(e.Key))
	}
	return fmt.Sprintf("write conflict: key %v was written by the transaction %d at %d, after %d",
		redact.Key(e.Key), e.ConflictTS, e.CommitTS, e.StartTS)
}

// ExistsError: a key that must not exist does.
type ExistsError struct{ Key []byte }

func (e *ExistsError) Error() string {
	return fmt.Sprintf("AlreadyExist: key %v exists", redact.Key(e.Key))
}

// AssertionError: a key is not as its transaction has asserted. The timestamps are those of the
// version that exists, 0 if none does.
type AssertionError struct {
	StartTS           uint64
	Key               []byte
	Assertion         Assertion
	Existing, Written uint64
}

func (e *AssertionError) Error() string {
	return fmt.Sprintf(
		"AssertionFailed: the transaction %d asserts %s of key %v, whose version is of the transaction %d at %d",
		e.StartTS, e.Assertion, redact.Key(e.Key), e.Existing, e.Written)
}

// TxnNotFoundError: nothing is known of a transaction at its primary.
type TxnNotFoundError struct {
	StartTS uint64
	Primary []byte
}

func (e *TxnNotFoundError) Error() string {
	return fmt.Sprintf("TxnNotFound: nothing is known of the transaction %d at key %v", e.StartTS,
		redact.Key(e.Primary))
}

// PrimaryMismatchError: the key that was asked about as a transaction's primary is locked as a
// secondary.
type PrimaryMismatchError struct{ mvcc.KeyLock }

func (e *PrimaryMismatchError) Error() string {
	return fmt.Sprintf(
		"PrimaryMismatch: key %v is not the primary of the transaction %d, which is %v",
		redact.Key(e.Key), e.Ts, redact.Key(e.Primary))
}

// LockNotFoundError: a key cannot be committed, because its lock is gone: the transaction was
// rolled back.
type LockNotFoundError struct {
	Key     []byte
	StartTS uint64
}

// Error has the word by which programs recognize it.
func (e *LockNotFoundError) Error() string {
	return fmt.Sprintf("TxnLockNotFound: the transaction %d has no lock on key %v", e.StartTS,
		redact.Key(e.Key))
}

// CommitTooEarlyError: a reader has been promised that the transaction commits at MinCommitTS or
// later. The client takes a new timestamp; nothing was done.
type CommitTooEarlyError struct {
	Key                            []byte
	StartTS, CommitTS, MinCommitTS uint64
}

func (e *CommitTooEarlyError) Error() string {
	return fmt.Sprintf(
		"commit timestamp %d of the transaction %d is below %d, the least allowed for key %v",
		e.CommitTS, e.StartTS, e.MinCommitTS, redact.Key(e.Key))
}

// AbortError: the command cannot succeed, however often it is sent.
type AbortError struct{ Reason string }

func (e *AbortError) Error() string { return e.Reason }

func abortf(format string, args ...any) error { return &AbortError{fmt.Sprintf(format, args...)} }
