package raft

// ReadState answers a ReadIndex: once the state machine has applied Index, a read that reads it is
// linearizable. Aborted: the leadership was lost first, and nothing is known.
type ReadState struct {
	ID      uint64
	Index   uint64
	Aborted bool
}

// readState holds the reads that wait for the proof that this node still leads (thesis 6.4), and
// the heartbeat rounds that give the proof. Owner: the Raft.
//
// A heartbeat round is a number, increasing within a term, that all heartbeats of one broadcast
// carry and the answers echo. A quorum of answers to a round says: when that round was sent, nobody
// had been elected over us. So a read is confirmed by any round broadcast after it came in, and all
// reads since the last broadcast share the next one.
type readState struct {
	// round was broadcast last, confirmed is the last one a quorum has answered.
	round, confirmed uint64
	// waiting are the IDs of reads that wait for a commit of the own term: before that the leader
	// does not know what is committed (trap E2).
	waiting []uint64
	// unsent wait for a broadcast, sent for its answers, in the order of their rounds.
	unsent []pendingRead
	sent   []pendingRead
	// done go out with the next Ready.
	done []ReadState
}

type pendingRead struct{ id, index, round uint64 }

// readIndex takes a read in. The ID must be new with each attempt: with the ID of an attempt
// before, a late confirmation of that one would be taken for this one's (trap E3).
func (r *Raft) readIndex(id uint64) error {
	if r.State != StateLeader {
		return ErrNotLeader
	}
	r.numberRounds = true
	if !r.committedOwnTerm() {
		r.reads.waiting = append(r.reads.waiting, id)
		return nil
	}
	r.reads.unsent = append(r.reads.unsent, pendingRead{id: id, index: r.RaftLog.committed})
	return nil
}

func (r *Raft) committedOwnTerm() bool {
	return r.RaftLog.matchTerm(r.RaftLog.committed, r.Term)
}

// releaseReads lets the reads go on that waited for the commit that just happened.
func (r *Raft) releaseReads() {
	if len(r.reads.waiting) == 0 || !r.committedOwnTerm() {
		return
	}
	for _, id := range r.reads.waiting {
		r.reads.unsent = append(r.reads.unsent, pendingRead{id: id, index: r.RaftLog.committed})
	}
	r.reads.waiting = nil
}

// flushReads broadcasts a round for the reads that have none. RawNode calls it when a Ready is
// made, so all reads between two Readys cost one round.
func (r *Raft) flushReads() {
	if r.hasReadsToFlush() {
		r.broadcastHeartbeat()
	}
}

// hasReadsToFlush: while a transfer is under way no round may start, and reads wait for its end.
func (r *Raft) hasReadsToFlush() bool { return len(r.reads.unsent) > 0 && !r.timeoutNowSent }

// nextRound numbers a broadcast and puts the waiting reads on it. The number goes into the messages
// only where something beyond the course asks for it.
func (r *Raft) nextRound() {
	if r.timeoutNowSent {
		return
	}
	r.reads.round++
	for _, p := range r.reads.unsent {
		p.round = r.reads.round
		r.reads.sent = append(r.reads.sent, p)
	}
	r.reads.unsent = nil
}

// advanceReads counts the answers to the rounds. Voters alone count, and the leader itself if it is
// one.
func (r *Raft) advanceReads() {
	if r.State != StateLeader {
		return
	}
	r.scratch = r.scratch[:0]
	for id, pr := range r.Prs {
		switch {
		case pr.IsLearner:
		case id == r.id:
			r.scratch = append(r.scratch, r.reads.round)
		default:
			r.scratch = append(r.scratch, pr.ackedRound)
		}
	}
	r.reads.confirmed = max(r.reads.confirmed, quorumValue(r.scratch))
	n := 0
	for n < len(r.reads.sent) && r.reads.sent[n].round <= r.reads.confirmed {
		r.reads.done = append(r.reads.done,
			ReadState{ID: r.reads.sent[n].id, Index: r.reads.sent[n].index})
		n++
	}
	if n == len(r.reads.sent) {
		r.reads.sent = nil
	} else {
		r.reads.sent = r.reads.sent[n:]
	}
}

// abortReads gives up all reads at a change of role or term, in the order they came (trap E3).
func (r *Raft) abortReads() {
	abort := func(id uint64) {
		r.reads.done = append(r.reads.done, ReadState{ID: id, Aborted: true})
	}
	for _, p := range r.reads.sent {
		abort(p.id)
	}
	for _, p := range r.reads.unsent {
		abort(p.id)
	}
	for _, id := range r.reads.waiting {
		abort(id)
	}
	r.reads = readState{done: r.reads.done}
}
