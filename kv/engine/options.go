package engine

import (
	"errors"

	"go.uber.org/zap"
)

// ErrDiskFull is returned by Write when the free-space guard (Options.CheckSpace) objects. Nothing
// was written and the engine remains usable: unlike every other error of Write it is not final.
var ErrDiskFull = errors.New("engine: disk is full")

// Options open an engine of any backend.
type Options struct {
	Dir string
	// CacheBytes bounds the block cache, default 64 MiB.
	CacheBytes int64
	// MemTableBytes is the size of a memtable, default 16 MiB. A batch may be larger.
	MemTableBytes int64
	// LeastMemTableBytes is the size at which the memtable of a small store is flushed already,
	// default MemTableBytes.
	LeastMemTableBytes int64
	// OpenFiles is how many files of tables stay open, default 1000.
	OpenFiles int
	Logger    *zap.Logger
	// CheckSpace, if set, is asked before each write and vetoes it with an error, long before the
	// disk is really full: a full disk is something no LSM library survives well. It must be
	// cheap; the store measures free space now and then and keeps the answer.
	CheckSpace func() error
	// OnFailure, if set, gets the error with which the engine became unusable. No caller might see
	// it soon: a goroutine of the library may have met it, and a goroutine that met it inside the
	// library may never return. Called at most once, with locks of the library held: it must
	// neither wait nor call the engine.
	OnFailure func(error)
}

// EnsureDefaults fills in what was left open.
func (o *Options) EnsureDefaults() {
	if o.CacheBytes <= 0 {
		o.CacheBytes = 64 << 20
	}
	if o.MemTableBytes <= 0 {
		o.MemTableBytes = 16 << 20
	}
	if o.LeastMemTableBytes <= 0 || o.LeastMemTableBytes > o.MemTableBytes {
		o.LeastMemTableBytes = o.MemTableBytes
	}
	if o.OpenFiles <= 0 {
		o.OpenFiles = 1000
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
}

// clearChunk bounds the batches of ClearRange.
const clearChunk = 4096

// RangeDeleter is implemented by engines for which deleting a range is one small record, however
// much lies in it.
type RangeDeleter interface{ NativeRangeDelete() bool }

// ClearRange removes all keys in [start, end) in batches of bounded size. It is not atomic: when it
// fails or the process dies, any part may be gone. The callers mark the range as being cleared
// first, and begin again after a restart.
func ClearRange(e Engine, start, end []byte) error {
	b := e.NewBatch()
	if d, ok := e.(RangeDeleter); ok && d.NativeRangeDelete() {
		b.DeleteRange(start, end)
		return e.Write(b, false)
	}
	snap := e.NewSnapshot()
	defer snap.Close()
	it := snap.NewIterator(start, end)
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		b.Delete(it.Key())
		if b.Len() >= clearChunk || b.Size() >= 1<<20 {
			if err := e.Write(b, false); err != nil {
				return err
			}
			b.Reset()
		}
	}
	if err := it.Err(); err != nil {
		return err
	}
	if b.Len() == 0 {
		return nil
	}
	return e.Write(b, false)
}
