package node

import (
	"context"
	"io/fs"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spaceGuard watches the space that the store has: what is free on the disk under the data directory,
// and, if a capacity is configured, what the data directory leaves of it. Below the reserve the store
// refuses writes that need space, long before an engine would meet a full disk.
type spaceGuard struct {
	path     string
	reserve  uint64
	capacity uint64 // 0: the whole disk
	total    atomic.Uint64
	free     atomic.Uint64
}

func newSpaceGuard(path string, reserve, capacity uint64) *spaceGuard {
	g := &spaceGuard{path: path, reserve: reserve, capacity: capacity}
	g.measure()
	return g
}

func (g *spaceGuard) measure() {
	var st unix.Statfs_t
	if unix.Statfs(g.path, &st) != nil {
		return
	}
	total, free := st.Blocks*uint64(st.Bsize), st.Bavail*uint64(st.Bsize)
	if g.capacity > 0 {
		total = min(total, g.capacity)
		free = min(free, total-min(total, allocated(g.path)))
	}
	g.total.Store(total)
	g.free.Store(free)
}

// allocated is the space that the files under dir take on the disk, in bytes. Files that vanish
// meanwhile do not count.
func allocated(dir string) uint64 {
	var sum uint64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += uint64(st.Blocks) * 512
			}
		}
		return nil
	})
	return sum
}

func (g *spaceGuard) disk() (total, free uint64) { return g.total.Load(), g.free.Load() }

// full applies the reserve, but never more than a twentieth of a small disk.
func (g *spaceGuard) full() bool {
	reserve := min(g.reserve, g.total.Load()/20)
	return g.total.Load() > 0 && g.free.Load() < reserve
}

// watch tells set about the state every second until ctx ends.
func (g *spaceGuard) watch(ctx context.Context, set func(full bool)) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		g.measure()
		set(g.full())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
