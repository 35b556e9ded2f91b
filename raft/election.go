package raft

import "github.com/tinykv/tinykv/proto/pkg/eraftpb"

// promotable says whether this node may become leader: it has a vote, and its log is what it should
// be rather than about to be replaced by a snapshot (traps A9, C16).
func (r *Raft) promotable() bool {
	return r.isVoter(r.id) && r.RaftLog.pendingSnapshot == nil
}

// guardsLease says whether this node has to refuse votes because a leader may rest a lease on it.
// It does not matter who that leader was or which term it is now: the promise was made to the
// clock. A leader counts as one that is in contact until check-quorum deposes it.
func (r *Raft) guardsLease() bool {
	if r.graceTicks > 0 {
		return true
	}
	if !r.checkQuorum {
		return false
	}
	return r.State == StateLeader || r.contactElapsed < r.electionTimeout
}

// mayCampaign says whether an election may be started now.
func (r *Raft) mayCampaign() bool {
	if r.State == StateLeader || !r.promotable() || r.Term+1 == lastTerm {
		return false
	}
	// With a committed conf change unapplied this node counts the majority of a group that is
	// history, and another one may count the new group's: two leaders in one term (trap A10).
	if r.RaftLog.hasUnappliedConfChange() {
		r.infof("%d does not campaign: a conf change is unapplied", r.id)
		return false
	}
	return true
}

// hup starts an election, unless this node has contact with a leader: its own vote is refused like
// any other's. A group of one has nobody to hear.
func (r *Raft) hup() {
	if !r.mayCampaign() || r.guardsLease() && r.voterCount() > 1 {
		return
	}
	if r.preVote {
		r.campaignPreVote()
		return
	}
	r.campaign(false, 0)
}

// handleTimeoutNow starts the election that a leader asked for when it handed over. It needs no
// pre-vote, the leader knows that it can be won, and must not be refused by those who hear that
// leader (trap A8).
func (r *Raft) handleTimeoutNow(round uint64) {
	if r.mayCampaign() && (round == 0 || r.heardTerm != r.Term || r.heardRound <= round) {
		r.campaign(true, round)
	}
}

// isForced says whether a vote request may be granted by a node in contact with a leader: it comes
// from a transfer, and no heartbeat was heard that the leader sent after giving the transfer up.
func (r *Raft) isForced(m *eraftpb.Message) bool {
	term, round := r.heardTerm, r.heardRound
	if r.State == StateLeader {
		term, round = r.Term, r.reads.round
	}
	return m.Force && (m.Round == 0 || term+1 != m.Term || round <= m.Round)
}

func (r *Raft) campaignPreVote() {
	r.becomePreCandidate()
	if r.poll(r.id, true) == voteWon {
		r.campaign(false, 0)
		return
	}
	r.requestVotes(eraftpb.MessageType_MsgPreVote, r.Term+1, false, 0)
}

func (r *Raft) campaign(force bool, round uint64) {
	r.becomeCandidate()
	if r.poll(r.id, true) == voteWon {
		r.becomeLeader()
		r.broadcastAppend()
		return
	}
	r.requestVotes(eraftpb.MessageType_MsgRequestVote, r.Term, force, round)
}

func (r *Raft) requestVotes(t eraftpb.MessageType, term uint64, force bool, round uint64) {
	for _, id := range r.sortedIDs() {
		if id == r.id || !r.isVoter(id) {
			continue
		}
		r.send(eraftpb.Message{
			MsgType: t, To: id, Term: term, Force: force, Round: round,
			Index: r.RaftLog.LastIndex(), LogTerm: r.RaftLog.lastTerm(),
		})
	}
}

