package raftstore

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	"github.com/tinykv/tinykv/raft"
)

func (p *peer) notLeader() error {
	leader := p.leaderPeer()
	if leader != nil && leader.Id == p.meta.Id {
		leader = nil
	}
	return &NotLeaderError{RegionID: p.regionID, Leader: leader}
}

func (p *peer) epochNotMatch() error {
	return &EpochNotMatchError{RegionID: p.regionID, Regions: p.store.meta.withNeighbours(p.region())}
}

// checkHeader refuses a command that is not for this peer as it is now. The order is fixed, so that a
// client always learns the most basic fault first: store, peer, leader, term, epoch, deadline.
func (p *peer) checkHeader(h message.Header, version, confVer bool, deadline time.Time) error {
	if h.Peer.GetStoreId() != p.store.storeID {
		return &StoreNotMatchError{Request: h.Peer.GetStoreId(), Actual: p.store.storeID}
	}
	if h.Peer.GetId() != p.meta.Id {
		return &PeerNotMatchError{RegionID: p.regionID, Request: h.Peer.GetId(), Actual: p.meta.Id}
	}
	if !p.isLeader() || p.removed != nil {
		return p.notLeader()
	}
	if h.Term != 0 && h.Term+1 < p.rn.Term() {
		return &StaleCommandError{Term: p.rn.Term()}
	}
	if (version || confVer) && h.Epoch == nil {
		return invalidf("request for region %d has no epoch", p.regionID)
	}
	if !epochMatches(p.region(), h.Epoch, version, confVer) {
		return p.epochNotMatch()
	}
	if !deadline.IsZero() && p.store.clock.Now().After(deadline) {
		// Proposing it now would let a write land after its client has given up (N3).
		return ErrDeadlineExceeded
	}
	return nil
}

// onWrite checks a write and puts it into the group that becomes one entry.
func (p *peer) onWrite(w *message.Write) {
	err := p.checkHeader(w.Header, true, false, w.Deadline)
	if w.Bound && !p.leadsIn(w.Header.Term) {
		if err == nil {
			err = &StaleCommandError{Term: p.rn.Term()}
		}
		p.refuseWrite(w, err)
		return
	}
	if p.holdWrite(w, err) {
		return
	}
	if err == nil {
		err = p.checkWrite(w)
	}
	if err != nil {
		p.refuseWrite(w, err)
		return
	}
	if !p.admit(w) {
		return
	}
	if p.writeSize > 0 && (w.Conditional != nil || p.writeSize+len(w.Payload) > int(p.store.cfg.Raftstore.MaxBatchEntry)) {
		p.flushWrites()
	}
	p.writes = append(p.writes, w)
	p.writeSize += len(w.Payload)
	p.boundWrites = p.boundWrites || w.Bound
	if w.Conditional != nil {
		p.flushWrites()
	}
}

// leadsIn tells whether this peer leads, in this very term.
func (p *peer) leadsIn(term uint64) bool { return p.isLeader() && p.rn.Term() == term }

// refuseOtherTerms refuses those of the gathered writes that are bound to a term which has ended since they came: the
// messages of one turn may hold another term's beginning.
func (p *peer) refuseOtherTerms() {
	kept := p.writes[:0]
	for _, w := range p.writes {
		if !w.Bound || p.leadsIn(w.Header.Term) {
			kept = append(kept, w)
			continue
		}
		p.writeSize -= len(w.Payload)
		p.refuseWrite(w, &StaleCommandError{Term: p.rn.Term()})
	}
	clear(p.writes[len(kept):])
	p.writes, p.boundWrites = kept, false
}

func (p *peer) checkWrite(w *message.Write) error {
	if err := checkKey(p.region(), w.MinKey); err != nil {
		return err
	}
	if err := checkKey(p.region(), w.MaxKey); err != nil {
		return err
	}
	if limit := uint64(p.store.cfg.Raftstore.MaxEntry); uint64(len(w.Payload)) > limit {
		return &EntryTooLargeError{RegionID: p.regionID, Size: uint64(len(w.Payload)), Limit: limit}
	}
	if w.Conditional != nil {
		if missing := w.Conditional.Needs &^ p.store.features(); missing != 0 {
			return &FeatureError{Missing: missing}
		}
	}
	if !w.DeletesOnly && p.store.diskFull.Load() {
		return &DiskFullError{StoreID: p.store.storeID}
	}
	if len(p.proposals) >= p.store.cfg.Raftstore.MaxPendingPerRegion {
		return &BusyError{Reason: "too many writes of this region are not applied yet"}
	}
	return nil
}

