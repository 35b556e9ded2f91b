package meta

import (
	"encoding/binary"
	"fmt"

	"github.com/tinykv/tinykv/kv/engine"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// Bounds of all applied tables, half-open.
var (
	AppliedTableMinKey = []byte{engine.LocalPrefix, appliedTablePrefix}
	AppliedTableMaxKey = []byte{engine.LocalPrefix, appliedTablePrefix + 1}
)

// AppliedTableKey is the key of an apply worker's table: a list of regions with how far they are
// applied, each region's id and applied index as uvarints.
//
// A region that is in a table is applied up to the larger of the two indexes, the table's and its
// own apply state's. So one record says for all regions of a batch what would else take a record
// for each.
func AppliedTableKey(worker int) []byte {
	return binary.BigEndian.AppendUint64([]byte{engine.LocalPrefix, appliedTablePrefix},
		uint64(worker))
}

// AppendApplied adds a region to a table.
func AppendApplied(table []byte, regionID, applied uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(table, regionID), applied)
}

// VisitApplied calls visit for every region of a table. A table that does not decode is damage.
func VisitApplied(table []byte, visit func(regionID, applied uint64) error) error {
	for len(table) > 0 {
		var pair [2]uint64
		for i := range pair {
			v, n := binary.Uvarint(table)
			if n <= 0 {
				return fmt.Errorf("%w: applied table ends within a region", engine.ErrCorrupt)
			}
			pair[i], table = v, table[n:]
		}
		if err := visit(pair[0], pair[1]); err != nil {
			return err
		}
	}
	return nil
}

// LoadApplyState reads how far a region is applied: its apply state, moved on by the table of the
// apply worker that it belongs to. nil when it has no apply state; a table alone says nothing.
func LoadApplyState(from getter, regionID uint64, worker int) (*rspb.RaftApplyState, error) {
	st, err := LoadApplyRecord(from, regionID)
	if err != nil || st == nil {
		return st, err
	}
	table, _, err := from.Get(AppliedTableKey(worker))
	if err != nil {
		return nil, err
	}
	err = VisitApplied(table, func(id, applied uint64) error {
		if id == regionID {
			st.AppliedIndex = max(st.AppliedIndex, applied)
		}
		return nil
	})
	return st, err
}

// SettleApplied adds to a batch what moves the indexes of all tables into the regions' apply
// states, and the tables away. For a start: the workers may be others than those that wrote the
// tables.
func SettleApplied(snap engine.Snapshot, b engine.Batch) error {
	moved := map[uint64]*rspb.RaftApplyState{}
	it := snap.NewIterator(AppliedTableMinKey, AppliedTableMaxKey)
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		err := VisitApplied(it.Value(), func(id, applied uint64) error {
			st := moved[id]
			if st == nil {
				var err error
				if st, err = LoadApplyRecord(snap, id); err != nil || st == nil {
					return err
				}
			}
			if applied > st.AppliedIndex {
				st.AppliedIndex = applied
				moved[id] = st
			}
			return nil
		})
		if err != nil {
			return err
		}
		b.Delete(it.Key())
	}
	for id, st := range moved {
		Put(b, ApplyStateKey(id), st)
	}
	return it.Err()
}
