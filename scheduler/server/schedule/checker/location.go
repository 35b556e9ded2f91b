package checker

import (
	"cmp"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/filter"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

// checkMisplaced moves a replica to where it is further apart from the others: labels came late, or
// a zone was away when the replicas were placed. It comes after all repairs, with the budget of
// balance.
//
// It ends, and nothing is moved to and fro: each move makes the isolation of its region, a whole
// number with an upper bound, greater. Repair picks targets by isolation first, balance never
// lowers it, so with labels that do not change every region is moved a bounded number of times. For
// the same reason nothing is moved while a store lacks a label: each label that comes would make
// other places look better.
func checkMisplaced(v *view.View, r *core.RegionInfo, _ operator.Priority) Result {
	labels := v.Settings.Replication.LocationLabels
	stores := v.StoresOf(r)
	if len(labels) == 0 || r.Voters() != v.MaxReplicas() || len(stores) != r.Voters() ||
		len(r.Peers()) != r.Voters() {
		return Result{}
	}
	if filter.Isolation(labels, stores) >= v.BestIsolation(len(stores)) {
		return Result{}
	}
	for _, p := range r.Peers() {
		if !v.Healthy(r, p) {
			return Result{}
		}
	}
	if v.Unlabeled() != 0 {
		return Result{Defect: Misplaced, Blocked: "labels-incomplete"}
	}
	best, ok := bestSwap(v, r, stores)
	switch {
	case !ok:
		return Result{} // as good as the stores allow
	case best.refusal != "":
		return Result{Defect: Misplaced, Blocked: best.refusal}
	}
	id, err := v.AllocID()
	if err != nil {
		return Result{Defect: Misplaced, Blocked: err.Error()}
	}
	op, err := operator.CreateMovePeerOperator("better-location", r, operator.OpReplica,
		operator.Low,
		best.from.ID(), best.to.ID(), id, v.LearnerFirst(), v.NewLeader)
	if err != nil {
		return Result{Defect: Misplaced, Blocked: err.Error()}
	}
	return Result{Defect: Misplaced, Op: op.Because("isolation rises by %d", best.gain)}
}

// Improvable tells whether a region waits for a better location: balance leaves it alone until
// then, or it would take it from where it has to come back.
func Improvable(v *view.View, r *core.RegionInfo) bool {
	stores := v.StoresOf(r)
	isolation := filter.Isolation(v.Settings.Replication.LocationLabels, stores)
	if v.Unlabeled() != 0 || isolation >= v.BestIsolation(len(stores)) {
		return false
	}
	_, found := bestSwap(v, r, stores)
	return found
}

// swap is a replica that could move, and by how much its region's isolation would rise.
type swap struct {
	from, to *core.StoreInfo
	gain     int
	refusal  string // what keeps the target from taking it now
	leads    bool
	returns  bool // the region has left the target within the hour
}

// bestSwap is the move that raises the isolation most; of several, one to a store that the region
// has not left lately, even if that has to wait; then one that may begin now, to the store with the
// smallest load, from the one with the largest.
func bestSwap(v *view.View, r *core.RegionInfo, stores []*core.StoreInfo) (best swap, found bool) {
	labels := v.Settings.Replication.LocationLabels
	without := make([]int, len(stores))
	for i, s := range stores {
		without[i] = filter.Apart(labels, s, stores)
	}
	for _, to := range v.Stores() {
		if _, has := r.StorePeer(to.ID()); has {
			continue
		}
		refusal, passes := filter.Refusal(to, filter.RegionTarget, v.Env())
		if refusal != "" && !passes {
			continue
		}
		if refusal == "" && v.Late(r.ID(), to.ID()) {
			refusal = "timed-out"
		}
		if refusal == "" && !v.HasBudget(to.ID(), true, false) {
			refusal = "budget"
		}
		all := filter.Apart(labels, to, stores)
		for i, from := range stores {
			c := swap{
				from: from, to: to, refusal: refusal, leads: r.LeaderStore() == from.ID(),
				returns: v.CameFrom(r.ID(), to.ID()),
				gain:    all - filter.Apart(labels, to, stores[i:i+1]) - without[i],
			}
			if c.refusal == "" && !v.HasBudget(from.ID(), false, false) {
				c.refusal = "budget"
			}
			if c.gain > 0 && (!found || c.before(v, best)) {
				best, found = c, true
			}
		}
	}
	return best, found
}

func (c swap) before(v *view.View, o swap) bool {
	flag := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(o.gain, c.gain), cmp.Compare(flag(c.returns), flag(o.returns)),
		cmp.Compare(flag(c.refusal != ""), flag(o.refusal != "")),
		cmp.Compare(v.Load(c.to), v.Load(o.to)), cmp.Compare(flag(c.leads), flag(o.leads)),
		cmp.Compare(v.Load(o.from), v.Load(c.from)), cmp.Compare(c.from.ID(), o.from.ID()),
	) < 0
}
