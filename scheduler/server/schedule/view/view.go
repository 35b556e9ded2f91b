// Package view is what deciding code sees: one consistent picture of the cluster with the influence
// of running operators, a clock and a random source. Checkers and schedulers are pure functions of
// it, so that the simulation runs the very code of production.
package view

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/filter"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
)

// Settings are the options that decisions depend on. Immutable once published.
type Settings struct {
	Schedule    config.Schedule
	Replication config.Replication
}

// View is a picture of the cluster at one instant. It is made for one goroutine and one turn;
// admitted operators are added to its influence so that the next decision sees them.
type View struct {
	Now      time.Time
	Settings *Settings
	Regions  *core.BasicCluster
	Rand     *rand.Rand
	Trace    *Trace // nil when nobody asks

	// Busy tells whether the region has an operator.
	Busy func(regionID uint64) bool
	// AllocID returns a fresh id for a peer.
	AllocID func() (uint64, error)
	// GivenUp tells whether a learner did not catch up in the time that it had; nil: none.
	GivenUp func(peerID uint64) bool
	// LeftLately tells whether a replica of the region was moved away from the store within the
	// hour; nil: none.
	LeftLately func(regionID, storeID uint64) bool
	// TimedOut tells whether replicas of the region have lately failed to arrive at the store; nil:
	// none.
	TimedOut func(regionID, storeID uint64) bool
	// Merges tells whether the region is to go into a neighbour soon; nil: none is. Only the
	// planner's goroutine calls it.
	Merges func(v *View, r *core.RegionInfo) bool

	stores    []*core.StoreInfo
	byID      map[uint64]*core.StoreInfo
	influence operator.Influence
	weights   map[uint64]float64
	avgSize   int64
	places    int    // values of the first location label among stores that are up
	unlabeled uint64 // a store that is up and lacks a location label, 0 if there is none
}

// New takes the picture: stores and the regions of running operators are read at one instant.
func New(v View, running []*operator.Operator) *View {
	v.influence = make(operator.Influence)
	v.Regions.Snapshot(func(stores []*core.StoreInfo) {
		v.stores = stores
		for _, op := range running {
			if r := v.Regions.Region(op.RegionID()); r != nil {
				v.influence.Add(op, r)
			}
		}
	})
	v.byID = make(map[uint64]*core.StoreInfo, len(v.stores))
	for _, s := range v.stores {
		v.byID[s.ID()] = s
	}
	v.avgSize = v.Regions.AverageRegionSize()
	v.readLabels()
	v.weights = weights(v.stores, v.Settings.Schedule.WeightByCapacity)
	return &v
}

func (v *View) readLabels() {
	labels := v.Settings.Replication.LocationLabels
	if len(labels) == 0 {
		return
	}
	seen := map[string]bool{}
	for _, s := range v.stores {
		if !s.IsUp() {
			continue
		}
		for _, l := range labels {
			if s.Label(l) == "" {
				v.unlabeled = s.ID()
			}
		}
		if place := s.Label(labels[0]); place != "" {
			seen[place] = true
		}
	}
	v.places = len(seen)
}

// BestIsolation is an upper bound of how far apart n replicas can be.
func (v *View) BestIsolation(n int) int {
	return filter.Best(v.Settings.Replication.LocationLabels, v.places, n)
}

// Unlabeled is a store that is up and lacks a location label, 0 if there is none.
func (v *View) Unlabeled() uint64 { return v.unlabeled }

// weights gives every store its share: what an operator set, times its share of the capacity if all
// capacities are known. The mean weight is 1.
func weights(stores []*core.StoreInfo, byCapacity bool) map[uint64]float64 {
	var total float64
	n := 0
	for _, s := range stores {
		if !s.IsUp() {
			continue
		}
		if s.Capacity() == 0 {
			byCapacity = false
		}
		total += float64(s.Capacity())
		n++
	}
	out := make(map[uint64]float64, len(stores))
	for _, s := range stores {
		w := s.Weight()
		if byCapacity && total > 0 && s.Capacity() > 0 {
			w *= float64(s.Capacity()) * float64(n) / total
		}
		out[s.ID()] = w
	}
	return out
}

