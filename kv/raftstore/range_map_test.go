package raftstore

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

func region(
	id uint64, start, end string, version, conf uint64, peers ...*metapb.Peer,
) *metapb.Region {
	return &metapb.Region{
		Id: id, StartKey: []byte(start), EndKey: []byte(end), Peers: peers,
		RegionEpoch: &metapb.RegionEpoch{Version: version, ConfVer: conf},
	}
}

func voter(id, store uint64) *metapb.Peer { return &metapb.Peer{Id: id, StoreId: store} }

// TestRangeMapAgainstTwin drives the range tree with random regions and compares with a plain list.
func TestRangeMapAgainstTwin(t *testing.T) {
	keys := []string{"", "a", "b", "c", "d", "e"}
	rapid.Check(t, func(t *rapid.T) {
		m := newRangeMap()
		twin := map[uint64]*metapb.Region{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			id := uint64(rapid.IntRange(1, 5).Draw(t, "id"))
			if rapid.IntRange(0, 3).Draw(t, "op") == 0 {
				m.removeRegion(id, id)
				delete(twin, id)
				continue
			}
			i := rapid.IntRange(0, len(keys)-1).Draw(t, "start")
			j := rapid.IntRange(i+1, len(keys)).Draw(t, "end")
			end := ""
			if j < len(keys) {
				end = keys[j]
			}
			r := region(id, keys[i], end, 1, 1, voter(id, 1))
			free := true
			for _, o := range twin {
				free = free &&
					(o.Id == id || !regions.Overlap(r.StartKey, r.EndKey, o.StartKey, o.EndKey))
			}
			m.mu.Lock()
			other := m.overlapLocked(id, r.StartKey, r.EndKey)
			m.mu.Unlock()
			require.Equal(t, free, other == nil)
			if free {
				m.setRegion(r, id)
				twin[id] = r
			}
			// What is free of r's range, key by key.
			nobody := region(99, keys[i], end, 1, 1, voter(99, 1))
			for _, k := range keys {
				owned, isFree := false, false
				for _, o := range twin {
					owned = owned || regions.Contains(o, []byte(k))
				}
				for _, f := range m.freeRanges(nobody) {
					isFree = isFree ||
						regions.Contains(&metapb.Region{StartKey: f.start, EndKey: f.end},
							[]byte(k))
				}
				require.Equal(t, regions.Contains(nobody, []byte(k)) && !owned, isFree, "key %q", k)
			}
		}
		require.Equal(t, len(twin), len(m.all()))
		require.Equal(t, len(twin), m.mu.ranges.Len())
	})
}

// TestSplitAndDestructionGiveWayToEachOther: the state of a region is written by the split that
// creates it and by the destruction of an uninitialized peer, from two workers; only one of them
// may begin.
func TestSplitAndDestructionGiveWayToEachOther(t *testing.T) {
	right := region(2, "k", "", 2, 1, voter(12, 1))
	empty := &metapb.Region{Id: 2}
	for _, old := range []uint64{11, 12} {
		m := newRangeMap()
		m.setRegion(empty, old)
		require.True(t, m.beginDying(2))
		require.False(t, m.reserveSplit(right, 12), "the tombstone of peer %d is on its way", old)
		m.removeRegion(2, old)
		require.True(t, m.reserveSplit(right, 12))

		m = newRangeMap()
		m.setRegion(empty, old)
		require.True(t, m.reserveSplit(right, 12))
		require.False(t, m.beginDying(2), "the split has taken peer %d over", old)
		m.finishSplit(2)
		require.True(t, m.beginDying(2))
	}
}

func TestRemoveRegionOfAnotherPeerIsIgnored(t *testing.T) {
	m := newRangeMap()
	m.setRegion(region(1, "", "", 1, 1, voter(5, 1)), 5)
	m.removeRegion(1, 4)
	require.Len(t, m.all(), 1)
	m.removeRegion(1, 5)
	m.removeRegion(1, 5)
	require.Empty(t, m.all())
	// An uninitialized region has no range, and removing it takes nobody else's.
	m.setRegion(region(1, "", "", 1, 1, voter(5, 1)), 5)
	m.setRegion(&metapb.Region{Id: 2, RegionEpoch: &metapb.RegionEpoch{}}, 7)
	m.removeRegion(2, 7)
	require.Equal(t, 1, m.mu.ranges.Len())
}

func TestNeighboursComeInKeyOrder(t *testing.T) {
	m := newRangeMap()
	a, b, c := region(1, "", "b", 1, 1, voter(1, 1)), region(2, "b", "d", 1, 1, voter(2, 1)),
		region(3, "d", "", 1, 1, voter(3, 1))
	for _, r := range []*metapb.Region{c, a, b} {
		m.setRegion(r, r.Peers[0].Id)
	}
	require.Equal(t, []*metapb.Region{a, b, c}, m.withNeighbours(b))
	require.Equal(t, []*metapb.Region{a, b}, m.withNeighbours(a))
	require.Equal(t, []*metapb.Region{b, c}, m.withNeighbours(c))
}
