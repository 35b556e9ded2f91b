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
		// frozen are the regions that are to go into another one.
		frozen map[uint64]frozenRegion
	}
}

// frozenRegion is a replica of a region that is frozen to go into another one, as its peer knows
// it.
type frozenRegion struct {
	region *metapb.Region
	peer   *metapb.Peer
	state  *rspb.MergingState
}

// record is its state in the engine.
func (f *frozenRegion) record() *rspb.RegionLocalState {
	return &rspb.RegionLocalState{
		State: rspb.PeerState_Merging, Region: f.region, Peer: f.peer, Merging: f.state,
	}
}

func lessByStart(a, b *metapb.Region) bool { return bytes.Compare(a.StartKey, b.StartKey) < 0 }

func newRangeMap() *rangeMap {
	m := &rangeMap{}
	m.mu.regions = map[uint64]*metapb.Region{}
	m.mu.peers = map[uint64]uint64{}
	m.mu.ranges = btree.NewG(32, lessByStart)
	m.mu.frozen = map[uint64]frozenRegion{}
	return m
}

// setRegion replaces what is known of a region. The new range must be free or the region's own. It
// returns the frozen regions that wait for the region to change.
func (m *rangeMap) setRegion(r *metapb.Region, peerID uint64) (waiting []uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setRegionLocked(r, peerID)
	for id, f := range m.mu.frozen {
		if f.state.GetTarget().GetId() == r.Id {
			waiting = append(waiting, id)
		}
	}
	return waiting
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
	m.forgetLocked(regionID)
	m.mu.reserved.release(dying, regionID)
}

func (m *rangeMap) forgetLocked(regionID uint64) {
	delete(m.mu.regions, regionID)
	delete(m.mu.peers, regionID)
	delete(m.mu.frozen, regionID)
	m.mu.reserved.release(installing, regionID)
}

// region returns a region of this store, nil if it is not here.
func (m *rangeMap) region(id uint64) *metapb.Region {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.regions[id]
}

// freeze notes that a replica is frozen; thaw that it is not any more.
func (m *rangeMap) freeze(f frozenRegion) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.frozen[f.region.Id] = f
}

func (m *rangeMap) isFrozen(regionID uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, frozen := m.mu.frozen[regionID]
	return frozen
}

func (m *rangeMap) thaw(regionID uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.mu.frozen, regionID)
}

// absorb puts a joined region in the place of its target and a source, which it has taken over on
// disk. The source may be gone already. At no moment is its range free: another region could take
// it. Without a joined region the source alone goes.
func (m *rangeMap) absorb(sourceID uint64, joined *metapb.Region, peerID uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.mu.regions[sourceID]; regions.IsInitialized(r) {
		m.deleteRangeLocked(r)
	}
	m.forgetLocked(sourceID)
	if joined != nil {
		m.setRegionLocked(joined, peerID)
	}
}

// overlapLocked returns a region other than id that shares a key with [start, end), counting ranges
// reserved by accepted raft snapshots.
func (m *rangeMap) overlapLocked(id uint64, start, end []byte) *metapb.Region {
	return m.overlapButLocked(id, start, end, func(*metapb.Region) bool { return false })
}

