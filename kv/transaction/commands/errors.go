package commands

import (
	"fmt"

	"github.com/tinykv/tinykv/kv/transaction/mvcc"
)

// LockedError: another transaction's lock is in the way. The client finds out what became of that transaction, resolves
// the lock, and tries again.
type LockedError struct{ mvcc.KeyLock }

func (e *LockedError) Error() string {
	return fmt.Sprintf("key %x is locked by the transaction %d", e.Key, e.Ts)
}

// ConflictError: another transaction has written the key since this one began, or this one was rolled back.
type ConflictError struct {
	StartTS uint64
	// ConflictTS and CommitTS are the other transaction's timestamps.
	ConflictTS, CommitTS uint64
	Key, Primary         []byte
	// SelfRolledBack: the record in the way is this transaction's own rollback.
	SelfRolledBack bool
}

func (e *ConflictError) Error() string {
	if e.SelfRolledBack {
		return fmt.Sprintf("write conflict: the transaction %d was rolled back at key %x", e.StartTS, e.Key)
	}
	return fmt.Sprintf("write conflict: key %x was written by the transaction %d at %d, after %d",
		e.Key, e.ConflictTS, e.CommitTS, e.StartTS)
}

// LockNotFoundError: a key cannot be committed, because its lock is gone: the transaction was rolled back.
type LockNotFoundError struct {
	Key     []byte
	StartTS uint64
}

// Error has the word by which programs recognize it.
func (e *LockNotFoundError) Error() string {
	return fmt.Sprintf("TxnLockNotFound: the transaction %d has no lock on key %x", e.StartTS, e.Key)
}

// CommitTooEarlyError: a reader has been promised that the transaction commits at MinCommitTS or later. The client takes
// a new timestamp; nothing was done.
type CommitTooEarlyError struct {
	Key                            []byte
	StartTS, CommitTS, MinCommitTS uint64
}

func (e *CommitTooEarlyError) Error() string {
	return fmt.Sprintf("commit timestamp %d of the transaction %d is below %d, the least allowed for key %x",
		e.CommitTS, e.StartTS, e.MinCommitTS, e.Key)
}

// AbortError: the command cannot succeed, however often it is sent.
type AbortError struct{ Reason string }

func (e *AbortError) Error() string { return e.Reason }

func abortf(format string, args ...any) error { return &AbortError{fmt.Sprintf(format, args...)} }
