package raftstore

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// storeMsg is a message to the store worker, which creates peers.
type storeMsg interface{ storeMsg() }

// storeRaft is a raft message for a region that was not here when it arrived.
type storeRaft struct{ m *rspb.RaftMessage }

// storeCreateSplit retries the creation of a split's peer once its predecessor is gone.
type storeCreateSplit struct{ m message.BecomeSplit }

func (storeRaft) storeMsg()        {}
func (storeCreateSplit) storeMsg() {}

// sendStore hands a message to the store worker; when its queue is full the message is dropped, and
// raft sends it again.
func (s *Store) sendStore(m storeMsg) error {
	select {
	case s.storeCh <- m:
		return nil
	default:
	}
	if c, ok := m.(storeCreateSplit); ok {
		// Not repeated by anyone: wait for room, off the caller's goroutine.
		go func() {
			select {
			case s.storeCh <- c:
			case <-s.ctx.Done():
			}
		}()
		return nil
	}
	return &BusyError{Reason: "the store worker's queue is full"}
}

// splitRetry is how soon the creation of a split's peer is tried again while its predecessor is there.
const splitRetry = 20 * time.Millisecond

func (s *Store) runStoreWorker() {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	var splits []message.BecomeSplit
	for {
		var err error
		select {
		case <-s.ctx.Done():
			return
		case m := <-s.storeCh:
			switch m := m.(type) {
			case storeRaft:
				err = s.onMissingRegion(m.m)
			case storeCreateSplit:
				splits = append(splits, m.m)
				retry.Reset(splitRetry)
			}
		case <-retry.C:
			waiting := splits
			splits = nil
			for i := range waiting {
				if s.router.get(waiting[i].Region.Id) != nil {
					splits = append(splits, waiting[i]) // the old peer is not gone yet
				} else if err = s.createSplitPeer(&waiting[i]); err != nil {
					break
				}
			}
			if len(splits) > 0 {
				retry.Reset(splitRetry)
			}
		}
		if err != nil {
			s.fail(fmt.Errorf("store worker: %w", err))
			return
		}
	}
}

// onMissingRegion decides whether a raft message creates an uninitialized peer. Errors are those of writes.
func (s *Store) onMissingRegion(m *rspb.RaftMessage) error {
	if s.router.get(m.RegionId) != nil {
		_ = s.router.send(m.RegionId, &message.Raft{Message: m})
		return nil
	}
	st, err := meta.LoadRegionState(s.engine, m.RegionId)
	if err != nil {
		s.noteReadError(m.RegionId, err) // the message comes again
		return nil
	}
	if st != nil {
		switch {
		case st.State != rspb.PeerState_Tombstone:
			s.onQuarantined(st, m)
			return nil
		case !s.wakesTombstone(st, m):
			return nil
		}
	}
	if m.IsTombstone || m.Hash != nil || !isInitialMessage(m.Message) {
		return nil
	}
	if !s.mayCreatePeer(m) {
		return nil
	}
	return s.createUninitialized(m)
}

// wakesTombstone tells whether a message may create a peer again after one was removed here: only a
// larger peer id, of a region that is not older. A peer that asks for a vote from outside the region is
// told that it was removed.
func (s *Store) wakesTombstone(st *rspb.RegionLocalState, m *rspb.RaftMessage) bool {
	old := st.Region.GetRegionEpoch()
	if m.GetToPeer().GetId() > st.GetPeer().GetId() && m.RegionEpoch.GetConfVer() >= old.GetConfVer() {
		return true
	}
	if !m.IsTombstone && epochStale(m.RegionEpoch, old) && isInitialized(st.Region) &&
		PeerOnStore(st.Region, m.FromPeer.StoreId) == nil {
		s.trans.Send(m.FromPeer.StoreId, []*rspb.RaftMessage{
			gcMessage(s.clusterID, m.RegionId, old, m.ToPeer, m.FromPeer),
		})
	}
	return false
}

// onQuarantined removes a damaged replica when the region says that it does not belong any more.
func (s *Store) onQuarantined(st *rspb.RegionLocalState, m *rspb.RaftMessage) {
	removed := m.IsTombstone && m.GetToPeer().GetId() == st.GetPeer().GetId() &&
		m.RegionEpoch.GetConfVer() > st.Region.GetRegionEpoch().GetConfVer()
	replaced := m.GetToPeer().GetId() > st.GetPeer().GetId()
	if !removed && !replaced {
		return
	}
	s.quarantine.remove(m.RegionId)
	s.logger.Info("removing damaged replica", log.RegionID(m.RegionId))
	region := CloneRegion(st.Region)
	if m.RegionEpoch.GetConfVer() > region.RegionEpoch.GetConfVer() {
		e := *m.RegionEpoch
		region.RegionEpoch = &e
	}
	stub := &peer{store: s, regionID: m.RegionId, stopped: true}
	stub.box = &mailbox{regionID: m.RegionId, peer: stub}
	s.applierFor(m.RegionId).push([]applyTask{{kind: applyDestroy, regionID: m.RegionId, destroy: &destroyTask{
		box: stub.box, region: region, data: st.Region, peer: st.Peer,
	}}})
}

