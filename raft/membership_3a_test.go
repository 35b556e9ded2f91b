package raft

import (
	"errors"
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

func confEntry(t testing.TB, typ eraftpb.ConfChangeType, id uint64) *eraftpb.Entry {
	t.Helper()
	cc := eraftpb.ConfChange{ChangeType: typ, NodeId: id}
	data, err := cc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return &eraftpb.Entry{EntryType: eraftpb.EntryType_EntryConfChange, Data: data}
}

// Members are added and removed, doubly too, down to nobody.
func TestMembersComeAndGo3A(t *testing.T) {
	r := mkRaft(1, []uint64{1})
	r.addNode(2)
	r.addNode(2)
	equal(t, "members", nodes(r), []uint64{1, 2})
	r.removeNode(3)
	r.removeNode(1)
	equal(t, "members", nodes(r), []uint64{2})
	r.removeNode(2)
	equal(t, "members", nodes(r), []uint64{})
	r.addNode(None)
	r.applyConfChange(eraftpb.ConfChange{ChangeType: 9, NodeId: 3})
	equal(t, "members", nodes(r), []uint64{})
}

// Learners get the log without a vote; adding one as a voter promotes it, and a voter is not made a
// learner.
func TestLearnersAreAddedAndPromoted3A(t *testing.T) {
	rn := mkRaw(t, NewMemoryStorage(), []uint64{1, 2})
	add := func(typ eraftpb.ConfChangeType, id uint64) *eraftpb.ConfState {
		return rn.ApplyConfChange(eraftpb.ConfChange{ChangeType: typ, NodeId: id})
	}
	cs := add(eraftpb.ConfChangeType_AddLearnerNode, 3)
	equal(t, "members", cs, &eraftpb.ConfState{Nodes: []uint64{1, 2}, Learners: []uint64{3}})
	equal(t, "again", add(eraftpb.ConfChangeType_AddLearnerNode, 3), cs)
	equal(t, "voter stays", add(eraftpb.ConfChangeType_AddLearnerNode, 2), cs)
	equal(t, "nobody", add(eraftpb.ConfChangeType_AddNode, None), cs)
	cs = add(eraftpb.ConfChangeType_AddNode, 3)
	equal(t, "promoted", cs, &eraftpb.ConfState{Nodes: []uint64{1, 2, 3}})
}

// Learners are not counted: neither their acknowledgements nor their votes.
func TestLearnersAreNotCounted3A(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3})
	r.Prs[3].IsLearner = true
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	reqs := take(r)
	equal(t, "asked", []any{len(reqs), reqs[0].To}, []any{1, uint64(2)})
	mustStep(t, r, eraftpb.Message{MsgType: tVoteResp, From: 3, Term: 1})
	equal(t, "elected by a learner", r.State, StateCandidate)
	mustStep(t, r, eraftpb.Message{MsgType: tVoteResp, From: 2, Term: 1})
	equal(t, "state", r.State, StateLeader)
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 3, Term: 1, Index: 1})
	equal(t, "committed by a learner", r.RaftLog.committed, uint64(0))
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: 1})
	equal(t, "committed", r.RaftLog.committed, uint64(1))
}

// One conf change at a time: the next when the last is applied, also straight after an election
// (traps C1, C2).
func TestOneConfChangeAtATime3A(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3})
	r.becomeCandidate()
	r.becomeLeader()
	prop := eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{confEntry(t, 0, 4)}}
	equal(t, "straight after the election", r.Step(prop), nil)
	equal(t, "second", r.Step(prop), ErrProposalDropped)
	last := r.RaftLog.LastIndex()
	equal(t, "nothing takes its place (trap C6)", last, uint64(2))
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
	r.RaftLog.committed = 2
	equal(t, "committed is not enough", r.Step(prop), ErrProposalDropped)
	r.RaftLog.applied = 2
	equal(t, "applied", r.Step(prop), nil)
	both := eraftpb.Message{
		MsgType: tProp, Entries: []*eraftpb.Entry{confEntry(t, 0, 4), confEntry(t, 0, 5)},
	}
	r.RaftLog.committed, r.RaftLog.applied = 4, 4
	equal(t, "two in one message", r.Step(both), ErrProposalDropped)
}

