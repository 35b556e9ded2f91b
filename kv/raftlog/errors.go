package raftlog

import (
	"errors"
	"fmt"
)

var (
	// ErrCompacted means that the entry was removed by truncation or a snapshot: the caller sends
	// a snapshot instead.
	ErrCompacted = errors.New("raftlog: entry was compacted")
	// ErrUnavailable means that the entry is beyond the last one, or the region is unknown.
	ErrUnavailable = errors.New("raftlog: entry is not available")
	// ErrClosed is returned by every call that needs the files after Close.
	ErrClosed = errors.New("raftlog: closed")
	// ErrInvalid is wrapped when a batch breaks the contract (a gap, an unknown region, a record
	// beyond the size limit). Nothing of the batch was written and the log remains usable.
	ErrInvalid = errors.New("raftlog: invalid batch")
	// ErrCorrupt is wrapped by every DamageError.
	ErrCorrupt = errors.New("raftlog: corrupt data")
)

// DamageError tells where data that must be there is not, or not as it was written.
type DamageError struct {
	File   string
	Offset int64
	// RegionID is 0 when the damage does not tell whose data it was.
	RegionID uint64
	Index    uint64
	Detail   string
}

func (e *DamageError) Error() string {
	where := fmt.Sprintf("raftlog: %s at offset %d", e.File, e.Offset)
	if e.RegionID != 0 {
		return fmt.Sprintf("%s: region %d, entry %d: %s", where, e.RegionID, e.Index, e.Detail)
	}
	return where + ": " + e.Detail
}

// Unwrap makes errors.Is(err, ErrCorrupt) hold.
func (e *DamageError) Unwrap() error { return ErrCorrupt }
