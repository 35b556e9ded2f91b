package raftlog

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// entCache holds a region's most recent entries, contiguous up to its last one, or none.
//
// Entries are handed out as parts of ents. So an element that was ever filled is never written
// again: a dropped tail means a new array, a dropped front is only sliced off.
type entCache struct {
	ents    []eraftpb.Entry
	dropped int // elements of the array in front of ents
}

// entMemory is what a cached entry takes beside its payload.
const entMemory = 64

func cacheCost(e *eraftpb.Entry) int64 { return int64(len(e.Data)) + entMemory }

func (c *entCache) first() uint64 { return c.ents[0].Index }

// dropTo forgets entries up to and including index and returns the bytes this frees.
func (c *entCache) dropTo(index uint64) (freed int64) {
	n := 0
	for n < len(c.ents) && c.ents[n].Index <= index {
		freed += cacheCost(&c.ents[n])
		n++
	}
	if n == 0 {
		return 0
	}
	c.ents = c.ents[n:]
	if c.dropped += n; c.dropped > len(c.ents)+8 {
		// The array holds on to the payloads of what was dropped: let go of it.
		c.ents, c.dropped = slices.Clone(c.ents), 0
	}
	if len(c.ents) == 0 {
		c.ents, c.dropped = nil, 0
	}
	return freed
}

// dropFrom forgets entries with an index of from or more and returns the bytes this frees.
func (c *entCache) dropFrom(from uint64) (freed int64) {
	if len(c.ents) == 0 || from > c.ents[len(c.ents)-1].Index {
		return 0
	}
	n := 0
	if from > c.first() {
		n = int(from - c.first())
	}
	for i := n; i < len(c.ents); i++ {
		freed += cacheCost(&c.ents[i])
	}
	c.ents, c.dropped = slices.Clone(c.ents[:n]), 0
	return freed
}

// cacheBudget bounds the cached payloads of all regions: what came first goes first.
type cacheBudget struct {
	limit int64
	used  atomic.Int64
	mu    struct {
		sync.Mutex
		fifo []cacheItem
		head int
	}
}

// cacheItem stands for one append: when it is evicted, r forgets its entries up to hi.
type cacheItem struct {
	r  *region
	hi uint64
}

// maxCacheItems bounds the queue itself, in case the payloads are tiny or gone already.
const maxCacheItems = 1 << 15

// add caches entries, whose payloads it shares. The caller holds r.mu and has dropped what they
// replace.
func (c *cacheBudget) add(r *region, ents []eraftpb.Entry) {
	total := int64(0)
	for i := range ents {
		total += cacheCost(&ents[i])
	}
	if total > c.limit {
		// They would push out everything else and themselves. What precedes them goes too: the
		// cache has no holes.
		c.used.Add(-r.cache.dropFrom(0))
		return
	}
	r.cache.ents = append(r.cache.ents, ents...)
	c.used.Add(total)
	c.mu.Lock()
	c.mu.fifo = append(c.mu.fifo, cacheItem{r, ents[len(ents)-1].Index})
	c.mu.Unlock()
}

// TrimCache forgets a region's cached entries up to and including index. They can still be read,
// from the disk: for those that nobody is expected to need again.
func (l *Log) TrimCache(regionID, index uint64) {
	r := l.region(regionID)
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l.cache.used.Add(-r.cache.dropTo(index))
}

// evict brings the cache back within its limit. The caller holds no region's lock.
func (c *cacheBudget) evict() {
	for range 1 << 20 {
		item, over, ok := c.head()
		if !ok {
			return
		}
		if !over && !item.stale() {
			return
		}
		item.r.mu.Lock()
		c.used.Add(-item.r.cache.dropTo(item.hi))
		item.r.mu.Unlock()
		c.pop()
	}
}

func (i cacheItem) stale() bool {
	i.r.mu.RLock()
	defer i.r.mu.RUnlock()
	return len(i.r.cache.ents) == 0 || i.r.cache.first() > i.hi
}

func (c *cacheBudget) head() (item cacheItem, over, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.mu.fifo) - c.mu.head
	if n == 0 {
		return cacheItem{}, false, false
	}
	return c.mu.fifo[c.mu.head], c.used.Load() > c.limit || n > maxCacheItems, true
}

func (c *cacheBudget) pop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.fifo[c.mu.head] = cacheItem{}
	c.mu.head++
	if c.mu.head == len(c.mu.fifo) {
		c.mu.fifo, c.mu.head = c.mu.fifo[:0], 0
	} else if c.mu.head > 1024 && c.mu.head*2 > len(c.mu.fifo) {
		n := copy(c.mu.fifo, c.mu.fifo[c.mu.head:])
		clear(c.mu.fifo[n:])
		c.mu.fifo, c.mu.head = c.mu.fifo[:n], 0
	}
}