// A new leader does not know what conf changes its log has: it waits until all of it is applied.
func TestNewLeaderWaitsForOldConfChanges3A(t *testing.T) {
	st := storageWith(terms(1, 1, 1))
	r := newRaft(courseConfig(1, []uint64{1, 2}, st))
	r.Term = 1
	r.becomeCandidate()
	r.becomeLeader()
	rn := &RawNode{Raft: r}
	equal(t, "pending", rn.HasPendingConfChange(), true)
	err := rn.ProposeConfChange(eraftpb.ConfChange{NodeId: 3})
	if !errors.Is(err, ErrProposalDropped) {
		t.Fatal(err)
	}
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 2, Index: 4})
	r.RaftLog.applied = 3
	equal(t, "pending", rn.HasPendingConfChange(), false)
	equal(t, "proposal", rn.ProposeConfChange(eraftpb.ConfChange{NodeId: 3}), nil)
}

// Through RawNode, in a group of one: twice the same and then another.
func TestConfChangesThroughRawNode3A(t *testing.T) {
	st := NewMemoryStorage()
	rn := mkRaw(t, st, []uint64{1})
	_ = rn.Campaign()
	pump(t, rn, st)
	for _, id := range []uint64{1, 1, 2} {
		if err := rn.ProposeConfChange(eraftpb.ConfChange{NodeId: id}); err != nil {
			t.Fatal(err)
		}
		pump(t, rn, st)
	}
	equal(t, "members", nodes(rn.Raft), []uint64{1, 2})
}

// Removing a voter can complete a majority: what waited is committed and told (trap C5).
func TestRemovalCommitsWhatWaited3A(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3, 4}))
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: 2})
	take(r)
	equal(t, "committed with two of four", r.RaftLog.committed, uint64(1))
	r.removeNode(4)
	equal(t, "committed with two of three", r.RaftLog.committed, uint64(2))
	msgs := ofType(take(r), tApp)
	equal(t, "told", len(msgs), 2)
	// Nobody left: nothing more may be committed.
	for _, id := range []uint64{1, 2, 3} {
		r.removeNode(id)
	}
	equal(t, "committed by nobody", r.maybeCommit(), false)
}

// Only the voters of now have a say in an election (trap A11).
func TestRemovedVoterHasNoSay3A(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3, 4, 5})
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	mustStep(t, r, eraftpb.Message{MsgType: tVoteResp, From: 4, Term: 1})
	r.removeNode(4)
	r.removeNode(5)
	equal(t, "state", r.State, StateCandidate)
	equal(t, "tally", r.tally(), votePending)
	mustStep(t, r, eraftpb.Message{MsgType: tVoteResp, From: 2, Term: 1})
	equal(t, "state", r.State, StateLeader)
}

// A member that comes back starts with nothing acknowledged (trap B-4).
func TestReaddedMemberStartsOver3A(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	equal(t, "match", r.Prs[3].Match, uint64(1))
	r.removeNode(3)
	r.addNode(3)
	equal(t, "match", r.Prs[3].Match, uint64(0))
}

// While a committed conf change is unapplied nobody campaigns, not even on demand (trap A10).
func TestNoCampaignWithUnappliedConfChange3A(t *testing.T) {
	for _, opts := range [][]option{nil, {production}} {
		st := NewMemoryStorage()
		e := *confEntry(t, eraftpb.ConfChangeType_RemoveNode, 3)
		e.Index, e.Term = 1, 1
		_ = st.Append([]eraftpb.Entry{e, {Index: 2, Term: 1}})
		_ = st.SetHardState(eraftpb.HardState{Term: 1, Commit: 1})
		rn := mkRaw(t, st, []uint64{1, 2, 3}, opts...)
		r := rn.Raft
		_ = rn.Campaign()
		_ = rn.Step(eraftpb.Message{MsgType: tNow, From: 2, Term: 1})
		for range 40 {
			rn.Tick()
		}
		equal(t, "state", r.State, StateFollower)
		equal(t, "messages", len(r.msgs), 0)
		rd := rn.Ready()
		rn.ApplyConfChange(eraftpb.ConfChange{
			ChangeType: eraftpb.ConfChangeType_RemoveNode, NodeId: 3,
		})
		rn.Advance(rd)
		if r.RaftLog.asyncApply {
			equal(t, "handed out is not applied", r.mayCampaign(), false)
			rn.AppliedTo(1)
		}
		equal(t, "may campaign", r.mayCampaign(), true)
	}
}

