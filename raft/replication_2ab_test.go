package raft

import (
	"errors"
	"fmt"
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// A proposal is appended, and sent with the index and term of the entry before it (section 5.3).
func TestProposalGoesOutBehindItsPredecessor2AB(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
	equal(t, "last", r.RaftLog.LastIndex(), uint64(2))
	equal(t, "committed", r.RaftLog.committed, uint64(1))
	e := eraftpb.Entry{Term: 1, Index: 2, Data: []byte("x")}
	equal(t, "unstable", r.RaftLog.unstableEntries()[1:], []eraftpb.Entry{e})
	want := func(to uint64) eraftpb.Message {
		return eraftpb.Message{
			MsgType: tApp, From: 1, To: to, Term: 1, Index: 1, LogTerm: 1, Commit: 1,
			Entries: []*eraftpb.Entry{&e},
		}
	}
	equal(t, "appends", take(r), []eraftpb.Message{want(2), want(3)})
}

// Only a leader takes proposals, and only one that is in the group and not handing over.
func TestProposalsAreDroppedWhereNobodyLeads2AB(t *testing.T) {
	prop := eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}}
	follower := mkRaft(1, []uint64{1, 2, 3})
	candidate := mkRaft(1, []uint64{1, 2, 3})
	candidate.becomeCandidate()
	removed := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	removed.removeNode(1)
	moving := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustStep(t, moving, eraftpb.Message{MsgType: tTransfer, From: 2})
	empty := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	for name, r := range map[string]*Raft{
		"follower": follower, "candidate": candidate, "removed": removed, "moving": moving,
	} {
		last := r.RaftLog.LastIndex()
		if err := r.Step(prop); !errors.Is(err, ErrProposalDropped) {
			t.Errorf("%s: %v", name, err)
		}
		equal(t, name, r.RaftLog.LastIndex(), last)
	}
	if err := empty.Step(eraftpb.Message{MsgType: tProp}); !errors.Is(err, ErrProposalDropped) {
		t.Errorf("no entries: %v", err)
	}
}

// An entry is committed by a majority, itself included, and the commit is sent to everyone at once.
func TestMajorityCommits2AB(t *testing.T) {
	for _, tc := range []struct {
		size int
		acks []uint64
		want bool
	}{
		{1, nil, true},
		{2, nil, false},
		{2, []uint64{2}, true},
		{3, nil, false},
		{3, []uint64{3}, true},
		{4, []uint64{2}, false},
		{4, []uint64{2, 4}, true},
		{5, []uint64{2}, false},
		{5, []uint64{2, 3}, true},
		{5, []uint64{2, 3, 4, 5}, true},
	} {
		var ids []uint64
		for id := range tc.size {
			ids = append(ids, uint64(id)+1)
		}
		r := lead(t, mkRaft(1, ids))
		mustStep(t, r,
			eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
		take(r)
		for _, id := range tc.acks {
			mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: id, Term: 1, Index: 2})
		}
		equal(t, fmt.Sprintf("%+v committed", tc), r.RaftLog.committed == 2, tc.want)
		if tc.want && tc.size > 1 {
			msgs := ofType(take(r), tApp)
			if len(msgs) < tc.size-1 {
				t.Fatalf("%+v: %d get it", tc, len(msgs))
			}
			for _, m := range msgs {
				equal(t, "commit told", m.Commit, uint64(2))
			}
		}
	}
}

// A commit is sent to each follower once.
func TestCommitIsToldOnce2AB(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
	take(r)
	for id := uint64(2); id <= 3; id++ {
		mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: id, Term: 1, Index: 2})
	}
	told := eraftpb.Message{MsgType: tApp, From: 1, Term: 1, Index: 2, LogTerm: 1, Commit: 2}
	second, third := told, told
	second.To, third.To = 2, 3
	equal(t, "messages", take(r), []eraftpb.Message{second, third})
}

