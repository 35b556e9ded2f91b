package raftstore

import (
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// A raft message from another store: the transport calls HandleRaftBatch -> intake.take checks
// envelope, entries and the sender's incarnation -> intake.route lays it into the region's mailbox,
// or gives it to the store worker if the region is not here (create.go) -> onRaft checks it against
// the peer as it is and steps it.

// HandleRaft takes a message from another store. It never blocks; the error says why it was
// dropped.
func (s *Store) HandleRaft(m *rspb.RaftMessage) (err error) {
	s.HandleRaftBatch([]*rspb.RaftMessage{m}, func(_ *rspb.RaftMessage, why error) { err = why })
	return err
}

// HandleRaftBatch takes messages that came together, so that their regions share a turn. It never
// blocks; dropped is called with each message that was not taken, and why.
func (s *Store) HandleRaftBatch(
	msgs []*rspb.RaftMessage, dropped func(m *rspb.RaftMessage, why error),
) {
	woken := make([]*mailbox, 0, len(msgs))
	letters := make([]message.Raft, len(msgs))
	for i, m := range msgs {
		letters[i].Message = m
		box, err := s.intake.take(&letters[i])
		if err != nil {
			dropped(m, err)
		} else if box != nil {
			woken = append(woken, box)
		}
	}
	s.router.ready.push(woken...)
}

// intake takes raft messages of other stores.
type intake struct{ s *Store }

// take checks a message's envelope and routes it. It returns the mailbox that has to be put into
// the ready queue, if there is one.
func (in *intake) take(letter *message.Raft) (*mailbox, error) {
	m := letter.Message
	switch {
	case m.ClusterId != 0 && m.ClusterId != in.s.clusterID:
		return nil,
			regionerr.Invalidf("message of cluster %d arrived in cluster %d", m.ClusterId,
				in.s.clusterID)
	case m.GetToPeer().GetStoreId() != in.s.storeID:
		return nil,
			&regionerr.StoreNotMatchError{Request: m.GetToPeer().GetStoreId(), Actual: in.s.storeID}
	case isGreeting(m):
		in.s.live.hear(m.FromPeer.StoreId, m.Incarnation)
		return nil, nil
	case m.RegionId == 0 || m.FromPeer == nil || m.FromPeer.Id == 0 || m.RegionEpoch == nil:
		return nil, regionerr.Invalidf("raft message without region, sender or epoch")
	case m.Hash != nil, m.Merge != nil:
		// It has no raft message.
	case !m.IsTombstone &&
		(m.Message == nil || m.Message.From != m.FromPeer.Id || m.Message.To != m.ToPeer.Id):
		return nil,
			regionerr.Invalidf("raft message of region %d names other peers than its envelope",
				m.RegionId)
	}
	if err := in.verifyEntries(m); err != nil {
		return nil, err
	}
	if !in.s.live.hear(m.FromPeer.StoreId, m.Incarnation) {
		return nil,
			regionerr.Invalidf("message of an earlier run of store %d, incarnation %d",
				m.FromPeer.StoreId, m.Incarnation)
	}
	return in.route(letter)
}

// verifyEntries refuses a message with an entry that is not the one that was proposed: the leader
// sends it again. The log refuses a batch with an entry of another type, and what does not decode
// is damage when it is applied. Either would cost more than a message that comes again.
func (in *intake) verifyEntries(m *rspb.RaftMessage) error {
	for _, e := range m.GetMessage().GetEntries() {
		if err := apply.CheckEntry(e); err != nil {
			in.s.work.corruptEntries.Add(1)
			in.s.logger.Error("dropped raft message with damaged entry", log.RegionID(m.RegionId),
				log.PeerID(m.ToPeer.Id),
				zap.Uint64("from-store-id", m.FromPeer.StoreId),
				zap.Uint64("from-peer-id", m.FromPeer.Id),
				log.Index(e.Index), zap.Error(err))
			return regionerr.Invalidf("raft message of region %d has a damaged entry %d",
				m.RegionId, e.Index)
		}
	}
	return nil
}

// route lays a message from another store into its region's mailbox, and returns that if it has to
// be put into the ready queue; or gives it to the store worker if the region is not here.
func (in *intake) route(letter *message.Raft) (*mailbox, error) {
	m := letter.Message
	if m.Merge.GetKind() == rspb.MergeMessage_Question {
		return nil, in.s.creator.send(m) // the answer is in the engine
	}
	b := in.s.router.get(m.RegionId)
	if b == nil {
		return nil, in.s.creator.send(m)
	}
	wake, err := in.s.router.put(b, letter)
	if err != nil && isMissing(err) {
		return nil, in.s.creator.send(m)
	}
	if !wake {
		b = nil
	}
	return b, err
}

// ReportUnreachable tells a region that messages to one of its peers were dropped.
func (s *Store) ReportUnreachable(regionID, toPeer uint64) {
	_ = s.router.send(regionID, &message.Unreachable{ToPeer: toPeer})
}

// onRaft checks a message from another store and steps it.
func (p *peer) onRaft(t *turn, rm *rspb.RaftMessage) {
	if rm.IsTombstone {
		p.onGCMessage(t, rm)
		return
	}
	if rm.Merge != nil {
		p.merge.onMessage(t, rm) // peer ids say nothing here
		return
	}
	if !p.checkRaft(t, rm) {
		return
	}
	if rm.Hash != nil {
		p.compare.onReplicaHash(t, rm)
		return
	}
	m := rm.Message
	if m.MsgType == eraftpb.MessageType_MsgSnapshot && !p.acceptSnapshot(rm) {
		return
	}
	if regions.PeerByID(p.region(), m.From) == nil {
		from := *rm.FromPeer
		p.cache[m.From] = &from
	}
	now := p.store.clock.Now()
	p.lastHeard[m.From] = now
	if rm.Hibernate && p.sleep.onHibernate(m) {
		return
	}
	switch m.MsgType {
	case eraftpb.MessageType_MsgAppend, eraftpb.MessageType_MsgHeartbeat,
		eraftpb.MessageType_MsgSnapshot:
		p.noteLeader(now)
	}
	if p.sick.damaged {
		return // it must not vote, nor count as having what it has promised
	}
	if m.MsgType == eraftpb.MessageType_MsgAppend && len(m.Entries) > 0 &&
		p.store.diskCritical != nil && p.store.diskCritical() {
		// As if it was lost: the leader's disk has room, this one has none, and the leader sends it
		// again.
		return
	}
	if err := p.rn.Step(*m); err != nil {
		p.logger.Debug("raft refused message", zap.Stringer("type", m.MsgType), zap.Error(err))
	}
	if lost := p.rn.Lost(); lost > 0 {
		p.sick.note(
			fmt.Errorf(
				"%w: entry %d was acknowledged, but the raft log ends at %d; an older copy of the data was put in its place",
				errDamaged, lost, p.rn.LastIndex()))
	}
}

// checkRaft tells whether a message concerns this peer and comes from one that belongs to the
// region.
func (p *peer) checkRaft(t *turn, rm *rspb.RaftMessage) bool {
	to := rm.ToPeer.GetId()
	if to < p.self.Id {
		return false // meant for an earlier peer of this store
	}
	if to > p.self.Id {
		// A newer peer of this region belongs on this store, so this one was removed.
		p.logger.Info("destroying peer that a newer one replaces", zap.Uint64("new-peer-id", to))
		p.destroy(t, p.region(), rm)
		return false
	}
	from := rm.FromPeer
	if regions.EpochStale(rm.RegionEpoch, p.region().RegionEpoch) &&
		regions.PeerOnStore(p.region(), from.StoreId) == nil &&
		rm.RegionEpoch.GetVersion() != 0 && p.initialized() {
		// The sender was removed and does not know it: tell it (G6).
		t.send(from.StoreId,
			gcMessage(p.store.clusterID, p.regionID, p.region().RegionEpoch, p.self, from))
		return false
	}
	return true
}

func isMissing(err error) bool {
	var missing *regionerr.RegionNotFoundError
	return errors.As(err, &missing)
}
