package raft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// RaftLog is the node's view of its log: what is persisted, what still has to be, what is committed
// and what is applied. Owner: the Raft that holds it.
//
//	truncated | ........ applied ........ committed ........ last
//	          first                 stabled (anywhere up to last)
//	                      [entries in memory .............. last]
//
// Invariant: applied <= committed <= last, and stabled <= last.
// Invariant: entries is a suffix of the log without gaps, and holds all above stabled.
// Invariant: a slot of the array behind entries is written once. Truncation copies (trap Q1), so a
// Ready, a message and the log may all look at the same array.
type RaftLog struct {
	storage Storage

	// committed is the highest index known to be on the disks of a quorum.
	committed uint64
	// applied is the highest index that the owner's state machine has applied.
	applied uint64
	// stabled is the highest index that is persisted.
	stabled uint64
	// entries are those in memory: all of the storage's, or what UnstableOnly leaves.
	entries []eraftpb.Entry
	// pendingSnapshot was received and is not persisted yet.
	pendingSnapshot *eraftpb.Snapshot

	// base and baseTerm belong to the entry before entries[0]. base is only looked at when entries
	// is empty, so that entries alone decides otherwise.
	base, baseTerm uint64
	// first is the first index that is not truncated; truncTerm the term before it.
	first, truncTerm uint64
	// handed is the highest index given out for applying, with asyncApply.
	handed     uint64
	asyncApply bool

	// unstableOnly, cacheBytes: see Config. memBytes is the size of entries; dead counts the slots
	// in front of entries in its array, which keep their data from being collected.
	unstableOnly bool
	cacheBytes   uint64
	memBytes     uint64
	dead         int
	// batch is how many entries left memory together when it became empty: room for as many is made
	// at once.
	batch int
	// maxReadyBytes bounds what nextEnts returns; 0 is no bound.
	maxReadyBytes uint64
}

// newLog returns the log of the storage with every entry in memory. It panics when the storage
// cannot be read: a node without its log must not take part.
func newLog(storage Storage) *RaftLog {
	l, err := openLog(storage, false)
	if err != nil {
		panic(err)
	}
	return l
}

func openLog(storage Storage, unstableOnly bool) (*RaftLog, error) {
	first, err := storage.FirstIndex()
	if err != nil {
		return nil, fmt.Errorf("raft: first index: %w", err)
	}
	last, err := storage.LastIndex()
	if err != nil {
		return nil, fmt.Errorf("raft: last index: %w", err)
	}
	truncTerm, err := storage.Term(first - 1)
	if err != nil {
		return nil, fmt.Errorf("raft: term of %d: %w", first-1, err)
	}
	l := &RaftLog{
		storage: storage, committed: first - 1, applied: first - 1, handed: first - 1,
		stabled: last, first: first, truncTerm: truncTerm, base: last, baseTerm: truncTerm,
		unstableOnly: unstableOnly,
	}
	if last < first {
		return l, nil
	}
	if unstableOnly {
		if l.baseTerm, err = storage.Term(last); err != nil {
			return nil, fmt.Errorf("raft: term of %d: %w", last, err)
		}
		return l, nil
	}
	ents, err := storage.Entries(first, last+1)
	if err != nil {
		return nil, fmt.Errorf("raft: entries [%d,%d): %w", first, last+1, err)
	}
	l.base = first - 1
	l.entries = append([]eraftpb.Entry(nil), ents...)
	return l, nil
}

func entrySize(e *eraftpb.Entry) uint64 { return uint64(e.Size()) }

// memFirst is the index of entries[0], or of the entry that will be.
func (l *RaftLog) memFirst() uint64 {
	if len(l.entries) > 0 {
		return l.entries[0].Index
	}
	return l.base + 1
}

// LastIndex returns the index of the last entry, in memory or not (trap D4).
func (l *RaftLog) LastIndex() uint64 {
	if n := len(l.entries); n > 0 {
		return l.entries[n-1].Index
	}
	return l.base
}

// lastTerm returns the term of the last entry.
func (l *RaftLog) lastTerm() uint64 {
	if n := len(l.entries); n > 0 {
		return l.entries[n-1].Term
	}
	return l.baseTerm
}

// firstIndex returns the first index that is not truncated.
func (l *RaftLog) firstIndex() uint64 { return l.first }

