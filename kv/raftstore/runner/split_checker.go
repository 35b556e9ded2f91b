package runner

import (
	"bytes"
	"context"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// SplitChecker measures regions and finds keys to split them at. It counts keys and values of all column
// families, also of the last region, and reports the size in every case.
type SplitChecker struct {
	engine    engine.Engine
	splitSize uint64
	maxSize   uint64
	send      Sender
	queue     chan splitTask
}

type splitTask struct {
	region   *metapb.Region
	regionID uint64
	middle   func(key []byte)
}

// NewSplitChecker makes the runner: a region of more than maxSize bytes is split after splitSize bytes.
func NewSplitChecker(e engine.Engine, splitSize, maxSize uint64, send Sender) *SplitChecker {
	return &SplitChecker{engine: e, splitSize: splitSize, maxSize: maxSize, send: send, queue: make(chan splitTask, 1024)}
}

// Check queues a measurement, answered by message.SplitChecked; false if too many wait.
func (c *SplitChecker) Check(region *metapb.Region, regionID uint64) bool {
	select {
	case c.queue <- splitTask{region: region, regionID: regionID}:
		return true
	default:
		return false
	}
}

// Middle finds a key that splits the region's data in half and passes it to done, nil if there is none.
func (c *SplitChecker) Middle(region *metapb.Region, done func(key []byte)) {
	select {
	case c.queue <- splitTask{region: region, middle: done}:
	default:
		done(nil)
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
				t.middle(nil)
			}
		default:
			return
		}
	}
}

func (c *SplitChecker) handle(t splitTask) {
	snap := c.engine.NewSnapshot()
	defer snap.Close()
	m, err := Measure(snap, t.region, c.splitSize)
	if t.middle != nil {
		var key []byte
		if err == nil && m.Size > 1 {
			if half, err := Measure(snap, t.region, m.Size/2); err == nil {
				key = half.SplitKey
			}
		}
		t.middle(key)
		return
	}
	res := &message.SplitChecked{Epoch: t.region.RegionEpoch, Size: m.Size, Keys: m.Keys, Err: err}
	if m.Size > c.maxSize {
		res.SplitKey = m.SplitKey
	}
	_ = c.send(t.regionID, res)
}

// Measurement is the size of a region, and the first user key strictly inside it at which at least
// splitSize bytes lie before; nil if there is none.
type Measurement struct {
	Size, Keys uint64
	SplitKey   []byte
}

// Measure walks the region's data in the order of user keys, merging the column families.
func Measure(snap engine.Snapshot, region *metapb.Region, splitSize uint64) (Measurement, error) {
	var m Measurement
	iters := make([]engine.Iterator, len(engine.CFs))
	for i, cf := range engine.CFs {
		iters[i] = snap.NewIterator(engine.DataKey(cf, region.StartKey), engine.DataEndKey(cf, region.EndKey))
		defer iters[i].Close()
		iters[i].First()
	}
	for {
		var least engine.Iterator
		for _, it := range iters {
			if it.Valid() && (least == nil || bytes.Compare(engine.UserKey(it.Key()), engine.UserKey(least.Key())) < 0) {
				least = it
			}
		}
		if least == nil {
			break
		}
		user := engine.UserKey(least.Key())
		if m.SplitKey == nil && m.Size >= splitSize && bytes.Compare(user, region.StartKey) > 0 {
			m.SplitKey = bytes.Clone(user)
		}
		m.Size += uint64(len(user) + len(least.Value()))
		m.Keys++
		least.Next()
	}
	for _, it := range iters {
		if err := it.Err(); err != nil {
			return Measurement{}, err
		}
	}
	return m, nil
}
