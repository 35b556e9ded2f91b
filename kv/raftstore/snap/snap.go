// Package snap keeps the snapshot files of a store: it builds them from an engine snapshot, hands
// them to the sender, takes them in from another store, verifies and reads them back, and removes
// the old.
//
// Per raft snapshot and column family there is one file of records, and one meta file that lists
// the sizes and CRC-32 (IEEE) checksums. Part of the on-disk format; do not change:
//
//	<prefix>_<region>_<term>_<index>_<cf>.sst   records: uvarint key length, key, uvarint value length, value
//	<prefix>_<region>_<term>_<index>.meta       raft_serverpb.SnapshotMeta
//
// prefix is "gen" for files built here and "rev" for received ones; keys are physical keys in
// order. A file is complete under its final name only: it is written as *.tmp, synced, renamed, and
// its directory synced, the meta file last.
package snap

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/pkg/durable"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// ErrUnusable is wrapped by errors about snapshot files that are missing, incomplete or damaged:
// the snapshot must be sent again.
var ErrUnusable = errors.New("snap: unusable snapshot files")

// ErrBusy is returned when the limit of concurrent receptions is reached.
var ErrBusy = errors.New("snap: too many snapshots are being received")

const (
	prefixBuilt    = "gen"
	prefixReceived = "rev"
	tmpSuffix      = ".tmp"
	maxRecord      = 1 << 30
)

// Key names a raft snapshot: a region's state at an entry.
type Key struct{ RegionID, Term, Index uint64 }

func (k Key) String() string { return fmt.Sprintf("%d_%d_%d", k.RegionID, k.Term, k.Index) }

// Manager owns the directory. Safe for concurrent use.
type Manager struct {
	dir          string
	receiveLimit int32
	sending      atomic.Int32
	receiving    atomic.Int32

	builds, installs *rate.Limiter // see Pace
	full             func() bool   // see SetFull

	mu struct {
		sync.Mutex
		// inUse counts who builds, sends, receives or installs a snapshot: its files are not
		// removed.
		inUse map[string]int
	}
}

// Open makes the directory and removes what an earlier process left half done.
func Open(dir string, receiveLimit int) (*Manager, error) {
	if err := durable.MkdirAll(durable.OS, dir); err != nil {
		return nil, err
	}
	m := &Manager{
		dir: dir, receiveLimit: int32(receiveLimit),
		builds:   rate.NewLimiter(rate.Inf, paceBytes),
		installs: rate.NewLimiter(rate.Inf, paceBytes),
	}
	m.mu.inUse = map[string]int{}
	names, err := filepath.Glob(filepath.Join(dir, "*"+tmpSuffix))
	if err != nil {
		return nil, err
	}
	// What was built for sending is built again when it is needed.
	built, err := filepath.Glob(filepath.Join(dir, prefixBuilt+"_*"))
	if err != nil {
		return nil, err
	}
	for _, name := range append(names, built...) {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return m, nil
}

// SetFull lets snapshots be neither built nor received as long as full says that the disk is: they
// may be larger than its reserve. Before the first use.
func (m *Manager) SetFull(full func() bool) { m.full = full }

// Counts returns how many snapshots are being sent and received.
func (m *Manager) Counts() (sending, receiving uint32) {
	return uint32(m.sending.Load()), uint32(m.receiving.Load())
}

func (m *Manager) use(name string) (release func()) {
	m.mu.Lock()
	m.mu.inUse[name]++
	m.mu.Unlock()
	var once sync.Once
	return func() {
		once.Do(func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.mu.inUse[name]--; m.mu.inUse[name] == 0 {
				delete(m.mu.inUse, name)
			}
		})
	}
}

func (m *Manager) path(prefix string, k Key, suffix string) string {
	return filepath.Join(m.dir, prefix+"_"+k.String()+suffix)
}

func (m *Manager) cfPath(prefix string, k Key, cf string) string {
	return m.path(prefix, k, "_"+cf+".sst")
}

