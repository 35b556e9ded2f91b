package raftstore

import (
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/raft"
)

// A region in which nothing happens sleeps: leader and followers stop their clocks and heartbeats.
//
// The leader decides, when for a while nothing was asked of the region and every peer is known to have
// the whole log; it tells the followers by a heartbeat with a flag, which they do not answer. A follower
// that does not agree, or that never gets the message, goes on, misses the leader's heartbeats, asks for
// pre-votes, and so wakes the leader. Any message and any command wakes a peer; stores that share
// sleeping regions watch each other instead (liveness.go).
//
// Safety: a sleeping peer counts no ticks, so it votes later than it could, never earlier: the lease of a
// leader relies on nothing else. The lease itself goes by the clock and runs out while the leader sleeps;
// the next read asks a quorum again.

// sleepState is a peer's part of it.
type sleepState struct {
	asleep bool
	stores []uint64 // counted as sleeping with
	began  time.Time
	active time.Time
}

// trySleep lets a leader and its followers sleep if nothing is left to do.
func (p *peer) trySleep(t *turn, now time.Time) {
	after := p.store.cfg.Raftstore.HibernateAfter.Duration
	if p.box.read.Load() {
		p.box.read.Store(false) // local reads leave a mark instead of a message
		p.sleep.active = now
	}
	if after <= 0 || now.Sub(p.sleep.active) < after || !p.quiet() {
		return
	}
	last := p.rn.LastIndex()
	for _, q := range p.region().Peers {
		if q.Id == p.meta.Id {
			continue
		}
		pr, ok := p.rn.ProgressOf(q.Id)
		if !ok || pr.State != raft.ProgressReplicate || pr.Match != last || !pr.RecentActive {
			return
		}
	}
	for _, q := range p.region().Peers {
		if q.Id == p.meta.Id {
			continue
		}
		t.send(q.StoreId, &rspb.RaftMessage{
			RegionId: p.regionID, FromPeer: p.meta, ToPeer: q, RegionEpoch: p.region().RegionEpoch,
			ClusterId: p.store.clusterID, Hibernate: true,
			Message: &eraftpb.Message{
				MsgType: eraftpb.MessageType_MsgHeartbeat, From: p.meta.Id, To: q.Id, Term: p.rn.Term(), Commit: last,
			},
		})
	}
	p.fallAsleep()
}

// quiet tells whether nothing is under way at a leader.
func (p *peer) quiet() bool {
	st := &p.stats
	return p.sick.err == nil && p.removed == nil && p.installing == 0 && p.splitIndex == 0 && len(p.proposals) == 0 && len(p.writes) == 0 && len(p.handover.writes) == 0 &&
		len(p.once.held) == 0 &&
		len(p.reads.arrived) == 0 && len(p.reads.asked) == 0 && len(p.reads.confirmed) == 0 &&
		!st.checkingSplit && !st.askingSplit && st.sizeKnown && len(p.pendingReported) == 0 &&
		p.rn.LeadTransferee() == raft.None && !p.rn.HasPendingConfChange() && !p.rn.HasReady() &&
		p.appliedIndex == p.rn.LastIndex() && p.rn.Committed() == p.rn.LastIndex() && p.appliedTerm == p.rn.Term()
}

// onHibernate is a follower's answer to its leader's wish: it sleeps if it knows of nothing else. False:
// the message is to be treated as the heartbeat that it is, whose answer wakes the leader.
func (p *peer) onHibernate(m *eraftpb.Message) bool {
	if !p.initialized() || p.rn.State() != raft.StateFollower || p.rn.Term() != m.Term || p.rn.Lead() != m.From ||
		p.installing != 0 || p.removed != nil || p.rn.LastIndex() != m.Commit || p.rn.Committed() != m.Commit {
		return false
	}
	p.heardLeader(p.store.clock.Now())
	p.fallAsleep()
	return true
}

func (p *peer) fallAsleep() {
	if p.sleep.asleep {
		return
	}
	p.sleep.asleep, p.sleep.began = true, p.store.clock.Now()
	p.sleep.stores = p.sleep.stores[:0]
	for _, q := range p.region().Peers {
		if q.Id != p.meta.Id {
			p.sleep.stores = append(p.sleep.stores, q.StoreId)
		}
	}
	p.store.live.sleep(p.sleep.stores)
	if !p.isLeader() {
		p.times.stale = p.sleep.began.Add(p.sleepingCheck())
	}
	p.setDuty()
	p.box.asleep.Store(true)
	p.store.router.noteAwake(p.box, false)
}

