package loadgen

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestKeys(t *testing.T) {
	for _, size := range []int{8, 12, 16, 100} {
		seen := map[string]bool{}
		for i := range uint64(1000) {
			k := Key(i, size)
			require.Len(t, k, size)
			seen[string(k)] = true
		}
		require.Len(t, seen, 1000)
	}
}

// TestSplitKeys: the ranges hold about as many keys each.
func TestSplitKeys(t *testing.T) {
	const ranges, keys = 32, 32_000
	borders := SplitKeys(ranges, 16)
	require.Len(t, borders, ranges-1)
	counts := make([]int, ranges)
	for i := range uint64(keys) {
		at := 0
		for at < len(borders) && bytes.Compare(Key(i, 16), borders[at]) >= 0 {
			at++
		}
		counts[at]++
	}
	for i, n := range counts {
		require.InDelta(t, keys/ranges, n, keys/ranges/10, "range %d", i)
	}
	require.Empty(t, SplitKeys(1, 16))
}

// TestZipf compares draws with the distribution's definition.
func TestZipf(t *testing.T) {
	const n, theta, draws = 1000, 0.99, 400_000
	z := NewZipf(n, theta)
	r := rand.New(rand.NewPCG(1, 2))
	counts := make([]int, n)
	for range draws {
		counts[z.Next(r)]++ // also: within bounds
	}
	sum := 0.0
	for i := 1; i <= n; i++ {
		sum += math.Pow(float64(i), -theta)
	}
	share := func(from, to int) (want, got float64) {
		for i := from; i < to; i++ {
			want += math.Pow(float64(i+1), -theta) / sum
			got += float64(counts[i]) / draws
		}
		return want, got
	}
	for _, c := range []struct {
		from, to int
		// the method is exact for the first two numbers and approximates the others
		tolerance float64
	}{{0, 1, 0.02}, {1, 2, 0.03}, {0, 10, 0.1}, {10, 100, 0.1}, {100, n, 0.1}} {
		want, got := share(c.from, c.to)
		require.InEpsilon(t, want, got, c.tolerance, "numbers %d to %d", c.from, c.to)
	}
}

func TestZipfSmall(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []uint64{1, 2, 3} {
		z := NewZipf(n, 0.99)
		seen := map[uint64]bool{}
		for range 1000 {
			seen[z.Next(r)] = true
		}
		require.Len(t, seen, int(n))
		for k := range seen {
			require.Less(t, k, n)
		}
	}
}

// TestSourceUniform: without zipf all keys come up.
func TestSourceUniform(t *testing.T) {
	s := newSource(Config{Keys: 10, KeySize: 16, ValueSize: 8}, 1, nil)
	counts := make([]int, 10)
	for range 10_000 {
		counts[s.index()]++
	}
	for i, n := range counts {
		require.InDelta(t, 1000, n, 150, "key %d", i)
	}
	first := bytes.Clone(s.nextValue())
	require.NotEqual(t, first, s.nextValue())
}
