package sim

import (
	"errors"
	"slices"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/raft"
	"github.com/tinykv/tinykv/raft/rafttest/contract"
)

// crashPoint is where in the handling of a Ready a node dies.
type crashPoint int

const (
	noCrash crashPoint = iota
	crashBeforeWrite
	crashBeforeSync
	crashBeforeSend
	crashHalfSent
	crashAfterApply
	crashInSnapshot
	crashPoints
)

// input is what reaches a node; while it writes or sleeps, inputs wait.
type input struct {
	msg    *eraftpb.Message
	hash   uint64
	tick   bool
	report uint64
	ok     bool
}

// node is a member with the driver loop that a store has: step, Ready, write, sync, send, apply,
// Advance. Owner: the World.
type node struct {
	id     uint64
	w      *World
	disk   *disk
	rn     *raft.RawNode
	period int64
	// applyUS is how long the node takes to apply a batch.
	applyUS int

	alive, destroyed, paused, busy bool
	epoch                          uint32
	inbox                          []input

	// The Ready in flight.
	rd       raft.Ready
	rdHash   uint64
	watch    *contract.Checker
	late     []eraftpb.Message
	crashAt  crashPoint
	applyQ   []applyBatch
	applying bool

	// What was seen of this life.
	leaderTerm                     uint64
	seenCommit                     uint64
	maxTerm, maxCommit, maxApplied uint64
	sentThisTick                   int
	idleLimit                      bool

	props []proposal
	reads []read
	lease lease

	// The transfer that is under way, and for how many ticks.
	transferTo, transferTerm uint64
	transferTicks            int

	// wiped: the disk was lost; hadSynced is the log that was on it.
	wiped     bool
	hadSynced raftState

	// removedAt: the node has applied its own removal.
	removed      bool
	removedAt    int64
	removedIndex uint64
	removedRound uint64
	// removedBySelf: it may have been the leader that committed that.
	removedBySelf bool
}

type applyBatch struct {
	ents []eraftpb.Entry
	hash uint64
}

// lease is what a store keeps to read without a round trip: when each round was sent.
type lease struct {
	term, round   uint64
	sent          [16]int64
	transferRound uint64
}

func (n *node) boot() {
	p := &n.w.prof
	c := &raft.Config{
		ID: n.id, ElectionTick: p.ElectionTick, HeartbeatTick: p.HeartbeatTick,
		Storage: n.disk, Applied: n.disk.kvNow.applied, Rand: n.w.rng.fork(),
		PreVote: p.PreVote, CheckQuorum: p.CheckQuorum,
		MaxSizePerMsg: p.MaxSizePerMsg, MaxInflightMsgs: p.MaxInflightMsgs,
		MaxInflightBytes: p.MaxInflightBytes, MaxUncommittedBytes: p.MaxUncommitted,
		MaxCommittedBytesPerReady: p.MaxCommittedPerReady,
		AckOnPersist:              p.Production, AsyncApply: p.Production,
		UnstableOnly:  p.Production,
		LazyCommit:    p.Production,
		LogCacheBytes: p.LogCacheBytes,
	}
	if p.Lease && n.epoch > 0 {
		c.VoteGraceTicks = p.ElectionTick
	}
	rn, err := raft.NewRawNode(c)
	if err != nil {
		n.w.fail("I5", "node %d does not start: %v", n.id, err)
		return
	}
	n.rn, n.alive, n.paused, n.busy, n.applying = rn, true, false, false, false
	n.epoch++
	n.watch = contract.New(contract.ViewOf(n.id, rn), n.disk.kvNow.applied, n.disk)
	n.inbox, n.applyQ, n.props, n.reads = nil, nil, nil, nil
	n.lease, n.crashAt, n.leaderTerm, n.transferTo = lease{}, noCrash, 0, 0
	n.seenCommit = rn.Committed()
	n.maxTerm, n.maxCommit, n.maxApplied = rn.Term(), rn.Committed(), rn.Applied()
	if synced := n.disk.raftSynced.hs; rn.Committed() < synced.Commit || rn.Term() < synced.Term {
		n.w.fail("I5", "node %d starts with commit %d, had %d", n.id, rn.Committed(), synced.Commit)
	}
	if n.epoch > 1 {
		n.w.oracle.counts.Restarts++
	}
	n.checkMembers()
	n.w.trace("node %d starts: term %d applied %d commit %d last %d", n.id, rn.Term(), rn.Applied(),
		rn.Committed(), rn.LastIndex())
	first := int64(n.w.rng.Intn(int(n.period))) + 1
	n.w.plan(event{at: n.w.now + first, kind: evTick, node: n.id, epoch: n.epoch})
}

