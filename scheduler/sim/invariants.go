package sim

import (
	"slices"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
)

// checked carries out one event and checks what must hold after it: the indexes and counters and
// the running operators if the run audits each event, else only what the event touched. region is
// what the event was about, 0 if it was about no single one.
func (s *Sim) checked(region uint64, event func()) {
	event()
	s.checkEpoch(region)
	if s.opts.AuditEach {
		s.Stats.Audits++
		s.audit()
	}
}

// checkEpoch: what is known of a region never gets older, as long as the same leader knows it.
func (s *Sim) checkEpoch(id uint64) {
	r := s.cluster.Core().Region(id)
	if r == nil {
		delete(s.epochs, id)
		return
	}
	old := s.epochs[id]
	if r.Version() < old[0] || r.ConfVer() < old[1] {
		s.faultf("region %d went back from v%d/c%d to v%d/c%d", id, old[0], old[1], r.Version(),
			r.ConfVer())
	}
	s.epochs[id] = [2]uint64{r.Version(), r.ConfVer()}
}

// audit compares the placement service's indexes and counters with a recount, and looks at the
// running operators.
func (s *Sim) audit() {
	checkTruth(s)
	type members struct {
		counts core.StoreCounts
		ids    []uint64
	}
	want := map[uint64]*members{}
	var prev *core.RegionInfo
	for _, r := range s.cluster.Core().ScanRegions(nil, nil, 0) {
		if s.cluster.Core().Region(r.ID()) != r {
			s.faultf("index by id and tree differ at region %d", r.ID())
		}
		if prev != nil &&
			(len(prev.EndKey()) == 0 || string(prev.EndKey()) > string(r.StartKey())) {
			s.faultf("regions %d and %d overlap", prev.ID(), r.ID())
		}
		prev = r
		for _, p := range r.Peers() {
			n := want[p.StoreID]
			if n == nil {
				n = &members{}
				want[p.StoreID] = n
			}
			n.ids = append(n.ids, r.ID())
			n.counts.RegionCount++
			n.counts.RegionSize += r.Size()
			if r.LeaderStore() == p.StoreID {
				n.counts.LeaderCount++
				n.counts.LeaderSize += r.Size()
			}
			if r.IsPending(p.ID) {
				n.counts.PendingCount++
			}
		}
	}
	for _, st := range s.cluster.Core().Stores() {
		n := want[st.ID()]
		if n == nil {
			n = &members{}
		}
		if st.Counts() != n.counts {
			s.faultf("store %d: counters %+v, recount %+v", st.ID(), st.Counts(), n.counts)
		}
		slices.Sort(n.ids)
		if !slices.EqualFunc(s.cluster.Core().StoreRegions(st.ID()), n.ids,
			func(r *core.RegionInfo, id uint64) bool { return r.ID() == id }) {
			s.faultf("store %d: its set of regions is not what the tree has", st.ID())
		}
	}
	s.checkOperators()
}

// checkOperators: one operator a region, of a region that is known; no store takes part in more
// moves than repair may use; and a move under way leaves no hole in the sum of sizes and influence
// and counts nothing twice. (Influence is not kept but summed up from the operators for each view.)
func (s *Sim) checkOperators() {
	seen := map[uint64]bool{}
	all := operator.Influence{}
	for _, op := range s.cluster.Controller().Running() {
		r := s.cluster.Core().Region(op.RegionID())
		if r == nil || seen[op.RegionID()] {
			s.faultf("operator %v: region unknown or twice", op)
			continue
		}
		seen[op.RegionID()] = true
		all.Add(op, r)
		if op.Desc() != "balance-region" {
			continue
		}
		own, sum := operator.Influence{}, int64(0)
		own.Add(op, r)
		for _, i := range own {
			sum += i.Size
		}
		if got := sum + r.Size()*int64(len(r.Peers())); got != r.Size()*int64(s.opts.Replicas) {
			s.faultf("region %d of %d MiB in %v: sizes and influence make %d MiB", r.ID(), r.Size(),
				op, got)
		}
	}
	for id, i := range all {
		// What leaves a store that is dead, being emptied or damaged costs it nothing: others send
		// the data.
		info := s.cluster.Core().Store(id)
		out := i.OutMoves
		if !s.usable(id) || !info.IsUp() || s.stores[id].sickened {
			out = 0
		}
		if most := 2 * s.opts.Schedule.StoreMovesInFlight; i.InMoves > most || out > most {
			s.faultf("store %d takes part in %d moves in and %d out", id, i.InMoves, i.OutMoves)
		}
	}
}

// checkRemoval: a voter that is sound goes only if as many voters as there should be stay that have
// the data. So a move or a repair never leaves a region with fewer of them than it had, whatever
// happens to the stores meanwhile.
//
// One that is not sound goes first only where no store is left for its successor.
func (s *Sim) checkRemoval(r *Region, next *metapb.Region, id uint64) {
	free := 0
	for _, st := range s.order {
		info := s.cluster.Core().Store(st.id)
		has := slices.ContainsFunc(r.meta.Peers, func(p *metapb.Peer) bool {
			return p.StoreId == st.id
		})
		if !has && s.usable(st.id) && info != nil && info.IsUp() && !st.stalled {
			free++
		}
	}
	if free > 0 && voters(next) < min(s.opts.Replicas, voters(r.meta)) {
		s.faultf("region %d: peer %d was removed before its successor had a vote", r.meta.Id, id)
	}
	for _, p := range r.meta.Peers {
		if p.Id == id && (isLearner(p) || !s.canServe(r, p)) {
			return
		}
	}
	full := 0
	for _, p := range next.Peers {
		if !isLearner(p) && !r.noData[p.Id] {
			full++
		}
	}
	if full < s.opts.Replicas {
		s.faultf("region %d: a sound voter was removed, %d with the data are left", r.meta.Id, full)
	}
}

// zones counts how many zones the peers are in.
func (s *Sim) zones(peers []*metapb.Peer) int {
	seen := map[string]bool{}
	for _, p := range peers {
		for _, l := range s.stores[p.StoreId].labels {
			seen[l.Value] = true
		}
	}
	return len(seen)
}

// beforeAdd and afterRemove see that a move between healthy stores brings no replicas together in
// fewer zones than before.
func (s *Sim) beforeAdd(r *Region) {
	if r.spread = 0; len(r.meta.Peers) == s.opts.Replicas {
		r.spread = s.zones(r.meta.Peers)
	}
}

func (s *Sim) afterRemove(r *Region, from uint64) {
	info := s.cluster.Core().Store(from)
	if len(r.meta.Peers) == s.opts.Replicas && s.usable(from) && info != nil && info.IsUp() {
		if n := s.zones(r.meta.Peers); n < r.spread {
			s.faultf("region %d: a move left it in %d zones of %d", r.meta.Id, n, r.spread)
		}
	}
	if len(r.meta.Peers) <= s.opts.Replicas {
		r.spread = 0
	}
}
