package sim

import (
	"fmt"
	"slices"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/raft"
)

func describe(m *eraftpb.Message) string {
	s := fmt.Sprintf("%v term=%d index=%d/%d commit=%d", m.MsgType, m.Term, m.Index, m.LogTerm, m.Commit)
	if len(m.Entries) > 0 {
		s += fmt.Sprintf(" entries=[%d..%d]", m.Entries[0].Index, m.Entries[len(m.Entries)-1].Index)
	}
	if m.Reject {
		s += fmt.Sprintf(" reject hint=%d", m.RejectHint)
	}
	if m.Snapshot != nil {
		s += fmt.Sprintf(" snapshot=%d", m.Snapshot.Metadata.Index)
	}
	return s
}

// free returns the nodes that can take a command now.
func (w *World) free() []*node {
	var free []*node
	for _, n := range w.nodes[1:] {
		if n.alive && !n.busy && !n.paused {
			free = append(free, n)
		}
	}
	return free
}

// client is one command of a client or an administrator, mostly to a node that thinks it leads.
func (w *World) client() {
	var target *node
	leads := 0
	for _, n := range w.nodes[1:] {
		if !n.alive || n.busy || n.paused {
			continue
		}
		if n.rn.State() == stateLeader {
			if leads++; w.rng.Intn(leads) == 0 {
				target = n
			}
		}
	}
	if target == nil {
		free := w.free()
		if len(free) == 0 {
			return
		}
		target = free[w.rng.Intn(len(free))]
	}
	p := &w.prof
	target.disk.failing = w.rng.chance(p.StorageError)
	target.disk.unavailable = w.rng.chance(p.SnapUnavailable)
	switch {
	case w.rng.chance(p.Compact):
		w.compact()
	case w.rng.chance(p.ConfChange):
		w.changeMembers(target)
		if planted("B8") || w.rng.Intn(4) == 0 {
			w.changeMembers(target)
		}
	case w.rng.chance(p.Transfer):
		// To anybody: itself, a learner, somebody who was removed or never existed.
		target.rn.TransferLeader(uint64(w.rng.between(0, len(w.nodes))))
	case w.rng.chance(p.Read):
		w.read(target)
	case w.rng.Intn(50) == 0:
		target.rn.ReportUnreachable(uint64(w.rng.between(0, len(w.nodes))))
	default:
		for range w.rng.between(1, 4) {
			w.propose(target)
		}
	}
	target.noteRound()
	target.run()
}

func (w *World) propose(n *node) {
	w.nextData++
	data := putUint64(make([]byte, 0, 8+w.prof.Payload), w.nextData)
	if n.rn.Propose(data[:8+w.rng.Intn(w.prof.Payload)]) == nil {
		w.oracle.counts.Proposals++
		n.props = append(n.props, proposal{n.rn.LastIndex(), n.rn.Term()})
	}
}

func (w *World) read(n *node) {
	if n.rn.State() != stateLeader {
		return
	}
	if planted("B6") && n.rn.Committed() < w.oracle.committed {
		w.fail("I10", "node %d reads at %d, %d is committed", n.id, n.rn.Committed(), w.oracle.committed)
	}
	if w.prof.Lease && n.holdsLease() {
		w.oracle.counts.LeaseReads++
		if n.rn.Committed() < w.oracle.committed {
			w.fail("I11", "node %d reads by lease at %d, %d is committed", n.id, n.rn.Committed(),
				w.oracle.committed)
		}
	}
	for range w.rng.between(1, 3) {
		w.nextRead++
		if n.rn.ReadIndex(w.nextRead) == nil {
			n.reads = append(n.reads, read{w.nextRead, w.oracle.committed})
		}
	}
}

// compact truncates the log of some node behind what it has applied, with a random distance.
func (w *World) compact() {
	free := w.free()
	if len(free) == 0 {
		return
	}
	n := free[w.rng.Intn(len(free))]
	lag := uint64(w.rng.Intn(60))
	applied := min(n.disk.kvNow.applied, n.rn.Applied())
	if applied <= n.disk.raftNow.trunc+lag {
		return
	}
	// The state machine must not need again what goes (trap F-4).
	n.disk.syncKV()
	n.disk.writeRaft(raftRecord{truncTo: applied - lag})
	n.rn.CompactTo(applied - lag)
	n.run()
}

