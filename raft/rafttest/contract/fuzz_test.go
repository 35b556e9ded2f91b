package contract_test

import (
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/raft"
	"github.com/tinykv/tinykv/raft/rafttest/contract"
)

// FuzzContract feeds a node arbitrary messages and calls, in both settings, and handles its Readys
// as an owner does: whatever came in, what comes out keeps to the contract.
func FuzzContract(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 3, 2, 2, 3, 2, 0, 1, 1, 0, 0})
	f.Add([]byte{
		0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 2, 6, 2, 3, 0, 0, 0, 0, 0, 0, 0, 3, 1, 1, 0, 0, 0, 0, 0, 0, 3,
	})
	f.Add([]byte{3, 7, 2, 4, 9, 2, 9, 3, 0, 24, 8, 3, 2, 4, 9, 2, 10, 0, 1, 0, 8})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		st := raft.NewMemoryStorage()
		cs := &eraftpb.ConfState{Nodes: []uint64{1, 2, 3}}
		if err := st.ApplySnapshot(eraftpb.Snapshot{
			Metadata: &eraftpb.SnapshotMetadata{Index: 2, Term: 1, ConfState: cs},
		}); err != nil {
			t.Fatal(err)
		}
		if err := st.SetHardState(eraftpb.HardState{Term: 1, Commit: 2}); err != nil {
			t.Fatal(err)
		}
		production := data[0]&1 == 1
		rn, err := raft.NewRawNode(&raft.Config{
			ID: 1, ElectionTick: 5, HeartbeatTick: 1, Storage: st, Applied: 2,
			PreVote: data[0]&2 == 2, CheckQuorum: data[0]&2 == 2,
			AckOnPersist: production, AsyncApply: production, UnstableOnly: production,
		})
		if err != nil {
			t.Fatal(err)
		}
		o := &owner{
			rn: rn, storage: st, watch: contract.New(contract.ViewOf(1, rn), 2, st),
			async: production,
		}
		for data = data[1:]; len(data) >= 10; data = data[10:] {
			o.do(data[:10])
			if err := o.handle(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// owner is a node with what its owner does around it.
type owner struct {
	rn      *raft.RawNode
	storage *raft.MemoryStorage
	watch   *contract.Checker
	async   bool
}

// do is one input. Two are left out, as they contradict what was promised to the node, and no check
// could save it: appends that cut off what is committed, and entries whose terms fall.
func (o *owner) do(b []byte) {
	switch b[9] % 8 {
	case 1:
		o.rn.Tick()
	case 2:
		_ = o.rn.Campaign()
	case 3:
		_ = o.rn.Propose(append([]byte(nil), b...))
	case 4:
		_ = o.rn.ReadIndex(uint64(b[1]))
	case 5:
		o.rn.TransferLeader(uint64(b[1] % 5))
	case 6:
		_ = o.rn.ProposeConfChange(eraftpb.ConfChange{
			NodeId: uint64(b[1] % 6), ChangeType: eraftpb.ConfChangeType(b[2] % 3),
		})
	case 7:
		o.rn.ReportSnapshot(uint64(b[1]%5), b[2]&1 == 1)
	default:
		if m, ok := o.message(b); ok {
			_ = o.rn.Step(m)
		}
	}
}

func (o *owner) message(b []byte) (eraftpb.Message, bool) {
	m := eraftpb.Message{
		MsgType: eraftpb.MessageType(b[0] % 20), From: uint64(b[1] % 5), To: 1,
		Term:  uint64(b[2] % 16),
		Index: uint64(b[3] % 16), LogTerm: uint64(b[4] % 16), Commit: uint64(b[5] % 16),
		RejectHint: uint64(b[6] % 16), Reject: b[8]&1 == 1, Force: b[8]&2 == 2, Round: uint64(b[6]),
	}
	for i := range uint64(b[7] % 4) {
		m.Entries = append(m.Entries,
			&eraftpb.Entry{Index: m.Index + 1 + i, Term: max(m.LogTerm, min(m.Term, m.LogTerm+i))})
	}
	if b[8]&8 == 8 {
		m.Snapshot = &eraftpb.Snapshot{Metadata: &eraftpb.SnapshotMetadata{
			Index: m.Index + 1, Term: min(m.Term, m.LogTerm),
			ConfState: &eraftpb.ConfState{Nodes: []uint64{1, 2, uint64(3 + b[6]%3)}},
		}}
	}
	committed := m.MsgType == eraftpb.MessageType_MsgAppend && m.Index < o.rn.Committed()
	return m, m.MsgType != eraftpb.MessageType_MsgPropose && !committed && m.LogTerm <= m.Term
}

// handle handles Readys until there are none.
func (o *owner) handle() error {
	for o.rn.HasReady() {
		rd := o.rn.Ready()
		if err := o.watch.Ready(contract.ViewOf(1, o.rn), &rd); err != nil {
			return err
		}
		if !raft.IsEmptySnap(&rd.Snapshot) {
			if err := o.storage.ApplySnapshot(rd.Snapshot); err != nil {
				return err
			}
		}
		if err := o.storage.Append(rd.Entries); err != nil {
			return err
		}
		if !raft.IsEmptyHardState(rd.HardState) {
			if err := o.storage.SetHardState(rd.HardState); err != nil {
				return err
			}
		}
		if err := o.watch.Advance(&rd); err != nil {
			return err
		}
		for i := range rd.CommittedEntries {
			var cc eraftpb.ConfChange
			if e := &rd.CommittedEntries[i]; e.EntryType == eraftpb.EntryType_EntryConfChange &&
				cc.Unmarshal(e.Data) == nil {
				o.rn.ApplyConfChange(cc)
			}
		}
		o.rn.Advance(rd)
		if n := len(rd.CommittedEntries); n > 0 && o.async {
			o.rn.AppliedTo(rd.CommittedEntries[n-1].Index)
		}
	}
	return nil
}
