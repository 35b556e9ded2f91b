// Package history keeps what happened in the cluster in the last hour, in slots of ten seconds:
// requests, how long they took, sizes, leaders. The placement leader makes a point at the end of
// each slot from what the stores have reported; the other members copy the points, so that they
// outlive it. Nothing is on disk.
package history

import (
	"slices"
	"sync"
	"time"

	"github.com/tinykv/tinykv/pkg/timing"
)

const (
	// Slot is the time between two points.
	Slot = 10 * time.Second
	// Length is how many points are kept.
	Length = 360
	// maxStores bounds the stores of a point; those with the most requests stay.
	maxStores = 256
)

// Requests are those of one kind.
type Requests struct {
	// PerSecond is their rate. P50 and P99 are how long they took at the stores, in microseconds:
	// the classes that stores report are as wide as a factor of two, and the place in a class is
	// estimated. 0 if there were none.
	PerSecond float64 `json:"per_s"`
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
}

// Store is a store in a point.
type Store struct {
	ID      uint64  `json:"id,string"`
	Reads   float64 `json:"reads_per_s"`
	Writes  float64 `json:"writes_per_s"`
	Leaders int     `json:"leaders"`
	Regions int     `json:"regions"`
	Used    uint64  `json:"used_bytes"`
}

// Point is the cluster at the end of a slot.
type Point struct {
	Time   time.Time `json:"time"`
	Reads  Requests  `json:"reads"`
	Writes Requests  `json:"writes"`
	// Used is what the engines' files take. Regions are those of the map, Operators those that run.
	Used      uint64  `json:"used_bytes"`
	Regions   int     `json:"regions"`
	Operators int     `json:"operators"`
	Stores    []Store `json:"stores"`
}

// Classes count requests by how long they took, as timing.Histogram does.
type Classes [timing.Classes]uint64

// classesOf reads what a store reports. One that reports fewer or more classes knows others, and is
// not understood.
func classesOf(list []uint64) (c Classes, ok bool) {
	return c, copy(c[:], list) == len(c) && len(list) == len(c)
}

// rates are requests a second by class.
type rates [timing.Classes]float64

func (r *rates) add(o *rates) {
	for i := range r {
		r[i] += o[i]
	}
}

func (r *rates) total() (sum float64) {
	for _, n := range r {
		sum += n
	}
	return sum
}

// quantile is the time in microseconds in which a share of the requests was answered. Within a
// class they are taken to lie evenly.
func (r *rates) quantile(share float64) float64 {
	left := share * r.total()
	if left <= 0 {
		return 0
	}
	for i, n := range r {
		high := float64(timing.Bound(i).Microseconds())
		if n >= left || i == len(r)-1 {
			low := high / 2
			if i == 0 {
				low = 0
			}
			return low + (high-low)*min(left/max(n, left), 1)
		}
		left -= n
	}
	return 0
}

func (r *rates) requests() Requests {
	return Requests{PerSecond: r.total(), P50: r.quantile(0.5), P99: r.quantile(0.99)}
}

// beat is what a store has reported last.
type beat struct {
	at            time.Time
	run           uint64
	read, write   Classes
	reads, writes rates
}

// History is safe for concurrent use.
type History struct {
	mu struct {
		sync.Mutex
		beats map[uint64]*beat // by store
		// points, oldest first; at most Length.
		points []Point
	}
}

// New returns an empty history.
func New() *History {
	h := &History{}
	h.mu.beats = map[uint64]*beat{}
	return h
}

// Beat takes in a store's report: the requests that it has answered since it was started. The first
// one of a run of the store says nothing about a rate. Stores that report nothing are left out.
func (h *History) Beat(store, run uint64, at time.Time, reads, writes []uint64) {
	r, ok := classesOf(reads)
	w, ok2 := classesOf(writes)
	if !ok || !ok2 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := &beat{at: at, run: run, read: r, write: w}
	if last := h.mu.beats[store]; last != nil && last.run == run && at.After(last.at) {
		seconds := at.Sub(last.at).Seconds()
		now.reads, now.writes = rate(&last.read, &r, seconds), rate(&last.write, &w, seconds)
	}
	h.mu.beats[store] = now
}

func rate(from, to *Classes, seconds float64) (out rates) {
	for i := range to {
		if to[i] > from[i] {
			out[i] = float64(to[i]-from[i]) / seconds
		}
	}
	return out
}

// Sample ends a slot: p has what the caller knows, with all stores that are up, and gets their
// requests. What a store has reported counts until staleAfter has passed.
func (h *History) Sample(p Point, staleAfter time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var reads, writes rates
	seen := map[uint64]bool{}
	for i := range p.Stores {
		st := &p.Stores[i]
		seen[st.ID] = true
		b := h.mu.beats[st.ID]
		if b == nil || p.Time.Sub(b.at) > staleAfter {
			continue
		}
		reads.add(&b.reads)
		writes.add(&b.writes)
		st.Reads, st.Writes = b.reads.total(), b.writes.total()
	}
	for id := range h.mu.beats {
		if !seen[id] {
			delete(h.mu.beats, id)
		}
	}
	if len(p.Stores) > maxStores {
		slices.SortStableFunc(p.Stores, func(a, b Store) int {
			return int(b.Reads+b.Writes) - int(a.Reads+a.Writes)
		})
		p.Stores = p.Stores[:maxStores]
	}
	p.Reads, p.Writes = reads.requests(), writes.requests()
	h.putLocked(p)
}

func (h *History) putLocked(p Point) {
	if len(h.mu.points) >= Length {
		h.mu.points = append(h.mu.points[:0], h.mu.points[len(h.mu.points)-Length+1:]...)
	}
	h.mu.points = append(h.mu.points, p)
}

// Forget drops what stores have reported, when this member begins to lead: it is from a leadership
// before.
func (h *History) Forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.mu.beats)
}

// After are the points after a time, oldest first.
func (h *History) After(t time.Time) []Point {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, _ := slices.BinarySearchFunc(h.mu.points, t, func(p Point, t time.Time) int {
		if p.Time.After(t) {
			return 1
		}
		return -1
	})
	return slices.Clone(h.mu.points[i:])
}

// Copy takes over points of the leader that are later than those that are here.
func (h *History) Copy(points []Point) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range points {
		if n := len(h.mu.points); n == 0 || p.Time.After(h.mu.points[n-1].Time) {
			h.putLocked(p)
		}
	}
}