// Term returns the term of entry i: ErrCompacted below the log (the entry before the first one is
// still known), ErrUnavailable above it.
func (l *RaftLog) Term(i uint64) (uint64, error) {
	mem := l.memFirst()
	switch {
	case i > l.LastIndex():
		return 0, ErrUnavailable
	case i >= mem:
		return l.entries[i-mem].Term, nil
	case i+1 == mem && (len(l.entries) == 0 || i == l.base):
		return l.baseTerm, nil
	case i+1 == l.first:
		return l.truncTerm, nil
	case i+1 < l.first:
		return 0, ErrCompacted
	}
	return l.storage.Term(i)
}

// matchTerm says whether entry i is in the log with that term.
func (l *RaftLog) matchTerm(i, term uint64) bool {
	t, err := l.Term(i)
	return err == nil && t == term
}

// isUpToDate is the election restriction (thesis 3.6.1): the later last term wins, and with equal
// terms the longer log. The whole log counts, persisted or not (trap A12).
func (l *RaftLog) isUpToDate(index, term uint64) bool {
	return term > l.lastTerm() || term == l.lastTerm() && index >= l.LastIndex()
}

// allEntries returns every entry in memory, which in the course's setting is the whole log.
func (l *RaftLog) allEntries() []eraftpb.Entry { return l.entries[:len(l.entries):len(l.entries)] }

// unstableEntries returns the entries that still have to be persisted; never nil.
func (l *RaftLog) unstableEntries() []eraftpb.Entry {
	mem, n := l.memFirst(), uint64(len(l.entries))
	lo := max(l.stabled+1, mem)
	if n == 0 || lo >= mem+n {
		return []eraftpb.Entry{}
	}
	return l.entries[lo-mem : n : n]
}

// nextIndex is the first index that was not given out for applying.
func (l *RaftLog) nextIndex() uint64 {
	if l.asyncApply {
		return max(l.handed, l.applied) + 1
	}
	return l.applied + 1
}

// hasNextEnts says whether nextEnts has something. A snapshot goes first: the entries behind it
// mean nothing to the state before it.
func (l *RaftLog) hasNextEnts() bool {
	return l.pendingSnapshot == nil && l.nextIndex() <= l.committed
}

// nextEnts returns the committed entries to apply next.
func (l *RaftLog) nextEnts() (ents []eraftpb.Entry) {
	if !l.hasNextEnts() {
		return nil
	}
	lo, hi := max(l.nextIndex(), l.first), l.committed+1
	ents, err := l.slice(lo, hi, l.maxReadyBytes)
	if errors.Is(err, ErrCompacted) || errors.Is(err, ErrUnavailable) {
		// Committed and not applied means not truncated: the storage has lost entries, and to go on
		// would be to forget them silently.
		panic(fmt.Sprintf("raft: committed entries [%d,%d) are lost: %v", lo, hi, err))
	}
	// Any other error is the storage's to report to its owner; the next Ready tries again.
	return ents
}

// slice returns a non-empty prefix of the entries [lo, hi) of at most maxBytes (0: no bound), at
// least one. The result is only to be read.
func (l *RaftLog) slice(lo, hi, maxBytes uint64) ([]eraftpb.Entry, error) {
	if lo >= hi {
		return nil, nil
	}
	if lo < l.first {
		return nil, ErrCompacted
	}
	if hi > l.LastIndex()+1 {
		return nil, ErrUnavailable
	}
	mem := l.memFirst()
	if lo >= mem {
		return limitBytes(l.entries[lo-mem:hi-mem:hi-mem], maxBytes), nil
	}
	mid := min(hi, mem)
	ents, err := l.readStorage(lo, mid, maxBytes)
	if err != nil {
		return nil, err
	}
	ents = limitBytes(ents, maxBytes)
	if uint64(len(ents)) < mid-lo || mid == hi {
		return ents, nil
	}
	rest := l.entries[:hi-mem]
	if maxBytes > 0 {
		var used uint64
		for i := range ents {
			used += entrySize(&ents[i])
		}
		if used+entrySize(&rest[0]) > maxBytes {
			return ents, nil
		}
		rest = limitBytes(rest, maxBytes-used)
	}
	return append(ents[:len(ents):len(ents)], rest...), nil
}

func (l *RaftLog) readStorage(lo, hi, maxBytes uint64) ([]eraftpb.Entry, error) {
	if ls, ok := l.storage.(LimitedStorage); ok && maxBytes > 0 {
		ents, err := ls.EntriesLimited(lo, hi, maxBytes)
		if err == nil && len(ents) == 0 {
			return nil, ErrUnavailable
		}
		return ents, err
	}
	ents, err := l.storage.Entries(lo, hi)
	if err == nil && uint64(len(ents)) != hi-lo {
		return nil, ErrUnavailable
	}
	return ents, err
}

