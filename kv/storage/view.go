package storage

import (
	"bytes"

	"github.com/tinykv/tinykv/kv/engine"
)

// View is a Reader over an engine snapshot, clipped to [start, end).
type View struct {
	snap       engine.Snapshot
	start, end []byte
	failed     func(error)
	// now hides what has expired by it, in milliseconds since 1970; 0: nothing can have.
	now uint64
	// read gets what was read when the view is closed.
	read        func(keys, bytes int)
	keys, bytes int
}

// NewView takes over the engine snapshot.
func NewView(snap engine.Snapshot, start, end []byte) *View {
	return &View{snap: snap, start: start, end: end}
}

// Report has f called with the errors of reads.
func (v *View) Report(f func(error)) *View {
	v.failed = f
	return v
}

// Count has f called, when the view is closed, with how many keys were read and how many bytes they
// and their values have.
func (v *View) Count(f func(keys, bytes int)) *View {
	v.read = f
	return v
}

func (v *View) note(err error) {
	if err != nil && v.failed != nil {
		v.failed(err)
	}
}

// Range implements Reader.
func (v *View) Range() (start, end []byte) { return v.start, v.end }

// Get implements Reader.
func (v *View) Get(cf engine.CF, key []byte) ([]byte, bool, error) {
	value, found, err := v.snap.Get(engine.DataKey(cf, key))
	v.note(err)
	if found && v.now > 0 {
		var expired bool
		if expired, err = v.expired(cf, key); expired || err != nil {
			value, found = nil, false
		}
	}
	v.keys, v.bytes = v.keys+1, v.bytes+len(key)+len(value)
	return value, found, err
}

// Iterate implements Reader.
func (v *View) Iterate(cf engine.CF, lower, upper []byte) Iterator {
	if bytes.Compare(lower, v.start) < 0 {
		lower = v.start
	}
	if len(upper) == 0 || (len(v.end) > 0 && bytes.Compare(upper, v.end) > 0) {
		upper = v.end
	}
	it := v.iterate(cf, lower, upper)
	if v.now > 0 {
		it = &livingIterator{
			Iterator: it, times: v.iterate(cf.Expiry(), lower, upper), cf: cf, now: v.now,
		}
	}
	return &userIterator{it, v, cf}
}

func (v *View) iterate(cf engine.CF, lower, upper []byte) engine.Iterator {
	lo, hi := engine.DataKey(cf, lower), engine.DataEndKey(cf, upper)
	if bytes.Compare(lo, hi) > 0 {
		hi = lo
	}
	return v.snap.NewIterator(lo, hi)
}

// Close implements Reader.
func (v *View) Close() {
	v.snap.Close()
	if v.read != nil && v.keys > 0 {
		v.read(v.keys, v.bytes)
	}
}

type userIterator struct {
	engine.Iterator
	view *View
	cf   engine.CF
}

func (it *userIterator) SeekGE(key []byte) { it.Iterator.SeekGE(engine.DataKey(it.cf, key)) }

func (it *userIterator) SeekLT(key []byte) { it.Iterator.SeekLT(engine.DataKey(it.cf, key)) }

func (it *userIterator) Err() error {
	err := it.Iterator.Err()
	it.view.note(err)
	return err
}

// Key counts as the read of a key: users ask for it once at each.
func (it *userIterator) Key() []byte {
	key := engine.UserKey(it.Iterator.Key())
	it.view.keys, it.view.bytes = it.view.keys+1, it.view.bytes+len(key)
	return key
}

func (it *userIterator) Value() []byte {
	value := it.Iterator.Value()
	it.view.bytes += len(value)
	return value
}
