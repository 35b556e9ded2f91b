package raft

import (
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// Who is told that its leader is probably gone campaigns after the smallest timeout plus its delay, and
// never before the smallest timeout, whatever it is told: leases rely on that.
func TestExpectedElectionKeepsSmallestTimeout2AA(t *testing.T) {
	for _, delay := range []int{-3, 0, 1, 3} {
		r := mkRaft(1, []uint64{1, 2, 3})
		mustStep(t, r, eraftpb.Message{MsgType: tHeartbeat, From: 2, To: 1, Term: 1})
		r.randomizedElectionTimeout = 2*r.electionTimeout - 1
		r.expectElection(delay)
		want := r.electionTimeout + max(delay, 0)
		for range want - 1 {
			r.tick()
			equal(t, "state before its time", r.State, StateFollower)
		}
		r.tick()
		if r.State == StateFollower {
			t.Fatalf("delay %d: no campaign after %d ticks", delay, want)
		}
	}
}

// The hint hurries, it never puts off; and leaders and candidates do not follow anyone.
func TestExpectedElectionOnlyHurriesFollowers2AA(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3})
	r.randomizedElectionTimeout = r.electionTimeout + 1
	r.expectElection(5)
	equal(t, "timeout", r.randomizedElectionTimeout, r.electionTimeout+1)
	r.becomeCandidate()
	before := r.randomizedElectionTimeout
	r.expectElection(0)
	equal(t, "timeout of a candidate", r.randomizedElectionTimeout, before)
}