// members returns what raft thinks who is in the group.
func (n *node) members() (cs eraftpb.ConfState) {
	n.rn.VisitProgress(func(id uint64, pr raft.Progress) {
		if pr.IsLearner {
			cs.Learners = append(cs.Learners, id)
		} else {
			cs.Nodes = append(cs.Nodes, id)
		}
	})
	return cs
}

func (n *node) visitVoters(f func(id uint64)) {
	n.rn.VisitProgress(func(id uint64, pr raft.Progress) {
		if !pr.IsLearner {
			f(id)
		}
	})
}

// checkMembers compares raft's members with those of the applied index (I8).
func (n *node) checkMembers() {
	if n.disk.kvNow.applied > 0 {
		cs := n.members()
		n.w.checkConf(n, n.disk.kvNow.applied, &cs)
	}
}

func (n *node) crash() {
	n.w.oracle.counts.Crashes++
	n.w.trace("node %d crashes", n.id)
	n.alive, n.busy = false, false
	n.epoch++
	n.rd, n.late = raft.Ready{}, nil
	n.loseProposals(^uint64(0))
	n.reads = nil
	n.disk.failing, n.disk.unavailable = false, false
	n.disk.crash(&n.w.rng)
	if n.w.rng.chance(n.w.prof.LostTail) {
		n.disk.raftSynced.loseTail(n.w.rng.between(1, 10), n.disk.kvSynced.applied)
		n.disk.reopen()
	}
	n.disk.recover()
	if n.w.violation == nil && !n.destroyed {
		n.w.plan(event{at: n.w.now + n.w.after(n.w.prof.RestartUS), kind: evRestart, node: n.id})
	}
}

// receive takes an input, now or when the node is free.
func (n *node) receive(in input) {
	if n.busy || n.paused {
		if len(n.inbox) < 10_000 {
			n.inbox = append(n.inbox, in)
		}
		return
	}
	n.step(in)
	n.run()
}

// run goes on as long as there is something to do.
func (n *node) run() {
	for n.alive && !n.busy && !n.paused && n.w.violation == nil {
		if n.rn.HasReady() {
			if !n.startReady() {
				break
			}
			continue
		}
		if len(n.inbox) == 0 {
			break
		}
		in := n.inbox[0]
		n.inbox = n.inbox[1:]
		n.step(in)
	}
	if n.alive {
		n.w.checkNode(n)
	}
}

func (n *node) step(in input) {
	switch {
	case in.tick:
		n.tick()
	case in.report != 0:
		n.w.trace("node %d: snapshot to %d ok=%v", n.id, in.report, in.ok)
		n.rn.ReportSnapshot(in.report, in.ok)
	default:
		n.w.oracle.counts.Delivered++
		if n.w.opt.Trace != nil {
			n.w.trace("%d -> %d %v", in.msg.From, n.id, describe(in.msg))
		}
		if hashMessage(in.msg) != in.hash {
			n.w.fail("I12", "a %v from %d to %d changed on its way", in.msg.MsgType, in.msg.From,
				n.id)
			return
		}
		if err := n.rn.Step(*in.msg); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
			n.w.fail("step", "node %d refuses a %v: %v", n.id, in.msg.MsgType, err)
		}
		if lost := n.rn.Lost(); lost > 0 {
			n.w.fail("lost", "node %d is said to have acknowledged %d, its log ends at %d", n.id,
				lost, n.rn.LastIndex())
		}
	}
	n.noteRound()
}