// Stores returns all stores by id.
func (v *View) Stores() []*core.StoreInfo { return v.stores }

// Store returns a store, nil if unknown.
func (v *View) Store(id uint64) *core.StoreInfo { return v.byID[id] }

// Env is what filters look at.
func (v *View) Env() filter.Env { return filter.Env{Now: v.Now, Schedule: &v.Settings.Schedule} }

// MaxReplicas is how many replicas a region should have.
func (v *View) MaxReplicas() int { return v.Settings.Replication.MaxReplicas }

// AverageRegionSize in MiB.
func (v *View) AverageRegionSize() int64 { return v.avgSize }

// Influence returns what running operators will still change about a store.
func (v *View) Influence(id uint64) operator.StoreInfluence { return v.influence.Get(id) }

// Admitted adds an operator's influence.
func (v *View) Admitted(op *operator.Operator, r *core.RegionInfo) { v.influence.Add(op, r) }

// Size is the store's size once all running operators are done, in MiB.
func (v *View) Size(s *core.StoreInfo) int64 {
	return s.RegionSize() + v.influence.Get(s.ID()).Size
}

// Leaders is the number of leaders once all running operators are done.
func (v *View) Leaders(s *core.StoreInfo) int {
	return s.LeaderCount() + v.influence.Get(s.ID()).Leaders
}

// Weight is the store's share; the mean is 1.
func (v *View) Weight(s *core.StoreInfo) float64 { return v.weights[s.ID()] }

// Load is Size by weight: what balancing makes equal.
func (v *View) Load(s *core.StoreInfo) float64 { return float64(v.Size(s)) / v.weights[s.ID()] }

// HasBudget tells whether the store may take part in one more move. Repair may use twice the
// budget: it pre-empts balance.
func (v *View) HasBudget(id uint64, incoming, repair bool) bool {
	moves, bytes := v.Limit(id)
	if repair {
		moves, bytes = 2*moves, 2*bytes
	}
	inf := v.influence.Get(id)
	if incoming {
		return inf.InMoves < moves && inf.InBytes < bytes
	}
	return inf.OutMoves < moves && inf.OutBytes < bytes
}

// Limit is how many moves and MiB may be in flight to and from a store, each way.
func (v *View) Limit(id uint64) (moves int, mib int64) {
	moves, mib = v.Settings.Schedule.StoreMovesInFlight, v.Settings.Schedule.StoreBytesInFlightMiB
	if s := v.byID[id]; s != nil {
		l := s.Limit()
		moves, mib = cmp.Or(l.Moves, moves), cmp.Or(l.MiB, mib)
	}
	return moves, mib
}

// StoresOf returns the known stores of a region's peers.
func (v *View) StoresOf(r *core.RegionInfo) []*core.StoreInfo {
	out := make([]*core.StoreInfo, 0, len(r.Peers()))
	for _, p := range r.Peers() {
		if s := v.byID[p.StoreID]; s != nil {
			out = append(out, s)
		}
	}
	return out
}

// LearnerFirst tells whether replicas are added as learners: it is switched on and every store
// announces that it can promote them.
func (v *View) LearnerFirst() bool {
	if !v.Settings.Schedule.LearnerFirst {
		return false
	}
	for _, s := range v.stores {
		if s.IsUp() && s.Label("engine.learner") != "true" && s.Meta().GetVersion() == "" {
			return false
		}
	}
	return true
}

// Healthy tells whether a peer counts for a quorum: it is not catching up, its leader has answers
// from it, and its store has reported lately, without calling the replica damaged.
func (v *View) Healthy(r *core.RegionInfo, p core.Peer) bool {
	s := v.byID[p.StoreID]
	return !r.IsPending(p.ID) && !r.IsDown(p.ID) && s != nil && filter.Connected(s, v.Env()) &&
		!s.IsDamaged(p.ID)
}

