package raft

import (
	"slices"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// proposeMessage is propose for a message.
func (r *Raft) proposeMessage(ents []*eraftpb.Entry) error {
	own := make([]eraftpb.Entry, 0, len(ents))
	for _, e := range ents {
		if e != nil {
			own = append(own, eraftpb.Entry{EntryType: e.EntryType, Data: e.Data})
		}
	}
	return r.propose(own)
}

// propose appends a client's entries to the leader's log. They are copied, their data is not.
func (r *Raft) propose(ents []eraftpb.Entry) error {
	if len(ents) == 0 || r.leadTransferee != None || r.Prs[r.id] == nil {
		return ErrProposalDropped
	}
	var confChange, size uint64
	for i := range ents {
		size += uint64(len(ents[i].Data))
		if ents[i].EntryType != eraftpb.EntryType_EntryConfChange {
			continue
		}
		// One conf change at a time, and the next only when it is applied here: then the majorities
		// of the old and the new group overlap (thesis 4.1, traps C1, C2). A refused one is not
		// turned into something else: the caller would take it for done (trap C6).
		if confChange != 0 || r.PendingConfIndex > r.RaftLog.applied {
			return ErrProposalDropped
		}
		confChange = r.RaftLog.LastIndex() + 1 + uint64(i)
	}
	if !r.uncommitted.take(r.RaftLog.LastIndex()+uint64(len(ents)), size) {
		return ErrUncommittedFull
	}
	if confChange != 0 {
		r.PendingConfIndex = confChange
	}
	r.appendEntries(ents)
	if r.batchAppends {
		r.appendsDue = true
		return nil
	}
	r.broadcastAppend()
	return nil
}

// flushAppends sends what was proposed since the last Ready.
func (r *Raft) flushAppends() {
	if r.appendsDue && r.State == StateLeader {
		r.broadcastAppend()
	}
	r.appendsDue = false
}

// appendEntries gives entries their place in the log. A group of one may commit at once.
func (r *Raft) appendEntries(ents []eraftpb.Entry) {
	last := r.RaftLog.LastIndex()
	for i := range ents {
		ents[i].Term = r.Term
		ents[i].Index = last + 1 + uint64(i)
	}
	r.RaftLog.append(ents...)
	r.ackSelf()
	r.maybeCommit()
}

// ackSelf counts the leader's own log.
func (r *Raft) ackSelf() {
	if pr := r.Prs[r.id]; pr != nil {
		pr.maybeUpdate(r.selfMatch())
		pr.Next = r.RaftLog.LastIndex() + 1
	}
}

// persisted counts more of the own log as on disk.
func (r *Raft) persisted() {
	if r.State != StateLeader || !r.ackOnPersist {
		return
	}
	r.ackSelf()
	r.commitAndTell()
}

// commitAndTell moves the commit index if it can, and tells the others: at once, or with LazyCommit
// when something is sent anyway (tickLeader sees to the rest).
func (r *Raft) commitAndTell() {
	known := r.RaftLog.committed
	if r.maybeCommit() && (!r.lazyCommit || r.commitsConfChange(known)) {
		r.broadcastAppend()
	}
}

// maybeCommit commits what a majority of the voters has, and says whether that was news. Only an
// entry of the leader's own term is counted; those before it follow (thesis 3.6.2, figure 3.7: a
// majority of an old term's entry can still be overwritten).
func (r *Raft) maybeCommit() bool {
	r.scratch = r.scratch[:0]
	for _, pr := range r.Prs {
		if !pr.IsLearner {
			r.scratch = append(r.scratch, pr.Match)
		}
	}
	index := quorumValue(r.scratch)
	if index <= r.RaftLog.committed {
		return false
	}
	if !r.RaftLog.matchTerm(index, r.Term) {
		return false
	}
	if !r.RaftLog.commitTo(index) {
		return false
	}
	r.uncommitted.freeTo(r.RaftLog.committed)
	r.releaseReads()
	return true
}

// broadcastAppend sends to everyone what is new: entries, or the commit index alone, so that
// followers apply without waiting for the next write (trap B-7).
func (r *Raft) broadcastAppend() {
	for _, id := range r.sortedIDs() {
		if id != r.id {
			r.sendAppend(id)
		}
	}
}

// sendAppend sends the next append or snapshot to a member, an empty append if there is nothing
// else. It says whether something was sent.
func (r *Raft) sendAppend(to uint64) bool { return r.maybeSendAppend(to, true) }

func (r *Raft) maybeSendAppend(to uint64, sendIfEmpty bool) bool {
	pr := r.Prs[to]
	if pr == nil || pr.isPaused(r.maxInflightMsgs, r.maxInflightBytes) {
		return false
	}
	prev := max(pr.Next, 1) - 1
	prevTerm, err := r.RaftLog.Term(prev)
	if err != nil {
		return r.sendSnapshot(to, pr)
	}
	ents, err := r.RaftLog.slice(prev+1, r.RaftLog.LastIndex()+1, r.maxSizePerMsg)
	if isCompacted(err) {
		return r.sendSnapshot(to, pr)
	}
	if err != nil {
		// The storage cannot be read now. The next answer or heartbeat tries again.
		r.errorf("%d cannot read entries from %d for %d: %v", r.id, prev+1, to, err)
		return false
	}
	if len(ents) == 0 && !sendIfEmpty {
		return false
	}
	var bytes uint64
	m := eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgAppend, To: to,
		Index: prev, LogTerm: prevTerm, Commit: r.RaftLog.committed,
	}
	if len(ents) > 0 {
		m.Entries = r.pointersTo(ents)
		for i := range ents {
			bytes += entrySize(&ents[i])
		}
	}
	r.send(m)
	pr.toldCommit = m.Commit
	pr.sent(prev+uint64(len(ents)), bytes, len(ents) > 0)
	return true
}

