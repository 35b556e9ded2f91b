// Package standalone is the storage of one unreplicated store: the engine, synced at every write. It
// ignores regions.
package standalone

import (
	"context"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Storage implements storage.Storage over an engine.
type Storage struct{ engine engine.Engine }

var _ storage.Storage = (*Storage)(nil)

// New returns a storage over e, which stays the caller's.
func New(e engine.Engine) *Storage { return &Storage{engine: e} }

// Get implements storage.Storage.
func (s *Storage) Get(_ context.Context, _ *kvrpcpb.Context, cf engine.CF, key []byte) ([]byte, bool, error) {
	return s.engine.Get(engine.DataKey(cf, key))
}

// Reader implements storage.Storage.
func (s *Storage) Reader(context.Context, *kvrpcpb.Context, []byte) (storage.Reader, error) {
	return storage.NewView(s.engine.NewSnapshot(), nil, nil), nil
}

// Write implements storage.Storage.
func (s *Storage) Write(_ context.Context, _ *kvrpcpb.Context, mods []storage.Modify) (uint64, error) {
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
