package mvcc

import (
	"bytes"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/pkg/memcomparable"
)

// Garbage lists records of a key that no read at safePoint or later sees, at most max of them. All
// may be removed at once, and so may a part of them: a Delete is listed only together with the last
// of the records that it hides. more says that there are others.
//
// Of the records up to safePoint, the newest Put stays, and so does all behind safePoint.
func (r *Reader) Garbage(
	key []byte, safePoint uint64, max int,
) (out []Found, more bool, err error) {
	var mark *Found
	decided := false
	f, err := r.SeekWrite(key, safePoint)
	for ; f != nil && err == nil; f, err = r.next() {
		if len(out) >= max {
			return out, true, nil
		}
		switch {
		case decided || !f.Changes():
			out = append(out, *f)
			continue
		case f.Kind == WriteKindDelete:
			mark = f
		case f.fencedOff(safePoint):
			out = append(out, *f)
		}
		decided = true
	}
	if err != nil {
		return nil, false, err
	}
	if mark != nil {
		out = append(out, *mark)
	}
	return out, false, nil
}

// Remove removes a record of a key, and its value.
func (w *Writer) Remove(key []byte, f *Found) {
	w.DeleteWrite(key, f.CommitTS)
	if f.Kind == WriteKindPut && f.ShortValue == nil {
		w.DeleteValue(key, f.StartTS)
	}
}

// Suspects lists keys from a key on, or from the region's start on, that may have garbage. It ends
// after so many records or keys; next is where to go on, nil at the region's end.
func (r *Reader) Suspects(
	from []byte, safePoint uint64, maxRecords, maxKeys int,
) (keys [][]byte, next []byte, err error) {
	lower, _ := Span{From: from}.keys()
	it := r.view.Iterate(engine.CFWrite, lower, nil)
	defer it.Close()
	var key []byte // the one whose records are being looked at
	old := 0       // how many of its records lie at safePoint or below
	it.First()
	for n := 0; it.Valid(); n++ {
		user, ts, err := SplitKey(it.Key())
		if err != nil {
			return nil, nil, err
		}
		if key == nil || !bytes.Equal(user, key) {
			if n >= maxRecords || len(keys) >= maxKeys {
				return keys, user, nil
			}
			key, old = user, 0
		}
		if ts > safePoint {
			it.Next()
			continue
		}
		w, err := r.codec.DecodeWrite(it.Value())
		if err != nil {
			return nil, nil, err
		}
		if old++; old == 1 && w.Kind == WriteKindPut && w.Fence == nil {
			it.Next() // it stays; what is below it does not
			continue
		}
		keys = append(keys, key)
		it.SeekGE(memcomparable.Encode(append(bytes.Clone(key), 0)))
	}
	return keys, nil, it.Err()
}
