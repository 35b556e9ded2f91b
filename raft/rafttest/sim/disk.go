package sim

import (
	"errors"
	"slices"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/raft"
)

// The log starts as the raftstore's does: with a truncated prefix, so that a new node cannot be fed
// from the first entry on and needs a snapshot, which tells it who the members are.
const (
	initIndex = 5
	initTerm  = 5
)

// raftState is what a raft log on disk holds: the entries after trunc, each with the hash of the
// whole log up to it, and the hard state.
type raftState struct {
	trunc, truncTerm, truncHash uint64
	ents                        []eraftpb.Entry
	hashes                      []uint64
	hs                          eraftpb.HardState
}

func (s *raftState) last() uint64 { return s.trunc + uint64(len(s.ents)) }

// hashAt returns the hash of the log up to index, false if the log does not have that.
func (s *raftState) hashAt(index uint64) (uint64, bool) {
	switch {
	case index == s.trunc:
		return s.truncHash, true
	case index < s.trunc || index > s.last():
		return 0, false
	}
	return s.hashes[index-s.trunc-1], true
}

func (s *raftState) termAt(index uint64) uint64 {
	if index == s.trunc {
		return s.truncTerm
	}
	return s.ents[index-s.trunc-1].Term
}

// contains says whether the log up to index is there, as entries or inside of what was truncated.
func (s *raftState) contains(index, hash uint64) bool {
	if index < s.trunc {
		return true
	}
	h, ok := s.hashAt(index)
	return ok && h == hash
}

// write puts entries in, replacing everything from the first one's index on. Slots that were read
// may still be looked at by somebody, so they are not written again.
func (s *raftState) write(ents []eraftpb.Entry, hashes []uint64) {
	at := ents[0].Index - s.trunc - 1
	if at < uint64(len(s.ents)) {
		s.ents, s.hashes = slices.Clip(s.ents[:at]), slices.Clip(s.hashes[:at])
	}
	s.ents, s.hashes = append(s.ents, ents...), append(s.hashes, hashes...)
}

func (s *raftState) truncate(index uint64) {
	if index <= s.trunc || index > s.last() {
		return
	}
	n := index - s.trunc
	s.truncTerm, s.truncHash, s.trunc = s.ents[n-1].Term, s.hashes[n-1], index
	s.ents, s.hashes = slices.Clone(s.ents[n:]), slices.Clone(s.hashes[n:])
}

func (s *raftState) reset(index, term, hash uint64) {
	*s = raftState{trunc: index, truncTerm: term, truncHash: hash, hs: s.hs}
}

// changesMembers says whether there is a conf change above index.
func (s *raftState) changesMembers(index uint64) bool {
	for i := range s.ents {
		if s.ents[i].Index > index && s.ents[i].EntryType == eraftpb.EntryType_EntryConfChange {
			return true
		}
	}
	return false
}

// loseTail takes entries from the end, which were synced, and what the hard state says of them; not
// below what is applied.
func (s *raftState) loseTail(n int, applied uint64) {
	n = min(n, int(s.last()-max(s.trunc, min(applied, s.last()))))
	keep := len(s.ents) - n
	s.ents, s.hashes = s.ents[:keep:keep], s.hashes[:keep:keep]
	s.hs.Commit = min(s.hs.Commit, s.last())
}

// raftRecord is one write to the raft log: atomic, in order with the others.
type raftRecord struct {
	hs      *eraftpb.HardState
	ents    []eraftpb.Entry
	hashes  []uint64
	truncTo uint64
	resetTo *kvState
}

func (s *raftState) apply(rec *raftRecord) {
	if rec.resetTo != nil {
		s.reset(rec.resetTo.applied, rec.resetTo.term, rec.resetTo.hash)
	}
	if len(rec.ents) > 0 {
		s.write(rec.ents, rec.hashes)
	}
	if rec.hs != nil {
		s.hs = *rec.hs
	}
	if rec.truncTo > 0 {
		s.truncate(rec.truncTo)
	}
}

// kvState is the state machine on disk: applied index, members and a hash of all that was applied,
// written in one batch.
type kvState struct {
	applied, term, hash uint64
	conf                eraftpb.ConfState
}

// disk is a node's storage: two engines, each with what is synced and what is only written. A crash
// keeps the synced part and some of the rest, in order. It is the raft.Storage of the node.
type disk struct {
	raftNow, raftSynced raftState
	raftPending         []raftRecord
	kvNow, kvSynced     kvState
	kvPending           []kvState

	// snapConf are the members of the last snapshot made or installed (planted bug B4 uses them).
	snapConf eraftpb.ConfState
	// failing makes the next reads fail.
	failing     bool
	unavailable bool
}

var errDisk = errors.New("sim: disk error")

