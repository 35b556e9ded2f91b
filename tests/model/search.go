package model

import (
	"fmt"
	"slices"
	"strings"
)

// result is what a search has found.
type result struct {
	states   int
	depth    int  // of the last state looked at
	complete bool // every state was reached
	// broken is the invariant that a state breaks; empty if none does.
	broken string
	trace  []string // the steps from the start to that state
}

func (r result) String() string {
	how := "all"
	if !r.complete {
		how = "cut short"
	}
	text := fmt.Sprintf("%d states, %d steps deep, %s", r.states, r.depth, how)
	if r.broken != "" {
		text = fmt.Sprintf("%s broken after %d steps, %d states:\n  %s", r.broken, len(r.trace),
			r.states, strings.Join(r.trace, "\n  "))
	}
	return text
}

// search looks at all states, breadth first.
//
// Invariant: hashes[i] is the hash of state i in the order of discovery, parents[i] its
// predecessor; the frontier is the last states of it. A state is known by 64 bits of hash only:
// with 30 million states two share one with a probability of one in 40,000, and then a state is
// missed.
type search struct {
	m       *model
	seen    hashSet
	hashes  []uint64
	parents []uint32
	// limit ends the search after so many states; 0 is none.
	limit int
	// endsEvery looks from each n-th state whether the merge ends; 0 from none.
	endsEvery uint64
}

func (s *search) run() result {
	first := s.m.first()
	canonical(&first)
	s.add(first.hash(), 0)
	frontier, base := []state{first}, 0
	for depth := 0; ; depth++ {
		var next []state
		bad, broken := -1, ""
		for i := range frontier {
			parent := uint32(base + i)
			if broken = s.check(&frontier[i]); broken != "" {
				bad = base + i
				break
			}
			s.m.successors(&frontier[i], func(_ step, n *state) {
				canonical(n)
				if s.add(n.hash(), parent) {
					next = append(next, *n)
				}
			})
			if s.limit > 0 && len(s.hashes) > s.limit {
				return result{states: len(s.hashes), depth: depth}
			}
		}
		if broken != "" {
			return result{states: len(s.hashes), depth: depth, broken: broken, trace: s.trace(bad)}
		}
		if len(next) == 0 {
			return result{states: len(s.hashes), depth: depth, complete: true}
		}
		base += len(frontier)
		frontier = next
	}
}

func (s *search) check(st *state) string {
	if broken := s.m.broken(st); broken != "" {
		return broken
	}
	if s.endsEvery > 0 && st.hash()%s.endsEvery == 0 {
		return s.m.stuck(st)
	}
	return ""
}

func (s *search) add(hash uint64, parent uint32) bool {
	if !s.seen.add(hash) {
		return false
	}
	s.hashes = append(s.hashes, hash)
	s.parents = append(s.parents, parent)
	return true
}

// trace is the way to a state. States are kept in a canonical order of the stores; the trace keeps
// one order.
func (s *search) trace(to int) []string {
	var path []uint64
	for i := to; i != 0; i = int(s.parents[i]) {
		path = append(path, s.hashes[i])
	}
	slices.Reverse(path)
	cur := s.m.first()
	var out []string
	for _, want := range path {
		found := false
		var chosen state
		s.m.successors(&cur, func(by step, n *state) {
			c := *n
			canonical(&c)
			if !found && c.hash() == want {
				found, chosen = true, *n
				out = append(out, by.String())
			}
		})
		if !found {
			return append(out, "(the way is lost: two states share a hash)")
		}
		cur = chosen
	}
	return out
}

// hashSet is a set of hashes, open addressing. Invariant: less than two thirds are in use; 0 stands
// for none.
type hashSet struct {
	slots []uint64
	count int
}

func (h *hashSet) add(x uint64) bool {
	if x == 0 {
		x = 1
	}
	if h.count*3 >= len(h.slots)*2 {
		old := h.slots
		h.slots = make([]uint64, max(1<<12, 2*len(old)))
		for _, o := range old {
			if o != 0 {
				h.slots[h.find(o)] = o
			}
		}
	}
	i := h.find(x)
	if h.slots[i] == x {
		return false
	}
	h.slots[i] = x
	h.count++
	return true
}

// find returns the slot of x, or the free one where it belongs.
func (h *hashSet) find(x uint64) int {
	mask := uint64(len(h.slots) - 1)
	i := (x * 0x9e3779b97f4a7c15) >> 20 & mask
	for h.slots[i] != 0 && h.slots[i] != x {
		i = (i + 1) & mask
	}
	return int(i)
}
