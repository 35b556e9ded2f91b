package client

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/btree"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/client"
)

// Placement is what routing needs of the placement service.
type Placement interface {
	GetRegion(ctx context.Context, key []byte) (*client.Region, error)
	GetStore(ctx context.Context, id uint64) (*metapb.Store, error)
	ScanRegions(ctx context.Context, start, end []byte, limit int) ([]*client.Region, error)
}

// cachedRegion is a region as it was last seen, with the peer to try first. Immutable but for
// position.
type cachedRegion struct {
	meta   *metapb.Region
	leader *metapb.Peer
	// doubted: the peer that was asked does not have the region. The placement service is asked for
	// a better route first; while it does not answer, the other peers are tried.
	doubted bool
	// failed is the peer that was asked when the doubt arose.
	failed uint64
	// via is a store that can pass requests on to the leader's, which this client could not reach;
	// 0 if there is none.
	via uint64
	// position is the largest index of the region's log that is known to be committed. It belongs
	// to the region's id and is shared by all its versions.
	position *atomic.Uint64
}

func (r *cachedRegion) contains(key []byte) bool {
	return bytes.Compare(key, r.meta.StartKey) >= 0 &&
		(len(r.meta.EndKey) == 0 || bytes.Compare(key, r.meta.EndKey) < 0)
}

// nextPeer is the voter after the current one, in the region's order. around: all have had their
// turn.
func (r *cachedRegion) nextPeer() (next *metapb.Peer, around bool) {
	n := len(r.meta.Peers)
	at := 0
	for i, p := range r.meta.Peers {
		if r.leader != nil && p.Id == r.leader.Id {
			at = i + 1
		}
	}
	for i := range n {
		if p := r.meta.Peers[(at+i)%n]; p.Role == metapb.PeerRole_Voter {
			return p, at+i >= n
		}
	}
	return nil, true
}

// regionCache maps keys to regions. A newer epoch replaces what it overlaps; an older one never
// replaces a newer (N1). Safe for concurrent use.
type regionCache struct {
	placement Placement
	learn     func([]*metapb.Peer)
	mu        struct {
		sync.RWMutex
		tree *btree.BTreeG[cacheItem]
	}
}

// cacheItem is a value, so that a lookup need not make a region to search with.
type cacheItem struct {
	start  []byte
	region *cachedRegion
}

func itemOf(r *cachedRegion) cacheItem { return cacheItem{r.meta.StartKey, r} }

// newRegionCache makes a cache; learn is called with the peers of each region that is added.
func newRegionCache(p Placement, learn func([]*metapb.Peer)) *regionCache {
	c := &regionCache{placement: p, learn: learn}
	c.mu.tree = btree.NewG(32, func(a, b cacheItem) bool {
		return bytes.Compare(a.start, b.start) < 0
	})
	return c
}

func (c *regionCache) lookup(key []byte) *cachedRegion {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.lookupLocked(key)
}

func (c *regionCache) lookupLocked(key []byte) (found *cachedRegion) {
	c.mu.tree.DescendLessOrEqual(cacheItem{start: key}, func(i cacheItem) bool {
		if i.region.contains(key) {
			found = i.region
		}
		return false
	})
	return found
}

// locate finds the region of a key, asking the placement service if it is not cached.
func (c *regionCache) locate(ctx context.Context, key []byte) (*cachedRegion, error) {
	known := c.lookup(key)
	if known != nil && !known.doubted {
		return known, nil
	}
	ask, cancel := ctx, context.CancelFunc(func() {})
	if known != nil {
		ask, cancel = context.WithTimeout(ctx, doubtTimeout)
	}
	got, err := c.placement.GetRegion(ask, key)
	cancel()
	if known != nil && (err != nil || got == nil || got.Meta == nil) {
		return c.believe(known), ctx.Err()
	}
	if known != nil && !older(known.meta.RegionEpoch, got.Meta.RegionEpoch) &&
		got.Leader.GetId() == known.failed {
		return c.believe(known), nil // nothing new: the next peer has its turn
	}
	if err != nil {
		return nil, fmt.Errorf("find the region of a key: %w", err)
	}
	if got == nil || got.Meta == nil || len(got.Meta.Peers) == 0 {
		return nil, ErrNoRegion
	}
	c.insert(got.Meta, got.Leader)
	if r := c.lookup(key); r != nil {
		return r, nil
	}
	return nil, ErrNoRegion
}

// doubtTimeout bounds the question for a better route than one that is known.
const doubtTimeout = 500 * time.Millisecond

func older(a, b *metapb.RegionEpoch) bool {
	if a.GetVersion() != b.GetVersion() {
		return a.GetVersion() < b.GetVersion()
	}
	return a.GetConfVer() < b.GetConfVer()
}

// peerOn is the peer of another region on the store of this one's leader, nil if there is none.
func (r *cachedRegion) peerOn(m *metapb.Region) *metapb.Peer {
	for _, p := range m.Peers {
		if r.leader != nil && p.StoreId == r.leader.StoreId {
			return p
		}
	}
	return nil
}

