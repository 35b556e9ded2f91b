// Package crash enumerates crashes: while a scenario runs on a cluster in one process, each
// operation that one store is about to carry out on its raft log or engine becomes a crash point.
// At that moment the disks of all stores are copied as a crash would leave them, with the unsynced
// tails of raft log and engine kept, lost or torn, each for itself. From every such copy a cluster
// is started again, and the invariants of recovery must hold.
//
// Copies instead of one run for each k: a crash is what is on the disks at a moment, and taking
// them does not disturb the run, so one run gives all points of its schedule, with every kind of
// loss.
//
// TestErrors enumerates errors in the same scenarios: one operation fails, reads too, and the run
// goes on. Its points need a run each, because an error changes what follows.
package crash
