package client

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

func cacheKey(i, n uint64) []byte {
	if i == 0 || i == n {
		return nil
	}
	return binary.BigEndian.AppendUint64(nil, i)
}

// filledCache knows n regions, with a key in the middle of each.
func filledCache(n uint64) (c *regionCache, keys [][]byte) {
	c = newRegionCache(nil, func([]*metapb.Peer) {})
	for i := range n {
		peer := &metapb.Peer{Id: i + 1, StoreId: 1}
		c.insert(&metapb.Region{
			Id: i + 1, StartKey: cacheKey(i, n), EndKey: cacheKey(i+1, n),
			Peers:       []*metapb.Peer{peer},
			RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		}, peer)
		keys = append(keys, append(binary.BigEndian.AppendUint64(nil, i), 'm'))
	}
	return c, keys
}

func BenchmarkRegionCache(b *testing.B) {
	c, keys := filledCache(1000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if c.lookup(keys[i*7%len(keys)]) == nil {
			b.Fatal("none")
		}
	}
}

// TestAllocationsOfALookup: every request of a client looks its region up.
func TestAllocationsOfALookup(t *testing.T) {
	c, keys := filledCache(1000)
	i := 0
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() {
		r := c.lookup(keys[i%len(keys)])
		require.True(t, r != nil && r.meta.Id == uint64(i%len(keys))+1)
		i++
	}), 0.0)
}
