package sim

// maxHeld bounds what a stalled network keeps.
const maxHeld = 5000

// swizzle cuts a random part of the nodes off, one after the other, and lets them back in another
// order. What is sent meanwhile is lost, or held back and delivered on the return as by a
// connection that stalls: then the messages of several leaders arrive together.
func (w *World) swizzle() {
	ids := make([]uint64, 0, len(w.nodes))
	for id := range w.nodes[1:] {
		ids = append(ids, uint64(id)+1)
	}
	w.shuffle(ids)
	ids = ids[:w.rng.between(1, len(ids))]
	w.holdBack = w.rng.chance(0.5)
	w.oracle.counts.Swizzles++
	w.trace("fault: swizzle %v, held back: %v", ids, w.holdBack)
	step := int(w.after(4 * tickUS))
	at := w.now
	for _, id := range ids {
		w.plan(event{at: at, kind: evClog, node: id})
		at += w.after(step)
	}
	at += w.after(10 * tickUS)
	w.shuffle(ids)
	for _, id := range ids {
		w.plan(event{at: at, kind: evUnclog, node: id})
		at += w.after(step)
	}
}

func (w *World) shuffle(ids []uint64) {
	for i := len(ids) - 1; i > 0; i-- {
		j := w.rng.Intn(i + 1)
		ids[i], ids[j] = ids[j], ids[i]
	}
}

// passes says whether a message gets out of a node and on to another one.
func (w *World) passes(from, to uint64) bool {
	return !w.clogged[from] && !w.clogged[to] && !(w.cuts && w.cut[from][to])
}

// hold keeps a message back until its ends are let back.
func (w *World) hold(e event) {
	if w.holdBack && len(w.held) < maxHeld {
		w.held = append(w.held, e)
	}
}

// unclog lets a node back, and what was held back for it.
func (w *World) unclog(id uint64) {
	w.clogged[id] = false
	w.trace("node %d is let back", id)
	held := w.held
	w.held = nil
	for _, e := range held {
		if w.clogged[e.from] || w.clogged[e.node] {
			w.held = append(w.held, e)
			continue
		}
		e.at = w.now + w.delay(false)
		w.plan(e)
	}
}