// flushWrites proposes the gathered writes as one entry.
func (p *peer) flushWrites() {
	if p.boundWrites {
		p.refuseOtherTerms()
	}
	if len(p.writes) == 0 {
		return
	}
	buf := make([]byte, 0, p.writeSize+48+message.ChecksumSize)
	buf = message.AppendHeader(buf, p.regionID, p.region().RegionEpoch)
	cbs := make([]*message.Callback, len(p.writes))
	for i, w := range p.writes {
		buf = append(buf, w.Payload...)
		cbs[i] = w.Callback
	}
	buf = message.AppendChecksum(buf)
	size := p.writeSize
	clear(p.writes)
	p.writes, p.writeSize = p.writes[:0], 0
	p.propose(size, cbs, func() error { return p.rn.Propose(buf) })
}

// propose has raft append an entry and remembers who waits for it, or refuses their commands when raft drops it. Whether
// the entry is in the log decides which: it may be on its way to the followers from then on.
func (p *peer) propose(size int, cbs []*message.Callback, do func() error) bool {
	before := p.rn.LastIndex()
	err := do()
	if p.rn.LastIndex() == before {
		p.store.inflight.Add(-int64(size))
		p.refuseDropped(cbs, err)
		return false
	}
	p.proposals = append(p.proposals, message.NewProposal(before+1, p.rn.Term(), size, cbs...))
	return true
}

// refuseDropped answers commands that raft has not taken into its log.
func (p *peer) refuseDropped(cbs []*message.Callback, err error) {
	if err == nil {
		err = raft.ErrProposalDropped
	}
	var answer error
	switch {
	case errors.Is(err, raft.ErrUncommittedFull):
		answer = &BusyError{Reason: "too many bytes of this region are not committed yet"}
	case !p.isLeader():
		answer = p.notLeader()
	case p.rn.LeadTransferee() != raft.None:
		answer = &BusyError{Reason: "leadership is being transferred"}
	default:
		answer = &BusyError{Reason: err.Error()}
	}
	for _, cb := range cbs {
		cb.Fail(answer)
	}
}

// onAdmin checks and carries out or proposes an admin command.
func (p *peer) onAdmin(a *message.Admin) {
	p.flushWrites() // earlier writes keep their place
	version, confVer := epochParts(a.Request)
	err := p.checkHeader(a.Header, version, confVer, a.Deadline)
	if err == nil {
		switch a.Request.GetCmdType() {
		case raft_cmdpb.AdminCmdType_TransferLeader:
			err = p.transferLeader(a)
		case raft_cmdpb.AdminCmdType_ChangePeer:
			err = p.proposeChangePeer(a)
		case raft_cmdpb.AdminCmdType_Split:
			err = p.proposeSplit(a)
		case raft_cmdpb.AdminCmdType_CompactLog, raft_cmdpb.AdminCmdType_ComputeHash:
			p.proposeAdmin(a)
		default:
			err = invalidf("unknown admin command %v", a.Request.GetCmdType())
		}
	}
	if err != nil {
		a.Callback.Fail(err)
	}
}

func (p *peer) proposeAdmin(a *message.Admin) bool {
	req := raft_cmdpb.RaftCmdRequest{
		Header:       &raft_cmdpb.RaftRequestHeader{RegionId: p.regionID, RegionEpoch: p.region().RegionEpoch},
		AdminRequest: a.Request,
	}
	data, err := req.Marshal()
	if err != nil {
		a.Callback.Fail(invalidf("marshal admin command: %v", err))
		return false
	}
	data = message.AppendChecksum(data)
	return p.propose(0, []*message.Callback{a.Callback}, func() error { return p.rn.Propose(data) })
}

