// Package pebbleengine is the engine over cockroachdb/pebble.
//
// Pebble does most of what the interface asks for by itself: batches, snapshots, bounds, range
// deletions, checksums that are verified on every read, and write-ahead log records that tell a
// torn tail from damage, as long as something valid lies behind it. Two things are added.
//
// Failure: where pebble meets an error it cannot get over, it calls Logger.Fatalf, which by default
// ends the process, or panics. Here the engine fails before either: the callers get the error, and
// so does Options.OnFailure (fatal.go).
//
// The end of the log: each sync writes its number into the store (a sentinel key) and, when it is
// done, into a mark file. A store that does not know the sync the mark tells of lost a synced tail.
package pebbleengine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/internal/syncmark"
	"github.com/tinykv/tinykv/pkg/durable"
	"github.com/tinykv/tinykv/pkg/redact"
)

// Name is the backend's name.
const Name = "pebble"

type db struct {
	p    *pebble.DB
	opts engine.Options

	mark  *syncmark.Mark
	syncs syncmark.Group
	seq   uint64 // of the last sync; owner: the caller within syncs

	failed   atomic.Pointer[error]
	failedCh chan struct{} // closed when failed is set

	pacer *pacer      // of compactions and flushes
	room  room        // of the memtable
	armed atomic.Bool // the engine is open: see rimFS

	stalls struct {
		count, nanos, since atomic.Int64
	}

	// users counts calls that are inside pebble; Close waits for them.
	closing sync.RWMutex
	closed  bool
}

// Open opens or creates the engine in opts.Dir.
func Open(opts engine.Options) (engine.Engine, error) {
	fs, err := files()
	if err != nil {
		return nil, err
	}
	return OpenFS(opts, fs)
}

