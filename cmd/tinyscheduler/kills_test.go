package main

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server/tso"
)

// sequence checks numbers that many callers get at once: none comes twice, and none is smaller than
// one that was handed out before its call began.
type sequence struct {
	name string
	mu   sync.Mutex
	seen map[uint64]struct{}
	last uint64
	bad  string // what was wrong first
}

func (s *sequence) floor() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

func (s *sequence) got(n, floor uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, twice := s.seen[n]; twice && s.bad == "" {
		s.bad = s.name + " " + strconv.FormatUint(n, 10) + " was given twice"
	}
	if n <= floor && s.bad == "" {
		s.bad = s.name + " " + strconv.FormatUint(n, 10) + " came after " +
			strconv.FormatUint(floor, 10)
	}
	s.seen[n] = struct{}{}
	s.last = max(s.last, n)
}

// clients ask for ids and timestamps without pause, each by a connection of its own.
type clients struct {
	ids, timestamps sequence
	rounds          []atomic.Uint64 // successful calls by caller
	longest         atomic.Int64    // nanoseconds that a call took
	wg              sync.WaitGroup
}

func (w *clients) call(ctx context.Context, i int, s *sequence, ask func() (uint64, error)) {
	defer w.wg.Done()
	for ctx.Err() == nil {
		floor, began := s.floor(), time.Now()
		n, err := ask()
		if err != nil {
			continue // it said that it does not know; that is allowed while nobody leads
		}
		s.got(n, floor)
		w.longest.Store(max(w.longest.Load(), int64(time.Since(began))))
		w.rounds[i].Add(1)
		time.Sleep(100 * time.Microsecond) // leaves the machine some time for the members
	}
}

func startClients(t *testing.T, ctx context.Context, n int, endpoints []string) *clients {
	t.Helper()
	w := &clients{rounds: make([]atomic.Uint64, 2*n)}
	w.ids = sequence{name: "id", seen: map[uint64]struct{}{}}
	w.timestamps = sequence{name: "timestamp", seen: map[uint64]struct{}{}}
	for i := range n {
		c, err := client.New(ctx, endpoints)
		require.NoError(t, err)
		t.Cleanup(c.Close)
		w.wg.Add(2)
		go w.call(ctx, 2*i, &w.ids, func() (uint64, error) { return c.AllocID(ctx) })
		go w.call(ctx, 2*i+1, &w.timestamps, func() (uint64, error) {
			p, l, err := c.GetTS(ctx)
			return tso.Compose(p, l), err
		})
	}
	return w
}

// served waits until every caller got an answer to a call that it began after now: the second one
// from now on is.
func (w *clients) served(t *testing.T) {
	t.Helper()
	before := make([]uint64, len(w.rounds))
	for i := range w.rounds {
		before[i] = w.rounds[i].Load()
	}
	require.Eventually(t, func() bool {
		for i := range w.rounds {
			if w.rounds[i].Load() < before[i]+2 {
				return false
			}
		}
		return true
	}, time.Minute, 2*time.Millisecond, "callers are not served")
	for _, s := range []*sequence{&w.ids, &w.timestamps} {
		s.mu.Lock()
		bad := s.bad
		s.mu.Unlock()
		require.Empty(t, bad)
	}
}

// leaderOf returns the process that leads as far as the members know.
func leaderOf(t *testing.T, c *client.Client, members []*process) *process {
	t.Helper()
	var leader *process
	require.Eventually(t, func() bool {
		resp, err := c.GetMembers(t.Context())
		for _, p := range members {
			if err == nil && resp.Leader.GetName() == p.name {
				leader = p
			}
		}
		return leader != nil
	}, time.Minute, 5*time.Millisecond)
	return leader
}

// TestKills3C kills members, mostly the leader, and pauses them for longer than a leadership lasts,
// while four clients take ids and timestamps: every one is unique, and larger than all that were
// handed out before it was asked for. SCHED_KILLS sets the number of faults, SCHED_SEED their
// choice.
func TestKills3C(t *testing.T) {
	faults, seed := 4, uint64(1)
	if n, err := strconv.Atoi(os.Getenv("SCHED_KILLS")); err == nil {
		faults = n
	}
	if n, err := strconv.ParseUint(os.Getenv("SCHED_SEED"), 10, 64); err == nil {
		seed = n
	}
	rng := rand.New(rand.NewPCG(seed, 17))
	members := startMembers(t, 3)
	waitAll(t, members)
	control, err := client.New(t.Context(), urls(members))
	require.NoError(t, err)
	defer control.Close()
	ctx, cancel := context.WithCancel(t.Context())
	w := startClients(t, ctx, 4, urls(members))
	defer w.wg.Wait()
	defer cancel()

	var killed, paused, leaders int
	var gaps []time.Duration
	for i := range faults {
		w.served(t)
		victim := leaderOf(t, control, members)
		if rng.IntN(4) == 0 {
			victim = members[rng.IntN(len(members))]
		} else {
			leaders++
		}
		began := time.Now()
		if i%2 == 0 {
			killed++
			_ = victim.stop(syscall.SIGKILL)
			w.served(t)
			gaps = append(gaps, time.Since(began))
			victim.start(t)
		} else {
			paused++
			require.NoError(t, victim.cmd.Process.Signal(syscall.SIGSTOP))
			w.served(t) // so another one leads
			gaps = append(gaps, time.Since(began))
			// the pause is the fault, not a wait
			time.Sleep(time.Until(began.Add(2500 * time.Millisecond)))
			require.NoError(t, victim.cmd.Process.Signal(syscall.SIGCONT))
		}
	}
	w.served(t)
	cancel()
	w.wg.Wait()
	t.Logf(
		"seed %d: %d kills, %d pauses, at least %d of them of the leader: %d ids and %d timestamps, none twice, all increasing",
		seed, killed, paused, leaders, len(w.ids.seen), len(w.timestamps.seen))
	t.Logf("until all callers were served again: %s; longest call %v", percentiles(gaps),
		time.Duration(w.longest.Load()).Round(time.Millisecond))
}