// Committing an entry of the own term commits all before it; an older term's entry is not committed
// by counting (figure 3.7 of the thesis: it may still be overwritten).
func TestOnlyOwnTermIsCounted2AB(t *testing.T) {
	for _, tc := range []struct{ ack, commit uint64 }{{1, 0}, {2, 0}, {3, 3}} {
		r := newRaft(courseConfig(1, []uint64{1, 2}, storageWith(terms(1, 2))))
		r.Term = 2
		r.becomeCandidate()
		r.becomeLeader()
		mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 3, Index: tc.ack})
		equal(t, fmt.Sprintf("commit after ack %d", tc.ack), r.RaftLog.committed, tc.commit)
	}
}

// The consistency check (section 5.3): the answer to an append by what precedes it.
func TestAppendNeedsItsPredecessor2AB(t *testing.T) {
	for _, tc := range []struct {
		name             string
		index, term      uint64
		reject           bool
		hint, hintOfTerm uint64
	}{
		{"from the start", 0, 0, false, 0, 0},
		{"committed", 1, 1, false, 0, 0},
		{"last", 2, 2, false, 0, 0},
		{"other term at an index we have", 2, 1, true, 1, 1},
		{"later term at an index we have", 2, 7, true, 2, 2},
		{"beyond the log", 3, 3, true, 2, 2},
		{"far beyond the log, old term", 9, 1, true, 1, 1},
	} {
		r := newRaft(courseConfig(1, []uint64{1, 2, 3}, storageWith(terms(1, 2))))
		r.RaftLog.committed = 1
		r.becomeFollower(2, 2)
		mustStep(t, r, eraftpb.Message{
			MsgType: tApp, From: 2, To: 1, Term: 2, Index: tc.index, LogTerm: tc.term,
		})
		m := take(r)[0]
		equal(t, tc.name+": reject", m.Reject, tc.reject)
		if tc.reject {
			equal(t, tc.name+": rejected index", m.Index, tc.index)
			equal(t, tc.name+": hint", m.RejectHint, tc.hint)
			equal(t, tc.name+": term at the hint", m.LogTerm, tc.hintOfTerm)
		}
	}
}

// What an append leaves in the log: only from the first entry that differs on is anything replaced
// (trap B-5), and what is replaced is not persisted any more (trap B-6).
func TestAppendReplacesFromTheFirstDifference2AB(t *testing.T) {
	for _, tc := range []struct {
		name        string
		index, term uint64
		ents        []eraftpb.Entry
		log         []eraftpb.Entry
		unstable    int
	}{
		{"new entry", 2, 2, []eraftpb.Entry{{Term: 3, Index: 3}}, terms(1, 2, 3), 1},
		{
			"conflict", 1, 1, []eraftpb.Entry{{Term: 3, Index: 2}, {Term: 4, Index: 3}},
			terms(1, 3, 4), 2,
		},
		{"all there", 0, 0, terms(1), terms(1, 2), 0},
		{"conflict at the start", 0, 0, terms(3), terms(3), 1},
		{"same and more", 0, 0, terms(1, 2, 3), terms(1, 2, 3), 1},
		{"nothing", 1, 1, nil, terms(1, 2), 0},
	} {
		r := newRaft(courseConfig(1, []uint64{1, 2, 3}, storageWith(terms(1, 2))))
		r.becomeFollower(4, 2)
		mustStep(t, r, eraftpb.Message{
			MsgType: tApp, From: 2, To: 1, Term: 4, Index: tc.index, LogTerm: tc.term,
			Entries: pointers(tc.ents),
		})
		equal(t, tc.name+": log", r.RaftLog.allEntries(), tc.log)
		un := r.RaftLog.unstableEntries()
		if un == nil {
			t.Fatal("unstable entries are nil")
		}
		equal(t, tc.name+": unstable", un,
			append([]eraftpb.Entry{}, tc.log[len(tc.log)-tc.unstable:]...))
	}
}

