package sim

import (
	"slices"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// proposal waits at the node that took it, until it has its outcome (I13): applied, definitely not,
// or unknown.
type proposal struct {
	id, index, term uint64
	// deadline is when a node that no longer leads the proposal's term gives up, 0 while it does.
	deadline int64
}

// read waits for its ReadState, from the leader of a term.
type read struct{ id, need, term uint64 }

// fate is what became of a proposal: the index it was applied at by anybody, and whether its node
// has said that this will never happen.
type fate struct {
	index   uint64
	refused bool
}

// hangTimeouts is how many election timeouts an operation may take when nothing goes wrong.
const hangTimeouts = 3

// track notes a proposal that was taken.
func (n *node) track(id uint64) {
	n.w.oracle.counts.Proposals++
	n.props = append(n.props, proposal{id: id, index: n.rn.LastIndex(), term: n.rn.Term()})
}

// newID returns the number that the next proposal carries.
func (w *World) newID() uint64 {
	w.oracle.fates = append(w.oracle.fates, fate{})
	return uint64(len(w.oracle.fates) - 1)
}

// idOf returns the number that an entry carries, 0 for an empty one.
func idOf(e *eraftpb.Entry) uint64 {
	if e.EntryType != eraftpb.EntryType_EntryConfChange {
		return getUint64(e.Data)
	}
	var cc eraftpb.ConfChange
	if cc.Unmarshal(e.Data) != nil {
		return 0
	}
	return getUint64(cc.Context)
}

// sawEntry takes an entry that somebody applies, before anybody else did.
func (w *World) sawEntry(e *eraftpb.Entry) {
	id := idOf(e)
	if id == 0 {
		return
	}
	f := &w.oracle.fates[id]
	switch {
	case f.index != 0:
		w.fail("I13", "proposal %d is applied at %d and at %d", id, f.index, e.Index)
	case f.refused:
		w.fail("I13", "proposal %d is applied at %d, and was answered as never applied", id,
			e.Index)
	}
	f.index = e.Index
}

// answer gives the proposal that waits for an index its outcome. Another term at that index means
// another entry: the proposal will never be applied.
func (n *node) answer(e *eraftpb.Entry) {
	if len(n.props) == 0 {
		return
	}
	n.props = slices.DeleteFunc(n.props, func(p proposal) bool {
		if p.index != e.Index {
			return false
		}
		c := &n.w.oracle.counts
		if p.term == e.Term {
			c.OutcomeApplied++
			if idOf(e) != p.id {
				n.w.fail("I13", "node %d: proposal %d waits for %d, where %d is", n.id, p.id,
					e.Index, idOf(e))
			}
			return true
		}
		c.OutcomeNever++
		f := &n.w.oracle.fates[p.id]
		f.refused = true
		if f.index != 0 {
			n.w.fail("I13", "proposal %d was answered as never applied, and was applied at %d",
				p.id, f.index)
		}
		return true
	})
}

// loseProposals gives the proposals up to an index the outcome "unknown".
func (n *node) loseProposals(upTo uint64) {
	before := len(n.props)
	n.props = slices.DeleteFunc(n.props, func(p proposal) bool { return p.index <= upTo })
	n.w.oracle.counts.OutcomeUnknown += before - len(n.props)
}

// expireProposals gives up those of terms that the node no longer leads, some time afterwards.
// Those of a leader in office have no deadline: raft must give them an outcome.
func (n *node) expireProposals() {
	if len(n.props) == 0 {
		return
	}
	leads := n.rn.State() == stateLeader
	before := len(n.props)
	n.props = slices.DeleteFunc(n.props, func(p proposal) bool {
		return p.deadline != 0 && n.w.now > p.deadline
	})
	n.w.oracle.counts.OutcomeUnknown += before - len(n.props)
	for i := range n.props {
		p := &n.props[i]
		if p.deadline == 0 && (!leads || p.term != n.rn.Term()) {
			p.deadline = n.w.now + n.w.patience()
		}
	}
}

// patience is what is waited for an outcome, by the slowest of the clocks.
func (w *World) patience() int64 {
	return int64(hangTimeouts * float64(w.prof.ElectionTick) * tickUS / min(w.prof.RateLo, 1))
}

// noteTransfer notes the start, the replacement and the end of a transfer.
func (n *node) noteTransfer() {
	if target, term := n.rn.LeadTransferee(),
		n.rn.Term(); target != n.transferTo || term != n.transferTerm {
		n.transferTo, n.transferTerm, n.transferTicks = target, term, 0
	}
}

// checkTransfer: a transfer is over after an election timeout of the leader's clock, one way or
// another (I13).
func (n *node) checkTransfer() {
	n.noteTransfer()
	if n.transferTo == 0 {
		return
	}
	if n.transferTicks++; n.transferTicks > n.w.prof.ElectionTick {
		n.w.fail("I13", "node %d has been handing over to %d for %d ticks", n.id, n.transferTo,
			n.transferTicks)
	}
}

// checkReads: a node that no longer leads has answered all reads of that term (I13).
func (n *node) checkReads() {
	leads := n.rn.State() == stateLeader
	for _, r := range n.reads {
		if !leads || r.term != n.rn.Term() {
			n.w.fail("I13", "node %d: read %d of term %d has no answer", n.id, r.id, r.term)
			return
		}
	}
}

// checkOutcomes: after the run everything has had one outcome (I13).
func (w *World) checkOutcomes() {
	for _, n := range w.nodes[1:] {
		if n.alive && len(n.props)+len(n.reads) > 0 {
			w.fail("I13", "node %d: %d proposals and %d reads have no outcome", n.id, len(n.props),
				len(n.reads))
		}
	}
	c := &w.oracle.counts
	if w.violation == nil && c.Proposals != c.OutcomeApplied+c.OutcomeNever+c.OutcomeUnknown {
		w.fail("I13", "%d proposals, and %d+%d+%d outcomes", c.Proposals, c.OutcomeApplied,
			c.OutcomeNever, c.OutcomeUnknown)
	}
}
