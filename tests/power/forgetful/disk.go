// Package forgetful is a file system for tests that forgets what was not synced, for real
// processes: it lives in this process's memory and is mounted through FUSE.
//
// A file's content is durable after fsync or fdatasync of the file, and a name, of a file or of a
// directory, after fsync of the directory that holds it: no more than POSIX promises. Lose takes
// the rest away: what lies below a name that was not durable is gone, whatever was synced in it.
//
// The life of a power loss: PowerOff ends everything at one moment, as every later change or sync
// fails; the test kills the processes; Unmount drops the kernel's page cache; Lose; Mount again.
package forgetful

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"time"
)

const pageSize = 4096

// Disk is the content of a file system and what of it is durable. Safe for concurrent use.
type Disk struct {
	mu     sync.Mutex
	root   *item
	nextID uint64
	off    bool
	syncs  int
}

// item is a file or a directory. Guarded by Disk.mu.
type item struct {
	id    uint64
	mode  uint32
	mtime time.Time
	// Of a directory.
	names, durable map[string]*item
	// Of a file: its content, how long the durable one is, and the old content of each durable page
	// that has been written since the last sync.
	data   []byte
	synced int64
	undo   map[int64][]byte
}

// Lost counts what Lose has taken away.
type Lost struct {
	Names, Files int // files: that lost bytes
	Bytes        int64
}

// Add adds what another loss took.
func (l *Lost) Add(o Lost) { l.Names += o.Names; l.Files += o.Files; l.Bytes += o.Bytes }

func (l Lost) String() string {
	return fmt.Sprintf("%d names and %d bytes of %d files", l.Names, l.Bytes, l.Files)
}

// New returns an empty file system.
func New() *Disk {
	d := &Disk{}
	d.root = d.newItem(syscall.S_IFDIR | 0o755)
	return d
}

func (d *Disk) newItem(mode uint32) *item {
	d.nextID++
	it := &item{id: d.nextID, mode: mode, mtime: time.Now()}
	if mode&syscall.S_IFMT == syscall.S_IFDIR {
		it.names, it.durable = map[string]*item{}, map[string]*item{}
	} else {
		it.undo = map[int64][]byte{}
	}
	return it
}

func (it *item) isDir() bool { return it.names != nil }

// PowerOff makes every change and every sync from now on fail with EIO.
func (d *Disk) PowerOff() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
}

// Syncs counts the syncs of files and directories so far.
func (d *Disk) Syncs() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncs
}

// SyncAll makes everything durable.
func (d *Disk) SyncAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.root.walk(func(it *item) { it.sync() })
}

func (it *item) walk(f func(*item)) {
	f(it)
	for _, name := range slices.Sorted(maps.Keys(it.names)) {
		it.names[name].walk(f)
	}
}

func (it *item) sync() {
	if it.isDir() {
		it.durable = maps.Clone(it.names)
		return
	}
	it.synced = int64(len(it.data))
	clear(it.undo)
}

// Lose takes away what was not durable and turns the power on again. With a random source it keeps
// the changes of some directories and the content of some files, as a disk may; without one it
// keeps none. Nothing may be mounted.
func (d *Disk) Lose(rng *rand.Rand) Lost {
	d.mu.Lock()
	defer d.mu.Unlock()
	var lost Lost
	d.root.lose(rng, &lost)
	d.off = false
	return lost
}

func (it *item) lose(rng *rand.Rand, lost *Lost) {
	keep := rng != nil && rng.IntN(2) == 0
	if !it.isDir() {
		if !keep {
			it.loseContent(lost)
		}
		it.sync()
		return
	}
	if !keep {
		for name, child := range it.names {
			if it.durable[name] != child {
				lost.Names++
			}
		}
		for name := range it.durable {
			if it.names[name] == nil {
				lost.Names++
			}
		}
		it.names = it.durable
	}
	it.sync()
	for _, name := range slices.Sorted(maps.Keys(it.names)) {
		it.names[name].lose(rng, lost)
	}
}

func (it *item) loseContent(lost *Lost) {
	n := max(0, int64(len(it.data))-it.synced)
	it.resize(it.synced)
	for page, old := range it.undo {
		n += int64(len(old))
		copy(it.data[page*pageSize:], old)
	}
	if n > 0 {
		lost.Files++
		lost.Bytes += n
	}
}

// remember keeps the durable content of the pages in [from, to) before they change.
func (it *item) remember(from, to int64) {
	for page := from / pageSize; page*pageSize < min(to, it.synced); page++ {
		if _, ok := it.undo[page]; ok {
			continue
		}
		old := make([]byte, min(pageSize, it.synced-page*pageSize))
		if page*pageSize < int64(len(it.data)) {
			copy(old, it.data[page*pageSize:])
		}
		it.undo[page] = old
	}
}

func (it *item) resize(size int64) {
	if have := int64(len(it.data)); size > have {
		it.data = append(it.data, make([]byte, size-have)...)
	} else {
		clear(it.data[size:]) // what is appended later begins with zeros
		it.data = it.data[:size]
	}
}

func (it *item) write(data []byte, off int64) {
	end := off + int64(len(data))
	it.remember(off, end)
	if end > int64(len(it.data)) {
		it.resize(end)
	}
	copy(it.data[off:], data)
	it.mtime = time.Now()
}

func (it *item) truncate(size int64) {
	it.remember(size, it.synced)
	it.resize(size)
	it.mtime = time.Now()
}
