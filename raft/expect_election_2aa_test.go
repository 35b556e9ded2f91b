package raft

import (
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// A node whose leader is reported as probably gone campaigns after the smallest timeout plus its
// delay, and never before the smallest timeout, whatever the report says: leases rely on that.
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

// Of two that expect an election, the one with the longer delay comes second whatever timeout it
// had drawn; none comes later than without the hint at worst, and leaders and candidates do not
// follow anyone.
func TestExpectedElectionOrdersFollowers2AA(t *testing.T) {
	for _, drawn := range []int{0, 1, 9} {
		r := mkRaft(1, []uint64{1, 2, 3})
		r.randomizedElectionTimeout = r.electionTimeout + drawn
		r.expectElection(5)
		equal(t, "timeout", r.randomizedElectionTimeout, r.electionTimeout+5)
		r.expectElection(100)
		equal(t, "timeout at most", r.randomizedElectionTimeout, 2*r.electionTimeout-1)
		r.becomeCandidate()
		before := r.randomizedElectionTimeout
		r.expectElection(0)
		equal(t, "timeout of a candidate", r.randomizedElectionTimeout, before)
	}
}