// wake starts the clock again, as if the leader had been heard just now.
func (p *peer) wake() {
	if !p.sleep.asleep {
		return
	}
	now := p.store.clock.Now()
	if p.box.dormant.Swap(false) {
		p.countDormantTime(now)
	} else {
		p.heardLeader(now)
	}
	p.sleep.asleep, p.sleep.active = false, now
	if soon := now.Add(p.store.jitter(p.store.cfg.Raftstore.StalePeerCheck.Duration)); p.times.stale.After(soon) {
		p.times.stale = soon
	}
	p.box.asleep.Store(false)
	if !p.stopped {
		p.store.router.noteAwake(p.box, true)
	}
	p.store.live.wake(p.sleep.stores)
	for _, q := range p.region().Peers {
		p.lastHeard[q.Id] = now
	}
}

// stir wakes the peer if the message asks for it, and notes that something was asked of the region. What the
// store sends itself, and questions that change nothing, do not wake.
func (p *peer) stir(m message.Msg) {
	dormant := p.box.dormant.Load()
	switch m := m.(type) {
	case *message.Raft:
		if !m.Message.Hibernate || dormant {
			p.wake()
		}
	case *message.Write, *message.Read, *message.Admin, *message.SplitAt, *message.Operator, *message.BecomeSplit,
		*message.CompareReplicas, *message.Wake, *message.Unreachable, *message.SnapshotSent, *message.SnapshotInstalled, *message.ReadFailed:
		p.wake()
		p.sleep.active = p.store.clock.Now()
		if dormant {
			p.campaignFirst()
		}
	}
}

// sleepingChecks is how many times longer than one that hears no leader a sleeping follower goes on before it asks
// the placement service whether it still belongs to its region.
const sleepingChecks = 4

// doDuty is what a sleeping peer has to do all the same, and sets when it is due again: a leader reports to the
// placement service; a follower asks it whether it still belongs, since the entry that removes it may have been lost on
// its way, and nobody speaks to it afterwards (G6).
func (p *peer) doDuty(now time.Time) {
	switch {
	case p.isLeader():
		if !now.Before(p.times.heartbeat) {
			p.heartbeatRegion()
		}
	case !now.Before(p.times.stale) && !p.box.dormant.Load():
		p.times.stale = now.Add(p.sleepingCheck())
		p.store.askRegionTruth(p.regionID)
	}
	p.setDuty()
}

func (p *peer) sleepingCheck() time.Duration {
	return p.store.jitter(sleepingChecks * p.store.cfg.Raftstore.StalePeerCheck.Duration)
}

// setDuty tells the ticker when doDuty is due. A dormant follower is roused by others.
func (p *peer) setDuty() {
	duty := int64(0)
	switch {
	case p.isLeader():
		duty = int64(p.times.heartbeat.Sub(p.store.clock.Base()))
	case !p.box.dormant.Load():
		duty = int64(p.times.stale.Sub(p.store.clock.Base()))
	}
	p.box.duty.Store(duty)
}

// onStoreLost wakes a peer, and lets a follower whose leader was on the lost store campaign soon. Of a sleep,
// the time for which the store was silent counts: the leader was not heard for at least as long.
func (p *peer) onStoreLost(m *message.StoreLost) {
	if p.box.dormant.Load() {
		return // it relies on no other store
	}
	asleep := p.sleep.asleep
	p.wake()
	leader := p.leaderPeer()
	if leader == nil || leader.StoreId != m.StoreID || p.rn.State() != raft.StateFollower {
		return
	}
	if silent := later(p.sleep.began, m.Heard, m.Heard.After(p.sleep.began)); asleep && silent.Before(p.times.tick) {
		p.times.tick = silent
	}
	rank := 0
	for _, q := range p.region().Peers {
		if q.Id < p.meta.Id && q.Id != leader.Id && !isLearner(q) {
			rank++
		}
	}
	// One tick more than the smallest timeout, so that the others' leases are over as well when they are
	// asked; and two between candidates, so that one is elected before the next one begins.
	p.rn.ExpectElection(1 + 2*rank)
	p.loseLeader(leader.Id)
}
