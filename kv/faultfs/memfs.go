package faultfs

import (
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sort"
	"sync"

	"github.com/tinykv/tinykv/kv/vfs"
)

// pageSize is the unit in which unsynced data reaches the disk or does not.
const pageSize = 4096

// sectorSize is the unit that is written as a whole when a page is torn.
const sectorSize = 512

// MemFS is a file system in memory. It remembers for each file what was synced, and for each
// directory which changes of names were: what a crash keeps is decided by Crash.
//
// Names in a directory change through a journal, as in every journalling file system: a crash keeps
// a prefix of the changes that were not synced. Directories are names too: what lies below one
// whose own name was not durable is gone, whatever was synced. The directories "." and "/" always
// exist.
type MemFS struct {
	ctl *Controller

	mu      sync.Mutex
	names   map[string]*inode
	durable map[string]*inode
	journal []nameChange

	disk struct {
		sync.Mutex
		space int64 // bytes left; negative: no limit
	}
}

type nameChange struct {
	dir, name string
	to        *inode // nil: removed; directory: a directory
	from      string // of a rename: the name that goes
}

// directory is the inode of every directory: it has no content, its names are in the maps.
var directory = &inode{}

// parentExists tells whether something can be made under name. The caller holds mu.
func (m *MemFS) parentExists(name string) bool { return reachable(m.names, name) }

// reachable tells whether all directories above name are in names.
func reachable(names map[string]*inode, name string) bool {
	for dir := filepath.Dir(name); dir != "." && dir != "/"; dir = filepath.Dir(dir) {
		if names[dir] != directory {
			return false
		}
	}
	return true
}

type inode struct {
	mu     sync.Mutex
	data   []byte
	synced []byte
	dirty  map[int64]bool // pages of data that differ from synced
}

var _ vfs.FS = (*MemFS)(nil)

// NewMemFS returns an empty file system whose operations pass through ctl, which may be nil.
func NewMemFS(ctl *Controller) *MemFS {
	m := &MemFS{ctl: ctl, names: map[string]*inode{}, durable: map[string]*inode{}}
	m.disk.space = -1
	return m
}

// SetSpace limits how many bytes files may still grow; negative lifts the limit.
func (m *MemFS) SetSpace(n int64) {
	m.disk.Lock()
	defer m.disk.Unlock()
	m.disk.space = n
}

// takeSpace takes n bytes, or gives them back if n is negative.
func (m *MemFS) takeSpace(n int64) error {
	m.disk.Lock()
	defer m.disk.Unlock()
	if m.disk.space < 0 {
		return nil
	}
	if n > m.disk.space {
		return ErrNoSpace
	}
	m.disk.space -= n
	return nil
}

