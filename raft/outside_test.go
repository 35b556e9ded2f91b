package raft

import (
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// Suites from outside put nodes together by hand: a new map of empty Progress, a role without its
// become function, a storage made as a literal. All of that has to work.
func TestHandMadeNodesWork2AA(t *testing.T) {
	c := mkCluster(t, 3)
	for _, id := range c.ids() {
		r := c.nodes[id]
		r.Prs = map[uint64]*Progress{1: {}, 2: {}, 3: {}}
	}
	c.campaign(1)
	c.propose(1, "x")
	c.wantState(1, StateLeader, 1)
	equal(t, "committed", c.nodes[1].RaftLog.committed, uint64(2))
	c.beat(1)
	c.wantSameLogs()

	r := mkRaft(1, []uint64{1, 2, 3})
	st := &MemoryStorage{
		ents: []eraftpb.Entry{{}, {Index: 1, Term: 0}, {Index: 2, Term: 1}},
		snapshot: eraftpb.Snapshot{
			Metadata: &eraftpb.SnapshotMetadata{ConfState: &eraftpb.ConfState{}},
		},
	}
	r.RaftLog = newLog(st)
	r.Term = 1
	for state, want := range map[StateType]int{
		StateLeader: 2, StateCandidate: 0, StateFollower: 0,
	} {
		r.State = state
		mustStep(t, r, eraftpb.Message{MsgType: tBeat, From: 1, To: 1})
		msgs := take(r)
		equal(t, "heartbeats of a "+state.String(), len(ofType(msgs, tHeartbeat)), want)
		equal(t, "messages", len(msgs), want)
	}
}

// The snapshot is installed by hand and another member's Next set back: it gets that snapshot.
func TestHandMadeLaggardGetsPendingSnapshot2C(t *testing.T) {
	r := mkRaft(1, []uint64{1})
	r.handleSnapshot(eraftpb.Message{Snapshot: snapAt(11, 11, 1, 2)})
	r.becomeCandidate()
	r.becomeLeader()
	take(r)
	r.Prs[2].Next = 11
	mustStep(t, r,
		eraftpb.Message{MsgType: tAppResp, From: 2, To: 1, Index: r.Prs[2].Next - 1, Reject: true})
	msgs := take(r)
	equal(t, "messages", len(msgs), 1)
	equal(t, "type", msgs[0].MsgType, tSnap)
}

// What a suite does around a hand-made leader: send twice, acknowledge, persist by hand.
func TestHandMadeLeaderCommits2AB(t *testing.T) {
	r := newRaft(courseConfig(1, []uint64{1, 2, 3}, storageWith(terms(2, 2))))
	r.Term = 2
	r.becomeCandidate()
	r.becomeLeader()
	mustStep(t, r,
		eraftpb.Message{
			MsgType: tProp, From: 1, To: 1, Entries: []*eraftpb.Entry{{Data: []byte("x")}},
		})
	for _, m := range take(r) {
		mustStep(t, r, eraftpb.Message{
			From: m.To, To: m.From, Term: m.Term, MsgType: tAppResp,
			Index: m.Index + uint64(len(m.Entries)),
		})
	}
	want := append(terms(2, 2), eraftpb.Entry{Term: 3, Index: 3},
		eraftpb.Entry{Term: 3, Index: 4, Data: []byte("x")})
	equal(t, "to apply", r.RaftLog.nextEnts(), want)
	for id := range r.Prs {
		if id != r.id {
			r.sendAppend(id)
		}
	}
	r.RaftLog.stabled = r.RaftLog.LastIndex()
	r.RaftLog.applied = r.RaftLog.committed
	equal(t, "to apply", len(r.RaftLog.nextEnts()), 0)
	equal(t, "to persist", r.RaftLog.unstableEntries(), []eraftpb.Entry{})
}
