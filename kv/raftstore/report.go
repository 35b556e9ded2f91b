package raftstore

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/raft"
)

// Reports to the placement service: heartbeats of the regions that this store leads and heartbeats
// of the store; and the operators that come back.

// pending lists peers that cannot follow by the log: they wait for a raft snapshot.
func (rr *regionReport) pending() []*metapb.Peer {
	var out []*metapb.Peer
	for _, q := range rr.p.region().Peers {
		if q.Id == rr.p.self.Id {
			continue
		}
		if pr, ok := rr.p.rn.ProgressOf(q.Id); !ok || pr.Match < rr.p.ps.truncated.Index {
			out = append(out, q)
		}
	}
	return out
}

// caughtUp tells whether a peer that was reported as pending is not any more.
func (rr *regionReport) caughtUp() bool {
	if len(rr.reported) == 0 {
		return false
	}
	n := 0
	for _, q := range rr.pending() {
		if rr.reported[q.Id] {
			n++
		}
	}
	return n < len(rr.reported)
}

// begin forgets what was read and written before this peer leads: another has reported it.
func (rr *regionReport) begin(now time.Time) {
	rr.p.box.reads.take()
	rr.p.stats.writtenBytes, rr.p.stats.writtenKeys, rr.p.times.lastReport = 0, 0, now
}

// send reports the region to the placement service. It never blocks.
func (rr *regionReport) send() {
	now := rr.p.store.clock.Now()
	cfg := &rr.p.store.cfg.Raftstore
	read := rr.p.box.reads.take()
	rr.p.store.reads.add(read.keys, read.bytes)
	rr.p.times.heartbeat = now.Add(cfg.RegionHeartbeatInterval.Duration)
	req := &schedulerpb.RegionHeartbeatRequest{
		Header: &schedulerpb.RequestHeader{ClusterId: rr.p.store.clusterID},
		Region: rr.p.region(), Leader: rr.p.self, Term: rr.p.rn.Term(),
		PendingPeers:    rr.pending(),
		ApproximateSize: rr.p.stats.size, ApproximateKeys: rr.p.stats.keys,
		SizeMeasured: rr.p.stats.sizeKnown,
		BytesWritten: rr.p.stats.writtenBytes, KeysWritten: rr.p.stats.writtenKeys,
		BytesRead: read.bytes, KeysRead: read.keys,
		Interval: &schedulerpb.TimeInterval{
			StartTimestamp: uint64(rr.p.times.lastReport.Unix()), EndTimestamp: uint64(now.Unix()),
		},
	}
	if rr.p.times.lastReport.IsZero() {
		req.Interval.StartTimestamp = req.Interval.EndTimestamp
	}
	for _, q := range rr.p.region().Peers {
		if q.Id == rr.p.self.Id {
			continue
		}
		last := rr.p.lastHeard[q.Id]
		if rr.p.sleep.asleep || last.IsZero() {
			continue
		}
		switch silent, down := now.Sub(last), cfg.PeerDownAfter.Duration; {
		case silent >= down:
			req.DownPeers = append(req.DownPeers,
				&schedulerpb.PeerStats{Peer: q, DownSeconds: uint64(silent.Seconds())})
		case silent >= down/2 && last.Add(down).Before(rr.p.times.heartbeat):
			rr.p.times.heartbeat = last.Add(down) // it is reported as soon as it counts as down
		}
	}
	rr.reported = nil
	for _, q := range req.PendingPeers {
		if rr.reported == nil {
			rr.reported = map[uint64]bool{}
		}
		rr.reported[q.Id] = true
	}
	rr.noteStandstill(now)
	rr.p.times.lastReport = now
	rr.p.stats.writtenBytes, rr.p.stats.writtenKeys = 0, 0
	rr.p.store.placement.RegionHeartbeat(req)
}

// HeartbeatAll makes every leader report to the placement service at once: a new placement leader
// begins without knowing the regions.
func (s *Store) HeartbeatAll() {
	s.router.boxes.Range(func(_, v any) bool {
		_ = s.router.push(v.(*mailbox), &message.HeartbeatNow{})
		return true
	})
}

// HandleOperator takes an order of the placement service.
func (s *Store) HandleOperator(resp *schedulerpb.RegionHeartbeatResponse) {
	if resp.RegionId != 0 &&
		(resp.ChangePeer != nil || resp.TransferLeader != nil || resp.SplitRegion != nil ||
			resp.Merge != nil) {
		_ = s.router.send(resp.RegionId, &message.Operator{Response: resp})
	}
}

type schedulerResponse = schedulerpb.RegionHeartbeatResponse