// How far a follower commits: as far as the leader, but not beyond what the message vouches for.
func TestFollowerCommitsWhatIsVouchedFor2AB(t *testing.T) {
	for _, tc := range []struct {
		name          string
		index, term   uint64
		ents          []eraftpb.Entry
		commit, want  uint64
		wantLastIndex uint64
	}{
		{"nothing new", 1, 1, nil, 1, 1, 2},
		{"commit beyond the message", 1, 1, nil, 3, 1, 2},
		{"commit beyond the message, entries", 1, 1, []eraftpb.Entry{{Term: 2, Index: 2}}, 3, 2, 2},
		{
			"commit below the message", 2, 2,
			[]eraftpb.Entry{{Term: 2, Index: 3}, {Term: 2, Index: 4}}, 3, 3, 4,
		},
		{"all of the log, commit far away", 2, 2, nil, 9, 2, 2},
	} {
		r := newRaft(courseConfig(1, []uint64{1, 2}, storageWith(terms(1, 2))))
		r.becomeFollower(2, 2)
		mustStep(t, r, eraftpb.Message{
			MsgType: tApp, From: 2, Term: 2, Index: tc.index, LogTerm: tc.term,
			Entries: pointers(tc.ents), Commit: tc.commit,
		})
		equal(t, tc.name+": commit", r.RaftLog.committed, tc.want)
		equal(t, tc.name+": last", r.RaftLog.LastIndex(), tc.wantLastIndex)
	}
}

// A committed entry is never cut off, whatever a message says: it is answered like an old one.
func TestCommittedEntriesStay2AB(t *testing.T) {
	r := newRaft(courseConfig(1, []uint64{1, 2}, storageWith(terms(1, 1, 1))))
	r.becomeFollower(2, 2)
	r.RaftLog.committed = 3
	mustStep(t, r, eraftpb.Message{
		MsgType: tApp, From: 2, Term: 2, Index: 0, LogTerm: 0, Entries: pointers(terms(2, 2)),
	})
	equal(t, "log", r.RaftLog.allEntries(), terms(1, 1, 1))
	m := take(r)[0]
	equal(t, "answer", m.Index, uint64(3))
	equal(t, "reject", m.Reject, false)
}

// A heartbeat raises the commit index and never lowers it, nor above the log (trap B-2).
func TestHeartbeatCommits2AB(t *testing.T) {
	for _, tc := range []struct{ commit, want uint64 }{{1, 2}, {2, 2}, {3, 3}, {99, 3}} {
		r := newRaft(courseConfig(1, []uint64{1, 2}, storageWith(terms(1, 2, 3))))
		r.becomeFollower(3, 2)
		r.RaftLog.committed = 2
		mustStep(t, r, eraftpb.Message{MsgType: tHeartbeat, From: 2, Term: 3, Commit: tc.commit})
		equal(t, "commit", r.RaftLog.committed, tc.want)
		equal(t, "answers", len(ofType(take(r), tHeartResp)), 1)
	}
}

// The leader tells a follower no commit index beyond what it is known to have.
func TestHeartbeatPromisesOnlyWhatMatches2AB(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	for range 3 {
		mustStep(t, r,
			eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
	}
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: 4})
	take(r)
	mustStep(t, r, eraftpb.Message{MsgType: tBeat})
	for _, m := range take(r) {
		equal(t, fmt.Sprintf("commit told to %d", m.To), m.Commit,
			map[uint64]uint64{2: 4, 3: 1}[m.To])
	}
}

// A follower that is behind and answers a heartbeat gets an append, each time, until it catches up.
func TestHeartbeatAnswerOfLaggardIsFollowedByAppend2AB(t *testing.T) {
	r := newRaft(courseConfig(1, []uint64{1, 2}, storageWith(terms(1, 2, 3))))
	r.Term = 3
	r.becomeCandidate()
	r.becomeLeader()
	take(r)
	for range 2 {
		mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 4})
		equal(t, "appends", len(ofType(take(r), tApp)), 1)
	}
	mustStep(t, r,
		eraftpb.Message{MsgType: tAppResp, From: 2, Term: 4, Index: r.RaftLog.LastIndex()})
	take(r)
	mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 4})
	equal(t, "messages to who is up to date", len(take(r)), 0)
}

