package raftstore

import (
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

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
// Of splitting and dying, the second to begin gives way: each writes the region's state from another worker, so nothing
// else orders the two. A region that is splitting may be installing as well.
type reservationKind uint8

const (
	installing reservationKind = iota
	splitting
	dying
	reservationKinds
)

// reservations is the table of them, and of the first votes that wait until a split has created their region. Guarded by
// rangeMap.mu.
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

func (t *reservations) release(kind reservationKind, regionID uint64) { delete(t.of[kind], regionID) }

// park keeps a first vote for a region that a split is about to create. The oldest gives way if there are too many.
func (t *reservations) park(vote *rspb.RaftMessage) {
	if len(t.votes) >= maxPendingVotes {
		copy(t.votes, t.votes[1:])
		t.votes = t.votes[:maxPendingVotes-1]
	}
	t.votes = append(t.votes, vote)
}

// takeVotes removes and returns the parked votes for a peer. Those for other peers of the region are dropped.
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
