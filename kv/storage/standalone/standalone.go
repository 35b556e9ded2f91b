// Package standalone is the storage of one unreplicated store: the engine, synced at every write.
// It ignores regions.
package standalone

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Storage implements storage.Storage over an engine.
type Storage struct {
	engine engine.Engine
	// swapping is held while a compare-and-swap runs, and shared by all other writes.
	swapping sync.RWMutex
}

var (
	_ storage.Storage     = (*Storage)(nil)
	_ storage.Conditional = (*Storage)(nil)

	_ storage.BoundStorage      = (*Storage)(nil)
	_ storage.BoundRangeDeleter = (*Storage)(nil)
)

// New returns a storage over e, which stays the caller's.
func New(e engine.Engine) *Storage { return &Storage{engine: e} }

// Get implements storage.Storage.
func (s *Storage) Get(
	_ context.Context, _ *kvrpcpb.Context, cf engine.CF, key []byte,
) ([]byte, bool, error) {
	return s.engine.Get(engine.DataKey(cf, key))
}

// Reader implements storage.Storage.
func (s *Storage) Reader(context.Context, *kvrpcpb.Context, []byte) (storage.Reader, error) {
	return storage.NewView(s.engine.NewSnapshot(), nil, nil), nil
}

// Write implements storage.Storage.
func (s *Storage) Write(
	_ context.Context, _ *kvrpcpb.Context, mods []storage.Modify,
) (uint64, error) {
	s.swapping.RLock()
	defer s.swapping.RUnlock()
	b := s.engine.NewBatch()
	for _, m := range mods {
		if m.Delete {
			b.Delete(engine.DataKey(m.CF, m.Key))
		} else {
			b.Put(engine.DataKey(m.CF, m.Key), m.Value)
		}
	}
	return 0, s.engine.Write(b, true)
}

// CompareAndSwap implements storage.Conditional.
func (s *Storage) CompareAndSwap(
	_ context.Context, _ *kvrpcpb.Context, swap *storage.Swap,
) (storage.Swapped, error) {
	s.swapping.Lock()
	defer s.swapping.Unlock()
	key := engine.DataKey(swap.CF, swap.Key)
	previous, found, err := s.engine.Get(key)
	if err != nil {
		return storage.Swapped{}, err
	}
	out := storage.Swapped{Previous: previous, Found: found}
	if found == swap.ExpectAbsent || found && !bytes.Equal(previous, swap.Expected) {
		return out, nil
	}
	b := s.engine.NewBatch()
	if swap.Delete {
		b.Delete(key)
	} else {
		b.Put(key, swap.Value)
	}
	out.Swapped = true
	return out, s.engine.Write(b, true)
}

// DeleteRange implements storage.Conditional.
func (s *Storage) DeleteRange(
	_ context.Context, _ *kvrpcpb.Context, cf engine.CF, start, end []byte,
) (uint64, error) {
	s.swapping.RLock()
	defer s.swapping.RUnlock()
	if err := engine.ClearRange(s.engine, engine.DataKey(cf, start),
		engine.DataEndKey(cf, end)); err != nil {
		return 0, err
	}
	return 0, s.engine.Sync()
}

// DestroyRange implements storage.Conditional.
func (s *Storage) DestroyRange(ctx context.Context, start, end []byte) error {
	for _, cf := range engine.CFs {
		if _, err := s.DeleteRange(ctx, nil, cf, start, end); err != nil {
			return err
		}
	}
	return nil
}

// onlyTerm is the term of a store that nobody else can lead.
const onlyTerm = 1

// Leadership implements storage.BoundStorage.
func (s *Storage) Leadership(*kvrpcpb.Context) (uint64, error) { return onlyTerm, nil }

// BoundReader implements storage.BoundStorage.
func (s *Storage) BoundReader(
	ctx context.Context, c *kvrpcpb.Context, key []byte,
) (storage.Reader, uint64, error) {
	r, err := s.Reader(ctx, c, key)
	return r, onlyTerm, err
}

// WriteBound implements storage.BoundStorage. It waits for the disk.
func (s *Storage) WriteBound(
	c *kvrpcpb.Context, _ storage.Bound, mods []storage.Modify, _ time.Time,
	done func(err error, known bool),
) {
	_, err := s.Write(context.Background(), c, mods)
	done(err, err == nil)
}

// DeleteRangeBound implements storage.BoundRangeDeleter. It waits for the disk.
func (s *Storage) DeleteRangeBound(
	c *kvrpcpb.Context, _ storage.Bound, cf engine.CF, start, end []byte, _ time.Time,
	done func(err error, known bool),
) {
	_, err := s.DeleteRange(context.Background(), c, cf, start, end)
	done(err, err == nil)
}
