package latches

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLatchesOfKeys4B: all keys or none, and those who wait come in when the keys are free.
func TestLatchesOfKeys4B(t *testing.T) {
	l := NewLatches()
	a, ab := [][]byte{[]byte("a")}, [][]byte{[]byte("a"), []byte("b")}
	require.Nil(t, l.AcquireLatches(ab))
	require.NotNil(t, l.AcquireLatches(a))
	require.Nil(t, l.AcquireLatches([][]byte{[]byte("c")}))
	n := 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 100 {
				l.WaitForLatches(ab)
				n++
				l.ReleaseLatches(ab)
			}
		}()
	}
	l.ReleaseLatches(ab)
	wg.Wait()
	require.Equal(t, 800, n)
	l.Validate(nil, nil)
	require.Len(t, l.latchMap, 1)
}
