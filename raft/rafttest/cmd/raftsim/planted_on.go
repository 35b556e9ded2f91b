//go:build planted

package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/tinykv/tinykv/raft/rafttest/sim"
)

// goals are the medians of seeds to detection that have to be reached.
var goals = []struct {
	id   string
	goal int
}{
	{"B1", 300}, {"B2", 500}, {"B3", 300}, {"B4", 10}, {"B5", 10},
	{"B6", 3}, {"B7", 300}, {"B8", 20}, {"B9", 1000}, {"B18", 50},
}

// runPlanted measures how many seeds it takes to find each bug.
func runPlanted(out io.Writer, which string, tries, limit, events int) int {
	bad := 0
	for _, g := range goals {
		if which != "all" && which != g.id {
			continue
		}
		sim.Plant(g.id)
		var took []int
		found := map[string]int{}
		for try := range tries {
			n, invariant := detect(uint64(try)*100_000+1, max(limit, 3*g.goal), events)
			took = append(took, n)
			found[invariant]++
		}
		sim.Plant("")
		slices.Sort(took)
		median := took[len(took)/2]
		ok := "ok"
		if median > g.goal {
			ok, bad = "TOO LATE", bad+1
		}
		fmt.Fprintf(out, "%-4s median %4d seeds (goal %4d) %s  tries %v by %v\n",
			g.id, median, g.goal, ok, took, found)
	}
	if bad > 0 {
		return 1
	}
	return 0
}

// switchOn plants a bug for the rest of the process.
func switchOn(id string) error {
	sim.Plant(id)
	return nil
}

func detect(start uint64, limit, events int) (int, string) {
	for i := range uint64(limit) {
		if res := sim.Run(start+i, sim.Options{Events: events}); res.Violation != nil {
			return int(i) + 1, res.Violation.Invariant
		}
	}
	return limit + 1, "nothing"
}
