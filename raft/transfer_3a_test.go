package raft

import (
	"errors"
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// Transfers of the leadership: by what the target is, and by what comes in between.

func TestLeaderTransferToUpToDateFollower3A(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.transfer(1, 2)
	c.wantState(1, StateFollower, 2)
	c.propose(2, "x")
	c.transfer(2, 1)
	c.wantState(1, StateLeader, 1)
}

// A laggard is brought up to date first.
func TestLeaderTransferToLaggingFollower3A(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.isolate(3)
	c.propose(1, "x")
	c.heal()
	equal(t, "match", c.nodes[1].Prs[3].Match, uint64(1))
	c.transfer(1, 3)
	c.wantState(3, StateLeader, 3)
	c.wantState(1, StateFollower, 3)
}

// A follower that gets the request hands it on to its leader, and drops it if it knows none.
func TestLeaderTransferFromFollower3A(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.transfer(2, 2)
	c.wantState(2, StateLeader, 2)
	c.transfer(3, 1)
	c.wantState(1, StateLeader, 1)
	lost := mkRaft(2, []uint64{1, 2, 3})
	mustStep(t, lost, eraftpb.Message{MsgType: tTransfer, From: 2})
	equal(t, "messages", len(take(lost)), 0)
}

// refused asks a leader for a transfer that makes no sense; nothing must come of it.
func refused(t *testing.T, r *Raft, target uint64) {
	t.Helper()
	mustStep(t, r, eraftpb.Message{MsgType: tTransfer, From: target})
	equal(t, "transferee", r.leadTransferee, None)
	equal(t, "messages", len(take(r)), 0)
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
	equal(t, "appends", len(ofType(take(r), tApp)) > 0, true)
}

func TestTransferToItselfIsRefused3A(t *testing.T) {
	refused(t, lead(t, mkRaft(1, []uint64{1, 2, 3})), 1)
}

func TestLeaderTransferToUnknown3A(t *testing.T) {
	refused(t, lead(t, mkRaft(1, []uint64{1, 2, 3})), 9)
	refused(t, lead(t, mkRaft(1, []uint64{1, 2, 3})), None)
}

func TestLeaderTransferToLearner3A(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	r.Prs[3].IsLearner = true
	refused(t, r, 3)
}

func TestLeaderTransferToRemoved3A(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	r.removeNode(3)
	refused(t, r, 3)
}

// A node that is no member does not heed the request to campaign, and a learner does not either.
func TestLeaderTransferNonMemberDoesNotCampaign3A(t *testing.T) {
	learner := mkRaft(1, []uint64{1, 2, 3})
	learner.Prs[1].IsLearner = true
	for name, r := range map[string]*Raft{
		"stranger": mkRaft(1, []uint64{2, 3, 4}), "learner": learner,
	} {
		mustStep(t, r, eraftpb.Message{MsgType: tNow, From: 2, To: 1, Term: 1})
		equal(t, name, r.State, StateFollower)
		equal(t, name+": messages", len(take(r)), 0)
	}
}

// The target needs a snapshot first; the transfer goes on by itself once that is there.
func TestTransferGoesOnAfterASnapshot3A(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.isolate(3)
	c.propose(1, "x")
	c.persist(1)
	lead := c.nodes[1]
	_, _ = c.storage[1].CreateSnapshot(lead.RaftLog.applied, lead.confState(), nil)
	_ = c.storage[1].Compact(lead.RaftLog.applied)
	lead.RaftLog.maybeCompact()
	c.heal()
	var answer eraftpb.Message
	c.hook = func(m eraftpb.Message) bool {
		if m.MsgType == tAppResp && m.From == 3 && !m.Reject {
			answer = m
			return false
		}
		return true
	}
	c.beat(1)
	c.transfer(1, 3)
	c.wantState(1, StateLeader, 1)
	equal(t, "answer to the snapshot", answer.Index, lead.RaftLog.LastIndex())
	c.hook = nil
	c.nodes[3].RaftLog.stableSnapTo(answer.Index)
	c.send(answer)
	c.wantState(3, StateLeader, 3)
}

// A transfer that gets nowhere is given up after an election timeout.
func TestLeaderTransferTimesOut3A(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.isolate(3)
	c.transfer(1, 3)
	r := c.nodes[1]
	c.tick(1, r.electionTimeout-1)
	equal(t, "transferee", r.leadTransferee, uint64(3))
	c.tick(1, 1)
	equal(t, "given up", r.leadTransferee, None)
	c.wantState(1, StateLeader, 1)
}

// While it lasts proposals are refused, at once and with an error, and afterwards taken again.
func TestLeaderTransferRefusesProposals3A(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.isolate(3)
	c.transfer(1, 3)
	r := c.nodes[1]
	last := r.RaftLog.LastIndex()
	err := r.Step(eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{}}})
	if !errors.Is(err, ErrProposalDropped) {
		t.Fatalf("proposal during a transfer: %v", err)
	}
	equal(t, "last", r.RaftLog.LastIndex(), last)
	c.tick(1, r.electionTimeout)
	c.propose(1, "x")
	equal(t, "proposals again", r.RaftLog.committed, last+1)
}

