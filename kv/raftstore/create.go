package raftstore

import (
	"fmt"
	"sync"
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

// Peers begin here when a raft message comes for a region that this store does not have. Splits
// create peers in split.go, a start in recover.go.

// maxMissing bounds the raft messages that wait for the store worker.
const maxMissing = 4096

// creator makes peers: on the store worker for raft messages, and on raft workers for splits that
// they have applied.
type creator struct {
	s *Store
	// missing are raft messages for regions that were not here when they arrived.
	missing chan *rspb.RaftMessage
	// postponed has a signal when splits has grown.
	postponed chan struct{}

	mu struct {
		sync.Mutex
		// splits wait until the predecessors of their peers are gone. Each comes from a region of
		// this store.
		splits []message.BecomeSplit
	}
}

func newCreator(s *Store) *creator {
	return &creator{
		s: s, missing: make(chan *rspb.RaftMessage, maxMissing), postponed: make(chan struct{}, 1),
	}
}

// send hands a raft message to the store worker; when its queue is full the message is dropped, and
// raft sends it again.
func (cr *creator) send(m *rspb.RaftMessage) error {
	select {
	case cr.missing <- m:
		return nil
	default:
		return &regionerr.BusyError{Reason: "the store worker's queue is full"}
	}
}

// postpone has the store worker try the creation of a split's peer again. Nobody else repeats it,
// so it is not dropped.
func (cr *creator) postpone(m *message.BecomeSplit) {
	cr.mu.Lock()
	cr.mu.splits = append(cr.mu.splits, *m)
	cr.mu.Unlock()
	select {
	case cr.postponed <- struct{}{}:
	default:
	}
}

// splitRetry is how soon the creation of a split's peer is tried again while its predecessor is
// there.
const splitRetry = 20 * time.Millisecond

// run is the store worker.
func (cr *creator) run() {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		var err error
		select {
		case <-cr.s.ctx.Done():
			return
		case m := <-cr.missing:
			err = cr.onMissingRegion(m)
		case <-cr.postponed:
			retry.Reset(splitRetry)
		case <-retry.C:
			err = cr.retrySplits()
		}
		if err != nil {
			cr.s.fail(fmt.Errorf("store worker: %w", err))
			return
		}
	}
}

// retrySplits creates the peers of postponed splits, as far as their predecessors are gone.
func (cr *creator) retrySplits() error {
	cr.mu.Lock()
	waiting := cr.mu.splits
	cr.mu.splits = nil
	cr.mu.Unlock()
	for i := range waiting {
		if cr.s.router.get(waiting[i].Region.Id) != nil {
			cr.postpone(&waiting[i]) // the old peer is not gone yet
		} else if err := cr.createSplitPeer(&waiting[i]); err != nil {
			return err
		}
	}
	return nil
}

// onMissingRegion decides whether a raft message creates an uninitialized peer. Errors are those of
// writes.
func (cr *creator) onMissingRegion(m *rspb.RaftMessage) error {
	if m.Merge.GetKind() == rspb.MergeMessage_Question {
		return cr.s.answerMerge(m)
	}
	if cr.s.router.get(m.RegionId) != nil {
		_ = cr.s.router.send(m.RegionId, &message.Raft{Message: m})
		return nil
	}
	st, err := meta.LoadRegionState(cr.s.engine, m.RegionId)
	if err != nil {
		cr.s.readErrors.note(m.RegionId, err) // the message comes again
		return nil
	}
	if st != nil {
		switch {
		case st.State != rspb.PeerState_Tombstone:
			if m.Merge == nil {
				cr.onQuarantined(st, m)
			}
			return nil
		case st.MergedInto != nil:
			cr.s.tellMerged(st, m)
			return nil
		case !cr.wakesTombstone(st, m):
			return nil
		}
	}
	if m.IsTombstone || m.Hash != nil || m.Merge != nil || !isInitialMessage(m.Message) {
		return nil
	}
	if !cr.s.ranges.mayCreate(m) {
		return nil
	}
	return cr.createUninitialized(m)
}

// wakesTombstone tells whether a message may create a peer again after one was removed here: only a
// larger peer id, of a region that is not older. A peer that asks for a vote from outside the
// region gets the answer that it was removed.
func (cr *creator) wakesTombstone(st *rspb.RegionLocalState, m *rspb.RaftMessage) bool {
	old := st.Region.GetRegionEpoch()
	if m.GetToPeer().GetId() > st.GetPeer().GetId() &&
		m.RegionEpoch.GetConfVer() >= old.GetConfVer() {
		return true
	}
	if !m.IsTombstone && regions.EpochStale(m.RegionEpoch, old) &&
		regions.IsInitialized(st.Region) &&
		regions.PeerOnStore(st.Region, m.FromPeer.StoreId) == nil {
		cr.s.trans.Send(m.FromPeer.StoreId, []*rspb.RaftMessage{
			gcMessage(cr.s.clusterID, m.RegionId, old, m.ToPeer, m.FromPeer),
		})
	}
	return false
}

// createUninitialized makes a peer that knows nothing but its id, at which epoch it belonged to the
// region, and another member. The record on disk keeps all three: a restart does not mistake its
// vote for one of an earlier peer, and it can still ask whether its region exists (showItself).
func (cr *creator) createUninitialized(m *rspb.RaftMessage) error {
	self := *m.ToPeer
	region := &metapb.Region{Id: m.RegionId, RegionEpoch: &metapb.RegionEpoch{}}
	b := cr.s.engine.NewBatch()
	meta.Put(b, meta.RegionStateKey(m.RegionId), &rspb.RegionLocalState{
		State: rspb.PeerState_Normal, Peer: &self, CreatedBy: m.FromPeer,
		Region: &metapb.Region{Id: m.RegionId, RegionEpoch: m.RegionEpoch},
	})
	if err := cr.s.engine.Write(b, true); err != nil {
		return err
	}
	if err := cr.s.log.Damaged(m.RegionId); err != nil {
		cr.s.quarantine.admit(&metapb.Region{Id: m.RegionId, RegionEpoch: m.RegionEpoch}, &self,
			err)
		return nil
	}
	from := *m.FromPeer
	p, err := newPeer(cr.s,
		origin{region: region, self: &self, bornAt: m.RegionEpoch.GetConfVer(), from: &from})
	if err != nil {
		return err
	}
	cr.s.logger.Info("created uninitialized peer", log.RegionID(m.RegionId), log.PeerID(self.Id),
		zap.Uint64("from-store-id", m.FromPeer.StoreId))
	cr.s.ranges.setRegion(region, self.Id)
	cr.s.appliers.forRegion(m.RegionId).Push(p.beginTask())
	cr.s.router.register(p)
	_ = cr.s.router.push(p.box, &message.Start{})
	return cr.s.router.push(p.box, &message.Raft{Message: m})
}
