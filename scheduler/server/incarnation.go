package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// Each run of a store has an incarnation: the number of starts of that store, counted here and kept
// in its data directory. A directory that knows fewer than were counted is an older copy of the
// store's data. So is one whose raft log ends before what the store has reported as synced. Such a
// store must not vote: it has forgotten what it promised.
//
// Of two runs of one store, the later registers under a larger incarnation. It is refused while the
// earlier one answers at its address; else the earlier one ends when its next heartbeat is
// answered. Stores drop raft messages of an earlier incarnation than they have seen.

var (
	// ErrOldCopy refuses a store whose data is older than what it had promised.
	ErrOldCopy = errors.New("server: the store's data directory is an older copy")
	// ErrDuplicateStore refuses a run of a store of which there is another one.
	ErrDuplicateStore = errors.New("server: another run of the same store")
)

// countRun returns the incarnation for a run that registers. storeMu is held.
func (c *RaftCluster) countRun(old *core.StoreInfo, m *metapb.Store, rebuild bool) (uint64, error) {
	if old == nil {
		return m.GetIncarnation() + 1, nil
	}
	known := old.Meta()
	switch {
	case m.GetRun() == 0:
		return known.GetIncarnation(), nil // a store that does not count
	case m.GetRun() == known.GetRun():
		return known.GetIncarnation(), nil // it asks again
	case rebuild:
	case m.GetIncarnation() < known.GetIncarnation():
		return 0,
			fmt.Errorf(
				"%w: it was last started as incarnation %d, but store %d has been started %d times",
				ErrOldCopy, m.GetIncarnation(), m.GetId(), known.GetIncarnation())
	case m.GetLogSequence() < c.sequences.of(known):
		return 0,
			fmt.Errorf("%w: its raft log ends at record %d, but store %d had reported %d as synced",
				ErrOldCopy, m.GetLogSequence(), m.GetId(), c.sequences.of(known))
	}
	return max(known.GetIncarnation(), m.GetIncarnation()) + 1, nil
}

// sequences are how far the stores' raft logs were synced when they last said so. Safe for
// concurrent use.
type sequences struct {
	mu   sync.Mutex
	last map[uint64]uint64
}

// of is the sequence that a store has promised: in its last heartbeat, or when its run began.
func (q *sequences) of(m *metapb.Store) uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if seq, ok := q.last[m.GetId()]; ok {
		return seq
	}
	return m.GetLogSequence()
}

func (q *sequences) set(storeID, seq uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.last == nil {
		q.last = map[uint64]uint64{}
	}
	q.last[storeID] = seq
}

// all is a copy.
func (q *sequences) all() map[uint64]uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return maps.Clone(q.last)
}

// replace takes over what the leader before knew.
func (q *sequences) replace(last map[uint64]uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last = maps.Clone(last)
}

// refuseDuplicate asks the store that is registered, if it is another run of the same store at
// another address: if that one answers, the newcomer runs on a copy of its data directory.
func (s *Server) refuseDuplicate(ctx context.Context, m *metapb.Store) error {
	old := s.cluster.Core().Store(m.GetId())
	if old == nil || m.GetRun() == 0 || old.Meta().GetRun() == 0 ||
		old.Meta().GetRun() == m.GetRun() ||
		old.Address() == m.GetAddress() || old.IsTombstone() {
		return nil
	}
	if _, err := s.callBack(ctx, old.Meta()); err != nil {
		return nil //nolint:nilerr // it is not there any more
	}
	return fmt.Errorf(
		"%w: store %d is running at %s; what is to be started at %s is a copy of its data directory. "+
			"Start with an empty one to add a store", ErrDuplicateStore, m.GetId(), old.Address(),
		m.GetAddress())
}
