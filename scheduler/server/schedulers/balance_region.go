// Package schedulers holds the balancing algorithms.
package schedulers

import (
	"cmp"
	"slices"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule"
	"github.com/tinykv/tinykv/scheduler/server/schedule/checker"
	"github.com/tinykv/tinykv/scheduler/server/schedule/filter"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

// Default returns all schedulers of a server.
func Default() []schedule.Scheduler {
	return []schedule.Scheduler{
		NewBalanceRegion(), NewBalanceLeader(), NewEvictLeader(), NewEvictSlowStore(),
	}
}

const regionRetries = 10

// BalanceRegion evens out the stores' sizes.
//
// The course's rule (sort suitable stores by size, take a pending, follower or leader region of the
// biggest, move it to the smallest store without it, if the difference is more than twice the
// region's size) looks at present sizes only and therefore aims hundreds of moves at one store
// before the first has arrived: with six stores and a seventh it made 280 times the needed moves
// and never came to rest. Two more rules settle it:
//
//   - sizes include the influence of running operators, so every admitted move lowers the sum of
//     squares by a fixed amount and the process must end;
//   - the source is above the mean and the target below it, so that no store crosses the mean by
//     more than one region and the number of moves is about the sum of the surpluses, which is the
//     least possible. When the best target has no budget left the move waits: the next best target
//     would have to give the region back later.
//
// A region does not go back to a store that balance took it from within the past hour.
type BalanceRegion struct {
	left     map[departure]time.Time // when a region left a store
	lastTrim time.Time
}

type departure struct{ region, store uint64 }

// returnPause is how long a store is no target for a region that balance took from it.
const returnPause = time.Hour

// NewBalanceRegion returns the scheduler.
func NewBalanceRegion() *BalanceRegion {
	return &BalanceRegion{left: make(map[departure]time.Time)}
}

// trim forgets old departures, so that memory is bounded by the moves of two hours.
func (b *BalanceRegion) trim(now time.Time) {
	if now.Sub(b.lastTrim) < returnPause {
		return
	}
	b.lastTrim = now
	for d, at := range b.left {
		if now.Sub(at) > returnPause {
			delete(b.left, d)
		}
	}
}

// Name implements schedule.Scheduler.
func (*BalanceRegion) Name() string { return "balance-region" }

// GetMinInterval implements schedule.Scheduler.
func (*BalanceRegion) GetMinInterval() time.Duration { return 10 * time.Millisecond }

// GetNextInterval implements schedule.Scheduler.
func (*BalanceRegion) GetNextInterval(i time.Duration) time.Duration {
	return schedule.NextInterval(i)
}

// IsScheduleAllowed implements schedule.Scheduler.
func (*BalanceRegion) IsScheduleAllowed(v *view.View, running func(operator.Kind) int) bool {
	return running(operator.OpRegion|operator.OpBalance) < v.Settings.Schedule.RegionScheduleLimit
}

// Schedule implements schedule.Scheduler.
func (b *BalanceRegion) Schedule(v *view.View) *operator.Operator {
	b.trim(v.Now)
	stores := suitable(v)
	if len(stores) < 2 {
		v.Trace.Addf("%d suitable stores", len(stores))
		return nil
	}
	mean := meanLoad(v, stores)
	// Ties go to the smaller id, read from the end by rising load.
	slices.SortFunc(stores, func(a, c *core.StoreInfo) int {
		return cmp.Or(cmp.Compare(v.Load(c), v.Load(a)), cmp.Compare(c.ID(), a.ID()))
	})
	v.Trace.Addf("mean load %.0f MiB over %d stores", mean, len(stores))
	if !anyTarget(v, stores, mean) {
		return nil // do not look for regions that nobody may take now
	}
	for _, source := range stores {
		if v.Load(source) <= mean {
			break
		}
		if !v.HasBudget(source.ID(), false, false) {
			v.Trace.Count("source", source.ID(), "budget")
			continue
		}
		if op := b.fromSource(v, source, stores, mean); op != nil {
			return op
		}
	}
	return nil
}

// anyTarget tells whether some store below the mean may take a replica now.
func anyTarget(v *view.View, stores []*core.StoreInfo, mean float64) bool {
	found := false
	for i := len(stores) - 1; i >= 0 && v.Load(stores[i]) < mean; i-- {
		name, _ := filter.Refusal(stores[i], filter.RegionTarget, v.Env())
		if name == "" && !v.HasBudget(stores[i].ID(), true, false) {
			name = "budget"
		}
		if name != "" {
			v.Trace.Count("target", stores[i].ID(), name)
		}
		found = found || name == ""
	}
	return found
}

// suitable are the stores that take part in balancing: up, and not silent for too long.
func suitable(v *view.View) []*core.StoreInfo {
	var out []*core.StoreInfo
	for _, s := range v.Stores() {
		if name, _ := filter.Refusal(s, filter.RegionSource, v.Env()); name != "" {
			v.Trace.Count("source", s.ID(), name)
			continue
		}
		out = append(out, s)
	}
	return out
}

// meanLoad is what every store would hold, by weight, if the data were spread evenly.
func meanLoad(v *view.View, stores []*core.StoreInfo) float64 {
	var size, weight float64
	for _, s := range stores {
		size += float64(v.Size(s))
		weight += v.Weight(s)
	}
	return size / weight
}

func (b *BalanceRegion) fromSource(
	v *view.View, source *core.StoreInfo, stores []*core.StoreInfo, mean float64,
) *operator.Operator {
	for range regionRetries {
		r := pickRegion(v, source.ID())
		if r == nil {
			v.Trace.Addf("store %d: no region can be moved", source.ID())
			return nil
		}
		if checker.Improvable(v, r) {
			v.Trace.Count("source", source.ID(), "misplaced")
			continue
		}
		if nearly(v, source, mean) && v.Merges != nil && v.Merges(v, r) {
			v.Trace.Count("source", source.ID(), "to-be-merged")
			continue
		}
		target, wait := b.target(v, r, source, stores, mean)
		if wait {
			return nil
		}
		if target == nil {
			continue
		}
		return b.move(v, r, source, target, mean)
	}
	return nil
}

// mergeSlackMiB is by how much a store's load may exceed the mean while regions that are to be
// merged are left alone.
const mergeSlackMiB = 512

// nearly tells whether a store's load is so close to the mean that moving a region which is to be
// merged soon is not worth it: it would have to be moved again.
func nearly(v *view.View, s *core.StoreInfo, mean float64) bool {
	return v.Load(s)-mean <= max(mergeSlackMiB, mean/10)
}

func (b *BalanceRegion) move(
	v *view.View, r *core.RegionInfo, source, target *core.StoreInfo, mean float64,
) *operator.Operator {
	id, err := v.AllocID()
	if err != nil {
		v.Trace.Addf("no peer id: %v", err)
		return nil
	}
	op, err := operator.CreateMovePeerOperator("balance-region", r, operator.OpBalance,
		operator.Low,
		source.ID(), target.ID(), id, v.LearnerFirst(), v.NewLeader)
	if err != nil {
		v.Trace.Addf("%v", err)
		return nil
	}
	b.left[departure{r.ID(), source.ID()}] = v.Now
	return op.Because(
		"load of store %d is %.0f MiB, of store %d %.0f MiB, mean %.0f MiB, region %d MiB",
		source.ID(), v.Load(source), target.ID(), v.Load(target), mean, r.Size())
}

// pickRegion chooses a region to move off a store: a pending one first, since its disk may be
// overloaded, then a follower, then a leader, whose move costs a transfer.
func pickRegion(v *view.View, store uint64) *core.RegionInfo {
	var found *core.RegionInfo
	pick := func(rc core.RegionsContainer) {
		found = rc.RandomRegion(v.Rand, nil, nil, func(r *core.RegionInfo) bool {
			return movable(v, r, store)
		})
	}
	v.Regions.GetPendingRegionsWithLock(store, pick)
	if found == nil {
		v.Regions.GetFollowersWithLock(store, pick)
	}
	if found == nil {
		v.Regions.GetLeadersWithLock(store, pick)
	}
	return found
}

// movable tells whether balance may touch a region: confirmed, fully replicated, healthy elsewhere
// and not being changed.
func movable(v *view.View, r *core.RegionInfo, source uint64) bool {
	if !r.Confirmed() || len(r.Peers()) != v.MaxReplicas() || v.Busy(r.ID()) {
		return false
	}
	for _, p := range r.Peers() {
		if p.Learner || p.StoreID != source && (r.IsPending(p.ID) || r.IsDown(p.ID)) {
			return false
		}
	}
	return true
}

// target chooses the store with the smallest load that does not hold the region and would not lower
// its isolation. wait is true if that store only lacks budget now.
func (b *BalanceRegion) target(v *view.View, r *core.RegionInfo, source *core.StoreInfo,
	stores []*core.StoreInfo, mean float64,
) (target *core.StoreInfo, wait bool) {
	labels := v.Settings.Replication.LocationLabels
	isolation := 0
	if len(labels) > 0 {
		isolation = filter.Isolation(labels, v.StoresOf(r))
	}
	for i := len(stores) - 1; i >= 0; i-- { // by rising load
		t := stores[i]
		if v.Load(t) >= mean {
			return nil, false
		}
		if _, has := r.StorePeer(t.ID()); has {
			continue
		}
		if name, _ := filter.Refusal(t, filter.RegionTarget, v.Env()); name != "" {
			v.Trace.Count("target", t.ID(), name)
			continue
		}
		at, left := b.left[departure{r.ID(), t.ID()}]
		if left && v.Now.Sub(at) < returnPause || v.CameFrom(r.ID(), t.ID()) {
			v.Trace.Count("target", t.ID(), "left-lately")
			continue
		}
		if v.Late(r.ID(), t.ID()) {
			v.Trace.Count("target", t.ID(), "timed-out")
			continue
		}
		if len(labels) > 0 && filter.Isolation(labels, swap(v, r, source, t)) < isolation {
			v.Trace.Count("target", t.ID(), "isolation")
			continue
		}
		if !worthwhile(v, r, source, t, mean) {
			v.Trace.Count("target", t.ID(), "difference-too-small")
			return nil, false
		}
		if !v.HasBudget(t.ID(), true, false) {
			v.Trace.Count("target", t.ID(), "budget")
			return nil, true
		}
		return t, false
	}
	return nil, false
}

// worthwhile is the rule that ends balancing: the difference must exceed twice the region's size,
// or the move would be taken back, and neither store may cross the mean by more than half the
// region, or the last moves would polish what nobody can see. Near-empty regions count as a quarter
// of the average, so that clusters of mostly empty regions do not churn.
func worthwhile(
	v *view.View, r *core.RegionInfo, source, target *core.StoreInfo, mean float64,
) bool {
	size := max(float64(r.Size()), float64(v.AverageRegionSize())/4)
	less, more := size/v.Weight(source), size/v.Weight(target)
	from, to := v.Load(source), v.Load(target)
	return from-to > less+more && from-mean >= less/2 && mean-to >= more/2
}

func swap(v *view.View, r *core.RegionInfo, source, target *core.StoreInfo) []*core.StoreInfo {
	out := []*core.StoreInfo{target}
	for _, s := range v.StoresOf(r) {
		if s.ID() != source.ID() {
			out = append(out, s)
		}
	}
	return out
}
