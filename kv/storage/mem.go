package storage

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/google/btree"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// MemStorage keeps everything in memory, for tests: a B-tree for each column family, whose clones
// are the views. It knows which values were set by a test and which by a write. Safe for concurrent
// use. Storage makes a storage of it.
type MemStorage struct {
	mu struct {
		sync.Mutex
		trees map[engine.CF]*btree.BTreeG[memItem]
	}
}

type memItem struct {
	key, value []byte
	// fresh: set by Set and not written since.
	fresh bool
}

// NewMemStorage returns an empty storage.
func NewMemStorage() *MemStorage {
	s := &MemStorage{}
	s.mu.trees = map[engine.CF]*btree.BTreeG[memItem]{}
	for _, cf := range engine.CFs {
		s.mu.trees[cf] = btree.NewG(8, func(a, b memItem) bool {
			return bytes.Compare(a.key, b.key) < 0
		})
	}
	return s
}

// Set sets a value as the state that a test begins with.
func (s *MemStorage) Set(cf string, key, value []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.trees[engine.CF(cf)].ReplaceOrInsert(memItem{
		key: bytes.Clone(key), value: bytes.Clone(value), fresh: true,
	})
}

// Get is a key's value, nil if there is none.
func (s *MemStorage) Get(cf string, key []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	it, _ := s.mu.trees[engine.CF(cf)].Get(memItem{key: key})
	return it.value
}

// HasChanged tells whether a key that a test has set was written or removed since.
func (s *MemStorage) HasChanged(cf string, key []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	it, found := s.mu.trees[engine.CF(cf)].Get(memItem{key: key})
	return !found || !it.fresh
}

// Len is the number of keys of a column family.
func (s *MemStorage) Len(cf string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.trees[engine.CF(cf)].Len()
}

// Reader returns a view of this moment.
func (s *MemStorage) Reader(*kvrpcpb.Context) (Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := memView{}
	for cf, t := range s.mu.trees {
		v[cf] = t.Clone()
	}
	return v, nil
}

func (s *MemStorage) write(mods []Modify) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range mods {
		if m.Delete {
			s.mu.trees[m.CF].Delete(memItem{key: m.Key})
		} else {
			s.mu.trees[m.CF].ReplaceOrInsert(memItem{
				key: bytes.Clone(m.Key), value: bytes.Clone(m.Value),
			})
		}
	}
}

// Storage is what commands run on.
func (s *MemStorage) Storage() BoundStorage { return memStorage{s} }

// memStorage has the one region that all requests belong to, and one term.
type memStorage struct{ mem *MemStorage }

func (s memStorage) Get(
	_ context.Context, _ *kvrpcpb.Context, cf engine.CF, key []byte,
) ([]byte, bool, error) {
	r, err := s.mem.Reader(nil)
	if err != nil {
		return nil, false, err
	}
	return r.Get(cf, key)
}

func (s memStorage) Reader(context.Context, *kvrpcpb.Context, []byte) (Reader, error) {
	return s.mem.Reader(nil)
}

func (s memStorage) Write(_ context.Context, _ *kvrpcpb.Context, mods []Modify) (uint64, error) {
	s.mem.write(mods)
	return 0, nil
}

func (s memStorage) Leadership(*kvrpcpb.Context) (uint64, error) { return 1, nil }

func (s memStorage) BoundReader(context.Context, *kvrpcpb.Context, []byte) (Reader, uint64, error) {
	r, err := s.mem.Reader(nil)
	return r, 1, err
}

func (s memStorage) WriteBound(
	_ *kvrpcpb.Context, _ Bound, mods []Modify, _ time.Time, done func(error, bool),
) {
	s.mem.write(mods)
	done(nil, true)
}

func (s memStorage) DeleteRangeBound(
	_ *kvrpcpb.Context, _ Bound, cf engine.CF, start, end []byte, _ time.Time,
	done func(error, bool),
) {
	s.mem.mu.Lock()
	t := s.mem.mu.trees[cf]
	var gone []memItem
	t.AscendGreaterOrEqual(memItem{key: start}, func(i memItem) bool {
		if len(end) > 0 && bytes.Compare(i.key, end) >= 0 {
			return false
		}
		gone = append(gone, i)
		return true
	})
	for _, i := range gone {
		t.Delete(i)
	}
	s.mem.mu.Unlock()
	done(nil, true)
}

type memView map[engine.CF]*btree.BTreeG[memItem]

func (v memView) Range() (start, end []byte) { return nil, nil }

func (v memView) Get(cf engine.CF, key []byte) ([]byte, bool, error) {
	it, found := v[cf].Get(memItem{key: key})
	return bytes.Clone(it.value), found, nil
}

func (v memView) Iterate(cf engine.CF, lower, upper []byte) Iterator {
	it := &memIterator{at: -1}
	v[cf].AscendGreaterOrEqual(memItem{key: lower}, func(i memItem) bool {
		if upper != nil && bytes.Compare(i.key, upper) >= 0 {
			return false
		}
		it.items = append(it.items, i)
		return true
	})
	return it
}

func (v memView) Close() {}

// memIterator has copied what it walks over.
type memIterator struct {
	items []memItem
	at    int
}

func (it *memIterator) First() { it.at = 0 }
func (it *memIterator) Last()  { it.at = len(it.items) - 1 }
func (it *memIterator) SeekGE(key []byte) {
	it.at, _ = slices.BinarySearchFunc(it.items, key, func(i memItem, key []byte) int {
		return bytes.Compare(i.key, key)
	})
}
func (it *memIterator) SeekLT(key []byte) {
	it.SeekGE(key)
	it.at--
}
func (it *memIterator) Next()         { it.at++ }
func (it *memIterator) Prev()         { it.at-- }
func (it *memIterator) Valid() bool   { return it.at >= 0 && it.at < len(it.items) }
func (it *memIterator) Key() []byte   { return it.items[it.at].key }
func (it *memIterator) Value() []byte { return it.items[it.at].value }
func (it *memIterator) Err() error    { return nil }
func (it *memIterator) Close()        {}

// Put and Delete are changes as test suites of the course see them.
type (
	Put struct {
		Key, Value []byte
		Cf         string
	}
	Delete struct {
		Key []byte
		Cf  string
	}
)
