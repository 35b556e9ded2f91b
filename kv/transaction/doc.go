// Package transaction stands for its parts: mvcc (records and versions), latch, commands. latches,
// and what is named after the course in mvcc, kv/storage and kv/server, lets test suites of the
// course's project 4 run on them.
package transaction
