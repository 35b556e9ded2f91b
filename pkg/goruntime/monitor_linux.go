package goruntime

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/pkg/goruntime/slack"
)

func calmMonitor(defaults []string) {
	slack.Execute(defaults...)
	// the process has executed itself
	if ns, err := slack.Get(); err == nil && ns == slack.Monitor {
		_ = os.Unsetenv(slack.Env)
		resetOthers()
		calmed = true
	}
}

// workers is how many threads there are afterwards to run goroutines, most of them asleep until
// they are needed. The monitor, too, makes one when a system call holds up others and none is
// there: that one would have the monitor's slack.
const workers = 16

// resetOthers gives the threads that run goroutines the usual slack, and so those that they will
// make. Several times, because one may be asleep for as long as its slack when the others get
// theirs.
func resetOthers() {
	before := runtime.GOMAXPROCS(workers)
	resetWorkers()
	for range 2 {
		time.Sleep(slack.Monitor * time.Nanosecond)
		resetWorkers()
	}
	runtime.GOMAXPROCS(before)
}

// resetWorkers has as many goroutines as may run at once set the slack of their threads. None of
// them lets go of its thread before all have one. They are not locked to it: then, if the program
// is linked with C, a thread that nobody can reach would make those that are missing.
func resetWorkers() {
	var there atomic.Int32
	var wg sync.WaitGroup
	for range workers {
		wg.Add(1)
		// Ends when each has a thread, or after a while.
		go func() {
			defer wg.Done()
			_ = slack.Set(slack.Others)
			there.Add(1)
			for start := time.Now(); there.Load() < workers &&
				time.Since(start) < 100*time.Millisecond; {
				slack.Yield()
			}
		}()
	}
	wg.Wait()
}