// A leader repairs every log of figure 7 (section 5.3).
func TestLeaderRepairsFollowersOfFigure7_2AB(t *testing.T) {
	log := terms(1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
	for i, follower := range [][]eraftpb.Entry{
		terms(1, 1, 1, 4, 4, 5, 5, 6, 6),
		terms(1, 1, 1, 4),
		terms(1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
		terms(1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
		terms(1, 1, 1, 4, 4, 4, 4),
		terms(1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
	} {
		c := mkCluster(t, 3)
		c.storage[1], c.storage[2] = storageWith(log), storageWith(follower)
		for id := uint64(1); id <= 2; id++ {
			c.nodes[id] = newRaft(courseConfig(id, []uint64{1, 2, 3}, c.storage[id]))
			c.nodes[id].Term = 8
		}
		c.campaign(1)
		c.propose(1, "x")
		c.wantState(1, StateLeader, 1)
		equal(t, fmt.Sprintf("follower %d", i), ltoa(c.nodes[2].RaftLog), ltoa(c.nodes[1].RaftLog))
	}
}

// Rejections are answered in one round trip a term, not one an entry.
func TestRepairTakesOneRoundTripATerm2AB(t *testing.T) {
	var long, stale []uint64
	for i := range 400 {
		long = append(long, 4)
		stale = append(stale, uint64(1+i/200))
	}
	c := mkCluster(t, 2)
	c.storage[1], c.storage[2] = storageWith(terms(long...)), storageWith(terms(stale...))
	for id := uint64(1); id <= 2; id++ {
		c.nodes[id] = newRaft(courseConfig(id, []uint64{1, 2}, c.storage[id]))
		c.nodes[id].Term = 4
	}
	rejects := 0
	c.hook = func(m eraftpb.Message) bool {
		if m.MsgType == tAppResp && m.Reject {
			rejects++
		}
		return true
	}
	c.campaign(1)
	c.wantSameLogs()
	if rejects > 3 {
		t.Fatalf("%d rejections for two stale terms", rejects)
	}
}

// The election restriction (section 5.4.1): the later last term, then the longer log.
func TestVotersWantAnUpToDateLog2AB(t *testing.T) {
	for _, tc := range []struct {
		log         []eraftpb.Entry
		term, index uint64
		reject      bool
	}{
		{terms(1), 1, 1, false},
		{terms(1), 1, 2, false},
		{terms(1, 1), 1, 1, true},
		{terms(1), 2, 1, false},
		{terms(1, 1), 2, 1, false},
		{terms(2), 1, 1, true},
		{terms(2), 1, 9, true},
		{terms(1, 2), 2, 1, true},
	} {
		r := newRaft(courseConfig(1, []uint64{1, 2}, storageWith(tc.log)))
		mustStep(t, r, eraftpb.Message{
			MsgType: tVote, From: 2, To: 1, Term: 3, LogTerm: tc.term, Index: tc.index,
		})
		equal(t, fmt.Sprintf("%+v", tc), take(r)[0].Reject, tc.reject)
	}
}

// Entries that are not persisted yet count for the restriction as well (trap A12).
func TestUnstableEntriesCountInElections2AB(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3})
	r.becomeFollower(2, 2)
	mustStep(t, r, eraftpb.Message{MsgType: tApp, From: 2, Term: 2, Entries: pointers(terms(1, 2))})
	take(r)
	mustStep(t, r, eraftpb.Message{MsgType: tVote, From: 3, Term: 3, LogTerm: 1, Index: 9})
	equal(t, "reject", take(r)[0].Reject, true)
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	m := take(r)[0]
	equal(t, "requested with", []uint64{m.Index, m.LogTerm}, []uint64{2, 2})
}

// A group replicates, through a partition and after it.
func TestGroupReplicatesThroughPartition2AB(t *testing.T) {
	c := mkCluster(t, 5)
	c.campaign(1)
	c.isolate(5)
	c.propose(1, "a")
	c.propose(1, "b")
	equal(t, "committed", c.nodes[1].RaftLog.committed, uint64(3))
	equal(t, "committed at the isolated", c.nodes[5].RaftLog.committed, uint64(1))
	c.heal()
	c.beat(1)
	c.wantSameLogs()
}

// What a leader in a minority appended is not committed, and is gone after the heal.
func TestMinorityLeaderCommitsNothing2AB(t *testing.T) {
	c := mkCluster(t, 5)
	c.campaign(1)
	for _, id := range []uint64{3, 4, 5} {
		c.cut[[2]uint64{1, id}], c.cut[[2]uint64{id, 1}] = true, true
		c.cut[[2]uint64{2, id}], c.cut[[2]uint64{id, 2}] = true, true
	}
	c.propose(1, "lost")
	equal(t, "committed", c.nodes[1].RaftLog.committed, uint64(1))
	c.campaign(3)
	c.propose(3, "kept")
	equal(t, "committed", c.nodes[3].RaftLog.committed, uint64(3))
	c.heal()
	c.beat(3)
	c.wantSameLogs()
	equal(t, "log", ltoa(c.nodes[1].RaftLog), "committed=3 1/1: 2/2: 3/2:kept")
}

// Figure 8 (section 5.4.2): the entry of term 2 on a majority is not committed by the leader of
// term 4, for one with the entry of term 3 could still win; the leader's own entry commits both.
func TestFigure8_2AB(t *testing.T) {
	r := newRaft(courseConfig(1, []uint64{1, 2, 3, 4, 5}, storageWith(terms(1, 2))))
	r.RaftLog.committed, r.Term = 1, 3
	r.becomeCandidate()
	r.becomeLeader()
	equal(t, "term", r.Term, uint64(4))
	for _, id := range []uint64{2, 3} {
		mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: id, Term: 4, Index: 2})
	}
	equal(t, "commit with the old entry on three of five", r.RaftLog.committed, uint64(1))
	rival := newRaft(courseConfig(5, []uint64{1, 2, 3, 4, 5}, storageWith(terms(1, 3))))
	rival.Term = 4
	mustStep(t, rival, eraftpb.Message{MsgType: tHup})
	voter := newRaft(courseConfig(2, []uint64{1, 2, 3, 4, 5}, storageWith(terms(1, 2))))
	mustStep(t, voter, ofType(take(rival), tVote)[1])
	equal(t, "the rival can win", take(voter)[0].Reject, false)
	for _, id := range []uint64{2, 3} {
		mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: id, Term: 4, Index: 3})
	}
	equal(t, "commit with the own entry on three of five", r.RaftLog.committed, uint64(3))
}