// Build writes the files of a raft snapshot of a region: its user keys in all families that it may
// have. It returns their list and total size. Files that are there already are used again.
func (m *Manager) Build(
	view engine.Snapshot, k Key, r *metapb.Region,
) (*rspb.SnapshotMeta, uint64, error) {
	if m.full != nil && m.full() {
		return nil, 0, fmt.Errorf("%w: the disk is full", ErrBusy)
	}
	defer m.use(prefixBuilt + "_" + k.String())()
	if meta, err := m.readMeta(prefixBuilt, k); err == nil {
		return meta, totalSize(meta), nil
	}
	meta := &rspb.SnapshotMeta{}
	for _, cf := range engine.Families(r.GetExpiryFloor() > 0) {
		f, err := m.buildCF(view, k, cf, r.GetStartKey(), r.GetEndKey())
		if err != nil {
			return nil, 0, fmt.Errorf("build snapshot %s: %w", k, err)
		}
		meta.CfFiles = append(meta.CfFiles, f)
	}
	if err := m.writeMeta(prefixBuilt, k, meta); err != nil {
		return nil, 0, fmt.Errorf("build snapshot %s: %w", k, err)
	}
	return meta, totalSize(meta), nil
}

func totalSize(meta *rspb.SnapshotMeta) (n uint64) {
	for _, f := range meta.GetCfFiles() {
		n += f.Size_
	}
	return n
}

func (m *Manager) buildCF(
	view engine.Snapshot, k Key, cf engine.CF, start, end []byte,
) (*rspb.SnapshotCFFile, error) {
	it := view.NewIterator(engine.DataKey(cf, start), engine.DataEndKey(cf, end))
	defer it.Close()
	it.First()
	out := &rspb.SnapshotCFFile{Cf: string(cf)}
	if !it.Valid() {
		return out, it.Err()
	}
	w, err := m.create(m.cfPath(prefixBuilt, k, string(cf)))
	if err != nil {
		return nil, err
	}
	defer w.abort()
	var head []byte
	p := pace{limit: m.builds}
	for ; it.Valid(); it.Next() {
		p.spend(len(it.Key()) + len(it.Value()))
		for _, part := range [2][]byte{it.Key(), it.Value()} {
			head = binary.AppendUvarint(head[:0], uint64(len(part)))
			if _, err := w.Write(head); err != nil {
				return nil, err
			}
			if _, err := w.Write(part); err != nil {
				return nil, err
			}
		}
	}
	if err := it.Err(); err != nil {
		return nil, err
	}
	out.Size_, out.Checksum = w.size, w.sum.Sum32()
	return out, w.commit()
}

// writer writes a file under a temporary name until commit.
type writer struct {
	path string
	f    *os.File
	buf  *bufio.Writer
	sum  hash.Hash32
	size uint64
}

func (m *Manager) create(path string) (*writer, error) {
	f, err := os.OpenFile(path+tmpSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &writer{path: path, f: f, buf: bufio.NewWriterSize(f, 128<<10), sum: crc32.NewIEEE()},
		nil
}

func (w *writer) Write(p []byte) (int, error) {
	w.size += uint64(len(p))
	_, _ = w.sum.Write(p) // a hash never fails
	return w.buf.Write(p)
}

// commit makes the file durable under its final name; the directory is synced with the meta file.
func (w *writer) commit() error {
	f := w.f
	w.f = nil
	err := w.buf.Flush()
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(w.path + tmpSuffix)
		return err
	}
	return os.Rename(w.path+tmpSuffix, w.path)
}

func (w *writer) abort() {
	if w.f != nil {
		_ = w.f.Close()
		_ = os.Remove(w.path + tmpSuffix)
		w.f = nil
	}
}

func (m *Manager) writeMeta(prefix string, k Key, meta *rspb.SnapshotMeta) error {
	data, err := meta.Marshal()
	if err != nil {
		return err
	}
	w, err := m.create(m.path(prefix, k, ".meta"))
	if err != nil {
		return err
	}
	defer w.abort()
	// The meta file carries its own checksum in front: it decides whether the others count.
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], crc32.ChecksumIEEE(data))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	if err := w.commit(); err != nil {
		return err
	}
	return durable.SyncDir(m.dir)
}

func (m *Manager) readMeta(prefix string, k Key) (*rspb.SnapshotMeta, error) {
	data, err := os.ReadFile(m.path(prefix, k, ".meta"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	if len(data) < 4 || binary.BigEndian.Uint32(data) != crc32.ChecksumIEEE(data[4:]) {
		return nil, fmt.Errorf("%w: %s: checksum mismatch", ErrUnusable, m.path(prefix, k, ".meta"))
	}
	meta := new(rspb.SnapshotMeta)
	if err := meta.Unmarshal(data[4:]); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnusable, m.path(prefix, k, ".meta"), err)
	}
	return meta, checkMeta(meta)
}

