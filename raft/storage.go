package raft

import (
	"errors"
	"fmt"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// ErrCompacted is returned for an index that was truncated away; a follower that needs it gets a
// snapshot.
var ErrCompacted = errors.New("raft: index was compacted")

// ErrUnavailable is returned for an index that the log does not have yet.
var ErrUnavailable = errors.New("raft: index is not available")

// ErrSnapOutOfDate is returned for a snapshot older than the one the storage already has.
var ErrSnapOutOfDate = errors.New("raft: snapshot is out of date")

// ErrSnapshotTemporarilyUnavailable says that a snapshot is being made; raft asks again later.
var ErrSnapshotTemporarilyUnavailable = errors.New("raft: snapshot is temporarily unavailable")

// Storage is what raft reads of the persisted state. Raft never writes: the owner persists what a
// Ready carries and only then calls Advance.
//
// Calls may be slow. First and last index are asked for once and kept; afterwards entries and terms
// are asked for only where they are not in memory.
type Storage interface {
	// InitialState returns the saved hard state and the members as of the applied index: these two
	// must be saved together, or a restarted node counts quorums of a group that is history.
	InitialState() (eraftpb.HardState, eraftpb.ConfState, error)
	// Entries returns the entries [lo, hi). ErrCompacted or ErrUnavailable if it has not all.
	Entries(lo, hi uint64) ([]eraftpb.Entry, error)
	// Term returns the term of entry i in [FirstIndex-1, LastIndex].
	Term(i uint64) (uint64, error)
	// LastIndex returns the index of the last entry.
	LastIndex() (uint64, error)
	// FirstIndex returns the index of the first entry that Entries can return.
	FirstIndex() (uint64, error)
	// Snapshot returns a snapshot for a follower that needs more than the log has.
	Snapshot() (eraftpb.Snapshot, error)
}

// LimitedStorage is a Storage that can stop reading after some bytes.
type LimitedStorage interface {
	// EntriesLimited returns a non-empty prefix of the entries [lo, hi): as many as fit into
	// maxBytes, at least one.
	EntriesLimited(lo, hi, maxBytes uint64) ([]eraftpb.Entry, error)
}

// MemoryStorage is a Storage in memory, for tests and for learning what a Storage has to do.
// Owner: that of the RawNode; not safe for concurrent use.
//
// Invariant: ents[0] is a dummy with index and term of the last entry truncated away, so
// ents[i].Index == ents[0].Index+i. Slots once handed out by Entries are never written again.
type MemoryStorage struct {
	hardState eraftpb.HardState
	snapshot  eraftpb.Snapshot
	ents      []eraftpb.Entry
}

// NewMemoryStorage returns an empty storage.
func NewMemoryStorage() *MemoryStorage {
	return &MemoryStorage{
		ents: make([]eraftpb.Entry, 1),
		snapshot: eraftpb.Snapshot{
			Metadata: &eraftpb.SnapshotMetadata{ConfState: &eraftpb.ConfState{}},
		},
	}
}

// InitialState is part of Storage. The members are those of the last snapshot or of SetConfState.
func (ms *MemoryStorage) InitialState() (eraftpb.HardState, eraftpb.ConfState, error) {
	var cs eraftpb.ConfState
	if meta := ms.snapshot.Metadata; meta != nil && meta.ConfState != nil {
		cs = cloneConfState(*meta.ConfState)
	}
	return ms.hardState, cs, nil
}

// SetHardState saves the hard state.
func (ms *MemoryStorage) SetHardState(st eraftpb.HardState) error {
	ms.hardState = st
	return nil
}

// Entries is part of Storage.
func (ms *MemoryStorage) Entries(lo, hi uint64) ([]eraftpb.Entry, error) {
	offset := ms.ents[0].Index
	if lo <= offset {
		return nil, ErrCompacted
	}
	if hi > ms.lastIndex()+1 || lo > hi {
		return nil, ErrUnavailable
	}
	return ms.ents[lo-offset : hi-offset : hi-offset], nil
}

// Term is part of Storage.
func (ms *MemoryStorage) Term(i uint64) (uint64, error) {
	offset := ms.ents[0].Index
	if i < offset {
		return 0, ErrCompacted
	}
	if i-offset >= uint64(len(ms.ents)) {
		return 0, ErrUnavailable
	}
	return ms.ents[i-offset].Term, nil
}

// LastIndex is part of Storage.
func (ms *MemoryStorage) LastIndex() (uint64, error) { return ms.lastIndex(), nil }

func (ms *MemoryStorage) lastIndex() uint64 { return ms.ents[0].Index + uint64(len(ms.ents)) - 1 }

// FirstIndex is part of Storage.
func (ms *MemoryStorage) FirstIndex() (uint64, error) { return ms.ents[0].Index + 1, nil }

// Snapshot is part of Storage.
func (ms *MemoryStorage) Snapshot() (eraftpb.Snapshot, error) { return ms.snapshot, nil }

// ApplySnapshot replaces log and members by the snapshot's. An old one is ErrSnapOutOfDate.
func (ms *MemoryStorage) ApplySnapshot(snap eraftpb.Snapshot) error {
	if snap.Metadata == nil {
		return ErrSnapOutOfDate
	}
	if ms.snapshot.Metadata != nil && ms.snapshot.Metadata.Index >= snap.Metadata.Index {
		return ErrSnapOutOfDate
	}
	ms.snapshot = snap
	ms.ents = []eraftpb.Entry{{Term: snap.Metadata.Term, Index: snap.Metadata.Index}}
	return nil
}

// CreateSnapshot makes a snapshot at index i, which must be in the log, with the given members
// (nil: those of the last one) and data. Compact is a separate step.
func (ms *MemoryStorage) CreateSnapshot(
	i uint64, cs *eraftpb.ConfState, data []byte,
) (eraftpb.Snapshot, error) {
	old := ms.snapshot.Metadata
	if old != nil && i <= old.Index {
		return eraftpb.Snapshot{}, ErrSnapOutOfDate
	}
	term, err := ms.Term(i)
	if err != nil {
		return eraftpb.Snapshot{}, fmt.Errorf("snapshot at %d: %w", i, err)
	}
	meta := &eraftpb.SnapshotMetadata{Index: i, Term: term, ConfState: &eraftpb.ConfState{}}
	switch {
	case cs != nil:
		*meta.ConfState = cloneConfState(*cs)
	case old != nil && old.ConfState != nil:
		*meta.ConfState = cloneConfState(*old.ConfState)
	}
	ms.snapshot = eraftpb.Snapshot{Metadata: meta, Data: data}
	return ms.snapshot, nil
}

// Compact drops the entries up to and including compactIndex.
func (ms *MemoryStorage) Compact(compactIndex uint64) error {
	offset := ms.ents[0].Index
	if compactIndex <= offset {
		return ErrCompacted
	}
	if compactIndex > ms.lastIndex() {
		return fmt.Errorf("compact to %d, last is %d: %w", compactIndex, ms.lastIndex(),
			ErrUnavailable)
	}
	i := compactIndex - offset
	ents := make([]eraftpb.Entry, uint64(len(ms.ents))-i)
	copy(ents, ms.ents[i:])
	ents[0] = eraftpb.Entry{Index: compactIndex, Term: ents[0].Term}
	ms.ents = ents
	return nil
}

// Append adds entries, replacing those from the first one's index on. Entries that are already
// truncated away are skipped.
func (ms *MemoryStorage) Append(entries []eraftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	first := ms.ents[0].Index + 1
	if last := entries[0].Index + uint64(len(entries)) - 1; last < first {
		return nil
	}
	if entries[0].Index < first {
		entries = entries[first-entries[0].Index:]
	}
	at := entries[0].Index - ms.ents[0].Index
	switch have := uint64(len(ms.ents)); {
	case at > have:
		return fmt.Errorf("append at %d, last is %d: %w", entries[0].Index, ms.lastIndex(),
			ErrUnavailable)
	case at == have:
		ms.ents = append(ms.ents, entries...)
	default:
		// A copy: the slots behind may have been handed out (trap Q1).
		ms.ents = append(ms.ents[:at:at], entries...)
	}
	return nil
}

func cloneConfState(cs eraftpb.ConfState) eraftpb.ConfState {
	return eraftpb.ConfState{
		Nodes:    append([]uint64(nil), cs.Nodes...),
		Learners: append([]uint64(nil), cs.Learners...),
	}
}
