package goruntime

import (
	"os"

	"github.com/tinykv/tinykv/pkg/goruntime/slack"
)

// The monitor thread. While a Go program works, a thread of the runtime, sysmon, looks every 20 us
// whether a system call holds up the others; it looks less often only if it has found none for a
// while. A store's system calls are syncs of its log, so it always finds some. Where waking up is
// dear, as in a virtual machine, that is 10 to 25 % of a store's CPU (docs/benchmarks.md). Linux
// lets a thread say how late its timers may be, its timer slack, usually 50 us. With 2 ms the
// monitor looks some hundred times a second, which is often enough for what it does: among others,
// it takes back what a call has held up for 20 us and a goroutine for 10 ms.
//
// A thread can set its own slack only; the monitor is the runtime's, and runs no code of the
// program. But a thread begins with the slack of the one that made it, and keeps it when the
// process executes another program. So CalmMonitor sets the slack of its own thread and executes
// the program again (package slack; in a server, package early has done so); then the runtime's
// first threads have it, and all but the monitor set it back.

// CalmMonitor is to be called first in main. It may execute the program again, with the same
// process id, arguments and environment, and does not return then. Where it cannot help it does
// nothing. defaults are variables, NAME=value, that the environment is given on this occasion,
// unless they are set.
func CalmMonitor(defaults ...string) {
	if os.Getenv(slack.Env) != slack.Off {
		calmMonitor(defaults)
	}
}

// calmed: the monitor has its slack. Written before main goes on, by CalmMonitor alone.
var calmed bool

// MonitorIsCalm tells whether CalmMonitor has had its effect.
func MonitorIsCalm() bool { return calmed }