// overlapButLocked does not count regions for which but returns true.
func (m *rangeMap) overlapButLocked(
	id uint64, start, end []byte, but func(*metapb.Region) bool,
) *metapb.Region {
	var found *metapb.Region
	check := func(r *metapb.Region) {
		if r.Id != id && regions.Overlap(start, end, r.StartKey, r.EndKey) && !but(r) {
			found = r
		}
	}
	m.mu.ranges.DescendLessOrEqual(&metapb.Region{StartKey: start}, func(r *metapb.Region) bool {
		check(r)
		return r.Id == id && found == nil
	})
	if found == nil {
		m.mu.ranges.AscendGreaterOrEqual(&metapb.Region{StartKey: start},
			func(r *metapb.Region) bool {
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
// Frozen regions that went into the snapshot's region are not in the way: it takes them over.
func (m *rangeMap) reserveSnapshot(r *metapb.Region) (taken []frozenRegion, other *metapb.Region) {
	m.mu.Lock()
	defer m.mu.Unlock()
	other = m.overlapButLocked(r.Id, r.StartKey, r.EndKey, func(o *metapb.Region) bool {
		f, ok := m.mu.frozen[o.Id]
		ok = ok && f.state.Target.Id == r.Id &&
			r.RegionEpoch.Version > f.region.RegionEpoch.Version &&
			regions.Covers(r, f.region) && !m.mu.reserved.has(installing, o.Id)
		if ok &&
			!slices.ContainsFunc(taken, func(t frozenRegion) bool { return t.region.Id == o.Id }) {
			taken = append(taken, f)
		}
		return ok
	})
	if other != nil {
		return nil, other
	}
	m.mu.reserved.set(installing, r)
	return taken, nil
}

// releaseSnapshot gives back the range of a raft snapshot that raft has ignored.
func (m *rangeMap) releaseSnapshot(regionID uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.reserved.release(installing, regionID)
}

// beginDying is called before an uninitialized peer is destroyed. False: a split that is being
// applied takes it over, and the peer must stay for that.
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
// not if a newer peer of that region is already known here, nor while an older one is being
// destroyed (the region's leader then sends a raft snapshot).
func (m *rangeMap) reserveSplit(right *metapb.Region, peerID uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.reserved.has(dying, right.Id) {
		return false
	}
	if cur, ok := m.mu.peers[right.Id]; ok &&
		(cur > peerID || regions.IsInitialized(m.mu.regions[right.Id])) {
		return false
	}
	m.mu.reserved.set(splitting, right)
	return true
}

// mayCreate tells whether a message may create a peer of its region. Not if another region of this
// store still covers the range: that region has a split to apply that will create it. A vote is
// parked until then.
func (m *rangeMap) mayCreate(msg *rspb.RaftMessage) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, known := m.mu.regions[msg.RegionId]
	if !known && !m.mu.reserved.has(splitting, msg.RegionId) &&
		m.overlapLocked(msg.RegionId, msg.StartKey, msg.EndKey) == nil {
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

// withNeighbours returns the region together with its adjacent regions on this store, in key order,
// also one that a split has made and whose peer does not run yet.
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

// at returns the region of this store that has a key, nil if none does.
func (m *rangeMap) at(key []byte) *metapb.Region {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found *metapb.Region
	m.mu.ranges.DescendLessOrEqual(&metapb.Region{StartKey: key}, func(r *metapb.Region) bool {
		if regions.CheckKey(r, key) == nil {
			found = r
		}
		return false
	})
	return found
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

// freeRanges returns the parts of r's range that no other initialized region of this store has, nor
// the right half of a split whose peer does not run yet: its data is there, and durable.
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
	m.mu.ranges.DescendLessOrEqual(&metapb.Region{StartKey: r.StartKey},
		func(o *metapb.Region) bool {
			others = append(others, o)
			return o.Id == r.Id
		})
	m.mu.ranges.AscendGreaterOrEqual(&metapb.Region{StartKey: r.StartKey},
		func(o *metapb.Region) bool {
			if !regions.BeforeEnd(o.StartKey, r.EndKey) {
				return false
			}
			others = append(others, o)
			return true
		})
	for _, o := range m.mu.reserved.of[splitting] {
		others = append(others, o)
	}
	slices.SortFunc(others, func(a, b *metapb.Region) int {
		return bytes.Compare(a.StartKey, b.StartKey)
	})
	for _, o := range others {
		take(o)
	}
	if !done && regions.BeforeEnd(start, r.EndKey) {
		out = append(out, keyRange{start, r.EndKey})
	}
	return out
}

// reservationKind is what a region is reserved for while the store's map does not show it:
//
//	kind        from                                   to                                keeps away
//	----------  -------------------------------------  --------------------------------  ---------------------------------
//	installing  a raft snapshot is accepted            it is in the map, or raft ignored  regions that overlap its range
//	                                                   it, or the peer is gone
//	splitting   a split that creates it is applied     its peer is there                 other peers of the region, its
//	                                                                                     destruction, clearing of its range
//	dying       its uninitialized peer is about to go  the peer is gone                  a split that would create it
//
// Of splitting and dying, the second to begin gives way: each writes the region's state from
// another worker, so nothing else orders the two. A region that is splitting may be installing as
// well.
type reservationKind uint8

const (
	installing reservationKind = iota
	splitting
	dying
	reservationKinds
)

// reservations is the table of them, and of the first votes that wait until a split has created
// their region. Guarded by rangeMap.mu.
type reservations struct {
	of    [reservationKinds]map[uint64]*metapb.Region
	votes []*rspb.RaftMessage
}

// maxPendingVotes bounds the first votes that are parked for regions that a split will create.
const maxPendingVotes = 1024

func (t *reservations) set(kind reservationKind, r *metapb.Region) {
	if t.of[kind] == nil {
		t.of[kind] = map[uint64]*metapb.Region{}
	}
	t.of[kind][r.Id] = r
}

func (t *reservations) has(kind reservationKind, regionID uint64) bool {
	return t.of[kind][regionID] != nil
}

func (t *reservations) release(kind reservationKind, regionID uint64) {
	delete(t.of[kind], regionID)
}

// park keeps a first vote for a region that a split is about to create. The oldest gives way if
// there are too many.
func (t *reservations) park(vote *rspb.RaftMessage) {
	if len(t.votes) >= maxPendingVotes {
		copy(t.votes, t.votes[1:])
		t.votes = t.votes[:maxPendingVotes-1]
	}
	t.votes = append(t.votes, vote)
}

// takeVotes removes and returns the parked votes for a peer. Those for other peers of the region
// are dropped.
func (t *reservations) takeVotes(regionID, peerID uint64) []*rspb.RaftMessage {
	var out []*rspb.RaftMessage
	kept := t.votes[:0]
	for _, v := range t.votes {
		switch {
		case v.RegionId != regionID:
			kept = append(kept, v)
		case v.GetToPeer().GetId() == peerID:
			out = append(out, v)
		}
	}
	clear(t.votes[len(kept):])
	t.votes = kept
	return out
}
