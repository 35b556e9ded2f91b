package rafttest

import (
	"fmt"
	"strings"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/raft"
)

// describeMessage prints a message on one line; what is zero is left out.
func describeMessage(m *eraftpb.Message) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d->%d %v", m.From, m.To, m.MsgType)
	field := func(name string, v uint64) {
		if v != 0 {
			fmt.Fprintf(&b, " %s=%d", name, v)
		}
	}
	field("term", m.Term)
	if m.Index != 0 || m.LogTerm != 0 {
		fmt.Fprintf(&b, " log=%d/%d", m.Index, m.LogTerm)
	}
	field("commit", m.Commit)
	field("round", m.Round)
	if m.Reject {
		fmt.Fprintf(&b, " reject hint=%d", m.RejectHint)
	}
	if m.Force {
		b.WriteString(" force")
	}
	if len(m.Entries) > 0 {
		ents := make([]eraftpb.Entry, len(m.Entries))
		for i, e := range m.Entries {
			ents[i] = *e
		}
		fmt.Fprintf(&b, " entries=[%s]", describeEntries(ents))
	}
	if m.Snapshot != nil {
		fmt.Fprintf(&b, " snapshot=%s", describeSnapshot(m.Snapshot))
	}
	return b.String()
}

// describeEntries prints entries as index/term and payload.
func describeEntries(ents []eraftpb.Entry) string {
	var parts []string
	for i := range ents {
		e := &ents[i]
		s := fmt.Sprintf("%d/%d", e.Index, e.Term)
		switch {
		case e.EntryType == eraftpb.EntryType_EntryConfChange:
			var cc eraftpb.ConfChange
			if err := cc.Unmarshal(e.Data); err != nil {
				s += " bad conf change"
			} else {
				s += fmt.Sprintf(" %v(%d)", cc.ChangeType, cc.NodeId)
			}
		case len(e.Data) > 12:
			s += fmt.Sprintf(" %d bytes", len(e.Data))
		case len(e.Data) > 0:
			s += fmt.Sprintf(" %q", e.Data)
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ", ")
}

func describeSnapshot(s *eraftpb.Snapshot) string {
	return fmt.Sprintf("%d/%d %s", s.Metadata.Index, s.Metadata.Term,
		describeConf(s.Metadata.ConfState))
}

func describeConf(cs *eraftpb.ConfState) string {
	s := fmt.Sprintf("voters=%v", cs.Nodes)
	if len(cs.Learners) > 0 {
		s += fmt.Sprintf(" learners=%v", cs.Learners)
	}
	return s
}

// describeReady prints what is in a Ready, a line each.
func describeReady(rd *raft.Ready) string {
	var b strings.Builder
	if rd.SoftState != nil {
		fmt.Fprintf(&b, "  %v, leader %d\n", rd.SoftState.RaftState, rd.SoftState.Lead)
	}
	if hs := rd.HardState; !raft.IsEmptyHardState(hs) {
		fmt.Fprintf(&b, "  hard state term=%d vote=%d commit=%d\n", hs.Term, hs.Vote, hs.Commit)
	}
	if !raft.IsEmptySnap(&rd.Snapshot) {
		fmt.Fprintf(&b, "  snapshot %s\n", describeSnapshot(&rd.Snapshot))
	}
	if len(rd.Entries) > 0 {
		fmt.Fprintf(&b, "  persist [%s]\n", describeEntries(rd.Entries))
	}
	if len(rd.CommittedEntries) > 0 {
		fmt.Fprintf(&b, "  apply [%s]\n", describeEntries(rd.CommittedEntries))
	}
	for _, rs := range rd.ReadStates {
		if rs.Aborted {
			fmt.Fprintf(&b, "  read %d aborted\n", rs.ID)
		} else {
			fmt.Fprintf(&b, "  read %d at %d\n", rs.ID, rs.Index)
		}
	}
	early, late := rd.SplitMessages()
	for i := range early {
		fmt.Fprintf(&b, "  early %s\n", describeMessage(&early[i]))
	}
	for i := range late {
		fmt.Fprintf(&b, "  %s\n", describeMessage(&late[i]))
	}
	return b.String()
}