// pointersTo returns ents as a message takes them. The slots behind ents are never written again,
// so messages may look at them, and those of one broadcast share one slice, which nobody writes to
// either.
func (r *Raft) pointersTo(ents []eraftpb.Entry) []*eraftpb.Entry {
	if len(r.shared) == len(ents) && r.shared[0] == &ents[0] {
		return r.shared
	}
	r.shared = make([]*eraftpb.Entry, len(ents))
	for i := range ents {
		r.shared[i] = &ents[i]
	}
	return r.shared
}

// sendSnapshot sends a snapshot to a follower that needs entries which are truncated away.
func (r *Raft) sendSnapshot(to uint64, pr *Progress) bool {
	if !pr.answered {
		// Nobody there yet, perhaps. Heartbeats go on; the answer to one comes back here.
		return false
	}
	snap, err := r.RaftLog.snapshot()
	if err == nil && !namesMember(&snap, to) {
		// Of a time before it became a member: it would not take it (trap D3).
		err = ErrSnapshotTemporarilyUnavailable
	}
	if err != nil {
		// Whatever it is, it may pass (trap D7): the heartbeat response tries again.
		r.infof("%d has no snapshot for %d: %v", r.id, to, err)
		return false
	}
	pr.becomeSnapshot(snap.Metadata.Index)
	r.send(eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgSnapshot, To: to, Snapshot: cloneSnapshot(&snap),
	})
	return true
}

// handleAppendEntries is the follower's side of replication (thesis 3.5).
func (r *Raft) handleAppendEntries(m eraftpb.Message) {
	answer := eraftpb.Message{MsgType: eraftpb.MessageType_MsgAppendResponse, To: m.From}
	log := r.RaftLog
	last := m.Index + uint64(len(m.Entries))
	switch {
	case m.Term != 0 && m.Term < r.Term:
		answer.Index, answer.Reject, answer.RejectHint = m.Index, true, log.committed
	case !contiguous(m):
		r.errorf("%d got an append at %d with a gap from %d", r.id, m.Index, m.From)
		return
	case m.Index < log.committed:
		// Old. What is committed is ours and the leader's alike: the answer brings it up to date.
		answer.Index = log.committed
	case log.matchTerm(m.Index, m.LogTerm):
		// Only from the first entry that differs on: a late message may say less than we
		// acknowledged since, and cutting that off would break the promise (trap B-5).
		if at := log.findConflict(m.Entries); at < len(m.Entries) {
			log.truncateAndAppend(m.Entries[at:])
		}
		log.commitTo(min(m.Commit, last))
		answer.Index = last
	default:
		// Where could the logs meet? Not after the last index of ours whose term the leader's entry
		// at that place can have. All that is committed meets.
		hint := log.findConflictByTerm(m.Index, m.LogTerm, log.committed)
		answer.Index, answer.Reject, answer.RejectHint = m.Index, true, hint
		answer.LogTerm, _ = log.Term(hint)
	}
	r.send(answer)
}

// contiguous says whether the entries follow the message's index, one by one, without overflow.
func contiguous(m eraftpb.Message) bool {
	if m.Index+uint64(len(m.Entries)) < m.Index {
		return false
	}
	for i, e := range m.Entries {
		if e == nil || e.Index != m.Index+1+uint64(i) {
			return false
		}
	}
	return true
}

