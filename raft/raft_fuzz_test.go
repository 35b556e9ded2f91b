package raft

import (
	"encoding/binary"
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// FuzzStep feeds a node messages with arbitrary fields through RawNode, with Readys in between. It
// may refuse what it gets; it may not panic, go back, or commit what it does not have.
//
// Two inputs are not arbitrary, as no check could save a node from them: a leader of the highest
// term that contradicts committed entries is a broken promise of others, so appends at or below the
// commit index are left to the answers; and entries are numbered by the message's index.
func FuzzStep(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 3, 2, 1, 0, 0, 0, 1, 0, 0})
	f.Add([]byte{1, 8, 2, 1, 0, 0, 9, 0, 1, 0, 1, 17, 2, 3, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{2, 7, 2, 2, 9, 2, 0, 0, 0, 0, 2, 3, 2, 2, 9, 2, 12, 3, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		opts := []option{func(*Config) {}}
		if data[0]&1 == 1 {
			opts = append(opts, production)
		}
		st := storageWith(terms(1, 1, 2))
		_ = st.SetHardState(eraftpb.HardState{Term: 2, Commit: 1})
		rn := mkRaw(t, st, []uint64{1, 2, 3}, opts...)
		for data = data[1:]; len(data) >= 10; data = data[10:] {
			stepFuzzed(t, rn, st, data[:10])
		}
	})
}

func stepFuzzed(t *testing.T, rn *RawNode, st *MemoryStorage, b []byte) {
	before := rn.Status()
	m := eraftpb.Message{
		MsgType: eraftpb.MessageType(b[0] % 20), From: uint64(b[1] % 5), To: 1, Term: fuzzed(b[2]),
		Index: fuzzed(b[3]), LogTerm: fuzzed(b[4]), Commit: fuzzed(b[5]), RejectHint: fuzzed(b[6]),
		Reject: b[8]&1 == 1, Force: b[8]&2 == 2, Round: fuzzed(b[9]),
	}
	for i := range uint64(b[7] % 4) {
		e := &eraftpb.Entry{
			Index: m.Index + 1 + i, Term: uint64(b[4]), EntryType: eraftpb.EntryType(b[8] >> 7),
		}
		if b[8]&4 == 4 {
			e.Index++
		}
		m.Entries = append(m.Entries, e)
	}
	if b[8]&8 == 8 {
		m.Snapshot = &eraftpb.Snapshot{}
		if b[8]&16 == 16 {
			m.Snapshot.Metadata = &eraftpb.SnapshotMetadata{Index: uint64(b[5]), Term: uint64(b[6])}
			if b[8]&32 == 32 {
				m.Snapshot.Metadata.ConfState = &eraftpb.ConfState{Nodes: []uint64{1, uint64(b[6])}}
			}
		}
	}
	switch b[9] % 16 {
	case 1:
		rn.Tick()
	case 2:
		_ = rn.Campaign()
	case 3:
		_ = rn.Propose(b)
	case 4:
		_ = rn.ReadIndex(binary.LittleEndian.Uint64(b))
	case 5:
		rn.TransferLeader(uint64(b[1]))
	case 6:
		rn.ReportUnreachable(uint64(b[1]))
		rn.ReportSnapshot(uint64(b[1]), m.Reject)
	case 7:
		_ = rn.ProposeConfChange(eraftpb.ConfChange{
			NodeId: uint64(b[1]), ChangeType: eraftpb.ConfChangeType(b[2] % 4),
		})
	default:
		_ = rn.Step(m)
	}
	if b[8]&64 == 64 {
		drainFuzzed(rn, st)
	}
	after := rn.Status()
	if after.Term < before.Term || after.Commit < before.Commit || after.Applied < before.Applied {
		t.Fatalf("went back: %+v, was %+v, after %v", after, before, &m)
	}
	if after.Commit > after.LastIndex || after.Applied > after.Commit {
		t.Fatalf("commit beyond the log: %+v after %v", after, &m)
	}
}

// fuzzed makes most numbers small, so that they meet, and some of them extreme.
func fuzzed(b byte) uint64 {
	switch {
	case b < 200:
		return uint64(b % 16)
	case b < 230:
		return uint64(b)
	}
	return ^uint64(0) - uint64(b-230)
}

func drainFuzzed(rn *RawNode, st *MemoryStorage) {
	for i := 0; rn.HasReady() && i < 50; i++ {
		rd := rn.Ready()
		if !IsEmptySnap(&rd.Snapshot) {
			_ = st.ApplySnapshot(rd.Snapshot)
		}
		_ = st.Append(rd.Entries)
		for _, e := range rd.CommittedEntries {
			var cc eraftpb.ConfChange
			if e.EntryType == eraftpb.EntryType_EntryConfChange && cc.Unmarshal(e.Data) == nil {
				rn.ApplyConfChange(cc)
			}
		}
		rn.Advance(rd)
		if n := len(rd.CommittedEntries); n > 0 && rn.Raft.RaftLog.asyncApply {
			rn.AppliedTo(rd.CommittedEntries[n-1].Index)
		}
	}
}