// OpenFS is Open on another file system; for tests.
func OpenFS(opts engine.Options, files vfs.FS) (_ engine.Engine, err error) {
	opts.EnsureDefaults()
	d := &db{opts: opts, failedCh: make(chan struct{}), pacer: newPacer()}
	// Pebble takes its memtables out of the block cache; CacheBytes is for blocks.
	cache := pebble.NewCache(opts.CacheBytes + 2*opts.MemTableBytes)
	defer cache.Unref()
	d.room.limit, d.room.least = opts.MemTableBytes, opts.LeastMemTableBytes
	err = d.detached(func() error {
		if err := durable.MkdirAll(dirs{files}, opts.Dir); err != nil {
			return err
		}
		f, err := files.OpenReadWrite(files.PathJoin(opts.Dir, syncmark.Name),
			vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		d.mark = syncmark.Open(f)
		if err := (dirs{files}).SyncDir(opts.Dir); err != nil {
			return errors.Join(err, d.mark.Close())
		}
		d.p, err = pebble.Open(opts.Dir, d.pebbleOptions(cache, files))
		if err != nil {
			return errors.Join(err, d.mark.Close())
		}
		d.armed.Store(true)
		d.pacer.immutable.Store(0)
		if err := d.checkMark(); err != nil {
			return err
		}
		d.pacer.db.Store(d.p)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", opts.Dir, err)
	}
	return d, nil
}

// sentinelKey holds the number of the last sync. It sorts before every key of ours; iterators begin
// at lowest.
var (
	sentinelKey = []byte{0x00, 's'}
	lowest      = []byte{engine.LocalPrefix}
)

// checkMark compares the last sync that is in the store with the last that was promised.
func (d *db) checkMark() error {
	v, ok, err := d.get(d.p, sentinelKey)
	if err != nil {
		return errors.Join(err, d.p.Close(), d.mark.Close())
	}
	if ok && len(v) == 8 {
		d.seq = binary.LittleEndian.Uint64(v)
	}
	if want := d.mark.State().Commit; d.seq < want {
		err := fmt.Errorf("%w: the write-ahead log ends before sync %d, the last one made",
			engine.ErrCorrupt, want)
		return errors.Join(err, d.p.Close(), d.mark.Close())
	}
	return nil
}

// syncLog makes everything written so far durable: the write-ahead log is written in order.
func (d *db) syncLog() error {
	d.seq++
	if err := d.p.Set(sentinelKey, binary.LittleEndian.AppendUint64(nil, d.seq),
		pebble.Sync); err != nil {
		return err
	}
	return d.mark.Set(syncmark.State{Commit: d.seq}, false)
}

// sync lets callers share syncLog.
func (d *db) sync() error {
	err := d.syncs.Do(func() error { return d.detached(d.syncLog) })
	if err != nil {
		return d.fail(err)
	}
	return nil
}

func (d *db) pebbleOptions(cache *pebble.Cache, files vfs.FS) *pebble.Options {
	o := &pebble.Options{
		Cache: cache,
		FS:    pacedFS{rimFS{files, d}, d.pacer},
		// The newest format has log records that tell up to where the log was synced, so that
		// damage in its middle is an error and not an early end.
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                uint64(d.opts.MemTableBytes),
		MemTableStopWritesThreshold: stallMemTables,
		L0CompactionThreshold:       compactDepth,
		L0StopWritesThreshold:       stopDepth,
		// as much as level 0 brings at a time
		LBaseMaxBytes: max(64<<20, compactDepth*d.opts.MemTableBytes),
		MaxOpenFiles:  d.opts.OpenFiles,
		BytesPerSync:  1 << 20,
		// Most writes are not synced, but some of any region are, and then everything before them
		// is: let the disk begin earlier.
		WALBytesPerSync: 512 << 10,
		Comparer:        &comparer,
		Logger:          &logger{d},
		EventListener:   d.events(),
	}
	// One compaction runs at a time, and its end lets the next one begin. The usual scheduler also
	// looks ten times a second whether more of them may run, which never changes here, and wakes an
	// idle process for it.
	o.CompactionConcurrencyRange = func() (lower, upper int) { return 1, 1 }
	o.Experimental.CompactionScheduler = pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest()
	for i := range o.Levels {
		o.Levels[i].BlockSize = 16 << 10
		o.Levels[i].IndexBlockSize = 256 << 10 // one level of index, not two
		if i < len(o.Levels)-1 {
			o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		} else {
			o.Levels[i].FilterPolicy = pebble.NoFilterPolicy // pebble asks none of the last level
		}
	}
	return o
}

// comparer is pebble's own, under its name, but for how it writes keys into texts.
var comparer = func() pebble.Comparer {
	c := *pebble.DefaultComparer
	c.FormatKey = func(key []byte) fmt.Formatter { return formattedKey(key) }
	return c
}()

// formattedKey writes itself as redact writes keys, under any verb.
type formattedKey []byte

func (k formattedKey) Format(s fmt.State, _ rune) {
	_, _ = io.WriteString(s, redact.Key(k).String())
}

func (d *db) events() *pebble.EventListener {
	return &pebble.EventListener{
		// A flush or compaction that fails is tried again by pebble, for ever, while writes pile
		// up and then stall. An engine that cannot write to its disk is better stopped.
		BackgroundError: func(err error) { d.fail(err) },
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			d.fail(fmt.Errorf("%w: %s", engine.ErrCorrupt, info))
		},
		WriteStallBegin: func(pebble.WriteStallBeginInfo) {
			d.stalls.count.Add(1)
			d.stalls.since.Store(time.Now().UnixNano())
		},
		WriteStallEnd: func() {
			if since := d.stalls.since.Swap(0); since > 0 {
				d.stalls.nanos.Add(time.Now().UnixNano() - since)
			}
		},
		WALCreated: func(pebble.WALCreateInfo) {
			d.pacer.immutable.Add(1)
			d.room.renew()
		},
		FlushEnd: func(info pebble.FlushInfo) {
			if info.Err == nil && !info.Ingest {
				d.pacer.immutable.Add(-int64(info.Input))
			}
		},
	}
}

// Writes stall when this many memtables are full. A write that begins when fewer than nearStall are
// waiting for their flush cannot be the one that stalls: two more would have to fill up meanwhile.
const (
	stallMemTables = 4
	nearStall      = 2
)

// convert gives errors the types of package engine.
func convert(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, engine.ErrCorrupt):
		return err
	case pebble.IsCorruptionError(err):
		return fmt.Errorf("%w: %w", engine.ErrCorrupt, err)
	case errors.Is(err, fs.ErrNotExist):
		// A file that the manifest names is gone.
		return fmt.Errorf("%w: %w", engine.ErrCorrupt, err)
	}
	return fmt.Errorf("engine: %w", err)
}

// fail makes err the answer of every later call and returns the first such error.
func (d *db) fail(err error) error {
	err = convert(err)
	if d.failed.CompareAndSwap(nil, &err) {
		close(d.failedCh)
		if d.opts.OnFailure != nil {
			d.opts.OnFailure(err)
		}
	}
	return *d.failed.Load()
}

