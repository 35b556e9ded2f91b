package raftstore

import (
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/raft"
)

// Time: one ticker a store wakes the peers that are awake; each peer reckons by the clock how many
// ticks have passed, and which of its duties are due.

// ticker is a store's one. Its fields belong to its goroutine, after the start.
type ticker struct {
	s *Store
	// dormant are the regions whose turn to wake has not come, in the order of their turns.
	dormant []*mailbox
	// nextGreeting is when the other stores are greeted next.
	nextGreeting time.Time
}

// run wakes every peer that is not asleep once in an interval; how many ticks have passed is each
// peer's own reckoning (peer.elapsedTicks). While all sleep it only greets other stores and looks
// for duties.
func (ti *ticker) run() {
	interval := ti.s.cfg.Raftstore.TickInterval.Duration
	asleep := max(interval, min(dutyInterval, greetTimeouts*ti.s.cfg.Raftstore.ElectionTimeout()))
	ti.nextGreeting = ti.s.clock.Now()
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-ti.s.ctx.Done():
			return
		case <-ti.s.router.stirred:
		case <-timer.C:
			ti.s.repeatBeats(ti.s.router.tick(1, ti.s.live.now(), ti.s.stalls))
			ti.greet()
			ti.rouse()
		}
		if ti.s.router.awake.Load() > 0 || len(ti.dormant) > 0 {
			timer.Reset(interval)
		} else {
			timer.Reset(asleep)
		}
	}
}

// dutyInterval is how late the duty of a sleeping peer may be.
const dutyInterval = time.Second

// handleTicks advances raft's logical clock and does what is due. Due times are compared with the
// clock, never counted, so that a missed turn cannot stop a duty for good.
func (p *peer) handleTicks(t *turn, ticks int) {
	if ticks == 0 || p.stopped {
		return
	}
	now := p.store.clock.Now()
	if p.sleep.asleep {
		p.sleep.doDuty(now)
		return
	}
	for range p.elapsedTicks(now, max(2, p.store.cfg.Raftstore.HeartbeatTicks)) {
		p.rn.Tick()
	}
	p.reads.expire(now)
	if err := p.store.log.Damaged(p.regionID); err != nil && !p.sick.damaged {
		p.store.readErrors.note(p.regionID, err) // found by a read
		p.sick.note(err)
	}
	if p.sick.tend(t); p.stopped {
		return
	}
	p.compact.trimCache()
	if p.merge.tick(t, now); p.stopped {
		return
	}
	if !p.isLeader() {
		if p.rn.Lead() != raft.None && p.initialized() && !regions.IsLearner(p.self) {
			// a voter forgets a silent leader; a learner never does, and only messages count for it
			p.lastLeaderSeen = now
		}
		p.checkStale(now)
		return
	}
	cfg := &p.store.cfg.Raftstore
	p.once.tick(now)
	if due(now, &p.times.heartbeat, cfg.RegionHeartbeatInterval.Duration) || p.report.caughtUp() {
		p.report.send()
	}
	if p.merge.state == nil && due(now, &p.times.logGC, cfg.LogGCInterval.Duration) {
		p.compact.propose()
	}
	if p.merge.state == nil && due(now, &p.times.splitCheck, cfg.SplitCheckInterval.Duration) {
		p.split.check()
	}
	p.checkLinger(t)
	p.sleep.try(t, now)
}

// elapsedTicks turns the time since the last tick into whole ticks, at most so many.
//
// A turn counts an interval between heartbeats at most. What took longer was a turn that wrote, or
// a process that did not get a processor: time in which the messages of others could not be taken,
// and which says nothing about them. A follower would campaign while its leader's heartbeats wait
// to be read, and a leader would step down for the silence of followers whom it has sent nothing.
// The price: a peer whose turns are that slow waits for longer until it campaigns, and others do.
//
// Invariant: raft never counts more ticks since it heard a leader than time has really passed. The
// leader's lease relies on it: a follower must not vote within an election timeout of hearing the
// leader, so ticks that were missed before that must not be made up for afterwards (noteLeader).
func (p *peer) elapsedTicks(now time.Time, most int) int {
	interval := p.store.cfg.Raftstore.TickInterval.Duration
	n := int(now.Sub(p.times.tick) / interval)
	if n > most {
		p.times.tick = now
		return most
	}
	p.times.tick = p.times.tick.Add(time.Duration(n) * interval)
	return n
}

// noteLeader begins the next tick anew.
func (p *peer) noteLeader(now time.Time) {
	p.lastLeaderSeen = now
	p.times.tick = now
}

