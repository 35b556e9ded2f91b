package raft

import (
	"fmt"
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// A node starts as a follower of nobody, in the term of its storage.
func TestNodeStartsAsFollowerOfNobody2AA(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3})
	equal(t, "state", r.State, StateFollower)
	equal(t, "lead", r.Lead, None)
	equal(t, "term", r.Term, uint64(0))
}

// A node that is behind in the term, in any role, follows (section 5.1).
func TestHigherTermMakesFollowerInEveryRole2AA(t *testing.T) {
	for _, typ := range []eraftpb.MessageType{
		tApp, tHeartbeat, tVote, tVoteResp, tAppResp, tHeartResp,
	} {
		for _, state := range []StateType{StateFollower, StateCandidate, StateLeader} {
			r := mkRaft(1, []uint64{1, 2, 3})
			switch state {
			case StateCandidate:
				r.becomeCandidate()
			case StateLeader:
				r.becomeCandidate()
				r.becomeLeader()
			}
			mustStep(t, r, eraftpb.Message{MsgType: typ, From: 2, To: 1, Term: 7})
			equal(t, fmt.Sprintf("%v after %v: state", state, typ), r.State, StateFollower)
			equal(t, "term", r.Term, uint64(7))
			wantLead := None
			if typ == tApp || typ == tHeartbeat {
				wantLead = 2
			}
			equal(t, fmt.Sprintf("%v after %v: lead", state, typ), r.Lead, wantLead)
		}
	}
}

// A candidate that gets a message of a leader of its own term gives in.
func TestCandidateGivesInToLeaderOfItsTerm2AA(t *testing.T) {
	for _, typ := range []eraftpb.MessageType{tApp, tHeartbeat} {
		r := mkRaft(1, []uint64{1, 2, 3})
		r.becomeCandidate()
		mustStep(t, r, eraftpb.Message{MsgType: typ, From: 3, To: 1, Term: r.Term})
		equal(t, "state", r.State, StateFollower)
		equal(t, "lead", r.Lead, uint64(3))
		equal(t, "vote is kept", r.Vote, uint64(1))
	}
}

// A follower that gets nothing for its timeout enters the next term, votes for itself and asks
// everyone else (section 5.2).
func TestSilenceStartsElection2AA(t *testing.T) {
	for _, candidate := range []bool{false, true} {
		r := mkRaft(1, []uint64{1, 2, 3})
		if candidate {
			r.becomeCandidate()
		} else {
			r.becomeFollower(1, 2)
		}
		for range 2*r.electionTimeout - 1 {
			r.tick()
		}
		equal(t, "state", r.State, StateCandidate)
		equal(t, "term", r.Term, uint64(2))
		equal(t, "own vote", r.votes, map[uint64]bool{1: true})
		equal(t, "requests", take(r), []eraftpb.Message{
			{MsgType: tVote, From: 1, To: 2, Term: 2}, {MsgType: tVote, From: 1, To: 3, Term: 2},
		})
	}
}

// Any word of the leader puts the election off.
func TestHeartbeatsKeepFollowersQuiet2AA(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3})
	r.becomeFollower(1, 2)
	for range 100 {
		for range r.electionTimeout - 1 {
			r.tick()
		}
		mustStep(t, r, eraftpb.Message{MsgType: tHeartbeat, From: 2, To: 1, Term: 1})
	}
	equal(t, "state", r.State, StateFollower)
	equal(t, "term", r.Term, uint64(1))
}

// A refused vote does not put the own election off; a vote that was given does (figure 2, rules for
// followers). A fast clock and an old log must not keep a group without a leader.
func TestOnlyAGivenVotePutsTheElectionOff2AA(t *testing.T) {
	for _, upToDate := range []bool{false, true} {
		r := newRaft(courseConfig(1, []uint64{1, 2, 3}, storageWith(terms(1, 1))))
		r.becomeFollower(1, None)
		for range 9 {
			r.tick()
		}
		m := eraftpb.Message{MsgType: tVote, From: 2, To: 1, Term: 2, LogTerm: 1, Index: 1}
		if upToDate {
			m.Index = 2
		}
		mustStep(t, r, m)
		want := 9
		if upToDate {
			want = 0
		}
		equal(t, "ticks since the last contact", r.electionElapsed, want)
	}
}

