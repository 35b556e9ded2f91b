package server

import (
	"fmt"
	"sync"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/filter"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

// scatterPause ends a group: regions scattered within it of each other are spread as one.
const scatterPause = 5 * time.Minute

// scatterer counts what a group of scattered regions has on each store. Present loads say nothing
// about regions that were just made: all of them sit on the same stores.
type scatterer struct {
	sync.Mutex
	last    time.Time
	peers   map[uint64]int
	leaders map[uint64]int
}

// Scatter spreads regions: of those scattered together, every store gets about the same number of
// replicas and leaders. One call makes at most one operator, which it returns, nil if the region is
// well where it is; calling it again goes on.
func (c *RaftCluster) Scatter(regionID uint64, why string) (*operator.Operator, error) {
	r := c.core.Region(regionID)
	if r == nil {
		return nil, notFound("region %d is not known", regionID)
	}
	v := c.newView()
	if len(r.Peers()) != v.MaxReplicas() || !r.Confirmed() {
		return nil, fmt.Errorf("region %d is not fully replicated yet", regionID)
	}
	s := &c.scatter
	s.Lock()
	defer s.Unlock()
	if v.Now.Sub(s.last) > scatterPause {
		s.peers, s.leaders = map[uint64]int{}, map[uint64]int{}
	}
	s.last = v.Now
	op, final := s.plan(v, r)
	if op != nil {
		if err := c.controller.Add(v, op.Because("%s", why)); err != nil {
			return nil, err
		}
		c.planner.Wake() // turns come often while operators run
	}
	s.leaders[final.leader]++
	for _, id := range final.stores {
		s.peers[id]++
	}
	return op, nil
}

// placement is where a region will be.
type placement struct {
	leader uint64
	stores []uint64
}

func (s *scatterer) plan(v *view.View, r *core.RegionInfo) (*operator.Operator, placement) {
	var from, to uint64
	gain := 0
	for _, p := range r.Peers() {
		for _, t := range v.Stores() {
			if _, has := r.StorePeer(t.ID()); has ||
				!filter.Allows(t, filter.RegionTarget, v.Env()) {
				continue
			}
			if g := s.peers[p.StoreID] - s.peers[t.ID()]; g > gain ||
				g == gain && g > 0 && v.Load(t) < v.Load(v.Store(to)) {
				from, to, gain = p.StoreID, t.ID(), g
			}
		}
	}
	final := placement{leader: r.LeaderStore()}
	for _, p := range r.Peers() {
		id := p.StoreID
		if id == from {
			id = to
		}
		final.stores = append(final.stores, id)
	}
	if gain > 0 {
		if id, err := v.AllocID(); err == nil {
			op, err := operator.CreateMovePeerOperator("scatter-peer", r, operator.OpScatter,
				operator.Medium, from, to, id,
				v.LearnerFirst(), v.NewLeader)
			if err == nil {
				return op, final
			}
		}
	}
	for _, p := range r.Peers() {
		st := v.Store(p.StoreID)
		if st == nil || !v.Healthy(r, p) || !filter.Allows(st, filter.LeaderTarget, v.Env()) {
			continue
		}
		if s.leaders[p.StoreID] < s.leaders[final.leader] {
			final.leader = p.StoreID
		}
	}
	if final.leader == r.LeaderStore() {
		return nil, final
	}
	return operator.CreateTransferLeaderOperator("scatter-leader", r, operator.OpScatter,
		operator.Medium, final.leader), final
}