// A late message of an old leader changes nothing; the answer tells it of the new term.
func TestOldLeaderIsTold2AB(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.campaign(2)
	c.campaign(1)
	before := ltoa(c.nodes[1].RaftLog)
	_ = c.nodes[1].Step(eraftpb.Message{
		MsgType: tApp, From: 2, To: 1, Term: 2, Index: 2, LogTerm: 2,
		Entries: []*eraftpb.Entry{{Index: 3, Term: 2}},
	})
	equal(t, "log", ltoa(c.nodes[1].RaftLog), before)
	m := take(c.nodes[1])[0]
	equal(t, "answer", []any{m.MsgType, m.Term, m.Reject}, []any{tAppResp, uint64(3), true})
}

// Appends with a hole, without entries where there should be, or at the end of numbers, are refused
// without harm.
func TestMalformedAppendsAreRefused2AB(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2})
	r.becomeFollower(1, 2)
	for _, m := range []eraftpb.Message{
		{Entries: []*eraftpb.Entry{{Index: 2, Term: 1}}},
		{Entries: []*eraftpb.Entry{nil}},
		{Entries: []*eraftpb.Entry{{Index: 1, Term: 1}, {Index: 3, Term: 1}}},
		{Index: ^uint64(0), Entries: []*eraftpb.Entry{{Index: 0, Term: 1}}},
	} {
		m.MsgType, m.From, m.Term = tApp, 2, 1
		mustStep(t, r, m)
		equal(t, "last", r.RaftLog.LastIndex(), uint64(0))
	}
}

