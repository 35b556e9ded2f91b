// Package memengine is an engine in memory, for tests: a B-tree whose snapshots are its clones. It
// remembers what was synced; Crash gives back what a crash would leave. Nothing survives Close.
package memengine

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/google/btree"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/faultfs"
)

// Name is the backend's name.
const Name = "mem"

type item struct{ key, value []byte }

func less(a, b item) bool { return bytes.Compare(a.key, b.key) < 0 }

// Engine is the engine; safe for concurrent use.
type Engine struct {
	mu struct {
		sync.RWMutex
		tree *btree.BTreeG[item]
		// synced is what a power loss leaves for certain, unsynced the states after the writes
		// since, of which it may leave any.
		synced   *btree.BTreeG[item]
		unsynced []*btree.BTreeG[item]
		closed   bool
	}
}

// maxUnsynced bounds how many states since the last sync Crash chooses from.
const maxUnsynced = 256

// New returns an empty engine.
func New() *Engine { return newOn(btree.NewG(32, less)) }

// Open is New with the interface's type.
func Open() engine.Engine { return New() }

func newOn(tree *btree.BTreeG[item]) *Engine {
	d := &Engine{}
	d.mu.tree, d.mu.synced = tree, tree.Clone()
	return d
}

// Crash returns an engine with what a crash leaves of this one; this one is not changed.
func (d *Engine) Crash(loss faultfs.Loss, rng *rand.Rand) *Engine {
	return d.CrashWith(loss, rng, func() {})
}

// CrashWith is Crash for a process that has other disks besides and goes on: others captures them,
// while nothing is written to the engine. It must not use the engine.
func (d *Engine) CrashWith(loss faultfs.Loss, rng *rand.Rand, others func()) *Engine {
	d.mu.Lock()
	defer d.mu.Unlock()
	others()
	switch loss {
	case faultfs.KeepAll:
		return newOn(d.mu.tree.Clone())
	case faultfs.Torn:
		if n := rng.IntN(len(d.mu.unsynced) + 1); n > 0 {
			return newOn(d.mu.unsynced[n-1].Clone())
		}
	}
	return newOn(d.mu.synced.Clone())
}

// noteWrite files the state after a write. The caller holds mu.
func (d *Engine) noteWrite(sync bool) {
	if sync {
		d.noteSync()
		return
	}
	if len(d.mu.unsynced) == maxUnsynced {
		// Thin them out rather than forget the oldest or the newest.
		kept := d.mu.unsynced[:0]
		for i, t := range d.mu.unsynced {
			if i%2 == 1 {
				kept = append(kept, t)
			}
		}
		clear(d.mu.unsynced[len(kept):])
		d.mu.unsynced = kept
	}
	d.mu.unsynced = append(d.mu.unsynced, d.mu.tree.Clone())
}

func (d *Engine) noteSync() {
	d.mu.synced = d.mu.tree.Clone()
	clear(d.mu.unsynced)
	d.mu.unsynced = d.mu.unsynced[:0]
}

// Name implements engine.Engine.
func (d *Engine) Name() string { return Name }

// NativeRangeDelete implements engine.RangeDeleter.
func (d *Engine) NativeRangeDelete() bool { return true }

// NewBatch implements engine.Engine.
func (d *Engine) NewBatch() engine.Batch { return &batch{} }

// DiskUsage implements engine.Engine.
func (d *Engine) DiskUsage() (uint64, error) { return 0, nil }

// Sync implements engine.Engine.
func (d *Engine) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.closed {
		return engine.ErrClosed
	}
	d.noteSync()
	return nil
}

func (d *Engine) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.closed = true
	return nil
}

// Write implements engine.Engine.
func (d *Engine) Write(eb engine.Batch, sync bool) error {
	b := eb.(*batch)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.closed {
		return engine.ErrClosed
	}
	for _, o := range b.ops {
		switch o.kind {
		case put:
			d.mu.tree.ReplaceOrInsert(item{o.key, o.value})
		case del:
			d.mu.tree.Delete(item{key: o.key})
		case delRange:
			var gone []item
			d.mu.tree.AscendRange(item{key: o.key}, item{key: o.value}, func(i item) bool {
				gone = append(gone, i)
				return true
			})
			for _, i := range gone {
				d.mu.tree.Delete(i)
			}
		}
	}
	d.noteWrite(sync)
	return nil
}

// Get implements engine.Engine.
func (d *Engine) Get(key []byte) ([]byte, bool, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.mu.closed {
		return nil, false, engine.ErrClosed
	}
	return get(d.mu.tree, key)
}

