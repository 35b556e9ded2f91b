package core

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/google/btree"
)

const (
	treeDegree = 64
	shardCount = 64
	inlinePos  = 5
)

// handle is a region's stable identity: the tree, the id index and the store sets all point at it,
// so that a heartbeat that does not change the range never touches the tree.
//
// Owned by RegionMap. cur may be loaded by anyone; everything else needs the map's lock.
// Invariant: head is headOf the start key of cur while the handle is in the tree.
type handle struct {
	cur  atomic.Pointer[RegionInfo]
	head uint64
	pos  [inlinePos]int32
	more *[]int32 // positions of peers beyond inlinePos
}

// posOf is where this region stands in the role set of its i-th peer's store.
func (h *handle) posOf(i int) *int32 {
	if i < inlinePos {
		return &h.pos[i]
	}
	if h.more == nil {
		h.more = new([]int32)
	}
	for len(*h.more) <= i-inlinePos {
		*h.more = append(*h.more, 0)
	}
	return &(*h.more)[i-inlinePos]
}

type role uint8

const (
	roleLeader role = iota
	roleFollower
	roleLearner
	roleCount
)

// storeSets are the regions of one store by role, with exact counters.
//
// Invariant: for every member items[k] of a role set, the handle's position for that store is k;
// sizes are the sums of the members' sizes.
type storeSets struct {
	roles   [roleCount][]*handle
	size    [roleCount]int64
	pending []*handle // few; searched linearly on removal from the end
}

type shard struct {
	sync.RWMutex
	m map[uint64]*handle
}

// RegionMap is the map of regions: by id, by range and by store.
//
// Not safe for concurrent use except for byID: the owner holds BasicCluster's lock.
// Invariant: ranges in the tree are disjoint and sorted; id index == tree == store sets.
type RegionMap struct {
	shards [shardCount]shard
	tree   *btree.BTreeG[*handle]
	sets   map[uint64]*storeSets
	count  int
	total  int64 // sum of sizes
}

func newRegionMap() *RegionMap {
	m := &RegionMap{sets: make(map[uint64]*storeSets)}
	m.tree = btree.NewG(treeDegree, before)
	for i := range m.shards {
		m.shards[i].m = make(map[uint64]*handle)
	}
	return m
}

// headOf is the first eight bytes of a key as a number: it orders most keys without a look at the
// record, which is rarely in the processor's cache. The comparison of equal heads is left to the
// keys.
func headOf(key []byte) uint64 {
	if len(key) >= 8 {
		return binary.BigEndian.Uint64(key)
	}
	var b [8]byte
	copy(b[:], key)
	return binary.BigEndian.Uint64(b[:])
}

func before(a, b *handle) bool {
	if a.head != b.head {
		return a.head < b.head
	}
	return bytes.Compare(a.cur.Load().start, b.cur.Load().start) < 0
}

// byID is safe for concurrent use.
func (m *RegionMap) byID(id uint64) *handle {
	s := &m.shards[id%shardCount]
	s.RLock()
	h := s.m[id]
	s.RUnlock()
	return h
}

func (m *RegionMap) setID(id uint64, h *handle) {
	s := &m.shards[id%shardCount]
	s.Lock()
	if h == nil {
		delete(s.m, id)
	} else {
		s.m[id] = h
	}
	s.Unlock()
}

// probe is a handle that stands for a key in searches. Probes are reused: they would be all that a
// lookup allocates.
type probe struct {
	handle handle
	info   RegionInfo
	found  *handle
}

var probes = sync.Pool{New: func() any { return &probe{} }}

func newProbe(key []byte) *probe {
	p := probes.Get().(*probe)
	p.info.start, p.handle.head = key, headOf(key)
	p.handle.cur.Store(&p.info)
	return p
}

func (p *probe) free() {
	p.info.start, p.found = nil, nil
	probes.Put(p)
}

// search returns the region whose range contains the key.
func (m *RegionMap) search(key []byte) *handle {
	p := newProbe(key)
	m.tree.DescendLessOrEqual(&p.handle, func(h *handle) bool {
		p.found = h
		return false
	})
	found := p.found
	p.free()
	if found == nil || !found.cur.Load().Contains(key) {
		return nil
	}
	return found
}

// searchPrev returns the region that ends exactly where the one containing key starts.
func (m *RegionMap) searchPrev(key []byte) *handle {
	at := m.search(key)
	if at == nil {
		return nil
	}
	start := at.cur.Load().start
	if len(start) == 0 {
		return nil
	}
	var prev *handle
	m.tree.DescendLessOrEqual(at, func(h *handle) bool {
		if h == at {
			return true
		}
		prev = h
		return false
	})
	if prev == nil || !bytes.Equal(prev.cur.Load().end, start) {
		return nil
	}
	return prev
}

// scan visits regions from the one that contains start (or the next), in key order.
func (m *RegionMap) scan(start []byte, visit func(*RegionInfo) bool) {
	p := newProbe(start)
	defer p.free()
	from := &p.handle
	if at := m.search(start); at != nil {
		from = at
	}
	m.tree.AscendGreaterOrEqual(from, func(h *handle) bool { return visit(h.cur.Load()) })
}