// handleAppendResponse is the leader's view of it.
func (r *Raft) handleAppendResponse(m eraftpb.Message) {
	pr := r.Prs[m.From]
	if pr == nil || m.From == r.id {
		return
	}
	pr.RecentActive, pr.answered = true, true
	if m.Reject {
		// The follower's hint, and our own log's: both skip terms the other cannot have. Nothing
		// below Match has to be looked for.
		hint := m.RejectHint
		if m.LogTerm > 0 && hint > pr.Match {
			hint = r.RaftLog.findConflictByTerm(hint, m.LogTerm, min(pr.Match, hint))
		}
		if pr.maybeDecrTo(m.Index, hint) {
			if pr.State == ProgressReplicate {
				pr.becomeProbe()
			}
			r.sendAppend(m.From)
		}
		return
	}
	if m.Index > r.RaftLog.LastIndex() {
		// It acknowledges what we never sent: no member of this group's history would.
		r.errorf("%d got an acknowledgement of %d from %d, last is %d",
			r.id, m.Index, m.From, r.RaftLog.LastIndex())
		return
	}
	news, was := pr.maybeUpdate(m.Index), pr.State
	switch pr.State {
	case ProgressProbe:
		if news || pr.Match == m.Index {
			pr.becomeReplicate()
		}
	case ProgressSnapshot:
		// Arrived, or the log reaches it by now, however that came about.
		if pr.Match >= pr.PendingSnapshot || news && pr.Match+1 >= r.RaftLog.firstIndex() {
			pr.PendingSnapshot = 0
			pr.becomeProbe()
			pr.becomeReplicate()
		}
	case ProgressReplicate:
		pr.inflights.freeTo(m.Index)
	}
	r.commitAndTell()
	if news || pr.State != was {
		// An answer that says nothing new lets out nothing new, or every duplicate would breed.
		r.sendMore(m.From)
	}
	if !r.lazyCommit && pr.toldCommit < min(pr.Match, r.RaftLog.committed) {
		// It could not go out when the commit index moved (trap B-7).
		r.sendAppend(m.From)
	}
	if news {
		r.maybeFinishTransfer(m.From)
	}
}

// sendMore follows an answer with up to two appends: the pipeline doubles with each round trip, and
// is not filled in one go with what a single loss would make useless.
func (r *Raft) sendMore(to uint64) {
	pr := r.Prs[to]
	for n := 0; n < 2 && pr.Next <= r.RaftLog.LastIndex(); n++ {
		if !r.maybeSendAppend(to, false) || pr.State != ProgressReplicate {
			return
		}
	}
}

// broadcastHeartbeat starts the next heartbeat round.
func (r *Raft) broadcastHeartbeat() {
	r.heartbeatElapsed = 0
	r.nextRound()
	for _, id := range r.sortedIDs() {
		if id != r.id {
			r.sendHeartbeat(id)
		}
	}
	r.advanceReads()
}

// sendHeartbeat tells a follower that the leader lives, and how much of what the follower surely
// has is committed: not more, its log may go on differently from ours (trap B-2).
func (r *Raft) sendHeartbeat(to uint64) {
	m := eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgHeartbeat, To: to,
		Commit: min(r.Prs[to].Match, r.RaftLog.committed),
	}
	if match := r.Prs[to].Match; match > r.RaftLog.committed && to != r.id {
		m.Index = match
	}
	if r.numberRounds {
		m.Round = r.reads.round
	}
	r.send(m)
}

// handleHeartbeat is the follower's side. The leader names what this member has acknowledged to it
// in this term. A log that ends before that has lost what it promised: an old copy of its disk was
// put in its place.
func (r *Raft) handleHeartbeat(m eraftpb.Message) {
	if promised := max(m.Commit, m.Index); promised > r.RaftLog.LastIndex() {
		r.lost = max(r.lost, promised)
	}
	r.RaftLog.commitTo(m.Commit)
	if m.Term != r.heardTerm || m.Round > r.heardRound {
		r.heardTerm, r.heardRound = m.Term, m.Round
	}
	r.send(eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgHeartbeatResponse, To: m.From, Round: m.Round,
	})
}

// handleHeartbeatResponse restarts what got lost: a follower that is behind and speaks gets an
// append (trap B-8).
func (r *Raft) handleHeartbeatResponse(m eraftpb.Message) {
	pr := r.Prs[m.From]
	if pr == nil || m.From == r.id {
		return
	}
	pr.RecentActive, pr.answered = true, true
	pr.paused = false
	if pr.State == ProgressReplicate && r.maxInflightMsgs > 0 &&
		pr.inflights.full(r.maxInflightMsgs, 0) ||
		pr.State == ProgressReplicate && pr.inflights.full(0, r.maxInflightBytes) {
		// All answers may be lost: without room for one more append nobody would find out.
		pr.inflights.freeFirst()
	}
	switch {
	case pr.State == ProgressSnapshot:
		r.askAboutSnapshot(m.From, pr)
	case pr.Match < r.RaftLog.LastIndex() || pr.State == ProgressProbe:
		r.sendAppend(m.From)
	default:
		// The request to campaign got lost, or was refused for what passes (trap C15).
		r.maybeFinishTransfer(m.From)
	}
	if m.Round > pr.ackedRound && m.Round <= r.reads.round {
		pr.ackedRound = m.Round
		r.advanceReads()
	}
}

