package raftstore

import (
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/raft"
)

// handleTicks advances raft's logical clock and does what is due. Due times are compared with the
// clock, never counted, so that a missed turn cannot stop a duty for good.
func (p *peer) handleTicks(t *turn, ticks int) {
	if ticks == 0 || p.stopped {
		return
	}
	now := p.store.clock.Now()
	if p.sleep.asleep {
		p.doDuty(now)
		return
	}
	for range p.elapsedTicks(now) {
		p.rn.Tick()
	}
	p.expireReads(now)
	if err := p.store.log.Damaged(p.regionID); err != nil && !p.sick.damaged {
		p.store.noteReadError(p.regionID, err) // found by whoever read it
		p.fallSick(err)
	}
	if p.tendSick(t); p.stopped {
		return
	}
	p.trimCache()
	if !p.isLeader() {
		if p.rn.Lead() != raft.None {
			p.lastLeaderSeen = later(p.lastLeaderSeen, now, p.initialized())
		}
		p.checkStale(now)
		return
	}
	cfg := &p.store.cfg.Raftstore
	p.tickOnce(now)
	if due(now, &p.times.heartbeat, cfg.RegionHeartbeatInterval.Duration) || p.pendingCaughtUp() {
		p.heartbeatRegion()
	}
	if due(now, &p.times.logGC, cfg.LogGCInterval.Duration) {
		p.proposeLogGC()
	}
	if due(now, &p.times.splitCheck, cfg.SplitCheckInterval.Duration) {
		p.checkSplit()
	}
	p.checkLinger(t)
	p.trySleep(t, now)
}

