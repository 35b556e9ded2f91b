package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/vfs"
	"github.com/tinykv/tinykv/pkg/goruntime"
)

// spaceGuard watches the space that the store has: what is free on the disk under the data
// directory, bytes and inodes, and, if a capacity is configured, what the data directory leaves of
// it. Below the reserve the store refuses writes that need space, long before an engine would meet
// a full disk.
//
// It measures each second, because others use the disk too, and after each spaceStep bytes that the
// raft log writes: all data passes there first, and a fast disk takes hundreds of MiB a second.
// Safe for concurrent use.
type spaceGuard struct {
	path string
	opts spaceOptions

	statfs func(path string, st *unix.Statfs_t) error // unix.Statfs

	wake  chan struct{} // for a measurement soon
	spent atomic.Int64  // bytes since the last one

	// mu is held over a measurement, so that an earlier one never replaces a later one.
	mu     sync.Mutex
	isFull atomic.Bool
	// Of the capacity, if there is one; diskTotal is of the disk.
	total, free, diskTotal atomic.Uint64
	onChange               func(full bool)
	isLow                  atomic.Bool // see critical
}

// spaceOptions are what the reserve is made of.
type spaceOptions struct {
	reserve  uint64 // configured
	capacity uint64 // of the store, 0: the whole disk
	need     uint64 // what flushes, compactions, the raft log and a start take at most
}

// spaceState is one measurement.
type spaceState struct {
	total, free        uint64 // of the disk
	inodes, freeInodes uint64 // total 0: the file system does not count them
	capTotal, capFree  uint64 // of the capacity; the disk's without one
}

const (
	// spaceStep is how much the raft log writes between two measurements. The same bytes go to the
	// engine's log, a flush and compactions, which the reserve covers many times over.
	spaceStep = 2 << 20
	// inodeReserve is the number of files that flushes, compactions, rotations and snapshots may
	// need.
	inodeReserve = 256
	// compactionRoom is how much a compaction writes before it removes its inputs.
	compactionRoom = 64 << 20
)

// spaceNeed is the space in which a store of this configuration can go on without writes, stop, and
// start: the engine's logs of four memtables and what their flushes write, a compaction, and two
// segments of the raft log, the next one and one into which live entries are moved.
func spaceNeed(cfg *config.Config) uint64 {
	return 2*4*uint64(cfg.Storage.MemTable) + compactionRoom + 2*uint64(cfg.RaftLog.SegmentSize)
}

// sized is the configuration with the engine's sizes that follow from this machine.
func sized(cfg *config.Config) *config.Config {
	out := *cfg
	disk := diskOf(cfg.DataDir)
	if capacity := uint64(cfg.Storage.Capacity); capacity > 0 {
		disk = min(disk, capacity)
	}
	out.Storage.Fit(goruntime.Memory(), disk)
	return &out
}

// diskOf is the size of the disk that has a directory, or will have it; 0 if it cannot be measured,
// of which the space guard will tell.
func diskOf(dir string) uint64 {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return 0
	}
	for {
		var st unix.Statfs_t
		err := ignoringEINTR(func() error { return unix.Statfs(dir, &st) })
		switch parent := filepath.Dir(dir); {
		case err == nil:
			return st.Blocks * uint64(st.Bsize)
		case !errors.Is(err, fs.ErrNotExist) || parent == dir:
			return 0
		default:
			dir = parent
		}
	}
}

func newSpaceGuard(path string, o spaceOptions) (*spaceGuard, error) {
	g := &spaceGuard{
		path: path, opts: o, statfs: unix.Statfs, wake: make(chan struct{}, 1),
		onChange: func(bool) {},
	}
	return g, g.measure()
}

