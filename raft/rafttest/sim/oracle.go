package sim

import (
	"fmt"
	"slices"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// Violation is a broken invariant: which, and what was seen.
type Violation struct {
	Invariant string
	Detail    string
	Event     int
}

func (v *Violation) Error() string {
	return fmt.Sprintf("%s violated at event %d: %s", v.Invariant, v.Event, v.Detail)
}

// oracle sees the whole group at once and remembers what may never change. All checks are O(1) an
// event, or O(members). Owner: the World.
type oracle struct {
	// leaders is who led each term (I1).
	leaders map[uint64]uint64
	// logs has, for each index, the hash of the log up to it by the term of its entry (I2).
	logs [][]termHash
	// applied has the hash of the state after each index (I4).
	applied []uint64
	// confs are the members after each applied conf change, by index (I8).
	confs []confAt
	// votes is who got a node's vote in a term (I6).
	votes map[[2]uint64]uint64
	// committed is the highest index known to be committed anywhere, by a leader of commitTerm.
	committed, commitTerm, commitHash uint64
	// fates is what became of the proposals, by their numbers (I13).
	fates []fate
	// counts of what happened, so that a run that tests nothing is noticed.
	counts Counts
}

type termHash struct{ term, hash uint64 }

type confAt struct {
	index uint64
	conf  eraftpb.ConfState
}

// Counts says what a run has seen.
type Counts struct {
	Leaders, Commits, Applied, Crashes, Restarts int
	Snapshots, ConfChanges, Transfers            int
	Reads, LeaseReads, ReadsAborted              int
	Proposals, Truncations, Delivered            int
	OutcomeApplied, OutcomeNever, OutcomeUnknown int
	Swizzles, Wipes, BeyondRepair                int
	MaxHealUS, MaxHangUS                         int64
}

// Add adds up counts.
func (c *Counts) Add(o Counts) {
	c.Leaders += o.Leaders
	c.Commits += o.Commits
	c.Applied += o.Applied
	c.Crashes += o.Crashes
	c.Restarts += o.Restarts
	c.Snapshots += o.Snapshots
	c.ConfChanges += o.ConfChanges
	c.Transfers += o.Transfers
	c.Reads += o.Reads
	c.LeaseReads += o.LeaseReads
	c.ReadsAborted += o.ReadsAborted
	c.Proposals += o.Proposals
	c.OutcomeApplied += o.OutcomeApplied
	c.OutcomeNever += o.OutcomeNever
	c.OutcomeUnknown += o.OutcomeUnknown
	c.Swizzles += o.Swizzles
	c.Wipes += o.Wipes
	c.BeyondRepair += o.BeyondRepair
	c.Truncations += o.Truncations
	c.Delivered += o.Delivered
	c.MaxHangUS = max(c.MaxHangUS, o.MaxHangUS)
	c.MaxHealUS = max(c.MaxHealUS, o.MaxHealUS)
}

func newOracle(conf eraftpb.ConfState) *oracle {
	return &oracle{
		leaders: map[uint64]uint64{}, votes: map[[2]uint64]uint64{},
		fates:     make([]fate, 1),
		confs:     []confAt{{initIndex, cloneConf(conf)}},
		committed: initIndex, commitTerm: 0, commitHash: initIndex,
	}
}

func mix(z uint64) uint64 {
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

// hashEntry continues the hash of a log by an entry.
func hashEntry(prev uint64, e *eraftpb.Entry) uint64 {
	h := prev*0x9e3779b97f4a7c15 + e.Term<<32 + e.Index<<1 + uint64(e.EntryType)
	b := e.Data
	for len(b) >= 8 {
		h = (h ^ getUint64(b[:8])) * 0xff51afd7ed558ccd
		h ^= h >> 32
		b = b[8:]
	}
	for _, c := range b {
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	return mix(h)
}

// sawLog takes the entries that a node writes; the log before them has hash prev. It returns their
// hashes (I2: the same index and term means the same log up to there).
func (w *World) sawLog(n *node, prev uint64, ents []eraftpb.Entry) []uint64 {
	hashes := make([]uint64, len(ents))
	for i := range ents {
		e := &ents[i]
		prev = hashEntry(prev, e)
		hashes[i] = prev
		for uint64(len(w.oracle.logs)) <= e.Index {
			w.oracle.logs = append(w.oracle.logs, nil)
		}
		known := w.oracle.logs[e.Index]
		at := slices.IndexFunc(known, func(t termHash) bool { return t.term == e.Term })
		switch {
		case at < 0:
			w.oracle.logs[e.Index] = append(known, termHash{e.Term, prev})
		case known[at].hash != prev:
			w.fail("I2", "node %d: entry %d of term %d differs from another node's", n.id, e.Index,
				e.Term)
		}
	}
	return hashes
}

// sawLeader checks a new leader: alone in its term (I1), with everything committed before it (I3).
func (w *World) sawLeader(n *node, term uint64) {
	if lead, ok := w.oracle.leaders[term]; ok && lead != n.id {
		w.fail("I1", "nodes %d and %d both lead term %d", lead, n.id, term)
		return
	}
	if _, ok := w.oracle.leaders[term]; ok {
		return
	}
	w.oracle.leaders[term] = n.id
	w.oracle.counts.Leaders++
	o := w.oracle
	if term > o.commitTerm && !n.disk.raftNow.contains(o.committed, o.commitHash) {
		w.fail("I3", "leader %d of term %d lacks entry %d, committed in term %d",
			n.id, term, o.committed, o.commitTerm)
	}
}

// sawCommit takes a node's commit index once the entry is written. At a leader the entry must be on
// the synced disks of a majority (I7).
func (w *World) sawCommit(n *node) {
	commit := n.rn.Committed()
	if commit <= n.seenCommit {
		return
	}
	n.seenCommit = commit
	hash, ok := n.disk.raftNow.hashAt(commit)
	if !ok {
		if commit > n.disk.raftNow.last() {
			w.fail("I5", "node %d: commit %d is above its log %d", n.id, commit,
				n.disk.raftNow.last())
		}
		return
	}
	if n.rn.State() == stateLeader {
		w.checkDurable(n, commit, hash)
	}
	if commit > w.oracle.committed {
		w.oracle.counts.Commits += int(commit - w.oracle.committed)
		w.oracle.committed, w.oracle.commitTerm, w.oracle.commitHash = commit, n.rn.Term(), hash
	}
}

func (w *World) checkDurable(n *node, commit, hash uint64) {
	voters, have := 0, 0
	n.visitVoters(func(id uint64) {
		voters++
		// What a node acknowledged before it lost its disk counts: without it there is no quorum
		// that knows nothing of the entry.
		if o := w.nodes[id]; o.disk.raftSynced.contains(commit, hash) ||
			o.wiped && o.hadSynced.contains(commit, hash) {
			have++
		}
	})
	if have < voters/2+1 {
		w.fail("I7", "leader %d commits %d of term %d with %d of %d voters' disks",
			n.id, commit, n.rn.Term(), have, voters)
	}
}

// sawApply takes the state of a node after an index (I4), and the entry at it, nil with a snapshot.
func (w *World) sawApply(n *node, index, hash uint64, e *eraftpb.Entry) {
	w.oracle.counts.Applied++
	for uint64(len(w.oracle.applied)) <= index {
		w.oracle.applied = append(w.oracle.applied, 0)
	}
	switch known := w.oracle.applied[index]; {
	case known == 0:
		w.oracle.applied[index] = hash
		if e != nil {
			w.sawEntry(e)
		}
	case known != hash:
		w.fail("I4", "node %d: state after %d differs from another node's", n.id, index)
	}
}

// sawConf takes the members of a node after it applied a conf change at index (I8).
func (w *World) sawConf(n *node, index uint64, conf *eraftpb.ConfState) {
	last := &w.oracle.confs[len(w.oracle.confs)-1]
	if index > last.index {
		if d := difference(last.conf.Nodes, conf.Nodes); d > 1 {
			w.fail("I8", "node %d: %d voters changed at %d", n.id, d, index)
		}
		w.oracle.counts.ConfChanges++
		w.oracle.confs = append(w.oracle.confs, confAt{index, cloneConf(*conf)})
		return
	}
	w.checkConf(n, index, conf)
}

// checkConf compares members with the ones that the log up to index gives (I8).
func (w *World) checkConf(n *node, index uint64, conf *eraftpb.ConfState) {
	want := w.confAt(index)
	if !slices.Equal(want.Nodes, conf.Nodes) || !slices.Equal(want.Learners, conf.Learners) {
		w.fail("I8", "node %d: members %v+%v after %d, should be %v+%v", n.id,
			conf.Nodes, conf.Learners, index, want.Nodes, want.Learners)
	}
}

func (w *World) confAt(index uint64) eraftpb.ConfState {
	for i := len(w.oracle.confs) - 1; i >= 0; i-- {
		if w.oracle.confs[i].index <= index {
			return w.oracle.confs[i].conf
		}
	}
	return eraftpb.ConfState{}
}

// difference counts who is in one of the sets only.
func difference(a, b []uint64) int {
	d := 0
	for _, id := range a {
		if !slices.Contains(b, id) {
			d++
		}
	}
	for _, id := range b {
		if !slices.Contains(a, id) {
			d++
		}
	}
	return d
}

// sawVote notes a vote that leaves a node (I6).
func (w *World) sawVote(n *node, term, candidate uint64) {
	key := [2]uint64{n.id, term}
	if had, ok := w.oracle.votes[key]; ok && had != candidate {
		w.fail("I6", "node %d voted for %d and for %d in term %d", n.id, had, candidate, term)
		return
	}
	w.oracle.votes[key] = candidate
}

// checkNode holds for a node after every event (I5).
func (w *World) checkNode(n *node) {
	term, commit, applied, last := n.rn.Term(), n.rn.Committed(), n.rn.Applied(), n.rn.LastIndex()
	if term < n.maxTerm || commit < n.maxCommit || applied < n.maxApplied {
		w.fail("I5", "node %d went back: term %d (%d) commit %d (%d) applied %d (%d)",
			n.id, term, n.maxTerm, commit, n.maxCommit, applied, n.maxApplied)
	}
	if applied > commit || commit > last {
		w.fail("I5", "node %d: applied %d, commit %d, last %d", n.id, applied, commit, last)
	}
	n.maxTerm, n.maxCommit, n.maxApplied = term, commit, applied
}