// checkMeta refuses a list that is not exactly the known families in order, with or without those
// of expiry times: file names are built from it.
func checkMeta(meta *rspb.SnapshotMeta) error {
	if n := len(meta.GetCfFiles()); n != len(engine.CFs) && n != len(engine.AllCFs) {
		return fmt.Errorf("%w: %d column families, want %d or %d", ErrUnusable, n, len(engine.CFs),
			len(engine.AllCFs))
	}
	for i, f := range meta.CfFiles {
		if f.GetCf() != string(engine.AllCFs[i]) {
			return fmt.Errorf("%w: column family %q, want %q", ErrUnusable, f.GetCf(),
				engine.AllCFs[i])
		}
	}
	return nil
}

// OpenBuilt opens a built snapshot for sending: a stream of its files' bytes in order. Close ends
// the use.
func (m *Manager) OpenBuilt(k Key, meta *rspb.SnapshotMeta) (io.ReadCloser, error) {
	if err := checkMeta(meta); err != nil {
		return nil, err
	}
	release := m.use(prefixBuilt + "_" + k.String())
	r := &sendReader{m: m, release: release}
	m.sending.Add(1)
	var parts []io.Reader
	for _, f := range meta.CfFiles {
		if f.Size_ == 0 {
			continue
		}
		file, err := os.Open(m.cfPath(prefixBuilt, k, f.Cf))
		if err != nil {
			_ = r.Close()
			return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
		}
		r.files = append(r.files, file)
		parts = append(parts, io.LimitReader(file, int64(f.Size_)))
	}
	r.Reader = io.MultiReader(parts...)
	return r, nil
}

type sendReader struct {
	io.Reader
	m       *Manager
	files   []*os.File
	release func()
	closed  bool
}

func (r *sendReader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	for _, f := range r.files {
		_ = f.Close()
	}
	r.m.sending.Add(-1)
	r.release()
	return nil
}

// Receiver takes the bytes of a snapshot that another store sends.
type Receiver struct {
	m       *Manager
	key     Key
	meta    *rspb.SnapshotMeta
	next    int
	w       *writer
	release func()
	done    bool
}

// Receive begins the reception of a snapshot. It returns nil without error if the files are here
// already. The caller calls Close in any case.
func (m *Manager) Receive(k Key, meta *rspb.SnapshotMeta) (*Receiver, error) {
	if err := checkMeta(meta); err != nil {
		return nil, err
	}
	if m.CheckReceived(k.RegionID, k.Term, k.Index, meta) == nil {
		return nil, nil
	}
	if m.full != nil && m.full() {
		return nil, fmt.Errorf("%w: the disk is full", ErrBusy)
	}
	if m.receiving.Add(1) > m.receiveLimit {
		m.receiving.Add(-1)
		return nil, ErrBusy
	}
	name := prefixReceived + "_" + k.String()
	m.mu.Lock()
	busy := m.mu.inUse[name] > 0
	m.mu.Unlock()
	if busy {
		m.receiving.Add(-1)
		return nil, fmt.Errorf("%w: snapshot %s is being received already", ErrBusy, k)
	}
	return &Receiver{m: m, key: k, meta: meta, release: m.use(name)}, nil
}

// Write takes the next bytes, across file boundaries. More bytes than declared are an error.
func (r *Receiver) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if r.w == nil {
			for r.next < len(r.meta.CfFiles) && r.meta.CfFiles[r.next].Size_ == 0 {
				r.next++
			}
			if r.next == len(r.meta.CfFiles) {
				return 0, fmt.Errorf("%w: more bytes than declared", ErrUnusable)
			}
			w, err := r.m.create(r.m.cfPath(prefixReceived, r.key, r.meta.CfFiles[r.next].Cf))
			if err != nil {
				return 0, err
			}
			r.w = w
		}
		f := r.meta.CfFiles[r.next]
		take := min(uint64(len(p)), f.Size_-r.w.size)
		if _, err := r.w.Write(p[:take]); err != nil {
			return 0, err
		}
		p = p[take:]
		if r.w.size == f.Size_ {
			if sum := r.w.sum.Sum32(); sum != f.Checksum {
				return 0,
					fmt.Errorf("%w: %s: checksum %08x, want %08x", ErrUnusable, f.Cf, sum,
						f.Checksum)
			}
			if err := r.w.commit(); err != nil {
				return 0, err
			}
			r.w = nil
			r.next++
		}
	}
	return n, nil
}

