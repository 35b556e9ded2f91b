package gate

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestGate: while a good part of the gets is slow, most of them go to goroutines of their own;
// later they do not.
func TestGate(t *testing.T) {
	var g Gate
	inline := func(n int, slowEvery int) (passed int) {
		for i := range n {
			if !g.Open() {
				continue
			}
			passed++
			start := time.Now()
			if slowEvery > 0 && i%slowEvery == 0 {
				start = start.Add(-2 * SlowGet)
			}
			g.Note(start)
		}
		return passed
	}
	require.Greater(t, inline(10_000, 0), 9_900, "all from memory")
	require.Greater(t, inline(10_000, 1000), 9_000, "one in a thousand from the disk")
	require.Less(t, inline(10_000, 1), 200, "all from the disk")
	inline(DetourGets, 0)
	require.Greater(t, inline(10_000, 0), 9_900, "the disk is out of the way again")
}
