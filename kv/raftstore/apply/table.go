package apply

import (
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
)

// An appliedTable is the one record in which an apply worker says how far it has applied the
// regions it is busy with (meta.AppliedTableKey). It goes into the same batch as their data, so it
// is as good as an apply state of each, and costs one insertion into the engine instead of one for
// each region.
//
// The table is written whole, so it has few places. Regions that find none write their own apply
// state; those that have not applied anything for a while give theirs up. Owned by the apply
// worker.
type appliedTable struct {
	worker int
	places [tablePlaces]*applier
	used   [tablePlaces]bool // since the last look
	taken  int
	dirty  bool
	writes int // until the next look
	buf    []byte
	idle   []*applier
}

const (
	// tablePlaces bounds the record: a place takes some five bytes.
	tablePlaces = 64
	// tableLook is after how many batches those who have not been in any give up their places.
	tableLook = 1024
	noPlace   = -1
)

// admit gives a region whose applied index has moved a place; false if all are taken, or it is
// being forgotten.
func (t *appliedTable) admit(a *applier) bool {
	if a.place == noPlace {
		return false
	}
	if a.place == 0 {
		if t.taken == len(t.places) {
			return false
		}
		for i := range t.places {
			if t.places[i] == nil {
				t.places[i], a.place = a, i+1
				t.taken++
				break
			}
		}
	}
	t.used[a.place-1] = true
	t.dirty = true
	return true
}

// remove takes a region's place away. If it had one, its apply state must go into the same batch.
func (t *appliedTable) remove(a *applier) bool {
	if a.place <= 0 {
		return false
	}
	t.places[a.place-1], t.used[a.place-1] = nil, false
	a.place = 0
	t.taken--
	t.dirty = true
	return true
}

// countBatch counts a batch, and returns those who must give up their places with it.
func (t *appliedTable) countBatch() []*applier {
	t.idle = t.idle[:0]
	if t.writes++; t.writes < tableLook {
		return nil
	}
	t.writes = 0
	for i, a := range t.places {
		if a != nil && !t.used[i] {
			t.remove(a)
			t.idle = append(t.idle, a)
		}
		t.used[i] = false
	}
	return t.idle
}

// put adds the table to a batch, if it has changed.
func (t *appliedTable) put(b engine.Batch) {
	if !t.dirty {
		return
	}
	t.dirty = false
	t.buf = t.buf[:0]
	for _, a := range t.places {
		if a != nil {
			t.buf = meta.AppendApplied(t.buf, a.regionID, a.applied)
		}
	}
	b.Put(meta.AppliedTableKey(t.worker), t.buf)
}