// transferLeader is carried out by the leader, not replicated; it is answered as soon as it has begun.
func (p *peer) transferLeader(a *message.Admin) error {
	target := a.Request.GetTransferLeader().GetPeer()
	q := peerByID(p.region(), target.GetId())
	if q == nil {
		return invalidf("region %d has no peer %d to transfer leadership to", p.regionID, target.GetId())
	}
	if q.Id != p.meta.Id {
		if err := p.checkTransferee(q); err != nil {
			return err
		}
		p.startTransfer(q.Id)
	}
	a.Callback.Done(message.Result{Region: p.region(), Answer: adminAnswer(&raft_cmdpb.AdminResponse{
		CmdType:        raft_cmdpb.AdminCmdType_TransferLeader,
		TransferLeader: &raft_cmdpb.TransferLeaderResponse{},
	})})
	return nil
}

// checkTransferee refuses a target that would leave the region without a leader for long.
func (p *peer) checkTransferee(q *metapb.Peer) error {
	if isLearner(q) {
		return invalidf("peer %d of region %d is a learner", q.Id, p.regionID)
	}
	pr, ok := p.rn.ProgressOf(q.Id)
	if !ok {
		return invalidf("peer %d of region %d is not replicated to", q.Id, p.regionID)
	}
	lag := uint64(p.store.cfg.Raftstore.TransferMaxLagEntries)
	if pr.State == raft.ProgressSnapshot || pr.Match+lag < p.rn.LastIndex() {
		return &BusyError{Reason: "the transfer target's log is too far behind"}
	}
	return nil
}

// startTransfer ends the lease before anything of the transfer can leave this store (E5).
func (p *peer) startTransfer(to uint64) {
	p.wake()
	p.flushWrites()
	p.beginHandover()
	p.lease.noLeaseTerm = p.rn.Term()
	if p.lease.cell != nil {
		p.lease.cell.end()
	}
	p.publish()
	p.logger.Info("transferring leadership", zap.Uint64("to", to))
	p.rn.TransferLeader(to)
}

func (p *peer) proposeChangePeer(a *message.Admin) error {
	req := a.Request.GetChangePeer()
	if req.GetPeer().GetId() == 0 || req.GetPeer().GetStoreId() == 0 {
		return invalidf("conf change of region %d without peer id or store id", p.regionID)
	}
	if p.rn.HasPendingConfChange() {
		return &BusyError{Reason: "another conf change of this region is not applied yet"}
	}
	if req.ChangeType == eraftpb.ConfChangeType_RemoveNode {
		if err := p.checkRemoval(req.Peer); err != nil {
			return err
		}
	} else if err := p.checkAddition(req.Peer); err != nil {
		return err
	}
	cmd := raft_cmdpb.RaftCmdRequest{
		Header:       &raft_cmdpb.RaftRequestHeader{RegionId: p.regionID, RegionEpoch: p.region().RegionEpoch},
		AdminRequest: a.Request,
	}
	ctx, err := cmd.Marshal()
	if err != nil {
		return invalidf("marshal conf change: %v", err)
	}
	cc := eraftpb.ConfChange{ChangeType: req.ChangeType, NodeId: req.Peer.Id, Context: message.AppendChecksum(ctx)}
	p.propose(0, []*message.Callback{a.Callback}, func() error { return p.rn.ProposeConfChange(cc) })
	return nil
}

func (p *peer) checkAddition(q *metapb.Peer) error {
	if old := PeerOnStore(p.region(), q.StoreId); old != nil && old.Id != q.Id {
		return invalidf("region %d already has peer %d on store %d", p.regionID, old.Id, q.StoreId)
	}
	if old := peerByID(p.region(), q.Id); old != nil && old.StoreId != q.StoreId {
		return invalidf("peer %d of region %d is on store %d", q.Id, p.regionID, old.StoreId)
	} else if old != nil && isLearner(old) && !isLearner(q) {
		return p.checkPromotion(q)
	} else if newest := maxPeerID(p.region()); old == nil && q.Id <= newest {
		// A store where it has been would not create it again, and the region could lose its quorum for good.
		return invalidf("peer id %d of region %d is not newer than %d, which it has had", q.Id, p.regionID, newest)
	}
	return nil
}

// checkPromotion refuses a vote to a learner that does not answer or is far behind: until it has caught up, one more
// voter would have to answer for each write, and one failure less would stop the region.
func (p *peer) checkPromotion(q *metapb.Peer) error {
	pr, ok := p.rn.ProgressOf(q.Id)
	if !ok {
		return invalidf("peer %d of region %d is not replicated to", q.Id, p.regionID)
	}
	lag := uint64(p.store.cfg.Raftstore.TransferMaxLagEntries)
	if pr.State != raft.ProgressReplicate || !pr.RecentActive || pr.Match+lag < p.rn.LastIndex() {
		return &BusyError{Reason: "the learner has not caught up"}
	}
	return nil
}

