package raftstore

import (
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	"github.com/tinykv/tinykv/raft"
)

// A conf change: proposeChangePeer refuses what would stop the region -> raft replicates it, one at
// a time -> the apply worker writes the new region, synced -> onChangedPeer makes it effective in
// raft and in all that depends on it. A new peer is created on its store by the leader's next
// heartbeat (create.go). A removed one is destroyed (destroy.go); if it leads, it lingers until the
// others know (checkLinger).

func (p *peer) proposeChangePeer(a *message.Admin) error {
	req := a.Request.GetChangePeer()
	if req.GetPeer().GetId() == 0 || req.GetPeer().GetStoreId() == 0 {
		return regionerr.Invalidf("conf change of region %d without peer id or store id",
			p.regionID)
	}
	if p.rn.HasPendingConfChange() {
		return &regionerr.BusyError{Reason: "another conf change of this region is not applied yet"}
	}
	if req.ChangeType == eraftpb.ConfChangeType_RemoveNode {
		if err := p.checkRemoval(req.Peer); err != nil {
			return err
		}
	} else if err := p.checkAddition(req.Peer); err != nil {
		return err
	}
	cmd := raft_cmdpb.RaftCmdRequest{
		Header: &raft_cmdpb.RaftRequestHeader{
			RegionId: p.regionID, RegionEpoch: p.region().RegionEpoch,
		},
		AdminRequest: a.Request,
	}
	ctx, err := cmd.Marshal()
	if err != nil {
		return regionerr.Invalidf("marshal conf change: %v", err)
	}
	cc := eraftpb.ConfChange{
		ChangeType: req.ChangeType, NodeId: req.Peer.Id, Context: message.AppendChecksum(ctx),
	}
	p.propose(0, []*message.Callback{a.Callback}, func() error {
		return p.rn.ProposeConfChange(cc)
	})
	return nil
}

func (p *peer) checkAddition(q *metapb.Peer) error {
	if old := regions.PeerOnStore(p.region(), q.StoreId); old != nil && old.Id != q.Id {
		return regionerr.Invalidf("region %d already has peer %d on store %d", p.regionID, old.Id,
			q.StoreId)
	}
	if old := regions.PeerByID(p.region(), q.Id); old != nil && old.StoreId != q.StoreId {
		return regionerr.Invalidf("peer %d of region %d is on store %d", q.Id, p.regionID,
			old.StoreId)
	} else if old != nil && regions.IsLearner(old) && !regions.IsLearner(q) {
		return p.checkPromotion(q)
	} else if newest := regions.MaxPeerID(p.region()); old == nil && q.Id <= newest {
		// A store where it has been would not create it again, and the region could lose its quorum
		// for good.
		return regionerr.Invalidf("peer id %d of region %d is not newer than %d, which it has had",
			q.Id, p.regionID, newest)
	}
	return nil
}

// checkPromotion refuses a vote to a learner that does not answer or is far behind: until it has
// caught up, one more voter would have to answer for each write, and one failure less would stop
// the region.
func (p *peer) checkPromotion(q *metapb.Peer) error {
	pr, ok := p.rn.ProgressOf(q.Id)
	if !ok {
		return regionerr.Invalidf("peer %d of region %d is not replicated to", q.Id, p.regionID)
	}
	lag := uint64(p.store.cfg.Raftstore.TransferMaxLagEntries)
	if pr.State != raft.ProgressReplicate || !pr.RecentActive || pr.Match+lag < p.rn.LastIndex() {
		return &regionerr.BusyError{Reason: "the learner has not caught up"}
	}
	return nil
}

// checkRemoval refuses what would stop the region: removing the last voter, removing the leader (a
// transfer is begun instead; with two voters the other one might never learn of its own majority,
// C3), or leaving no healthy majority.
func (p *peer) checkRemoval(q *metapb.Peer) error {
	old := regions.PeerByID(p.region(), q.Id)
	if old == nil {
		return nil // a duplicate: applied without effect
	}
	if old.StoreId != q.StoreId {
		return regionerr.Invalidf("peer %d of region %d is on store %d, not %d", q.Id, p.regionID,
			old.StoreId, q.StoreId)
	}
	if !regions.IsLearner(old) && regions.VoterCount(p.region()) == 1 {
		return regionerr.Invalidf("peer %d is the last voter of region %d", q.Id, p.regionID)
	}
	if q.Id == p.self.Id {
		if to := p.transfer.best(); to != nil {
			p.transfer.start(to.Id)
			return &regionerr.NotLeaderError{RegionID: p.regionID, Leader: to}
		}
		return &regionerr.BusyError{
			Reason: "the leader cannot be removed before another peer can lead",
		}
	}
	healthy, rest := 0, 0
	for _, v := range p.region().Peers {
		if regions.IsLearner(v) || v.Id == q.Id {
			continue
		}
		rest++
		if pr, ok := p.rn.ProgressOf(v.Id); v.Id == p.self.Id ||
			(ok && pr.RecentActive && pr.Match >= p.ps.truncated.Index) {
			healthy++
		}
	}
	if healthy < rest/2+1 {
		return &regionerr.BusyError{Reason: "the remaining peers have no healthy majority"}
	}
	return nil
}

// onChangedPeer makes an applied conf change effective in raft and in everything that depends on
// it.
func (p *peer) onChangedPeer(res message.ChangedPeer) {
	selfRemoved := res.Region != nil &&
		res.Change.ChangeType == eraftpb.ConfChangeType_RemoveNode && res.Peer.Id == p.self.Id
	if selfRemoved {
		// Not told to raft: a leader keeps its old majority until the others know of the removal.
		p.removed = &lingering{region: res.Region}
		p.publish()
		p.logger.Info("peer was removed from its region", zap.Bool("leader", p.isLeader()))
		return
	}
	cc := res.Change
	if res.Region == nil {
		cc = eraftpb.ConfChange{} // no effect: raft still learns that the entry is done
	}
	if res.Region != nil {
		p.logger.Info("applied conf change", zap.Stringer("type", cc.ChangeType),
			zap.Uint64("changed-peer-id", res.Peer.Id),
			zap.Uint64("changed-store-id", res.Peer.StoreId),
			zap.Uint64("conf-ver", res.Region.RegionEpoch.ConfVer))
		p.setRegion(res.Region)
		p.once.raiseFloor(res.Index)
		if cc.ChangeType == eraftpb.ConfChangeType_RemoveNode {
			delete(p.lastHeard, res.Peer.Id)
		} else {
			p.lastHeard[res.Peer.Id] = p.store.clock.Now()
		}
	}
	p.rn.ApplyConfChange(cc)
	if res.Region != nil && p.isLeader() {
		p.rn.BroadcastHeartbeat() // creates a new peer at once
		p.report.send()
	}
}

// lingering is the state of a leader that was removed from its group.
type lingering struct {
	region *metapb.Region
	round  uint64
}

// checkLinger ends a removed leader once a majority, in the configuration before the removal, has
// answered a heartbeat that carries the commit (C3), or when it does not lead any more.
func (p *peer) checkLinger(t *turn) {
	if p.removed == nil || p.stopped {
		return
	}
	if !p.isLeader() {
		p.destroy(t, p.removed.region, nil)
		return
	}
	if p.removed.round == 0 {
		p.rn.BroadcastHeartbeat()
		p.removed.round = p.rn.HeartbeatRound()
		return
	}
	if p.rn.QuorumRound() >= p.removed.round {
		p.destroy(t, p.removed.region, nil)
	}
}
