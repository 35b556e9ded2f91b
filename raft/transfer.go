package raft

import "github.com/tinykv/tinykv/proto/pkg/eraftpb"

// handleTransferLeader hands the leadership over (thesis 3.10). m.From is who shall have it. A
// follower passes the request on to the leader it knows, and drops it where it knows none, or two
// of them would send it back and forth (trap C17).
func (r *Raft) handleTransferLeader(m eraftpb.Message) {
	if r.State != StateLeader {
		if r.State == StateFollower && r.Lead != None && r.Lead != r.id {
			// Without a term: the request is as good in the next one.
			r.msgs = append(r.msgs, eraftpb.Message{MsgType: m.MsgType, From: m.From, To: r.Lead})
		}
		return
	}
	target := m.From
	if target == r.id || !r.isVoter(target) || r.leadTransferee == target {
		// The same target again starts nothing over, the clock least of all (trap C13).
		return
	}
	sent := r.timeoutNowSent
	r.abortTransfer()
	r.leadTransferee, r.timeoutNowSent = target, sent
	if r.Prs[target].Match == r.RaftLog.LastIndex() {
		r.sendTimeoutNow(target)
		return
	}
	r.sendAppend(target)
}

// maybeFinishTransfer lets the target campaign once it has the whole log; before that it could not
// win.
func (r *Raft) maybeFinishTransfer(id uint64) {
	if r.leadTransferee != id {
		return
	}
	if pr := r.Prs[id]; pr != nil && pr.Match == r.RaftLog.LastIndex() {
		r.sendTimeoutNow(id)
	}
}

// sendTimeoutNow ends this leader's reign as far as it goes: proposals are refused, and a lease
// must not be used from here on, the target's votes are forced.
//
// The message may arrive long after the transfer was given up and a new lease was taken. So it
// names the heartbeat round it was sent in; the target passes it on with its vote requests, and who
// has heard a later round, on which a later lease may rest, does not let itself be forced. Until
// the transfer is given up no later round is started.
func (r *Raft) sendTimeoutNow(to uint64) {
	m := eraftpb.Message{MsgType: eraftpb.MessageType_MsgTimeoutNow, To: to}
	if r.numberRounds {
		if r.reads.round == 0 {
			r.broadcastHeartbeat()
		}
		m.Round = r.reads.round
	}
	r.timeoutNowSent = true
	r.send(m)
}

func (r *Raft) abortTransfer() {
	r.leadTransferee = None
	r.transferElapsed = 0
	r.timeoutNowSent = false
}