// The leader sends a heartbeat to everyone each heartbeat timeout, without entries or promises.
func TestLeaderBeatsAtItsPace2AA(t *testing.T) {
	r := newRaft(&Config{
		ID: 1, peers: []uint64{1, 2, 3}, ElectionTick: 10, HeartbeatTick: 3,
		Storage: NewMemoryStorage(),
	})
	r.becomeCandidate()
	r.becomeLeader()
	take(r)
	for i := range 9 {
		r.tick()
		msgs := take(r)
		if i%3 != 2 {
			equal(t, "messages between heartbeats", len(msgs), 0)
			continue
		}
		equal(t, "heartbeats", msgs, []eraftpb.Message{
			{MsgType: tHeartbeat, From: 1, To: 2, Term: 1},
			{MsgType: tHeartbeat, From: 1, To: 3, Term: 1},
		})
	}
}

// Elections by size and by who answers.
func TestMajorityElects2AA(t *testing.T) {
	for _, tc := range []struct {
		size     int
		yes, no  []uint64
		want     StateType
		wantTerm uint64
	}{
		{1, nil, nil, StateLeader, 1},
		{2, nil, nil, StateCandidate, 1},
		{2, []uint64{2}, nil, StateLeader, 1},
		{3, []uint64{2}, nil, StateLeader, 1},
		{3, nil, []uint64{2}, StateCandidate, 1},
		{3, nil, []uint64{2, 3}, StateFollower, 1},
		{4, []uint64{2}, nil, StateCandidate, 1},
		{4, []uint64{2}, []uint64{3, 4}, StateFollower, 1},
		{4, []uint64{2, 3}, nil, StateLeader, 1},
		{5, []uint64{2, 3}, []uint64{4, 5}, StateLeader, 1},
		{5, []uint64{2}, []uint64{3, 4}, StateCandidate, 1},
		{5, []uint64{2}, []uint64{3, 4, 5}, StateFollower, 1},
	} {
		var ids []uint64
		for id := range tc.size {
			ids = append(ids, uint64(id)+1)
		}
		r := mkRaft(1, ids)
		mustStep(t, r, eraftpb.Message{MsgType: tHup})
		for _, id := range tc.no {
			mustStep(t, r,
				eraftpb.Message{MsgType: tVoteResp, From: id, To: 1, Term: r.Term, Reject: true})
		}
		for _, id := range tc.yes {
			mustStep(t, r, eraftpb.Message{MsgType: tVoteResp, From: id, To: 1, Term: r.Term})
		}
		equal(t, fmt.Sprintf("%+v", tc), r.State, tc.want)
		equal(t, "term", r.Term, tc.wantTerm)
	}
}

// The same voter twice is one vote, and a second answer does not undo the first.
func TestVoteCountsOncePerVoter2AA(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3, 4, 5})
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	for range 3 {
		mustStep(t, r, eraftpb.Message{MsgType: tVoteResp, From: 2, To: 1, Term: 1})
	}
	equal(t, "state", r.State, StateCandidate)
	mustStep(t, r, eraftpb.Message{MsgType: tVoteResp, From: 2, To: 1, Term: 1, Reject: true})
	equal(t, "vote of 2", r.votes[2], true)
	// A stranger has no vote.
	mustStep(t, r, eraftpb.Message{MsgType: tVoteResp, From: 9, To: 1, Term: 1})
	equal(t, "state", r.State, StateCandidate)
}

// One vote a term, first come first served, given again to the same candidate.
func TestOneVoteATerm2AA(t *testing.T) {
	for _, tc := range []struct {
		vote, from uint64
		reject     bool
	}{
		{None, 2, false},
		{None, 3, false},
		{2, 2, false},
		{3, 3, false},
		{2, 3, true},
		{3, 2, true},
	} {
		r := mkRaft(1, []uint64{1, 2, 3})
		r.Term, r.Vote = 1, tc.vote
		mustStep(t, r, eraftpb.Message{MsgType: tVote, From: tc.from, To: 1, Term: 1})
		equal(t, fmt.Sprintf("%+v", tc), take(r), []eraftpb.Message{
			{MsgType: tVoteResp, From: 1, To: tc.from, Term: 1, Reject: tc.reject},
		})
	}
}

// Leaders and candidates refuse votes of their own term: they have given theirs to themselves.
func TestLeaderAndCandidateRefuseVotesOfTheirTerm2AA(t *testing.T) {
	for _, leader := range []bool{false, true} {
		r := mkRaft(1, []uint64{1, 2, 3})
		r.becomeCandidate()
		if leader {
			r.becomeLeader()
		}
		state := r.State
		mustStep(t, r,
			eraftpb.Message{MsgType: tVote, From: 2, To: 1, Term: 1, Index: 9, LogTerm: 9})
		msgs := ofType(take(r), tVoteResp)
		equal(t, "answers", len(msgs), 1)
		equal(t, "reject", msgs[0].Reject, true)
		equal(t, "state", r.State, state)
	}
}

