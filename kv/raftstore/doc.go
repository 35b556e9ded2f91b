// Package raftstore runs the region peers of one store: it routes messages to them, drives raft, applies
// committed entries to the engine, and carries regions through conf changes, splits, raft snapshots and
// destruction.
//
// It is not the raft algorithm (package raft), not the disk (raftlog, engine), not the network
// (transport), and it decides nothing about placement: it follows the orders of the placement service,
// each under the epoch for which it was given.
//
// The life of a write, in files: Store.Write (store.go) puts it into the region's mailbox (router.go); a
// raft worker takes the region (worker.go), checks and proposes it (peer_propose.go), persists and sends
// (peer_ready.go); the apply worker carries it out and answers (apply.go). Reads: read.go. What a start
// may find: recover.go. How a peer ends: peer_destroy.go.
//
// Concurrency: a peer belongs to whichever raft worker holds its mailbox, the applied state to the
// region's apply worker, everything else has its own lock that is never held over IO or a send
// (storeMeta). Others send messages, or read the immutable read handle.
//
// Invariants of the whole:
//   - applied index, region state and data of a region change in one engine batch;
//   - the raft log keeps every entry that the engine has not made durable;
//   - initialized regions of a store never overlap;
//   - a callback is answered exactly once;
//   - raft never counts more ticks since it heard a leader than time has passed.
package raftstore