func pathError(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// Create implements vfs.FS.
func (m *MemFS) Create(name string) (vfs.File, error) {
	if err := m.ctl.Step("fs", "create", name); err != nil {
		return nil, pathError("create", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.parentExists(name) {
		return nil, pathError("create", name, fs.ErrNotExist)
	}
	n := &inode{dirty: map[int64]bool{}}
	m.names[name] = n
	m.journal = append(m.journal, nameChange{dir: filepath.Dir(name), name: name, to: n})
	return &memFile{m, n, name}, nil
}

// Open implements vfs.FS.
func (m *MemFS) Open(name string) (vfs.File, error) {
	if err := m.ctl.StepRead("fs", "open", name); err != nil {
		return nil, pathError("open", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.names[name]
	if !ok || n == directory {
		return nil, pathError("open", name, fs.ErrNotExist)
	}
	return &memFile{m, n, name}, nil
}

// Rename implements vfs.FS.
func (m *MemFS) Rename(oldName, newName string) error {
	if err := m.ctl.Step("fs", "rename", newName); err != nil {
		return pathError("rename", oldName, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.names[oldName]
	if !ok || n == directory || !m.parentExists(newName) { // directories are not renamed here
		return pathError("rename", oldName, fs.ErrNotExist)
	}
	delete(m.names, oldName)
	m.names[newName] = n
	m.journal = append(m.journal, nameChange{filepath.Dir(newName), newName, n, oldName})
	return nil
}

// Remove implements vfs.FS.
func (m *MemFS) Remove(name string) error {
	if err := m.ctl.Step("fs", "remove", name); err != nil {
		return pathError("remove", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.names[name]
	if !ok || n == directory { // directories are not removed here
		return pathError("remove", name, fs.ErrNotExist)
	}
	delete(m.names, name)
	m.journal = append(m.journal, nameChange{dir: filepath.Dir(name), name: name})
	n.mu.Lock()
	defer n.mu.Unlock()
	return m.takeSpace(-int64(len(n.data)))
}

// List implements vfs.FS.
func (m *MemFS) List(dir string) ([]string, error) {
	if err := m.ctl.StepRead("fs", "list", dir); err != nil {
		return nil, pathError("list", dir, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name := range m.names {
		if filepath.Dir(name) == filepath.Clean(dir) {
			names = append(names, filepath.Base(name))
		}
	}
	sort.Strings(names)
	return names, nil
}

// Exists implements vfs.FS.
func (m *MemFS) Exists(dir string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir = filepath.Clean(dir)
	return dir == "." || dir == "/" || m.names[dir] == directory, nil
}

// Mkdir implements vfs.FS.
func (m *MemFS) Mkdir(dir string) error {
	dir = filepath.Clean(dir)
	if err := m.ctl.Step("fs", "mkdir", dir); err != nil {
		return pathError("mkdir", dir, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.names[dir]; ok {
		return pathError("mkdir", dir, fs.ErrExist)
	}
	if !m.parentExists(dir) {
		return pathError("mkdir", dir, fs.ErrNotExist)
	}
	m.names[dir] = directory
	m.journal = append(m.journal, nameChange{dir: filepath.Dir(dir), name: dir, to: directory})
	return nil
}

// SyncDir implements vfs.FS.
func (m *MemFS) SyncDir(dir string) error {
	if err := m.ctl.Step("fs", "syncdir", dir); err != nil {
		return pathError("sync", dir, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var rest []nameChange
	for _, c := range m.journal {
		if c.dir == filepath.Clean(dir) {
			c.apply(m.durable)
		} else {
			rest = append(rest, c)
		}
	}
	m.journal = rest
	return nil
}

func (c nameChange) apply(names map[string]*inode) {
	if c.from != "" {
		delete(names, c.from)
	}
	if c.to == nil {
		delete(names, c.name)
		return
	}
	names[c.name] = c.to
}

// Loss says what a crash does to data that was not synced.
type Loss int

const (
	// KeepAll is the death of a process: the page cache survives, and with it that it is not
	// durable.
	KeepAll Loss = iota
	// DropAll is a power loss that keeps nothing but what was synced.
	DropAll
	// Torn is a power loss that keeps each unsynced page with even chance, some of them torn, and
	// a random part of the journal.
	Torn
)

// Crash returns the file system as a crash leaves it, with a controller of its own. It does not
// change m; so one run can be crashed in several ways.
func (m *MemFS) Crash(loss Loss, rng *rand.Rand, ctl *Controller) *MemFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	if loss == KeepAll {
		return m.cloneLocked(ctl)
	}
	names := maps.Clone(m.durable)
	if loss == Torn {
		for _, c := range m.journal[:rng.IntN(len(m.journal)+1)] {
			c.apply(names)
		}
	}
	out := NewMemFS(ctl)
	sorted := make([]string, 0, len(names))
	for name, n := range names {
		switch {
		case !reachable(names, name): // its directory is gone
		case n == directory:
			out.names[name], out.durable[name] = directory, directory
		default:
			sorted = append(sorted, name)
		}
	}
	sort.Strings(sorted) // the seed decides, not the map
	// One moment for all files, also while someone writes to them: a file must not be kept from
	// before the sync of which another one tells.
	held := map[*inode]bool{}
	for _, name := range sorted {
		if n := names[name]; !held[n] {
			held[n] = true
			n.mu.Lock()
			defer n.mu.Unlock()
		}
	}
	for _, name := range sorted {
		data := names[name].survive(loss, rng)
		n := &inode{data: data, synced: append([]byte(nil), data...), dirty: map[int64]bool{}}
		out.names[name], out.durable[name] = n, n
	}
	return out
}

// cloneLocked copies everything, and what of it is not durable yet.
func (m *MemFS) cloneLocked(ctl *Controller) *MemFS {
	all := map[*inode]*inode{directory: directory}
	collect := func(n *inode) {
		if n != nil && all[n] == nil {
			n.mu.Lock() // all at once: one moment for all files
			all[n] = &inode{
				data: slices.Clone(n.data), synced: slices.Clone(n.synced),
				dirty: maps.Clone(n.dirty),
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		collect(m.names[name])
	}
	for _, name := range slices.Sorted(maps.Keys(m.durable)) {
		collect(m.durable[name])
	}
	for _, c := range m.journal {
		collect(c.to)
	}
	out := NewMemFS(ctl)
	for name, n := range m.names {
		out.names[name] = all[n]
	}
	for name, n := range m.durable {
		out.durable[name] = all[n]
	}
	for _, c := range m.journal {
		if c.to != nil {
			c.to = all[c.to]
		}
		out.journal = append(out.journal, c)
	}
	for n := range all {
		if n != directory {
			n.mu.Unlock()
		}
	}
	return out
}

// survive is what a crash keeps of a file. The caller holds mu.
func (n *inode) survive(loss Loss, rng *rand.Rand) []byte {
	if loss == DropAll {
		return append([]byte(nil), n.synced...)
	}
	out := append([]byte(nil), n.synced...)
	if len(n.data) > len(out) && rng.IntN(2) == 0 {
		// the size got there, the data perhaps
		out = append(out, make([]byte, len(n.data)-len(out))...)
	}
	pages := make([]int64, 0, len(n.dirty))
	for p := range n.dirty {
		pages = append(pages, p)
	}
	sort.Slice(pages, func(i, j int) bool { return pages[i] < pages[j] })
	for _, p := range pages {
		from, to := p*pageSize, min((p+1)*pageSize, int64(len(n.data)))
		switch rng.IntN(4) {
		case 0, 1: // lost
			continue
		case 2: // torn: some sectors of it
			to = min(to, from+int64(rng.IntN(pageSize/sectorSize))*sectorSize)
		}
		if from < to && to <= int64(len(out)) {
			copy(out[from:to], n.data[from:to])
		}
	}
	return out
}

// Corrupt changes the durable and the current content of a file, for damage tests.
func (m *MemFS) Corrupt(name string, change func(data []byte) []byte) error {
	m.mu.Lock()
	n, ok := m.names[name]
	m.mu.Unlock()
	if !ok || n == directory {
		return pathError("corrupt", name, fs.ErrNotExist)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.data = change(n.data)
	n.synced = append([]byte(nil), n.data...)
	n.dirty = map[int64]bool{}
	return nil
}

// Size of a file, for tests that damage it.
func (m *MemFS) Size(name string) int64 {
	f, err := m.Open(name)
	if err != nil {
		return 0
	}
	n, _ := f.Size()
	return n
}

type memFile struct {
	fs   *MemFS
	n    *inode
	name string
}

func (f *memFile) Name() string { return f.name }
func (f *memFile) Close() error { return nil }

func (f *memFile) Size() (int64, error) {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	return int64(len(f.n.data)), nil
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.fs.ctl.StepRead("fs", "read", f.name); err != nil {
		return 0, pathError("read", f.name, err)
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.fs.ctl.Step("fs", "write", f.name); err != nil {
		return 0, pathError("write", f.name, err)
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	end := off + int64(len(b))
	if err := f.fs.takeSpace(max(0, end-int64(len(f.n.data)))); err != nil {
		return 0, pathError("write", f.name, err)
	}
	f.n.grow(end)
	copy(f.n.data[off:], b)
	for p := off / pageSize; p*pageSize < end; p++ {
		f.n.dirty[p] = true
	}
	return len(b), nil
}

func (n *inode) grow(size int64) {
	if size > int64(len(n.data)) {
		n.data = append(n.data, make([]byte, size-int64(len(n.data)))...)
	}
}

func (f *memFile) Allocate(size int64) error {
	if err := f.fs.ctl.Step("fs", "allocate", f.name); err != nil {
		return pathError("allocate", f.name, err)
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	if err := f.fs.takeSpace(max(0, size-int64(len(f.n.data)))); err != nil {
		return pathError("allocate", f.name, err)
	}
	f.n.grow(size)
	return nil
}

func (f *memFile) Sync() error {
	if err := f.fs.ctl.Step("fs", "sync", f.name); err != nil {
		return pathError("sync", f.name, err)
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	n := f.n
	if len(n.synced) < len(n.data) {
		n.synced = append(n.synced, make([]byte, len(n.data)-len(n.synced))...)
	}
	for p := range n.dirty {
		copy(n.synced[p*pageSize:], n.data[p*pageSize:min((p+1)*pageSize, int64(len(n.data)))])
	}
	clear(n.dirty)
	return nil
}