// The timeout is drawn from [ElectionTick, 2*ElectionTick), every value about as often, and again
// at each change of role.
func TestTimeoutIsRandomUniformAndRedrawn2AA(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3})
	seen := map[int]int{}
	const draws = 4000
	for i := range draws {
		switch i % 2 {
		case 0:
			r.becomeFollower(r.Term+1, 2)
		case 1:
			r.becomeCandidate()
		}
		seen[r.randomizedElectionTimeout]++
	}
	for timeout := 10; timeout < 20; timeout++ {
		if n := seen[timeout]; n < draws/20 || n > draws/5 {
			t.Fatalf("timeout %d was drawn %d times of %d", timeout, n, draws)
		}
	}
	equal(t, "values", len(seen), 10)
}

// Nodes of one group seldom draw the same shortest timeout.
func TestTimeoutsOfNeighboursDiffer2AA(t *testing.T) {
	var rs []*Raft
	for id := uint64(1); id <= 5; id++ {
		rs = append(rs, mkRaft(id, []uint64{1, 2, 3, 4, 5}))
	}
	ties := 0
	const rounds = 1000
	for range rounds {
		first, count := 100, 0
		for _, r := range rs {
			r.becomeFollower(r.Term+1, None)
			switch d := r.randomizedElectionTimeout; {
			case d < first:
				first, count = d, 1
			case d == first:
				count++
			}
		}
		if count > 1 {
			ties++
		}
	}
	if ties > rounds*3/10 {
		t.Fatalf("%d of %d elections would be split", ties, rounds)
	}
}

// A random source of one's own decides the timeouts.
func TestTimeoutsComeFromTheGivenSource2AA(t *testing.T) {
	src := &countdown{n: 5}
	r := newRaft(courseConfig(1, []uint64{1, 2}, NewMemoryStorage(), func(c *Config) {
		c.Rand = src
	}))
	equal(t, "timeout", r.randomizedElectionTimeout, 15)
	src.n = 0
	r.becomeFollower(1, None)
	equal(t, "timeout", r.randomizedElectionTimeout, 10)
}

type countdown struct{ n int }

func (c *countdown) Intn(int) int { return c.n }

// A MsgHup at a leader, and a message type that is not for the role, change nothing.
func TestRolesIgnoreWhatIsNotTheirs2AA(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	equal(t, "state", r.State, StateLeader)
	equal(t, "term", r.Term, uint64(1))
	mustStep(t, r, eraftpb.Message{MsgType: tVoteResp, From: 2, Term: 1})
	mustStep(t, r, eraftpb.Message{MsgType: tNow, From: 2, Term: 1})
	equal(t, "messages", len(take(r)), 0)

	f := mkRaft(2, []uint64{1, 2, 3})
	f.becomeFollower(1, 1)
	for _, typ := range []eraftpb.MessageType{tBeat, tAppResp, tHeartResp, tVoteResp, tCheck} {
		mustStep(t, f, eraftpb.Message{MsgType: typ, From: 1})
	}
	equal(t, "messages", len(take(f)), 0)
	equal(t, "state", f.State, StateFollower)
}

// A leader in its term that gets a message of another leader of the same term does not follow: it
// would have to cut its own log off (trap A3).
func TestLeaderDoesNotFollowItsEqual2AA(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	before := ltoa(r.RaftLog)
	mustStep(t, r, eraftpb.Message{MsgType: tApp, From: 2, Term: 1, Entries: pointers(terms(1, 1))})
	mustStep(t, r, eraftpb.Message{MsgType: tHeartbeat, From: 2, Term: 1, Commit: 9})
	equal(t, "state", r.State, StateLeader)
	equal(t, "log", ltoa(r.RaftLog), before)
}

// A whole group: one candidate wins, a rival gives in, and the next election goes to the next term.
func TestGroupElectsAndElectsAgain2AA(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.wantState(1, StateLeader, 1)
	c.wantState(2, StateFollower, 1)
	c.campaign(3)
	c.wantState(3, StateLeader, 3)
	c.wantState(1, StateFollower, 3)
	equal(t, "term", c.nodes[1].Term, uint64(2))
}

// Two candidates split the vote; nobody wins that term, and the next one settles it.
func TestSplitVoteIsSettledByTheNextTerm2AA(t *testing.T) {
	c := mkCluster(t, 3)
	c.cut[[2]uint64{1, 3}], c.cut[[2]uint64{3, 1}] = true, true
	c.drop[tVoteResp] = true
	c.campaign(1)
	c.campaign(3)
	c.wantState(1, StateCandidate, None)
	c.wantState(3, StateCandidate, None)
	c.heal()
	c.campaign(3)
	c.wantState(3, StateLeader, 3)
	c.wantState(1, StateFollower, 3)
	equal(t, "term", c.nodes[3].Term, uint64(2))
}

