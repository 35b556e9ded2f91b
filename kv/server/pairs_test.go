package server

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// TestPairsShareNothing: pairs from common chunks are as if each had been copied by itself, also when one grows.
func TestPairsShareNothing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, most := range []int{1, 2, 3, 100, 1000} {
		p := pairs{most: most}
		var want, got []*kvrpcpb.KvPair
		buf := make([]byte, 2*maxChunk)
		for range most + 1 {
			part := func(n int) []byte {
				for i := range n {
					buf[i] = byte(rnd.Uint32())
				}
				return buf[:n]
			}
			size := []int{0, 1, 16, 256, maxChunk / 4, maxChunk/4 + 1, 2 * maxChunk}[rnd.IntN(7)]
			pair, w := p.next(), &kvrpcpb.KvPair{}
			key := part(1 + rnd.IntN(32))
			pair.Key, w.Key = p.copy(key), append([]byte{}, key...)
			value := part(size)
			pair.Value, w.Value = p.copy(value), append([]byte{}, value...)
			got, want = append(got, pair), append(want, w)
		}
		for _, pair := range got {
			_ = append(pair.Key, 'x')
			_ = append(pair.Value, 'x')
		}
		require.Equal(t, want, got)
		require.LessOrEqual(t, p.made, most+1)
	}
}
