// Package sim plays raft groups in virtual time: network, disks, clocks, clients and mishaps all
// come out of one seed, and an oracle that sees everything checks what may never happen.
//
// The life of a run: a Profile is drawn from the seed; events (ticks, deliveries, commands, faults)
// are taken from a heap in the order of their times; after each, the invariants of the node it
// touched are checked; when the events are used up all mishaps end, and the group has to recover.
//
// One goroutine, no clock, no map order: a seed and a commit give the same run on any machine. The
// same driver loop as a store's: Ready, write, sync, send, apply, Advance, with crash points
// between. docs/testing-raft.md lists the invariants.
package sim

import "fmt"

// ReplayCommand is what to type to see a run again.
func ReplayCommand(seed uint64, opt Options) string {
	cut := opt.Cut.String()
	if cut != "" {
		cut = " -cut " + cut
	}
	return fmt.Sprintf("go run ./raft/rafttest/cmd/raftsim -seed %d -events %d%s -v", seed,
		opt.Events, cut)
}
