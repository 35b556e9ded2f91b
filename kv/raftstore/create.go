package raftstore

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// Peers begin here when a raft message comes for a region that this store does not have. Splits create peers in split.go,
// a start in recover.go.

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
	return &regionerr.BusyError{Reason: "the store worker's queue is full"}
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
	if !m.IsTombstone && regions.EpochStale(m.RegionEpoch, old) && regions.IsInitialized(st.Region) &&
		regions.PeerOnStore(st.Region, m.FromPeer.StoreId) == nil {
		s.trans.Send(m.FromPeer.StoreId, []*rspb.RaftMessage{
			gcMessage(s.clusterID, m.RegionId, old, m.ToPeer, m.FromPeer),
		})
	}
	return false
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
	from := *m.FromPeer
	p, err := newPeer(s, origin{region: region, self: &self, bornAt: m.RegionEpoch.GetConfVer(), from: &from})
	if err != nil {
		return err
	}
	s.logger.Info("created uninitialized peer", log.RegionID(m.RegionId), log.PeerID(self.Id),
		zap.Uint64("from-store-id", m.FromPeer.StoreId))
	s.meta.setRegion(region, self.Id)
	s.applierFor(m.RegionId).Push(p.beginTask())
	s.router.register(p)
	_ = s.router.push(p.box, &message.Start{})
	return s.router.push(p.box, &message.Raft{Message: m})
}