func newDisk(conf eraftpb.ConfState, fresh bool) *disk {
	d := &disk{}
	if fresh {
		return d
	}
	d.kvNow = kvState{applied: initIndex, term: initTerm, hash: initIndex, conf: conf}
	d.kvSynced = d.kvNow
	d.raftNow = raftState{trunc: initIndex, truncTerm: initTerm, truncHash: initIndex}
	d.raftNow.hs = eraftpb.HardState{Term: initTerm, Commit: initIndex}
	d.raftSynced = d.raftNow
	d.snapConf = conf
	return d
}

func (d *disk) writeRaft(rec raftRecord) {
	d.raftNow.apply(&rec)
	d.raftPending = append(d.raftPending, rec)
}

func (d *disk) syncRaft() {
	for i := range d.raftPending {
		d.raftSynced.apply(&d.raftPending[i])
		d.raftPending[i] = raftRecord{}
	}
	d.raftPending = d.raftPending[:0]
}

// durableCommit is the commit index that a restart finds.
func (d *disk) durableCommit() uint64 { return max(d.raftSynced.hs.Commit, d.kvSynced.applied) }

func (d *disk) writeKV(s kvState) {
	d.kvNow = s
	d.kvPending = append(d.kvPending, s)
}

func (d *disk) syncKV() {
	d.kvSynced, d.kvPending = d.kvNow, d.kvPending[:0]
}

// crash loses what was not synced, but for some of the first records.
func (d *disk) crash(r *rng) {
	if n := len(d.raftPending); n > 0 {
		d.raftPending = d.raftPending[:r.Intn(n+1)]
		d.syncRaft()
	}
	if n := len(d.kvPending); n > 0 {
		if keep := r.Intn(n + 1); keep > 0 {
			d.kvSynced = d.kvPending[keep-1]
		}
		d.kvPending = d.kvPending[:0]
	}
	d.reopen()
}

// reopen forgets what is not synced.
func (d *disk) reopen() {
	d.kvNow = d.kvSynced
	d.raftNow = d.raftSynced
	d.raftNow.ents, d.raftNow.hashes = slices.Clone(d.raftSynced.ents),
		slices.Clone(d.raftSynced.hashes)
}

// recover finishes an installation that the crash interrupted: the state machine went first, so if
// the log does not lead up to it, the log is of before (trap F-7).
func (d *disk) recover() {
	kv := &d.kvNow
	h, ok := d.raftNow.hashAt(kv.applied)
	if ok && h == kv.hash || kv.applied < d.raftNow.trunc {
		return
	}
	d.writeRaft(raftRecord{resetTo: &kvState{applied: kv.applied, term: kv.term, hash: kv.hash}})
	d.syncRaft()
}

// InitialState is part of raft.Storage.
func (d *disk) InitialState() (eraftpb.HardState, eraftpb.ConfState, error) {
	if planted("B4") {
		return d.raftNow.hs, d.snapConf, nil
	}
	return d.raftNow.hs, d.kvNow.conf, nil
}

// Entries is part of raft.Storage.
func (d *disk) Entries(lo, hi uint64) ([]eraftpb.Entry, error) {
	switch s := &d.raftNow; {
	case lo <= s.trunc:
		return nil, raft.ErrCompacted
	case hi > s.last()+1:
		return nil, raft.ErrUnavailable
	case d.failing:
		return nil, errDisk
	default:
		return s.ents[lo-s.trunc-1 : hi-s.trunc-1 : hi-s.trunc-1], nil
	}
}

// Term is part of raft.Storage.
func (d *disk) Term(i uint64) (uint64, error) {
	switch s := &d.raftNow; {
	case i < s.trunc:
		return 0, raft.ErrCompacted
	case i > s.last():
		return 0, raft.ErrUnavailable
	default:
		return s.termAt(i), nil
	}
}

// LastIndex is part of raft.Storage.
func (d *disk) LastIndex() (uint64, error) { return d.raftNow.last(), nil }

// FirstIndex is part of raft.Storage.
func (d *disk) FirstIndex() (uint64, error) { return d.raftNow.trunc + 1, nil }

// Snapshot is part of raft.Storage: the applied state, its index and its members, of one moment.
func (d *disk) Snapshot() (eraftpb.Snapshot, error) {
	if d.unavailable {
		return eraftpb.Snapshot{}, raft.ErrSnapshotTemporarilyUnavailable
	}
	kv := &d.kvNow
	conf := cloneConf(kv.conf)
	d.snapConf = conf
	return eraftpb.Snapshot{
		Data:     putUint64(nil, kv.hash),
		Metadata: &eraftpb.SnapshotMetadata{Index: kv.applied, Term: kv.term, ConfState: &conf},
	}, nil
}

func cloneConf(cs eraftpb.ConfState) eraftpb.ConfState {
	return eraftpb.ConfState{Nodes: slices.Clone(cs.Nodes), Learners: slices.Clone(cs.Learners)}
}

func putUint64(b []byte, v uint64) []byte {
	for i := 0; i < 64; i += 8 {
		b = append(b, byte(v>>i))
	}
	return b
}

func getUint64(b []byte) (v uint64) {
	for i := 0; i < 8 && i < len(b); i++ {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}