// checkRemoval refuses what would stop the region: removing the last voter, removing the leader (a
// transfer is begun instead; with two voters the other one might never learn of its own majority,
// C3), or leaving no healthy majority.
func (p *peer) checkRemoval(q *metapb.Peer) error {
	old := peerByID(p.region(), q.Id)
	if old == nil {
		return nil // a duplicate: applied without effect
	}
	if old.StoreId != q.StoreId {
		return invalidf("peer %d of region %d is on store %d, not %d", q.Id, p.regionID, old.StoreId, q.StoreId)
	}
	if !isLearner(old) && voterCount(p.region()) == 1 {
		return invalidf("peer %d is the last voter of region %d", q.Id, p.regionID)
	}
	if q.Id == p.meta.Id {
		if to := p.bestTransferee(); to != nil {
			p.startTransfer(to.Id)
			return &NotLeaderError{RegionID: p.regionID, Leader: to}
		}
		return &BusyError{Reason: "the leader cannot be removed before another peer can lead"}
	}
	healthy, rest := 0, 0
	for _, v := range p.region().Peers {
		if isLearner(v) || v.Id == q.Id {
			continue
		}
		rest++
		if pr, ok := p.rn.ProgressOf(v.Id); v.Id == p.meta.Id || (ok && pr.RecentActive && pr.Match >= p.ps.truncated.Index) {
			healthy++
		}
	}
	if healthy < rest/2+1 {
		return &BusyError{Reason: "the remaining peers have no healthy majority"}
	}
	return nil
}

// bestTransferee is the healthy voter with the longest log.
func (p *peer) bestTransferee() *metapb.Peer {
	var best *metapb.Peer
	var match uint64
	for _, q := range p.region().Peers {
		if q.Id == p.meta.Id || p.checkTransferee(q) != nil {
			continue
		}
		if pr, _ := p.rn.ProgressOf(q.Id); pr.RecentActive && (best == nil || pr.Match > match) {
			best, match = q, pr.Match
		}
	}
	return best
}

func (p *peer) proposeSplit(a *message.Admin) error {
	if _, _, err := splitRegion(p.region(), a.Request.GetSplit()); err != nil {
		return err
	}
	// Local reads end before any replica can apply the split.
	old := p.splitIndex
	p.splitIndex = p.rn.LastIndex() + 1
	p.publish()
	if !p.proposeAdmin(a) {
		p.splitIndex = old
		p.publish()
	}
	return nil
}

// takeProposals removes the proposals up to an index: the apply worker answers them.
func (p *peer) takeProposals(upTo uint64) []message.Proposal {
	n := 0
	for n < len(p.proposals) && p.proposals[n].Index() <= upTo {
		n++
	}
	if n == 0 {
		return nil
	}
	out := make([]message.Proposal, n)
	copy(out, p.proposals)
	rest := copy(p.proposals, p.proposals[n:])
	clear(p.proposals[rest:])
	p.proposals = p.proposals[:rest]
	return out
}

// endCommands answers every command of a peer that ends: those that were not proposed are refused, the outcome of the
// others is unknown.
func (p *peer) endCommands(cause error) {
	for _, w := range append(p.writes, p.handover.writes...) {
		p.store.inflight.Add(-int64(len(w.Payload)))
		w.Callback.Fail(cause)
	}
	p.writes, p.writeSize, p.handover.writes = nil, 0, nil
	p.dropHeld(cause)
	p.store.endUnknown(p.proposals, cause)
	p.proposals = nil
	for _, t := range p.heldApply {
		p.store.endUnknown(t.proposals, cause)
	}
	p.heldApply = nil
	p.dropComparison(cause)
	p.failAllReads(cause)
}

// endUnknown ends proposals whose outcome this store will not learn.
func (s *Store) endUnknown(props []message.Proposal, cause error) {
	for i := range props {
		s.inflight.Add(-int64(props[i].Size()))
		props[i].Unknown(cause)
	}
}