// flushTicks is about how long something stays unsynced that nobody asked to be synced.
const flushTicks = 16

func (n *node) tick() {
	if n.idleLimit && n.sentThisTick > 50 {
		n.w.fail("I14", "node %d sends %d messages a tick when nothing happens", n.id,
			n.sentThisTick)
	}
	n.sentThisTick = 0
	if n.w.rng.Intn(flushTicks) == 0 {
		n.disk.syncRaft()
	}
	n.rn.Tick()
	n.checkTransfer()
	n.expireProposals()
	if n.removed {
		n.linger()
	}
}

// linger ends a removed node soon: the leader that told it has the removal on disk. A leader that
// removed itself stays until a voter that stays has, and a majority of them has heard of it: until
// then its answers to votes may be the only way to learn of it (trap C3).
func (n *node) linger() {
	known := true
	if n.removedBySelf {
		known = false
		for _, id := range n.w.confAt(n.removedIndex).Nodes {
			known = known || n.w.nodes[id].disk.durableCommit() >= n.removedIndex
		}
	}
	if n.rn.State() == stateLeader {
		n.rn.BroadcastHeartbeat()
		known = known && n.rn.QuorumRound() > n.removedRound
	}
	if known && n.w.now-n.removedAt > 10*tickUS {
		n.w.trace("node %d ends, removed", n.id)
		n.end()
	}
}

// end stops a node for good; what it was asked for has an unknown outcome.
func (n *node) end() {
	n.alive, n.destroyed = false, true
	n.epoch++
	n.loseProposals(^uint64(0))
	n.reads = nil
}

// noteRound notes when a heartbeat round was sent, before it is: a lease starts there.
func (n *node) noteRound() {
	n.noteTransfer()
	if n.rn.State() != stateLeader {
		return
	}
	l := &n.lease
	if n.rn.Term() != l.term {
		*l = lease{term: n.rn.Term()}
	}
	if round := n.rn.HeartbeatRound(); round != l.round {
		l.round = round
		l.sent[round%uint64(len(l.sent))] = n.w.now
	}
	if n.rn.LeadTransferee() != 0 {
		l.transferRound = n.rn.HeartbeatRound()
	}
}

// holdsLease says whether a read needs no round trip: the round that a majority answered last was
// sent recently enough, by this node's clock, and no transfer can have ended it since.
func (n *node) holdsLease() bool {
	l, q := &n.lease, n.rn.QuorumRound()
	if n.rn.State() != stateLeader || n.rn.LeadTransferee() != 0 || l.term != n.rn.Term() ||
		q == 0 || q <= l.transferRound || l.round-q >= uint64(len(l.sent)) {
		return false
	}
	commit := n.rn.Committed()
	if commit > n.disk.raftNow.last() || commit < n.disk.raftNow.trunc ||
		n.disk.raftNow.termAt(commit) != n.rn.Term() {
		return false
	}
	end := l.sent[q%uint64(len(l.sent))] + int64(n.w.prof.LeaseTicks*float64(n.period))
	return n.w.now < end
}

func hashEntries(ents []eraftpb.Entry) (h uint64) {
	for i := range ents {
		h = hashEntry(h, &ents[i])
	}
	return h
}

