package operator

import "github.com/tinykv/tinykv/scheduler/server/core"

// StoreInfluence is what running operators will still change about a store. Sizes are in MiB.
type StoreInfluence struct {
	Size              int64 // peers' sizes to come minus to go, not yet in the store's own size
	Count             int
	Leaders           int
	InBytes, OutBytes int64 // in flight, for budgets
	InMoves, OutMoves int
}

// Influence is the sum over operators by store.
type Influence map[uint64]*StoreInfluence

// Of returns the entry of a store, making it if needed.
func (inf Influence) Of(storeID uint64) *StoreInfluence {
	si := inf[storeID]
	if si == nil {
		si = &StoreInfluence{}
		inf[storeID] = si
	}
	return si
}

// Get returns the entry of a store by value.
func (inf Influence) Get(storeID uint64) StoreInfluence {
	if si := inf[storeID]; si != nil {
		return *si
	}
	return StoreInfluence{}
}

// Add adds an operator's unfinished steps, as the region is now. A peer that is already listed is
// in the store's own size and no longer in the influence: both are read at one instant, so the
// effective size has neither a hole nor an overlap.
func (inf Influence) Add(op *Operator, r *core.RegionInfo) {
	for _, s := range op.Steps() {
		s.influence(r, inf)
	}
}
