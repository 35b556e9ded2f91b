package badgerengine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/pingcap/badger"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/internal/syncmark"
	"github.com/tinykv/tinykv/pkg/durable"
)

// Name is the backend's name.
const Name = "badger"

const (
	// The value log, of four files of four memtables each, outlives every memtable it covers.
	valueLogMemTables = 4
	valueLogMaxFiles  = 4
	// maxMergeBytes bounds what the committer merges into one transaction.
	maxMergeBytes = 4 << 20
)

// sentinelKey holds the number of the last commit. It sorts before every key of ours.
var sentinelKey = []byte{0x00, 's'}

// lowest is the lower bound of every iterator.
var lowest = []byte{engine.LocalPrefix}

type db struct {
	b    *badger.DB
	opts engine.Options

	failed   atomic.Pointer[error]
	failedCh chan struct{} // closed when failed is set

	commits chan *commit
	stop    chan struct{}
	done    chan struct{} // closed when the committer has ended

	seq     uint64        // of the last commit; owner: the committer
	seen    atomic.Uint64 // the last commit that was read back
	mark    *syncmark.Mark
	syncs   syncmark.Group
	closing sync.RWMutex
	closed  bool
}

// commit is a batch on its way through the committer.
type commit struct {
	b    *batch
	err  error
	done chan struct{}
}

// limits is what no wrapper can mend; docs/engine.md has the evidence.
const limits = "the engine badger does not notice all damage: its tables have no checksums, and keys in a damaged " +
	"table are silently not found; damage may end the process without the cause; a power loss may keep half " +
	"of a batch that was not synced; storage.engine = \"pebble\" has none of this"

