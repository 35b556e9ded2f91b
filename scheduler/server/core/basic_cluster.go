package core

import (
	"bytes"
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
)

// BasicCluster owns the region map and the stores.
type BasicCluster struct {
	regions *RegionMap
	mu      struct {
		sync.RWMutex
		stores map[uint64]*StoreInfo
	}
}

// NewBasicCluster returns an empty cluster.
func NewBasicCluster() *BasicCluster {
	c := &BasicCluster{regions: newRegionMap()}
	c.mu.stores = make(map[uint64]*StoreInfo)
	return c
}

// PutResult says what PutRegion did.
type PutResult struct {
	Old       *RegionInfo
	Displaced []*RegionInfo
}

// PutRegion checks a record against everything known and installs it, in one step: between a check
// and a put under two locks a newer report could slip in. Regions it overlaps leave every index.
// ErrStale means that nothing changed.
func (c *BasicCluster) PutRegion(r *RegionInfo) (PutResult, error) {
	if err := r.Validate(); err != nil {
		return PutResult{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var res PutResult
	if h := c.regions.byID(r.id); h != nil {
		res.Old = h.cur.Load()
	}
	displaced, err := c.regions.check(r, res.Old)
	if err != nil {
		return PutResult{}, err
	}
	for _, h := range displaced {
		res.Displaced = append(res.Displaced, h.cur.Load())
	}
	c.regions.put(r, displaced)
	return res, nil
}

// RemoveRegion forgets a region.
func (c *BasicCluster) RemoveRegion(id uint64) *RegionInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.regions.byID(id)
	if h == nil {
		return nil
	}
	c.regions.remove(h)
	return h.cur.Load()
}

// Region returns the record of an id, nil if there is none. It takes no cluster-wide lock.
func (c *BasicCluster) Region(id uint64) *RegionInfo {
	if h := c.regions.byID(id); h != nil {
		return h.cur.Load()
	}
	return nil
}

// RegionByKey returns the region that contains the key.
func (c *BasicCluster) RegionByKey(key []byte) *RegionInfo {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if h := c.regions.search(key); h != nil {
		return h.cur.Load()
	}
	return nil
}

// PrevRegion returns the left neighbour of the region that contains the key, nil if a hole lies
// between them.
func (c *BasicCluster) PrevRegion(key []byte) *RegionInfo {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if h := c.regions.searchPrev(key); h != nil {
		return h.cur.Load()
	}
	return nil
}

// ScanRegions returns regions in key order from the one containing start up to end (exclusive,
// empty is +inf), at most limit of them; limit <= 0 is no limit.
func (c *BasicCluster) ScanRegions(start, end []byte, limit int) []*RegionInfo {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []*RegionInfo
	c.regions.scan(start, func(r *RegionInfo) bool {
		if len(end) != 0 && bytes.Compare(r.start, end) >= 0 {
			return false
		}
		out = append(out, r)
		return limit <= 0 || len(out) < limit
	})
	return out
}

// RegionCount returns the number of regions.
func (c *BasicCluster) RegionCount() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.regions.count
}

// AverageRegionSize in MiB, at least 1.
func (c *BasicCluster) AverageRegionSize() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.regions.count == 0 {
		return 1
	}
	return max(1, c.regions.total/int64(c.regions.count))
}

// StoreCountsOf recounts nothing: the counters are exact by construction.
func (c *BasicCluster) StoreCountsOf(storeID uint64) StoreCounts {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.countsLocked(storeID)
}

func (c *BasicCluster) countsLocked(storeID uint64) StoreCounts {
	s := c.regions.sets[storeID]
	if s == nil {
		return StoreCounts{}
	}
	n := StoreCounts{
		LeaderCount: len(s.roles[roleLeader]), LeaderSize: s.size[roleLeader],
		PendingCount: len(s.pending),
	}
	for ro := range s.roles {
		n.RegionCount += len(s.roles[ro])
		n.RegionSize += s.size[ro]
	}
	return n
}

// UpdateStoreStatus publishes the counters of the given stores. Unknown stores are no fault: a
// region may be reported before its store registers.
func (c *BasicCluster) UpdateStoreStatus(storeIDs ...uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range storeIDs {
		s := c.mu.stores[id]
		if s == nil {
			continue
		}
		if n := c.countsLocked(id); n != s.counts {
			c.mu.stores[id] = s.Clone(WithCounts(n))
		}
	}
}

// GetPendingRegionsWithLock shows the regions that have a pending peer on the store.
func (c *BasicCluster) GetPendingRegionsWithLock(storeID uint64, visit func(RegionsContainer)) {
	c.withSet(storeID, func(s *storeSets) []*handle { return s.pending }, visit)
}

