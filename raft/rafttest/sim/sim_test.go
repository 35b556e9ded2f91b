package sim_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/raft/rafttest/sim"
)

const events = 20_000

// TestSimSeeds plays a fixed share of the seeds. What they have to see at least is checked too: a
// simulation in which nothing happens finds nothing.
func TestSimSeeds(t *testing.T) {
	seeds := uint64(320)
	if testing.Short() {
		seeds = 40
	}
	const shards = 2
	results := make([]sim.Counts, shards)
	t.Run("shards", func(t *testing.T) {
		for shard := range uint64(shards) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for seed := 1 + shard; seed <= seeds; seed += shards {
					res := sim.Run(seed, sim.Options{Events: events})
					if res.Violation != nil {
						t.Fatalf("seed %d: %v\n%v\nreplay: %s", seed, res.Violation, res.Profile,
							sim.ReplayCommand(seed, sim.Options{Events: events}))
					}
					results[shard].Add(res.Counts)
				}
			})
		}
	})
	var sum sim.Counts
	for _, c := range results {
		sum.Add(c)
	}
	t.Logf("%+v", sum)
	per := int(seeds)
	require.Greater(t, sum.Leaders, 3*per)
	require.Greater(t, sum.Commits, 300*per)
	require.Greater(t, sum.Crashes, 2*per)
	require.Greater(t, sum.Snapshots, per)
	require.Greater(t, sum.ConfChanges, per)
	require.Greater(t, sum.Reads, 50*per)
	require.Greater(t, sum.LeaseReads, per)
	require.Greater(t, sum.ReadsAborted, per)
	require.Greater(t, sum.Truncations, per/2)
	require.Greater(t, sum.Transfers, per/2)
	require.Greater(t, sum.Swizzles, per)
	require.Greater(t, sum.Wipes, per/20)
	require.Greater(t, sum.OutcomeNever, per)
	require.Zero(t, sum.BeyondRepair)
}

// TestSimSameSeedSameRun: the whole trace of a seed is the same each time it is played.
func TestSimSameSeedSameRun(t *testing.T) {
	for seed := uint64(1); seed <= 12; seed++ {
		var first, second bytes.Buffer
		a := sim.Run(seed, sim.Options{Events: 3000, Trace: &first})
		b := sim.Run(seed, sim.Options{Events: 3000, Trace: &second})
		require.Equal(t, a, b)
		require.Equal(t, first.Bytes(), second.Bytes(), "seed %d", seed)
		require.Nil(t, a.Violation)
	}
}

// TestSimOneInFourIsAStorm: the weather that finds forgotten votes has its share.
func TestSimOneInFourIsAStorm(t *testing.T) {
	storms := 0
	for seed := uint64(1); seed <= 100; seed++ {
		p := sim.Run(seed, sim.Options{Events: 1}).Profile
		if p.Name == "storm" {
			storms++
			require.Equal(t, 3, p.Voters)
			require.False(t, p.PreVote)
			require.InDelta(t, 0.3, p.Loss, 1e-9)
			require.InDelta(t, 0.01, p.CrashPerReady, 1e-9)
			require.LessOrEqual(t, p.RestartUS, 25_000)
		}
	}
	require.GreaterOrEqual(t, storms, 25)
}

// TestSimLeaseNeedsGoodClocks is the negative control of I11: with clocks that drift more than the
// lease allows for, reads must go wrong, or the check sees nothing.
func TestSimLeaseNeedsGoodClocks(t *testing.T) {
	lease := func(lo, hi float64) func(*sim.Profile) {
		return func(p *sim.Profile) {
			p.Voters, p.Learners, p.Production, p.PreVote, p.CheckQuorum = 3, 0, true, true, true
			p.Lease, p.LeaseTicks, p.RateLo, p.RateHi = true, 8, lo, hi
			p.Read, p.Transfer, p.ConfChange, p.FaultUS = 0.5, 0.01, 0, 300_000
			p.Loss, p.CrashPerReady = 0.02, 0
		}
	}
	for seed := uint64(1); seed <= 60; seed++ {
		res := sim.Run(seed, sim.Options{Events: 10_000, Profile: lease(0.96, 1.04)})
		require.Nil(t, res.Violation, "seed %d", seed)
	}
	for seed := uint64(1); seed <= 300; seed++ {
		res := sim.Run(seed, sim.Options{Events: 10_000, Profile: lease(0.3, 3)})
		if res.Violation != nil {
			require.Equal(t, "I11", res.Violation.Invariant)
			t.Logf("clocks too far apart: found by seed %d", seed)
			return
		}
	}
	t.Fatal("300 seeds with clocks ten times apart, and every lease read was right")
}

// TestSimRegressions keeps the seeds that found something, with what it was. Most of what they
// found depends on the draws that came before, so a seed may show something else today.
func TestSimRegressions(t *testing.T) {
	for _, tc := range []struct {
		seed uint64
		what string
	}{
		{27, "refused votes put off the own election: fast clocks kept a group without a leader"},
		{87, "the same, with check-quorum"},
		{269, "the same, with learners"},
		{307, "every rejection of a window of overtaken appends started the window over"},
		{327, "the same, at four million messages"},
		{
			3272,
			"a removed voter ended when a learner knew of it, and the other voter forgot the commit in a crash",
		},
		{600036, "a disk was lost while those who stay did not know of the last conf change"},
		{529, "a new node's pre-vote refusal has term 0 and was refused itself"},
	} {
		res := sim.Run(tc.seed, sim.Options{Events: events})
		require.Nil(t, res.Violation, "seed %d: %s", tc.seed, tc.what)
		require.Less(t, res.Events, 25*events, "seed %d: %s", tc.seed, tc.what)
	}
}

// BenchmarkSim reports the events a second of one core with all invariants on.
func BenchmarkSim(b *testing.B) {
	total, seed := 0, uint64(1)
	for b.Loop() {
		res := sim.Run(seed, sim.Options{Events: events})
		if res.Violation != nil {
			b.Fatal(res.Violation)
		}
		total += res.Events
		seed++
	}
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "events/s")
}
