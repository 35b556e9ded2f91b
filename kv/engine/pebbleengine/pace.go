package pebbleengine

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Compactions are paced. Left alone, one takes a processor for as long as it lasts, and as all
// replicas write the same data, all stores compact at about the same time: requests wait for tens
// of milliseconds. Most of that work is not urgent. So a compaction writes at most calmRate while
// level 0 is no deeper than what starts one, twice as much for each sublevel more, and as fast as
// it can from hurryDepth on, half-way to where writes would have to stop. A flush writes as much
// while no other memtable waits for its flush: memory does, so it goes as fast as it can as soon as
// one does.
const (
	calmRate     = 32 << 20 // bytes per second
	compactDepth = 4        // sublevels of level 0 that start a compaction
	hurryDepth   = 8
	stopDepth    = 16 // sublevels at which writes stop
	// minPause keeps pauses worth a timer; what is owed below it is added to the next.
	minPause = 2 * time.Millisecond
	// lookEvery is how often a compaction looks at the depth of level 0.
	lookEvery = 50 * time.Millisecond
)

// pacer is shared by the files that compactions and flushes write. Safe for concurrent use.
type pacer struct {
	db     atomic.Pointer[pebble.DB] // nil until the engine is open
	closed chan struct{}
	// immutable counts full memtables that wait for their flush, the one being flushed too.
	immutable atomic.Int64

	mu     sync.Mutex
	looked time.Time
	depth  int
}

func newPacer() *pacer { return &pacer{closed: make(chan struct{})} }

// release lets both run at full speed from now on: Close waits for those under way.
func (p *pacer) release() { close(p.closed) }

// sublevels is the depth of level 0, at most lookEvery old.
func (p *pacer) sublevels(now time.Time) int {
	db := p.db.Load()
	if db == nil {
		return hurryDepth // the opening waits
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.looked) >= lookEvery {
		p.looked, p.depth = now, int(db.Metrics().Levels[0].Sublevels)
	}
	return p.depth
}

func (p *pacer) compactionRate(now time.Time) float64 { return paceRate(p.sublevels(now)) }

// flushRate is how many bytes a second a flush may write.
func (p *pacer) flushRate(time.Time) float64 {
	if p.db.Load() == nil || p.immutable.Load() > 1 {
		return 0 // the opening waits, or memory does
	}
	return calmRate
}

// paceRate is how many bytes a second a compaction may write; 0 is without limit.
func paceRate(sublevels int) float64 {
	if sublevels >= hurryDepth {
		return 0
	}
	return float64(int(calmRate) << max(0, sublevels-compactDepth))
}

// wait takes a pause of d, or returns early when the engine closes.
func (p *pacer) wait(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.closed:
	}
}

// pacedFS paces what compactions and flushes write.
type pacedFS struct {
	vfs.FS
	p *pacer
}

// compactionCategory is how pebble marks the files that compactions write.
const compactionCategory vfs.DiskWriteCategory = "pebble-compaction"

// flushCategory marks those that flushes write.
const flushCategory vfs.DiskWriteCategory = "pebble-memtable-flush"

func (fs pacedFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, category)
	if err == nil {
		switch category {
		case compactionCategory:
			f = &pacedFile{File: f, p: fs.p, rate: fs.p.compactionRate, since: time.Now()}
		case flushCategory:
			f = &pacedFile{File: f, p: fs.p, rate: fs.p.flushRate, since: time.Now()}
		}
	}
	return f, err
}

func (fs pacedFS) Unwrap() vfs.FS { return fs.FS }

// pacedFile is written by one goroutine.
type pacedFile struct {
	vfs.File
	p    *pacer
	rate func(now time.Time) float64 // bytes a second; 0 is without limit
	// of the last write; what the work in between took counts as pause
	since time.Time
	owed  time.Duration // pause not taken yet
}

func (f *pacedFile) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	f.pause(n)
	return n, err
}

func (f *pacedFile) pause(n int) {
	now := time.Now()
	rate := f.rate(now)
	if rate == 0 {
		f.since, f.owed = now, 0
		return
	}
	f.owed = owe(f.owed, now.Sub(f.since), n, rate)
	if f.owed >= minPause {
		f.p.wait(f.owed)
		f.owed, now = 0, time.Now()
	}
	f.since = now
}

// owe is the pause that is due after n more bytes, which took the given time.
func owe(owed, took time.Duration, n int, rate float64) time.Duration {
	return max(0, owed+time.Duration(float64(n)/rate*float64(time.Second))-took)
}