// An acknowledgement of what was never sent is not believed.
func TestAcknowledgementBeyondTheLogIsNotBelieved2AB(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: 99})
	equal(t, "match", r.Prs[2].Match, uint64(1))
	equal(t, "commit", r.RaftLog.committed, uint64(1))
}

// Late rejections move nothing (trap B-9).
func TestLateRejectionsMoveNothing2AB(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	for range 5 {
		mustStep(t, r,
			eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
	}
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: 4})
	take(r)
	before := *r.Prs[2]
	for _, m := range []eraftpb.Message{
		{Index: 2, RejectHint: 0}, {Index: 4, RejectHint: 4}, {Index: 5, RejectHint: 3},
	} {
		m.MsgType, m.From, m.Term, m.Reject = tAppResp, 2, 1, true
		mustStep(t, r, m)
		equal(t, "progress", r.Prs[2].String(), before.String())
	}
	mustStep(t, r, eraftpb.Message{
		MsgType: tAppResp, From: 2, Term: 1, Reject: true, Index: 5, RejectHint: 4, LogTerm: 1,
	})
	equal(t, "state", r.Prs[2].State, ProgressProbe)
	equal(t, "appends from", ofType(take(r), tApp)[0].Index, uint64(4))
}

// The log's own functions.
func TestLogTermsAndBounds2AB(t *testing.T) {
	st := storageWith(terms(1, 1, 2, 2, 3))
	if err := st.Compact(2); err != nil {
		t.Fatal(err)
	}
	l := newLog(st)
	equal(t, "first", l.firstIndex(), uint64(3))
	equal(t, "last", l.LastIndex(), uint64(5))
	equal(t, "committed", l.committed, uint64(2))
	equal(t, "applied", l.applied, uint64(2))
	equal(t, "stabled", l.stabled, uint64(5))
	equal(t, "entries", len(l.allEntries()), 3)
	for _, tc := range []struct {
		i, term uint64
		err     error
	}{{1, 0, ErrCompacted}, {2, 1, nil}, {3, 2, nil}, {5, 3, nil}, {6, 0, ErrUnavailable}} {
		term, err := l.Term(tc.i)
		if term != tc.term || !errors.Is(err, tc.err) {
			t.Fatalf("term of %d: %d, %v", tc.i, term, err)
		}
	}
	l.committed = 4
	equal(t, "to apply", l.nextEnts(), terms(1, 1, 2, 2)[2:])
	l.applied = 4
	equal(t, "to apply", len(l.nextEnts()), 0)
	if _, err := l.slice(1, 3, 0); !errors.Is(err, ErrCompacted) {
		t.Fatal(err)
	}
	if _, err := l.slice(3, 9, 0); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
}

// A log broken beyond repair stops the node.
func TestLogPanicsOnBrokenInvariants2AB(t *testing.T) {
	for name, f := range map[string]func(l *RaftLog){
		"cut committed": func(l *RaftLog) { l.truncateAndAppend(pointers(terms(9))) },
		"gap":           func(l *RaftLog) { l.truncateAndAppend([]*eraftpb.Entry{{Index: 9}}) },
		"apply ahead":   func(l *RaftLog) { l.appliedTo(3) },
	} {
		l := newLog(storageWith(terms(1, 1, 1)))
		l.committed = 2
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f(l)
		}()
	}
}

// The appends of one broadcast share their entries, and those of the next one do not.
func TestBroadcastSharesEntries2AB(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	prop := func(data string) []eraftpb.Message {
		mustStep(t, r,
			eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte(data)}}})
		return ofType(take(r), tApp)
	}
	first, second := prop("a"), prop("b")
	equal(t, "appends", []int{len(first), len(second)}, []int{2, 2})
	equal(t, "one slice", &first[0].Entries[0] == &first[1].Entries[0], true)
	equal(t, "another one", &first[0].Entries[0] == &second[0].Entries[0], false)
	equal(t, "first", string(first[1].Entries[0].Data), "a")
	equal(t, "second", string(second[1].Entries[0].Data), "b")
}
