package merge

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/checker"
	"github.com/tinykv/tinykv/scheduler/server/schedule/filter"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

// Name is what configuration, pauses and explain call the policy.
const Name = "merge"

// Refusal is a rule that is against a merge, with the numbers. The zero value is none.
type Refusal struct{ Rule, Detail string }

// None tells whether nothing is against it.
func (f Refusal) None() bool { return f.Rule == "" }

func (f Refusal) String() string { return f.Rule + ": " + f.Detail }

func refuse(rule, format string, args ...any) Refusal {
	return Refusal{rule, fmt.Sprintf(format, args...)}
}

// Result is what came of looking at a region. Neither operators nor a rule: the region is too large
// to be merged, as most are.
type Result struct {
	Merge, Take *operator.Operator
	// Refusal is the first rule in the way, of the neighbour for which most rules are kept.
	Refusal Refusal
}

const (
	// defaultSplitMiB is at what size stores split their regions that do not say it.
	defaultSplitMiB = 96
	// A source has at most a fifth of the size at which regions are split, a joined region three
	// fifths.
	sourceShare, joinedShare = 0.2, 0.6
)

// Limits are the sizes that a merge keeps to, in MiB and keys.
type Limits struct {
	// Source is the size of a region that goes into another one, at most, and Keys its keys; Joined
	// is the size of both.
	Source, Joined int64
	Keys           int64
}

// LimitsOf are those of a cluster: the settings, and below them what the smallest size allows at
// which a store splits regions. Sizes are known by the MiB, of which even an empty region counts
// for one: where regions are split at less than 4 MiB, none is merged.
func LimitsOf(v *view.View) Limits {
	split := int64(-1)
	for _, s := range v.Stores() {
		if s.IsUp() && s.Stats() != nil {
			mib := int64(cmp.Or(s.Stats().GetRegionSplitSize(), defaultSplitMiB<<20) >> 20)
			if split < 0 || mib < split {
				split = mib
			}
		}
	}
	if split < 0 {
		split = defaultSplitMiB
	}
	cfg := &v.Settings.Schedule
	return Limits{
		Source: min(cfg.MaxMergeRegionSize, max(1, int64(sourceShare*float64(split)))),
		Joined: int64(joinedShare * float64(split)),
		Keys:   cfg.MaxMergeRegionKeys,
	}
}

// Cluster says why no region of the cluster is merged now.
func (p *Policy) Cluster(v *view.View) Refusal {
	cfg := &v.Settings.Schedule
	if cfg.MergeScheduleLimit == 0 {
		return refuse("switched-off", "merge-schedule-limit is 0")
	}
	if why := p.allowed(); why != "" {
		return refuse("not-allowed", "%s", why)
	}
	if led := v.Now.Sub(p.leadsSince()); led < cfg.SplitMergeInterval.D() {
		return refuse("young",
			"this member leads for %v: what was split before is known after split-merge-interval, %v",
			led.Round(time.Second), cfg.SplitMergeInterval.D())
	}
	return Refusal{}
}

// Plan looks at one region. What is against any merge (Cluster) was asked before.
func (p *Policy) Plan(v *view.View, r *core.RegionInfo, lim Limits) Result {
	if r.Size() > lim.Source || r.Keys() > lim.Keys {
		return Result{}
	}
	if f := p.region(v, r); !f.None() {
		return Result{Refusal: f}
	}
	best, f := p.best(v, r, lim)
	if !f.None() {
		return Result{Refusal: f}
	}
	return p.operators(v, r, best)
}

// Wants tells whether a region is to go into a neighbour, now, once stores have room for the moves,
// or once an hour has passed since balance has moved it. If balance moved it again meanwhile, that
// hour would begin anew.
func (p *Policy) Wants(v *view.View, r *core.RegionInfo, lim Limits) bool {
	if r.Size() > lim.Source || r.Keys() > lim.Keys || !p.region(v, r).None() {
		return false
	}
	_, f := p.best(v, r, lim)
	return f.None() || f.Rule == "budget" || f.Rule == "balance"
}

// best is the better of the two neighbours. If there is none, the refusal is of the one that comes
// first in the order of candidates.
func (p *Policy) best(v *view.View, r *core.RegionInfo, lim Limits) (candidate, Refusal) {
	var list []candidate
	why := refuse("no-neighbour", "no region is known beside it")
	for _, n := range neighbours(v, r) {
		c, f := p.pair(v, r, n, lim)
		if f.None() {
			list = append(list, c)
		} else {
			why = f
		}
	}
	if len(list) == 0 {
		return candidate{}, why
	}
	return slices.MinFunc(list, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(len(a.align.Moves), len(b.align.Moves)),
			cmp.Compare(a.target.Size(), b.target.Size()),
			cmp.Compare(a.target.Keys(), b.target.Keys()))
	}), Refusal{}
}

