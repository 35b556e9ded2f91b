package listappend

import (
	"fmt"
	"slices"
	"strings"
)

// kind is a kind of dependency.
type kind int

const (
	ww kind = iota
	wr
	rw
)

func (k kind) String() string { return [...]string{"ww", "wr", "rw"}[k] }

// edge is a dependency between two transactions.
type edge struct {
	kind     kind
	from, to int
	why      string
}

// graph has the dependencies between transactions, by the one they start from.
type graph struct {
	out   [][]edge
	count int
}

func (g *graph) init(n int) { g.out = make([][]edge, n) }

func (g *graph) add(k kind, from, to int, why string) {
	if from == to {
		return
	}
	g.out[from] = append(g.out[from], edge{k, from, to, why})
	g.count++
}

// step is a ww or wr, perhaps with an rw behind it.
type step []edge

func (s step) to() int { return s[len(s)-1].to }

// steps are those from a transaction, of some kinds of edges. An rw counts only behind one of the
// others: two in a row are allowed, and so a path that begins with one is a part of another step.
func (g *graph) steps(n int, kinds []kind) (out []step) {
	for _, e := range g.out[n] {
		if e.kind == rw || !slices.Contains(kinds, e.kind) {
			continue
		}
		out = append(out, step{e})
		if !slices.Contains(kinds, rw) {
			continue
		}
		for _, f := range g.out[e.to] {
			if f.kind == rw {
				out = append(out, step{e, f})
			}
		}
	}
	return out
}

// cycle is a shortest cycle of steps, as its edges; nil if there is none.
func (g *graph) cycle(kinds []kind) (best []edge) {
	next := func(n int) []step { return g.steps(n, kinds) }
	for _, group := range components(len(g.out), func(n int, visit func(int)) {
		for _, s := range next(n) {
			visit(s.to())
		}
	}) {
		for _, n := range group.members {
			if !group.cyclic {
				break
			}
			if found := shortest(n, next); best == nil || len(found) > 0 && len(found) < len(best) {
				best = found
			}
		}
		if best != nil {
			return best
		}
	}
	return nil
}

// shortest is a shortest way from a transaction back to it.
func shortest(start int, next func(int) []step) []edge {
	came := map[int]step{}
	for queue := []int{start}; len(queue) > 0; queue = queue[1:] {
		for _, s := range next(queue[0]) {
			to := s.to()
			if _, been := came[to]; been {
				continue
			}
			came[to] = s
			if to != start {
				queue = append(queue, to)
				continue
			}
			var way []edge
			for at := start; ; {
				s := came[at]
				way = append(slices.Clone(s), way...)
				if at = s[0].from; at == start {
					return way
				}
			}
		}
	}
	return nil
}

// skews is how many groups of transactions depend on each other, if any kind of dependency counts.
func (g *graph) skews() (n int) {
	for _, group := range components(len(g.out), func(n int, visit func(int)) {
		for _, e := range g.out[n] {
			visit(e.to)
		}
	}) {
		if group.cyclic {
			n++
		}
	}
	return n
}

type component struct {
	members []int
	// cyclic: there is a way from each member back to it.
	cyclic bool
}

// components are the strongly connected ones (Tarjan), without recursion.
func components(n int, each func(n int, visit func(int))) (out []component) {
	index, low := make([]int, n), make([]int, n) // 0 is unvisited
	onStack := make([]bool, n)
	var stack []int
	counter := 0
	type frame struct {
		node, at int
		next     []int
	}
	for root := range n {
		if index[root] != 0 {
			continue
		}
		var frames []frame
		enter := func(v int) {
			counter++
			index[v], low[v] = counter, counter
			stack, onStack[v] = append(stack, v), true
			f := frame{node: v}
			each(v, func(w int) { f.next = append(f.next, w) })
			frames = append(frames, f)
		}
		enter(root)
		for len(frames) > 0 {
			f := &frames[len(frames)-1]
			if f.at < len(f.next) {
				w := f.next[f.at]
				f.at++
				if index[w] == 0 {
					enter(w)
				} else if onStack[w] {
					low[f.node] = min(low[f.node], index[w])
				}
				continue
			}
			v := f.node
			frames = frames[:len(frames)-1]
			if len(frames) > 0 {
				parent := frames[len(frames)-1].node
				low[parent] = min(low[parent], low[v])
			}
			if low[v] != index[v] {
				continue
			}
			at := slices.Index(stack, v)
			members := slices.Clone(stack[at:])
			stack = stack[:at]
			for _, m := range members {
				onStack[m] = false
			}
			out = append(out, component{members, len(members) > 1 || slices.Contains(f.next, v)})
		}
	}
	return out
}

// name is Adya's name of a cycle.
func name(cycle []edge) string {
	count := [3]int{}
	for _, e := range cycle {
		count[e.kind]++
	}
	switch {
	case count[rw] > 1:
		return "G-nonadjacent"
	case count[rw] == 1:
		return "G-single"
	case count[wr] > 0:
		return "G1c"
	}
	return "G0"
}

// describe tells a cycle.
func (g *graph) describe(cycle []edge) (txns []int, text string) {
	var parts []string
	for _, e := range cycle {
		txns = append(txns, e.from)
		parts = append(parts, fmt.Sprintf("%d -%s-> %d (%s)", e.from, e.kind, e.to, e.why))
	}
	return txns, strings.Join(parts, ", ")
}
