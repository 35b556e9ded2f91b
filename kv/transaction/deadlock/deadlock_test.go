package deadlock

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func edge(waiter, holder uint64) Edge {
	return Edge{Waiter: waiter, Holder: holder, Key: []byte{byte(waiter), byte(holder)}}
}

func TestCircles(t *testing.T) {
	now := time.Unix(100, 0)
	g := NewGraph(func() time.Time { return now })
	require.Nil(t, g.Detect(edge(1, 2)))
	require.Nil(t, g.Detect(edge(1, 2)), "it is repeated")
	require.Nil(t, g.Detect(edge(2, 3)))
	require.Nil(t, g.Detect(edge(4, 3)))
	require.Equal(t, []Edge{edge(1, 2), edge(2, 3)}, g.Detect(edge(3, 1)))
	require.Equal(t, []Edge{edge(2, 3)}, g.Detect(edge(3, 2)))
	require.Len(t, g.Edges(), 3, "those that would close a circle are not kept")
	g.Remove(edge(2, 3))
	g.Remove(edge(2, 3))
	require.Nil(t, g.Detect(edge(3, 1)))
	require.NotNil(t, g.Detect(edge(2, 3)))

	// What nobody repeats does not count for ever.
	now = now.Add(Lifetime / 2)
	require.Nil(t, g.Detect(edge(1, 2)))
	now = now.Add(Lifetime/2 + 1)
	require.Nil(t, g.Detect(edge(2, 3)), "3 does not wait for 1 any more")
	require.ElementsMatch(t, []Edge{edge(1, 2), edge(2, 3)}, g.Edges())
}

// TestAgainstATwin: whether an edge is refused is as a walk over all edges says.
func TestAgainstATwin(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		g := NewGraph(nil)
		all := map[[2]uint64]bool{}
		var reaches func(from, to uint64, depth int) bool
		reaches = func(from, to uint64, depth int) bool {
			for e := range all {
				if e[0] == from && (e[1] == to || depth > 0 && reaches(e[1], to, depth-1)) {
					return true
				}
			}
			return false
		}
		for range 30 {
			a, b := 1+rng.Uint64N(6), 1+rng.Uint64N(6)
			if a == b {
				continue
			}
			if rng.IntN(4) == 0 {
				g.Remove(edge(a, b))
				delete(all, [2]uint64{a, b})
				continue
			}
			chain := g.Detect(edge(a, b))
			require.Equal(t, reaches(b, a, 6), chain != nil, "seed %d", seed)
			if chain == nil {
				all[[2]uint64{a, b}] = true
				continue
			}
			require.Equal(t, b, chain[0].Waiter)
			require.Equal(t, a, chain[len(chain)-1].Holder)
			for i := 1; i < len(chain); i++ {
				require.Equal(t, chain[i-1].Holder, chain[i].Waiter)
			}
		}
	}
}

func TestGraphIsBounded(t *testing.T) {
	now := time.Unix(100, 0)
	g := NewGraph(func() time.Time { return now })
	for i := range uint64(maxEdges) {
		g.Detect(edge(2*i+10, 2*i+11))
	}
	require.Nil(t, g.Detect(edge(1, 2)))
	require.Nil(t, g.Detect(edge(2, 1)), "there is no room to know of the first")
	now = now.Add(Lifetime + 1)
	require.Nil(t, g.Detect(edge(1, 2)))
	require.NotNil(t, g.Detect(edge(2, 1)))
}