// limitBytes cuts ents where they exceed maxBytes (0: nowhere), keeping at least one.
func limitBytes(ents []eraftpb.Entry, maxBytes uint64) []eraftpb.Entry {
	if maxBytes == 0 {
		return ents
	}
	var size uint64
	for i := range ents {
		size += entrySize(&ents[i])
		if size > maxBytes && i > 0 {
			return ents[:i:i]
		}
	}
	return ents
}

// findConflict returns the position in ents of the first entry that the log does not have, or
// len(ents).
func (l *RaftLog) findConflict(ents []*eraftpb.Entry) int {
	for i, e := range ents {
		if !l.matchTerm(e.Index, e.Term) {
			return i
		}
	}
	return len(ents)
}

// findConflictByTerm returns the largest index in [floor, index] whose term is at most term, or
// floor. With floor a point where both logs are known to agree, the answer skips all entries of the
// terms that the other side cannot have: one round trip a term instead of one an entry.
func (l *RaftLog) findConflictByTerm(index, term, floor uint64) uint64 {
	for index = min(index, l.LastIndex()); index > floor; index-- {
		if t, err := l.Term(index); err != nil || t <= term {
			break
		}
	}
	return max(index, floor)
}

// append adds a leader's own entries at the end.
func (l *RaftLog) append(ents ...eraftpb.Entry) {
	for i := range ents {
		l.memBytes += entrySize(&ents[i])
	}
	l.reserve(len(ents))
	l.entries = append(l.entries, ents...)
}

// maxBatch bounds the room that is made in advance.
const maxBatch = 256

// reserve makes room for n entries: one allocation for a batch, not one each time it doubles.
func (l *RaftLog) reserve(n int) {
	if n > 0 && len(l.entries) == 0 {
		n = max(n, min(l.batch, maxBatch))
	}
	l.entries = slices.Grow(l.entries, n)
}

// truncateAndAppend replaces the log from ents[0].Index on. Everything that is cut off was never
// committed; to cut a committed entry off would break the state machines' agreement.
func (l *RaftLog) truncateAndAppend(ents []*eraftpb.Entry) {
	at := ents[0].Index
	if at <= l.committed {
		panic(fmt.Sprintf("raft: append at %d cuts off committed entries (committed %d)", at,
			l.committed))
	}
	if at > l.LastIndex()+1 {
		panic(fmt.Sprintf("raft: append at %d leaves a gap (last %d)", at, l.LastIndex()))
	}
	if at <= l.LastIndex() {
		l.truncateFrom(at)
	}
	l.reserve(len(ents))
	for _, e := range ents {
		l.entries = append(l.entries, *e)
		l.memBytes += entrySize(e)
	}
}

// truncateFrom drops the entries from index at on, and what was thought persisted with them: the
// old tail must not count as durable under the new entries' indexes (trap B-6).
func (l *RaftLog) truncateFrom(at uint64) {
	prevTerm, err := l.Term(at - 1)
	if err != nil {
		panic(fmt.Sprintf("raft: term of %d before a truncation: %v", at-1, err))
	}
	mem := l.memFirst()
	keep := l.entries[:0:0]
	if at > mem {
		keep = l.entries[:at-mem]
		keep = append(make([]eraftpb.Entry, 0, len(keep)+4), keep...)
		l.dead = 0
	} else {
		l.base, l.baseTerm, l.dead = at-1, prevTerm, 0
	}
	l.entries = keep
	l.stabled = min(l.stabled, at-1)
	l.memBytes = 0
	for i := range l.entries {
		l.memBytes += entrySize(&l.entries[i])
	}
}

// commitTo raises the commit index, never beyond the log: what a message promises beyond it was
// lost here or never came (traps B-2, B-3).
func (l *RaftLog) commitTo(index uint64) bool {
	index = min(index, l.LastIndex())
	if index <= l.committed {
		return false
	}
	l.committed = index
	return true
}

// appliedTo raises the applied index.
func (l *RaftLog) appliedTo(index uint64) {
	if index > l.committed {
		panic(fmt.Sprintf("raft: applied %d is above committed %d", index, l.committed))
	}
	l.applied = max(l.applied, index)
	l.handed = max(l.handed, l.applied)
}