// Finish completes the reception: all declared bytes must have come. Afterwards the snapshot is
// durable.
func (r *Receiver) Finish() error {
	for r.next < len(r.meta.CfFiles) && r.meta.CfFiles[r.next].Size_ == 0 {
		r.next++
	}
	if r.w != nil || r.next != len(r.meta.CfFiles) {
		return fmt.Errorf("%w: fewer bytes than declared", ErrUnusable)
	}
	r.done = true
	return r.m.writeMeta(prefixReceived, r.key, r.meta)
}

// Close ends the reception and removes what is incomplete. Idempotent.
func (r *Receiver) Close() {
	if r.release == nil {
		return
	}
	if r.w != nil {
		r.w.abort()
	}
	r.release()
	r.release = nil
	r.m.receiving.Add(-1)
	if !r.done {
		_ = r.m.remove(prefixReceived, r.key)
	}
}

// CheckReceived tells whether a received snapshot is complete: its meta file is the one announced
// and every file has its size. Contents are checked by Verify.
func (m *Manager) CheckReceived(regionID, term, index uint64, meta *rspb.SnapshotMeta) error {
	k := Key{regionID, term, index}
	have, err := m.readMeta(prefixReceived, k)
	if err != nil {
		return err
	}
	if err := checkMeta(meta); err != nil {
		return err
	}
	for i, f := range have.CfFiles {
		want := meta.CfFiles[i]
		if f.Size_ != want.Size_ || f.Checksum != want.Checksum {
			return fmt.Errorf("%w: another snapshot of the same name", ErrUnusable)
		}
		if f.Size_ == 0 {
			continue
		}
		st, err := os.Stat(m.cfPath(prefixReceived, k, f.Cf))
		if err != nil || st.Size() != int64(f.Size_) {
			return fmt.Errorf("%w: %s is missing or has the wrong size", ErrUnusable,
				m.cfPath(prefixReceived, k, f.Cf))
		}
	}
	return nil
}

// ReceivedMeta returns the file list of a received snapshot.
func (m *Manager) ReceivedMeta(regionID, term, index uint64) (*rspb.SnapshotMeta, error) {
	return m.readMeta(prefixReceived, Key{regionID, term, index})
}

// Verify reads the received files and compares size and checksum.
func (m *Manager) Verify(k Key, meta *rspb.SnapshotMeta) error {
	return m.verify(prefixReceived, k, meta)
}

// CheckBuilt is called after a built snapshot could not be sent: if that is because its files are
// not readable or not what they were, they are removed, so that the next attempt builds them anew
// instead of failing in the same way.
func (m *Manager) CheckBuilt(k Key, meta *rspb.SnapshotMeta) error {
	err := m.verify(prefixBuilt, k, meta)
	if err != nil {
		m.DeleteBuilt(k)
	}
	return err
}

func (m *Manager) verify(prefix string, k Key, meta *rspb.SnapshotMeta) error {
	if err := checkMeta(meta); err != nil {
		return err
	}
	for _, f := range meta.CfFiles {
		if f.Size_ == 0 {
			continue
		}
		path := m.cfPath(prefix, k, f.Cf)
		file, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnusable, err)
		}
		sum := crc32.NewIEEE()
		n, err := io.Copy(sum, file)
		_ = file.Close()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnusable, err)
		}
		if uint64(n) != f.Size_ || sum.Sum32() != f.Checksum {
			return fmt.Errorf("%w: %s: %d bytes with checksum %08x, want %d with %08x",
				ErrUnusable, path, n, sum.Sum32(), f.Size_, f.Checksum)
		}
	}
	return nil
}