// handleVoteRequest answers MsgRequestVote and MsgPreVote, in every role. The term gate has made a
// MsgRequestVote's term ours; a MsgPreVote's term is the one asked about.
func (r *Raft) handleVoteRequest(m eraftpb.Message) {
	if m.MsgType == eraftpb.MessageType_MsgPreVote {
		// A pre-vote promises nothing and so writes nothing; but a node in contact with a leader
		// says no.
		grant := m.Term > r.Term && !r.guardsLease() && r.RaftLog.isUpToDate(m.Index, m.LogTerm)
		term := r.Term
		if grant {
			term = m.Term
		}
		r.answerVote(eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgPreVoteResponse, To: m.From, Term: term, Reject: !grant,
		})
		return
	}
	// One vote a term (thesis 3.4), given again to the same candidate: the first answer may be
	// lost.
	free := r.Vote == m.From ||
		r.Vote == None && r.Lead == None && (r.isForced(&m) || !r.guardsLease())
	grant := free && r.RaftLog.isUpToDate(m.Index, m.LogTerm)
	if grant {
		r.electionElapsed = 0
		r.Vote = m.From
	}
	r.answerVote(eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgRequestVoteResponse, To: m.From, Reject: !grant,
	})
}

// answerVote sends an answer. A refusal tells what is committed: that is a fact in any term and
// group, and a candidate that has that entry may take it for one. It is how the other one of two
// voters learns that this one was removed, when this one led, committed that, and crashed (trap
// C3).
func (r *Raft) answerVote(m eraftpb.Message) {
	if m.Reject && r.RaftLog.committed > 0 {
		if term, err := r.RaftLog.Term(r.RaftLog.committed); err == nil {
			m.Commit, m.LogTerm = r.RaftLog.committed, term
		}
	}
	r.send(m)
}

func (r *Raft) handleVoteResponse(m eraftpb.Message) {
	if m.Reject && m.Commit > r.RaftLog.committed && r.RaftLog.matchTerm(m.Commit, m.LogTerm) {
		r.RaftLog.commitTo(m.Commit)
	}
	if r.State == StatePreCandidate != (m.MsgType == eraftpb.MessageType_MsgPreVoteResponse) {
		return
	}
	if r.State == StatePreCandidate && !m.Reject && m.Term != 0 && m.Term != r.Term+1 {
		// Granted for another term than the one we would enter.
		return
	}
	switch r.poll(m.From, !m.Reject) {
	case voteWon:
		if r.State == StatePreCandidate {
			r.campaign(false, 0)
			return
		}
		r.becomeLeader()
		r.broadcastAppend()
	case voteLost:
		r.becomeFollower(r.Term, None)
	case votePending:
	}
}

type voteResult int

const (
	votePending voteResult = iota
	voteWon
	voteLost
)

// poll notes an answer and counts. Only the voters of now count: a member that was removed since
// has no say (trap A11). The first answer of a node stands.
func (r *Raft) poll(id uint64, granted bool) voteResult {
	if _, ok := r.votes[id]; !ok {
		r.votes[id] = granted
	}
	return r.tally()
}

func (r *Raft) tally() voteResult {
	voters, yes, no := 0, 0, 0
	for id, pr := range r.Prs {
		if pr.IsLearner {
			continue
		}
		voters++
		if granted, ok := r.votes[id]; !ok {
			continue
		} else if granted {
			yes++
		} else {
			no++
		}
	}
	switch {
	case voters == 0:
		return voteLost
	case yes >= quorum(voters):
		return voteWon
	case voters-no < quorum(voters):
		return voteLost
	}
	return votePending
}

// handleCheckQuorum deposes a leader that a quorum has not spoken to since the last check: it may
// have been replaced, and its clients wait for nothing (trap A7).
func (r *Raft) handleCheckQuorum() {
	active, voters := 0, 0
	for id, pr := range r.Prs {
		if !pr.IsLearner {
			voters++
			if id == r.id || pr.RecentActive {
				active++
			}
		}
		pr.RecentActive = id == r.id
	}
	if voters > 0 && active < quorum(voters) {
		r.infof("%d steps down: a quorum was silent for an election timeout", r.id)
		r.becomeFollower(r.Term, None)
	}
}