// changeMembers proposes a conf change to a leader.
func (w *World) changeMembers(n *node) {
	if n.rn.State() != stateLeader {
		return
	}
	cs := n.members()
	cc := eraftpb.ConfChange{}
	total := len(cs.Nodes) + len(cs.Learners)
	switch k := w.rng.Intn(10); {
	case k < 3 && len(cs.Learners) > 0:
		cc.ChangeType, cc.NodeId = eraftpb.ConfChangeType_AddNode, cs.Learners[w.rng.Intn(len(cs.Learners))]
	case k < 6 && total < 6 && len(w.nodes) < maxNodes-1:
		cc.ChangeType = pick(&w.rng, eraftpb.ConfChangeType_AddNode, eraftpb.ConfChangeType_AddLearnerNode)
		cc.NodeId = w.newMember(n)
	case k == 6:
		// Again: adding who is there, removing who is not.
		cc.ChangeType = pick(&w.rng, eraftpb.ConfChangeType_AddNode, eraftpb.ConfChangeType_AddLearnerNode)
		cc.NodeId = cs.Nodes[w.rng.Intn(len(cs.Nodes))]
	case total > 1:
		all := slices.Concat(cs.Nodes, cs.Learners)
		cc.ChangeType, cc.NodeId = eraftpb.ConfChangeType_RemoveNode, all[w.rng.Intn(len(all))]
		if slices.Contains(cs.Nodes, cc.NodeId) && len(cs.Nodes) == 1 {
			return
		}
		if cc.NodeId == n.id && len(cs.Nodes) == 2 {
			// Two voters, the leader to go: it hands over first (trap C3).
			n.rn.TransferLeader(cs.Nodes[0] + cs.Nodes[1] - n.id)
			return
		}
	default:
		return
	}
	if n.rn.ProposeConfChange(cc) == nil {
		n.props = append(n.props, proposal{n.rn.LastIndex(), n.rn.Term()})
	}
}

// newMember returns an empty node that is nobody's member: one whose adding failed, or a new one. An
// ID is never used again once its node was a member.
func (w *World) newMember(leader *node) uint64 {
	for _, n := range w.nodes[1:] {
		if n.alive && n.disk.kvNow.applied == 0 && !slices.Contains(leader.members().Nodes, n.id) &&
			!slices.Contains(leader.members().Learners, n.id) && !w.everMember(n.id) {
			return n.id
		}
	}
	return w.addNode(newDisk(eraftpb.ConfState{}, true)).id
}

func (w *World) everMember(id uint64) bool {
	return slices.ContainsFunc(w.oracle.confs, func(c confAt) bool {
		return slices.Contains(c.conf.Nodes, id) || slices.Contains(c.conf.Learners, id)
	})
}

// fault is one mishap.
func (w *World) fault() {
	id := uint64(w.rng.between(1, len(w.nodes)-1))
	if w.rng.chance(0.3) {
		for _, n := range w.nodes[1:] {
			if n.alive && n.rn.State() == stateLeader {
				id = n.id
			}
		}
	}
	n := w.nodes[id]
	last := uint64(len(w.nodes) - 1)
	switch w.rng.Intn(9) {
	case 0, 1: // isolate one
		for other := uint64(1); other <= last; other++ {
			w.cut[id][other], w.cut[other][id] = true, true
		}
	case 2: // it hears nobody, or nobody hears it
		in := w.rng.chance(0.5)
		for other := uint64(1); other <= last; other++ {
			w.cut[id][other] = w.cut[id][other] || !in
			w.cut[other][id] = w.cut[other][id] || in
		}
	case 3: // one link
		w.cut[id][w.rng.between(1, int(last))] = true
	case 4: // a majority ring: everyone reaches its neighbours only
		for a := uint64(1); a <= last; a++ {
			for b := uint64(1); b <= last; b++ {
				d := (a + last - b) % last
				w.cut[a][b] = d > 1 && d < last-1
			}
		}
	case 5: // halves
		for a := uint64(1); a <= last; a++ {
			for b := uint64(1); b <= last; b++ {
				w.cut[a][b] = (a < id) != (b < id)
			}
		}
	case 6, 7: // a pause: nothing happens for a while, then all at once
		if n.alive && !n.paused {
			n.paused = true
			at := w.now + int64(w.rng.Intn(5*2*w.prof.ElectionTick*tickUS))
			w.plan(event{at: at, kind: evUnpause, node: id, epoch: n.epoch})
		}
		return
	case 8: // power
		all := w.rng.chance(0.3)
		for _, o := range w.nodes[1:] {
			if o.alive && (all || o.id == id) && w.prof.CrashPerReady > 0 {
				o.crash()
			}
		}
		return
	}
	w.cuts = true
	w.trace("fault: links cut around %d", id)
	w.plan(event{at: w.now + w.after(20*tickUS), kind: evHeal})
}

