// Package rafttest drives raft nodes by the commands of a transcript and prints everything that
// happens: raft/testdata holds one theme a file. It is for tests only.
//
// A transcript is read by datadriven: a command, four dashes, what it printed. `go test
// ./raft/rafttest
// -run Transcripts -rewrite` writes the outputs anew; the diff is reviewed like code.
package rafttest
