package runner

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// SplitChecker measures regions and finds keys to split them at. It counts keys and values of all
// column families, also of the last region, and reports the size in every case.
//
// To count, it has to read the region. If values are overwritten, which looks like growth, it would
// do so again and again. So it leaves it at an estimate if there cannot be enough to split, by what
// was written since the last count or by what the region has on disk.
type SplitChecker struct {
	engine engine.Engine
	sizes  atomic.Pointer[splitSizes]
	send   Sender
	queue  chan splitTask
	// encoded: regions may only be split between the keys of transactions.
	encoded bool
}

// splitSizes change together: split is at most max.
type splitSizes struct{ split, max uint64 }

type splitTask struct {
	Check
	middle func(key []byte, err error)
}

// Check asks for the size of a region.
type Check struct {
	Region   *metapb.Region
	RegionID uint64
	// Guess is what the region should have by what was written to it: too much, if values were
	// overwritten.
	Guess message.RegionSize
	// Last is what it had when it was counted last; zero to have it counted in any case.
	Last message.Counted
	// Fits: there is no need to count, whatever is on disk.
	Fits bool
}

// NewSplitChecker makes the runner: a region of more than maxSize bytes is split after splitSize
// bytes.
func NewSplitChecker(e engine.Engine, splitSize, maxSize uint64, send Sender) *SplitChecker {
	c := &SplitChecker{engine: e, send: send, queue: make(chan splitTask, 1024)}
	c.SetSizes(splitSize, maxSize)
	return c
}

// SetSizes changes the sizes of NewSplitChecker, from the next measurement on.
func (c *SplitChecker) SetSizes(splitSize, maxSize uint64) {
	c.sizes.Store(&splitSizes{splitSize, maxSize})
}

// SplitBetweenKeys has regions split where an encoded key begins, so that all its versions stay
// together. To be called before Run.
func (c *SplitChecker) SplitBetweenKeys() { c.encoded = true }

// Check queues a measurement, answered by message.SplitChecked; false if too many wait.
func (c *SplitChecker) Check(check Check) bool {
	select {
	case c.queue <- splitTask{Check: check}:
		return true
	default:
		return false
	}
}

// ErrBusy is passed by Middle: too many measurements wait, or the store is stopping.
var ErrBusy = errors.New("runner: no time to measure")

// Middle finds a key that splits the region's data in half and passes it to done, nil if there is
// none.
func (c *SplitChecker) Middle(region *metapb.Region, done func(key []byte, err error)) {
	select {
	case c.queue <- splitTask{Check: Check{Region: region}, middle: done}:
	default:
		done(nil, ErrBusy)
	}
}

// Run works until ctx ends.
func (c *SplitChecker) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			c.drain()
			return
		case t := <-c.queue:
			c.handle(t)
		}
	}
}

func (c *SplitChecker) drain() {
	for {
		select {
		case t := <-c.queue:
			if t.middle != nil {
				t.middle(nil, ErrBusy)
			}
		default:
			return
		}
	}
}

func (c *SplitChecker) handle(t splitTask) {
	if t.middle == nil {
		if size, ok := c.estimate(t); ok {
			_ = c.send(t.RegionID,
				&message.SplitChecked{Epoch: t.Region.RegionEpoch, RegionSize: size})
			return
		}
	}
	snap := c.engine.NewSnapshot()
	defer snap.Close()
	sizes := c.sizes.Load()
	m, err := Measure(snap, t.Region, sizes.split, c.encoded)
	if t.middle != nil {
		var half Measurement
		if err == nil && m.Size > 1 {
			half, err = Measure(snap, t.Region, m.Size/2, c.encoded)
		}
		t.middle(half.SplitKey, err)
		return
	}
	res := &message.SplitChecked{Epoch: t.Region.RegionEpoch, RegionSize: m.RegionSize, Err: err}
	if m.Size > sizes.max {
		res.SplitKey = m.SplitKey
	}
	disk, memory, _ := c.stored(t.Region)
	res.Counted = message.Counted{RegionSize: m.RegionSize, Disk: disk, Memory: memory}
	_ = c.send(t.RegionID, res)
}