// Open opens or creates the engine in opts.Dir. It warns of what the library cannot do.
func Open(opts engine.Options) (_ engine.Engine, err error) {
	opts.EnsureDefaults()
	opts.Logger.Warn(limits, zap.String("dir", opts.Dir))
	d := &db{
		opts: opts, failedCh: make(chan struct{}),
		commits: make(chan *commit, 1024), stop: make(chan struct{}), done: make(chan struct{}),
	}
	if err := durable.MkdirAll(durable.OS, opts.Dir); err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(opts.Dir, syncmark.Name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	m := syncmark.Open(f)
	d.mark = m
	if err := durable.SyncDir(opts.Dir); err != nil {
		return nil, errors.Join(fmt.Errorf("engine: %w", err), m.Close())
	}
	if !m.State().Clean {
		if err := verifyValueLog(opts.Dir); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	listen(d)
	err = d.guard(func() error {
		b, err := badger.Open(d.badgerOptions())
		if err != nil {
			return fmt.Errorf("%w: %w", engine.ErrCorrupt, keyError{err})
		}
		d.b = b
		return nil
	})
	if err == nil {
		err = d.afterOpen()
	}
	if err != nil {
		unlisten(d)
		return nil, fmt.Errorf("open %s: %w", opts.Dir, errors.Join(err, m.Close()))
	}
	go d.runCommitter()
	return d, nil
}

func (d *db) badgerOptions() badger.Options {
	o := badger.DefaultOptions
	o.Dir, o.ValueDir = d.opts.Dir, d.opts.Dir
	o.SyncWrites = false
	o.ValueThreshold = 0
	o.ValueLogFileSize = min(max(valueLogMemTables*d.opts.MemTableBytes, 1<<20), 1<<30)
	o.ValueLogMaxNumFiles = valueLogMaxFiles
	o.MaxMemTableSize = d.opts.MemTableBytes
	o.NumMemtables = 3
	o.NumCompactors = 2
	o.MaxBlockCacheSize = d.opts.CacheBytes
	o.MaxIndexCacheSize = max(d.opts.CacheBytes/4, 1<<20)
	o.LevelOneSize = 64 << 20
	o.CompactL0WhenClose = false
	return o
}

// afterOpen compares what the library found with what the mark promises.
func (d *db) afterOpen() error {
	at, m := d.b.GetVLogOffset(), d.mark.State()
	if at < m.Position {
		err := fmt.Errorf(
			"%w: the value log ends at file %d, offset %d, but was synced up to file %d, offset %d",
			engine.ErrCorrupt, at>>32, uint32(at), m.Position>>32, uint32(m.Position))
		return errors.Join(err, d.b.Close())
	}
	if err := zeroTail(valueLogPath(d.opts.Dir, at>>32), int64(uint32(at))); err != nil {
		return errors.Join(err, d.b.Close())
	}
	v, ok, err := d.getRaw(sentinelKey)
	if err != nil {
		return errors.Join(err, d.b.Close())
	}
	if ok && len(v) == 8 {
		d.seq = binary.LittleEndian.Uint64(v)
	}
	if d.seq < m.Commit {
		err := fmt.Errorf("%w: commit %d is the last one, but %d was synced", engine.ErrCorrupt,
			d.seq, m.Commit)
		return errors.Join(err, d.b.Close())
	}
	d.seen.Store(d.seq)
	m.Clean = false
	return d.mark.Set(m, true)
}

func (d *db) Name() string           { return Name }
func (d *db) NewBatch() engine.Batch { return &batch{} }

// fail makes err the answer of every later call and returns the first such error.
func (d *db) fail(err error) error {
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

func (d *db) enter() bool {
	d.closing.RLock()
	if d.closed {
		d.closing.RUnlock()
		return false
	}
	return true
}

func (d *db) leave() { d.closing.RUnlock() }

// Write hands the batch to the committer and waits for it.
func (d *db) Write(eb engine.Batch, sync bool) error {
	b := eb.(*batch)
	if !d.enter() {
		return engine.ErrClosed
	}
	defer d.leave()
	if err := d.failure(); err != nil {
		return err
	}
	if check := d.opts.CheckSpace; check != nil {
		if err := check(); err != nil {
			return fmt.Errorf("%w: %w", engine.ErrDiskFull, err)
		}
	}
	if b.err != nil {
		return b.err
	}
	if len(b.ops) > 0 {
		c := &commit{b: b, done: make(chan struct{})}
		select {
		case d.commits <- c:
		case <-d.failedCh:
			return d.failure()
		}
		select {
		case <-c.done:
			if c.err != nil {
				return c.err
			}
		case <-d.failedCh:
			// The committer may be stuck in the library for good.
			return d.failure()
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

// sync makes everything committed before the call durable; callers share the work.
func (d *db) sync() error {
	if err := d.failure(); err != nil {
		return err
	}
	if err := d.syncs.Do(d.syncLog); err != nil {
		return d.fail(err)
	}
	return d.failure()
}

// runCommitter is the one goroutine that commits. Open starts it, Close ends it.
func (d *db) runCommitter() {
	defer close(d.done)
	var group []*commit
	for {
		group = group[:0]
		select {
		case <-d.stop:
			return
		case <-d.failedCh:
			return
		case c := <-d.commits:
			group = append(group, c)
		}
		size := group[0].b.size
	gather:
		for size < maxMergeBytes {
			select {
			case c := <-d.commits:
				group = append(group, c)
				size += c.b.size
			default:
				break gather
			}
		}
		err := d.guard(func() error { return d.commitGroup(group) })
		for _, c := range group {
			if c.err == nil {
				c.err = err
			}
			close(c.done)
		}
		if err != nil {
			d.fail(err)
			return
		}
	}
}

// commitGroup commits the group's batches as one transaction. A batch that must be refused gets its
// error; the others go on.
func (d *db) commitGroup(group []*commit) error {
	txn := d.b.NewTransaction(true)
	defer txn.Discard()
	changes := 0
	for _, c := range group {
		if c.err = d.checkBatch(c.b); c.err != nil {
			continue
		}
		for i := range c.b.ops {
			if err := d.apply(txn, &c.b.ops[i]); err != nil {
				// Not foreseen by checkBatch: half a batch is in the transaction now.
				return fmt.Errorf("engine: %w", err)
			}
		}
		changes++
	}
	if changes == 0 {
		return nil
	}
	d.seq++
	want := binary.LittleEndian.AppendUint64(nil, d.seq)
	sealed := binary.LittleEndian.AppendUint32(bytes.Clone(want), checksum(sentinelKey, want))
	if err := txn.Set(sentinelKey, sealed); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	if err := txn.Commit(); err != nil {
		return fmt.Errorf("engine: commit: %w", err)
	}
	got, ok, err := d.getRaw(sentinelKey)
	if err != nil {
		return err
	}
	if !ok || string(got) != string(want) {
		return fmt.Errorf("engine: commit %d was acknowledged by badger but is not there", d.seq)
	}
	d.seen.Store(d.seq)
	return nil
}

// maxRangeKeys bounds a DeleteRange, which here is a deletion of each key in one transaction.
// Larger ranges are cleared with engine.ClearRange first.
const maxRangeKeys = 100_000

// checkBatch refuses what could not be carried out as a whole.
func (d *db) checkBatch(b *batch) error {
	for i := range b.ops {
		o := &b.ops[i]
		if o.kind == opDeleteRange {
			continue
		}
		if int64(len(o.key)+len(o.value))+1024 > d.opts.MemTableBytes {
			return fmt.Errorf("engine: a pair of %d bytes does not fit into a memtable of %d",
				len(o.key)+len(o.value), d.opts.MemTableBytes)
		}
	}
	return nil
}

func (d *db) apply(txn *badger.Txn, o *change) error {
	switch o.kind {
	case opPut:
		return txn.Set(o.key, o.value)
	case opDelete:
		return txn.Delete(o.key)
	}
	it := txn.NewIterator(badger.IteratorOptions{})
	var keys [][]byte
	for it.Seek(o.key); it.Valid(); it.Next() {
		key := it.Item().Key()
		if string(key) >= string(o.value) {
			break
		}
		keys = append(keys, append([]byte(nil), key...))
		if len(keys) > maxRangeKeys {
			it.Close()
			return fmt.Errorf("range delete of more than %d keys", maxRangeKeys)
		}
	}
	it.Close()
	for _, key := range keys {
		if err := txn.Delete(key); err != nil {
			return err
		}
	}
	return nil
}

func (d *db) Get(key []byte) (value []byte, found bool, err error) {
	if !d.enter() {
		return nil, false, engine.ErrClosed
	}
	defer d.leave()
	return d.getRaw(key)
}

func (d *db) getRaw(key []byte) ([]byte, bool, error) {
	var txn *badger.Txn
	if err := d.guard(func() error { txn = d.b.NewTransaction(false); return nil }); err != nil {
		return nil, false, err
	}
	defer txn.Discard()
	return d.get(txn, key)
}

func (d *db) get(txn *badger.Txn, key []byte) (value []byte, found bool, err error) {
	err = d.guard(func() error {
		item, err := txn.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) || errors.Is(err, badger.ErrEmptyKey) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("engine: get: %w", err)
		}
		v, err := item.Value()
		if err != nil {
			return fmt.Errorf("engine: get: %w", err)
		}
		if v, err = unseal(key, v); err != nil {
			return err
		}
		value, found = append(make([]byte, 0, len(v)), v...), true
		return nil
	})
	// The library answers "not found" when it cannot read; its log line has told us.
	if err == nil {
		err = d.failure()
	}
	if err != nil {
		return nil, false, err
	}
	return value, found, nil
}

// ApproximateSize sums the tables within the range; tables that overlap it partly count half.
func (d *db) ApproximateSize(start, end []byte) (n uint64, err error) {
	if !d.enter() {
		return 0, engine.ErrClosed
	}
	defer d.leave()
	snap := &snapshot{d: d, txn: d.b.NewTransaction(false)}
	defer snap.Close()
	it := snap.NewIterator(start, end)
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		n += uint64(len(it.Key()) + len(it.Value()))
	}
	return n, it.Err()
}

func (d *db) DiskUsage() (uint64, error) {
	if !d.enter() {
		return 0, engine.ErrClosed
	}
	defer d.leave()
	entries, err := os.ReadDir(d.opts.Dir)
	if err != nil {
		return 0, fmt.Errorf("engine: %w", err)
	}
	total := uint64(0)
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("engine: %w", err)
		}
		if n := uint64(info.Size()); filepath.Ext(e.Name()) != ".vlog" {
			total += n
		} else {
			total += allocated(info) // preallocated: its size says nothing
		}
	}
	return total, nil
}

func (d *db) Close() error {
	d.closing.Lock()
	defer d.closing.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	defer unlisten(d)
	close(d.stop)
	if err := d.failure(); err != nil {
		// The library's Close waits for goroutines that may never end.
		return errors.Join(err, d.mark.Close())
	}
	<-d.done
	err := d.guard(func() error {
		if err := d.syncLog(); err != nil {
			return err
		}
		return d.b.Close()
	})
	if err == nil {
		m := d.mark.State()
		m.Clean = true
		err = d.mark.Set(m, true)
	}
	return errors.Join(err, d.mark.Close())
}
