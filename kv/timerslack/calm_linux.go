//go:build linux && !cgo

package timerslack

import (
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// executed: the process has executed itself, and so begun with the monitor's slack.
var executed bool

// init runs on the thread that the program began with. The first time that a goroutine is locked to its thread, the
// runtime makes a thread that only makes others, when a locked one needs some: it has to begin with the usual slack, and
// later nobody can be sure on which thread he is. (Programs that are linked with C have that thread before init.)
func init() {
	if slack, err := getSlack(); err == nil && slack == int(Monitor) {
		executed = true
		_ = setSlack(int(Others))
		runtime.LockOSThread()
		runtime.UnlockOSThread()
	}
}

func calmMonitor() {
	if executed {
		resetOthers()
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	slack, err := getSlack()
	if err == nil && len(threads()) > 0 && setSlack(int(Monitor)) == nil {
		_ = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
		_ = setSlack(slack) // it could not be executed
	}
}

func getSlack() (int, error) { return unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0) }

func setSlack(ns int) error { return unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(ns), 0, 0, 0) }

// resetOthers gives all threads that run goroutines the usual slack, and so those that they will make. There are a few
// when main begins; of as many goroutines as there are threads, each locked to its own, every thread gets one.
func resetOthers() {
	const special = 2 // the monitor and the one that makes others
	done := map[int]bool{}
	resetSome(len(threads())-special, done)
	// Whoever came meanwhile may come from one that was not done yet; who comes later does not.
	all := threads()
	for range 20 {
		left := 0
		for _, tid := range all {
			if !done[tid] {
				left++
			}
		}
		if left <= special {
			return
		}
		time.Sleep(Monitor) // one may have slept too long to take part
		resetSome(len(threads())-special, done)
	}
}

// resetSome does it on n threads, and notes which.
func resetSome(n int, done map[int]bool) {
	var mu sync.Mutex
	var all, end sync.WaitGroup
	all.Add(n)
	for range n {
		end.Add(1)
		// Ends when each of them has a thread.
		go func() {
			defer end.Done()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			_ = setSlack(int(Others))
			mu.Lock()
			done[unix.Gettid()] = true
			mu.Unlock()
			all.Done()
			all.Wait()
		}()
	}
	end.Wait()
}

// threads are the process's threads.
func threads() []int {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var tids []int
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}