// NoStore is Target's reason when every store has a replica already.
const NoStore = "no-store"

// Target picks the store for a new replica of a region, without the replica on exclude (0: none).
// Stores are ranked by isolation, then by load; one where the region's replica did not arrive
// lately comes after all others. If the best store is refused only for the moment, no store is
// returned: waiting is better than placing badly.
func (v *View) Target(r *core.RegionInfo, exclude uint64, repair bool) (*core.StoreInfo, string) {
	labels := v.Settings.Replication.LocationLabels
	var rest []*core.StoreInfo
	for _, s := range v.StoresOf(r) {
		if s.ID() != exclude {
			rest = append(rest, s)
		}
	}
	type candidate struct {
		store     *core.StoreInfo
		isolation int
		refusal   string
		late      int // 1: this region's replica did not arrive there lately
	}
	var list []candidate
	reason := NoStore
	for _, s := range v.stores {
		if _, has := r.StorePeer(s.ID()); has {
			continue
		}
		name, temporary := filter.Refusal(s, filter.RegionTarget, v.Env())
		if name != "" && !temporary {
			reason = name
			v.Trace.Count("target", s.ID(), name)
			continue
		}
		if name == "" && !v.HasBudget(s.ID(), true, repair) {
			name = "budget"
		}
		c := candidate{
			store: s, isolation: filter.Isolation(labels, append(slices.Clip(rest), s)),
			refusal: name,
		}
		if v.Late(r.ID(), s.ID()) {
			c.late = 1
		}
		list = append(list, c)
	}
	slices.SortStableFunc(list, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.late, b.late), cmp.Compare(b.isolation, a.isolation),
			cmp.Compare(v.Load(a.store), v.Load(b.store)))
	})
	for _, c := range list {
		if c.refusal == "" {
			return c.store, ""
		}
		v.Trace.Count("target", c.store.ID(), c.refusal)
		// Repair does not wait for a store that may never come back, only for budgets.
		if !repair || c.refusal == "budget" {
			return nil, c.refusal
		}
		reason = c.refusal
	}
	return nil, reason
}

// Late tells whether the region's replica did not arrive at the store lately.
func (v *View) Late(regionID, storeID uint64) bool {
	return v.TimedOut != nil && v.TimedOut(regionID, storeID)
}

// CameFrom tells whether a replica of the region was moved away from the store within the hour,
// without need.
func (v *View) CameFrom(regionID, storeID uint64) bool {
	return v.LeftLately != nil && v.LeftLately(regionID, storeID)
}

// NewLeader picks the store that should lead a region instead of exclude: a healthy voter on a
// store that may lead, the one with the fewest leaders.
func (v *View) NewLeader(r *core.RegionInfo, exclude uint64) (uint64, bool) {
	var best *core.StoreInfo
	for _, p := range r.Peers() {
		s := v.byID[p.StoreID]
		if p.Learner || p.StoreID == exclude || p.StoreID == r.LeaderStore() || !v.Healthy(r, p) ||
			!filter.Allows(s, filter.LeaderTarget, v.Env()) {
			continue
		}
		if best == nil || v.Leaders(s) < v.Leaders(best) {
			best = s
		}
	}
	if best == nil {
		return 0, false
	}
	return best.ID(), true
}

// Trace collects why candidates were refused during one decision, for explain.
type Trace struct {
	Lines    []string
	Refusals map[string]int
}

// Addf adds a line.
func (t *Trace) Addf(format string, args ...any) {
	if t != nil && len(t.Lines) < 100 {
		t.Lines = append(t.Lines, fmt.Sprintf(format, args...))
	}
}

// Count counts a refusal.
func (t *Trace) Count(side string, storeID uint64, rule string) {
	if t == nil {
		return
	}
	if t.Refusals == nil {
		t.Refusals = make(map[string]int)
	}
	t.Refusals[fmt.Sprintf("%s store %d: %s", side, storeID, rule)]++
}
