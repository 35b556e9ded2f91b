package raft

// Status is a copy of a node's state, for people and metrics.
type Status struct {
	ID, Term, Vote        uint64
	Commit, Applied       uint64
	FirstIndex, LastIndex uint64
	Lead                  uint64
	State                 StateType
	LeadTransferee        uint64
	PendingConfIndex      uint64
	// Progress is what a leader knows of the members; at others it says only who they are.
	Progress map[uint64]Progress
}

// Status returns a copy of the state.
func (rn *RawNode) Status() Status {
	r := rn.Raft
	st := Status{
		ID: r.id, Term: r.Term, Vote: r.Vote,
		Commit: r.RaftLog.committed, Applied: r.RaftLog.applied,
		FirstIndex: r.RaftLog.firstIndex(), LastIndex: r.RaftLog.LastIndex(),
		Lead: r.Lead, State: r.State,
		LeadTransferee: r.leadTransferee, PendingConfIndex: r.PendingConfIndex,
		Progress: rn.GetProgress(),
	}
	return st
}

// GetProgress returns copies of what is known of the members.
func (rn *RawNode) GetProgress() map[uint64]Progress {
	prs := make(map[uint64]Progress, len(rn.Raft.Prs))
	for id, pr := range rn.Raft.Prs {
		prs[id] = pr.snapshotCopy()
	}
	return prs
}

// ProgressOf returns a copy of what is known of one member, false if it is none.
func (rn *RawNode) ProgressOf(id uint64) (Progress, bool) {
	pr := rn.Raft.Prs[id]
	if pr == nil {
		return Progress{}, false
	}
	return pr.snapshotCopy(), true
}

// VisitProgress calls f with a copy for each member, in the order of the IDs.
func (rn *RawNode) VisitProgress(f func(id uint64, pr Progress)) {
	for _, id := range rn.Raft.sortedIDs() {
		f(id, rn.Raft.Prs[id].snapshotCopy())
	}
}

// snapshotCopy is a copy that shares nothing: of the window only the sums are in it.
func (pr *Progress) snapshotCopy() Progress {
	c := *pr
	c.inflights = inflights{n: pr.inflights.n, bytes: pr.inflights.bytes}
	return c
}

// Lost is an index that this member has acknowledged although its log ends before it; 0 as long as
// there is none. A member that has lost entries must not vote, or what was committed with its help
// may be overwritten: the owner takes it out of the group.
func (rn *RawNode) Lost() uint64 { return rn.Raft.lost }

// Term returns the current term.
func (rn *RawNode) Term() uint64 { return rn.Raft.Term }

// Lead returns the leader as far as known.
func (rn *RawNode) Lead() uint64 { return rn.Raft.Lead }

// State returns the role.
func (rn *RawNode) State() StateType { return rn.Raft.State }

// Committed returns the commit index.
func (rn *RawNode) Committed() uint64 { return rn.Raft.RaftLog.committed }

// Applied returns the applied index.
func (rn *RawNode) Applied() uint64 { return rn.Raft.RaftLog.applied }

// LastIndex returns the index of the last entry.
func (rn *RawNode) LastIndex() uint64 { return rn.Raft.RaftLog.LastIndex() }

// LeadTransferee returns who the leadership is being handed to, None for nobody.
func (rn *RawNode) LeadTransferee() uint64 { return rn.Raft.leadTransferee }

// HasPendingConfChange says whether a conf change proposed now would be refused because of another
// one, which may be one in the log of an earlier leader.
func (rn *RawNode) HasPendingConfChange() bool {
	return rn.Raft.PendingConfIndex > rn.Raft.RaftLog.applied
}

// LogInMemory returns how many entries are held in memory, and their bytes.
func (rn *RawNode) LogInMemory() (entries int, bytes uint64) {
	return len(rn.Raft.RaftLog.entries), rn.Raft.RaftLog.memBytes
}
