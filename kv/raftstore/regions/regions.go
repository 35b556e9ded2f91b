// Package regions has the pure functions over regions: ranges, members, epochs, and what a conf
// change or a split makes of them.
//
// A *metapb.Region is immutable once it is published anywhere: a change
// makes a new one (a region that is mutated in place is how stale splits pass epoch checks).
package regions

import (
	"bytes"

	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// Clone copies a region deeply enough to change anything but the bytes of its keys.
func Clone(r *metapb.Region) *metapb.Region {
	c := *r
	if r.RegionEpoch != nil {
		e := *r.RegionEpoch
		c.RegionEpoch = &e
	}
	c.Peers = make([]*metapb.Peer, len(r.Peers))
	for i, p := range r.Peers {
		q := *p
		c.Peers[i] = &q
	}
	return &c
}

// IsInitialized tells whether the region knows its range: one that was created by a message has no
// peers until its first raft snapshot.
func IsInitialized(r *metapb.Region) bool { return len(r.GetPeers()) > 0 }

// Contains tells whether key lies in [start, end); an empty end is +infinity.
func Contains(r *metapb.Region, key []byte) bool {
	return bytes.Compare(key, r.GetStartKey()) >= 0 && BeforeEnd(key, r.GetEndKey())
}

// BeforeEnd tells whether key lies before the end of a range; an empty end is +infinity.
func BeforeEnd(key, end []byte) bool { return len(end) == 0 || bytes.Compare(key, end) < 0 }

// StrictlyInside tells whether key can split the region: both halves are not empty.
func StrictlyInside(r *metapb.Region, key []byte) bool {
	return bytes.Compare(key, r.GetStartKey()) > 0 && BeforeEnd(key, r.GetEndKey())
}

// Overlap tells whether [s1, e1) and [s2, e2) share a key; empty ends are +infinity.
func Overlap(s1, e1, s2, e2 []byte) bool { return BeforeEnd(s1, e2) && BeforeEnd(s2, e1) }

// Covers tells whether all of b's range is in a's.
func Covers(a, b *metapb.Region) bool {
	return bytes.Compare(a.GetStartKey(), b.GetStartKey()) <= 0 &&
		(len(a.GetEndKey()) == 0 ||
			len(b.GetEndKey()) > 0 && bytes.Compare(b.EndKey, a.EndKey) <= 0)
}

// CheckKey refuses a key outside the region.
func CheckKey(r *metapb.Region, key []byte) error {
	if !Contains(r, key) {
		return &regionerr.KeyNotInRegionError{Key: key, Region: r}
	}
	return nil
}

// CheckRange refuses a range [start, end) that is empty or not within the region; an empty end is
// the end of the key space.
func CheckRange(r *metapb.Region, start, end []byte) error {
	if len(end) > 0 && bytes.Compare(start, end) >= 0 {
		return regionerr.Invalidf("the range from %v to %v is empty", redact.Key(start),
			redact.Key(end))
	}
	if last := r.GetEndKey(); len(last) > 0 && (len(end) == 0 || bytes.Compare(end, last) > 0) {
		return &regionerr.KeyNotInRegionError{Key: end, Region: r}
	}
	return CheckKey(r, start)
}

// PeerOnStore returns the region's peer on a store, or nil.
func PeerOnStore(r *metapb.Region, storeID uint64) *metapb.Peer {
	for _, p := range r.GetPeers() {
		if p.StoreId == storeID {
			return p
		}
	}
	return nil
}

// PeerByID returns the region's peer of an id, or nil.
func PeerByID(r *metapb.Region, id uint64) *metapb.Peer {
	for _, p := range r.GetPeers() {
		if p.Id == id {
			return p
		}
	}
	return nil
}

// MaxPeerID is the largest id that a peer of the region is known to have had. A peer that was
// removed leaves a tombstone on its store, which keeps its id, and any smaller one, from living
// there again.
func MaxPeerID(r *metapb.Region) uint64 {
	id := r.GetMaxPeerId()
	for _, p := range r.GetPeers() {
		id = max(id, p.Id)
	}
	return id
}

// IsLearner tells whether a peer has no vote.
func IsLearner(p *metapb.Peer) bool { return p.GetRole() == metapb.PeerRole_Learner }

// VoterCount is the number of voting peers.
func VoterCount(r *metapb.Region) int {
	n := 0
	for _, p := range r.GetPeers() {
		if !IsLearner(p) {
			n++
		}
	}
	return n
}

// EpochStale tells whether a is older than b in either part.
func EpochStale(a, b *metapb.RegionEpoch) bool {
	return a.GetVersion() < b.GetVersion() || a.GetConfVer() < b.GetConfVer()
}

// EpochParts tells which parts of the epoch a command depends on (H2). Compared for
// equality: a request from the future must be refused by a lagging replica as well.
func EpochParts(admin *raft_cmdpb.AdminRequest) (version, confVer bool) {
	if admin == nil {
		return true, false
	}
	switch admin.CmdType {
	case raft_cmdpb.AdminCmdType_Split:
		return true, true
	case raft_cmdpb.AdminCmdType_ChangePeer:
		return false, true
	case raft_cmdpb.AdminCmdType_CompactLog, raft_cmdpb.AdminCmdType_TransferLeader,
		raft_cmdpb.AdminCmdType_InvalidAdmin:
		return false, false
	}
	return true, true
}

// EpochMatches compares the given parts of an epoch with the region's.
func EpochMatches(r *metapb.Region, epoch *metapb.RegionEpoch, version, confVer bool) bool {
	cur := r.GetRegionEpoch()
	return (!version || epoch.GetVersion() == cur.GetVersion()) &&
		(!confVer || epoch.GetConfVer() == cur.GetConfVer())
}

// Change is the region after a conf change, nil if it has no effect.
func Change(r *metapb.Region, kind eraftpb.ConfChangeType, peer *metapb.Peer) *metapb.Region {
	q := *peer
	switch kind {
	case eraftpb.ConfChangeType_AddNode:
		q.Role = metapb.PeerRole_Voter
		return withPeer(r, &q)
	case eraftpb.ConfChangeType_AddLearnerNode:
		q.Role = metapb.PeerRole_Learner
		return withPeer(r, &q)
	case eraftpb.ConfChangeType_RemoveNode:
		return withoutPeer(r, &q)
	}
	return nil
}

// withPeer returns the region after a conf change that adds or promotes a peer, or nil if that
// changes nothing.
func withPeer(r *metapb.Region, p *metapb.Peer) *metapb.Region {
	if old := PeerOnStore(r, p.StoreId); old != nil {
		// The same peer again is a duplicate, unless a learner becomes a voter; another peer id on
		// the same store is refused.
		if old.Id != p.Id || !IsLearner(old) || IsLearner(p) {
			return nil
		}
		c := Clone(r)
		PeerByID(c, p.Id).Role = metapb.PeerRole_Voter
		c.RegionEpoch.ConfVer++
		return c
	}
	if PeerByID(r, p.Id) != nil {
		return nil
	}
	c := Clone(r)
	q := *p
	c.Peers = append(c.Peers, &q)
	c.RegionEpoch.ConfVer++
	c.MaxPeerId = MaxPeerID(c)
	return c
}

// withoutPeer returns the region after a conf change that removes a peer, or nil if that changes
// nothing: the peer is absent, or it is the last voter.
func withoutPeer(r *metapb.Region, p *metapb.Peer) *metapb.Region {
	old := PeerByID(r, p.Id)
	if old == nil || (p.StoreId != 0 && old.StoreId != p.StoreId) {
		return nil
	}
	if !IsLearner(old) && VoterCount(r) == 1 {
		return nil
	}
	c := Clone(r)
	c.Peers = c.Peers[:0]
	for _, q := range r.Peers {
		if q.Id != p.Id {
			cp := *q
			c.Peers = append(c.Peers, &cp)
		}
	}
	c.RegionEpoch.ConfVer++
	c.MaxPeerId = MaxPeerID(r)
	return c
}

// Split returns both halves of a region: the left one keeps the id and the peers, the right one
// takes the new ids, in the same order of stores. Both get version+1.
func Split(r *metapb.Region, req *raft_cmdpb.SplitRequest) (left, right *metapb.Region, err error) {
	if !StrictlyInside(r, req.GetSplitKey()) {
		return nil, nil,
			regionerr.Invalidf("split key %v is not strictly inside region %d [%v, %v)",
				redact.Key(req.GetSplitKey()), r.Id, redact.Key(r.StartKey), redact.Key(r.EndKey))
	}
	if len(req.NewPeerIds) != len(r.Peers) {
		return nil, nil,
			regionerr.Invalidf("split of region %d: %d new peer ids for %d peers", r.Id,
				len(req.NewPeerIds), len(r.Peers))
	}
	if req.NewRegionId == 0 || req.NewRegionId == r.Id {
		return nil, nil,
			regionerr.Invalidf("split of region %d: new region id %d", r.Id, req.NewRegionId)
	}
	seen := map[uint64]bool{0: true}
	for _, id := range req.NewPeerIds {
		if seen[id] {
			return nil, nil,
				regionerr.Invalidf("split of region %d: new peer ids %v are not distinct", r.Id,
					req.NewPeerIds)
		}
		seen[id] = true
	}
	key := bytes.Clone(req.SplitKey)
	left, right = Clone(r), Clone(r)
	left.EndKey = key
	left.RegionEpoch.Version++
	right.Id = req.NewRegionId
	right.StartKey = key
	right.RegionEpoch.Version++
	for i, p := range right.Peers {
		p.Id = req.NewPeerIds[i]
	}
	right.Merges, right.MergesFloor = nil, 0 // they were into the left one
	right.MaxPeerId = 0
	right.MaxPeerId = MaxPeerID(right)
	return left, right, nil
}
