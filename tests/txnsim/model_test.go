package txnsim

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/server"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

const stores = 3

// model is a cluster. All regions have a replica in each store.
//
// Invariant: what one store has applied of a region is the beginning of what any other has, and
// nothing of it is ever dropped; a leader serves nothing before it has applied the first entry of
// its own term.
type model struct {
	mu      sync.Mutex
	rng     *rand.Rand
	stores  [stores]*store
	regions []*region // in key order
	nextID  uint64
	ts      struct{ physical, logical int64 }
	// events tell what the history was like.
	events struct{ elections, dropped, late, local, splits, lost, restarts int }
}

// store is one life of a store. It has the data of all its replicas, like the engine of a real one.
type store struct {
	m   *model
	at  int
	mem *storage.MemStorage
	srv *server.Server
	// dead: it does and answers nothing any more.
	dead bool
}

// region is one raft group, as those know it who know everything.
type region struct {
	id, term uint64
	leader   int
	log      []entry
	// committed is how many entries are; first is the place of the first one of the term.
	committed, first int
	replicas         [stores]replica
}

// replica is a region in one store.
type replica struct {
	applied int
	// meta is the region after what is applied; nil while the split that makes it is not.
	meta *metapb.Region
	// term is the one in which this replica takes itself for the leader; 0 is none.
	term uint64
}

// entry is a write, a split or, with neither, the first one of a term.
type entry struct {
	version uint64
	mods    []storage.Modify
	split   *region
	at      []byte
	// from proposed it, and gets its outcome.
	from int
	done func(err error, known bool)
}

// now is a new timestamp.
func (m *model) now() (physical, logical int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ms := time.Now().UnixMilli(); ms > m.ts.physical {
		m.ts.physical, m.ts.logical = ms, 0
	}
	m.ts.logical++
	return m.ts.physical, m.ts.logical
}

// soonLocked has f called after a random time, mostly a short one.
func (m *model) soonLocked(f func()) { time.AfterFunc(m.drawLocked(), f) }

func (m *model) drawLocked() time.Duration {
	d := time.Duration(m.rng.IntN(2000)) * time.Microsecond
	if m.rng.IntN(10) == 0 {
		d *= 20
	}
	return d
}

func (m *model) draw() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.drawLocked()
}

func (m *model) chance(percent int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rng.IntN(100) < percent
}

// appendLocked adds an entry to a leader's log, and commits it after a while, if it is still there.
func (m *model) appendLocked(r *region, e entry) {
	r.log = append(r.log, e)
	place, term := len(r.log), r.term
	m.soonLocked(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if r.term != term {
			return // what is left of the log is the next leader's business
		}
		m.commitLocked(r, place)
	})
}

func (m *model) commitLocked(r *region, place int) {
	if place <= r.committed {
		return
	}
	r.committed = place
	for i := range stores {
		m.soonLocked(func() { m.apply(r, i, place) })
	}
}

// apply has a store carry out what is committed up to a place.
func (m *model) apply(r *region, at, place int) {
	var tell []func()
	m.mu.Lock()
	rep := &r.replicas[at]
	if rep.meta == nil {
		m.soonLocked(func() { m.apply(r, at, place) }) // after the split
	}
	for rep.meta != nil && rep.applied < place {
		e := r.log[rep.applied]
		rep.applied++
		err := m.carryOutLocked(r, rep, at, &e)
		if e.done != nil && e.from == at {
			tell = append(tell, func() { e.done(err, true) })
		}
	}
	m.mu.Unlock()
	for _, f := range tell {
		f()
	}
}

func (m *model) carryOutLocked(r *region, rep *replica, at int, e *entry) error {
	switch {
	case e.version != rep.meta.RegionEpoch.Version && (e.split != nil || e.mods != nil):
		return &regionerr.EpochNotMatchError{RegionID: r.id}
	case e.split != nil:
		right := meta(e.split.id, e.at, rep.meta.EndKey, e.version+1)
		rep.meta = meta(r.id, rep.meta.StartKey, e.at, e.version+1)
		e.split.replicas[at].meta = right
	case e.mods != nil:
		m.stores[at].mem.Storage().WriteBound(nil, storage.Bound{}, e.mods, time.Time{},
			func(error, bool) {})
	}
	return nil
}

func meta(id uint64, start, end []byte, version uint64) *metapb.Region {
	out := &metapb.Region{
		Id: id, StartKey: start, EndKey: end,
		RegionEpoch: &metapb.RegionEpoch{Version: version, ConfVer: 1},
	}
	for i := range stores {
		out.Peers = append(out.Peers, peer(id, i))
	}
	return out
}

func peer(region uint64, at int) *metapb.Peer {
	return &metapb.Peer{Id: region*10 + uint64(at), StoreId: uint64(at + 1)}
}

