// Package standalone is the storage of one unreplicated store: the engine, synced at every write. It
// ignores regions.
package standalone

import (
	"context"
	"time"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Storage implements storage.Storage over an engine.
type Storage struct{ engine engine.Engine }

var _ storage.BoundStorage = (*Storage)(nil)

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

// onlyTerm is the term of a store that nobody else can lead.
const onlyTerm = 1

// Leadership implements storage.BoundStorage.
func (s *Storage) Leadership(*kvrpcpb.Context) (uint64, error) { return onlyTerm, nil }

// BoundReader implements storage.BoundStorage.
func (s *Storage) BoundReader(ctx context.Context, c *kvrpcpb.Context, key []byte) (storage.Reader, uint64, error) {
	r, err := s.Reader(ctx, c, key)
	return r, onlyTerm, err
}

// WriteBound implements storage.BoundStorage. It waits for the disk.
func (s *Storage) WriteBound(
	c *kvrpcpb.Context, _ storage.Bound, mods []storage.Modify, _ time.Time, done func(err error, known bool),
) {
	_, err := s.Write(context.Background(), c, mods)
	done(err, err == nil)
}