// A removed leader takes no proposals but replicates on, so that its removal gets through.
func TestRemovedLeaderReplicatesOn3A(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
	take(r)
	r.removeNode(1)
	equal(t, "state", r.State, StateLeader)
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: 2})
	equal(t, "committed by one of two", r.RaftLog.committed, uint64(1))
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 3, Term: 1, Index: 2})
	equal(t, "committed by both", r.RaftLog.committed, uint64(2))
	r.tick()
	equal(t, "heartbeats", len(ofType(take(r), tHeartbeat)), 2)
}

// Pre-vote: a node that comes back from nowhere does not depose a leader that is heard.
func TestReturnDoesNotDisturb3A(t *testing.T) {
	c := mkCluster(t, 3, withPreVote, withCheckQuorum)
	c.campaign(1)
	c.isolate(3)
	c.tick(3, 100)
	equal(t, "term of the isolated", c.nodes[3].Term, uint64(1))
	c.heal()
	c.tick(1, 1)
	c.tick(3, 5)
	c.wantState(1, StateLeader, 1)
	c.wantState(3, StateFollower, 1)
}

// Lower-term questions are answered (trap A5): a node that is behind learns the term, and a leader
// that is behind steps down.
func TestWhoIsBehindIsTold3A(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3}, withPreVote, withCheckQuorum)
	r.becomeFollower(5, None)
	for ask, answer := range map[eraftpb.MessageType]eraftpb.MessageType{
		tPreVote: tPreResp, tVote: tVoteResp, tApp: tAppResp, tHeartbeat: tAppResp, tSnap: tAppResp,
	} {
		mustStep(t, r, eraftpb.Message{MsgType: ask, From: 2, Term: 3})
		m := take(r)[0]
		equal(t, ask.String(), []any{m.MsgType, m.Term, m.Reject}, []any{answer, uint64(5), true})
	}
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 3})
	equal(t, "answers are not answered", len(take(r)), 0)
}

// Check-quorum: a leader that a majority does not answer steps down after an election timeout, one
// that is answered stays (trap A7).
func TestSilentQuorumDeposes3A(t *testing.T) {
	for _, heard := range []bool{false, true} {
		r := lead(t, mkRaft(1, []uint64{1, 2, 3}, withCheckQuorum))
		for i := range 25 {
			r.tick()
			if heard && i%5 == 0 {
				_ = r.Step(eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 1})
			}
		}
		want := StateFollower
		if heard {
			want = StateLeader
		}
		equal(t, "state", r.State, want)
		equal(t, "term", r.Term, uint64(1))
	}
}

// Votes are refused while a leader is there, to every candidate, and after a restart for the grace
// time.
func TestVotesAreRefusedWhileALeaderIsHeard3A(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3}, withCheckQuorum)
	mustStep(t, r, eraftpb.Message{MsgType: tHeartbeat, From: 2, Term: 1})
	take(r)
	ask := eraftpb.Message{MsgType: tVote, From: 3, Term: 2, Index: 9, LogTerm: 9}
	mustStep(t, r, ask)
	equal(t, "term", r.Term, uint64(1))
	equal(t, "answers", len(take(r)), 0)
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	equal(t, "own campaign", r.State, StateFollower)
	for range 10 {
		r.contactElapsed++
	}
	mustStep(t, r, ask)
	equal(t, "vote", r.Vote, uint64(3))

	g := mkRaft(1, []uint64{1, 2, 3}, func(c *Config) { c.VoteGraceTicks = 10 })
	mustStep(t, g, ask)
	equal(t, "vote in the grace time", g.Vote, None)
	forced := ask
	forced.Force = true
	mustStep(t, g, forced)
	equal(t, "forced vote", g.Vote, uint64(3))
	one := mkRaft(1, []uint64{1}, func(c *Config) { c.VoteGraceTicks = 10 })
	mustStep(t, one, eraftpb.Message{MsgType: tHup})
	equal(t, "a group of one waits for nobody", one.State, StateLeader)
}

