package raftstore

import (
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/raft"
)

// Time: one ticker a store wakes the peers that are awake; each peer reckons by the clock how many ticks have passed, and
// which of its duties are due.

// ticker is a store's one. Its fields belong to its goroutine, after the start.
type ticker struct {
	s *Store
	// dormant are the regions whose turn to wake has not come, in the order of their turns.
	dormant []*mailbox
	// nextGreeting is when the other stores are greeted next.
	nextGreeting time.Time
}

// run wakes every peer that is not asleep once in an interval; how many ticks have passed is each
// peer's own reckoning (peer.elapsedTicks). While all sleep it only greets other stores and looks for duties.
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
			ti.s.router.tick(1, ti.s.live.now())
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
	for range p.elapsedTicks(now) {
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
			p.lastLeaderSeen = now // a voter forgets a silent leader; a learner never does, and only messages count for it
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

// elapsedTicks turns the time since the last tick into whole ticks, at most an election timeout's.
//
// Invariant: raft never counts more ticks since it heard a leader than time has really passed. The
// leader's lease relies on it: a follower must not vote within an election timeout of hearing the leader,
// so ticks that were missed before that must not be made up for afterwards (heardLeader).
func (p *peer) elapsedTicks(now time.Time) int {
	interval := p.store.cfg.Raftstore.TickInterval.Duration
	n := int(now.Sub(p.times.tick) / interval)
	if limit := p.store.cfg.Raftstore.ElectionTicks; n > limit {
		p.times.tick = now
		return limit
	}
	p.times.tick = p.times.tick.Add(time.Duration(n) * interval)
	return n
}

// heardLeader begins the next tick anew.
func (p *peer) heardLeader(now time.Time) {
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

// trimCache keeps in memory what is still needed of the log: what is not applied here, and what a leader has to send. A
// follower that is behind by more is read to from the disk, and is bounded by the cache's size until then.
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
