package sim

import (
	"fmt"
	"slices"

	"github.com/tinykv/tinykv/raft"
)

// recovery is the second phase of a run: what must come back when the mishaps are over (I13, I14).
type recovery struct {
	w *World
	// timeout is the longest election timeout by the slowest clock that there was.
	timeout int64
	start   int64
	// moved is when the group made progress last, sum what it had then, confs how many conf
	// changes.
	moved int64
	sum   uint64
	confs int
	// asked: the leader was given a proposal and a read, at askedAt in askedTerm.
	asked     bool
	askedAt   int64
	askedTerm uint64
}

// heal ends all mishaps after which the group must recover: a leader, every member up to date with
// it, every operation answered, and then silence but for heartbeats.
func (w *World) heal() {
	w.healing = true
	w.healLinks()
	w.clogged, w.held = [maxNodes]bool{}, nil
	w.trace("healing")
	w.dropPlans()
	w.collect()
	for _, n := range w.nodes[1:] {
		// Nothing is promised while one clock runs several times as fast as another: without
		// pre-vote, a node that has missed many conf changes can then stay ahead of the only
		// possible leader's term.
		n.period = tickUS
		n.disk.failing, n.disk.unavailable = false, false
		switch {
		case n.alive:
			n.paused = false
			n.run()
		case !n.destroyed:
			n.boot()
		}
	}
	slowest := int64(tickUS / min(w.prof.RateLo, 1))
	r := &recovery{
		w: w, timeout: 2 * int64(w.prof.ElectionTick) * slowest, start: w.now, moved: w.now,
		sum: w.progress(), confs: len(w.oracle.confs),
	}
	// Catching up may take long where the profile allows one entry a message: what may not be long
	// is the time without progress.
	for w.now < r.moved+30*r.timeout && w.violation == nil && len(w.heap) > 0 {
		w.dispatch()
		if r.step() {
			return
		}
	}
	if w.violation == nil {
		w.failStuck()
	}
}

// step looks at the group after an event, and says whether it has recovered.
func (r *recovery) step() bool {
	w := r.w
	if len(w.oracle.confs) != r.confs {
		r.confs = len(w.oracle.confs)
		w.collect()
	}
	if p := w.progress(); p != r.sum {
		r.moved, r.sum = w.now, p
	}
	lead := w.theLeader()
	if lead == nil {
		if w.now > r.moved+15*r.timeout {
			w.fail("I14", "no leader for 15 election timeouts: %s", w.state())
		}
		return false
	}
	if lead.busy || lead.removed {
		return false
	}
	settled := lead.rn.Committed() == lead.rn.LastIndex()
	if settled && lead.rn.Applied() == lead.rn.Committed() && w.repair(lead) {
		lead.run()
		return false
	}
	if settled && !r.asked {
		r.asked, r.askedAt, r.askedTerm = true, w.now, lead.rn.Term()
		w.propose(lead)
		w.read(lead)
		lead.run()
	}
	r.checkHang(lead)
	if !r.asked || !w.converged(lead) {
		return false
	}
	w.oracle.counts.MaxHealUS = w.now - r.start
	w.idle(r.timeout)
	return true
}

// checkHang: nothing that the leader of a recovered group was asked for takes longer than a few
// election timeouts (I13).
func (r *recovery) checkHang(lead *node) {
	if !r.asked || len(lead.props)+len(lead.reads) == 0 || lead.rn.Term() != r.askedTerm {
		return
	}
	r.w.oracle.counts.MaxHangUS = max(r.w.oracle.counts.MaxHangUS, r.w.now-r.askedAt)
	if r.w.now > r.askedAt+r.w.patience() {
		r.w.fail("I13", "leader %d: no outcome %d election timeouts after healing: %s", lead.id,
			hangTimeouts, r.w.state())
	}
}

// collect ends the nodes that were removed and do not know it, as a store does when others tell it.
func (w *World) collect() {
	latest := w.oracle.confs[len(w.oracle.confs)-1].conf
	for _, n := range w.nodes[1:] {
		member := slices.Contains(latest.Nodes, n.id) || slices.Contains(latest.Learners, n.id)
		if !member && !n.removed && n.disk.kvNow.applied > 0 {
			n.end()
		}
	}
}

// dropPlans takes clients and faults out of the plans, and their slowness.
func (w *World) dropPlans() {
	old := w.heap
	w.heap = nil
	for _, e := range old {
		switch e.kind {
		case evClient, evFault, evHeal, evUnpause, evClog, evUnclog:
		case evApply:
			// Nobody is slow any more.
			e.at = w.now
			w.plan(e)
		default:
			w.plan(e)
		}
	}
}

// theLeader returns the leader of the latest term, if it is one that can take proposals.
func (w *World) theLeader() *node {
	var lead *node
	for _, n := range w.nodes[1:] {
		if n.alive && n.rn.State() == stateLeader && (lead == nil || n.rn.Term() > lead.rn.Term()) {
			lead = n
		}
	}
	return lead
}

func (w *World) converged(lead *node) bool {
	if lead.removed || lead.rn.Applied() != lead.rn.LastIndex() ||
		len(lead.props)+len(lead.reads) > 0 {
		return false
	}
	ok := true
	lead.rn.VisitProgress(func(id uint64, pr raft.Progress) {
		n := w.nodes[id]
		same := n.alive && n.rn.Term() == lead.rn.Term() && n.rn.Applied() == lead.rn.Applied()
		if !same ||
			id != lead.id &&
				(pr.State != raft.ProgressReplicate || pr.Match != lead.rn.LastIndex()) {
			ok = false
		}
	})
	return ok
}

// idle watches the group do nothing for two election timeouts, once what was on its way is through.
func (w *World) idle(timeout int64) {
	for end := w.now + timeout; w.now < end && w.violation == nil; {
		w.dispatch()
	}
	lead := w.theLeader()
	for _, n := range w.nodes[1:] {
		n.sentThisTick, n.idleLimit = 0, true
	}
	for end := w.now + 2*timeout; w.now < end && w.violation == nil; {
		w.dispatch()
	}
	// Without check-quorum a removed node that does not know it may depose a leader (thesis 4.2.3).
	calm := w.prof.RateHi < 2 && w.prof.Transfer == 0 &&
		(w.prof.CheckQuorum || w.prof.ConfChange == 0)
	if w.violation == nil && w.theLeader() != lead && calm {
		w.fail("I14", "the leader changed when nothing happened")
	}
}

// progress is a number that grows as the group catches up.
func (w *World) progress() (sum uint64) {
	for _, n := range w.nodes[1:] {
		if n.alive {
			sum += n.rn.Applied() + n.rn.Committed() + n.disk.raftSynced.last()
		}
	}
	return sum
}

func (w *World) failStuck() {
	w.fail("I14", "not recovered 30 election timeouts after the last progress: %s", w.state())
}

func (w *World) state() (detail string) {
	for _, n := range w.nodes[1:] {
		if n.alive {
			st := n.rn.Status()
			detail += fmt.Sprintf(
				"\n  node %d %v term=%d lead=%d applied=%d commit=%d log=[%d,%d] props=%d",
				n.id, st.State, st.Term, st.Lead, st.Applied, st.Commit, st.FirstIndex,
				st.LastIndex, len(n.props))
			if st.State == stateLeader {
				n.rn.VisitProgress(func(id uint64, pr raft.Progress) {
					detail += fmt.Sprintf("\n    %d: %v", id, &pr)
				})
			}
		}
	}
	return detail
}
