package raftstore

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// liveness stands in for the heartbeats of regions that sleep (hibernate.go): stores that share sleeping
// regions greet each other, and a store that falls silent wakes the regions shared with it. So the cost
// of idle regions depends on the number of stores, not of regions.
type liveness struct {
	clock Clock

	mu struct {
		sync.RWMutex
		stores map[uint64]*storeLife
	}
}

// storeLife is what is known of one other store.
type storeLife struct {
	heard  atomic.Int64 // since the clock's base
	asleep atomic.Int64 // sleeping regions of this store with a peer there
	// incarnation is the newest of which a message has come.
	incarnation atomic.Uint64
}

func newLiveness(clock Clock) *liveness {
	l := &liveness{clock: clock}
	l.mu.stores = map[uint64]*storeLife{}
	return l
}

func (l *liveness) now() int64 { return int64(l.clock.Now().Sub(l.clock.Base())) }

func (l *liveness) store(id uint64) *storeLife {
	l.mu.RLock()
	s := l.mu.stores[id]
	l.mu.RUnlock()
	if s != nil {
		return s
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s = l.mu.stores[id]; s == nil {
		s = new(storeLife)
		l.mu.stores[id] = s
	}
	return s
}

// hear notes that a store has sent something. False: a later run of that store was heard before, so this message is of one
// that has ended, or runs on a copy of its data.
func (l *liveness) hear(storeID, incarnation uint64) bool {
	s := l.store(storeID)
	for incarnation > 0 {
		newest := s.incarnation.Load()
		if incarnation < newest {
			return false
		}
		if incarnation == newest || s.incarnation.CompareAndSwap(newest, incarnation) {
			break
		}
	}
	s.heard.Store(l.now())
	return true
}

// sleep and wake count the sleeping regions of a store pair. A pair that begins counts as just heard:
// nothing need have been sent between two followers before.
func (l *liveness) sleep(stores []uint64) {
	for _, id := range stores {
		s := l.store(id)
		if s.asleep.Add(1) == 1 {
			s.heard.Store(max(s.heard.Load(), l.now()))
		}
	}
}

func (l *liveness) wake(stores []uint64) {
	for _, id := range stores {
		l.store(id).asleep.Add(-1)
	}
}

// heardAt is when a store was last heard; the clock's base if never.
func (l *liveness) heardAt(storeID uint64) time.Time {
	return l.clock.Base().Add(time.Duration(l.store(storeID).heard.Load()))
}

// shared lists the stores with sleeping regions; silent are those of them not heard for the timeout.
func (l *liveness) shared(timeout time.Duration) (all, silent []uint64) {
	now := l.now()
	l.mu.RLock()
	defer l.mu.RUnlock()
	for id, s := range l.mu.stores {
		if s.asleep.Load() <= 0 {
			continue
		}
		all = append(all, id)
		if now-s.heard.Load() >= int64(timeout) {
			silent = append(silent, id)
		}
	}
	return all, silent
}

// greetings says when the other stores are greeted next. Owner: the ticker.
type greetings struct{ next time.Time }

// Greetings go out every greetTimeouts election timeouts; a store that was not heard for silenceTimeouts is
// taken for lost. A process that dies is noticed sooner, by its connections, and a request wakes the peer that
// it reaches; silence is the sign of a network that is gone.
const (
	greetTimeouts   = 2
	silenceTimeouts = 5
)

// greet greets and watches, if it is time. The ticker calls it, so that an idle store need not wake twice.
func (s *Store) greet(g *greetings) {
	timeout := s.cfg.Raftstore.ElectionTimeout()
	if !due(s.clock.Now(), &g.next, greetTimeouts*timeout) {
		return
	}
	all, silent := s.live.shared(silenceTimeouts * timeout)
	for _, id := range all {
		s.trans.Send(id, []*rspb.RaftMessage{s.greeting(id)})
	}
	for _, id := range silent {
		s.ReportStoreLost(id)
	}
}

func (s *Store) greeting(to uint64) *rspb.RaftMessage {
	return &rspb.RaftMessage{
		FromPeer: &metapb.Peer{StoreId: s.storeID}, ToPeer: &metapb.Peer{StoreId: to}, ClusterId: s.clusterID, Hibernate: true,
		Incarnation: s.incarnation,
	}
}

// isGreeting recognises what greeting makes.
func isGreeting(m *rspb.RaftMessage) bool {
	return m.RegionId == 0 && m.Hibernate && m.Message == nil && m.GetFromPeer().GetStoreId() != 0
}

// ReportStoreLost wakes the sleeping regions with a peer on a store that may be gone, and lets the
// followers of leaders there prepare to elect another one.
func (s *Store) ReportStoreLost(storeID uint64) {
	lost := &message.StoreLost{StoreID: storeID, Heard: s.live.heardAt(storeID)}
	s.router.boxes.Range(func(_, v any) bool {
		b := v.(*mailbox)
		if h := b.handle.Load(); h != nil && !b.dormant.Load() && PeerOnStore(h.region, storeID) != nil &&
			(b.asleep.Load() || h.leader.GetStoreId() == storeID) {
			_ = s.router.push(b, lost) // destroyed meanwhile
		}
		return true
	})
}
