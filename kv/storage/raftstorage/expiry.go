package raftstorage

import (
	"context"
	"sync"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// Keys that expire: apply/expiry.go has what an entry does, this file what reads and proposers do.
//
// A reader's clock is its store's, or the region's expiry floor if that is ahead. A key that one
// leader has shown as expired is shown again by the next one if that one's clock is behind, and for
// no longer than it is; not after a compare-and-swap has met the key, and not after the sweep has
// come by, since the entries of both decide for all replicas.
//
// Swaps and reads under one leader are linearizable with the passing of time. A swap carries the
// time at which it began, and is decided later. A reader that goes by a later time meanwhile would
// say that a key has expired which the swap then finds. So readers go by the time of the oldest
// swap of their region that is not decided (times).

// times gives swaps and readers their times. Safe for concurrent use.
//
// Invariant: no reader has gone by a time later than that of a swap which is not decided, or has
// not begun.
type times struct {
	millis func() uint64 // never falls
	mu     struct {
		sync.Mutex
		// undecided are the swaps of a region that are under way, the oldest first; one that is
		// decided stays until the older ones are.
		undecided map[uint64][]*swapTime
	}
}

type swapTime struct {
	at      uint64
	decided bool
}

func newTimes(millis func() uint64) *times {
	t := &times{millis: millis}
	t.mu.undecided = map[uint64][]*swapTime{}
	return t
}

// begin returns the time of a swap in a region. decided is to be called once, when the swap is
// applied or will not be under this leader.
func (t *times) begin(regionID uint64) (at uint64, decided func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &swapTime{at: t.millis()}
	t.mu.undecided[regionID] = append(t.mu.undecided[regionID], s)
	return s.at, func() { t.end(regionID, s) }
}

func (t *times) end(regionID uint64, s *swapTime) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.decided = true
	list := t.mu.undecided[regionID]
	for len(list) > 0 && list[0].decided {
		list = list[1:]
	}
	if len(list) == 0 {
		delete(t.mu.undecided, regionID)
		return
	}
	t.mu.undecided[regionID] = list
}

// ofReader is the time of a read that begins now.
func (t *times) ofReader(regionID uint64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if list := t.mu.undecided[regionID]; len(list) > 0 {
		return list[0].at
	}
	return t.millis()
}

// life is how long a value lives by a TTL in seconds.
func life(now, seconds uint64) message.Life { return message.Life{Now: now, TTL: seconds * 1000} }

// getLiving is GetLocal in a region whose keys may expire: value and expiry are of one moment.
func (s *Storage) getLiving(
	local *raftstore.LocalRead, cf engine.CF, key []byte,
) (value []byte, found, ok bool, err error) {
	at := s.times.ofReader(local.Region.Id)
	snap := s.engine.NewSnapshot()
	if !local.Valid() {
		snap.Close()
		return nil, false, false, nil
	}
	v := s.view(snap, local.Region, at)
	defer v.Close()
	value, found, err = v.Get(cf, key)
	return value, found, true, err
}

// TTL implements storage.Expirer.
func (s *Storage) TTL(
	ctx context.Context, c *kvrpcpb.Context, cf engine.CF, key []byte,
) (seconds uint64, found bool, err error) {
	v, _, err := s.read(ctx, c, key)
	if err != nil {
		return 0, false, err
	}
	defer v.Close()
	return v.TTL(cf, key)
}

// send sends a write to its region. The first one with a TTL follows an entry that prepares the
// region: readers must know that its keys may expire before one can.
func (s *Storage) send(w *message.Write) {
	if !w.Expiring || s.store.MayExpire(w.Header) {
		s.store.Write(w)
		return
	}
	prepare := &message.Write{
		Header: w.Header, MinKey: w.MinKey, MaxKey: w.MinKey, Deadline: w.Deadline, Bound: w.Bound,
		Conditional: &message.Condition{Needs: feature.ConditionalOps | feature.TTL},
		Payload:     message.AppendExpire(nil, &raft_cmdpb.ExpireRequest{Now: s.store.Millis()}),
	}
	// The apply worker's report, which raises the floor for the region's peer, lies before w in the
	// peer's mailbox.
	prepare.Callback = message.NewCallbackFunc(func(r message.Result) {
		if r.Err != nil {
			w.Callback.Fail(r.Err)
			return
		}
		s.store.Write(w)
	})
	s.store.Write(prepare)
}