// askAboutSnapshot sends an append that only serves to be answered: a follower that has the
// snapshot says so by answering with its commit index, one that has not rejects, which changes
// nothing.
func (r *Raft) askAboutSnapshot(to uint64, pr *Progress) {
	term, _ := r.RaftLog.Term(pr.Match)
	r.send(eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgAppend, To: to, Index: pr.Match, LogTerm: term,
		Commit: min(pr.Match, r.RaftLog.committed),
	})
}

// handleSnapshot installs a snapshot, or says why it is not needed.
func (r *Raft) handleSnapshot(m eraftpb.Message) {
	if m.Snapshot == nil || m.Snapshot.Metadata == nil || m.Snapshot.Metadata.ConfState == nil {
		return
	}
	r.restore(m.Snapshot)
	r.send(eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgAppendResponse, To: m.From, Index: r.RaftLog.committed,
	})
}

// restore replaces the log by a snapshot, unless the log has what the snapshot has.
func (r *Raft) restore(snap *eraftpb.Snapshot) bool {
	meta := snap.Metadata
	if meta.Index <= r.RaftLog.committed {
		// Old: installing it would take back what is committed (trap D2).
		return false
	}
	if r.RaftLog.matchTerm(meta.Index, meta.Term) {
		r.RaftLog.commitTo(meta.Index)
		return false
	}
	if !namesMember(snap, r.id) {
		// Of a time when we were no member: we would not know that we are none (trap D3).
		r.errorf("%d got a snapshot at %d without itself", r.id, meta.Index)
		return false
	}
	r.RaftLog.restore(cloneSnapshot(snap))
	r.setMembers(*meta.ConfState)
	r.infof("%d installs a snapshot at %d, term %d", r.id, meta.Index, meta.Term)
	return true
}

// handleUnreachable: what was sent ahead is probably lost; probing costs less than more losses.
func (r *Raft) handleUnreachable(id uint64) {
	if pr := r.Prs[id]; pr != nil && pr.State == ProgressReplicate && id != r.id {
		pr.becomeProbe()
	}
}

// handleSnapStatus ends ProgressSnapshot, well or badly. Probing waits for a sign of life, so that
// an installation in progress is not answered with entries it cannot take yet.
func (r *Raft) handleSnapStatus(id uint64, failed bool) {
	pr := r.Prs[id]
	if pr == nil || pr.State != ProgressSnapshot {
		return
	}
	if failed {
		pr.PendingSnapshot = 0
	}
	pr.becomeProbe()
	pr.paused = true
}

func cloneSnapshot(s *eraftpb.Snapshot) *eraftpb.Snapshot {
	meta := *s.Metadata
	if meta.ConfState != nil {
		cs := cloneConfState(*meta.ConfState)
		meta.ConfState = &cs
	}
	return &eraftpb.Snapshot{Data: s.Data, Metadata: &meta}
}

// namesMember says whether a snapshot's members include id.
func namesMember(s *eraftpb.Snapshot, id uint64) bool {
	cs := s.Metadata.ConfState
	return cs != nil && (slices.Contains(cs.Nodes, id) || slices.Contains(cs.Learners, id))
}

// uncommitted counts the payload that waits for a quorum, oldest first. Owner: the Raft.
type uncommitted struct {
	limit, bytes uint64
	marks        []inflight
}

// take notes size bytes that end at index, if there is room. One proposal always has room, and
// empty ones always pass: a leader's own entry must.
func (u *uncommitted) take(index, size uint64) bool {
	if u.limit == 0 || size == 0 {
		return true
	}
	if u.bytes > 0 && u.bytes+size > u.limit {
		return false
	}
	u.bytes += size
	u.marks = append(u.marks, inflight{index, size})
	return true
}

func (u *uncommitted) freeTo(index uint64) {
	n := 0
	for n < len(u.marks) && u.marks[n].index <= index {
		u.bytes -= u.marks[n].bytes
		n++
	}
	if n > 0 {
		// Moved to the front, so that the room is used again: there are few.
		u.marks = append(u.marks[:0], u.marks[n:]...)
	}
}

func (u *uncommitted) reset() { u.bytes, u.marks = 0, nil }
