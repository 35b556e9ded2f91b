package pebbleengine

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/tinykv/tinykv/kv/engine"
)

type snapshot struct {
	d    *db
	s    *pebble.Snapshot
	once sync.Once
}

// NewSnapshot on a closed or failed engine returns a snapshot whose reads tell so.
func (d *db) NewSnapshot() engine.Snapshot {
	if !d.enter() {
		return failedSnapshot{engine.ErrClosed}
	}
	defer d.leave()
	s := &snapshot{d: d}
	if err := d.guard(func() error { s.s = d.p.NewSnapshot(); return nil }); err != nil {
		return failedSnapshot{err}
	}
	return s
}

func (s *snapshot) Get(key []byte) ([]byte, bool, error) {
	if !s.d.enter() {
		return nil, false, engine.ErrClosed
	}
	defer s.d.leave()
	return s.d.get(s.s, key)
}

func (s *snapshot) NewIterator(lower, upper []byte) engine.Iterator {
	if !s.d.enter() {
		return &iterator{d: s.d, err: engine.ErrClosed}
	}
	defer s.d.leave()
	it := &iterator{d: s.d}
	err := s.d.guard(func() (err error) {
		it.it, err = s.s.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
		return err
	})
	it.err = err
	return it
}

func (s *snapshot) Close() {
	s.once.Do(func() {
		if s.d.enter() {
			defer s.d.leave()
			_ = s.d.guard(s.s.Close)
		}
	})
}

// failedSnapshot answers everything with err.
type failedSnapshot struct{ err error }

func (s failedSnapshot) Get([]byte) ([]byte, bool, error)        { return nil, false, s.err }
func (s failedSnapshot) NewIterator(_, _ []byte) engine.Iterator { return &iterator{err: s.err} }
func (s failedSnapshot) Close()                                  {}

// iterator adds to pebble's that errors have our types and that it turns invalid with them.
type iterator struct {
	d     *db
	it    *pebble.Iterator
	value []byte
	valid bool
	err   error
}

// move runs one positioning step and fetches the value, which may have to be read.
func (it *iterator) move(step func() bool) {
	it.valid = false
	if it.err != nil || it.it == nil {
		return
	}
	it.err = it.d.guard(func() (err error) {
		if !step() {
			return it.it.Error()
		}
		it.value, err = it.it.ValueAndErr()
		it.valid = err == nil
		return err
	})
}

func (it *iterator) First()            { it.move(func() bool { return it.it.First() }) }
func (it *iterator) Last()             { it.move(func() bool { return it.it.Last() }) }
func (it *iterator) SeekGE(key []byte) { it.move(func() bool { return it.it.SeekGE(key) }) }
func (it *iterator) SeekLT(key []byte) { it.move(func() bool { return it.it.SeekLT(key) }) }

func (it *iterator) Next() {
	if it.valid {
		it.move(it.it.Next)
	}
}

func (it *iterator) Prev() {
	if it.valid {
		it.move(it.it.Prev)
	}
}

func (it *iterator) Valid() bool   { return it.valid }
func (it *iterator) Key() []byte   { return it.it.Key() }
func (it *iterator) Value() []byte { return it.value }
func (it *iterator) Err() error    { return it.err }

func (it *iterator) Close() {
	it.valid = false
	if p := it.it; p != nil {
		it.it = nil
		_ = it.d.guard(p.Close)
	}
}
