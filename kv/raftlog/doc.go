// Package raftlog is the raft log of all regions of a store: one append-only log in segment files,
// shared by every region, so that one fdatasync makes the progress of many regions durable.
//
// # The life of a batch
//
// A raft worker gathers what its regions have to persist in a Batch (entries, hard states,
// truncations) and calls Write. Concurrent writers form a group: the first becomes the leader,
// appends one record per batch to the active segment in a single write, calls fdatasync once,
// updates the in-memory positions in the order of the log and wakes the others. A writer that is
// alone never leaves its goroutine and never waits for company.
//
// # What is in memory
//
// For each region: hard state, truncated state, and for each live entry where its payload lies
// (24 bytes, no pointers). Payloads of recent entries are cached within one bound over all regions;
// older ones are read back by position and checked against their CRC.
//
// # What a crash leaves
//
// Records are numbered and each carries the CRC of the one before. What was not synced may be torn
// and is cut at Open. What was synced must be there: each record, and a small mark file, tell up to
// which number the log had been synced. When something below that number is damaged, the regions
// concerned are reported by Damaged, or Open refuses with the file and offset when the record does
// not tell any more whose it was. The log never gets shorter in silence: a peer that forgot what it
// promised must not vote.
//
// # How space comes back
//
// Only whole segments are dropped, oldest first, when no live entry or state lies in them. Reclaim
// rewrites the few live bytes that hold an old segment to the end of the log, in bounded steps, and
// syncs them before the segment goes. Dropped segments are kept and used again: writing into blocks
// that exist already makes fdatasync nearly twice as fast as appending to a growing file.
//
// Because only a prefix of the log is ever dropped, replaying what is left reaches, at each record,
// the state the log had there, less what was last written in the dropped prefix; and whatever of
// that was still alive when it was dropped has been written again further on (kinds opRewrite and
// opMeta). So replay may meet a region's entries with holes; at the end there must be none.
//
// The format is described byte for byte in docs/storage-format.md.
package raftlog