// onOperator carries out an order of the placement service, planned for the epoch it names. Nobody
// waits for the answer: the service learns the outcome from heartbeats, and repeats what is still
// needed.
func (p *peer) onOperator(resp *schedulerResponse) {
	header := message.Header{RegionID: p.regionID, Peer: p.self, Epoch: resp.RegionEpoch}
	if resp.GetTargetPeer().GetId() != p.self.Id || !p.isLeader() {
		return
	}
	switch {
	case resp.ChangePeer != nil:
		p.onAdmin(&message.Admin{Header: header, Request: &raft_cmdpb.AdminRequest{
			CmdType: raft_cmdpb.AdminCmdType_ChangePeer,
			ChangePeer: &raft_cmdpb.ChangePeerRequest{
				ChangeType: resp.ChangePeer.ChangeType, Peer: resp.ChangePeer.Peer,
			},
		}})
	case resp.TransferLeader != nil:
		p.onAdmin(&message.Admin{Header: header, Request: &raft_cmdpb.AdminRequest{
			CmdType:        raft_cmdpb.AdminCmdType_TransferLeader,
			TransferLeader: &raft_cmdpb.TransferLeaderRequest{Peer: resp.TransferLeader.Peer},
		}})
	case resp.Merge != nil:
		p.onAdmin(&message.Admin{Header: header, Request: &raft_cmdpb.AdminRequest{
			CmdType:      raft_cmdpb.AdminCmdType_PrepareMerge,
			PrepareMerge: &raft_cmdpb.PrepareMergeRequest{Target: resp.Merge.Target},
		}})
	case resp.SplitRegion != nil:
		var key []byte
		if len(resp.SplitRegion.Keys) > 0 {
			key = resp.SplitRegion.Keys[0]
		}
		p.split.onSplitAt(&message.SplitAt{Header: header, Key: key})
	}
}

// A follower starves if it stays at one index while its leader has committed more. It may answer
// heartbeats all the while, so nothing else shows it: it is neither down nor, as long as the log
// reaches back far enough, pending. Leaders look at their followers with each region heartbeat, and
// the store reports the starving ones with its own.

// standstillIntervals is for how many intervals of the region heartbeat a follower must have stood
// still.
const standstillIntervals = 3

// maxReported bounds the lists of regions and peers in a store heartbeat.
const maxReported = 64

// standstill is where a follower that is behind was found, and since when.
type standstill struct {
	match    uint64
	since    time.Time
	reported bool
}

// starvation holds the starving followers of the regions led here. Workers write it, the store
// heartbeat reads it. What is not written again expires, so that a leader that steps down has
// nothing to take back.
type starvation struct {
	mu struct {
		sync.Mutex
		seen map[uint64]time.Time // by peer
	}
}

func (s *starvation) add(peerID uint64, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.seen == nil {
		s.mu.seen = map[uint64]time.Time{}
	}
	s.mu.seen[peerID] = now
}

func (s *starvation) remove(peerID uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.seen, peerID)
}

