package sim

import "slices"

// wipe takes a node's whole disk. It never comes back under its ID: it is removed, and an empty
// node with another ID is added (duty 7 in doc.go, traps B-3 and B-4). Only where the group can do
// without it, as its operator would have to see to.
func (w *World) wipe(n *node) {
	if !w.mayWipe(n) {
		return
	}
	w.oracle.counts.Wipes++
	w.trace("fault: node %d loses its disk", n.id)
	if n.alive {
		n.crash()
	}
	n.hadSynced = n.disk.raftSynced
	n.disk = newDisk(n.disk.kvNow.conf, true)
	w.missing++
	if w.prof.WipedRejoin {
		w.plan(event{at: w.now + w.after(w.prof.RestartUS), kind: evRestart, node: n.id})
		return
	}
	n.wiped, n.destroyed = true, true
}

// mayWipe: no other member is lost, enough voters are left, and they all know how many are enough:
// no conf change is under way, and none is news to anybody who stays.
func (w *World) mayWipe(n *node) bool {
	last := w.oracle.confs[len(w.oracle.confs)-1]
	member := slices.Contains(last.conf.Nodes, n.id) || slices.Contains(last.conf.Learners, n.id)
	if !member || n.destroyed || w.missing > 0 || len(last.conf.Nodes) < 3 ||
		len(w.nodes) > maxNodes-4 {
		return false
	}
	for _, o := range w.nodes[1:] {
		if o.alive && o.busy {
			return false
		}
		if o.destroyed {
			continue
		}
		// Who has not heard of the last conf change would still count by the members before it.
		known := o.disk.durableCommit() >= last.index
		stays := o != n && slices.Contains(last.conf.Nodes, o.id)
		if o.disk.raftNow.changesMembers(last.index) || stays && !known {
			return false
		}
	}
	return true
}

// repair is what a placement service does about a lost disk: the node's removal first, as with it
// the majority is smaller, then another one's adding. It says whether there is something to do.
func (w *World) repair(lead *node) bool {
	if w.missing == 0 || w.prof.WipedRejoin || lead.rn.State() != stateLeader {
		return false
	}
	cs := lead.members()
	for _, id := range slices.Concat(cs.Nodes, cs.Learners) {
		if w.nodes[id].wiped {
			w.proposeChange(lead, remove, id)
			return true
		}
	}
	for _, id := range slices.Concat(cs.Nodes, cs.Learners) {
		if id == w.replacement {
			w.missing, w.replacement = 0, 0
			return false
		}
	}
	if w.replacement == 0 || !w.nodes[w.replacement].alive {
		w.replacement = w.newMember(lead)
	}
	w.proposeChange(lead, addVoter, w.replacement)
	return true
}

// beyondRepair says whether the members that are left are no majority.
func (w *World) beyondRepair() bool {
	left, voters := 0, w.oracle.confs[len(w.oracle.confs)-1].conf.Nodes
	for _, id := range voters {
		if !w.nodes[id].wiped {
			left++
		}
	}
	return left < len(voters)/2+1
}
