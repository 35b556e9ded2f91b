package slack

import (
	"os"
	"runtime"
	"syscall"
)

// Execute executes the program again, with the monitor's slack, and does not return then: same
// process id, arguments and environment, with defaults (NAME=value) for variables that are not set.
// It returns where that has been done, is switched off or is not possible.
func Execute(defaults ...string) {
	slack, err := Get()
	// If Env says so and the slack is not there, the kernel or a sandbox has not kept it.
	if env := os.Getenv(Env); err != nil || slack == Monitor || env == Off || env == Executed {
		return
	}
	// By its path: under the name /proc/self/exe it would be called exe by ps and pkill.
	path, err := os.Executable()
	if err != nil {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if Set(Monitor) == nil {
		_ = syscall.Exec(path, os.Args, append(environ(defaults), Env+"="+Executed))
		_ = Set(slack) // it could not be executed
	}
}

// environ is the environment with what is missing of defaults.
func environ(defaults []string) []string {
	env := os.Environ()
next:
	for _, d := range defaults {
		for i := range d {
			if d[i] != '=' {
				continue
			}
			if _, set := os.LookupEnv(d[:i]); set {
				continue next
			}
			break
		}
		env = append(env, d)
	}
	return env
}

// Get returns the slack of the calling thread, in ns.
func Get() (int, error) {
	ns, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prGetTimerSlack, 0, 0, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(ns), nil
}

// Set sets the slack of the calling thread, in ns.
func Set(ns int) error {
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetTimerSlack, uintptr(ns), 0, 0, 0,
		0); errno != 0 {
		return errno
	}
	return nil
}

// Of Linux' prctl.h.
const (
	prSetTimerSlack = 29
	prGetTimerSlack = 30
)

// Yield gives the processor to another thread.
func Yield() { _, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0) }