// within tells whether another region has all of this one's range. If its version is greater as
// well, this one went into it.
func (r *cachedRegion) within(m *metapb.Region) bool {
	end := m.EndKey
	return bytes.Compare(m.StartKey, r.meta.StartKey) <= 0 && (len(end) == 0 ||
		len(r.meta.EndKey) > 0 && bytes.Compare(r.meta.EndKey, end) <= 0)
}

// insert adds a region unless something newer covers a part of its range. Without a leader the
// known one is kept if it is still a member, else the first voter is tried.
func (c *regionCache) insert(meta *metapb.Region, leader *metapb.Peer) {
	c.place(meta, leader, nil)
}

// place is insert; of a region whose leader is not known, guess is tried first.
func (c *regionCache) place(meta *metapb.Region, leader, guess *metapb.Peer) {
	c.learn(meta.Peers)
	c.mu.Lock()
	defer c.mu.Unlock()
	var overlaps []*cachedRegion
	stale := false
	visit := func(r *cachedRegion) {
		overlap := (len(r.meta.EndKey) == 0 || bytes.Compare(meta.StartKey, r.meta.EndKey) < 0) &&
			(len(meta.EndKey) == 0 || bytes.Compare(r.meta.StartKey, meta.EndKey) < 0)
		if !overlap {
			return
		}
		overlaps = append(overlaps, r)
		stale = stale || older(meta.RegionEpoch, r.meta.RegionEpoch)
	}
	c.mu.tree.DescendLessOrEqual(cacheItem{start: meta.StartKey}, func(i cacheItem) bool {
		visit(i.region)
		return false
	})
	c.mu.tree.AscendGreaterOrEqual(cacheItem{start: meta.StartKey}, func(i cacheItem) bool {
		if len(meta.EndKey) > 0 && bytes.Compare(i.start, meta.EndKey) >= 0 {
			return false
		}
		if !bytes.Equal(i.start, meta.StartKey) {
			visit(i.region)
		}
		return true
	})
	if stale {
		return
	}
	entry := &cachedRegion{meta: meta, leader: leader}
	for _, r := range overlaps {
		c.mu.tree.Delete(itemOf(r))
		if r.meta.Id == meta.Id {
			entry.position = r.position
		}
		if leader == nil && r.meta.Id == meta.Id && r.leader != nil {
			for _, p := range meta.Peers {
				if p.Id == r.leader.Id {
					entry.leader = p
				}
			}
		}
	}
	if entry.position == nil {
		entry.position = new(atomic.Uint64)
	}
	if entry.leader.GetId() == 0 {
		if entry.leader = guess; guess.GetId() == 0 {
			entry.leader = nil
			entry.leader, _ = entry.nextPeer()
		}
	}
	c.mu.tree.ReplaceOrInsert(itemOf(entry))
}

// setLeader changes whom to try first, if the cached region is still the one that was asked.
func (c *regionCache) setLeader(asked *cachedRegion, leader *metapb.Peer) {
	c.setRoute(asked, leader, 0)
}

// setRoute is setLeader, by way of another store if via is not 0.
func (c *regionCache) setRoute(asked *cachedRegion, leader *metapb.Peer, via uint64) {
	if leader == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if cur, ok := c.mu.tree.Get(itemOf(asked)); ok && cur.region == asked {
		for _, p := range asked.meta.Peers {
			if p.Id == leader.Id {
				next := *asked
				next.leader, next.via = p, via
				c.mu.tree.ReplaceOrInsert(itemOf(&next))
				return
			}
		}
		c.mu.tree.Delete(itemOf(asked)) // a leader that this version of the region does not know
	}
}

// tryNext makes the next peer the one to try. After all of them the placement service is asked: the
// region may have got other peers, of which this route does not know.
func (c *regionCache) tryNext(asked *cachedRegion) {
	next, around := asked.nextPeer()
	if around {
		c.doubt(asked)
		return
	}
	c.setLeader(asked, next)
}

// believe takes a doubt back, for which the placement service had no answer: the route is used as
// it is until it fails again, and no use of it waits for that service meanwhile.
func (c *regionCache) believe(known *cachedRegion) *cachedRegion {
	next := *known
	next.doubted = false
	c.mu.Lock()
	defer c.mu.Unlock()
	if cur, ok := c.mu.tree.Get(itemOf(known)); ok && cur.region == known {
		c.mu.tree.ReplaceOrInsert(itemOf(&next))
	}
	return &next
}

// doubt makes the next use of a region ask the placement service for it, and try another peer while
// there is no answer, if it is still the one that was asked.
func (c *regionCache) doubt(asked *cachedRegion) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cur, ok := c.mu.tree.Get(itemOf(asked)); ok && cur.region == asked {
		next := *asked
		next.doubted, next.via, next.failed = true, 0, asked.leader.GetId()
		next.leader, _ = asked.nextPeer()
		c.mu.tree.ReplaceOrInsert(itemOf(&next))
	}
}
