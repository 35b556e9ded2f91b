package sim_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/raft/rafttest/sim"
)

// TestSimShrinks: of a run that fails a much smaller one is found that fails in the same way, and
// it is found again by what the command line says. The failure is a disk that loses what was
// synced. Not every run hangs on a few of its events: one of the first four must shrink to less
// than half.
func TestSimShrinks(t *testing.T) {
	opt := sim.Options{Events: events, Profile: func(p *sim.Profile) { rough(p); p.LostTail = 0.3 }}
	var whole, small sim.Result
	var cut sim.Options
	for seed, failing := uint64(1), 0; failing < 4 && seed < 50; seed++ {
		if whole = sim.Run(seed, opt); whole.Violation == nil {
			continue
		}
		failing++
		small, cut = sim.Shrink(whole.Seed, opt, 150)
		require.NotNil(t, small.Violation)
		require.Equal(t, whole.Violation.Invariant, small.Violation.Invariant)
		if 2*small.Size() < whole.Size() {
			break
		}
	}
	require.NotNil(t, small.Violation, "no seed fails")
	require.Less(t, 2*small.Size(), whole.Size(), "from %d events to %d", whole.Events,
		small.Events)

	again, err := sim.ParseCut(cut.Cut.String())
	require.NoError(t, err)
	replay := sim.Options{Events: cut.Events, Profile: opt.Profile, Cut: again}
	require.Equal(t, small, sim.Run(whole.Seed, replay))
	t.Logf("%d events, %d commands, %d faults; smallest: %d events, %d commands, %d faults: %s",
		whole.Events,
		whole.Commands, whole.Faults, small.Events, small.Commands, small.Faults,
		sim.ReplayCommand(whole.Seed, replay))
}

// TestSimShrinkLeavesGoodRunsAlone: where nothing fails there is nothing to look for.
func TestSimShrinkLeavesGoodRunsAlone(t *testing.T) {
	opt := sim.Options{Events: 2000}
	res, left := sim.Shrink(1, opt, 10)
	require.Nil(t, res.Violation)
	require.Equal(t, opt.Events, left.Events)
	require.Empty(t, left.Cut.String())
}

// TestSimDroppedCommandsAreNotCarriedOut: a cut leaves out what it names and nothing else, and
// reads as it is written.
func TestSimDroppedCommandsAreNotCarriedOut(t *testing.T) {
	whole := sim.Run(3, sim.Options{Events: 4000})
	require.Greater(t, whole.Commands, 20)
	cut, err := sim.ParseCut("loss,crash,c0-10,f0-1000")
	require.NoError(t, err)
	require.Equal(t, "loss,crash,c0-10,f0-1000", cut.String())
	var first, second bytes.Buffer
	res := sim.Run(3, sim.Options{Events: 4000, Cut: cut, Trace: &first})
	require.Zero(t, res.Faults)
	require.Zero(t, res.Profile.Loss)
	require.Zero(t, res.Counts.Crashes)
	require.Equal(t, res, sim.Run(3, sim.Options{Events: 4000, Cut: cut, Trace: &second}))
	require.Equal(t, first.Bytes(), second.Bytes())
	for _, bad := range []string{"rain", "c1", "c1-x", "x1-2"} {
		_, err := sim.ParseCut(bad)
		require.Error(t, err, bad)
	}
}