// Unreachable members are probed instead of flooded.
func TestUnreachableMemberIsProbed3A(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2}))
	rn := &RawNode{Raft: r}
	rn.ReportUnreachable(2)
	rn.ReportUnreachable(9)
	rn.ReportUnreachable(1)
	equal(t, "state", r.Prs[2].State, ProgressProbe)
	prop := eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}}
	for range 5 {
		mustStep(t, r, prop)
	}
	equal(t, "appends", len(take(r)), 1)
}

// A refused candidate learns what is committed. Of two voters the one that led removed itself and
// crashed; the other lacks its votes and its commit index, and gets the second with a refusal of
// the first (trap C3).
func TestRefusalTellsWhatIsCommitted3A(t *testing.T) {
	for _, opts := range [][]option{nil, {withPreVote, withCheckQuorum}} {
		e := *confEntry(t, eraftpb.ConfChangeType_RemoveNode, 1)
		e.Index, e.Term = 1, 1
		other := mkRaw(t, storageWith([]eraftpb.Entry{e, {Index: 2, Term: 1}, {Index: 3, Term: 1}}),
			[]uint64{2})
		other.Raft.RaftLog.committed = 1
		other.Raft.Term = 1
		survivor := newRaft(courseConfig(2, []uint64{1, 2}, storageWith([]eraftpb.Entry{e}),
			opts...))
		survivor.Term = 1
		mustStep(t, survivor, eraftpb.Message{MsgType: tHup})
		for range 3 {
			for _, m := range take(survivor) {
				mustStep(t, other.Raft, m)
			}
			for _, m := range take(other.Raft) {
				mustStep(t, survivor, m)
			}
		}
		equal(t, "state", survivor.State == StateLeader, false)
		equal(t, "committed", survivor.RaftLog.committed, uint64(1))
		survivor.applyConfChange(eraftpb.ConfChange{
			ChangeType: eraftpb.ConfChangeType_RemoveNode, NodeId: 1,
		})
		survivor.RaftLog.applied = 1
		mustStep(t, survivor, eraftpb.Message{MsgType: tHup})
		equal(t, "state", survivor.State, StateLeader)
	}
	// An entry of another term at that index is not the committed one.
	r := newRaft(courseConfig(1, []uint64{1, 2, 3}, storageWith(terms(1, 1))))
	r.becomeCandidate()
	mustStep(t, r,
		eraftpb.Message{MsgType: tVoteResp, From: 2, Term: 1, Reject: true, Commit: 2, LogTerm: 2})
	equal(t, "committed", r.RaftLog.committed, uint64(0))
}

// Through RawNode: a group grows and shrinks with proposals between the conf changes, which wait
// for none of them; the new member gets all of it, and the removed one nothing more.
func TestProposalsDuringConfChange3A(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.persist(1)
	r := c.nodes[1]
	c.isolate(3)
	c.send(eraftpb.Message{MsgType: tProp, From: 1, To: 1, Entries: []*eraftpb.Entry{
		{Data: []byte("a")}, confEntry(t, eraftpb.ConfChangeType_RemoveNode, 3),
		{Data: []byte("b")},
	}})
	c.propose(1, "c")
	equal(t, "committed", r.RaftLog.committed, uint64(5))
	equal(t, "another one is refused", r.Step(eraftpb.Message{
		MsgType: tProp, Entries: []*eraftpb.Entry{confEntry(t, eraftpb.ConfChangeType_AddNode, 4)},
	}), ErrProposalDropped)
	c.persist(1)
	r.removeNode(3)
	take(r)
	c.propose(1, "d")
	equal(t, "committed by the two", r.RaftLog.committed, uint64(6))
	for _, m := range take(r) {
		equal(t, "a message to the removed node", m.To == 3, false)
	}
}

