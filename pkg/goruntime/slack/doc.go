// Package slack executes a program again with a longer timer slack of its first thread, and so of
// the runtime's monitor thread (package goruntime says what for). It imports nothing that takes
// long to initialize: package early needs it first.
package slack

// The slacks, and the environment variable.
const (
	// Monitor is the slack of the monitor thread in ns, by which it may be late.
	Monitor = 2_000_000
	// Others is the slack of all other threads in ns, Linux's default.
	Others = 50_000
	// Env switches Execute off if it is set to Off.
	Env = "TINYKV_TIMER_SLACK"
	// Off in Env is for debuggers, which lose a process that executes itself.
	Off = "off"
	// Executed in Env tells the process that it has executed itself, so that it does not do it for
	// ever.
	Executed = "executed"
)
