package meta

import (
	"bytes"
	"errors"
	"testing"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// FuzzRegionKeys: keys of regions give the id back, keep its order and lie within the bounds that a
// start walks over; no other key is taken for one.
func FuzzRegionKeys(f *testing.F) {
	f.Add(uint64(1), uint64(2), RegionStateKey(7))
	f.Add(uint64(0), uint64(1)<<63, ApplyStateKey(7))
	f.Add(^uint64(0), uint64(256), []byte{engine.LocalPrefix})
	f.Fuzz(func(t *testing.T, a, b uint64, other []byte) {
		key := RegionStateKey(a)
		if id, err := DecodeRegionStateKey(key); err != nil || id != a {
			t.Fatalf("%d becomes %d, %v", a, id, err)
		}
		if got := bytes.Compare(key, RegionStateKey(b)); (got < 0) != (a < b) ||
			(got == 0) != (a == b) {
			t.Fatalf("%d and %d: %d", a, b, got)
		}
		if bytes.Compare(key, RegionMetaMinKey) < 0 || bytes.Compare(key, RegionMetaMaxKey) >= 0 {
			t.Fatalf("%x is out of bounds", key)
		}
		if ap := ApplyStateKey(a); bytes.Compare(ap, RegionMetaMinKey) >= 0 &&
			bytes.Compare(ap, RegionMetaMaxKey) < 0 {
			t.Fatalf("%x is among the region states", ap)
		}
		if id, err := DecodeRegionStateKey(other); err == nil &&
			!bytes.Equal(RegionStateKey(id), other) {
			t.Fatalf("%x is taken for region %d", other, id)
		}
	})
}

// FuzzRecords: a record of any bytes decodes or is damage; a state under the key of another region
// is damage as well.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{8, 2}, uint64(1))
	f.Add([]byte{0xff}, uint64(1))
	st := rspb.RaftApplyState{AppliedIndex: 9}
	if b, err := st.Marshal(); err == nil {
		f.Add(b, uint64(3))
	}
	f.Fuzz(func(t *testing.T, data []byte, id uint64) {
		e := memengine.New()
		b := e.NewBatch()
		b.Put(RegionStateKey(id), data)
		b.Put(ApplyStateKey(id), data)
		if err := e.Write(b, false); err != nil {
			t.Fatal(err)
		}
		if st, err := LoadApplyRecord(e, id); err == nil && st.TruncatedState == nil ||
			err != nil && !errors.Is(err, engine.ErrCorrupt) {
			t.Fatalf("%v, %v", st, err)
		}
		snap := e.NewSnapshot()
		defer snap.Close()
		err := VisitRegionStates(snap, func(st *rspb.RegionLocalState) error {
			if st.Region.Id != id {
				t.Fatalf("region %d under the key of %d", st.Region.Id, id)
			}
			return nil
		})
		if err != nil && !errors.Is(err, engine.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}
