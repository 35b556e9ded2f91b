package sim

import (
	"math/big"
	"math/rand/v2"
	"time"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// Load is what clients write: so many MiB a second, to all regions alike or to few of them, and
// regions beyond a size are split. Owned by the run.
type Load struct {
	RateMiB float64
	// Zipf is the exponent of the distribution of writes over regions, above 1; 0 is uniform.
	Zipf     float64
	SplitMiB int64
	// Drop is the share of the writes that empty the region instead.
	Drop      float64
	remainder float64
}

// writesPerSecond is how many regions a second's load is spread over.
const writesPerSecond = 16

// SetLoad starts, changes or (rate 0) ends the load.
func (s *Sim) SetLoad(l Load) {
	running := s.load.RateMiB > 0
	if s.load = l; l.RateMiB > 0 && !running {
		s.after(time.Second, s.write)
	}
}

func (s *Sim) write() {
	l := &s.load
	if l.RateMiB == 0 || len(s.regions) == 0 {
		return
	}
	var pick func() uint64
	if n := uint64(len(s.regions)); l.Zipf > 1 {
		pick = rand.NewZipf(s.rng, l.Zipf, 1, n-1).Uint64
	} else {
		pick = func() uint64 { return s.rng.Uint64N(n) }
	}
	l.remainder += l.RateMiB
	each := int64(l.remainder / writesPerSecond)
	l.remainder -= float64(each * writesPerSecond)
	for range writesPerSecond {
		r := s.regions[pick()]
		if each == 0 || r.frozen || r.leader == 0 || !s.usable(r.leader) || !s.hasQuorum(r) {
			continue
		}
		r.size += each
		if l.Drop > 0 && s.rng.Float64() < l.Drop {
			r.size = 1
		}
		r.hb = nil
		r.written += uint64(each) << 20
		if r.size >= l.SplitMiB {
			s.split(r)
		}
	}
	s.after(time.Second, s.write)
}

// split halves a region: the left half keeps the id and the size is shared.
func (s *Sim) split(r *Region) {
	at := between(r.meta.StartKey, r.meta.EndKey)
	left, right := *r.meta, *r.meta
	e := r.meta.RegionEpoch
	left.RegionEpoch = &metapb.RegionEpoch{Version: e.Version + 1, ConfVer: e.ConfVer}
	right.RegionEpoch = left.RegionEpoch
	left.EndKey, right.StartKey = at, at
	s.nextID++
	right.Id, right.Peers = s.nextID, nil
	n := &Region{
		meta: &right, leader: r.leader, term: r.term, size: r.size / 2, noData: map[uint64]bool{},
	}
	for _, p := range r.meta.Peers {
		s.nextID++
		right.Peers = append(right.Peers,
			&metapb.Peer{Id: s.nextID, StoreId: p.StoreId, Role: p.Role})
		s.stores[p.StoreId].regions[n] = struct{}{}
		if r.noData[p.Id] { // the snapshot on its way is one of the whole
			n.noData[s.nextID] = true
			s.snapshot(n, right.Peers[len(right.Peers)-1])
		}
	}
	r.meta, r.size = &left, r.size-n.size
	if !r.joined.IsZero() && s.now.Sub(r.joined) < s.opts.Schedule.SplitMergeInterval.D() {
		s.Stats.SplitAgain++
	}
	r.split, n.split = s.now, s.now
	s.regions, s.byID[right.Id] = append(s.regions, n), n
	s.Stats.Splits++
	s.checked(r.meta.Id, func() {
		if err := s.cluster.ReportSplit(&left, &right); err != nil {
			s.faultf("split of region %d refused: %v", left.Id, err)
		}
	})
	s.changed(r)
	s.changed(n)
}

// between returns a key in the middle of [start, end): both are taken as fractions.
func between(start, end []byte) []byte {
	n := max(len(start), len(end)) + 1
	number := func(key []byte) *big.Int {
		padded := make([]byte, n)
		copy(padded, key)
		return new(big.Int).SetBytes(padded)
	}
	a, b := number(start), number(end)
	if len(end) == 0 {
		b = new(big.Int).Lsh(big.NewInt(1), uint(8*n))
	}
	return a.Add(a, b).Rsh(a, 1).FillBytes(make([]byte, n))
}
