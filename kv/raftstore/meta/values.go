package meta

import (
	"fmt"
	"slices"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// A new region starts as if it had applied a log up to this entry (anything above 1 would do), so
// that a peer that was created passively, whose log starts at 0, is seen to have a gap and gets a
// raft snapshot first.
const (
	InitLogIndex     = 5
	InitLogTerm      = 5
	InitEpochVersion = 1
	InitEpochConfVer = 1
)

type message interface {
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

type getter interface {
	Get(key []byte) (value []byte, found bool, err error)
}

// Load reads a record; found is false when there is none. A record that does not decode is damage.
func Load(from getter, key []byte, into message) (found bool, err error) {
	value, found, err := from.Get(key)
	if err != nil || !found {
		return false, err
	}
	if err := into.Unmarshal(value); err != nil {
		return false, fmt.Errorf("%w: record %v: %w", engine.ErrCorrupt, redact.Key(key), err)
	}
	return true, nil
}

// Put adds a record to a batch.
func Put(b engine.Batch, key []byte, value message) {
	data, err := value.Marshal()
	if err != nil {
		// Generated code fails only on malformed extensions, which these messages do not have.
		panic(fmt.Sprintf("meta: marshal record %v: %v", redact.Key(key), err))
	}
	b.Put(key, data)
}

// PutApplyState adds a region's apply state to a batch. buf is room for the record; it returns it,
// to be used again.
func PutApplyState(b engine.Batch, regionID uint64, state *rspb.RaftApplyState, buf []byte) []byte {
	size := state.Size()
	buf = slices.Grow(appendRegionKey(buf[:0], regionRaftPrefix, regionID, applyStateSuffix), size)
	record := buf[len(buf) : len(buf)+size]
	if _, err := state.MarshalToSizedBuffer(record); err != nil {
		panic(fmt.Sprintf("meta: marshal apply state of region %d: %v", regionID, err)) // as in Put
	}
	b.Put(buf, record)
	return buf
}

// InitialApplyState is that of a region created by bootstrap or by a split.
func InitialApplyState() *rspb.RaftApplyState {
	return &rspb.RaftApplyState{
		AppliedIndex:   InitLogIndex,
		TruncatedState: &rspb.RaftTruncatedState{Index: InitLogIndex, Term: InitLogTerm},
	}
}

// IsInitialApplyState tells whether the region has not applied anything since it was created.
func IsInitialApplyState(s *rspb.RaftApplyState) bool {
	t := s.GetTruncatedState()
	return s.GetAppliedIndex() == InitLogIndex && t.GetIndex() == InitLogIndex &&
		t.GetTerm() == InitLogTerm
}

// InitialHardState is that of a region created by bootstrap or by a split.
func InitialHardState() eraftpb.HardState {
	return eraftpb.HardState{Term: InitLogTerm, Commit: InitLogIndex}
}

// PutRegionState adds a region's state to a batch. peer is this store's peer.
func PutRegionState(
	b engine.Batch, state rspb.PeerState, region *metapb.Region, peer *metapb.Peer,
) {
	Put(b, RegionStateKey(region.Id),
		&rspb.RegionLocalState{State: state, Region: region, Peer: peer})
}

// LoadRegionState reads a region's state; nil when there is none.
func LoadRegionState(from getter, regionID uint64) (*rspb.RegionLocalState, error) {
	st := new(rspb.RegionLocalState)
	found, err := Load(from, RegionStateKey(regionID), st)
	if err != nil || !found {
		return nil, err
	}
	return st, nil
}

// LoadApplyRecord reads a region's own apply state; nil when there is none. A table may know of a
// higher applied index (LoadApplyState).
func LoadApplyRecord(from getter, regionID uint64) (*rspb.RaftApplyState, error) {
	st := new(rspb.RaftApplyState)
	found, err := Load(from, ApplyStateKey(regionID), st)
	if err != nil || !found {
		return nil, err
	}
	if st.TruncatedState == nil {
		st.TruncatedState = new(rspb.RaftTruncatedState)
	}
	return st, nil
}

// VisitRegionStates calls visit for every region state, in the order of region ids.
func VisitRegionStates(snap engine.Snapshot, visit func(*rspb.RegionLocalState) error) error {
	it := snap.NewIterator(RegionMetaMinKey, RegionMetaMaxKey)
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		id, err := DecodeRegionStateKey(it.Key())
		if err != nil {
			return fmt.Errorf("%w: %w", engine.ErrCorrupt, err)
		}
		st := new(rspb.RegionLocalState)
		if err := st.Unmarshal(it.Value()); err != nil {
			return fmt.Errorf("%w: state of region %d: %w", engine.ErrCorrupt, id, err)
		}
		if st.Region == nil || st.Region.RegionEpoch == nil {
			return fmt.Errorf("%w: state of region %d has no region or no epoch", engine.ErrCorrupt,
				id)
		}
		if st.Region.Id != id {
			return fmt.Errorf("%w: state of region %d names region %d", engine.ErrCorrupt, id,
				st.GetRegion().GetId())
		}
		if err := visit(st); err != nil {
			return err
		}
	}
	return it.Err()
}

// PutMerged adds the tombstone of a region that was frozen and went into another one, joined, to a
// batch.
func PutMerged(b engine.Batch, frozen *rspb.RegionLocalState, joined *metapb.Region) {
	Put(b, RegionStateKey(frozen.Region.Id), &rspb.RegionLocalState{
		State: rspb.PeerState_Tombstone, Region: frozen.Region, Peer: frozen.Peer,
		MergedInto: &rspb.MergedState{
			TargetId: joined.Id, Commit: frozen.Merging.GetCommit(),
			Version: joined.RegionEpoch.Version,
		},
	})
}