// mayCreatePeer refuses a peer whose range another region of this store still covers: that region has
// a split to apply that will create it. A vote for it is parked until then.
func (s *Store) mayCreatePeer(m *rspb.RaftMessage) bool {
	s.meta.mu.Lock()
	defer s.meta.mu.Unlock()
	_, splitting := s.meta.mu.splitting[m.RegionId]
	_, known := s.meta.mu.regions[m.RegionId]
	overlap := s.meta.overlapLocked(m.RegionId, m.StartKey, m.EndKey)
	if splitting || known || overlap != nil {
		if isVote(m.Message) {
			s.meta.parkVoteLocked(m)
		}
		return false
	}
	return true
}

// createUninitialized makes a peer that knows nothing but its id and at which epoch it belonged to the region. The record
// on disk keeps both, so that a restart does not mistake its vote for one of an earlier peer.
func (s *Store) createUninitialized(m *rspb.RaftMessage) error {
	self := *m.ToPeer
	region := &metapb.Region{Id: m.RegionId, RegionEpoch: &metapb.RegionEpoch{}}
	b := s.engine.NewBatch()
	meta.PutRegionState(b, rspb.PeerState_Normal, &metapb.Region{Id: m.RegionId, RegionEpoch: m.RegionEpoch}, &self)
	if err := s.engine.Write(b, true); err != nil {
		return err
	}
	if err := s.log.Damaged(m.RegionId); err != nil {
		s.quarantineRegion(&metapb.Region{Id: m.RegionId, RegionEpoch: m.RegionEpoch}, &self, err)
		return nil
	}
	p, err := newPeer(s, region, &self, 0, rspb.RaftTruncatedState{}, false)
	if err != nil {
		return err
	}
	s.logger.Info("created uninitialized peer", log.RegionID(m.RegionId), log.PeerID(self.Id),
		zap.Uint64("from-store-id", m.FromPeer.StoreId))
	p.bornAt = m.RegionEpoch.GetConfVer()
	from := *m.FromPeer
	p.cache[from.Id] = &from
	s.meta.setRegion(region, self.Id)
	s.applierFor(m.RegionId).push([]applyTask{registerTask(p)})
	s.router.register(p)
	_ = s.router.push(p.box, &message.Start{})
	return s.router.push(p.box, &message.Raft{Message: m})
}

// firstReports is how long a store waits between its reports until one is answered. With that answer it learns which
// features are in force.
const firstReports = time.Second

// runStoreHeartbeat reports the store to the placement service. Only the first report is repeated soon if it fails; of
// the others, the next one says more.
func (s *Store) runStoreHeartbeat() {
	interval := s.cfg.Raftstore.StoreHeartbeatInterval.Duration
	ticker := time.NewTicker(min(interval, firstReports))
	defer ticker.Stop()
	last, answered := s.clock.Now(), false
	var roundTrip time.Duration
	for {
		stats := s.storeStats(last)
		last = s.clock.Now()
		ctx, cancel := context.WithTimeout(s.ctx, s.cfg.Raftstore.SchedulerTimeout.Duration)
		sent := time.Now() // the wall clock, whatever the store's clock is
		stats.Clock, stats.RoundTrip = sent.UnixNano(), uint64(roundTrip)
		err := s.placement.StoreHeartbeat(ctx, stats)
		cancel()
		roundTrip = time.Since(sent)
		if err != nil {
			roundTrip = 0
		}
		if err != nil && s.ctx.Err() == nil {
			s.logger.Warn("store heartbeat failed", zap.Error(err))
		}
		if err == nil {
			if !answered {
				answered = true
				ticker.Reset(interval)
			}
			s.releaseQuarantine(s.ctx)
		}
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (s *Store) storeStats(since time.Time) *schedulerpb.StoreStats {
	now := s.clock.Now()
	stats := &schedulerpb.StoreStats{
		StoreId: s.storeID, RegionCount: uint32(s.router.count.Load()),
		StartTime:  uint32(s.startTime.Unix()),
		IsDiskFull: s.diskFull.Load(),
		IsBusy:     s.inflight.Load() > int64(s.cfg.Raftstore.MaxStoreInflight)*9/10,
		Interval:   &schedulerpb.TimeInterval{StartTimestamp: uint64(since.Unix()), EndTimestamp: uint64(now.Unix())},
	}
	stats.SendingSnapCount, stats.ReceivingSnapCount = s.snaps.Counts()
	stats.ApplyingSnapCount = uint32(s.regionRunner.installing.Load())
	if s.stats != nil {
		s.stats(stats)
	}
	stats.Run, stats.LogSequence = s.run, s.log.SyncedSequence()
	s.reportQuarantine(stats)
	s.reportHealth(stats, now)
	if s.readErrors.again.Load() {
		stats.IsSlow = true // nothing new is to be placed here
	}
	return stats
}

// runSnapshotGC removes snapshot files that nobody needs any more.
func (s *Store) runSnapshotGC() {
	ticker := time.NewTicker(s.cfg.Raftstore.SnapshotGCInterval.Duration)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
			if err := s.snaps.GC(s.cfg.Raftstore.SnapshotMaxAge.Duration); err != nil {
				s.logger.Warn("removing old snapshot files failed", zap.Error(err))
			}
		}
	}
}
