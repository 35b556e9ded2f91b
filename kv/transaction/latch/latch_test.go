package latch

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func keys(names ...string) [][]byte {
	var out [][]byte
	for _, n := range names {
		out = append(out, []byte(n))
	}
	return out
}

func never() error { return nil }

func (t *Table) taken() int {
	n := 0
	for i := range t.stripes {
		t.stripes[i].mu.Lock()
		n += len(t.stripes[i].mu.taken)
		t.stripes[i].mu.Unlock()
	}
	return n
}

func (t *Table) waiting(hash uint64) int {
	s := t.stripe(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.findLocked(hash); i >= 0 {
		return len(s.mu.taken[i].waiters)
	}
	return 0
}

func TestALatchIsHandedOnInOrder(t *testing.T) {
	table, ctx := new(Table), context.Background()
	h := Hashes(Domain{}, keys("a", "b", "a"))
	require.Len(t, h, 2)
	g, err := table.Acquire(ctx, h, never)
	require.NoError(t, err)
	order := make(chan int, 3)
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			g, err := table.Acquire(ctx, h[:1], never)
			if err == nil {
				order <- i
				g.Release()
			}
		}()
		require.Eventually(t, func() bool {
			return table.waiting(h[0]) == i+1
		}, time.Minute, time.Millisecond)
	}
	g.Release()
	wg.Wait()
	for i := range 3 {
		require.Equal(t, i, <-order)
	}
	require.Zero(t, table.taken())
}

// TestAnAbandonedWaitLeavesNothing: a command whose time is over while it waits gives back what it
// had.
func TestAnAbandonedWaitLeavesNothing(t *testing.T) {
	table := new(Table)
	h := Hashes(Domain{}, keys("a", "b"))
	g, err := table.Acquire(context.Background(), h[1:], never)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		_, err := table.Acquire(ctx, h, never)
		done <- err
	}()
	require.Eventually(t, func() bool {
		return table.waiting(h[1]) == 1
	}, time.Minute, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Equal(t, 1, table.taken())
	g.Release()
	require.Zero(t, table.taken())
}

// TestAWaitEndsWhenItIsUseless: with the error that says why, whatever the context.
func TestAWaitEndsWhenItIsUseless(t *testing.T) {
	table := new(Table)
	h := Hashes(Domain{}, keys("a"))
	g, err := table.Acquire(context.Background(), h, never)
	require.NoError(t, err)
	gone := errors.New("not the leader any more")
	_, err = table.Acquire(context.Background(), h, func() error { return gone })
	require.ErrorIs(t, err, gone)
	g.Release()
	require.Zero(t, table.taken())
}

// TestDomainsAreApart: a latch of another term or region does not hold up.
func TestDomainsAreApart(t *testing.T) {
	table := new(Table)
	for _, d := range []Domain{{1, 5}, {1, 6}, {2, 5}, {5, 1}} {
		g, err := table.Acquire(context.Background(), Hashes(d, keys("a")), never)
		require.NoError(t, err)
		defer g.Release()
	}
	require.Equal(t, 4, table.taken())
}

// TestExclusion: many commands with random keys, deadlines that strike, and counters that only
// latches protect.
func TestExclusion(t *testing.T) {
	table := new(Table)
	names := []string{"a", "b", "c", "d", "e"}
	counters := make([]int, len(names))
	var want [5]int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(seed, 0))
			for range 500 {
				mine := rng.Perm(len(names))[:1+rng.IntN(3)]
				var k [][]byte
				for _, i := range mine {
					k = append(k, []byte(names[i]))
				}
				ctx, cancel := context.WithTimeout(context.Background(),
					time.Duration(rng.IntN(2000))*time.Microsecond)
				g, err := table.Acquire(ctx, Hashes(Domain{}, k), never)
				if err == nil {
					for _, i := range mine {
						counters[i]++
					}
					g.Release()
					mu.Lock()
					for _, i := range mine {
						want[i]++
					}
					mu.Unlock()
				}
				cancel()
			}
		}()
	}
	wg.Wait()
	require.Equal(t, want[:], counters)
	require.Zero(t, table.taken())
}