// measure looks at the disk. A file system that cannot be asked is as broken as one that cannot be
// written.
func (g *spaceGuard) measure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return g.statfs(g.path, &st) }); err != nil {
		return fmt.Errorf("measure the disk under %s: %w", g.path, err)
	}
	block := uint64(st.Bsize)
	s := spaceState{
		total: st.Blocks * block, free: st.Bavail * block, inodes: st.Files, freeInodes: st.Ffree,
	}
	s.capTotal, s.capFree = s.total, s.free
	if g.opts.capacity > 0 {
		used, err := allocated(g.path)
		if err != nil {
			return fmt.Errorf("measure %s: %w", g.path, err)
		}
		s.capTotal = min(s.total, g.opts.capacity)
		s.capFree = min(s.free, s.capTotal-min(s.capTotal, used))
	}
	g.diskTotal.Store(s.total)
	g.total.Store(s.capTotal)
	g.free.Store(s.capFree)
	g.isLow.Store(s.free < min(g.opts.need, s.total/2)/2)
	full := g.opts.full(s, g.isFull.Load())
	if g.isFull.Swap(full) != full {
		g.onChange(full)
	}
	return nil
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// full applies the reserve. The configured one counts for at most a twentieth of a small disk or
// capacity; what the store needs, which is about the disk itself, for at most half of it. Once
// full, an eighth more must be free, so that writes do not stop and go.
func (o spaceOptions) full(s spaceState, was bool) bool {
	if s.total == 0 {
		return false // a file system without a size
	}
	more := func(n uint64) uint64 {
		if was {
			n += n / 8
		}
		return n
	}
	return s.capFree < more(min(o.reserve, s.capTotal/20)) ||
		s.free < more(min(o.need, s.total/2)) ||
		s.inodes > 0 && s.freeInodes < more(min(inodeReserve, s.inodes/2))
}

// allocated is the space that the files under dir take on the disk, in bytes. Files that vanish
// meanwhile do not count.
func allocated(dir string) (uint64, error) {
	var sum uint64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
			sum += uint64(st.Blocks) * 512
		}
		return nil
	})
	return sum, err
}

func (g *spaceGuard) disk() (total, free uint64) { return g.total.Load(), g.free.Load() }
func (g *spaceGuard) full() bool                 { return g.isFull.Load() }

// critical tells that half of what the store needs to go on is used up, though it refuses writes:
// others fill the disk, or leaders on larger disks send what they accept.
func (g *spaceGuard) critical() bool { return g.isLow.Load() }

// tooSmall tells whether the disk is so small that the store's needs were cut.
func (g *spaceGuard) tooSmall() bool {
	total := g.diskTotal.Load()
	return total > 0 && total/2 < g.opts.need
}

// wrote accounts for bytes that were written. Every spaceStep it measures before the writer goes
// on; with a capacity, where measuring takes longer, it asks watch to.
func (g *spaceGuard) wrote(n int64) error {
	if g.spent.Add(n) < spaceStep {
		return nil
	}
	g.spent.Store(0)
	if g.opts.capacity == 0 {
		return g.measure()
	}
	select {
	case g.wake <- struct{}{}:
	default:
	}
	return nil
}

// watch tells set about the state now and at each change until ctx ends, and relieve once in a
// while as long as the disk is full. It returns the error of a measurement.
func (g *spaceGuard) watch(ctx context.Context, set func(full bool), relieve func()) error {
	g.mu.Lock()
	g.onChange = set
	set(g.isFull.Load())
	g.mu.Unlock()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for n := 0; ; n++ {
		if err := g.measure(); err != nil {
			return err
		}
		if g.full() && n%relieveTicks == 0 {
			relieve()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-g.wake:
		}
	}
}

// relieveTicks is how many seconds lie between two calls of relieve.
const relieveTicks = 3

// counting is the raft log's file system; it tells the guard what is written.
type counting struct {
	vfs.FS
	g *spaceGuard
}

func (c counting) Create(name string) (vfs.File, error) { return c.wrap(c.FS.Create(name)) }
func (c counting) Open(name string) (vfs.File, error)   { return c.wrap(c.FS.Open(name)) }

func (c counting) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return countingFile{f, c.g}, nil
}

type countingFile struct {
	vfs.File
	g *spaceGuard
}

func (f countingFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	if err == nil {
		err = f.g.wrote(int64(n))
	}
	return n, err
}
