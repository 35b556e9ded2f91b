package sim_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/raft/rafttest/sim"
)

// expectFound plays seeds until one breaks an invariant, which has to be one of those named.
func expectFound(t *testing.T, within uint64, change func(*sim.Profile), invariants ...string) {
	t.Helper()
	for seed := uint64(1); seed <= within; seed++ {
		res := sim.Run(seed, sim.Options{Events: events, Profile: change})
		if v := res.Violation; v != nil {
			require.Contains(t, invariants, v.Invariant, "seed %d: %v", seed, v)
			t.Logf("seed %d: %v", seed, v)
			return
		}
	}
	t.Fatalf("not found in %d seeds", within)
}

// rough weather, in which what was promised and forgotten is missed soon.
func rough(p *sim.Profile) {
	p.Voters, p.Learners, p.PreVote, p.CheckQuorum, p.Lease = 3, 0, false, false, false
	p.Loss, p.CrashPerReady, p.RestartUS, p.ConfChange, p.Wipe = 0.2, 0.01, 25_000, 0, 0
	p.RateLo, p.RateHi = 1, 1
}

// TestSimNoticesLyingSync is a negative control: disks that say they have synced and have not break
// what raft rests on, and a commit that is on no majority's disks is seen at once.
func TestSimNoticesLyingSync(t *testing.T) {
	expectFound(t, 5, func(p *sim.Profile) { rough(p); p.LyingSync = 0.3 }, "I7")
}

// TestSimNoticesLostTail is the same without a look at the disks: entries that were acknowledged
// are gone after a crash (trap B-3), and what comes of it is seen. A leader lacks what was
// committed, or a state machine has something else; a restarted node is behind its own commit
// index.
func TestSimNoticesLostTail(t *testing.T) {
	expectFound(t, 30, func(p *sim.Profile) {
		rough(p)
		p.LostTail = 0.3
	}, "lost", "I2", "I3", "I4", "I7")
}

// TestSimNoticesWipedRejoin: a node without its disk must not come back under its ID (trap B-4). It
// would vote again, and acknowledge for the one it was.
func TestSimNoticesWipedRejoin(t *testing.T) {
	expectFound(t, 30, func(p *sim.Profile) {
		rough(p)
		p.Wipe, p.WipedRejoin, p.FaultUS = 1, true, 50_000
	}, "lost", "I2", "I3", "I4", "I6", "I7")
}

// TestSimReplacesWipedNodes: under a new ID it does no harm, and the group is whole again.
func TestSimReplacesWipedNodes(t *testing.T) {
	var sum sim.Counts
	for seed := uint64(1); seed <= 40; seed++ {
		res := sim.Run(seed, sim.Options{Events: events, Profile: func(p *sim.Profile) {
			p.Voters, p.Wipe, p.FaultUS = max(p.Voters, 3), 1, 100_000
		}})
		require.Nil(t, res.Violation, "seed %d", seed)
		sum.Add(res.Counts)
	}
	t.Logf("%+v", sum)
	require.Greater(t, sum.Wipes, 20)
	require.GreaterOrEqual(t, sum.ConfChanges, sum.Wipes, "each is removed and another one added")
	require.Zero(t, sum.BeyondRepair)
}

// TestSimSwizzles: nodes are cut off one after the other and let back in another order, and
// messages that waited for them arrive.
func TestSimSwizzles(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		res := sim.Run(seed,
			sim.Options{Events: events, Profile: func(p *sim.Profile) { p.FaultUS = 60_000 }})
		require.Nil(t, res.Violation, "seed %d", seed)
		require.Positive(t, res.Counts.Swizzles, "seed %d", seed)
	}
}

// TestSimOperationsHaveOneOutcome: proposals end applied, never or unknown; the run itself fails if
// one ends twice or not at all (I13). Here: all three happen, and nothing takes long once all is
// well.
func TestSimOperationsHaveOneOutcome(t *testing.T) {
	var sum sim.Counts
	for seed := uint64(1); seed <= 60; seed++ {
		res := sim.Run(seed, sim.Options{Events: events})
		require.Nil(t, res.Violation, "seed %d", seed)
		sum.Add(res.Counts)
	}
	require.Equal(t, sum.Proposals, sum.OutcomeApplied+sum.OutcomeNever+sum.OutcomeUnknown)
	for _, n := range []int{sum.OutcomeApplied, sum.OutcomeNever, sum.OutcomeUnknown} {
		require.Greater(t, n, 100)
	}
	require.Positive(t, sum.MaxHangUS, "nothing was ever asked after healing")
}
