// Package early, imported for its effect by the main of a server, executes the program again before
// all else is initialized, with a long timer slack of the monitor thread and what the C library
// needs to know. Go initializes packages as soon as what they import is, and this one imports next
// to nothing: the registration of thousands of protocol messages runs once, not twice.
// goruntime.CalmMonitor does the rest in main; without this package it does all, later.
package early

import "github.com/tinykv/tinykv/pkg/goruntime/slack"

func init() {
	// The block cache's memory is C's. Its usual eight heaps for each processor keep what they were
	// given: under reads and writes, a store took 145 MiB instead of 103.
	slack.Execute("MALLOC_ARENA_MAX=1")
}
