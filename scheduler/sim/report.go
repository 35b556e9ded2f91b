package sim

import (
	"fmt"
	"math"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
)

// Stats are what a run has done.
type Stats struct {
	Heartbeats, Commands, Ticks, Transfers, PeersAdded int
	Splits, Audits                                     int
	Merges, MergeOrders, MergeRefusals                 int
	BiggestJoined                                      int64
	// splits of a region that took another one within the hour before
	SplitAgain int
	BytesMoved int64
	PingPong   int // peers that came back to a store the region had been given before

	measuring bool
	began     time.Time
	movesAt   int
	// transfersAt is how many there were when measuring began.
	transfersAt int
	lowerBound  float64
	lastMove    time.Time
	settled     time.Time // when sizes were first within 5 % of the mean, zero if never
	worst       float64   // largest size relative to the mean since measuring began
}

// eligible are the stores that balancing evens out.
func (s *Sim) eligible() []*Store {
	var out []*Store
	for _, st := range s.order {
		info := s.cluster.Core().Store(st.id)
		if st.alive && info != nil && info.IsUp() {
			out = append(out, st)
		}
	}
	return out
}

// sizeOf counts what the store holds, in MiB.
func (s *Sim) sizeOf(st *Store) int64 {
	var n int64
	for r := range st.regions {
		n += max(1, r.size)
	}
	return n
}

// weights are the shares by capacity; their mean is 1.
func (s *Sim) weights(stores []*Store) map[uint64]float64 {
	total := 0.0
	for _, st := range stores {
		total += float64(st.capacity)
	}
	out := map[uint64]float64{}
	for _, st := range stores {
		out[st.id] = float64(st.capacity) * float64(len(stores)) / total
	}
	return out
}

// BeginMeasure starts counting moves against the least number that could even the stores out: the
// sum of the surpluses over the mean, in average regions.
func (s *Sim) BeginMeasure() {
	stores := s.eligible()
	w := s.weights(stores)
	var total, surplus float64
	for _, st := range stores {
		total += float64(s.sizeOf(st))
	}
	mean := total / float64(len(stores))
	for _, st := range stores {
		surplus += max(0, float64(s.sizeOf(st))-mean*w[st.id])
	}
	var sizes int64
	for _, r := range s.regions {
		sizes += max(1, r.size)
		r.moves, r.trail = 0, nil
		for _, p := range r.meta.Peers {
			r.trail = append(r.trail, p.StoreId)
		}
	}
	s.Stats.measuring, s.Stats.began, s.Stats.movesAt = true, s.now, s.Stats.PeersAdded
	s.Stats.transfersAt = s.Stats.Transfers
	s.Stats.lowerBound = surplus / (float64(sizes) / float64(max(1, len(s.regions))))
	s.Stats.PingPong, s.Stats.settled, s.Stats.lastMove, s.Stats.worst = 0, time.Time{}, s.now, 0
}

// measure notes when the stores are first even. It is sampled by ticks, rarely.
func (s *Sim) measure() {
	if !s.Stats.measuring || !s.Stats.settled.IsZero() || s.Stats.Ticks%50 != 0 {
		return
	}
	if s.spread(func(st *core.StoreInfo) float64 { return float64(st.RegionSize()) }) <= 1.05/0.95 {
		s.Stats.settled = s.now
	}
}

// spread is the largest over the smallest value among up stores, by weight.
func (s *Sim) spread(value func(*core.StoreInfo) float64) float64 {
	stores := s.eligible()
	w := s.weights(stores)
	lo, hi := math.Inf(1), 0.0
	for _, st := range stores {
		v := value(s.cluster.Core().Store(st.id)) / w[st.id]
		lo, hi = min(lo, v), max(hi, v)
	}
	if hi == 0 {
		return 1
	}
	return hi / max(lo, 1e-9)
}

// Result sums a run up.
type Result struct {
	Moves      int
	LowerBound float64
	Ratio      float64 // moves over the lower bound
	MaxMin     float64 // sizes
	LeaderMax  float64 // leaders
	PingPong   int
	Twice      int // regions moved more than once
	Settled    time.Duration
	Quiet      time.Duration // since the last move
	Running    int
	Missing    int // regions with fewer replicas than wanted
	Extra      int
}

// Result of the time since BeginMeasure.
func (s *Sim) Result() Result {
	res := Result{
		Moves: s.Stats.PeersAdded - s.Stats.movesAt, LowerBound: s.Stats.lowerBound,
		MaxMin:    s.spread(func(st *core.StoreInfo) float64 { return float64(st.RegionSize()) }),
		LeaderMax: s.spread(func(st *core.StoreInfo) float64 { return float64(st.LeaderCount()) }),
		PingPong:  s.Stats.PingPong, Quiet: s.now.Sub(s.Stats.lastMove),
		Running: s.cluster.Controller().Len(),
	}
	res.Ratio = float64(res.Moves) / max(1, res.LowerBound)
	if !s.Stats.settled.IsZero() {
		res.Settled = s.Stats.settled.Sub(s.Stats.began)
	}
	for _, r := range s.regions {
		if r.moves > 1 {
			res.Twice++
		}
		live := 0
		for _, p := range r.meta.Peers {
			_, sick := r.sick[p.Id]
			if !isLearner(p) && s.stores[p.StoreId].alive && !r.noData[p.Id] && !sick {
				live++
			}
		}
		if live < s.opts.Replicas {
			res.Missing++
		}
		if len(r.meta.Peers) > s.opts.Replicas {
			res.Extra++
		}
	}
	return res
}

func (r Result) String() string {
	return fmt.Sprintf(
		"moves %d, lower bound %.0f, ratio %.3f, max/min %.3f, leaders max/min %.3f, within 5%% after %v, "+
			"quiet for %v, moved twice %d, ping-pong %d, running %d, missing %d, extra %d", r.Moves,
		r.LowerBound, r.Ratio,
		r.MaxMin, r.LeaderMax, r.Settled.Round(time.Second), r.Quiet.Round(time.Second), r.Twice,
		r.PingPong, r.Running,
		r.Missing, r.Extra)
}

// Together counts the regions whose replicas are in fewer zones than they could be.
func (s *Sim) Together() int {
	all := map[string]bool{}
	for _, st := range s.eligible() {
		for _, l := range st.labels {
			all[l.Value] = true
		}
	}
	n := 0
	for _, r := range s.regions {
		if s.zones(r.meta.Peers) < min(len(all), s.opts.Replicas) {
			n++
		}
	}
	return n
}

// BetterLocations counts the moves to a better location that have ended well.
func (s *Sim) BetterLocations() int {
	n := 0
	for _, r := range s.cluster.Controller().History(1 << 20) {
		if r.Desc == "better-location" && r.Status == operator.Success {
			n++
		}
	}
	return n
}

// History returns how many operators ended with each outcome.
func (s *Sim) History() map[operator.Status]int {
	out := map[operator.Status]int{}
	for _, r := range s.cluster.Controller().History(1 << 20) {
		out[r.Status]++
	}
	return out
}