// elect replaces the leader of a region by a store that has all that is committed, and some of what
// is not.
func (m *model) elect(r *region, to int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.replicas[to].meta == nil {
		return
	}
	m.events.elections++
	kept := r.committed + m.rng.IntN(len(r.log)-r.committed+1)
	for _, e := range r.log[kept:] {
		m.dropLocked(e)
	}
	r.log = r.log[:kept:kept]
	old := r.leader
	r.term += 1 + uint64(m.rng.IntN(2))
	r.leader, r.first = to, kept
	r.replicas[to].term = r.term
	if term := r.replicas[old].term; old != to {
		m.soonLocked(func() { m.stepDown(r, old, term) })
	}
	m.appendLocked(r, entry{from: to})
}

// restart ends a store, and begins its next life. Nobody takes it for the leader any more.
func (m *model) restart(at int) {
	m.mu.Lock()
	old := m.stores[at]
	old.dead = true
	m.stores[at] = m.newStore(at, old.mem)
	var led []*region
	for _, r := range m.regions {
		r.replicas[at].term = 0
		if r.leader == at {
			led = append(led, r)
		}
	}
	m.events.restarts++
	m.mu.Unlock()
	for _, r := range led {
		m.mu.Lock()
		m.soonLocked(func() { m.elect(r, m.anyone()) })
		m.mu.Unlock()
	}
}

func (m *model) anyone() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rng.IntN(stores)
}

func (m *model) stepDown(r *region, at int, term uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.replicas[at].term == term {
		r.replicas[at].term = 0
	}
}

// dropLocked ends a proposal that no log has any more: its store learns that, or never does.
func (m *model) dropLocked(e entry) {
	m.events.dropped++
	if e.done != nil {
		known := m.rng.IntN(2) == 0
		m.soonLocked(func() { e.done(&regionerr.StaleCommandError{}, known) })
	}
}

// split proposes one.
func (m *model) split(r *region, at []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	lead := &r.replicas[r.leader]
	if lead.meta == nil || lead.applied <= r.first || bytes.Compare(at, lead.meta.StartKey) <= 0 ||
		len(lead.meta.EndKey) > 0 && bytes.Compare(at, lead.meta.EndKey) >= 0 {
		return
	}
	m.nextID++
	right := &region{id: m.nextID, term: 5, leader: m.rng.IntN(stores)}
	from := r.leader
	m.appendLocked(r, entry{
		version: lead.meta.RegionEpoch.Version, split: right, at: at, from: from,
		done: func(err error, _ bool) {
			if err != nil {
				return
			}
			m.mu.Lock()
			m.events.splits++
			m.regions = append(m.regions, right)
			m.mu.Unlock()
			m.elect(right, from)
		},
	})
}

// findLocked returns a region and its replica in a store, which takes itself for the leader.
func (s *store) findLocked(c *kvrpcpb.Context) (*region, *replica, error) {
	if s.dead {
		return nil, nil, errDead
	}
	m, at := s.m, s.at
	for _, r := range m.regions {
		if r.id != c.GetRegionId() {
			continue
		}
		rep := &r.replicas[at]
		switch {
		case rep.meta == nil:
			return nil, nil, &regionerr.RegionNotFoundError{RegionID: c.GetRegionId()}
		case rep.term == 0:
			return nil, nil, &regionerr.NotLeaderError{RegionID: r.id, Leader: peer(r.id, r.leader)}
		case rep.meta.RegionEpoch.Version != c.GetRegionEpoch().GetVersion():
			return nil, nil,
				&regionerr.EpochNotMatchError{RegionID: r.id, Regions: []*metapb.Region{rep.meta}}
		}
		return r, rep, nil
	}
	return nil, nil, &regionerr.RegionNotFoundError{RegionID: c.GetRegionId()}
}

var errDead = errors.New("the store is dead")

// Leadership implements storage.BoundStorage: as far as the store knows.
func (s *store) Leadership(c *kvrpcpb.Context) (uint64, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	_, rep, err := s.findLocked(c)
	if err != nil {
		return 0, err
	}
	return rep.term, nil
}

// BoundReader implements storage.BoundStorage: it proves the leadership, waits until what was
// committed then is applied, and takes the view some time later.
func (s *store) BoundReader(
	ctx context.Context, c *kvrpcpb.Context, _ []byte,
) (storage.Reader, uint64, error) {
	for {
		s.m.mu.Lock()
		r, rep, err := s.findLocked(c)
		if err == nil && (r.leader != s.at || r.term != rep.term) {
			err = &regionerr.NotLeaderError{RegionID: r.id, Leader: peer(r.id, r.leader)}
		}
		if err != nil {
			s.m.mu.Unlock()
			return nil, 0, err
		}
		term, ready := rep.term, rep.applied > r.first && rep.applied >= r.committed
		s.m.mu.Unlock()
		if ready {
			return s.view(c, r, term)
		}
		time.Sleep(time.Millisecond) // virtual
		if ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
	}
}

