package runner

import (
	"context"
	"encoding/binary"
	"sync"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/time/rate"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// maxHashes bounds the hashes that wait: each holds a snapshot of the engine.
const maxHashes = 16

// hashPaceBytes are read between two looks at the limit.
const hashPaceBytes = 64 << 10

// Hasher hashes the data of regions, one after the other, no faster than a given rate: nobody waits
// for it, and what it reads is taken from the disk that others wait for.
type Hasher struct {
	limit *rate.Limiter
	send  Sender
	wake  chan struct{}
	mu    struct {
		sync.Mutex
		tasks  []HashTask
		closed bool
	}
}

// HashTask is a region as of an entry.
type HashTask struct {
	Region  *metapb.Region
	Message message.Hashed // what is sent, without the hash
	View    engine.Snapshot
}

// NewHasher makes the runner; bytesPerSecond 0 is without limit.
func NewHasher(bytesPerSecond int64, send Sender) *Hasher {
	h := &Hasher{
		limit: rate.NewLimiter(rate.Inf, hashPaceBytes), send: send, wake: make(chan struct{}, 1),
	}
	h.Pace(bytesPerSecond)
	return h
}

// Pace changes the rate of NewHasher. A hash under way follows after the part it waits for.
func (h *Hasher) Pace(bytesPerSecond int64) {
	limit := rate.Inf
	if bytesPerSecond > 0 {
		limit = rate.Limit(bytesPerSecond)
	}
	h.limit.SetLimit(limit)
}

// Hash queues a region and takes over the view, which it closes. The result is sent as
// message.Hashed. If too many wait already, nothing is sent, and false returned.
func (h *Hasher) Hash(t HashTask) bool {
	h.mu.Lock()
	taken := !h.mu.closed && len(h.mu.tasks) < maxHashes
	if taken {
		h.mu.tasks = append(h.mu.tasks, t)
	}
	h.mu.Unlock()
	if !taken {
		t.View.Close()
		return false
	}
	select {
	case h.wake <- struct{}{}:
	default:
	}
	return true
}

// Run works until ctx ends.
func (h *Hasher) Run(ctx context.Context) {
	defer h.close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		}
		for {
			t, ok := h.next()
			if !ok {
				break
			}
			h.handle(ctx, t)
		}
	}
}

func (h *Hasher) next() (t HashTask, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.mu.tasks) == 0 {
		return t, false
	}
	t = h.mu.tasks[0]
	h.mu.tasks = h.mu.tasks[1:]
	return t, true
}

// close gives back the views of what still waits.
func (h *Hasher) close() {
	h.mu.Lock()
	tasks := h.mu.tasks
	h.mu.tasks, h.mu.closed = nil, true
	h.mu.Unlock()
	for _, t := range tasks {
		t.View.Close()
	}
}

func (h *Hasher) handle(ctx context.Context, t HashTask) {
	defer t.View.Close()
	m := t.Message
	m.Hash, m.Err = HashRegion(t.View, t.Region, func(n int) error { return h.limit.WaitN(ctx, n) })
	if ctx.Err() == nil {
		_ = h.send(t.Region.Id, &m)
	}
}

// HashRegion hashes the range and the epoch of a region, and its data in the order of the column
// families and of the keys. Replicas of the same region at the same applied index have the same
// hash. pace is called with the bytes that were read, at most hashPaceBytes at a time; its error
// ends the work.
func HashRegion(
	view engine.Snapshot, region *metapb.Region, pace func(n int) error,
) (uint64, error) {
	h := hashing{sum: xxhash.New()}
	h.add(region.StartKey)
	h.add(region.EndKey)
	h.number(region.GetRegionEpoch().GetVersion())
	h.number(region.GetRegionEpoch().GetConfVer())
	for _, cf := range engine.Families(region.ExpiryFloor > 0) {
		h.add([]byte(cf))
		if err := h.family(view, cf, region, pace); err != nil {
			return 0, err
		}
	}
	return h.sum.Sum64(), nil
}

// hashing is a hash over parts; each is preceded by its length, so that no two lists of parts are
// the same bytes.
type hashing struct {
	sum    *xxhash.Digest
	length [8]byte
	unpaid int
}

func (h *hashing) number(n uint64) {
	binary.BigEndian.PutUint64(h.length[:], n)
	_, _ = h.sum.Write(h.length[:]) // never fails
}

func (h *hashing) add(part []byte) {
	h.number(uint64(len(part)))
	_, _ = h.sum.Write(part)
	h.unpaid += len(part)
}

func (h *hashing) family(
	view engine.Snapshot, cf engine.CF, region *metapb.Region, pace func(n int) error,
) error {
	it := view.NewIterator(engine.DataKey(cf, region.StartKey),
		engine.DataEndKey(cf, region.EndKey))
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		h.add(engine.UserKey(it.Key()))
		h.add(it.Value())
		for ; h.unpaid >= hashPaceBytes; h.unpaid -= hashPaceBytes {
			if err := pace(hashPaceBytes); err != nil {
				return err
			}
		}
	}
	return it.Err()
}