// A node that is not in the group, or has no vote in it, never campaigns.
func TestOnlyVotersCampaign2AA(t *testing.T) {
	stranger := mkRaft(4, []uint64{1, 2, 3})
	empty := mkRaft(1, nil)
	learner := mkRaft(1, []uint64{1, 2, 3})
	learner.Prs[1].IsLearner = true
	for name, r := range map[string]*Raft{
		"stranger": stranger, "empty": empty, "learner": learner,
	} {
		for range 50 {
			r.tick()
		}
		mustStep(t, r, eraftpb.Message{MsgType: tHup})
		mustStep(t, r, eraftpb.Message{MsgType: tNow, From: 2, Term: r.Term})
		equal(t, name, r.State, StateFollower)
		equal(t, name, len(take(r)), 0)
	}
}

// Votes and terms survive a restart, and so does the refusal to vote twice.
func TestVoteSurvivesRestart2AA(t *testing.T) {
	st := NewMemoryStorage()
	if err := st.SetHardState(eraftpb.HardState{Term: 3, Vote: 2}); err != nil {
		t.Fatal(err)
	}
	r := newRaft(courseConfig(1, []uint64{1, 2, 3}, st))
	equal(t, "term", r.Term, uint64(3))
	mustStep(t, r, eraftpb.Message{MsgType: tVote, From: 3, To: 1, Term: 3})
	mustStep(t, r, eraftpb.Message{MsgType: tVote, From: 2, To: 1, Term: 3})
	msgs := take(r)
	equal(t, "reject 3", msgs[0].Reject, true)
	equal(t, "reject 2", msgs[1].Reject, false)
}

// A config that cannot work is refused.
func TestBadConfigIsRefused2AA(t *testing.T) {
	good := courseConfig(1, []uint64{1}, NewMemoryStorage())
	for name, breakIt := range map[string]option{
		"no id":               func(c *Config) { c.ID = None },
		"no heartbeat":        func(c *Config) { c.HeartbeatTick = 0 },
		"election too short":  func(c *Config) { c.ElectionTick = 1 },
		"no storage":          func(c *Config) { c.Storage = nil },
		"negative limit":      func(c *Config) { c.MaxInflightMsgs = -1 },
		"negative grace":      func(c *Config) { c.VoteGraceTicks = -1 },
		"applied without log": func(c *Config) { c.Applied = 7 },
	} {
		bad := *good
		breakIt(&bad)
		if _, err := NewRawNode(&bad); err == nil {
			t.Errorf("%s: no error", name)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			newRaft(&bad)
		}()
	}
}

// Leaders do not campaign and followers do not lead: a caller of that has a bug.
func TestForbiddenChangesOfRolePanic2AA(t *testing.T) {
	leader := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustPanic(t, "leader", "became candidate", leader.becomeCandidate)
	mustPanic(t, "leader", "became pre-candidate", leader.becomePreCandidate)
	mustPanic(t, "follower", "became leader", mkRaft(2, []uint64{1, 2, 3}).becomeLeader)
}

// The highest term there is is never entered: the next candidacy would start over at 0.
func TestHighestTermIsNotEntered2AA(t *testing.T) {
	for _, typ := range []eraftpb.MessageType{tApp, tHeartbeat, tVote, tPreVote, tAppResp} {
		r := mkRaft(1, []uint64{1, 2, 3})
		mustStep(t, r, eraftpb.Message{MsgType: typ, From: 2, Term: lastTerm})
		equal(t, typ.String(), r.Term, uint64(0))
		equal(t, "messages", len(take(r)), 0)
	}
}

// After a restart a node gives no vote for as long as it may have promised a leader
// (VoteGraceTicks).
func TestVotesAreRefusedInTheGraceTime2AA(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3}, withPreVote, withCheckQuorum, func(c *Config) {
		c.VoteGraceTicks = 3
	})
	ask := func() bool {
		mustStep(t, r, eraftpb.Message{MsgType: tVote, From: 2, Term: r.Term + 1})
		return r.Vote == 2
	}
	for range 3 {
		equal(t, "vote", ask(), false)
		r.tick()
	}
	equal(t, "vote afterwards", ask(), true)
}

// Roles and progress states have names, those that do not exist too.
func TestStatesHaveNames2AA(t *testing.T) {
	for want, got := range map[string]fmt.Stringer{
		"follower": StateFollower, "pre-candidate": StatePreCandidate, "candidate": StateCandidate,
		"leader": StateLeader, "StateType(9)": StateType(9),
		"probe": ProgressProbe, "replicate": ProgressReplicate, "snapshot": ProgressSnapshot,
		"ProgressState(9)": ProgressState(9),
	} {
		equal(t, "name", got.String(), want)
	}
}
