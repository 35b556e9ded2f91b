package raft

import "github.com/tinykv/tinykv/proto/pkg/eraftpb"

// setMembers replaces the members, by those of a snapshot or of the storage.
func (r *Raft) setMembers(cs eraftpb.ConfState) {
	r.Prs = make(map[uint64]*Progress, len(cs.Nodes)+len(cs.Learners))
	for _, id := range cs.Nodes {
		r.putMember(id, false)
	}
	for _, id := range cs.Learners {
		if r.Prs[id] == nil {
			r.putMember(id, true)
		}
	}
}

// putMember starts with nothing known. A new member counts as active until the next check-quorum,
// or adding it could depose the leader. A member that comes back starts over too: what it once
// acknowledged may be gone (trap B-4).
func (r *Raft) putMember(id uint64, learner bool) {
	if id == None {
		return
	}
	pr := &Progress{Next: r.RaftLog.LastIndex() + 1, IsLearner: learner, RecentActive: true}
	if id == r.id {
		pr.Match = r.selfMatch()
	}
	r.Prs[id] = pr
}

// addNode adds a voter, or makes one of a learner. Adding a voter again changes nothing (trap C7).
func (r *Raft) addNode(id uint64) {
	if pr := r.Prs[id]; pr != nil {
		pr.IsLearner = false
		return
	}
	r.putMember(id, false)
}

// addLearner adds a member without a vote. A voter stays one: to lose a vote it has to be removed.
func (r *Raft) addLearner(id uint64) {
	if r.Prs[id] == nil {
		r.putMember(id, true)
	}
}

// removeNode removes a member. Fewer votes may be needed now, so what waited is looked at again
// (trap C5). A leader that removed itself leads on without a vote until its owner stops it: the
// others may not know yet that it is gone.
func (r *Raft) removeNode(id uint64) {
	if r.Prs[id] == nil {
		return
	}
	delete(r.Prs, id)
	if r.State != StateLeader {
		return
	}
	if r.leadTransferee == id {
		r.abortTransfer()
	}
	if r.maybeCommit() {
		r.broadcastAppend()
	}
	r.advanceReads()
}

// applyConfChange carries out a committed conf change. It is total: whatever is in the log is the
// same on all nodes, and a node that stopped over it would not start again (trap C8).
func (r *Raft) applyConfChange(cc eraftpb.ConfChange) {
	if cc.NodeId == None {
		return
	}
	switch cc.ChangeType {
	case eraftpb.ConfChangeType_AddNode:
		r.addNode(cc.NodeId)
	case eraftpb.ConfChangeType_AddLearnerNode:
		r.addLearner(cc.NodeId)
	case eraftpb.ConfChangeType_RemoveNode:
		r.removeNode(cc.NodeId)
	}
}

// confState returns the members in order.
func (r *Raft) confState() *eraftpb.ConfState {
	cs := &eraftpb.ConfState{}
	for _, id := range r.sortedIDs() {
		if r.Prs[id].IsLearner {
			cs.Learners = append(cs.Learners, id)
		} else {
			cs.Nodes = append(cs.Nodes, id)
		}
	}
	return cs
}
