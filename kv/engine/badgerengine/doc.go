// Package badgerengine is the engine over pingcap/badger.
//
// The library is used behind a set of rules, each there because of a defect that was reproduced
// (docs/engine.md lists them with the evidence):
//
//   - One goroutine commits; it merges the batches that wait into one transaction. With several
//     committers and SyncWrites the library loses acknowledged batches when its value log rotates.
//   - SyncWrites is off, and Sync calls fdatasync on the value-log files by path: see above.
//   - After each commit a sentinel key is read back, because Commit returns nil whatever happened.
//     If it is not there, the engine fails.
//   - The library's log is listened to: it swallows read errors and answers "not found", and what
//     it writes to its log is the only trace. Any such line makes the engine fail.
//   - A mark file says up to where the value log was synced; at Open the log must reach it, and
//     every file of it but the last must be whole: the library cuts the log at the first damaged
//     record without a word. What lies behind the end is zeroed, or a later replay could run into
//     records of a time that never was.
//   - Keys never begin with '!', which its iterators hide, nor with 0x00, where the sentinel is.
//   - ValueThreshold is 0 (values live in tables), ValueLogMaxNumFiles at least 4 (the log outlives
//     the memtables it covers), no UserMeta (wrong after replay).
//
// One thing could not be mended: a batch that crosses from one memtable into the next can, when the
// machine loses power before the next Sync, be found half: the first memtable may reach a table
// before the value log is synced. The raft log's replay repairs that for data, since a region's
// applied index is written again with all of it.
package badgerengine