func (d *db) failure() error {
	if p := d.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// guard runs f, which calls pebble, and turns its panics into an error. Damage that gets past a
// checksum makes the library panic rather than return.
func (d *db) guard(f func() error) (err error) {
	defer d.rescue(&err)
	if err := d.failure(); err != nil {
		return err
	}
	return convert(f())
}

// rescue is deferred by everything that calls pebble: guard, and the hot paths that would have to
// allocate a closure for it.
func (d *db) rescue(err *error) {
	switch v := recover().(type) {
	case nil:
	case runtime.Error:
		*err = d.fail(fmt.Errorf("%w: panic: %w", engine.ErrCorrupt, v))
	case error:
		*err = d.fail(fmt.Errorf("panic: %w", v))
	default:
		*err = d.fail(fmt.Errorf("panic: %v", v))
	}
}

// enter keeps Close away until leave; false if the engine is closed.
func (d *db) enter() bool {
	d.closing.RLock()
	if d.closed {
		d.closing.RUnlock()
		return false
	}
	return true
}

func (d *db) leave() { d.closing.RUnlock() }

func (d *db) Name() string            { return Name }
func (d *db) NativeRangeDelete() bool { return true }

func (d *db) NewBatch() engine.Batch { return &batch{b: d.p.NewBatch()} }

// Write commits the batch. Any number of callers may commit at once; those who want a sync share
// it.
func (d *db) Write(eb engine.Batch, sync bool) error {
	b := eb.(*batch)
	if !d.enter() {
		return engine.ErrClosed
	}
	defer d.leave()
	if check := d.opts.CheckSpace; check != nil {
		if err := check(); err != nil {
			return fmt.Errorf("%w: %w", engine.ErrDiskFull, err)
		}
	}
	if b.err != nil {
		return b.err
	}
	if !b.b.Empty() {
		p := b.b
		if err := d.write(p); err != nil {
			b.b = d.p.NewBatch() // the old one may still be in use
			return d.fail(err)
		}
	}
	if sync {
		return d.sync()
	}
	return nil
}

func (d *db) Sync() error {
	if !d.enter() {
		return engine.ErrClosed
	}
	defer d.leave()
	return d.sync()
}

func (d *db) Get(key []byte) (value []byte, found bool, err error) {
	if !d.enter() {
		return nil, false, engine.ErrClosed
	}
	defer d.leave()
	return d.get(d.p, key)
}

//go:noinline
func (d *db) get(r pebble.Reader, key []byte) (value []byte, found bool, err error) {
	defer d.rescue(&err)
	if err := d.failure(); err != nil {
		return nil, false, err
	}
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, convert(err)
	}
	value = append(make([]byte, 0, len(v)), v...)
	return value, true, convert(closer.Close())
}

func (d *db) ApproximateSize(start, end []byte) (n uint64, err error) {
	if !d.enter() {
		return 0, engine.ErrClosed
	}
	defer d.leave()
	err = d.guard(func() error {
		n, err = d.p.EstimateDiskUsage(start, end)
		return err
	})
	return n, err
}

// Stats implements engine.Reporter. A closed or failed engine has none.
func (d *db) Stats() (s engine.Stats) {
	if !d.enter() {
		return s
	}
	defer d.leave()
	if d.failure() != nil {
		return s
	}
	m := d.p.Metrics()
	s = engine.Stats{
		WriteStalls: uint64(d.stalls.count.Load()), StallTime: time.Duration(d.stalls.nanos.Load()),
		MemTables: uint64(m.MemTable.Count), MemTableBytes: m.MemTable.Size,
		Level0Depth: int(m.Levels[0].Sublevels),
		LogBytes:    m.WAL.BytesWritten, CompactionDebt: m.Compact.EstimatedDebt,
		CacheHits: uint64(m.BlockCache.Hits), CacheMisses: uint64(m.BlockCache.Misses),
	}
	for i := range m.Levels {
		s.FlushedBytes += m.Levels[i].TableBytesFlushed
		s.CompactedBytes += m.Levels[i].TableBytesCompacted
	}
	return s
}

// Flush implements engine.Flusher.
func (d *db) Flush() error {
	if !d.enter() {
		return engine.ErrClosed
	}
	defer d.leave()
	if d.room.empty() {
		return nil
	}
	return d.detached(func() error {
		_, err := d.p.AsyncFlush()
		return err
	})
}

func (d *db) DiskUsage() (uint64, error) {
	if !d.enter() {
		return 0, engine.ErrClosed
	}
	defer d.leave()
	if err := d.failure(); err != nil {
		return 0, err
	}
	return d.p.Metrics().DiskSpaceUsage(), nil
}

func (d *db) Close() error {
	d.closing.Lock()
	defer d.closing.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	d.pacer.release()
	if err := d.failure(); err != nil {
		// Pebble's Close waits for its background work, which may be stuck by now. The files stay
		// as they are; the process is about to end.
		return err
	}
	return d.detached(func() error {
		return errors.Join(d.syncLog(), d.p.Close(), d.mark.Close())
	})
}