// startReady takes a Ready up to the sync. It says whether there was something in it.
func (n *node) startReady() bool {
	n.rd = n.rn.Ready()
	rd := &n.rd
	n.noteRound()
	if n.w.prof.StorageError > 0 && isEmpty(rd) {
		return false
	}
	if err := n.watch.Ready(contract.ViewOf(n.id, n.rn), rd); err != nil {
		n.w.fail("contract", "node %d: %v", n.id, err)
		return false
	}
	n.crashAt = noCrash
	if !n.w.healing && n.w.rng.chance(n.w.prof.CrashPerReady) {
		n.crashAt = crashPoint(n.w.rng.between(1, int(crashPoints)-1))
	}
	if n.crashAt == crashBeforeWrite {
		n.crash()
		return true
	}
	n.rdHash = hashEntries(rd.Entries)
	if !n.write(rd) {
		return true
	}
	if n.rn.State() == stateLeader && n.leaderTerm != n.rn.Term() {
		n.leaderTerm = n.rn.Term()
		n.w.trace("node %d leads term %d", n.id, n.leaderTerm)
		n.w.sawLeader(n, n.leaderTerm)
	}
	if n.w.prof.Production {
		n.w.sawCommit(n)
	}
	var early []eraftpb.Message
	early, n.late = rd.SplitMessages()
	n.sendAll(early)
	if planted("B5") {
		n.sendAll(n.late)
		n.late = nil
	}
	if n.crashAt == crashBeforeSync {
		n.crash()
		return true
	}
	if rd.MustSync && n.w.prof.SyncUS > 0 {
		n.busy = true
		at := n.w.now + n.w.after(n.w.prof.SyncUS)
		n.w.plan(event{at: at, kind: evPersisted, node: n.id, epoch: n.epoch})
		return true
	}
	n.persisted()
	return true
}

func isEmpty(rd *raft.Ready) bool {
	return rd.SoftState == nil && raft.IsEmptyHardState(rd.HardState) && len(rd.Entries) == 0 &&
		raft.IsEmptySnap(&rd.Snapshot) && len(rd.CommittedEntries) == 0 && len(rd.Messages) == 0 &&
		len(rd.ReadStates) == 0
}

func (n *node) sendAll(msgs []eraftpb.Message) {
	for i := range msgs {
		n.w.send(n, &msgs[i])
	}
}

// write writes what a Ready carries, without a sync; false if the node died of it.
func (n *node) write(rd *raft.Ready) bool {
	if !raft.IsEmptySnap(&rd.Snapshot) && !n.writeSnapshot(&rd.Snapshot) {
		return false
	}
	rec := raftRecord{}
	if len(rd.Entries) > 0 {
		at := rd.Entries[0].Index
		prev, ok := n.disk.raftNow.hashAt(at - 1)
		if !ok {
			n.w.fail("I9", "node %d: entries at %d leave a gap after [%d,%d]", n.id, at,
				n.disk.raftNow.trunc, n.disk.raftNow.last())
			return false
		}
		if at <= n.disk.raftNow.last() {
			n.w.oracle.counts.Truncations++
		}
		rec.ents, rec.hashes = rd.Entries, n.w.sawLog(n, prev, rd.Entries)
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		hs := rd.HardState
		if planted("B1") {
			hs.Vote = 0
		}
		rec.hs = &hs
	}
	if n.w.prof.SplitBatch && rec.hs != nil && len(rec.ents) > 0 {
		n.disk.writeRaft(raftRecord{ents: rec.ents, hashes: rec.hashes})
		rec.ents, rec.hashes = nil, nil
	}
	if rec.hs != nil || len(rec.ents) > 0 {
		n.disk.writeRaft(rec)
	}
	n.checkConfChanges(rd.Entries)
	return true
}

// checkConfChanges: a leader appends a conf change only when all before it are applied (I8).
func (n *node) checkConfChanges(ents []eraftpb.Entry) {
	for i := range ents {
		e := &ents[i]
		if e.EntryType != eraftpb.EntryType_EntryConfChange || n.rn.State() != stateLeader ||
			e.Term != n.rn.Term() {
			continue
		}
		log := &n.disk.raftNow
		for j := max(n.rn.Applied(), log.trunc) + 1; j < e.Index && j <= log.last(); j++ {
			if log.ents[j-log.trunc-1].EntryType == eraftpb.EntryType_EntryConfChange {
				n.w.fail("I8", "leader %d appends conf change %d, %d is not applied", n.id, e.Index,
					j)
			}
		}
	}
}

