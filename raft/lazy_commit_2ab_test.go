package raft

import (
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// lazyLeader leads three members that all have its first entry.
func lazyLeader(t *testing.T) *Raft {
	r := mkRaft(1, []uint64{1, 2, 3}, func(c *Config) { c.LazyCommit = true })
	r.becomeCandidate()
	r.becomeLeader()
	r.broadcastAppend()
	last := r.RaftLog.LastIndex()
	for _, id := range []uint64{2, 3} {
		mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: id, Term: r.Term, Index: last})
	}
	r.tick()
	r.msgs = nil
	return r
}

func appends(r *Raft) []eraftpb.Message {
	out := ofType(r.msgs, tApp)
	r.msgs = nil
	return out
}

// With LazyCommit a commit index waits for the next entries, or for the next tick, and is sent
// then.
func TestLazyCommitWaitsForEntriesOrTick2AB(t *testing.T) {
	r := lazyLeader(t)
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("a")}}})
	appends(r)
	last := r.RaftLog.LastIndex()
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: r.Term, Index: last})
	equal(t, "committed", r.RaftLog.committed, last)
	equal(t, "messages that tell of it at once", len(appends(r)), 0)

	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("b")}}})
	told := appends(r)
	equal(t, "appends", len(told), 2)
	equal(t, "commit index with the next entry", told[0].Commit, last)

	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: r.Term, Index: last + 1})
	appends(r)
	r.tick()
	told = appends(r)
	equal(t, "appends of the tick", len(told), 1)
	equal(t, "to whom has the entry", told[0].To, uint64(2))
	equal(t, "commit index", told[0].Commit, last+1)
	r.tick()
	equal(t, "appends of the next tick", len(appends(r)), 0)
}

// TellCommit does not wait: who has the entry learns that it is committed, once; who has it later
// then.
func TestTellCommit2AB(t *testing.T) {
	r := lazyLeader(t)
	rn := &RawNode{Raft: r}
	mustStep(t, r, eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("a")}}})
	appends(r)
	last := r.RaftLog.LastIndex()
	equal(t, "done before it is committed", rn.TellCommit(last), false)
	equal(t, "appends before it is committed", len(appends(r)), 0)

	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: r.Term, Index: last})
	equal(t, "done while 3 may not have it", rn.TellCommit(last), false)
	told := appends(r)
	equal(t, "appends", len(told), 1)
	equal(t, "to whom has the entry", told[0].To, uint64(2))
	equal(t, "commit index", told[0].Commit, last)
	equal(t, "done while 3 has not answered", rn.TellCommit(last), false)
	equal(t, "appends", len(appends(r)), 0)

	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 3, Term: r.Term, Index: last})
	equal(t, "done once all have it", rn.TellCommit(last), true)
	told = appends(r)
	equal(t, "appends", len(told), 1)
	equal(t, "to whom has it now", told[0].To, uint64(3))
	equal(t, "done", rn.TellCommit(last), true)
	equal(t, "appends", len(appends(r)), 0)
	r.State = StateFollower
	equal(t, "done by who does not lead", rn.TellCommit(last+1), true)
}

// The commit of a conf change is sent at once all the same.
func TestLazyCommitTellsConfChangeAtOnce2AB(t *testing.T) {
	r := lazyLeader(t)
	mustStep(t, r,
		eraftpb.Message{
			MsgType: tProp,
			Entries: []*eraftpb.Entry{{EntryType: eraftpb.EntryType_EntryConfChange}},
		})
	appends(r)
	last := r.RaftLog.LastIndex()
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: r.Term, Index: last})
	told := appends(r)
	equal(t, "appends", len(told), 2)
	equal(t, "commit index", told[0].Commit, last)
}

// Acknowledgements of one Ready are one message, a refusal stays one of its own.
func TestAcknowledgementsMerge2AB(t *testing.T) {
	for _, batch := range []bool{false, true} {
		r := mkRaft(1, []uint64{1, 2, 3}, func(c *Config) { c.AsyncApply = batch })
		app := func(index uint64) {
			mustStep(t, r, eraftpb.Message{
				MsgType: tApp, From: 2, Term: 1, Index: index - 1, LogTerm: min(index-1, 1),
				Entries: []*eraftpb.Entry{{Term: 1, Index: index}},
			})
		}
		app(1)
		app(2)
		app(9) // a gap
		app(3)
		answers := ofType(r.msgs, tAppResp)
		want := 4
		if batch {
			want = 3
		}
		equal(t, "answers", len(answers), want)
		equal(t, "refusal", answers[want-2].Reject, true)
		equal(t, "acknowledged first", answers[want-3].Index, uint64(2))
		equal(t, "acknowledged last", answers[want-1].Index, uint64(3))
	}
}
