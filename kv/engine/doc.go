// Package engine is the embedded ordered key-value store under a tinykv-server: column families,
// atomic batches, snapshots, bounded iterators, and one explicit notion of durability.
//
// It is a narrow interface with two backends, badger and pebble; nothing else in the project
// imports an LSM library. Applied raft entries are written without sync, because the synced raft
// log replays them; Sync is called before the raft log drops what the engine would need for that
// replay.
package engine
