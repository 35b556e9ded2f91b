package sim

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/schedule/merge"
)

// What stores do about a merge, as far as the placement service can see it: the source is frozen,
// which is one version more; then the target has its range at a higher one, or the target refuses,
// and both go on one version further.

const (
	freezeTime = 10 * time.Millisecond
	commitTime = 30 * time.Millisecond
	refuseTime = 5 * time.Second
)

// freeze begins a merge if both regions are as the order says and all their replicas take part.
func (s *Sim) freeze(r *Region, e *metapb.RegionEpoch, order *metapb.Region) {
	t := s.byID[order.Id]
	if t == nil || r.meta.RegionEpoch != e || r.frozen || t.frozen || !whole(s, r) ||
		!sameStores(r.meta, t.meta) ||
		*t.meta.RegionEpoch != *order.RegionEpoch {
		return
	}
	for i := range s.holds {
		if h := &s.holds[i]; s.now.Before(h.Until) && (covers(h, r.meta) || covers(h, t.meta)) {
			s.faultf("region %d was merged into %d, which somebody holds", r.meta.Id, t.meta.Id)
		}
	}
	for _, x := range []*Region{r, t} {
		if interval := s.opts.Schedule.SplitMergeInterval.D(); !x.split.IsZero() &&
			s.now.Sub(x.split) < interval {
			s.faultf("region %d is merged %v after its split", x.meta.Id, s.now.Sub(x.split))
		}
	}
	s.Stats.MergeOrders++
	r.frozen = true
	newVersion(r)
	s.after(commitTime, func() { s.commitMerge(r, t, order.RegionEpoch) })
}

// whole tells whether all replicas of a region are voters that take part.
func whole(s *Sim, r *Region) bool {
	return r.leader != 0 && s.usable(r.leader) && s.healthy(r, r.meta) == len(r.meta.Peers)
}

func newVersion(r *Region) {
	next := *r.meta
	next.RegionEpoch = &metapb.RegionEpoch{
		Version: r.meta.RegionEpoch.Version + 1, ConfVer: r.meta.RegionEpoch.ConfVer,
	}
	r.meta, r.hb = &next, nil
}

func (s *Sim) commitMerge(r, t *Region, at *metapb.RegionEpoch) {
	if *t.meta.RegionEpoch != *at || !whole(s, r) || !whole(s, t) {
		s.after(refuseTime, func() { refuseMerge(s, r, t, at) })
		return
	}
	next := *t.meta
	next.RegionEpoch = &metapb.RegionEpoch{
		Version: max(t.meta.RegionEpoch.Version, r.meta.RegionEpoch.Version) + 1,
		ConfVer: t.meta.RegionEpoch.ConfVer,
	}
	if len(r.meta.EndKey) > 0 && bytes.Equal(r.meta.EndKey, t.meta.StartKey) {
		next.StartKey = r.meta.StartKey
	} else {
		next.EndKey = r.meta.EndKey
	}
	t.meta, t.size, t.joined = &next, max(1, t.size+r.size-1), s.now
	s.regions = slices.DeleteFunc(s.regions, func(o *Region) bool { return o == r })
	delete(s.byID, r.meta.Id)
	for _, p := range r.meta.Peers {
		delete(s.stores[p.StoreId].regions, r)
	}
	s.Stats.Merges++
	s.Stats.BiggestJoined = max(s.Stats.BiggestJoined, t.size)
	s.Stats.lastMove = s.now
	s.changed(t)
}

// refuseMerge ends a merge that was not committed: the target leaves the epoch at which alone it
// could be.
func refuseMerge(s *Sim, r, t *Region, at *metapb.RegionEpoch) {
	if !s.hasQuorum(t) || !s.hasQuorum(r) || t.leader == 0 || r.leader == 0 {
		s.after(refuseTime, func() { refuseMerge(s, r, t, at) })
		return
	}
	s.Stats.MergeRefusals++
	if *t.meta.RegionEpoch == *at {
		newVersion(t)
		s.changed(t)
	}
	r.frozen = false
	newVersion(r)
	s.changed(r)
}

func sameStores(a, b *metapb.Region) bool {
	stores := func(m *metapb.Region) (out []uint64) {
		for _, p := range m.Peers {
			out = append(out, p.StoreId)
		}
		slices.Sort(out)
		return out
	}
	return slices.Equal(stores(a), stores(b))
}

func covers(h *merge.Hold, m *metapb.Region) bool {
	return (len(h.End) == 0 || bytes.Compare(m.StartKey, h.End) < 0) &&
		(len(m.EndKey) == 0 || bytes.Compare(h.Start, m.EndKey) < 0)
}

// Hold has the placement service keep the regions that share keys with those that AddRegions has
// made as from to last from being merged, for a time. It is persisted: the next placement leader
// has it too.
func (s *Sim) Hold(from, last uint64, d time.Duration) error {
	key := func(i uint64) []byte { return binary.BigEndian.AppendUint32(nil, uint32(i)) }
	h := merge.Hold{Start: key(from - 1), End: key(last), Until: s.now.Add(d), Why: "scenario"}
	next, err := merge.With(s.holds, h, s.now)
	if err == nil {
		s.holds = next
		s.cluster.SetHolds(next)
	}
	return err
}

// held counts the regions that are in a hold, frozen those whose merge is not decided.
func held(s *Sim) (n int) {
	for _, r := range s.regions {
		if slices.ContainsFunc(s.holds, func(h merge.Hold) bool {
			return s.now.Before(h.Until) && covers(&h, r.meta)
		}) {
			n++
		}
	}
	return n
}

func frozen(s *Sim) (n int) {
	for _, r := range s.regions {
		if r.frozen {
			n++
		}
	}
	return n
}

// checkTruth: the regions that are there have every key once.
func checkTruth(s *Sim) {
	list := slices.Clone(s.regions)
	slices.SortFunc(list, func(a, b *Region) int {
		return bytes.Compare(a.meta.StartKey, b.meta.StartKey)
	})
	var end []byte
	for i, r := range list {
		if !bytes.Equal(r.meta.StartKey, end) || (len(r.meta.EndKey) == 0) != (i == len(list)-1) {
			s.faultf("region %d begins at another key than the one before it ends", r.meta.Id)
			return
		}
		end = r.meta.EndKey
	}
}
