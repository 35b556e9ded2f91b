// Package undo is a journal of what a machine that loses power would forget: every write, creation,
// renaming and removal that has not been made durable yet, with what it takes to undo it. A process
// that is killed loses nothing of what it has written, because the kernel has it; Lose takes that
// away as well, so that tests with real processes and real files meet what only a power failure
// shows.
//
// It is linked into servers only by the build tag chaos. Files reach it in two ways: FS wraps a
// vfs.FS, and the methods of Journal serve wrappers of other interfaces (the engine's).
//
// # The life of a write
//
// Journal.Write appends a record with the old bytes of the range to the journal, then lets the
// write happen. A sync notes how far the journal had come when it began; when it has succeeded, a
// second record says that the file's writes up to there are durable. Killed in between, the write
// counts as lost although it was not: that is allowed, since nothing was acknowledged. Names work
// the same way, by directory.
//
// # What Lose leaves
//
// For names, a random prefix of what was done since each directory was synced. For data, one
// version of each page of 4 KiB, from the last one that was synced to the newest, chosen for all
// pages together (a torn tail) or for each by itself (pages written out of order); what lies beyond
// the chosen size is cut or reads as zeros.
package undo
