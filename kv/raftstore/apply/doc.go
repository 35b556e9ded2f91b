// Package apply is the state machine of a store's regions: its workers carry committed entries out
// on the engine, and answer the commands in them.
//
// It is not raft, it knows no peers, mailboxes or stores: what it needs of the store is Host. A
// task of a region comes from the raft worker that holds the region's peer, and is carried out
// behind all earlier ones of that region.
//
// A refusal is a result: whatever a sound entry holds, every replica comes to the same state. An
// error is for this replica alone, from its disk, and ends the store before the applied index
// passes the entry.
//
// Invariants:
//   - in the engine, applied index, region state and data of a region change in one batch;
//   - a callback is answered, and a peer reported to, only once the effect is in the engine;
//   - every proposal of a task is ended exactly once, also when the worker ends on an error.
//
// Concurrency: Push and Close are safe for concurrent use; all else belongs to the goroutine of
// Run.
package apply