func (w *World) healLinks() {
	w.cut, w.cuts = [maxNodes][maxNodes]bool{}, false
}

// heal ends all mishaps and wants the group to recover (I13, I14): a leader, every member up to date
// with it, every proposal of the leader answered, and then silence but for heartbeats.
func (w *World) heal() {
	w.healing = true
	w.healLinks()
	w.trace("healing")
	w.dropPlans()
	w.collect()
	for _, n := range w.nodes[1:] {
		n.disk.failing, n.disk.unavailable = false, false
		switch {
		case n.alive:
			n.paused = false
			n.run()
		case !n.destroyed:
			n.boot()
		}
	}
	start := w.now
	slowest := int64(tickUS / min(w.prof.RateLo, 1))
	timeout := 2 * int64(w.prof.ElectionTick) * slowest
	proposed := false
	// Catching up may take long where the profile allows one entry a message: what may not be long is
	// the time without progress.
	moved, last, confs := start, w.progress(), len(w.oracle.confs)
	for w.now < moved+30*timeout && w.violation == nil && len(w.heap) > 0 {
		w.dispatch()
		if len(w.oracle.confs) != confs {
			confs = len(w.oracle.confs)
			w.collect()
		}
		if p := w.progress(); p != last {
			moved, last = w.now, p
		}
		lead := w.theLeader()
		if lead == nil {
			if w.now > moved+15*timeout {
				w.fail("I14", "no leader for 15 election timeouts: %s", w.state())
			}
			continue
		}
		if !proposed && !lead.busy && lead.rn.Committed() == lead.rn.LastIndex() {
			w.propose(lead)
			lead.run()
			proposed = true
		}
		if proposed && w.converged(lead) {
			w.oracle.counts.MaxHealUS = w.now - start
			w.idle(timeout)
			return
		}
	}
	if w.violation == nil {
		w.failStuck()
	}
}

// collect ends the nodes that were removed and do not know it, as a store does when others tell it.
func (w *World) collect() {
	latest := w.oracle.confs[len(w.oracle.confs)-1].conf
	for _, n := range w.nodes[1:] {
		member := slices.Contains(latest.Nodes, n.id) || slices.Contains(latest.Learners, n.id)
		if !member && !n.removed && n.disk.kvNow.applied > 0 {
			n.alive, n.destroyed = false, true
			n.epoch++
		}
	}
}

// dropPlans takes clients and faults out of the plans.
func (w *World) dropPlans() {
	old := w.heap
	w.heap = nil
	for _, e := range old {
		switch e.kind {
		case evClient, evFault, evHeal, evUnpause:
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
	if lead.removed || lead.rn.Applied() != lead.rn.LastIndex() || lead.waiting() {
		return false
	}
	ok := true
	lead.rn.VisitProgress(func(id uint64, pr raft.Progress) {
		n := w.nodes[id]
		same := n.alive && n.rn.Term() == lead.rn.Term() && n.rn.Applied() == lead.rn.Applied()
		if !same || id != lead.id && (pr.State != raft.ProgressReplicate || pr.Match != lead.rn.LastIndex()) {
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
	calm := w.prof.RateHi < 2 && w.prof.Transfer == 0 && (w.prof.CheckQuorum || w.prof.ConfChange == 0)
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
			detail += fmt.Sprintf("\n  node %d %v term=%d lead=%d applied=%d commit=%d log=[%d,%d] props=%d",
				n.id, st.State, st.Term, st.Lead, st.Applied, st.Commit, st.FirstIndex, st.LastIndex, len(n.props))
			if st.State == stateLeader {
				n.rn.VisitProgress(func(id uint64, pr raft.Progress) {
					detail += fmt.Sprintf("\n    %d: %v", id, &pr)
				})
			}
		}
	}
	return detail
}
