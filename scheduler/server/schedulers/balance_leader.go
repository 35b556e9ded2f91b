package schedulers

import (
	"cmp"
	"slices"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule"
	"github.com/tinykv/tinykv/scheduler/server/schedule/filter"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

// BalanceLeader evens out the number of leaders, with the same two rules as BalanceRegion: running
// transfers count, and only stores above the mean give to stores below it. A region's leader is
// moved at most once per cool-down.
type BalanceLeader struct {
	moved map[uint64]time.Time
}

// NewBalanceLeader returns the scheduler.
func NewBalanceLeader() *BalanceLeader { return &BalanceLeader{moved: make(map[uint64]time.Time)} }

// Name implements schedule.Scheduler.
func (*BalanceLeader) Name() string { return "balance-leader" }

// GetMinInterval implements schedule.Scheduler.
func (*BalanceLeader) GetMinInterval() time.Duration { return 10 * time.Millisecond }

// GetNextInterval implements schedule.Scheduler.
func (*BalanceLeader) GetNextInterval(i time.Duration) time.Duration {
	return schedule.NextInterval(i)
}

// IsScheduleAllowed implements schedule.Scheduler.
func (*BalanceLeader) IsScheduleAllowed(v *view.View, running func(operator.Kind) int) bool {
	// Moves of replicas carry the leader bit too; only pure transfers count here.
	pure := running(operator.OpLeader|operator.OpBalance) - running(
		operator.OpLeader|operator.OpBalance|operator.OpRegion)
	return pure < v.Settings.Schedule.LeaderScheduleLimit
}

// Schedule implements schedule.Scheduler.
func (b *BalanceLeader) Schedule(v *view.View) *operator.Operator {
	for id, at := range b.moved {
		if v.Now.Sub(at) > v.Settings.Schedule.LeaderCooldown.D() {
			delete(b.moved, id)
		}
	}
	stores := leaderStores(v)
	if len(stores) < 2 {
		return nil
	}
	total, weight := 0.0, 0.0
	for _, s := range stores {
		total += float64(v.Leaders(s))
		weight += s.LeaderWeight()
	}
	mean := total / weight
	share := func(s *core.StoreInfo) float64 { return float64(v.Leaders(s)) / s.LeaderWeight() }
	slices.SortStableFunc(stores, func(a, c *core.StoreInfo) int {
		return cmp.Compare(share(c), share(a))
	})
	tolerance := max(float64(v.Settings.Schedule.LeaderTolerance), mean/100)
	v.Trace.Addf("mean %.1f leaders over %d stores", mean, len(stores))
	for _, source := range stores {
		if share(source) <= mean {
			break
		}
		if op := b.fromSource(v, source, stores, share, mean, tolerance); op != nil {
			b.moved[op.RegionID()] = v.Now
			return op
		}
	}
	return nil
}

// leaderStores take part: up, connected, not shedding leaders.
func leaderStores(v *view.View) []*core.StoreInfo {
	var out []*core.StoreInfo
	for _, s := range v.Stores() {
		if name, _ := filter.Refusal(s, filter.LeaderTarget, v.Env()); name != "" {
			v.Trace.Count("target", s.ID(), name)
			continue
		}
		out = append(out, s)
	}
	return out
}

func (b *BalanceLeader) fromSource(v *view.View, source *core.StoreInfo, stores []*core.StoreInfo,
	share func(*core.StoreInfo) float64, mean, tolerance float64,
) *operator.Operator {
	for i := len(stores) - 1; i >= 0; i-- { // by rising share
		target := stores[i]
		if share(target) >= mean || share(source)-share(target) < tolerance {
			return nil
		}
		var found *core.RegionInfo
		v.Regions.GetLeadersWithLock(source.ID(), func(rc core.RegionsContainer) {
			found = rc.RandomRegion(v.Rand, nil, nil, func(r *core.RegionInfo) bool {
				return b.transferable(v, r, target.ID())
			})
		})
		if found == nil {
			v.Trace.Count("target", target.ID(), "no-region")
			continue
		}
		return operator.CreateTransferLeaderOperator("balance-leader", found, operator.OpBalance,
			operator.Low,
			target.ID()).Because("store %d leads %d, store %d leads %d, mean %.1f",
			source.ID(), v.Leaders(source), target.ID(), v.Leaders(target), mean)
	}
	return nil
}

func (b *BalanceLeader) transferable(v *view.View, r *core.RegionInfo, target uint64) bool {
	p, ok := r.StorePeer(target)
	if !ok || p.Learner || v.Busy(r.ID()) || !r.Confirmed() || !v.Healthy(r, p) {
		return false
	}
	at, moved := b.moved[r.ID()]
	return !moved || v.Now.Sub(at) > v.Settings.Schedule.LeaderCooldown.D()
}

// EvictLeader moves leaders off stores that shed them or are leaving.
type EvictLeader struct{}

// NewEvictLeader returns the scheduler.
func NewEvictLeader() *EvictLeader { return &EvictLeader{} }

// Name implements schedule.Scheduler.
func (*EvictLeader) Name() string { return "evict-leader" }

// GetMinInterval implements schedule.Scheduler.
func (*EvictLeader) GetMinInterval() time.Duration { return 10 * time.Millisecond }

// GetNextInterval implements schedule.Scheduler.
func (*EvictLeader) GetNextInterval(i time.Duration) time.Duration {
	return min(schedule.NextInterval(i), time.Second)
}

// IsScheduleAllowed implements schedule.Scheduler.
func (*EvictLeader) IsScheduleAllowed(v *view.View, running func(operator.Kind) int) bool {
	return running(operator.OpLeader|operator.OpAdmin) < 2*v.Settings.Schedule.LeaderScheduleLimit
}

// Schedule implements schedule.Scheduler.
func (*EvictLeader) Schedule(v *view.View) *operator.Operator {
	for _, s := range v.Stores() {
		if !s.EvictLeaders() && !s.IsOffline() {
			continue
		}
		var found *core.RegionInfo
		var to uint64
		v.Regions.GetLeadersWithLock(s.ID(), func(rc core.RegionsContainer) {
			found = rc.RandomRegion(v.Rand, nil, nil, func(r *core.RegionInfo) bool {
				if v.Busy(r.ID()) || !r.Confirmed() {
					return false
				}
				var ok bool
				to, ok = v.NewLeader(r, s.ID())
				return ok
			})
		})
		if found != nil {
			return operator.CreateTransferLeaderOperator("evict-leader", found, operator.OpAdmin,
				operator.Medium, to).
				Because("store %d sheds leaders", s.ID())
		}
	}
	return nil
}