// stableTo notes that the entry (index, term) and all before it are on disk. If the log was cut in
// the meantime the entry is another one now, and nothing is known.
func (l *RaftLog) stableTo(index, term uint64) {
	if index <= l.stabled || !l.matchTerm(index, term) {
		return
	}
	l.stabled = index
	l.evict()
}

// evict drops persisted entries from memory, oldest first, down to the cache size.
func (l *RaftLog) evict() {
	if !l.unstableOnly {
		return
	}
	n := 0
	for n < len(l.entries) && l.entries[n].Index <= l.stabled && l.memBytes > l.cacheBytes {
		l.memBytes -= entrySize(&l.entries[n])
		n++
	}
	l.dropFront(n)
}

// dropFront forgets the first n entries in memory. The array is left behind when most of it is
// dead: its slots may not be cleared, others may be looking at them.
func (l *RaftLog) dropFront(n int) {
	if n == 0 {
		return
	}
	l.base, l.baseTerm = l.entries[n-1].Index, l.entries[n-1].Term
	l.entries = l.entries[n:]
	l.dead += n
	if len(l.entries) == 0 {
		l.batch = n
		l.entries, l.dead = nil, 0
	} else if l.dead > len(l.entries)+32 {
		l.entries = append(make([]eraftpb.Entry, 0, 2*len(l.entries)), l.entries...)
		l.dead = 0
	}
}

// compactTo follows a truncation of the storage up to and including index.
func (l *RaftLog) compactTo(index uint64) {
	if index < l.first {
		return
	}
	index = min(index, l.applied, l.stabled)
	term, err := l.Term(index)
	if err != nil || index < l.first {
		return
	}
	n := 0
	for n < len(l.entries) && l.entries[n].Index <= index {
		l.memBytes -= min(l.memBytes, entrySize(&l.entries[n]))
		n++
	}
	l.dropFront(n)
	l.first, l.truncTerm = index+1, term
}

// maybeCompact drops from memory what the storage has dropped.
func (l *RaftLog) maybeCompact() {
	if first, err := l.storage.FirstIndex(); err == nil && first > l.first {
		l.compactTo(first - 1)
	}
}

// restore starts over from a snapshot. The log behind it is gone: it did not have the snapshot's
// last entry, so it may contradict it.
func (l *RaftLog) restore(snap *eraftpb.Snapshot) {
	index, term := snap.Metadata.Index, snap.Metadata.Term
	l.pendingSnapshot = snap
	l.entries, l.dead, l.memBytes = nil, 0, 0
	l.base, l.baseTerm = index, term
	l.first, l.truncTerm = index+1, term
	l.committed, l.stabled = index, index
}

// stableSnapTo notes that the snapshot is persisted, and with it the state up to its index.
func (l *RaftLog) stableSnapTo(index uint64) {
	if l.pendingSnapshot != nil && l.pendingSnapshot.Metadata.Index == index {
		l.pendingSnapshot = nil
	}
	l.appliedTo(min(index, l.committed))
}

// snapshot returns what a follower gets that needs more than the log has. A snapshot that does not
// reach the log would only make the follower ask again (trap D8).
func (l *RaftLog) snapshot() (eraftpb.Snapshot, error) {
	if l.pendingSnapshot != nil {
		return *l.pendingSnapshot, nil
	}
	snap, err := l.storage.Snapshot()
	if err != nil {
		return snap, err
	}
	if snap.Metadata == nil || snap.Metadata.Index == 0 || snap.Metadata.Index+1 < l.first {
		return snap, ErrSnapshotTemporarilyUnavailable
	}
	return snap, nil
}

// hasUnappliedConfChange looks for a conf change that is committed and not applied. When the
// entries cannot be read it says yes, the careful answer.
func (l *RaftLog) hasUnappliedConfChange() bool {
	const page = 1 << 20
	for lo := max(l.applied+1, l.first); lo <= l.committed; {
		ents, err := l.slice(lo, l.committed+1, page)
		if err != nil || len(ents) == 0 {
			return true
		}
		for i := range ents {
			if ents[i].EntryType == eraftpb.EntryType_EntryConfChange {
				return true
			}
		}
		lo += uint64(len(ents))
	}
	return false
}

// isCompacted says whether err means that a follower needs a snapshot.
func isCompacted(err error) bool { return errors.Is(err, ErrCompacted) }