// Read calls visit for every record of a received snapshot, with physical keys in order per column
// family, no faster than Pace allows. The slices are valid during the call only.
func (m *Manager) Read(k Key, meta *rspb.SnapshotMeta, visit func(key, value []byte) error) error {
	defer m.use(prefixReceived + "_" + k.String())()
	p := pace{limit: m.installs}
	paced := func(key, value []byte) error {
		p.spend(len(key) + len(value))
		return visit(key, value)
	}
	for i, f := range meta.CfFiles {
		if f.Size_ == 0 {
			continue
		}
		if err := readRecords(m.cfPath(prefixReceived, k, f.Cf), engine.AllCFs[i],
			paced); err != nil {
			return err
		}
	}
	return nil
}

func readRecords(path string, cf engine.CF, visit func(key, value []byte) error) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	defer file.Close()
	r := bufio.NewReaderSize(file, 128<<10)
	prefix := engine.DataKey(cf, nil)
	var key, value []byte
	for {
		key, err = readPart(r, key[:0])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			value, err = readPart(r, value[:0])
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
		}
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrUnusable, path, err)
		}
		if len(key) < len(prefix) || string(key[:len(prefix)]) != string(prefix) {
			return fmt.Errorf("%w: %s: key %v of another column family", ErrUnusable, path,
				redact.Key(key))
		}
		if err := visit(key, value); err != nil {
			return err
		}
	}
}

func readPart(r *bufio.Reader, buf []byte) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return buf, err
	}
	if n > maxRecord {
		return buf, fmt.Errorf("record of %d bytes", n)
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return buf, io.ErrUnexpectedEOF
	}
	return buf, nil
}

// remove deletes the files of a snapshot. What cannot be deleted costs space until GC can. The
// directory is left unsynced: nothing relies on the files' absence. What a power loss brings back
// is verified before it is used, and counts as old.
func (m *Manager) remove(prefix string, k Key) error {
	// The meta file first: without it the others do not count.
	errs := []error{os.Remove(m.path(prefix, k, ".meta"))}
	for _, cf := range engine.AllCFs {
		errs = append(errs, os.Remove(m.cfPath(prefix, k, string(cf))))
	}
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool {
		return errors.Is(err, fs.ErrNotExist)
	})...)
}

// DeleteReceived removes an installed snapshot's files.
func (m *Manager) DeleteReceived(k Key) { _ = m.remove(prefixReceived, k) }

// DeleteRegion removes all received files of a region whose peer is gone.
func (m *Manager) DeleteRegion(regionID uint64) {
	list, _ := m.list() // what cannot be listed now is left to GC
	for _, e := range list {
		if e.key.RegionID == regionID && e.prefix == prefixReceived && !m.isUsed(e.prefix, e.key) {
			_ = m.remove(e.prefix, e.key)
		}
	}
}

// DeleteBuilt removes a built snapshot that nobody is sending.
func (m *Manager) DeleteBuilt(k Key) {
	if !m.isUsed(prefixBuilt, k) {
		_ = m.remove(prefixBuilt, k)
	}
}

func (m *Manager) isUsed(prefix string, k Key) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.inUse[prefix+"_"+k.String()] > 0
}

type entry struct {
	prefix string
	key    Key
	age    time.Duration
}

func (m *Manager) list() ([]entry, error) {
	files, err := os.ReadDir(m.dir)
	if err != nil {
		return nil, err
	}
	var out []entry
	for _, f := range files {
		parts := strings.Split(strings.TrimSuffix(f.Name(), ".meta"), "_")
		if !strings.HasSuffix(f.Name(), ".meta") || len(parts) != 4 {
			continue
		}
		var nums [3]uint64
		ok := true
		for i := range nums {
			n, err := strconv.ParseUint(parts[i+1], 10, 64)
			nums[i], ok = n, ok && err == nil
		}
		info, err := f.Info()
		if !ok || err != nil {
			continue
		}
		out = append(out,
			entry{parts[0], Key{nums[0], nums[1], nums[2]}, time.Since(info.ModTime())})
	}
	return out, nil
}

// GC removes snapshots that nobody uses and that are older than maxAge.
func (m *Manager) GC(maxAge time.Duration) error {
	list, err := m.list()
	for _, e := range list {
		if e.age >= maxAge && !m.isUsed(e.prefix, e.key) {
			err = errors.Join(err, m.remove(e.prefix, e.key))
		}
	}
	return err
}