// The same request again starts nothing over, the clock least of all.
func TestLeaderTransferSecondToSameNode3A(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.isolate(3)
	c.transfer(1, 3)
	r := c.nodes[1]
	c.tick(1, r.electionTimeout/2)
	c.transfer(1, 3)
	equal(t, "transferee", r.leadTransferee, uint64(3))
	c.tick(1, r.electionTimeout-r.electionTimeout/2)
	equal(t, "given up", r.leadTransferee, None)
}

// Another target takes the first one's place.
func TestLeaderTransferSecondToAnotherNode3A(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.isolate(3)
	c.transfer(1, 3)
	c.transfer(1, 2)
	c.wantState(2, StateLeader, 2)
	c.wantState(1, StateFollower, 2)
}

// The target is removed: the transfer is over.
func TestLeaderTransferEndsWithTarget3A(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustStep(t, r, eraftpb.Message{MsgType: tTransfer, From: 3})
	equal(t, "transferee", r.leadTransferee, uint64(3))
	r.removeNode(3)
	equal(t, "transferee", r.leadTransferee, None)
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{}}})
}

// Somebody else's candidacy in a higher term ends it with the leadership.
func TestLeaderTransferEndsWithHigherTerm3A(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.isolate(3)
	c.transfer(1, 3)
	equal(t, "transferee", c.nodes[1].leadTransferee, uint64(3))
	c.campaign(2)
	equal(t, "transferee", c.nodes[1].leadTransferee, None)
	c.wantState(2, StateLeader, 2)
	c.wantState(1, StateFollower, 2)
}

// The request to campaign is lost: what the target says next shows that it still follows, and it is
// asked again (trap C15). Neither an answer of somebody else nor one of a laggard does that.
func TestLeaderTransferIsAskedAgain3A(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustStep(t, r, eraftpb.Message{MsgType: tTransfer, From: 2})
	equal(t, "asked", len(ofType(take(r), tNow)), 1)
	mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 3, Term: 1})
	equal(t, "somebody else's answer", len(ofType(take(r), tNow)), 0)
	mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 1})
	equal(t, "asked again", len(ofType(take(r), tNow)), 1)
	for range r.electionTimeout {
		r.tick()
	}
	take(r)
	mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 1})
	equal(t, "asked when it is over", len(ofType(take(r), tNow)), 0)
	r = lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{}}})
	mustStep(t, r, eraftpb.Message{MsgType: tTransfer, From: 2})
	mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 1})
	equal(t, "a laggard is asked", len(ofType(take(r), tNow)), 0)
}

// A target without the leader's entries that is asked all the same loses its election, and costs no
// more than that.
func TestLeaderTransferTargetThatCannotWin3A(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.isolate(3)
	c.propose(1, "x")
	c.heal()
	_ = c.nodes[3].Step(eraftpb.Message{MsgType: tNow, From: 1, To: 3, Term: 1})
	c.send(take(c.nodes[3])...)
	equal(t, "state", c.nodes[3].State == StateLeader, false)
	c.campaign(1)
	c.wantState(1, StateLeader, 1)
}

// With pre-vote and check-quorum the target is elected although every node is in contact with the
// leader (trap A8).
func TestLeaderTransferWithCheckQuorum3A(t *testing.T) {
	c := mkCluster(t, 3, withPreVote, withCheckQuorum)
	c.campaign(1)
	c.tick(1, 3)
	c.campaign(2)
	c.wantState(1, StateLeader, 1)
	c.transfer(1, 2)
	c.wantState(2, StateLeader, 2)
	c.wantState(1, StateFollower, 2)
}

// A request to campaign that arrives after its transfer was given up cannot force anybody: the
// leader may hold a new lease (trap E5).
func TestLateTimeoutNowForcesNobody3A(t *testing.T) {
	c := mkCluster(t, 3, withPreVote, withCheckQuorum)
	c.campaign(1)
	c.tick(1, 1)
	var late eraftpb.Message
	c.hook = func(m eraftpb.Message) bool {
		if m.MsgType == tNow {
			late = m
			return false
		}
		return true
	}
	c.transfer(1, 2)
	equal(t, "held back", late.MsgType, tNow)
	round := c.nodes[1].reads.round
	c.tick(1, 2)
	equal(t, "rounds wait for the end of the transfer", c.nodes[1].reads.round, round)
	c.isolate(2)
	c.tick(1, 12)
	equal(t, "given up", c.nodes[1].leadTransferee, None)
	if c.nodes[1].reads.round <= round {
		t.Fatal("rounds go on")
	}
	c.heal()
	c.send(late)
	c.wantState(1, StateLeader, 1)
	equal(t, "3 is in contact with its leader", c.nodes[3].Vote, uint64(1))
}