// due tells whether the time has come, and sets the next one.
func due(now time.Time, next *time.Time, interval time.Duration) bool {
	if now.Before(*next) {
		return false
	}
	*next = now.Add(interval)
	return true
}

// trimCache keeps in memory what is still needed of the log: what is not applied here, and what a
// leader has to send. A follower that is behind by more is read to from the disk, and is bounded by
// the cache's size until then.
func (lc *compactor) trimCache() {
	keep := lc.p.appliedIndex
	if lc.p.isLeader() {
		lc.p.rn.VisitProgress(func(id uint64, pr raft.Progress) {
			if id != lc.p.self.Id && pr.RecentActive {
				keep = min(keep, pr.Match)
			}
		})
	}
	if keep > lc.p.stats.trimmed {
		lc.p.stats.trimmed = keep
		lc.p.store.log.TrimCache(lc.p.regionID, keep)
	}
}

// A raft worker that writes many bytes, or waits for a slow sync, sends no heartbeats meanwhile.
// Followers do without a leader for an election timeout, so a write of a second would cost every
// region of that turn its leader, although its store lives. The ticker therefore sends a region's
// heartbeats again while nobody handles its ticks.
//
// Safety: a heartbeat that is repeated is a message that the network has doubled, which raft has to
// bear. It carries the term, commit index and round of when the worker sent it. It begins no lease:
// the lease of a round begins when the round's first heartbeat was sent, and the peer reckons with
// the round that is in the answer.
//
// Limit: a disk that hangs must not keep a leader for ever. After repeatTimeouts election timeouts
// without a turn the ticker falls silent, and the followers elect another leader.

// repeatTimeouts is for how many election timeouts without a turn a region's heartbeats are
// repeated.
const repeatTimeouts = 3

// heartbeats are those that a leader has sent to the followers that it knows something of.
//
// Invariant: immutable, and nil in the mailbox of a peer whose last Ready was not a leader's.
type heartbeats struct {
	term   uint64
	region *metapb.Region
	// complete: there is one for each other peer of the region.
	complete bool
	messages []rspb.RaftMessage
}

// noteBeats keeps a leader's heartbeats for repeatBeats: once a term and state of the region, and
// until all followers have one. A heartbeat with commit index 0 is left out, it may create a peer.
// early are the messages of this turn's Ready that leave before the sync.
func (p *peer) noteBeats(early []eraftpb.Message) {
	had := p.box.beats.Load()
	if !p.isLeader() {
		if had != nil {
			p.box.beats.Store(nil)
		}
		return
	}
	if had != nil && had.complete && had.term == p.rn.Term() && had.region == p.region() {
		return
	}
	h := &heartbeats{term: p.rn.Term(), region: p.region()}
	for i := range early {
		m := &early[i]
		to := p.peerOf(m.To)
		if m.MsgType != eraftpb.MessageType_MsgHeartbeat || m.Commit == 0 || to == nil {
			continue
		}
		h.messages = append(h.messages, rspb.RaftMessage{
			RegionId: p.regionID, FromPeer: p.self, ToPeer: to, Message: m,
			RegionEpoch: p.region().RegionEpoch,
			ClusterId:   p.store.clusterID, Incarnation: p.store.incarnation,
		})
	}
	h.complete = len(h.messages) == len(p.region().GetPeers())-1
	switch {
	case len(h.messages) > 0:
		p.box.beats.Store(h)
	case had != nil && had.term != h.term:
		p.box.beats.Store(nil)
	}
}

// repeatBeats sends the heartbeats of mailboxes whose ticks nobody has handled for a while. Called
// by the ticker.
func (s *Store) repeatBeats(stalled []*mailbox) {
	var out map[uint64][]*rspb.RaftMessage
	for _, b := range stalled {
		h := b.beats.Load()
		if h == nil {
			continue
		}
		if out == nil {
			out = map[uint64][]*rspb.RaftMessage{}
		}
		for _, m := range h.messages { // a copy: the transport takes it over
			out[m.ToPeer.StoreId] = append(out[m.ToPeer.StoreId], &m)
		}
	}
	for store, msgs := range out {
		s.work.repeatedBeats.Add(uint64(len(msgs)))
		s.trans.Send(store, msgs)
	}
}

// stalls tells by the number of ticks that wait in a mailbox whether its heartbeats are to be
// repeated now.
func (s *Store) stalls(ticks int) bool {
	cfg := &s.cfg.Raftstore
	return ticks > cfg.HeartbeatTicks && ticks%cfg.HeartbeatTicks == 0 &&
		ticks <= repeatTimeouts*cfg.ElectionTicks
}