// neighbours are the regions that end where r starts and start where it ends, as far as they are
// known.
func neighbours(v *view.View, r *core.RegionInfo) (out []*core.RegionInfo) {
	if prev := v.Regions.PrevRegion(r.StartKey()); prev != nil &&
		bytes.Equal(prev.EndKey(), r.StartKey()) {
		out = append(out, prev)
	}
	if len(r.EndKey()) == 0 {
		return out
	}
	if next := v.Regions.RegionByKey(r.EndKey()); next != nil &&
		bytes.Equal(next.StartKey(), r.EndKey()) {
		out = append(out, next)
	}
	return out
}

func (p *Policy) operators(v *view.View, r *core.RegionInfo, c candidate) Result {
	for i := range c.align.Moves {
		id, err := v.AllocID()
		if err != nil {
			return Result{Refusal: refuse("no-id", "%v", err)}
		}
		c.align.Moves[i].PeerID = id
	}
	merge, take, err := operator.CreateMergeOperators("merge-region", r, c.target, 0, operator.Low,
		c.align)
	if err != nil {
		return Result{Refusal: refuse("not-planned", "%v", err)}
	}
	return Result{
		Merge: merge.Because("%d MiB and %d keys, region %d has %d MiB, %d replicas to move",
			r.Size(), r.Keys(),
			c.target.ID(), c.target.Size(), len(c.align.Moves)),
		Take: take.Because("region %d comes, %d MiB", r.ID(), r.Size()),
	}
}

// region has the rules that both regions of a merge keep.
func (p *Policy) region(v *view.View, r *core.RegionInfo) Refusal {
	interval := v.Settings.Schedule.SplitMergeInterval.D()
	switch {
	case !r.Confirmed():
		return refuse("unconfirmed", "region %d has not been reported by its leader", r.ID())
	case !r.Measured():
		return refuse("not-measured", "the leader of region %d has not measured its size", r.ID())
	case v.Busy(r.ID()):
		return refuse("operator", "region %d has an operator", r.ID())
	}
	if h, ok := p.held(r, v.Now); ok {
		return refuse("held", "region %d is in a range that is held until %s%s", r.ID(),
			h.Until.UTC().Format(time.RFC3339), reason(h.Why))
	}
	if at, ok := p.splitAt(r.ID()); ok && v.Now.Sub(at) < interval {
		return refuse("split-lately",
			"region %d was split %v ago, less than split-merge-interval, %v", r.ID(),
			v.Now.Sub(at).Round(time.Second), interval)
	}
	if r.Voters() != v.MaxReplicas() || len(r.Peers()) != r.Voters() {
		return refuse("replicas", "region %d has %d voters of %d, and %d learners", r.ID(),
			r.Voters(), v.MaxReplicas(),
			len(r.Peers())-r.Voters())
	}
	for _, peer := range r.Peers() {
		if !v.Healthy(r, peer) {
			return refuse("unhealthy",
				"the replica of region %d on store %d is pending, down or damaged", r.ID(),
				peer.StoreID)
		}
	}
	if res := checker.Check(v, r); res.Defect != checker.None {
		return refuse("repair", "region %d is to be repaired first: %s", r.ID(), res.Defect)
	}
	return Refusal{}
}

func reason(why string) string {
	if why == "" {
		return ""
	}
	return " (" + why + ")"
}

// candidate is a neighbour that nothing is against.
type candidate struct {
	target *core.RegionInfo
	align  operator.Alignment // without the ids of peers
}

// pair has the rules of a source and a target.
func (p *Policy) pair(v *view.View, r, target *core.RegionInfo, lim Limits) (candidate, Refusal) {
	if sum := r.Size() + target.Size(); sum > lim.Joined {
		return candidate{},
			refuse("no-room", "region %d has %d MiB, both together %d, more than %d", target.ID(),
				target.Size(),
				sum, lim.Joined)
	}
	interval := v.Settings.Schedule.SplitMergeInterval.D()
	if f, waits := p.failure(r.ID(), target.ID(), v.Now, interval); waits {
		return candidate{},
			refuse("failed-lately",
				"the merge into region %d ended %d times in a row, at last as %s; it waits until %s",
				target.ID(), f.count, f.reason, f.until(interval).UTC().Format(time.RFC3339))
	}
	if f := p.region(v, target); !f.None() {
		return candidate{}, f
	}
	align, f := align(v, r, target)
	return candidate{target, align}, f
}

// align plans the moves that bring a region's replicas to the stores of the target. Each one leaves
// the replicas at least as far apart as they are, and the leader's own comes last.
func align(v *view.View, r, target *core.RegionInfo) (a operator.Alignment, f Refusal) {
	labels := v.Settings.Replication.LocationLabels
	stores := v.StoresOf(r)
	least := filter.Isolation(labels, stores)
	var from, to []*core.StoreInfo
	for _, s := range stores {
		if _, stays := target.StorePeer(s.ID()); !stays {
			from = append(from, s)
		}
	}
	for _, s := range v.StoresOf(target) {
		if _, has := r.StorePeer(s.ID()); !has {
			to = append(to, s)
		}
	}
	if len(from) != len(to) {
		return a, refuse("replicas", "a store of region %d or %d is not known", r.ID(), target.ID())
	}
	a.LearnerFirst = v.LearnerFirst()
	for len(from) > 0 {
		i, j, after := nextMove(labels, stores, from, to, r.LeaderStore())
		if isolation := filter.Isolation(labels, after); isolation < least {
			return a,
				refuse("isolation",
					"on the way to the stores of region %d the replicas would be closer together",
					target.ID())
		}
		if f := movable(v, r, from[i], to[j]); !f.None() {
			return a, f
		}
		a.Moves = append(a.Moves, operator.Move{From: from[i].ID(), To: to[j].ID()})
		stores, from, to = after, slices.Delete(from, i, i+1), slices.Delete(to, j, j+1)
	}
	a.Lead = nextLeader(v, r, target)
	return a, Refusal{}
}

