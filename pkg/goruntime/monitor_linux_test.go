package goruntime

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/goruntime/slack"
)

// report is what the child process found out about itself.
type report struct {
	Args []string
	PID  int
	// Name is what ps and pkill call it.
	Name string
	// Env is the value of the package's variable.
	Env string
	// Given and Kept are the values of the variables with defaults.
	Given, Kept string
	// Slacks are those of all threads that this process may ask for, in ns, after a while of work.
	Slacks []int
}

const (
	child = "TIMERSLACK_TEST_CHILD"
	given = "TIMERSLACK_TEST_GIVEN"
	kept  = "TIMERSLACK_TEST_KEPT"
)

func TestMain(m *testing.M) {
	if os.Getenv(child) != "" {
		CalmMonitor(given+"=default", kept+"=default")
		busy(workers + 8)
		_ = json.NewEncoder(os.Stdout).Encode(report{
			Args: os.Args, PID: os.Getpid(), Name: name(), Env: os.Getenv(slack.Env),
			Given: os.Getenv(given), Kept: os.Getenv(kept), Slacks: slacks(),
		})
		return
	}
	os.Exit(m.Run())
}

// busy has the runtime make more threads.
func busy(n int) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(n))
	var there atomic.Int32
	var wg sync.WaitGroup
	for range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for there.Add(1); int(there.Load()) < n; {
			}
		}()
	}
	wg.Wait()
}

func name() string {
	b, _ := os.ReadFile("/proc/self/comm")
	return strings.TrimSpace(string(b))
}

// slacks asks for the slack of each thread; only the superuser may.
func slacks() []int {
	var all []int
	for _, tid := range threads() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid))
		if err != nil {
			continue
		}
		ns, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err == nil {
			all = append(all, ns)
		}
	}
	return all
}

func start(t *testing.T, env ...string) (pid int, r report) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "one", "two words", "")
	cmd.Env = append(append(os.Environ(), child+"=1"), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(out, &r))
	return cmd.Process.Pid, r
}

// TestOnlyTheMonitorIsCalmed: the process executes itself once, keeps its id and arguments, and one
// thread has the long slack afterwards, no matter how many there are.
func TestOnlyTheMonitorIsCalmed(t *testing.T) {
	pid, r := start(t, kept+"=own")
	require.Equal(t, pid, r.PID)
	require.Empty(t, r.Env)
	require.Equal(t, "default", r.Given)
	require.Equal(t, "own", r.Kept)
	_, plain := start(t, slack.Env+"=off")
	require.Equal(t, plain.Name, r.Name)
	require.NotEmpty(t, r.Name)
	require.Equal(t, []string{"one", "two words", ""}, r.Args[1:])
	if len(r.Slacks) == 0 {
		t.Skip("not allowed to ask for the slack of threads")
	}
	count := map[time.Duration]int{}
	for _, ns := range r.Slacks {
		count[time.Duration(ns)]++
	}
	// The monitor, and if the test is linked with C a thread that runs no goroutines.
	require.Contains(t, []int{1, 2}, count[slack.Monitor*time.Nanosecond], "%v", count)
	require.Equal(t, len(r.Slacks)-count[slack.Monitor*time.Nanosecond],
		count[slack.Others*time.Nanosecond], "%v", count)
	require.Greater(t, len(r.Slacks), workers)
}

// TestNotForEver: where the slack does not outlive the execution, there is no second one.
func TestNotForEver(t *testing.T) {
	_, r := start(t, slack.Env+"="+slack.Executed)
	for _, ns := range r.Slacks {
		require.NotEqual(t, slack.Monitor, ns)
	}
}

// TestOff: the variable leaves everything as it is.
func TestOff(t *testing.T) {
	_, r := start(t, slack.Env+"=off")
	for _, ns := range r.Slacks {
		require.NotEqual(t, slack.Monitor, ns)
	}
}

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