// stored is how many bytes the region has on disk, and how many of all regions the engine has in
// memory only; ok is false if the engine does not tell.
func (c *SplitChecker) stored(region *metapb.Region) (disk, memory uint64, ok bool) {
	r, ok := c.engine.(engine.Reporter)
	if !ok {
		return 0, 0, false
	}
	for _, cf := range engine.Families(region.ExpiryFloor > 0) {
		n, err := c.engine.ApproximateSize(engine.DataKey(cf, region.StartKey),
			engine.DataEndKey(cf, region.EndKey))
		if err != nil {
			return 0, 0, false
		}
		disk += n
	}
	return disk, r.Stats().MemTableBytes, true
}

// estimate tells what a region about has; ok is false if it has to be counted. The most there can
// be is what is on disk and in memory, by the rate at which the last count's bytes were compressed.
func (c *SplitChecker) estimate(t splitTask) (size message.RegionSize, ok bool) {
	last := t.Last
	if last == (message.Counted{}) {
		return size, false
	}
	disk, memory, known := c.stored(t.Region)
	if !known || last.Disk == 0 {
		return t.Guess, t.Fits
	}
	most := float64(disk+memory) * max(1, float64(last.Size)/float64(last.Disk))
	if !t.Fits && most > float64(c.sizes.Load().max) {
		return size, false
	}
	grown := max(1, float64(disk+memory)/float64(last.Disk+last.Memory))
	return message.RegionSize{
		Size: min(t.Guess.Size, uint64(float64(last.Size)*grown)),
		Keys: min(t.Guess.Keys, uint64(float64(last.Keys)*grown)),
	}, true
}

// Measurement is the size of a region, and the first user key strictly inside it at which at least
// splitSize bytes lie before; nil if there is none.
type Measurement struct {
	message.RegionSize
	SplitKey []byte
}

// Measure walks the region's data in the order of user keys, merging the families. Expiry times
// count as bytes, not as keys. With encoded, the split key is where an encoded key begins, and a
// region of one key has none.
func Measure(
	snap engine.Snapshot, region *metapb.Region, splitSize uint64, encoded bool,
) (Measurement, error) {
	var m Measurement
	before := region.StartKey
	families := engine.Families(region.ExpiryFloor > 0)
	iters := make([]engine.Iterator, len(families))
	for i, cf := range families {
		iters[i] = snap.NewIterator(engine.DataKey(cf, region.StartKey),
			engine.DataEndKey(cf, region.EndKey))
		defer iters[i].Close()
		iters[i].First()
	}
	for {
		var least engine.Iterator
		counts := uint64(1)
		for i, it := range iters {
			if it.Valid() &&
				(least == nil ||
					bytes.Compare(engine.UserKey(it.Key()), engine.UserKey(least.Key())) < 0) {
				least = it
				if families[i].HoldsExpiry() {
					counts = 0 // a family of values comes first, and has the key too
				}
			}
		}
		if least == nil {
			break
		}
		user := engine.UserKey(least.Key())
		if m.Keys == 0 && encoded {
			before = bytes.Clone(user)
		}
		if m.SplitKey == nil && m.Size >= splitSize {
			m.SplitKey = splitKeyAt(user, before, encoded)
		}
		m.Size += uint64(len(user) + len(least.Value()))
		m.Keys += counts
		least.Next()
	}
	for _, it := range iters {
		if err := it.Err(); err != nil {
			return Measurement{}, err
		}
	}
	return m, nil
}

// splitKeyAt is where the region can be split, at user or before it but behind another key; nil if
// it cannot.
func splitKeyAt(user, behind []byte, encoded bool) []byte {
	if encoded {
		var ok bool
		if user, ok = memcomparable.CutTimestamp(user); !ok {
			return nil
		}
	}
	if bytes.Compare(user, behind) <= 0 {
		return nil
	}
	return bytes.Clone(user)
}
