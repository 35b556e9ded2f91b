package goruntime

import (
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func calmMonitor(defaults []string) {
	slack, err := getSlack()
	switch {
	case err != nil:
	case slack == int(Monitor): // the process has executed itself
		_ = os.Unsetenv(Env)
		resetOthers()
		calmed = true
	case os.Getenv(Env) == executed: // the kernel or a sandbox did not keep the slack: give up
	default:
		// By its path: under the name /proc/self/exe it would be called exe by ps and pkill.
		path, err := os.Executable()
		if err != nil {
			return
		}
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if setSlack(int(Monitor)) == nil {
			_ = syscall.Exec(path, os.Args, append(environ(defaults), Env+"="+executed))
			_ = setSlack(slack) // it could not be executed
		}
	}
}

func environ(defaults []string) []string {
	env := os.Environ()
	for _, d := range defaults {
		name, _, _ := strings.Cut(d, "=")
		if _, set := os.LookupEnv(name); !set {
			env = append(env, d)
		}
	}
	return env
}

// executed in Env tells the process that it has executed itself, so that it does not do it for ever.
const executed = "executed"

func getSlack() (int, error) { return unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0) }

func setSlack(ns int) error { return unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(ns), 0, 0, 0) }

// workers is how many threads there are afterwards to run goroutines, most of them asleep until they are needed. The
// monitor, too, makes one when a system call holds up others and none is there: that one would have the monitor's slack.
const workers = 16

// resetOthers gives the threads that run goroutines the usual slack, and so those that they will make. Several times,
// because one may be asleep for as long as its slack when the others get theirs.
func resetOthers() {
	before := runtime.GOMAXPROCS(workers)
	for range 4 {
		resetWorkers()
		time.Sleep(Monitor)
	}
	runtime.GOMAXPROCS(before)
}

// resetWorkers has as many goroutines as may run at once set the slack of their threads. None of them lets go of its
// thread before all have one. They are not locked to it: then, if the program is linked with C, a thread that nobody can reach
// would make those that are missing.
func resetWorkers() {
	var there atomic.Int32
	var wg sync.WaitGroup
	for range workers {
		wg.Add(1)
		// Ends when each has a thread, or after a while.
		go func() {
			defer wg.Done()
			_ = setSlack(int(Others))
			there.Add(1)
			for start := time.Now(); there.Load() < workers && time.Since(start) < 100*time.Millisecond; {
				_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
			}
		}()
	}
	wg.Wait()
}