// GetFollowersWithLock shows the regions that have a follower on the store.
func (c *BasicCluster) GetFollowersWithLock(storeID uint64, visit func(RegionsContainer)) {
	c.withSet(storeID, func(s *storeSets) []*handle { return s.roles[roleFollower] }, visit)
}

// GetLeadersWithLock shows the regions that the store leads.
func (c *BasicCluster) GetLeadersWithLock(storeID uint64, visit func(RegionsContainer)) {
	c.withSet(storeID, func(s *storeSets) []*handle { return s.roles[roleLeader] }, visit)
}

// withSet calls visit under the read lock; visit must not call back into the cluster.
func (c *BasicCluster) withSet(
	storeID uint64, pick func(*storeSets) []*handle, visit func(RegionsContainer),
) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var items []*handle
	if s := c.regions.sets[storeID]; s != nil {
		items = pick(s)
	}
	visit(RegionsContainer{items: items})
}

// RegionsContainer is a store's regions of one role, valid only inside the callback.
type RegionsContainer struct{ items []*handle }

// Len returns the number of regions.
func (rc RegionsContainer) Len() int { return len(rc.items) }

// At returns the i-th region in no particular order.
func (rc RegionsContainer) At(i int) *RegionInfo { return rc.items[i].cur.Load() }

// RandomRegion returns a random member whose range starts in [start, end) and that the filter
// accepts; nil if none was found among those looked at. A nil filter accepts all.
func (rc RegionsContainer) RandomRegion(
	rng *rand.Rand, start, end []byte, accept func(*RegionInfo) bool,
) *RegionInfo {
	const tries, look = 10, 256
	n := len(rc.items)
	if n == 0 {
		return nil
	}
	for range min(tries, n) {
		r := rc.items[rng.IntN(n)].cur.Load()
		if inRange(r, start, end) && (accept == nil || accept(r)) {
			return r
		}
	}
	// Few members are acceptable: look at a stretch of them before giving up.
	from := rng.IntN(n)
	for i := range min(look, n) {
		if r := rc.items[(from+i)%n].cur.Load(); inRange(r, start, end) &&
			(accept == nil || accept(r)) {
			return r
		}
	}
	return nil
}

func inRange(r *RegionInfo, start, end []byte) bool {
	return bytes.Compare(r.start, start) >= 0 && (len(end) == 0 || bytes.Compare(r.start, end) < 0)
}

// StoreRegions returns all regions with a peer on the store, sorted by id.
func (c *BasicCluster) StoreRegions(storeID uint64) []*RegionInfo {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []*RegionInfo
	if s := c.regions.sets[storeID]; s != nil {
		for ro := range s.roles {
			for _, h := range s.roles[ro] {
				out = append(out, h.cur.Load())
			}
		}
	}
	slices.SortFunc(out, func(a, b *RegionInfo) int { return cmp.Compare(a.id, b.id) })
	return out
}

// Store returns a store, nil if unknown.
func (c *BasicCluster) Store(id uint64) *StoreInfo {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.mu.stores[id]
}

// Stores returns all stores sorted by id, their counters up to date.
func (c *BasicCluster) Stores() []*StoreInfo {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.storesLocked()
}

func (c *BasicCluster) storesLocked() []*StoreInfo {
	out := make([]*StoreInfo, 0, len(c.mu.stores))
	for id, s := range c.mu.stores {
		if n := c.countsLocked(id); n != s.counts {
			s = s.Clone(WithCounts(n))
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *StoreInfo) int { return cmp.Compare(a.ID(), b.ID()) })
	return out
}

// Snapshot shows all stores and gives access to regions at one instant: what is counted in a
// store's sizes and what a region's peer list shows cannot differ inside visit. Influence of
// running operators is computed here, so that it has neither a hole nor an overlap with the sizes.
func (c *BasicCluster) Snapshot(visit func(stores []*StoreInfo)) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	visit(c.storesLocked())
}

// PutStore installs a store, keeping its counters exact.
func (c *BasicCluster) PutStore(s *StoreInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.stores[s.ID()] = s.Clone(WithCounts(c.countsLocked(s.ID())))
}

// UpdateStore changes the current value of a store; nil if it is unknown.
func (c *BasicCluster) UpdateStore(id uint64, opts ...StoreOption) *StoreInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.mu.stores[id]
	if s == nil {
		return nil
	}
	s = s.Clone(opts...).Clone(WithCounts(c.countsLocked(id)))
	c.mu.stores[id] = s
	return s
}

// RemoveStore forgets a store.
func (c *BasicCluster) RemoveStore(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.mu.stores, id)
}
