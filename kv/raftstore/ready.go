package raftstore

import (
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/raft"
)

// collectReady takes the raft Ready of this turn and adds what is to be persisted to the turn. It
// reports whether there was one.
//
// Order of a Ready, over all regions of a turn (see raftWorker): persist raft snapshot, entries and
// hard state with one sync -> send -> apply -> Advance. A leader's appends leave before the sync:
// they promise nothing, and its own vote for them is counted only by Advance. What is committed and
// has been synced by an earlier turn is applied without waiting for this one's sync (applyStable).
func (p *peer) collectReady(t *turn) bool {
	if p.stopped {
		return false
	}
	p.lease.noteRounds()
	p.lease.renew()
	if !p.rn.HasReady() {
		p.releaseOffer()
		return false
	}
	p.rd = p.rn.Ready()
	rd := &p.rd
	early, late := rd.SplitMessages()
	p.late = late
	p.noteBeats(early)
	for i := range early {
		p.sendRaft(t, &early[i])
	}
	if isEmptySnapshot(&rd.Snapshot) {
		p.releaseOffer()
	} else {
		p.offered = false // setRegion takes the reservation over
		p.acceptInstall(t, &rd.Snapshot)
	}
	if len(rd.Entries) > 0 {
		t.log.Append(p.regionID, rd.Entries)
		for i := range rd.Entries {
			p.stats.logBytes += uint64(len(rd.Entries[i].Data)) + 32
		}
		p.once.noteAppended(rd.Entries)
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		// A moved commit index alone is not worth a write: after a crash it is learnt again, and
		// never falls behind what the engine has applied.
		if rd.MustSync {
			t.log.SetHardState(p.regionID, rd.HardState)
			p.unwrittenCommit = eraftpb.HardState{}
		} else {
			p.unwrittenCommit = rd.HardState
		}
	} else if rd.MustSync && !raft.IsEmptyHardState(p.unwrittenCommit) {
		t.log.SetHardState(p.regionID, p.unwrittenCommit)
		p.unwrittenCommit = eraftpb.HardState{}
	}
	t.sync = t.sync || rd.MustSync
	p.applyStable(t)
	return true
}

// applyStable hands over the committed entries that do not depend on what this turn persists:
// others of a quorum have them, and an earlier turn has synced them here. Their answers need not
// wait for a sync that serves other entries.
//
// Invariant: what is applied is in the synced raft log (F-6). So nothing of an accepted raft
// snapshot, nothing from the first entry of this Ready on, and nothing from a conf change on, since
// the commit index that covers it has to be durable as well (raft.Ready.MustSync).
func (p *peer) applyStable(t *turn) {
	rd := &p.rd
	if !isEmptySnapshot(&rd.Snapshot) || p.installing != 0 || p.removed != nil {
		return
	}
	n := 0
	for n < len(rd.CommittedEntries) {
		e := &rd.CommittedEntries[n]
		if e.EntryType != eraftpb.EntryType_EntryNormal ||
			len(rd.Entries) > 0 && e.Index >= rd.Entries[0].Index {
			break
		}
		n++
	}
	p.handedEarly = n
	if n > 0 {
		p.giveToApply(t, rd.CommittedEntries[:n])
	}
}

func isEmptySnapshot(s *eraftpb.Snapshot) bool { return s.GetMetadata().GetIndex() == 0 }

// afterPersist does what had to wait for the sync.
func (p *peer) afterPersist(t *turn) {
	rd := &p.rd
	if len(rd.Entries) > 0 {
		message.Appended(p.proposals, rd.Entries[0].Index, t.synced)
	}
	for i := range p.late {
		p.sendRaft(t, &p.late[i])
	}
	p.late = nil
	if !isEmptySnapshot(&rd.Snapshot) {
		p.startInstall(t, &rd.Snapshot)
	}
	if len(rd.ReadStates) > 0 {
		p.reads.onStates(rd.ReadStates)
	}
	if rest := rd.CommittedEntries[p.handedEarly:]; len(rest) > 0 {
		p.giveToApply(t, rest)
	}
	p.handedEarly = 0
	soft := rd.SoftState
	p.rn.Advance(*rd)
	p.rd = raft.Ready{}
	p.merge.tellCommitted()
	if soft != nil {
		p.onRoleChange()
	}
	p.lease.noteRounds()
	p.lease.renew()
	p.publish()
	p.checkLinger(t)
}

// onRoleChange reacts to a new leader or a new role.
func (p *peer) onRoleChange() {
	now := p.store.clock.Now()
	if !p.isLeader() {
		if !p.leaderSince.IsZero() {
			p.logger.Info("stepped down", zap.Uint64("term", p.rn.Term()))
		}
		p.leaderSince = time.Time{}
		p.split.index = 0
		p.stats.askingSplit = false
		return
	}
	if p.leaderSince.IsZero() {
		p.leaderSince = now
		p.logger.Info("became leader", zap.Uint64("term", p.rn.Term()))
		for _, q := range p.region().Peers {
			p.lastHeard[q.Id] = now
		}
		// The first own heartbeat round comes with the next tick; do not make the first reads wait.
		p.rn.BroadcastHeartbeat()
		p.report.begin(now)
		p.report.send()
	}
}
