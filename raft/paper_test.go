package raft

import (
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// Each test shows one sentence of the Raft paper (sections, figure 2) or of the thesis. What the
// suites 2AA and 2AB show already is not repeated.

// Section 5.1: "If a server receives a request with a stale term number, it rejects the request."
func TestPaper51StaleTermIsRejected(t *testing.T) {
	for _, typ := range []eraftpb.MessageType{tApp, tHeartbeat, tVote} {
		r := newRaft(courseConfig(1, []uint64{1, 2}, storageWith(terms(1, 2))))
		r.becomeFollower(3, None)
		mustStep(t, r, eraftpb.Message{
			MsgType: typ, From: 2, Term: 2, Index: 2, LogTerm: 2, Commit: 2,
			Entries: pointers(terms(9, 9, 9)[2:]),
		})
		m := take(r)[0]
		equal(t, typ.String(), []any{m.Term, m.Reject}, []any{uint64(3), true})
		equal(t, "log", ltoa(r.RaftLog), "committed=0 1/1: 2/2:")
	}
}

// Section 5.2: "Each server will vote for at most one candidate in a given term", also when the
// candidates' logs get better and better.
func TestPaper52OneVoteWhateverComes(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3, 4, 5})
	for id := uint64(2); id <= 5; id++ {
		mustStep(t, r, eraftpb.Message{MsgType: tVote, From: id, Term: 7, Index: id, LogTerm: id})
	}
	granted := 0
	for _, m := range take(r) {
		if !m.Reject {
			granted++
			equal(t, "granted to", m.To, uint64(2))
		}
	}
	equal(t, "votes", granted, 1)
}

// Section 5.2: "it sends heartbeat messages to all of the other servers to establish its
// authority": here the append of the empty entry does.
func TestPaper52WinnerSpeaksAtOnce(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3})
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	take(r)
	mustStep(t, r, eraftpb.Message{MsgType: tVoteResp, From: 2, Term: 1})
	msgs := take(r)
	equal(t, "messages", []any{len(msgs), msgs[0].MsgType, len(msgs[0].Entries)}, []any{2, tApp, 1})
}

// Section 5.3: "If followers crash or run slowly ... the leader retries AppendEntries RPCs
// indefinitely (even after it has responded to the client)".
func TestPaper53LeaderRetriesForEver(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: 2})
	equal(t, "committed", r.RaftLog.committed, uint64(2))
	take(r)
	for range 50 {
		mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 3, Term: 1})
		equal(t, "appends", len(ofType(take(r), tApp)), 1)
	}
}

// Section 5.3: "the leader ... a leader never overwrites or deletes entries in its own log".
func TestPaper53LeaderAppendOnly(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
	before := ltoa(r.RaftLog)
	for typ := eraftpb.MessageType(0); typ < 19; typ++ {
		if typ == tProp {
			continue
		}
		for _, id := range []uint64{1, 2, 3} {
			_ = r.Step(eraftpb.Message{
				MsgType: typ, From: id, Term: 1, Index: 1, LogTerm: 1, Reject: true,
				Entries: []*eraftpb.Entry{{Index: 2, Term: 9}},
			})
		}
		equal(t, "log after "+typ.String(), ltoa(r.RaftLog), before)
	}
}

// Section 5.4.1: "the voter denies its vote if its own log is more up-to-date than that of the
// candidate" - so a node that is elected has every committed entry.
func TestPaper541ElectedHasAllCommitted(t *testing.T) {
	c := mkCluster(t, 5)
	c.campaign(1)
	for _, id := range []uint64{4, 5} {
		c.cut[[2]uint64{1, id}] = true
	}
	c.propose(1, "committed")
	equal(t, "committed", c.nodes[1].RaftLog.committed, uint64(2))
	c.heal()
	c.isolate(1)
	for _, id := range []uint64{4, 5, 4, 5} {
		c.campaign(id)
		if c.nodes[id].State == StateLeader {
			t.Fatalf("%d was elected without the committed entry", id)
		}
	}
	c.campaign(2)
	c.wantState(2, StateLeader, 2)
}

// Section 5.5: "Raft RPCs are idempotent": a message twice is a message once.
func TestPaper55MessagesAreIdempotent(t *testing.T) {
	once, twice := mkCluster(t, 3), mkCluster(t, 3)
	for times, c := range []*cluster{once, twice} {
		c.hook = func(m eraftpb.Message) bool {
			if times == 1 && m.MsgType != tVoteResp {
				_ = c.nodes[m.To].Step(m)
				c.nodes[m.To].msgs = nil
			}
			return true
		}
		c.campaign(1)
		c.propose(1, "a")
		c.propose(1, "b")
		c.beat(1)
	}
	for id := range once.nodes {
		equal(t, "log", ltoa(twice.nodes[id].RaftLog), ltoa(once.nodes[id].RaftLog))
	}
}

