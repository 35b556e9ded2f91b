package health

import (
	"fmt"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
)

// tally counts the regions of one condition and keeps some as examples.
type tally struct {
	count   int
	regions []uint64
}

func (t *tally) add(id uint64) {
	if t.count++; len(t.regions) < examples {
		t.regions = append(t.regions, id)
	}
}

// regionTallies are the conditions of regions.
type regionTallies struct {
	noQuorum, leaderLost, noLeader, silent, few, starving, misplaced tally
	// least is the smallest number of good replicas of a region that has too few.
	least int
}

// judgeRegions looks at every region once.
func (a *assessment) judgeRegions() {
	t := &regionTallies{least: a.view.Replication.MaxReplicas}
	starving := map[uint64]bool{}
	for _, s := range a.stores {
		for _, id := range s.info.Stats().GetStarvingPeerIds() {
			if s.connected {
				starving[id] = true
			}
		}
	}
	possible := a.places(func(visit func(*store)) {
		for _, s := range a.stores {
			if s.usable() {
				visit(s)
			}
		}
	})
	for _, r := range a.view.Regions {
		if r.Confirmed() {
			a.out.Counts.Confirmed++
		}
		a.judgeRegion(r, t, starving, possible)
	}
	a.raiseTallies(t)
}

func (a *assessment) raiseTallies(t *regionTallies) {
	for _, c := range []struct {
		code   Code
		tally  *tally
		detail string
	}{
		{NoQuorum, &t.noQuorum, "have lost so many replicas that they serve nothing"},
		{LeaderLost, &t.leaderLost, "have their leader on a store that is silent or gone"},
		{NoLeader, &t.noLeader, "have no leader that has reported"},
		{
			ReplicaSilent, &t.silent,
			"have a replica that does not answer its leader, though its store reports",
		},
		{
			FewReplicas, &t.few,
			fmt.Sprintf("have fewer than %d complete replicas, the worst of them %d",
				a.view.Replication.MaxReplicas, t.least),
		},
		{
			Starving, &t.starving,
			"have a follower that gets no further although its leader has committed more",
		},
		{Misplaced, &t.misplaced, "have replicas in one location though there are others without"},
	} {
		if c.tally.count > 0 {
			a.raise(c.code, "regions", time.Time{}, c.tally.count, c.tally.regions,
				fmt.Sprintf("%d of %d %s", c.tally.count, len(a.view.Regions), c.detail))
		}
	}
}

// judgeRegion judges one region. Until the leader is prepared, what a copy says of a region may be
// old: then only those are judged whose leader has reported, and the quorum of all that other
// members knew, since without one nobody would ever report.
func (a *assessment) judgeRegion(
	r *core.RegionInfo, t *regionTallies, starving map[uint64]bool, possible []int,
) {
	voters, healthy, good := 0, 0, 0
	silent, starved := false, false
	for _, p := range r.Peers() {
		s := a.stores[p.StoreID]
		lost := s == nil || s.gone
		damaged := !lost && s.info.IsDamaged(p.ID)
		if !p.Learner {
			voters++
			if !lost && s.connected && !r.IsDown(p.ID) && !damaged {
				healthy++
			}
			if !lost && !damaged && !r.IsPending(p.ID) {
				good++
			}
		}
		silent = silent || !lost && s.connected && r.IsDown(p.ID) && !damaged
		// One that waits for a raft snapshot is counted as incomplete already; its turn may come
		// late.
		starved = starved || !lost && s.connected && starving[p.ID] && !r.IsPending(p.ID)
	}
	if healthy < voters/2+1 && (a.view.Prepared || r.Source() != core.SourceFile) {
		t.noQuorum.add(r.ID())
	}
	if !a.view.Prepared && !r.Confirmed() {
		return
	}
	leader := a.stores[r.LeaderStore()]
	switch {
	case !r.Confirmed():
		t.noLeader.add(r.ID())
	case leader == nil || !leader.connected:
		t.leaderLost.add(r.ID())
	}
	if good < a.view.Replication.MaxReplicas {
		t.few.add(r.ID())
		t.least = min(t.least, good)
	}
	if silent {
		t.silent.add(r.ID())
	}
	if starved {
		t.starving.add(r.ID())
	}
	if a.misplaced(r, possible) {
		t.misplaced.add(r.ID())
	}
}

// places counts the different locations of some stores, for each depth of the location labels.
func (a *assessment) places(each func(visit func(*store))) []int {
	depth := len(a.view.Replication.LocationLabels)
	if depth == 0 {
		return nil
	}
	seen, out := map[string]bool{}, make([]int, depth)
	each(func(s *store) {
		for i, p := range s.places {
			if !seen[p] {
				seen[p] = true
				out[i]++
			}
		}
	})
	return out
}

// misplaced tells whether the replicas could be in more locations, at any depth, than they are.
func (a *assessment) misplaced(r *core.RegionInfo, possible []int) bool {
	if possible == nil {
		return false
	}
	n := 0
	have := a.places(func(visit func(*store)) {
		for _, p := range r.Peers() {
			if s := a.stores[p.StoreID]; s != nil && !s.gone {
				n++
				visit(s)
			}
		}
	})
	for i := range have {
		if have[i] < min(n, possible[i]) {
			return true
		}
	}
	return false
}
