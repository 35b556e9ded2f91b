package raftstore

import (
	"bytes"
	"slices"
	"sync"

	"github.com/google/btree"

	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// rangeMap is what a store knows about the ranges of its regions. It is shared by all workers.
//
// Invariants: ranges holds exactly the initialized regions of regions, and they do not overlap,
// nor does what is installing with any of them.
//
// mu is a leaf lock: never held over IO, a channel send or another lock.
type rangeMap struct {
	mu struct {
		sync.Mutex
		regions map[uint64]*metapb.Region
		// peers holds the peer ids of all regions, also uninitialized ones.
		peers    map[uint64]uint64
		ranges   *btree.BTreeG[*metapb.Region]
		reserved reservations
	}
}

func lessByStart(a, b *metapb.Region) bool { return bytes.Compare(a.StartKey, b.StartKey) < 0 }

func newRangeMap() *rangeMap {
	m := &rangeMap{}
	m.mu.regions = map[uint64]*metapb.Region{}
	m.mu.peers = map[uint64]uint64{}
	m.mu.ranges = btree.NewG(32, lessByStart)
	return m
}

// setRegion replaces what is known of a region. The new range must be free or the region's own.
func (m *rangeMap) setRegion(r *metapb.Region, peerID uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setRegionLocked(r, peerID)
}

func (m *rangeMap) setRegionLocked(r *metapb.Region, peerID uint64) {
	if old := m.mu.regions[r.Id]; regions.IsInitialized(old) {
		m.deleteRangeLocked(old)
	}
	m.mu.regions[r.Id] = r
	m.mu.peers[r.Id] = peerID
	m.mu.reserved.release(installing, r.Id)
	if regions.IsInitialized(r) {
		m.mu.ranges.ReplaceOrInsert(r)
	}
}

// deleteRangeLocked removes the region's own range, and never another region's that begins at the
// same key.
func (m *rangeMap) deleteRangeLocked(r *metapb.Region) {
	if cur, ok := m.mu.ranges.Get(r); ok && cur.Id == r.Id {
		m.mu.ranges.Delete(r)
	}
}

// removeRegion forgets a region if it still belongs to that peer. Idempotent.
func (m *rangeMap) removeRegion(regionID, peerID uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.peers[regionID] != peerID {
		return
	}
	if r := m.mu.regions[regionID]; regions.IsInitialized(r) {
		m.deleteRangeLocked(r)
	}
	delete(m.mu.regions, regionID)
	delete(m.mu.peers, regionID)
	m.mu.reserved.release(installing, regionID)
	m.mu.reserved.release(dying, regionID)
}

// overlapLocked returns a region other than id that shares a key with [start, end), counting ranges
// reserved by accepted raft snapshots.
func (m *rangeMap) overlapLocked(id uint64, start, end []byte) *metapb.Region {
	var found *metapb.Region
	check := func(r *metapb.Region) {
		if r.Id != id && regions.Overlap(start, end, r.StartKey, r.EndKey) {
			found = r
		}
	}
	m.mu.ranges.DescendLessOrEqual(&metapb.Region{StartKey: start}, func(r *metapb.Region) bool {
		check(r)
		return r.Id == id && found == nil
	})
	if found == nil {
		m.mu.ranges.AscendGreaterOrEqual(&metapb.Region{StartKey: start}, func(r *metapb.Region) bool {
			if !regions.BeforeEnd(r.StartKey, end) {
				return false
			}
			check(r)
			return found == nil
		})
	}
	if found == nil {
		for _, r := range m.mu.reserved.of[installing] {
			check(r)
		}
	}
	return found
}

// reserveSnapshot reserves the range of a raft snapshot; it returns the region in the way, if any.
func (m *rangeMap) reserveSnapshot(r *metapb.Region) *metapb.Region {
	m.mu.Lock()
	defer m.mu.Unlock()
	if other := m.overlapLocked(r.Id, r.StartKey, r.EndKey); other != nil {
		return other
	}
	m.mu.reserved.set(installing, r)
	return nil
}

// releaseSnapshot gives back the range of a raft snapshot that raft has ignored.
func (m *rangeMap) releaseSnapshot(regionID uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.reserved.release(installing, regionID)
}

// beginDying is called before an uninitialized peer is destroyed. False: a split that is being applied
// takes it over, and the peer must stay for that.
func (m *rangeMap) beginDying(regionID uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.reserved.has(splitting, regionID) {
		return false
	}
	m.mu.reserved.set(dying, &metapb.Region{Id: regionID})
	return true
}

// reserveSplit decides whether a split that is being applied creates the new region on this store:
// not if a newer peer of that region is already known here, nor while an older one is being destroyed
// (the region's leader then sends a raft snapshot).
func (m *rangeMap) reserveSplit(right *metapb.Region, peerID uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.reserved.has(dying, right.Id) {
		return false
	}
	if cur, ok := m.mu.peers[right.Id]; ok && (cur > peerID || regions.IsInitialized(m.mu.regions[right.Id])) {
		return false
	}
	m.mu.reserved.set(splitting, right)
	return true
}

// mayCreate tells whether a message may create a peer of its region. Not if another region of this store still covers the
// range: that region has a split to apply that will create it. A vote is parked until then.
func (m *rangeMap) mayCreate(msg *rspb.RaftMessage) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, known := m.mu.regions[msg.RegionId]
	if !known && !m.mu.reserved.has(splitting, msg.RegionId) && m.overlapLocked(msg.RegionId, msg.StartKey, msg.EndKey) == nil {
		return true
	}
	if isVote(msg.Message) {
		m.mu.reserved.park(msg)
	}
	return false
}