// overlapping returns the handles that share keys with r, apart from r's own.
func (m *RegionMap) overlapping(r *RegionInfo) []*handle {
	var out []*handle
	m.scan(r.start, func(o *RegionInfo) bool {
		if len(r.end) != 0 && bytes.Compare(o.start, r.end) >= 0 {
			return false
		}
		if o.id != r.id && overlaps(o, r) {
			out = append(out, m.byID(o.id))
		}
		return true
	})
	return out
}

// check applies the epoch rules: it returns the regions that r displaces, or ErrStale.
func (m *RegionMap) check(r *RegionInfo, old *RegionInfo) ([]*handle, error) {
	if old != nil {
		if staleAgainstSelf(r, old) {
			return nil,
				fmt.Errorf("%w: region %d v%d/c%d term %d, known is v%d/c%d term %d", ErrStale,
					r.id, r.version, r.confVer, r.term, old.version, old.confVer, old.term)
		}
		if bytes.Equal(r.start, old.start) && bytes.Equal(r.end, old.end) {
			return nil, nil
		}
	}
	// A changed range is checked like a new region: a delayed report, newer than what is known of
	// this id but older than a neighbour, must not wipe the neighbour out.
	displaced := m.overlapping(r)
	for _, h := range displaced {
		if o := h.cur.Load(); staleAgainstOverlap(r, o) {
			return nil, fmt.Errorf("%w: region %d v%d/c%d overlaps region %d v%d/c%d", ErrStale,
				r.id, r.version, r.confVer, o.id, o.version, o.confVer)
		}
	}
	return displaced, nil
}

// put replaces or inserts r after check passed.
func (m *RegionMap) put(r *RegionInfo, displaced []*handle) {
	for _, h := range displaced {
		m.remove(h)
	}
	h := m.byID(r.id)
	if h == nil {
		h = &handle{head: headOf(r.start)}
		h.cur.Store(r)
		m.setID(r.id, h)
		m.tree.ReplaceOrInsert(h)
		m.link(h, r)
		m.count++
		m.total += int64(r.size)
		return
	}
	old := h.cur.Load()
	m.total += int64(r.size) - int64(old.size)
	if sameLinks(old, r) {
		m.resize(old, r)
		h.cur.Store(r)
		return
	}
	m.unlink(h, old)
	if bytes.Equal(old.start, r.start) {
		h.cur.Store(r)
	} else {
		m.tree.Delete(h)
		h.cur.Store(r)
		h.head = headOf(r.start)
		m.tree.ReplaceOrInsert(h)
	}
	m.link(h, r)
}

func (m *RegionMap) remove(h *handle) {
	r := h.cur.Load()
	m.tree.Delete(h)
	m.setID(r.id, nil)
	m.unlink(h, r)
	m.count--
	m.total -= int64(r.size)
}

// sameLinks is true if the store sets hold the same members before and after.
func sameLinks(a, b *RegionInfo) bool {
	if a.leader != b.leader || a.pending != b.pending || len(a.peers) != len(b.peers) ||
		!bytes.Equal(a.start, b.start) {
		return false
	}
	for i := range a.peers {
		if a.peers[i] != b.peers[i] {
			return false
		}
	}
	return true
}

func (r *RegionInfo) roleOf(i int) role {
	switch {
	case r.peers[i].Learner:
		return roleLearner
	case int8(i) == r.leader:
		return roleLeader
	default:
		return roleFollower
	}
}

func (m *RegionMap) setsOf(storeID uint64) *storeSets {
	s := m.sets[storeID]
	if s == nil {
		s = &storeSets{}
		m.sets[storeID] = s
	}
	return s
}

func (m *RegionMap) resize(old, r *RegionInfo) {
	if old.size == r.size {
		return
	}
	for i := range r.peers {
		m.setsOf(r.peers[i].StoreID).size[r.roleOf(i)] += int64(r.size) - int64(old.size)
	}
}

func (m *RegionMap) link(h *handle, r *RegionInfo) {
	for i := range r.peers {
		s, ro := m.setsOf(r.peers[i].StoreID), r.roleOf(i)
		*h.posOf(i) = int32(len(s.roles[ro]))
		s.roles[ro] = append(s.roles[ro], h)
		s.size[ro] += int64(r.size)
		if r.pending&(1<<uint(i)) != 0 {
			s.pending = append(s.pending, h)
		}
	}
}

func (m *RegionMap) unlink(h *handle, r *RegionInfo) {
	for i := range r.peers {
		storeID := r.peers[i].StoreID
		s, ro := m.setsOf(storeID), r.roleOf(i)
		s.size[ro] -= int64(r.size)
		at, last := *h.posOf(i), int32(len(s.roles[ro])-1)
		moved := s.roles[ro][last]
		s.roles[ro][at], s.roles[ro][last] = moved, nil
		s.roles[ro] = s.roles[ro][:last]
		if moved != h {
			mr := moved.cur.Load()
			for j := range mr.peers {
				if mr.peers[j].StoreID == storeID {
					*moved.posOf(j) = at
				}
			}
		}
		if r.pending&(1<<uint(i)) != 0 {
			s.dropPending(h)
		}
	}
}

func (s *storeSets) dropPending(h *handle) {
	for i := len(s.pending) - 1; i >= 0; i-- {
		if s.pending[i] == h {
			s.pending[i] = s.pending[len(s.pending)-1]
			s.pending = s.pending[:len(s.pending)-1]
			return
		}
	}
}
