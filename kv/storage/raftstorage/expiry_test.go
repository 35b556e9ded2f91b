package raftstorage

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTimesOfSwapsAndReaders: a reader does not go by a time later than that of a swap of its
// region which is not decided, and a swap's time is not before what a reader went by.
func TestTimesOfSwapsAndReaders(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		now := uint64(100)
		ts := newTimes(func() uint64 { return now })
		type swap struct {
			at      uint64
			decided func()
		}
		open, latest := map[uint64][]swap{}, map[uint64]uint64{}
		for range 300 {
			now += rng.Uint64N(3)
			region := rng.Uint64N(3)
			switch list := open[region]; {
			case rng.IntN(3) == 0:
				at, decided := ts.begin(region)
				require.GreaterOrEqual(t, at, latest[region])
				open[region] = append(list, swap{at, decided})
			case rng.IntN(2) == 0 && len(list) > 0:
				i := rng.IntN(len(list))
				list[i].decided()
				open[region] = append(list[:i:i], list[i+1:]...)
			default:
				at := ts.ofReader(region)
				for _, s := range list {
					require.LessOrEqual(t, at, s.at)
				}
				if len(list) == 0 {
					require.Equal(t, now, at, "nothing is under way")
				}
				require.GreaterOrEqual(t, at, latest[region], "time runs back")
				latest[region] = at
			}
		}
		for _, list := range open {
			for _, s := range list {
				s.decided()
			}
		}
		require.Empty(t, ts.mu.undecided)
	}
}
