//go:build planted

package sim_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/raft/rafttest/sim"
)

// TestSimFindsPlantedBugs: the quickly found ones are found; cmd/raftsim -planted all measures them
// all.
func TestSimFindsPlantedBugs(t *testing.T) {
	defer sim.Plant("")
	for _, tc := range []struct {
		bug    string
		within uint64
	}{
		{"B1", 300}, {"B3", 100}, {"B4", 30}, {"B5", 10}, {"B6", 30}, {"B7", 100}, {"B8", 20},
		{"B18", 150},
	} {
		t.Run(tc.bug, func(t *testing.T) {
			sim.Plant(tc.bug)
			for seed := uint64(1); seed <= tc.within; seed++ {
				if res := sim.Run(seed, sim.Options{Events: events}); res.Violation != nil {
					t.Logf("seed %d: %v", seed, res.Violation)
					return
				}
			}
			require.Fail(t, "not found")
		})
	}
}