// takePendingVotes removes and returns the parked votes for a peer.
func (m *rangeMap) takePendingVotes(regionID, peerID uint64) []*rspb.RaftMessage {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.reserved.takeVotes(regionID, peerID)
}

// withNeighbours returns the region together with its adjacent regions on this store, in key order, also
// one that a split has made and whose peer does not run yet.
func (m *rangeMap) withNeighbours(r *metapb.Region) []*metapb.Region {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*metapb.Region
	if len(r.StartKey) > 0 {
		m.mu.ranges.DescendLessOrEqual(r, func(o *metapb.Region) bool {
			if o.Id == r.Id {
				return true
			}
			if bytes.Equal(o.EndKey, r.StartKey) {
				out = append(out, o)
			}
			return false
		})
	}
	out = append(out, r)
	if len(r.EndKey) > 0 {
		next, ok := m.mu.ranges.Get(&metapb.Region{StartKey: r.EndKey})
		for _, o := range m.mu.reserved.of[splitting] {
			if !ok && bytes.Equal(o.StartKey, r.EndKey) {
				next, ok = o, true // split off, and about to run
			}
		}
		if ok && next.Id != r.Id {
			out = append(out, next)
		}
	}
	return out
}

// Regions returns all regions of the store, initialized or not.
func (m *rangeMap) all() []*metapb.Region {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*metapb.Region, 0, len(m.mu.regions))
	for _, r := range m.mu.regions {
		out = append(out, r)
	}
	return out
}

// finishSplit ends the reservation of a split: the peer is there.
func (m *rangeMap) finishSplit(regionID uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.reserved.release(splitting, regionID)
}

type keyRange struct{ start, end []byte }

// freeRanges returns the parts of r's range that no other initialized region of this store has, nor the
// right half of a split whose peer does not run yet: its data is there, and durable.
func (m *rangeMap) freeRanges(r *metapb.Region) []keyRange {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []keyRange
	start, done := r.StartKey, false
	take := func(o *metapb.Region) {
		if done || o.Id == r.Id || !regions.Overlap(r.StartKey, r.EndKey, o.StartKey, o.EndKey) {
			return
		}
		if bytes.Compare(start, o.StartKey) < 0 {
			out = append(out, keyRange{start, o.StartKey})
		}
		if len(o.EndKey) == 0 {
			done = true
		} else if bytes.Compare(start, o.EndKey) < 0 {
			start = o.EndKey
		}
	}
	var others []*metapb.Region
	m.mu.ranges.DescendLessOrEqual(&metapb.Region{StartKey: r.StartKey}, func(o *metapb.Region) bool {
		others = append(others, o)
		return o.Id == r.Id
	})
	m.mu.ranges.AscendGreaterOrEqual(&metapb.Region{StartKey: r.StartKey}, func(o *metapb.Region) bool {
		if !regions.BeforeEnd(o.StartKey, r.EndKey) {
			return false
		}
		others = append(others, o)
		return true
	})
	for _, o := range m.mu.reserved.of[splitting] {
		others = append(others, o)
	}
	slices.SortFunc(others, func(a, b *metapb.Region) int { return bytes.Compare(a.StartKey, b.StartKey) })
	for _, o := range others {
		take(o)
	}
	if !done && regions.BeforeEnd(start, r.EndKey) {
		out = append(out, keyRange{start, r.EndKey})
	}
	return out
}