// writeSnapshot installs a snapshot: the state machine first, synced, then the log (I9).
func (n *node) writeSnapshot(s *eraftpb.Snapshot) bool {
	meta := s.Metadata
	kv := kvState{
		applied: meta.Index, term: meta.Term, hash: getUint64(s.Data),
		conf: cloneConf(*meta.ConfState),
	}
	if kv.applied <= n.disk.kvNow.applied {
		n.w.fail("I9", "node %d: snapshot %d takes back applied %d", n.id, kv.applied,
			n.disk.kvNow.applied)
		return false
	}
	n.w.trace("node %d installs snapshot %d", n.id, kv.applied)
	n.w.sawApply(n, kv.applied, kv.hash, nil)
	n.w.checkConf(n, kv.applied, &kv.conf)
	n.applyQ = nil
	n.loseProposals(kv.applied)
	n.disk.writeKV(kv)
	n.disk.syncKV()
	n.disk.snapConf = kv.conf
	if n.crashAt == crashInSnapshot {
		n.crash()
		return false
	}
	n.disk.writeRaft(raftRecord{resetTo: &kv})
	return true
}

// persisted takes a Ready from the sync to Advance.
func (n *node) persisted() {
	n.busy = false
	rd := &n.rd
	if hashEntries(rd.Entries) != n.rdHash {
		n.w.fail("I12", "node %d: the entries of a Ready changed while they were written", n.id)
		return
	}
	if rd.MustSync && !n.w.rng.chance(n.w.prof.LyingSync) {
		n.disk.syncRaft()
	}
	if !n.w.prof.Production {
		n.w.sawCommit(n)
	}
	if n.crashAt == crashBeforeSend {
		n.crash()
		return
	}
	if n.crashAt == crashHalfSent {
		n.sendAll(n.late[:len(n.late)/2])
		n.crash()
		return
	}
	n.sendAll(n.late)
	n.readStates(rd.ReadStates)
	n.checkReads()
	if len(rd.CommittedEntries) > 0 {
		if n.w.prof.Production {
			n.applyQ = append(n.applyQ,
				applyBatch{rd.CommittedEntries, hashEntries(rd.CommittedEntries)})
			n.planApply()
		} else {
			n.apply(rd.CommittedEntries)
			if n.crashAt == crashAfterApply {
				n.crash()
				return
			}
		}
	}
	if err := n.watch.Advance(rd); err != nil {
		n.w.fail("contract", "node %d: %v", n.id, err)
		return
	}
	n.rn.Advance(*rd)
	n.rd, n.late = raft.Ready{}, nil
	if !raft.IsEmptySnap(&rd.Snapshot) {
		n.checkMembers()
	}
	if p := &n.w.prof; p.Production && n.w.events%16 == 0 {
		n.checkLimits()
	}
}

// checkLimits: what is held for a slow member or in memory is bounded (I15).
func (n *node) checkLimits() {
	p := &n.w.prof
	n.rn.VisitProgress(func(id uint64, pr raft.Progress) {
		msgs, bytes := pr.Inflight()
		if p.MaxInflightMsgs > 0 && msgs > p.MaxInflightMsgs {
			n.w.fail("I15", "node %d: %d appends on their way to %d", n.id, msgs, id)
		}
		most := p.MaxInflightBytes + max(p.MaxSizePerMsg, 400)
		if p.MaxInflightBytes > 0 && p.MaxSizePerMsg > 0 && bytes > most {
			n.w.fail("I15", "node %d: %d bytes on their way to %d", n.id, bytes, id)
		}
	})
	entries, bytes := n.rn.LogInMemory()
	unstable := n.rn.LastIndex() - min(n.disk.raftNow.last(), n.rn.LastIndex())
	if uint64(entries) > unstable && bytes > p.LogCacheBytes+unstable*400 && !n.rn.HasReady() {
		n.w.fail("I15", "node %d holds %d entries, %d bytes", n.id, entries, bytes)
	}
}