// peers are those that were written since the given time, in rising order. The others are
// forgotten.
func (s *starvation) peers(since time.Time) []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []uint64
	for id, at := range s.mu.seen {
		if at.Before(since) {
			delete(s.mu.seen, id)
			continue
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// noteStandstill looks which followers get no further. It is called with each region heartbeat.
func (rr *regionReport) noteStandstill(now time.Time) {
	var next map[uint64]standstill
	limit := standstillIntervals * rr.p.store.cfg.Raftstore.RegionHeartbeatInterval.Duration
	rr.p.rn.VisitProgress(func(id uint64, pr raft.Progress) {
		if id == rr.p.self.Id || pr.Match >= rr.p.rn.Committed() {
			return
		}
		s, seen := rr.standstill[id]
		// What an earlier term of this leader has seen says nothing: the index begins at 0 again.
		if !seen || s.match != pr.Match || s.since.Before(rr.p.leaderSince) {
			s = standstill{match: pr.Match, since: now}
		}
		if now.Sub(s.since) >= limit {
			s.reported = true
			rr.p.store.reporter.starving.add(id, now)
		}
		if next == nil {
			next = map[uint64]standstill{}
		}
		next[id] = s
	})
	for id, s := range rr.standstill {
		if s.reported && !next[id].reported {
			rr.p.store.reporter.starving.remove(id)
		}
	}
	rr.standstill = next
}

// addHealth adds to a store heartbeat what only people act on. Every list is bounded.
func (sr *storeReporter) addHealth(stats *schedulerpb.StoreStats, now time.Time) {
	expiry := 2 * standstillIntervals * sr.s.cfg.Raftstore.RegionHeartbeatInterval.Duration
	starving, quarantined := sr.starving.peers(now.Add(-expiry)), sr.s.quarantine.ids()
	stats.StarvingPeerIds = starving[:min(len(starving), maxReported)]
	diverged := sr.s.comparisons.diverged.list()
	stats.DivergedRegionIds = diverged[:min(len(diverged), maxReported)]
	stats.QuarantinedRegionIds = quarantined[:min(len(quarantined), maxReported)]
	stats.ReadErrors = sr.s.readErrors.total.Load()
}

// placementTasks are questions and reports to the placement service that take their time. They run
// in the background.
type placementTasks struct {
	s     *Store
	tasks *runner.SchedulerTasks
}

// storeReporter reports the store to the placement service.
type storeReporter struct {
	s        *Store
	starving starvation
}

// firstReports is how long a store waits between its reports until one is answered. With that
// answer it learns which features are in force.
const firstReports = time.Second

// settling is when a store reports again after its first report was answered, if some features are
// not in force: in a new cluster they come with the first report of the last store. The time
// doubles with each such report, up to the usual interval.
const settling = 50 * time.Millisecond

// run reports the store to the placement service. Only the first report is repeated soon if it
// fails; of the others, the next one says more.
func (sr *storeReporter) run() {
	interval := sr.s.cfg.Raftstore.StoreHeartbeatInterval.Duration
	timer := time.NewTimer(interval)
	defer timer.Stop()
	last, answered, settle := sr.s.clock.Now(), false, settling
	var roundTrip time.Duration
	for {
		stats := sr.collect(last)
		last = sr.s.clock.Now()
		ctx, cancel := context.WithTimeout(sr.s.ctx, sr.s.cfg.Raftstore.SchedulerTimeout.Duration)
		sent := time.Now() // the wall clock, whatever the store's clock is
		stats.Clock, stats.RoundTrip = sent.UnixNano(), uint64(roundTrip)
		err := sr.s.placement.StoreHeartbeat(ctx, stats)
		cancel()
		roundTrip = time.Since(sent)
		if err != nil {
			roundTrip = 0
		}
		if err != nil && sr.s.ctx.Err() == nil {
			sr.s.logger.Warn("store heartbeat failed", zap.Error(err))
		}
		if err == nil {
			answered = true
			sr.releaseQuarantine(sr.s.ctx)
			sr.checkClock()
		}
		wait := interval
		switch {
		case !answered:
			wait = min(interval, firstReports)
		case settle < interval && !sr.s.features().Has(feature.Supported):
			wait, settle = settle, 2*settle
		}
		timer.Reset(wait)
		select {
		case <-sr.s.ctx.Done():
			return
		case <-sr.s.reportNow:
		case <-timer.C:
		}
	}
}

// checkClock compares the store's clock with the placement service's. What fails now the next
// report does.
func (sr *storeReporter) checkClock() {
	ctx, cancel := context.WithTimeout(sr.s.ctx, sr.s.cfg.Raftstore.SchedulerTimeout.Duration)
	defer cancel()
	if err := sr.s.clockLimit.Check(ctx); err != nil && ctx.Err() == nil {
		sr.s.logger.Debug("asking for the placement service's time failed", zap.Error(err))
	}
}

// regionReport is what a leader has told the placement service of its region.
type regionReport struct {
	p *peer
	// reported is the set of peers last reported as pending.
	reported map[uint64]bool
	// standstill are the followers that were behind at the last region heartbeat.
	standstill map[uint64]standstill
}

func (sr *storeReporter) collect(since time.Time) *schedulerpb.StoreStats {
	now, limits := sr.s.clock.Now(), sr.s.limits.Load()
	stats := &schedulerpb.StoreStats{
		StoreId: sr.s.storeID, RegionCount: uint32(sr.s.router.count.Load()),
		StartTime:       uint32(sr.s.startTime.Unix()),
		RegionSplitSize: limits.splitRegion,
		IsDiskFull:      sr.s.diskFull.Load(),
		IsBusy:          sr.s.inflight.Load() > limits.inflight*9/10,
		Interval: &schedulerpb.TimeInterval{
			StartTimestamp: uint64(since.Unix()), EndTimestamp: uint64(now.Unix()),
		},
	}
	read, written := sr.s.reads.take(), sr.s.written.take()
	stats.BytesRead, stats.KeysRead, stats.BytesWritten, stats.KeysWritten = read.bytes, read.keys,
		written.bytes, written.keys
	stats.SendingSnapCount, stats.ReceivingSnapCount = sr.s.snaps.Counts()
	stats.ApplyingSnapCount = uint32(sr.s.regionRunner.installing.Load())
	if sr.s.stats != nil {
		sr.s.stats(stats)
	}
	stats.Run, stats.LogSequence = sr.s.run, sr.s.log.SyncedSequence()
	sr.addQuarantine(stats)
	sr.addHealth(stats, now)
	if sr.s.readErrors.again.Load() {
		stats.IsSlow = true // nothing new is to be placed here
	}
	return stats
}

// flow counts keys and bytes that pass. Safe for concurrent use.
type flow struct {
	// readers on all processors write to it; what they only read lies in other cache lines
	_           [64]byte
	keys, bytes atomic.Uint64
	_           [48]byte
}

func (f *flow) add(keys, bytes uint64) {
	f.keys.Add(keys)
	f.bytes.Add(bytes)
}

// passed is an amount of keys and bytes.
type passed struct{ keys, bytes uint64 }

// take returns what has passed since it was called before. What passes meanwhile is in this amount
// or the next.
func (f *flow) take() passed { return passed{keys: f.keys.Swap(0), bytes: f.bytes.Swap(0)} }

// NoteRead counts what was read of a region, keys and bytes of keys and values, for the placement
// service.
func (s *Store) NoteRead(regionID uint64, keys, bytes int) {
	if box := s.router.get(regionID); box != nil && keys > 0 {
		box.reads.add(uint64(keys), uint64(bytes))
	}
}
