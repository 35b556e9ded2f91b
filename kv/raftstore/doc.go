// Package raftstore runs the region peers of one store: it routes messages to them, drives raft,
// applies committed entries to the engine, and carries regions through conf changes, splits, raft
// snapshots and destruction.
//
// It is not the raft algorithm (package raft), not the disk (raftlog, engine), not the network
// (transport), and it decides nothing about placement: it follows the orders of the placement
// service, each under the epoch for which it was given.
//
// A file holds a life, from its cause to its end:
//
//	write.go admin.go exactly_once.go   a write; an admin command; a write that is sent again
//	read.go                             a read, and the lease
//	split.go confchange.go transfer.go  a split; a change of members; a change of the leader
//	build.go install.go                 a raft snapshot: made here for another store; taken over from one
//	create.go recover.go                peers that messages create; peers that a start finds
//	destroy.go quarantine.go            peers that are removed; replicas that are damaged
//	sleep.go                            regions in which nothing happens
//	compare.go loggc.go report.go       comparison of replicas; log compaction; the placement service
//
// What all of them pass through: store.go (the picture, start and stop), router.go (mailboxes),
// worker.go (a turn), peer.go (messages), incoming.go (raft messages), tick.go, ready.go (the order
// of a Ready), range_map.go (ranges). The state machine is package apply; apply.go is what it knows
// of the store. A write passes write.go, router.go, worker.go, write.go, ready.go,
// apply/entries.go.
//
// Concurrency: a peer belongs to whichever raft worker holds its mailbox, the applied state to the
// region's apply worker, everything else has its own lock that is never held over IO or a send
// (rangeMap). Others send messages, or read the immutable read handle.
//
// Invariants of the whole:
//   - applied index, region state and data of a region change in one engine batch;
//   - the raft log keeps every entry that the engine has not made durable;
//   - initialized regions of a store never overlap;
//   - a callback is answered exactly once;
//   - raft never counts more ticks since it heard a leader than time has passed.
package raftstore
