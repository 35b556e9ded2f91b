package txn

import (
	"errors"
	"fmt"
	"strings"

	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// ErrConflict is wrapped by errors that say that the transaction has not happened, and that another
// attempt from the beginning may succeed.
var ErrConflict = errors.New("txn: write conflict")

// ErrDeadlock says that the transaction would wait for one that waits for it. It has not happened;
// it is to be rolled back, and another attempt from the beginning may succeed.
var ErrDeadlock = fmt.Errorf("%w: deadlock", ErrConflict)

// ErrLockLost says that a lock of a pessimistic transaction was taken away, since its time was over
// or its client seemed dead, and that another transaction has come before it.
var ErrLockLost = fmt.Errorf("%w: a lock got lost", ErrConflict)

// ErrFinished is returned by calls on a transaction that was committed or rolled back.
var ErrFinished = errors.New("txn: the transaction has ended")

// UnknownError says that no store has answered whether the transaction is committed. It may still
// be.
type UnknownError struct{ Cause error }

func (e *UnknownError) Error() string {
	return "txn: the outcome of the transaction is unknown: " + e.Cause.Error()
}

func (e *UnknownError) Unwrap() error { return e.Cause }

// IsUnknown tells whether a transaction whose Commit or Run returned err may have happened.
func IsUnknown(err error) bool {
	var u *UnknownError
	return errors.As(err, &u)
}

// lockLost is how stores tell that a pessimistic lock is gone.
const lockLost = "PessimisticLock"

// keyError is what a store said of a key, but for locks.
func keyError(e *kvrpcpb.KeyError) error {
	switch {
	case e.Conflict != nil:
		return fmt.Errorf("%w: key %v was written by the transaction %d, after %d",
			ErrConflict, redact.Key(e.Conflict.Key), e.Conflict.ConflictTs, e.Conflict.StartTs)
	case e.Retryable != "":
		return fmt.Errorf("%w: %s", ErrConflict, e.Retryable)
	case e.Deadlock != nil:
		return fmt.Errorf("%w: key %v is locked by the transaction %d", ErrDeadlock,
			redact.Key(e.Deadlock.LockKey), e.Deadlock.LockTs)
	case strings.HasPrefix(e.Abort, lockLost):
		return fmt.Errorf("%w: %s", ErrLockLost, e.Abort)
	case e.Abort != "":
		return fmt.Errorf("txn: %s", e.Abort)
	}
	// the message itself has the key in it
	return errors.New("txn: error of a key, of a kind that is not known here")
}
