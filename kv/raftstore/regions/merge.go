package regions

import (
	"bytes"
	"math"
	"slices"

	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// maxMerges bounds the merges that a region remembers. A source that is frozen while its target
// takes more of others than that needs the answers of all its stores to get free.
const maxMerges = 16

// Adjacent tells whether two disjoint regions lie side by side.
func Adjacent(a, b *metapb.Region) bool { return endsAt(a, b) || endsAt(b, a) }

func endsAt(left, right *metapb.Region) bool {
	return len(left.GetEndKey()) > 0 && bytes.Equal(left.EndKey, right.GetStartKey())
}

// SameStores tells whether two regions have their voters on the same stores, and nothing but
// voters.
func SameStores(a, b *metapb.Region) bool {
	if len(a.GetPeers()) != len(b.GetPeers()) {
		return false
	}
	for _, p := range a.GetPeers() {
		if q := PeerOnStore(b, p.StoreId); q == nil || IsLearner(p) || IsLearner(q) {
			return false
		}
	}
	return true
}

// SameEpoch tells whether both parts of two epochs are equal.
func SameEpoch(a, b *metapb.RegionEpoch) bool {
	return a.GetVersion() == b.GetVersion() && a.GetConfVer() == b.GetConfVer()
}

// NextVersion is the region with a version greater by one and nothing else changed: what freezes a
// source, ends its freeze, or refuses a merge.
func NextVersion(r *metapb.Region) *metapb.Region {
	c := Clone(r)
	c.RegionEpoch.Version++
	return c
}

// Join returns the target with the source's range, which the entry commit of the source's log has
// frozen.
//
// Invariant: its version is greater than that of any region that had one of its keys before.
func Join(target, source *metapb.Region, commit uint64) (*metapb.Region, error) {
	if source.GetId() == 0 || source.Id == target.GetId() || source.RegionEpoch == nil ||
		commit == 0 ||
		!Adjacent(target, source) ||
		Overlap(target.StartKey, target.EndKey, source.StartKey, source.EndKey) {
		return nil,
			regionerr.Invalidf("region %d cannot go into region %d", source.GetId(), target.GetId())
	}
	c := Clone(target)
	if endsAt(source, target) {
		c.StartKey = source.StartKey
	} else {
		c.EndKey = source.EndKey
	}
	c.RegionEpoch.Version = 1 +
		max(target.RegionEpoch.GetVersion(), source.RegionEpoch.GetVersion())
	c.ExpiryFloor = max(target.ExpiryFloor, source.ExpiryFloor)
	c.Merges = append(slices.Clone(target.Merges), &metapb.Merge{
		SourceId: source.Id, Commit: commit, Version: c.RegionEpoch.Version,
	})
	if n := len(c.Merges) - maxMerges; n > 0 {
		c.MergesFloor = max(c.MergesFloor, c.Merges[n-1].Version)
		c.Merges = c.Merges[n:]
	}
	return c, nil
}

// Told is a region whose epoch is known from elsewhere than its log: what merges it had up to there
// is not known.
func Told(r *metapb.Region, epoch *metapb.RegionEpoch) *metapb.Region {
	c := Clone(r)
	e := *epoch
	c.RegionEpoch = &e
	c.MergesFloor = math.MaxUint64
	return c
}

// MergeVerdict is what a state of the target, or its tombstone, says of the merge of a source that
// the entry commit has frozen, and which could be committed at epoch only. An entry of the target's
// log that changes its epoch from there is that merge, or has refused it for ever.
func MergeVerdict(
	target *metapb.Region, sourceID, commit uint64, epoch *metapb.RegionEpoch,
) rspb.MergeMessage_Verdict {
	if cur := target.GetRegionEpoch(); !EpochStale(epoch, cur) || EpochStale(cur, epoch) {
		return rspb.MergeMessage_Nothing
	}
	for _, m := range target.Merges {
		if m.SourceId == sourceID && m.Commit == commit {
			return rspb.MergeMessage_Committed
		}
	}
	if target.MergesFloor > epoch.GetVersion() {
		return rspb.MergeMessage_Unknown
	}
	return rspb.MergeMessage_Refused
}
