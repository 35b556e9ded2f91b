package raftlog

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/vfs"
	"github.com/tinykv/tinykv/pkg/durable"
)

// Options configure a log. The zero value means the defaults.
type Options struct {
	// SegmentSize is the size of a segment file, default 64 MiB. The first ones of a new log are
	// smaller, so that a small store stays small.
	SegmentSize int64
	// CacheBytes bounds the cached payloads of all regions together, default 32 MiB.
	CacheBytes int64
	// RecycleSegments is how many dropped or prepared segments are kept for use, default 2.
	RecycleSegments int
	// Manual leaves preparing and reclaiming to calls of Reclaim, without a goroutine: for tests
	// that count operations.
	Manual bool
	Logger *zap.Logger
	// FS is the file system, default the real one.
	FS vfs.FS
}

func (o *Options) ensureDefaults() error {
	if o.SegmentSize == 0 {
		o.SegmentSize = 64 << 20
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 32 << 20
	}
	if o.RecycleSegments == 0 {
		o.RecycleSegments = 2
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.SegmentSize < minSegmentSize || o.SegmentSize > 2<<30 {
		return fmt.Errorf("raftlog: segment size %d is not within [%d, %d]", o.SegmentSize,
			minSegmentSize, 2<<30)
	}
	o.SegmentSize &^= recordAlign - 1
	return nil
}

// Log is the raft log of all regions of a store. All methods are safe for concurrent use; changes
// of one region come from one goroutine at a time.
//
// Lock order: queue.mu and regions.mu and spares.mu and cache.mu are leaves; a region's mu may be
// held when taking cache.mu or regions.mu is released. No lock is held over IO; the commit lead,
// which is not a lock, is.
type Log struct {
	dir    string
	opts   Options
	fs     vfs.FS
	logger *zap.Logger

	regions struct {
		mu sync.RWMutex
		m  map[uint64]*region
	}
	segs  segTableRef
	cache cacheBudget

	queue  queue
	end    committer // owner: the commit leader
	failed atomic.Pointer[error]

	spares struct {
		mu struct {
			sync.Mutex
			files []spareFile
		}
		next atomic.Uint32
	}
	mark    vfs.File
	markBuf [markLen]byte

	keeper struct {
		wake chan struct{}
		stop chan struct{}
		done chan struct{}
	}
	closeOnce sync.Once
	closeErr  error
	stats     counters
}

type counters struct {
	writes, syncs, bytesWritten, diskReads, reclaimed, synced atomic.Uint64
	bytesOnDisk                                               atomic.Int64
}

// Stats are counters since Open and gauges of now.
type Stats struct {
	Segments, Spares        int
	BytesOnDisk, LiveBytes  int64
	CacheBytes              int64
	Writes, Syncs           uint64
	BytesWritten, DiskReads uint64
	ReclaimedBytes          uint64
	Regions                 int
}

// Open opens or creates the log in dir. What was damaged after the last sync is cut; damage before
// it is reported by Damaged, or is the error, a *DamageError, when whose data it was is lost too.
func Open(dir string, opts Options) (*Log, error) {
	if err := opts.ensureDefaults(); err != nil {
		return nil, err
	}
	l := &Log{dir: dir, opts: opts, fs: opts.FS, logger: opts.Logger}
	l.regions.m = make(map[uint64]*region)
	l.cache.limit = opts.CacheBytes
	if err := durable.MkdirAll(l.fs, dir); err != nil {
		return nil, fmt.Errorf("raftlog: %w", err)
	}
	if err := l.recover(); err != nil {
		return nil, errors.Join(err, l.closeFiles())
	}
	if !opts.Manual {
		l.startKeeper()
	}
	return l, nil
}

// Write makes the batch part of the log: atomically, visible to reads when Write returns and, with
// sync, durable. Without sync it is durable after the next write or Sync that is. An error that is
// not ErrInvalid is final: it is the answer of every later call.
func (l *Log) Write(b *Batch, sync bool) error {
	if err := l.failure(); err != nil {
		return err
	}
	if err := l.validate(b); err != nil {
		return err
	}
	if len(b.ops) == 0 {
		if sync {
			return l.Sync()
		}
		return nil
	}
	b.req.batch, b.req.sync, b.req.err = b, sync, nil
	return l.submit(&b.req)
}

// Sync returns once everything written before the call is durable.
func (l *Log) Sync() error {
	return l.submit(&request{sync: true})
}

// Stats returns the log's figures.
func (l *Log) Stats() Stats {
	s := Stats{
		BytesOnDisk: l.stats.bytesOnDisk.Load(), CacheBytes: l.cache.used.Load(),
		Writes: l.stats.writes.Load(), Syncs: l.stats.syncs.Load(),
		BytesWritten: l.stats.bytesWritten.Load(), DiskReads: l.stats.diskReads.Load(),
		ReclaimedBytes: l.stats.reclaimed.Load(),
	}
	for _, seg := range l.segs.load().segs {
		s.Segments++
		s.LiveBytes += seg.bytes.Load()
	}
	l.regions.mu.RLock()
	s.Regions = len(l.regions.m)
	l.regions.mu.RUnlock()
	l.spares.mu.Lock()
	s.Spares = len(l.spares.mu.files)
	for _, f := range l.spares.mu.files {
		s.BytesOnDisk += f.size
	}
	l.spares.mu.Unlock()
	return s
}

// SyncedSequence is the number of the last record that is durable. Records are numbered from 1,
// never anew, so a copy of the log that was taken before has a smaller one.
func (l *Log) SyncedSequence() uint64 { return l.stats.synced.Load() }

// Close syncs, notes that the log ends here and closes the files. Idempotent.
func (l *Log) Close() error {
	l.closeOnce.Do(func() {
		l.stopKeeper()
		err := l.submit(&request{exclusive: func() error {
			if err := l.syncActive(); err != nil {
				return l.fail(err)
			}
			// Both slots: a stale one must not be all that is left if the other is damaged.
			for range 2 {
				if err := l.writeMark(true); err != nil {
					return l.fail(err)
				}
			}
			return l.mark.Sync()
		}})
		l.queue.mu.Lock()
		l.queue.mu.closed = true
		l.queue.mu.Unlock()
		l.closeErr = errors.Join(err, l.closeFiles())
	})
	return l.closeErr
}

func (l *Log) closeFiles() error {
	var errs []error
	for _, s := range l.segs.load().segs {
		errs = append(errs, s.file.Close())
	}
	if l.mark != nil {
		errs = append(errs, l.mark.Close())
	}
	return errors.Join(errs...)
}
