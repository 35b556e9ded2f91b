package mvcc

import (
	"errors"
	"fmt"
	"math"
)

// TsMax is larger than the timestamp of any transaction.
const TsMax uint64 = math.MaxUint64

// logicalBits is how many bits of a timestamp count within a millisecond.
const logicalBits = 18

// Timestamp puts a timestamp together, of milliseconds and a count.
func Timestamp(physical, logical int64) uint64 {
	return uint64(physical)<<logicalBits | uint64(logical)
}

// PhysicalTime is a timestamp's part in milliseconds.
func PhysicalTime(ts uint64) uint64 { return ts >> logicalBits }

// ErrCorrupt is wrapped by the errors about records that do not decode, or values that are missing.
var ErrCorrupt = errors.New("mvcc: corrupt data")

// WriteKind says what a lock or a write record does to its key.
type WriteKind byte

// The kinds; the numbers of the first three are part of the course's format.
const (
	WriteKindPut      WriteKind = 1
	WriteKindDelete   WriteKind = 2
	WriteKindRollback WriteKind = 3
	// WriteKindLock locks the key and changes nothing.
	WriteKindLock WriteKind = 4
	// WriteKindPessimistic is the kind of a lock that was taken before its transaction was
	// prewritten.
	WriteKindPessimistic WriteKind = 5
)

func (k WriteKind) String() string {
	switch k {
	case WriteKindPut:
		return "put"
	case WriteKindDelete:
		return "delete"
	case WriteKindRollback:
		return "rollback"
	case WriteKindLock:
		return "lock"
	case WriteKindPessimistic:
		return "pessimistic"
	}
	return fmt.Sprintf("kind %d", byte(k))
}

// Lock says that a transaction is about to change a key.
type Lock struct {
	Primary []byte
	Ts, Ttl uint64
	Kind    WriteKind
	// ShortValue is the value of a Put that is stored inline; nil means that it is not, an empty
	// one is a value.
	ShortValue []byte
	// The optional fields of TiKV's records. They are kept as they are where nothing here uses
	// them.
	ForUpdateTS, TxnSize, MinCommitTS uint64
	AsyncCommit                       bool
	Secondaries                       [][]byte
	// RollbackTS are the protected rollbacks on whose timestamp this transaction may commit.
	RollbackTS         []uint64
	LastChange         LastChange
	TxnSource          uint64
	LockedWithConflict bool
	Generation         uint64
}

// LastChange points past a run of records that change nothing. The zero value means unknown.
type LastChange struct{ TS, Versions uint64 }

// Write is a write record.
type Write struct {
	StartTS uint64
	Kind    WriteKind
	// ShortValue is the value of a Put if it is inline; of a rollback, "p" says that it is
	// protected.
	ShortValue []byte
	// OverlappedRollback: the transaction with the start timestamp of this record's place was
	// rolled back.
	OverlappedRollback bool
	// Fence is set when the record was written again. A version of the key with a commit timestamp
	// of *Fence existed by then, 0 if there was none; where it is missing, garbage collection took
	// it, and this record with it.
	Fence      *uint64
	LastChange LastChange
	TxnSource  uint64
}

const protectedMark = "p"

// Rollback makes the record of a rollback. A protected one is never collapsed.
func Rollback(startTS uint64, protected bool) Write {
	w := Write{StartTS: startTS, Kind: WriteKindRollback}
	if protected {
		w.ShortValue = []byte(protectedMark)
	}
	return w
}

// Protected tells whether the record is a rollback that must stay.
func (w *Write) Protected() bool {
	return w.Kind == WriteKindRollback && string(w.ShortValue) == protectedMark
}

// fencedOff tells whether a read at ts must not see the record.
func (w *Write) fencedOff(ts uint64) bool {
	return w.Fence != nil && *w.Fence > 0 && *w.Fence <= ts
}

// Changes tells whether the record is a version of its key.
func (w *Write) Changes() bool { return w.Kind == WriteKindPut || w.Kind == WriteKindDelete }