// trimCache keeps in memory what is still needed of the log: what is not applied here, and what a leader has to send. A
// follower that is behind by more is read to from the disk, and is bounded by the cache's size until then.
func (p *peer) trimCache() {
	keep := p.appliedIndex
	if p.isLeader() {
		p.rn.VisitProgress(func(id uint64, pr raft.Progress) {
			if id != p.meta.Id && pr.RecentActive {
				keep = min(keep, pr.Match)
			}
		})
	}
	if keep > p.stats.trimmed {
		p.stats.trimmed = keep
		p.store.log.TrimCache(p.regionID, keep)
	}
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

func later(old, now time.Time, ok bool) time.Time {
	if ok {
		return now
	}
	return old
}

// due tells whether the time has come, and sets the next one.
func due(now time.Time, next *time.Time, interval time.Duration) bool {
	if now.Before(*next) {
		return false
	}
	*next = now.Add(interval)
	return true
}

// checkStale lets a peer that has long heard no leader ask the placement service whether it still
// belongs to its region: not every removed peer campaigns and is told by the others (G6).
func (p *peer) checkStale(now time.Time) {
	if now.Before(p.times.stale) {
		return
	}
	interval := p.store.cfg.Raftstore.StalePeerCheck.Duration
	p.times.stale = now.Add(p.store.jitter(interval))
	if now.Sub(p.lastLeaderSeen) >= interval {
		p.store.askRegionTruth(p.regionID)
	}
}

// pending lists peers that cannot follow by the log: they wait for a raft snapshot.
func (p *peer) pending() []*metapb.Peer {
	var out []*metapb.Peer
	for _, q := range p.region().Peers {
		if q.Id == p.meta.Id {
			continue
		}
		if pr, ok := p.rn.ProgressOf(q.Id); !ok || pr.Match < p.ps.truncated.Index {
			out = append(out, q)
		}
	}
	return out
}

// pendingCaughtUp tells whether a peer that was reported as pending is not any more.
func (p *peer) pendingCaughtUp() bool {
	if len(p.pendingReported) == 0 {
		return false
	}
	n := 0
	for _, q := range p.pending() {
		if p.pendingReported[q.Id] {
			n++
		}
	}
	return n < len(p.pendingReported)
}

// heartbeatRegion reports the region to the placement service. It never blocks.
func (p *peer) heartbeatRegion() {
	now := p.store.clock.Now()
	cfg := &p.store.cfg.Raftstore
	p.times.heartbeat = now.Add(cfg.RegionHeartbeatInterval.Duration)
	req := &schedulerpb.RegionHeartbeatRequest{
		Header: &schedulerpb.RequestHeader{ClusterId: p.store.clusterID},
		Region: p.region(), Leader: p.meta, Term: p.rn.Term(),
		PendingPeers:    p.pending(),
		ApproximateSize: p.stats.size, ApproximateKeys: p.stats.keys,
		BytesWritten: p.stats.writtenBytes, KeysWritten: p.stats.writtenKeys,
		Interval: &schedulerpb.TimeInterval{StartTimestamp: uint64(p.times.lastReport.Unix()), EndTimestamp: uint64(now.Unix())},
	}
	if p.times.lastReport.IsZero() {
		req.Interval.StartTimestamp = req.Interval.EndTimestamp
	}
	for _, q := range p.region().Peers {
		if q.Id == p.meta.Id {
			continue
		}
		last := p.lastHeard[q.Id]
		if p.sleep.asleep || last.IsZero() {
			continue
		}
		switch silent, down := now.Sub(last), cfg.PeerDownAfter.Duration; {
		case silent >= down:
			req.DownPeers = append(req.DownPeers, &schedulerpb.PeerStats{Peer: q, DownSeconds: uint64(silent.Seconds())})
		case silent >= down/2 && last.Add(down).Before(p.times.heartbeat):
			p.times.heartbeat = last.Add(down) // it is reported as soon as it counts as down
		}
	}
	p.pendingReported = nil
	for _, q := range req.PendingPeers {
		if p.pendingReported == nil {
			p.pendingReported = map[uint64]bool{}
		}
		p.pendingReported[q.Id] = true
	}
	p.noteStandstill(now)
	p.times.lastReport = now
	p.stats.writtenBytes, p.stats.writtenKeys = 0, 0
	p.store.placement.RegionHeartbeat(req)
}

// proposeLogGC asks all replicas to compact their logs up to what every live follower has, or further
// when the log has grown beyond its limits: a follower that far behind gets a raft snapshot.
func (p *peer) proposeLogGC() {
	cfg := &p.store.cfg.Raftstore
	first := p.ps.truncated.Index + 1
	if p.appliedIndex < first {
		return
	}
	compact := p.appliedIndex
	p.rn.VisitProgress(func(id uint64, pr raft.Progress) {
		if id == p.meta.Id {
			return
		}
		if pr.State == raft.ProgressSnapshot {
			// A raft snapshot on its way must find the entries that follow it (D8).
			compact = min(compact, max(pr.PendingSnapshot, pr.Match))
			return
		}
		compact = min(compact, pr.Match)
	})
	tooLong := p.appliedIndex-first+1 >= cfg.LogGCCountLimit || p.stats.logBytes >= uint64(cfg.LogGCSizeLimit)
	if tooLong {
		compact = max(compact, p.appliedIndex)
	}
	full := p.store.diskFull.Load()
	if !full {
		compact = min(compact, p.recentLog())
	}
	// On a full disk each entry counts; a follower that needs a raft snapshot would cost more than it brings.
	worth := tooLong || full || compact-first+1 >= cfg.LogGCThreshold
	if compact < first || !worth {
		return
	}
	if compact <= p.stats.lastCompactRequest {
		return
	}
	term, err := p.ps.Term(compact)
	if err != nil {
		return
	}
	a := &message.Admin{
		Header: message.Header{RegionID: p.regionID, Peer: p.meta},
		Request: &raft_cmdpb.AdminRequest{
			CmdType:    raft_cmdpb.AdminCmdType_CompactLog,
			CompactLog: &raft_cmdpb.CompactLogRequest{CompactIndex: compact, CompactTerm: term},
		},
	}
	p.flushWrites()
	if p.proposeAdmin(a) {
		p.stats.lastCompactRequest = compact
		p.stats.logBytes = 0
	}
}

// recentLog is the index behind which the log stays for a while although all have it: retried writes are looked for
// there. Half of the limits on its length is for that.
func (p *peer) recentLog() uint64 {
	cfg := &p.store.cfg.Raftstore
	index := p.once.marks.recent(p.store.clock.Now(), p.once.appended, cfg.LogGCKeep.Duration, uint64(cfg.LogGCSizeLimit)/2)
	return max(index, p.appliedIndex-min(p.appliedIndex, cfg.LogGCCountLimit/2))
}

// estimatesInARow is how often a region's size may be estimated before it is counted again.
const estimatesInARow = 16

// checkSplit starts a check of the region's size, if it is unknown or has grown enough since the last.
func (p *peer) checkSplit() {
	st, cfg := &p.stats, &p.store.cfg.Raftstore
	if st.checkingSplit || st.askingSplit {
		return
	}
	if st.sizeKnown && st.sizeDelta < int64(cfg.RegionSplitSize)/8 {
		return
	}
	check := runner.Check{
		Region: p.region(), RegionID: p.regionID, Guess: message.RegionSize{Size: st.size, Keys: st.keys}, Last: st.counted,
		Fits: st.counted.Size+st.sinceCount <= uint64(cfg.RegionMaxSize) || st.sinceCount < st.countAfter,
	}
	if st.estimates >= estimatesInARow {
		check.Last = message.Counted{}
	}
	if p.store.splitChecker.Check(check) {
		st.checkingSplit = true
	}
}