func (s *store) view(c *kvrpcpb.Context, r *region, term uint64) (storage.Reader, uint64, error) {
	if s.m.chance(30) {
		time.Sleep(s.m.draw())
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if r.term != term {
		s.m.events.late++
	}
	if s.dead {
		return nil, 0, errDead
	}
	now := r.replicas[s.at].meta
	if now.RegionEpoch.Version != c.GetRegionEpoch().GetVersion() {
		return nil, 0, &regionerr.EpochNotMatchError{RegionID: r.id, Regions: []*metapb.Region{now}}
	}
	view, err := s.mem.Reader(nil)
	if err != nil {
		return nil, 0, err
	}
	return clipped{view, now}, term, nil
}

// clipped shows the range of a region.
type clipped struct {
	storage.Reader
	meta *metapb.Region
}

func (c clipped) Range() (start, end []byte) { return c.meta.StartKey, c.meta.EndKey }

func (c clipped) Iterate(cf engine.CF, lower, upper []byte) storage.Iterator {
	if bytes.Compare(lower, c.meta.StartKey) < 0 {
		lower = c.meta.StartKey
	}
	if end := c.meta.EndKey; len(upper) == 0 || len(end) > 0 && bytes.Compare(upper, end) > 0 {
		upper = end
	}
	if len(upper) == 0 {
		upper = nil
	}
	return c.Reader.Iterate(cf, lower, upper)
}

// ReadLocal implements storage.LocalReader. The lease holds as long as the store leads.
func (s *store) ReadLocal(c *kvrpcpb.Context, _ []byte) (storage.LocalRead, bool, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	r, rep, err := s.findLocked(c)
	if err != nil {
		return storage.LocalRead{}, true, err
	}
	term, meta := rep.term, rep.meta
	leads := func() bool { return !s.dead && r.leader == s.at && r.term == term }
	if !leads() || rep.applied <= r.first {
		return storage.LocalRead{}, false, nil
	}
	s.m.events.local++
	return storage.LocalRead{Reader: latest{s, meta}, Term: term, Valid: func() bool {
		s.m.mu.Lock()
		defer s.m.mu.Unlock()
		now := r.replicas[s.at].meta
		return leads() && now != nil && now.RegionEpoch.Version == meta.RegionEpoch.Version
	}}, true, nil
}

// latest shows, at each call, what the store has some time after it.
type latest struct {
	s    *store
	meta *metapb.Region
}

func (l latest) now() storage.Reader {
	if l.s.m.chance(30) {
		time.Sleep(l.s.m.draw())
	}
	view, err := l.s.mem.Reader(nil)
	if err != nil {
		panic(err) // it is in memory
	}
	return clipped{view, l.meta}
}

func (l latest) Range() (start, end []byte) { return l.meta.StartKey, l.meta.EndKey }

func (l latest) Get(cf engine.CF, key []byte) ([]byte, bool, error) { return l.now().Get(cf, key) }

func (l latest) Iterate(cf engine.CF, lower, upper []byte) storage.Iterator {
	return l.now().Iterate(cf, lower, upper)
}

func (l latest) Close() {}

// Reader implements storage.Storage.
func (s *store) Reader(
	ctx context.Context, c *kvrpcpb.Context, key []byte,
) (storage.Reader, error) {
	r, _, err := s.BoundReader(ctx, c, key)
	return r, err
}

// WriteBound implements storage.BoundStorage. A store that takes itself for the leader, and is not,
// has an entry that is dropped.
func (s *store) WriteBound(
	c *kvrpcpb.Context, b storage.Bound, mods []storage.Modify, _ time.Time,
	done func(err error, known bool),
) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	r, rep, err := s.findLocked(c)
	if err == nil && rep.term != b.Term {
		err = &regionerr.StaleCommandError{}
	}
	e := entry{version: c.GetRegionEpoch().GetVersion(), mods: mods, from: s.at, done: done}
	switch {
	case err != nil:
		s.m.soonLocked(func() { done(err, true) })
	case r.leader != s.at || r.term != rep.term:
		s.m.dropLocked(e)
	default:
		s.m.appendLocked(r, e)
	}
}

// Get and Write are of raw keys.
func (s *store) Get(context.Context, *kvrpcpb.Context, engine.CF, []byte) ([]byte, bool, error) {
	return nil, false, regionerr.Invalidf("no raw keys")
}

// Write implements storage.Storage.
func (s *store) Write(context.Context, *kvrpcpb.Context, []storage.Modify) (uint64, error) {
	return 0, regionerr.Invalidf("no raw keys")
}