// applyTime: when the mishaps are over nobody is slow any more.
func (n *node) applyTime() int {
	if n.w.healing {
		return 0
	}
	return n.applyUS
}

func (n *node) planApply() {
	if !n.applying && len(n.applyQ) > 0 {
		n.applying = true
		at := n.w.now + n.w.after(n.applyTime())
		n.w.plan(event{at: at, kind: evApply, node: n.id, epoch: n.epoch})
	}
}

// applyNext is the apply worker: one batch, and the result goes to the node.
func (n *node) applyNext() {
	n.applying = false
	if n.busy || n.paused {
		n.planApply()
		return
	}
	if len(n.applyQ) > 0 {
		b := n.applyQ[0]
		n.applyQ = n.applyQ[1:]
		if hashEntries(b.ents) != b.hash {
			n.w.fail("I12", "node %d: committed entries changed before they were applied", n.id)
			return
		}
		n.apply(b.ents)
		if n.crashAt == crashAfterApply {
			n.crash()
			return
		}
		n.rn.AppliedTo(b.ents[len(b.ents)-1].Index)
		n.planApply()
	}
	n.run()
}

// apply carries out entries, each with its index in one write.
func (n *node) apply(ents []eraftpb.Entry) {
	for i := range ents {
		e := &ents[i]
		kv := n.disk.kvNow
		if e.Index != kv.applied+1 {
			n.w.fail("I4", "node %d applies %d after %d", n.id, e.Index, kv.applied)
			return
		}
		kv.applied, kv.term, kv.hash = e.Index, e.Term, hashEntry(kv.hash, e)
		if h, ok := n.disk.raftNow.hashAt(e.Index); ok && h != kv.hash {
			n.w.fail("I12", "node %d applies another entry %d than its log has", n.id, e.Index)
		}
		n.w.sawApply(n, e.Index, kv.hash, e)
		if e.EntryType == eraftpb.EntryType_EntryConfChange {
			n.applyConfChange(e, &kv)
		}
		n.answer(e)
		n.disk.writeKV(kv)
	}
	if n.w.rng.chance(n.w.prof.KVSync) {
		n.disk.syncKV()
	}
}

func (n *node) applyConfChange(e *eraftpb.Entry, kv *kvState) {
	var cc eraftpb.ConfChange
	if err := cc.Unmarshal(e.Data); err != nil {
		n.w.fail("I8", "conf change %d: %v", e.Index, err)
		return
	}
	kv.conf = cloneConf(*n.rn.ApplyConfChange(cc))
	n.w.trace("node %d applies %v %d at %d: %v", n.id, cc.ChangeType, cc.NodeId, e.Index, &kv.conf)
	n.w.sawConf(n, e.Index, &kv.conf)
	out := !slices.Contains(kv.conf.Nodes, n.id) && !slices.Contains(kv.conf.Learners, n.id)
	if out && !n.removed {
		n.removed, n.removedAt, n.removedIndex = true, n.w.now, e.Index
		n.removedRound = n.rn.HeartbeatRound()
		leaders := n.w.oracle.leaders
		n.removedBySelf = leaders[e.Term] == n.id || leaders[n.rn.Term()] == n.id
	}
}

// readStates checks the answers to reads (I10).
func (n *node) readStates(states []raft.ReadState) {
	for _, rs := range states {
		at := slices.IndexFunc(n.reads, func(r read) bool { return r.id == rs.ID })
		if at < 0 {
			n.w.fail("I10", "node %d: read %d was not asked for, or answered twice", n.id, rs.ID)
			return
		}
		need := n.reads[at].need
		n.reads = slices.Delete(n.reads, at, at+1)
		if rs.Aborted {
			n.w.oracle.counts.ReadsAborted++
			continue
		}
		n.w.oracle.counts.Reads++
		if rs.Index < need {
			n.w.fail("I10", "node %d: read at %d, %d was committed before", n.id, rs.Index, need)
		}
	}
}
