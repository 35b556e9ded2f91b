package schedulers

import (
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

// EvictSlowStore moves leaders off stores whose disk is slower than those of the others
// (core.Slowness). It decides by region: only one with a majority of voters on stores that are not
// slow gets quicker by it. While the store is held for slow, no leader comes to it.
type EvictSlowStore struct{}

// NewEvictSlowStore returns the scheduler.
func NewEvictSlowStore() *EvictSlowStore { return &EvictSlowStore{} }

// Name implements schedule.Scheduler.
func (*EvictSlowStore) Name() string { return "evict-slow-store" }

// GetMinInterval implements schedule.Scheduler.
func (*EvictSlowStore) GetMinInterval() time.Duration { return 10 * time.Millisecond }

// GetNextInterval implements schedule.Scheduler.
func (*EvictSlowStore) GetNextInterval(i time.Duration) time.Duration {
	return min(schedule.NextInterval(i), time.Second)
}

// IsScheduleAllowed implements schedule.Scheduler.
func (*EvictSlowStore) IsScheduleAllowed(v *view.View, running func(operator.Kind) int) bool {
	return running(operator.OpLeader|operator.OpSlow) < 2*v.Settings.Schedule.LeaderScheduleLimit
}

// Schedule implements schedule.Scheduler.
func (*EvictSlowStore) Schedule(v *view.View) *operator.Operator {
	for _, s := range v.Stores() {
		if !s.IsSlow(v.Now) {
			continue
		}
		var found *core.RegionInfo
		var to uint64
		v.Regions.GetLeadersWithLock(s.ID(), func(rc core.RegionsContainer) {
			found = rc.RandomRegion(v.Rand, nil, nil, func(r *core.RegionInfo) bool {
				if v.Busy(r.ID()) || !r.Confirmed() || !quickMajority(v, r) {
					return false
				}
				var ok bool
				to, ok = v.NewLeader(r, s.ID())
				return ok
			})
		})
		if found == nil {
			if s.LeaderCount() > 0 {
				v.Trace.Addf(
					"store %d is slow; no region that it leads has a better place for its leader",
					s.ID())
			}
			continue
		}
		slow := s.Slowness()
		return operator.CreateTransferLeaderOperator("evict-slow-store", found, operator.OpSlow,
			operator.Medium, to).
			Because("syncs take %v at store %d and %v at others",
				slow.Takes.Round(time.Millisecond), s.ID(),
				slow.Usual.Round(time.Millisecond))
	}
	return nil
}

// quickMajority tells whether a region commits without waiting for a slow store, wherever it is
// led.
func quickMajority(v *view.View, r *core.RegionInfo) bool {
	voters, quick := 0, 0
	for _, p := range r.Peers() {
		if p.Learner {
			continue
		}
		voters++
		if s := v.Store(p.StoreID); s != nil && !s.IsSlow(v.Now) && v.Healthy(r, p) {
			quick++
		}
	}
	return quick > voters/2
}
