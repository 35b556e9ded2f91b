package core

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// ErrStale means that a newer record of the region, or of a region that shares keys with it, is
// known. The reporter lost its leadership or will learn better; nothing is changed.
var ErrStale = errors.New("core: stale region")

// ErrInvalidRegion means a report that no record can be made of.
var ErrInvalidRegion = errors.New("core: invalid region")

// Unchanged compares a heartbeat with the record without converting it. It is the fast path: most
// heartbeats say what is already known, and this allocates nothing.
func (r *RegionInfo) Unchanged(hb *schedulerpb.RegionHeartbeatRequest) bool {
	m := hb.Region
	epoch := m.RegionEpoch
	if epoch == nil || r.source != SourceHeartbeat || r.leader < 0 || hb.Leader == nil {
		return false
	}
	if r.version != epoch.Version || r.confVer != epoch.ConfVer || r.term != hb.Term {
		return false
	}
	// Pending and down peers change at every turn; such regions are few and always looked at.
	if r.pending != 0 || len(hb.PendingPeers) != 0 || len(r.down()) != 0 || len(hb.DownPeers) != 0 {
		return false
	}
	if r.peers[r.leader].ID != hb.Leader.Id || r.size != sizeMiB(hb.ApproximateSize) ||
		r.measured != hb.SizeMeasured {
		return false
	}
	return r.sameFlow(hb) && r.samePeers(hb) && r.sameRange(hb)
}

// sameFlow ignores small changes: flow is a hint for people and hot-spot lists, and exact equality
// would make every heartbeat of a busy region take the slow path.
func (r *RegionInfo) sameFlow(hb *schedulerpb.RegionHeartbeatRequest) bool {
	f := r.Flow()
	return near(f.BytesWritten, hb.BytesWritten) && near(f.BytesRead, hb.BytesRead)
}

func near(a, b uint64) bool {
	if a > b {
		a, b = b, a
	}
	return b-a <= 64<<10 || b-a <= a/4
}

func (r *RegionInfo) samePeers(hb *schedulerpb.RegionHeartbeatRequest) bool {
	if len(r.peers) != len(hb.Region.Peers) {
		return false
	}
	for i, p := range hb.Region.Peers {
		if p == nil || r.peers[i] != peerFromProto(p) {
			return false
		}
	}
	return true
}

func (r *RegionInfo) sameRange(hb *schedulerpb.RegionHeartbeatRequest) bool {
	return bytes.Equal(r.start, hb.Region.StartKey) && bytes.Equal(r.end, hb.Region.EndKey)
}

// SameAs tells whether replacing r by n would change nothing that anybody can see.
func (r *RegionInfo) SameAs(n *RegionInfo) bool {
	if r.version != n.version || r.confVer != n.confVer || r.term != n.term ||
		r.leader != n.leader || r.size != n.size || r.measured != n.measured ||
		r.source != n.source {
		return false
	}
	if r.leader < 0 || r.pending != 0 || n.pending != 0 || len(r.down()) != 0 ||
		len(n.down()) != 0 {
		return false
	}
	if len(r.peers) != len(n.peers) || !bytes.Equal(r.start, n.start) ||
		!bytes.Equal(r.end, n.end) {
		return false
	}
	for i := range r.peers {
		if r.peers[i] != n.peers[i] {
			return false
		}
	}
	return near(r.Flow().BytesWritten, n.Flow().BytesWritten) &&
		near(r.Flow().BytesRead, n.Flow().BytesRead)
}

// Validate refuses what must never enter the range tree: no id, an inverted or empty range, two
// peers on one store.
func (r *RegionInfo) Validate() error {
	if r.id == 0 {
		return fmt.Errorf("%w: id 0", ErrInvalidRegion)
	}
	if len(r.end) != 0 && bytes.Compare(r.start, r.end) >= 0 {
		return fmt.Errorf("%w: region %d has range [%v, %v)", ErrInvalidRegion, r.id,
			redact.Key(r.start), redact.Key(r.end))
	}
	if len(r.peers) > maxPeers {
		return fmt.Errorf("%w: region %d has %d peers", ErrInvalidRegion, r.id, len(r.peers))
	}
	for i := range r.peers {
		for j := range i {
			if r.peers[i].StoreID == r.peers[j].StoreID || r.peers[i].ID == r.peers[j].ID {
				return fmt.Errorf("%w: region %d has peers %d and %d on store %d", ErrInvalidRegion,
					r.id, r.peers[j].ID, r.peers[i].ID, r.peers[i].StoreID)
			}
		}
	}
	return nil
}

// maxPeers bounds the peers of a region: the pending set is a bit mask.
const maxPeers = 32

// staleAgainstSelf: for the same id, either part of the epoch being smaller is enough, because
// both only grow along one region's life. With equal epochs the raft term decides between two
// peers that both believe to lead.
func staleAgainstSelf(n, old *RegionInfo) bool {
	if n.version < old.version || n.confVer < old.confVer {
		return true
	}
	return n.version == old.version && n.confVer == old.confVer && n.term != 0 && n.term < old.term
}

// staleAgainstOverlap: between different ids the version decides, the conf version only breaks a
// tie. Demanding both would refuse a merged region for ever, whose conf version may be smaller than
// that of the region it took in.
func staleAgainstOverlap(n, old *RegionInfo) bool {
	return n.version < old.version || (n.version == old.version && n.confVer < old.confVer)
}

func overlaps(a, b *RegionInfo) bool {
	return (len(b.end) == 0 || bytes.Compare(a.start, b.end) < 0) &&
		(len(a.end) == 0 || bytes.Compare(b.start, a.end) < 0)
}