// Section 6 and thesis 4.2.3: "if a server receives a RequestVote request within the minimum
// election timeout of hearing from a current leader, it does not update its term or grant its
// vote".
func TestThesis423NoVoteInEarshotOfALeader(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3}, withCheckQuorum)
	mustStep(t, r, eraftpb.Message{MsgType: tApp, From: 2, Term: 1})
	for range 9 {
		r.tick()
		mustStep(t, r, eraftpb.Message{MsgType: tVote, From: 3, Term: 5, Index: 9, LogTerm: 9})
		equal(t, "term", r.Term, uint64(1))
	}
	r.contactElapsed = 10
	mustStep(t, r, eraftpb.Message{MsgType: tVote, From: 3, Term: 5, Index: 9, LogTerm: 9})
	equal(t, "term", r.Term, uint64(5))
}

// Thesis 3.10: in a transfer the leader stops taking requests, brings the target up to date and
// tells it to start an election.
func TestThesis310TransferInThreeSteps(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
	take(r)
	mustStep(t, r, eraftpb.Message{MsgType: tTransfer, From: 3})
	equal(t, "told before it is up to date", len(ofType(take(r), tNow)), 0)
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 3, Term: 1, Index: 2})
	now := ofType(take(r), tNow)
	equal(t, "told", []any{len(now), now[0].To}, []any{1, uint64(3)})
}

// Thesis 4.1: a new configuration with one server more or less, and the leader uses each when it is
// applied (where the thesis uses it when it is appended; see trap C2 for why that is safe here).
func TestThesis41OneServerAtATime(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.send(eraftpb.Message{
		MsgType: tProp, From: 1, To: 1, Entries: []*eraftpb.Entry{confEntry(t, 0, 4)},
	})
	equal(t, "members before it is applied", nodes(c.nodes[1]), []uint64{1, 2, 3})
	err := c.nodes[1].Step(eraftpb.Message{
		MsgType: tProp, Entries: []*eraftpb.Entry{confEntry(t, 0, 5)},
	})
	equal(t, "second change", err, ErrProposalDropped)
}

// Thesis 6.2: "a leader in Raft steps down if an election timeout elapses without a successful
// round of heartbeats to a majority of its cluster".
func TestThesis62LeaderWithoutMajorityStepsDown(t *testing.T) {
	c := mkCluster(t, 5, withCheckQuorum)
	c.campaign(1)
	c.tick(1, 10)
	for _, id := range []uint64{3, 4, 5} {
		c.cut[[2]uint64{1, id}] = true
	}
	c.tick(1, 20)
	c.wantState(1, StateFollower, None)
}

// Thesis 6.4: a read waits for an entry of the own term, then for a round of heartbeats that was
// sent after it came in - an earlier round proves nothing for it.
func TestThesis64EarlierRoundDoesNotServeLaterRead(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	rn := &RawNode{Raft: r}
	rn.BroadcastHeartbeat()
	old := take(r)[0].Round
	equal(t, "read", rn.ReadIndex(1), nil)
	rn.Ready()
	mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 1, Round: old})
	equal(t, "answers by the old round", len(rn.Ready().ReadStates), 0)
	mustStep(t, r,
		eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 1, Round: rn.HeartbeatRound()})
	equal(t, "answers by the new round", len(rn.Ready().ReadStates), 1)
}

// Thesis 9.6: a pre-vote changes nothing at the voter and nothing at the candidate but its role.
func TestThesis96PreVoteLeavesNoTrace(t *testing.T) {
	voter, candidate := mkRaft(1, []uint64{1, 2}, withPreVote),
		mkRaft(2, []uint64{1, 2}, withPreVote)
	mustStep(t, candidate, eraftpb.Message{MsgType: tHup})
	ask := take(candidate)[0]
	equal(t, "asks about", ask.Term, uint64(1))
	for range 3 {
		mustStep(t, voter, ask)
		equal(t, "answer", take(voter)[0].Reject, false)
	}
	equal(t, "voter", voter.hardState(), eraftpb.HardState{})
	equal(t, "candidate", candidate.hardState(), eraftpb.HardState{})
	// An answer about another term is not counted, nor is one to the real question.
	mustStep(t, candidate, eraftpb.Message{MsgType: tPreResp, From: 1, Term: 9})
	mustStep(t, candidate, eraftpb.Message{MsgType: tVoteResp, From: 1})
	equal(t, "state", candidate.State, StatePreCandidate)
	mustStep(t, candidate, eraftpb.Message{MsgType: tPreResp, From: 1, Term: 1})
	equal(t, "state", candidate.State, StateCandidate)
	equal(t, "term", candidate.Term, uint64(1))
}

// Thesis 10.2.1: "the leader may even commit an entry before it has been written to its own disk,
// if a majority of followers have written it".
func TestThesis1021LeaderWritesInParallel(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3, 4, 5}, func(c *Config) { c.AckOnPersist = true })
	r.becomeCandidate()
	r.becomeLeader()
	for i, id := range []uint64{2, 3, 4} {
		equal(t, "committed", r.RaftLog.committed, uint64(0))
		mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: id, Term: 1, Index: 1})
		_ = i
	}
	equal(t, "committed", r.RaftLog.committed, uint64(1))
	equal(t, "own write", r.RaftLog.stabled, uint64(0))
}
