package memlock

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/transaction/latch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func keys(names ...string) [][]byte {
	var out [][]byte
	for _, n := range names {
		out = append(out, []byte(n))
	}
	return out
}

// term is the term in which a store leads, or an error.
type term struct {
	mu  sync.Mutex
	now uint64
	err error
}

func (l *term) set(now uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now, l.err = now, err
}

func (l *term) get() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now, l.err
}

func of(region, term uint64) latch.Domain { return latch.Domain{RegionID: region, Term: term} }

func TestChoices(t *testing.T) {
	var table Table
	table.Raise(10)
	table.Raise(7)
	table.Raise(math.MaxUint64)
	require.Equal(t, uint64(10), table.MaxTS())
	c := table.Claim(of(1, 1), 5, keys("a", "b"))
	require.Equal(t, uint64(11), c.Decide(6))
	d := table.Claim(of(1, 2), 6, keys("b", "c"))
	require.Equal(t, uint64(20), d.Decide(20))
	require.Equal(t, keys("a", "b", "c"), table.Keys())
	c.Drop()
	c.Drop()
	require.Equal(t, keys("b", "c"), table.Keys())
	table.DropBefore(1, 2)
	require.False(t, table.Idle())
	table.DropBefore(2, 9)
	require.False(t, table.Idle())
	table.DropBefore(1, 3)
	require.True(t, table.Idle())
	require.Empty(t, table.Keys())
}

// TestWhatIsInTheWay: of claims on the keys "b" and "c" of region 1, term 5, by the transaction 10
// that commits at 20.
func TestWhatIsInTheWay(t *testing.T) {
	leads := &term{now: 5}
	point := func(ts uint64, names ...string) *Search {
		return &Search{RegionID: 1, Keys: keys(names...), TS: ts, Term: leads.get}
	}
	all := func(from, to string, ts uint64) *Search {
		return &Search{
			RegionID: 1, Range: true, From: []byte(from), To: []byte(to), TS: ts, Term: leads.get,
		}
	}
	with := func(s *Search, f func(s *Search)) *Search { f(s); return s }
	for name, c := range map[string]struct {
		s     *Search
		waits bool
	}{
		"behind":              {point(20, "b"), true},
		"before":              {point(19, "b"), false},
		"the newest value":    {point(math.MaxUint64, "b"), true},
		"another key":         {point(30, "a"), false},
		"one of several keys": {point(30, "a", "c"), true},
		"another region":      {with(point(30, "b"), func(s *Search) { s.RegionID = 2 }), false},
		"ignored": {
			with(point(30, "b"), func(s *Search) { s.Ignore = []uint64{9, 10} }), false,
		},
		"range":             {all("a", "c", 20), true},
		"range before":      {all("a", "c", 19), false},
		"range below":       {all("a", "b", 30), false},
		"range above":       {all("d", "", 30), false},
		"range without end": {all("c", "", 30), true},
		"begun":             {with(all("", "", 10), func(s *Search) { s.Begun = true }), true},
		"begun later":       {with(all("", "", 9), func(s *Search) { s.Begun = true }), false},
	} {
		t.Run(name, func(t *testing.T) {
			var table Table
			claim := table.Claim(of(1, 5), 10, keys("b", "c"))
			require.Equal(t, uint64(20), claim.Decide(20))
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			if err := table.Await(ctx, c.s); !c.waits {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, context.DeadlineExceeded)
			}
			if c.waits {
				done := make(chan error)
				go func() { done <- table.Await(context.Background(), c.s) }()
				claim.Drop()
				require.NoError(t, <-done)
			}
		})
	}
}

// TestUndecidedClaims: a read waits for the choice, and then only if it is behind it.
func TestUndecidedClaims(t *testing.T) {
	leads := &term{now: 5}
	var table Table
	claim := table.Claim(of(1, 5), 10, keys("b"))
	s := &Search{RegionID: 1, Keys: keys("b"), TS: 15, Term: leads.get}
	short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	require.ErrorIs(t, table.Await(short, s), context.DeadlineExceeded)
	done := make(chan error)
	go func() { done <- table.Await(context.Background(), s) }()
	claim.Decide(16)
	require.NoError(t, <-done)
	claim.Drop()

	given := table.Claim(of(1, 5), 10, keys("b"))
	go func() { done <- table.Await(context.Background(), s) }()
	given.Drop() // it is given up without a choice
	require.NoError(t, <-done)
}

// TestTermsEndWaits: a claim of an earlier term is in nobody's way; without leadership a wait ends
// with its error.
func TestTermsEndWaits(t *testing.T) {
	leads := &term{now: 5}
	var table Table
	table.Claim(of(1, 5), 10, keys("b")).Decide(11)
	table.Claim(of(1, 5), 12, keys("c")) // undecided
	done := make(chan error)
	for _, k := range []string{"b", "c"} {
		leads.set(5, nil)
		go func() {
			done <- table.Await(context.Background(),
				&Search{RegionID: 1, Keys: keys(k), TS: 30, Term: leads.get})
		}()
		leads.set(6, nil)
		require.NoError(t, <-done)
	}
	require.True(t, table.Idle(), "nobody needs them any more")

	lost := errors.New("not leader")
	table.Claim(of(1, 6), 13, keys("b"))
	go func() {
		done <- table.Await(context.Background(),
			&Search{RegionID: 1, Keys: keys("b"), TS: 30, Term: leads.get})
	}()
	leads.set(0, lost)
	require.ErrorIs(t, <-done, lost)

	// A claim of a later term than a reader knows of holds it up.
	leads.set(5, nil)
	short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	s := &Search{RegionID: 1, Keys: keys("b"), TS: 30, Term: leads.get}
	require.ErrorIs(t, table.Await(short, s), context.DeadlineExceeded)
}

// TestEitherSeesTheOther: reads and choices at the same time. Either the read waits for the claim,
// or the choice is behind it.
func TestEitherSeesTheOther(t *testing.T) {
	leads := &term{now: 5}
	var table Table
	for i := range uint64(2000) {
		ts := 10 * (i + 1)
		var chosen uint64
		applied := false // what a view would show
		var mu sync.Mutex
		var wg sync.WaitGroup
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := table.Claim(of(1, 5), ts-5, keys("k"))
			chosen = c.Decide(ts - 4)
			mu.Lock()
			applied = true
			mu.Unlock()
			c.Drop()
		}()
		table.Raise(ts)
		require.NoError(t,
			table.Await(context.Background(),
				&Search{RegionID: 1, Keys: keys("k"), TS: ts, Term: leads.get}))
		mu.Lock()
		seen := applied
		mu.Unlock()
		wg.Wait()
		require.True(t, seen || chosen > ts, "round %d: a read at %d has missed a commit at %d", i,
			ts, chosen)
	}
}
