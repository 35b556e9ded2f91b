package engine

import (
	"errors"
	"time"
)

// ErrCorrupt is wrapped by every error that means damaged data on disk. The caller stops using the
// engine: what it holds is not to be trusted.
var ErrCorrupt = errors.New("engine: corrupt data")

// ErrClosed is returned by every call on a closed engine.
var ErrClosed = errors.New("engine: closed")

// Engine is an embedded, ordered key-value store: the state machine of all regions of a store.
//
// Keys are physical keys: DataKey for users' data, keys that begin with LocalPrefix for the store's
// own records; nothing sorts before LocalPrefix. All methods are safe for concurrent use. Any error
// from Write or Sync but ErrDiskFull is final: the engine must not be used further (a failed fsync
// is never retried).
type Engine interface {
	// NewBatch returns an empty batch for this engine. A batch is not safe for concurrent use.
	NewBatch() Batch
	// Write carries the batch out atomically; it is visible to reads as soon as Write returns. With
	// sync it is also durable then; without, the death of the machine, and with some backends that
	// of the process, may lose it until the next Sync: what survives is a prefix of the writes. The
	// batch may be reset and used again afterwards.
	Write(b Batch, sync bool) error
	// Sync returns once everything written before the call is durable.
	Sync() error
	// Get returns a copy of the value. An empty value is a value: found tells.
	Get(key []byte) (value []byte, found bool, err error)
	// NewSnapshot returns a read view of this moment. The caller closes it.
	NewSnapshot() Snapshot
	// ApproximateSize estimates the bytes on disk of keys in [start, end).
	ApproximateSize(start, end []byte) (uint64, error)
	// DiskUsage is the number of bytes of the engine's files.
	DiskUsage() (uint64, error)
	// Name is the backend's name as in the configuration and the data directory's marker.
	Name() string
	// Close releases the files. Everything written is durable afterwards. Idempotent.
	Close() error
}

// Reporter is what an engine may also be: one that tells how it fares. Safe for concurrent use.
type Reporter interface {
	Stats() Stats
}

// Flusher is what an engine may also be: one that can be asked to write its memtable into files,
// with the deletes in it. Flush does not wait for that. An empty memtable is left alone. Safe for
// concurrent use.
type Flusher interface {
	Flush() error
}

// Stats are counters since the engine was opened, and gauges of the moment.
type Stats struct {
	// WriteStalls counts the times writes had to wait for flushes or compactions, StallTime adds
	// them up.
	WriteStalls uint64
	StallTime   time.Duration
	// MemTables wait in memory or are being filled; they take MemTableBytes.
	MemTables     uint64
	MemTableBytes uint64
	// Level0Depth is in how many layers of level 0 a key may lie.
	Level0Depth int
	// LogBytes, FlushedBytes and CompactedBytes were written to the write-ahead log, by flushes, by
	// compactions.
	LogBytes, FlushedBytes, CompactedBytes uint64
	// CompactionDebt is how many bytes compactions still have to write.
	CompactionDebt uint64
	// CacheHits and CacheMisses are of the block cache.
	CacheHits, CacheMisses uint64
}

// Latest is what an engine may also be: one with a view that is of no one moment, and costs nothing
// to take. Each Get of it, and each iterator, shows what was written by the moment at which it is
// made.
type Latest interface {
	Latest() Snapshot
}

// LatestOf is an engine's Latest, or a snapshot.
func LatestOf(e Engine) Snapshot {
	if l, ok := e.(Latest); ok {
		return l.Latest()
	}
	return e.NewSnapshot()
}

// Batch gathers changes in order; a later change of a key wins over an earlier one. Keys and values
// are copied: the caller may reuse its buffers at once.
type Batch interface {
	Put(key, value []byte)
	Delete(key []byte)
	// DeleteRange deletes every key in [start, end) that exists when the batch is written,
	// including those put earlier in this batch; end must not be empty.
	DeleteRange(start, end []byte)
	// Len is the number of changes, Size about the bytes they take.
	Len() int
	Size() int
	Reset()
}

// Snapshot is a consistent read view. Safe for concurrent use until Close.
type Snapshot interface {
	Get(key []byte) (value []byte, found bool, err error)
	// NewIterator iterates over [lower, upper); nil means no bound. It is not positioned yet.
	NewIterator(lower, upper []byte) Iterator
	Close()
}

// Iterator walks keys in order within its bounds. Not safe for concurrent use. Key and Value are
// valid until the next move; copy what is kept. When Valid is false, Err tells whether the end was
// reached (nil) or reading failed.
type Iterator interface {
	First()
	Last()
	// SeekGE moves to the first key >= key, SeekLT to the last key < key.
	SeekGE(key []byte)
	SeekLT(key []byte)
	Next()
	Prev()
	Valid() bool
	Key() []byte
	Value() []byte
	Err() error
	Close()
}