func get(t *btree.BTreeG[item], key []byte) ([]byte, bool, error) {
	i, ok := t.Get(item{key: key})
	if !ok {
		return nil, false, nil
	}
	return append([]byte{}, i.value...), true, nil
}

// ApproximateSize implements engine.Engine.
func (d *Engine) ApproximateSize(start, end []byte) (uint64, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.mu.closed {
		return 0, engine.ErrClosed
	}
	n := uint64(0)
	d.mu.tree.AscendRange(item{key: start}, item{key: end}, func(i item) bool {
		n += uint64(len(i.key) + len(i.value))
		return true
	})
	return n, nil
}

// NewSnapshot implements engine.Engine.
func (d *Engine) NewSnapshot() engine.Snapshot {
	// Clone marks both trees as sharing their nodes: a change, hence the write lock.
	d.mu.Lock()
	defer d.mu.Unlock()
	return &snapshot{d.mu.tree.Clone(), d.mu.closed}
}

type kind uint8

const (
	put kind = iota
	del
	delRange
)

type change struct {
	kind       kind
	key, value []byte // of a range: start and end
}

type batch struct {
	ops  []change
	size int
}

func (b *batch) add(k kind, key, value []byte) {
	b.ops = append(b.ops, change{k, bytes.Clone(key), append([]byte{}, value...)})
	b.size += len(key) + len(value) + 8
}

func (b *batch) Put(key, value []byte)         { b.add(put, key, value) }
func (b *batch) Delete(key []byte)             { b.add(del, key, nil) }
func (b *batch) DeleteRange(start, end []byte) { b.add(delRange, start, end) }
func (b *batch) Len() int                      { return len(b.ops) }
func (b *batch) Size() int                     { return b.size }
func (b *batch) Reset()                        { b.ops, b.size = nil, 0 }

type snapshot struct {
	tree   *btree.BTreeG[item]
	closed bool
}

func (s *snapshot) Close() {}

func (s *snapshot) Get(key []byte) ([]byte, bool, error) {
	if s.closed {
		return nil, false, engine.ErrClosed
	}
	return get(s.tree, key)
}

func (s *snapshot) NewIterator(lower, upper []byte) engine.Iterator {
	it := &iterator{tree: s.tree, lower: slices.Clone(lower), upper: slices.Clone(upper)}
	if s.closed {
		it.err = engine.ErrClosed
	}
	return it
}

// iterator finds each next item anew: simple, and fast enough for tests.
type iterator struct {
	tree         *btree.BTreeG[item]
	lower, upper []byte
	at           item
	valid        bool
	err          error
}

func (it *iterator) set(i item, ok bool) {
	it.valid = ok && it.err == nil &&
		(it.lower == nil || bytes.Compare(i.key, it.lower) >= 0) &&
		(it.upper == nil || bytes.Compare(i.key, it.upper) < 0)
	it.at = i
}

func (it *iterator) SeekGE(key []byte) {
	if it.lower != nil && bytes.Compare(key, it.lower) < 0 {
		key = it.lower
	}
	var found item
	ok := false
	it.tree.AscendGreaterOrEqual(item{key: key}, func(i item) bool {
		found, ok = i, true
		return false
	})
	it.set(found, ok)
}

func (it *iterator) SeekLT(key []byte) {
	if it.upper != nil && bytes.Compare(key, it.upper) > 0 {
		key = it.upper
	}
	var found item
	ok := false
	it.tree.DescendLessOrEqual(item{key: key}, func(i item) bool {
		if bytes.Equal(i.key, key) {
			return true
		}
		found, ok = i, true
		return false
	})
	it.set(found, ok)
}

func (it *iterator) First() { it.SeekGE(it.lower) }

func (it *iterator) Last() {
	if it.upper != nil {
		it.SeekLT(it.upper)
		return
	}
	i, ok := it.tree.Max()
	it.set(i, ok)
}

func (it *iterator) Next() {
	if it.valid {
		it.SeekGE(append(bytes.Clone(it.at.key), 0))
	}
}

func (it *iterator) Prev() {
	if it.valid {
		it.SeekLT(it.at.key)
	}
}

func (it *iterator) Valid() bool   { return it.valid }
func (it *iterator) Key() []byte   { return it.at.key }
func (it *iterator) Value() []byte { return it.at.value }
func (it *iterator) Err() error    { return it.err }
func (it *iterator) Close()        {}
