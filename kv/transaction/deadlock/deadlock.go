// Package deadlock knows which transaction waits for which, and finds circles. One store keeps it
// for the cluster; what it knows is lost when another one takes over, and comes again, since those
// who wait repeat themselves.
package deadlock

import (
	"sync"
	"time"
)

// Lifetime is how long an edge counts that nobody repeats.
const Lifetime = 3 * time.Second

// maxEdges bounds what is kept; beyond it waits end by their timeouts.
const maxEdges = 1 << 16

// Edge says that a transaction waits for another one's lock on a key. Both are named by their start
// timestamps.
type Edge struct {
	Waiter, Holder uint64
	Key, Tag       []byte
}

// Graph is who waits for whom. Safe for concurrent use.
type Graph struct {
	now func() time.Time
	mu  struct {
		sync.Mutex
		// edges are by waiter and holder. A transaction waits for several at a time if it sends
		// several requests.
		edges map[uint64]map[uint64]known
		count int
	}
}

type known struct {
	Edge
	expires time.Time
}

// NewGraph returns an empty graph; nil is time.Now.
func NewGraph(now func() time.Time) *Graph {
	if now == nil {
		now = time.Now
	}
	g := &Graph{now: now}
	g.mu.edges = map[uint64]map[uint64]known{}
	return g
}

// Detect adds an edge, unless it closes a circle: then the other edges of it are returned, from
// those of the holder on.
func (g *Graph) Detect(e Edge) (chain []Edge) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if chain := g.wayLocked(e.Holder, e.Waiter); chain != nil {
		return chain
	}
	if _, again := g.mu.edges[e.Waiter][e.Holder]; !again {
		if g.mu.count >= maxEdges {
			g.sweepLocked()
		}
		if g.mu.count >= maxEdges {
			return nil
		}
		g.mu.count++
	}
	if g.mu.edges[e.Waiter] == nil {
		g.mu.edges[e.Waiter] = map[uint64]known{}
	}
	g.mu.edges[e.Waiter][e.Holder] = known{e, g.now().Add(Lifetime)}
	return nil
}

// Remove takes back an edge.
func (g *Graph) Remove(e Edge) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removeLocked(e.Waiter, e.Holder)
}

func (g *Graph) removeLocked(waiter, holder uint64) {
	if _, there := g.mu.edges[waiter][holder]; !there {
		return
	}
	delete(g.mu.edges[waiter], holder)
	if len(g.mu.edges[waiter]) == 0 {
		delete(g.mu.edges, waiter)
	}
	g.mu.count--
}

func (g *Graph) sweepLocked() {
	now := g.now()
	for waiter, to := range g.mu.edges {
		for holder, k := range to {
			if now.After(k.expires) {
				g.removeLocked(waiter, holder)
			}
		}
	}
}

// Edges are all that count now.
func (g *Graph) Edges() (out []Edge) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sweepLocked()
	for _, to := range g.mu.edges {
		for _, k := range to {
			out = append(out, k.Edge)
		}
	}
	return out
}

// wayLocked is a shortest way from one transaction to another one; nil if there is none. Edges
// whose time is over are dropped on the way.
func (g *Graph) wayLocked(from, to uint64) []Edge {
	came := map[uint64]Edge{}
	now := g.now()
	for queue := []uint64{from}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		for holder, k := range g.mu.edges[at] {
			if now.After(k.expires) {
				g.removeLocked(at, holder)
				continue
			}
			if _, been := came[holder]; been || holder == from {
				continue
			}
			came[holder] = k.Edge
			if holder != to {
				queue = append(queue, holder)
				continue
			}
			var way []Edge
			for n := to; n != from; n = came[n].Waiter {
				way = append([]Edge{came[n]}, way...)
			}
			return way
		}
	}
	return nil
}
