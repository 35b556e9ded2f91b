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

// TestRegionWithinAnother: a region that went into another one lies within it; the store that said
// so is not taken for the leader of a region whose leader is known.
func TestRegionWithinAnother(t *testing.T) {
	at := func(start, end string) *metapb.Region {
		return &metapb.Region{StartKey: []byte(start), EndKey: []byte(end)}
	}
	for _, c := range []struct {
		name         string
		inner, outer *metapb.Region
		want         bool
	}{
		{"the same", at("b", "d"), at("b", "d"), true},
		{"left half", at("b", "c"), at("b", "d"), true},
		{"right half", at("c", "d"), at("b", "d"), true},
		{"of all keys", at("c", "d"), at("", ""), true},
		{"to the end", at("c", ""), at("b", ""), true},
		{"wider on the left", at("a", "d"), at("b", "d"), false},
		{"wider on the right", at("b", "e"), at("b", "d"), false},
		{"without an end", at("b", ""), at("b", "d"), false},
		{"beside it", at("d", "f"), at("b", "d"), false},
	} {
		require.Equal(t, c.want, (&cachedRegion{meta: c.inner}).within(c.outer), c.name)
	}

	c := newRegionCache(nil, func([]*metapb.Peer) {})
	peers := []*metapb.Peer{{Id: 1, StoreId: 1}, {Id: 2, StoreId: 2}}
	region := func(version uint64, end string) *metapb.Region {
		return &metapb.Region{
			Id: 7, EndKey: []byte(end), Peers: peers,
			RegionEpoch: &metapb.RegionEpoch{Version: version, ConfVer: 1},
		}
	}
	c.place(region(1, "m"), nil, peers[1])
	require.Equal(t, peers[1], c.lookup([]byte("a")).leader, "a guess is better than nothing")
	c.place(region(2, ""), nil, peers[0])
	require.Equal(t, peers[1], c.lookup([]byte("a")).leader, "what is known is better than a guess")
	require.Equal(t, peers[0], (&cachedRegion{leader: &metapb.Peer{Id: 9, StoreId: 1}}).
		peerOn(region(2, "")))
	require.Nil(t, (&cachedRegion{leader: &metapb.Peer{Id: 9, StoreId: 3}}).peerOn(region(2, "")))
}
