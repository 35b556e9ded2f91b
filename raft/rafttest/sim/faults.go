package sim

import (
	"fmt"
	"slices"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

func describe(m *eraftpb.Message) string {
	s := fmt.Sprintf("%v term=%d index=%d/%d commit=%d", m.MsgType, m.Term, m.Index, m.LogTerm,
		m.Commit)
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
	if planted("B6") {
		w.readWithoutProof()
	}
	switch {
	case w.rng.chance(0.2) && w.repair(target):
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
		w.readEverywhere()
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
	id := w.newID()
	data := putUint64(make([]byte, 0, 8+w.prof.Payload), id)
	if n.rn.Propose(data[:8+w.rng.Intn(w.prof.Payload)]) == nil {
		n.track(id)
	}
}

// readWithoutProof is planted bug B6: who thinks it leads answers reads from what it has, which
// costs nothing, so that every client does it.
func (w *World) readWithoutProof() {
	for _, n := range w.free() {
		if n.rn.State() == stateLeader && n.rn.Committed() < w.oracle.committed {
			w.fail("I10", "node %d reads at %d, %d is committed", n.id, n.rn.Committed(),
				w.oracle.committed)
		}
	}
}

// readEverywhere reads at everyone who thinks it leads: the ones who are mistaken must not answer.
func (w *World) readEverywhere() {
	for _, n := range w.free() {
		if n.rn.State() == stateLeader {
			w.read(n)
			n.run()
		}
	}
}

func (w *World) read(n *node) {
	if n.rn.State() != stateLeader {
		return
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
			n.reads = append(n.reads, read{w.nextRead, w.oracle.committed, n.rn.Term()})
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
	if n.rn.State() != stateLeader || w.missing > 0 {
		// One thing at a time: who lost its disk is replaced first.
		return
	}
	cs := n.members()
	cc := eraftpb.ConfChange{}
	total := len(cs.Nodes) + len(cs.Learners)
	switch k := w.rng.Intn(10); {
	case k < 3 && len(cs.Learners) > 0:
		cc.ChangeType, cc.NodeId = eraftpb.ConfChangeType_AddNode,
			cs.Learners[w.rng.Intn(len(cs.Learners))]
	case k < 6 && total < 6 && len(w.nodes) < maxNodes-1:
		cc.ChangeType = pick(&w.rng, eraftpb.ConfChangeType_AddNode,
			eraftpb.ConfChangeType_AddLearnerNode)
		cc.NodeId = w.newMember(n)
	case k == 6:
		// Again: adding who is there, removing who is not.
		cc.ChangeType = pick(&w.rng, eraftpb.ConfChangeType_AddNode,
			eraftpb.ConfChangeType_AddLearnerNode)
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
	w.proposeChange(n, cc.ChangeType, cc.NodeId)
}

// Short names of the conf changes.
const (
	remove   = eraftpb.ConfChangeType_RemoveNode
	addVoter = eraftpb.ConfChangeType_AddNode
)

func (w *World) proposeChange(n *node, change eraftpb.ConfChangeType, member uint64) {
	id := w.newID()
	cc := eraftpb.ConfChange{ChangeType: change, NodeId: member, Context: putUint64(nil, id)}
	if n.rn.ProposeConfChange(cc) == nil {
		n.track(id)
	}
}

// newMember returns an empty node that is nobody's member: one whose adding failed, or a new one.
// An ID is never used again once its node was a member.
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
	switch w.rng.Intn(11) {
	case 0, 1: // isolate one
		for other := uint64(1); other <= last; other++ {
			w.cut[id][other], w.cut[other][id] = true, true
		}
	case 2: // nothing reaches it, or nothing of it arrives
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
	case 9:
		w.swizzle()
		return
	case 10:
		if w.rng.chance(w.prof.Wipe) {
			w.wipe(n)
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