// A group of one that adds a member needs that one's word from then on.
func TestSecondMemberIsCountedAtOnce3A(t *testing.T) {
	r := mkRaft(1, []uint64{1})
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	equal(t, "committed alone", r.RaftLog.committed, uint64(1))
	r.addNode(2)
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
	equal(t, "committed by one of two", r.RaftLog.committed, uint64(1))
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: 2})
	equal(t, "committed by both", r.RaftLog.committed, uint64(2))
}

// Adding a member that is there keeps what is known of it.
func TestAddingTwiceChangesNothing3A(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	before := *r.Prs[2]
	r.addNode(2)
	equal(t, "progress", *r.Prs[2], before)
	r.addNode(1)
	equal(t, "members", nodes(r), []uint64{1, 2, 3})
	equal(t, "own match", r.Prs[1].Match, r.RaftLog.LastIndex())
}

// Who is removed while it leads a candidacy or leads nobody does not campaign again (trap A9).
func TestRemovedNodeDoesNotCampaign3A(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3})
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	take(r)
	r.removeNode(1)
	for range 100 {
		r.tick()
	}
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	equal(t, "messages", len(take(r)), 0)
	equal(t, "term", r.Term, uint64(1))
}

// The last member can go; nothing is committed or campaigned for by nobody, and nothing panics
// (trap C8).
func TestLastMemberGoes3A(t *testing.T) {
	st := NewMemoryStorage()
	rn := mkRaw(t, st, []uint64{1})
	_ = rn.Campaign()
	pump(t, rn, st)
	if err := rn.ProposeConfChange(eraftpb.ConfChange{
		ChangeType: eraftpb.ConfChangeType_RemoveNode, NodeId: 1,
	}); err != nil {
		t.Fatal(err)
	}
	pump(t, rn, st)
	equal(t, "members", nodes(rn.Raft), []uint64{})
	equal(t, "proposal", rn.Propose([]byte("x")), ErrProposalDropped)
	for range 50 {
		rn.Tick()
	}
	equal(t, "has ready", rn.HasReady(), false)
}

// A leader of two removes the other voter. What it tells of the commit leaves only when the commit
// index is on disk: the other one is gone when it learns of it, and could not vote for a leader
// that forgot.
func TestCommitOfRemovalIsSyncedBeforeItIsTold3A(t *testing.T) {
	st := NewMemoryStorage()
	rn := mkRaw(t, st, []uint64{1, 2}, func(c *Config) { c.AckOnPersist = true })
	step := func() (rd Ready, early int) {
		rd = rn.Ready()
		first, _ := rd.SplitMessages()
		_ = st.Append(rd.Entries)
		rn.Advance(rd)
		return rd, len(first)
	}
	_ = rn.Campaign()
	step()
	_ = rn.Step(eraftpb.Message{MsgType: tVoteResp, From: 2, Term: 1})
	step()
	_ = rn.Step(eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: rn.LastIndex()})
	step()
	if err := rn.ProposeConfChange(eraftpb.ConfChange{
		ChangeType: eraftpb.ConfChangeType_RemoveNode, NodeId: 2,
	}); err != nil {
		t.Fatal(err)
	}
	_, early := step()
	equal(t, "appends of the entry, early", early, 1)
	_ = rn.Step(eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: rn.LastIndex()})
	rd, early := step()
	equal(t, "commit index to persist", rd.HardState.Commit, rn.LastIndex())
	equal(t, "asks for a sync", rd.MustSync, true)
	equal(t, "messages", len(rd.Messages), 1)
	equal(t, "of these early", early, 0)
}
