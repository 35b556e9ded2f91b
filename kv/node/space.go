package node

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// spaceGuard watches the free space of the disk under the data directory. Below the reserve the store
// refuses writes that need space, long before an engine would meet a full disk.
type spaceGuard struct {
	path    string
	reserve uint64
	total   atomic.Uint64
	free    atomic.Uint64
}

func newSpaceGuard(path string, reserve uint64) *spaceGuard {
	g := &spaceGuard{path: path, reserve: reserve}
	g.measure()
	return g
}

func (g *spaceGuard) measure() {
	var st unix.Statfs_t
	if unix.Statfs(g.path, &st) != nil {
		return
	}
	g.total.Store(st.Blocks * uint64(st.Bsize))
	g.free.Store(st.Bavail * uint64(st.Bsize))
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
