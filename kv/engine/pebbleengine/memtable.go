package pebbleengine

import (
	"math"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// room estimates how full the memtable is, from the safe side: with a full one a new log begins.
// That is what makes most of the writes go the short way.
type room struct {
	limit int64 // of a memtable
	size  atomic.Int64
	used  atomic.Int64
	// least and target are when to flush early: target is least until it is reached, and then what
	// the data ask for.
	least  int64
	target atomic.Int64
}

// firstMemTable is the size of pebble's first memtable; each next one is twice as large, up to the
// limit.
const firstMemTable = 256 << 10

// entryOverhead is more than an entry takes in a memtable beside its key and value, and half of
// what pebble sets aside for one before it knows.
const entryOverhead = 100

// take accounts for a batch that is about to be written, and tells whether it fits for sure. The
// margin is for those that were under way when the memtable was renewed.
func (r *room) take(b *pebble.Batch) bool {
	overhead := entryOverhead * int64(b.Count())
	size := r.size.Load()
	return r.used.Add(int64(b.Len())+overhead)+overhead < size-size/8
}

// empty tells whether nothing to speak of was written since the memtable was begun.
func (r *room) empty() bool { return r.used.Load() < 4096 }

// renew is called when a new log has begun, and with it a new memtable. One that was not filled
// tells that pebble did not make it as large as that.
func (r *room) renew() {
	used, size := r.used.Swap(0), r.size.Load()
	r.target.Store(r.least)
	switch {
	case size == 0:
		r.size.Store(min(firstMemTable, r.limit))
	case used >= size/2:
		r.size.Store(min(2*size, r.limit))
	}
}

// Large memtables spare large stores work: fewer bytes are written again. A small store gains
// nothing from them, and would hold in memory what could lie in its files. So the size at which a
// memtable is flushed grows with the data: it is Options.LeastMemTableBytes up to dataOfLeast, in
// proportion to the data above, and at most Options.MemTableBytes.
const dataOfLeast = 192 << 20

// reached tells whether the memtable has reached the size at which it may be flushed early, to one
// caller for each target. Where flushes are behind, it rather grows: many small ones would stall
// writes. But pebble lets the first ones, which are smaller, wait for each other.
func (r *room) reached(behind bool) bool {
	target := r.target.Load()
	if r.used.Load() < target || behind && r.size.Load() >= r.limit {
		return false
	}
	return r.target.CompareAndSwap(target, math.MaxInt64)
}

// flushEarly begins the flush of the memtable, if it is as large as it should become by the data
// there are.
func (d *db) flushEarly() error {
	total := d.p.Metrics().Total()
	target := targetSize(d.room.least, d.room.limit, total.AggregateSize())
	if d.room.used.Load() < target {
		// If the memtable was renewed meanwhile, this is about one more than it has to be.
		d.room.target.Store(target)
		return nil
	}
	_, err := d.p.AsyncFlush()
	return err
}

// targetSize is the size at which memtables are flushed if there are so many bytes of data.
func targetSize(least, limit int64, data int64) int64 {
	if data <= dataOfLeast {
		return least
	}
	size := float64(least) * float64(data) / dataOfLeast
	if size >= float64(limit) {
		return math.MaxInt64 // pebble does it by itself
	}
	return int64(size)
}
