package pebbleengine

import (
	"bytes"
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

// latest is the database itself as a view.
type latest struct{ d *db }

// Latest implements engine.Latest.
func (d *db) Latest() engine.Snapshot { return latest{d} }

func (l latest) Get(key []byte) ([]byte, bool, error) { return l.d.Get(key) }

func (l latest) NewIterator(lower, upper []byte) engine.Iterator {
	return l.d.newIterator(l.d.p, lower, upper)
}

func (l latest) Close() {}

func (s *snapshot) Get(key []byte) ([]byte, bool, error) {
	if !s.d.enter() {
		return nil, false, engine.ErrClosed
	}
	defer s.d.leave()
	return s.d.get(s.s, key)
}

func (s *snapshot) NewIterator(lower, upper []byte) engine.Iterator {
	return s.d.newIterator(s.s, lower, upper)
}

// newIterator iterates over [lower, upper) of what r shows now.
func (d *db) newIterator(r pebble.Reader, lower, upper []byte) engine.Iterator {
	if !d.enter() {
		return &iterator{d: d, err: engine.ErrClosed}
	}
	defer d.leave()
	if bytes.Compare(lower, lowest) < 0 {
		lower = lowest
	}
	it := &iterator{d: d}
	if upper != nil && bytes.Compare(lower, upper) >= 0 {
		return it // pebble takes no inverted bounds; an iterator without one is always at its end
	}
	err := d.guard(func() (err error) {
		it.it, err = r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
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

type move uint8

const (
	first move = iota
	last
	next
	prev
	seekGE
	seekLT
)

// step makes one move and fetches the value, which may have to be read.
//
//go:noinline
func (it *iterator) step(m move, key []byte) {
	it.valid = false
	if it.err != nil || it.it == nil {
		return
	}
	defer it.d.rescue(&it.err)
	if it.err = it.d.failure(); it.err != nil {
		return
	}
	ok := false
	switch m {
	case first:
		ok = it.it.First()
	case last:
		ok = it.it.Last()
	case next:
		ok = it.it.Next()
	case prev:
		ok = it.it.Prev()
	case seekGE:
		ok = it.it.SeekGE(key)
	case seekLT:
		ok = it.it.SeekLT(key)
	}
	if !ok {
		it.err = convert(it.it.Error())
		return
	}
	v, err := it.it.ValueAndErr()
	it.value, it.err, it.valid = v, convert(err), err == nil
}

func (it *iterator) First()            { it.step(first, nil) }
func (it *iterator) Last()             { it.step(last, nil) }
func (it *iterator) SeekGE(key []byte) { it.step(seekGE, key) }
func (it *iterator) SeekLT(key []byte) { it.step(seekLT, key) }

func (it *iterator) Next() {
	if it.valid {
		it.step(next, nil)
	}
}

func (it *iterator) Prev() {
	if it.valid {
		it.step(prev, nil)
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
