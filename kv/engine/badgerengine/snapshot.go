package badgerengine

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/pingcap/badger"

	"github.com/tinykv/tinykv/kv/engine"
)

type snapshot struct {
	d    *db
	txn  *badger.Txn
	err  error
	once sync.Once
}

// NewSnapshot on a closed or failed engine returns a snapshot whose reads tell so.
func (d *db) NewSnapshot() engine.Snapshot {
	if !d.enter() {
		return &snapshot{d: d, err: engine.ErrClosed}
	}
	defer d.leave()
	s := &snapshot{d: d}
	s.err = d.guard(func() error { s.txn = d.b.NewTransaction(false); return nil })
	return s
}

func (s *snapshot) Get(key []byte) ([]byte, bool, error) {
	if s.err != nil {
		return nil, false, s.err
	}
	if !s.d.enter() {
		return nil, false, engine.ErrClosed
	}
	defer s.d.leave()
	return s.d.get(s.txn, key)
}

func (s *snapshot) Close() {
	s.once.Do(func() {
		if s.txn != nil {
			_ = s.d.guard(func() error { s.txn.Discard(); return nil })
		}
	})
}

// iterator makes one iterator of two: the library's go one way only. Changing the direction seeks
// the current key with the other one.
type iterator struct {
	d            *db
	txn          *badger.Txn
	lower, upper []byte
	dirs         [2]*badger.Iterator // forward, reverse
	cur          *badger.Iterator
	key          []byte
	value        []byte
	valid        bool
	err          error
}

const (
	forward = 0
	reverse = 1
)

func (s *snapshot) NewIterator(lower, upper []byte) engine.Iterator {
	it := &iterator{
		d: s.d, txn: s.txn, err: s.err, lower: bytes.Clone(lower), upper: bytes.Clone(upper),
	}
	if bytes.Compare(it.lower, lowest) < 0 {
		it.lower = lowest
	}
	return it
}

func (it *iterator) dir(which int) *badger.Iterator {
	if it.dirs[which] == nil {
		it.dirs[which] = it.txn.NewIterator(badger.IteratorOptions{Reverse: which == reverse})
	}
	return it.dirs[which]
}

// move runs one positioning step and takes over where it got.
func (it *iterator) move(step func()) {
	it.valid = false
	if it.err != nil {
		return
	}
	it.err = it.d.guard(func() error {
		step()
		if it.cur == nil || !it.cur.Valid() {
			return nil
		}
		item := it.cur.Item()
		key := item.Key()
		if bytes.Compare(key, it.lower) < 0 ||
			it.upper != nil && bytes.Compare(key, it.upper) >= 0 {
			return nil
		}
		v, err := item.Value()
		if err != nil {
			return fmt.Errorf("engine: iterate: %w", err)
		}
		if v, err = unseal(key, v); err != nil {
			return err
		}
		it.key, it.value, it.valid = append(it.key[:0], key...), v, true
		return nil
	})
	if it.err == nil {
		it.err = it.d.failure()
	}
	it.valid = it.valid && it.err == nil
}

func (it *iterator) seekGE(key []byte) {
	if bytes.Compare(key, it.lower) < 0 {
		key = it.lower
	}
	it.cur = it.dir(forward)
	it.cur.Seek(key)
}

func (it *iterator) seekLT(key []byte) {
	if it.upper != nil && bytes.Compare(key, it.upper) > 0 {
		key = it.upper
	}
	it.cur = it.dir(reverse)
	it.cur.Seek(key)
	if it.cur.Valid() && bytes.Equal(it.cur.Item().Key(), key) {
		it.cur.Next()
	}
}

func (it *iterator) First() { it.move(func() { it.seekGE(it.lower) }) }

func (it *iterator) Last() {
	it.move(func() {
		if it.upper != nil {
			it.seekLT(it.upper)
			return
		}
		it.cur = it.dir(reverse)
		it.cur.Rewind()
	})
}

func (it *iterator) SeekGE(key []byte) { it.move(func() { it.seekGE(key) }) }
func (it *iterator) SeekLT(key []byte) { it.move(func() { it.seekLT(key) }) }

func (it *iterator) Next() {
	if !it.valid {
		return
	}
	it.move(func() {
		if it.cur == it.dirs[forward] {
			it.cur.Next()
			return
		}
		it.seekGE(append(bytes.Clone(it.key), 0))
	})
}

func (it *iterator) Prev() {
	if !it.valid {
		return
	}
	it.move(func() {
		if it.cur == it.dirs[reverse] {
			it.cur.Next()
			return
		}
		it.seekLT(bytes.Clone(it.key))
	})
}

func (it *iterator) Valid() bool   { return it.valid }
func (it *iterator) Key() []byte   { return it.key }
func (it *iterator) Value() []byte { return it.value }
func (it *iterator) Err() error    { return it.err }

func (it *iterator) Close() {
	it.valid = false
	for i, dir := range it.dirs {
		if dir != nil {
			dir.Close()
			it.dirs[i] = nil
		}
	}
}