// nextMove picks the move after which the replicas are furthest apart; of several, one of a replica
// that does not lead.
func nextMove(
	labels []string, stores, from, to []*core.StoreInfo, leader uint64,
) (i, j int, after []*core.StoreInfo) {
	best := [2]int{-1, 0}
	for x, f := range from {
		for y, t := range to {
			next := slices.Clone(stores)
			next[slices.Index(next, f)] = t
			rank := [2]int{filter.Isolation(labels, next), 1}
			if f.ID() == leader {
				rank[1] = 0
			}
			if slices.Compare(rank[:], best[:]) > 0 {
				i, j, after, best = x, y, next, rank
			}
		}
	}
	return i, j, after
}

// movable says what keeps a replica from being moved now. Balance comes first: its budgets count,
// and what it has moved away does not come back within the hour.
func movable(v *view.View, r *core.RegionInfo, from, to *core.StoreInfo) Refusal {
	switch name, _ := filter.Refusal(to, filter.RegionTarget, v.Env()); {
	case name != "":
		return refuse("store", "a replica of region %d would have to go to store %d, which is %s",
			r.ID(), to.ID(), name)
	case v.CameFrom(r.ID(), to.ID()):
		return refuse("balance",
			"a replica of region %d was moved away from store %d within the hour", r.ID(), to.ID())
	case v.Late(r.ID(), to.ID()):
		return refuse("timed-out", "a replica of region %d did not arrive at store %d lately",
			r.ID(), to.ID())
	case !v.HasBudget(to.ID(), true, false) || !v.HasBudget(from.ID(), false, false):
		return refuse("budget", "stores %d and %d take part in as many moves as they may",
			from.ID(), to.ID())
	}
	return Refusal{}
}

// nextLeader is the store that leads instead of one that the region leaves: one that both have,
// with the fewest leaders. 0 if there is none.
func nextLeader(v *view.View, r, target *core.RegionInfo) uint64 {
	var best *core.StoreInfo
	for _, s := range v.StoresOf(r) {
		if _, stays := target.StorePeer(s.ID()); stays &&
			filter.Allows(s, filter.LeaderTarget, v.Env()) &&
			(best == nil || v.Leaders(s) < v.Leaders(best)) {
			best = s
		}
	}
	if best == nil {
		return 0
	}
	return best.ID()
}

// Explain says of one region why it is merged or not, rule by rule.
func (p *Policy) Explain(v *view.View, r *core.RegionInfo) []string {
	lim := LimitsOf(v)
	lines := []string{describe(r)}
	if f := p.Cluster(v); !f.None() {
		lines = append(lines, "no region is merged now: "+f.String())
	}
	if r.Size() > lim.Source || r.Keys() > lim.Keys {
		return append(lines,
			fmt.Sprintf(
				"too large to go into another one: a region of at most %d MiB and %d keys does",
				lim.Source, lim.Keys))
	}
	lines = append(lines,
		fmt.Sprintf("small enough to go into another one: at most %d MiB and %d keys", lim.Source,
			lim.Keys))
	if f := p.region(v, r); !f.None() {
		return append(lines, f.String())
	}
	for _, n := range neighbours(v, r) {
		c, f := p.pair(v, r, n, lim)
		line := "into " + describe(n) + ": "
		switch {
		case !f.None():
			line += f.String()
		case len(c.align.Moves) == 0:
			line += fmt.Sprintf("nothing is against it, %d MiB together of at most %d",
				r.Size()+n.Size(), lim.Joined)
		default:
			line += fmt.Sprintf(
				"nothing is against it after %d moves, %d MiB together of at most %d",
				len(c.align.Moves),
				r.Size()+n.Size(), lim.Joined)
		}
		lines = append(lines, line)
	}
	best, f := p.best(v, r, lim)
	if !f.None() {
		return append(lines, "stays: "+f.Rule)
	}
	return append(lines, fmt.Sprintf("goes into region %d when it is its turn", best.target.ID()))
}

func describe(r *core.RegionInfo) string {
	stores := make([]string, 0, len(r.Peers()))
	for _, p := range r.Peers() {
		stores = append(stores, fmt.Sprint(p.StoreID))
	}
	return fmt.Sprintf("region %d, %d MiB, %d keys, on stores %s", r.ID(), r.Size(), r.Keys(),
		strings.Join(stores, " "))
}
