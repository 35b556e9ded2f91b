package fill

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFill(t *testing.T) {
	l := New(3)
	took := make([]int, 3)
	for range PerConn {
		took[l.Take()]++
	}
	require.Equal(t, []int{PerConn, 0, 0}, took, "one connection as long as it has room")
	for range 2*PerConn + 3 {
		took[l.Take()]++
	}
	require.Equal(t, []int{PerConn + 1, PerConn + 1, PerConn + 1}, took, "evenly when all are full")
	for range 2 {
		l.Done(1)
	}
	require.Equal(t, 1, l.Take(), "room again")
	require.Equal(t, 0, New(0).Take(), "there is always one connection")
}

func TestAvoid(t *testing.T) {
	l := New(2)
	require.Equal(t, 0, l.Take())
	l.Avoid(0)
	l.Avoid(0) // the second of two requests that failed together
	require.Equal(t, 1, l.Take())
	l.Avoid(1)
	require.Equal(t, 0, l.Take())
	for range PerConn {
		l.Take()
	}
	require.Equal(t, 1, l.Take(), "an avoided connection is still used when the others are full")
}

// TestFillConcurrent: whatever the order, every request counts once.
func TestFillConcurrent(t *testing.T) {
	l := New(4)
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			for range 100 {
				l.Done(l.Take())
			}
		})
	}
	wg.Wait()
	for i := range l.n {
		require.Zero(t, l.n[i].Load(), i)
	}
	require.Zero(t, testing.AllocsPerRun(100, func() { l.Done(l.Take()) }))
}
