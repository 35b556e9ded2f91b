package raftstore

import (
	"fmt"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/raft"
)

// handleMessages works off what was in the mailbox. Neighbouring writes become one raft entry.
func (p *peer) handleMessages(t *turn, msgs []message.Msg) {
	for _, m := range msgs {
		if p.stopped {
			p.refuse(m)
			continue
		}
		p.handleMessage(t, m)
	}
	if p.stopped {
		return
	}
	p.endHandover()
	p.resumeHeld()
	p.flushWrites()
	p.askReads()
	p.tendSick(t)
}

func (p *peer) handleMessage(t *turn, m message.Msg) {
	p.stir(m)
	switch m := m.(type) {
	case *message.Raft:
		p.onRaft(t, m.Message)
	case *message.Write:
		p.onWrite(m)
	case *message.Read:
		if err := p.checkHeader(m.Header, true, false, m.Deadline); err != nil {
			m.Callback.Fail(err)
		} else {
			p.reads.arrived = append(p.reads.arrived, m)
		}
	case *message.Admin:
		p.onAdmin(m)
	case *message.Applied:
		p.onApplied(t, m)
	case *message.LogGC:
		p.onLogGC(t, m)
	case *message.Start:
		p.onStart(m)
	case *message.BecomeSplit:
		p.onBecomeSplit(t, m)
	case *message.StoreLost:
		p.onStoreLost(m)
	case *message.Unreachable:
		p.rn.ReportUnreachable(m.ToPeer)
	case *message.SnapshotSent:
		p.rn.ReportSnapshot(m.ToPeer, m.OK)
	case *message.SnapshotBuilt:
		p.ps.onBuilt(m.Snapshot)
		if p.isLeader() && m.Snapshot != nil {
			p.rn.BroadcastHeartbeat() // the answers make raft try the follower again
		}
	case *message.SnapshotInstalled:
		p.onInstalled(t, m)
	case *message.SplitChecked:
		p.onSplitChecked(m)
	case *message.AskedSplit:
		p.onAskedSplit(m)
	case *message.SplitAt:
		p.onSplitAt(m)
	case *message.Operator:
		p.onOperator(m.Response)
	case *message.RegionTruth:
		p.onRegionTruth(t, m.Region)
	case *message.HeartbeatNow:
		if p.isLeader() {
			p.heartbeatRegion()
		}
	case *message.ReadFailed:
		p.fallSick(m.Err)
	case *message.CompareReplicas:
		p.onCompareReplicas(m)
	case *message.EndComparison:
		if p.compare != nil && p.compare.asked == m.Comparison {
			p.endComparison(t)
		}
	case *message.Hashed:
		p.onHashed(t, m)
	case *message.Inspect:
		m.Fn(&PeerView{p})
	}
}

// refuse answers what arrives at a destroyed peer.
func (p *peer) refuse(m message.Msg) {
	switch m := m.(type) {
	case *message.Write:
		p.store.inflight.Add(-int64(len(m.Payload)))
		m.Callback.Fail(&RegionNotFoundError{RegionID: p.regionID})
	case *message.BecomeSplit:
		// The old peer is still being cleared away; the store worker tries again.
		_ = p.store.sendStore(storeCreateSplit{*m})
	case *message.Inspect:
		m.Fn(nil)
	case *message.Applied:
		p.createRightHalves(m)
	case *message.CompareReplicas:
		m.Done(message.Comparison{}, &RegionNotFoundError{RegionID: p.regionID})
	default:
		message.CallbackOf(m).Fail(&RegionNotFoundError{RegionID: p.regionID})
	}
}

func (p *peer) onStart(m *message.Start) {
	if m.Campaign || (len(p.region().Peers) == 1 && p.region().Peers[0].Id == p.meta.Id) {
		if err := p.rn.Campaign(); err != nil {
			p.logger.Debug("campaign refused", zap.Error(err))
		}
	}
}

// onRaft checks a message from another store and steps it.
func (p *peer) onRaft(t *turn, rm *rspb.RaftMessage) {
	if rm.IsTombstone {
		p.onGCMessage(t, rm)
		return
	}
	if !p.checkRaft(t, rm) {
		return
	}
	if rm.Hash != nil {
		p.onReplicaHash(t, rm)
		return
	}
	m := rm.Message
	if m.MsgType == eraftpb.MessageType_MsgSnapshot && !p.acceptSnapshot(rm) {
		return
	}
	if peerByID(p.region(), m.From) == nil {
		from := *rm.FromPeer
		p.cache[m.From] = &from
	}
	now := p.store.clock.Now()
	p.lastHeard[m.From] = now
	if rm.Hibernate && p.onHibernate(m) {
		return
	}
	switch m.MsgType {
	case eraftpb.MessageType_MsgAppend, eraftpb.MessageType_MsgHeartbeat, eraftpb.MessageType_MsgSnapshot:
		p.heardLeader(now)
	}
	if p.sick.damaged {
		return // it must not vote, nor count as having what it has promised
	}
	if m.MsgType == eraftpb.MessageType_MsgAppend && len(m.Entries) > 0 && p.store.diskCritical != nil && p.store.diskCritical() {
		// As if it was lost: the leader's disk has room, this one has none, and the leader sends it again.
		return
	}
	if err := p.rn.Step(*m); err != nil {
		p.logger.Debug("raft refused message", zap.Stringer("type", m.MsgType), zap.Error(err))
	}
	if lost := p.rn.Lost(); lost > 0 {
		p.fallSick(fmt.Errorf("%w: entry %d was acknowledged, but the raft log ends at %d; an older copy of the data was put in its place",
			errDamaged, lost, p.rn.LastIndex()))
	}
}

// checkRaft tells whether a message concerns this peer and comes from one that belongs to the region.
func (p *peer) checkRaft(t *turn, rm *rspb.RaftMessage) bool {
	to := rm.ToPeer.GetId()
	if to < p.meta.Id {
		return false // meant for an earlier peer of this store
	}
	if to > p.meta.Id {
		// A newer peer of this region belongs on this store, so this one was removed.
		p.logger.Info("destroying peer that a newer one replaces", zap.Uint64("new-peer-id", to))
		p.destroy(t, p.region(), rm)
		return false
	}
	from := rm.FromPeer
	if epochStale(rm.RegionEpoch, p.region().RegionEpoch) && PeerOnStore(p.region(), from.StoreId) == nil &&
		rm.RegionEpoch.GetVersion() != 0 && p.initialized() {
		// The sender was removed and does not know it: tell it (G6).
		t.send(from.StoreId, gcMessage(p.store.clusterID, p.regionID, p.region().RegionEpoch, p.meta, from))
		return false
	}
	return true
}

// gcMessage tells a peer that it does not belong to its region any more.
func gcMessage(cluster, regionID uint64, epoch *metapb.RegionEpoch, from, to *metapb.Peer) *rspb.RaftMessage {
	return &rspb.RaftMessage{
		RegionId: regionID, FromPeer: from, ToPeer: to, RegionEpoch: epoch, IsTombstone: true, ClusterId: cluster,
	}
}

// onGCMessage destroys this peer if the sender's region is newer: it has checked that this store is not
// in it.
func (p *peer) onGCMessage(t *turn, rm *rspb.RaftMessage) {
	if rm.ToPeer.GetId() != p.meta.Id || rm.RegionEpoch.GetConfVer() <= p.confVer() {
		return
	}
	p.logger.Info("destroying removed peer", log.Reason("told by another store"))
	region := CloneRegion(p.region())
	e := *rm.RegionEpoch
	region.RegionEpoch = &e
	p.destroy(t, region, nil)
}

// acceptSnapshot decides about an incoming raft snapshot, and reserves its range: nothing else may take
// that range until raft has ignored the snapshot or it is installed. A refused snapshot is sent again.
func (p *peer) acceptSnapshot(rm *rspb.RaftMessage) bool {
	snap := rm.Message.Snapshot
	drop := func(reason string, fields ...zap.Field) bool {
		p.logger.Info("refusing raft snapshot", append(fields, log.Reason(reason))...)
		return false
	}
	var data rspb.RaftSnapshotData
	if err := data.Unmarshal(snap.GetData()); err != nil || snap.GetMetadata() == nil {
		return drop("malformed")
	}
	region := data.GetRegion()
	if region.GetId() != p.regionID || region.GetRegionEpoch() == nil {
		return drop("of another region")
	}
	if peerByID(region, p.meta.Id) == nil {
		return drop("this peer is not in it")
	}
	if p.installing != 0 {
		return drop("another one is being installed")
	}
	if epochStale(region.RegionEpoch, p.region().GetRegionEpoch()) {
		return drop("its epoch is old")
	}
	if err := p.store.snaps.CheckReceived(p.regionID, snap.Metadata.Term, snap.Metadata.Index, data.GetMeta()); err != nil {
		return drop("its files are not usable", zap.Error(err))
	}
	if other := p.store.meta.reserveSnapshot(region); other != nil {
		return drop("its range is taken", zap.Uint64("by-region-id", other.Id))
	}
	p.offered = true
	return true
}

// onApplied takes the report of the apply worker.
func (p *peer) onApplied(t *turn, m *message.Applied) {
	if m.PeerID != p.meta.Id || m.Index <= p.appliedIndex {
		return
	}
	if p.installing != 0 {
		// The report is older than the raft snapshot, whose region and members raft has taken over.
		p.createRightHalves(m)
		return
	}
	st := &p.stats
	st.sizeDelta += m.SizeDelta
	st.writtenBytes += uint64(m.Written)
	st.sinceCount += uint64(m.Written)
	st.writtenKeys += uint64(m.WrittenKeys)
	st.size = uint64(max(0, int64(st.size)+m.SizeDelta))
	st.keys = uint64(max(0, int64(st.keys)+m.KeysDelta))
	if m.Shrunk {
		st.sizeKnown = false // the next tick has it measured
	}
	for _, res := range m.Results {
		switch res := res.(type) {
		case message.ChangedPeer:
			p.onChangedPeer(res)
		case message.SplitDone:
			p.onSplitDone(res)
		case message.SplitRefused:
			if res.Index >= p.splitIndex {
				p.splitIndex = 0
			}
		case message.CompactedLog:
			p.ps.truncated = rspb.RaftTruncatedState{Index: res.Index, Term: res.Term}
			p.store.logGC.Request(p.regionID, res.Index, res.Term)
		}
	}
	p.appliedIndex, p.appliedTerm = m.Index, m.Term
	if p.splitIndex != 0 && p.splitIndex <= m.Index {
		p.splitIndex = 0
	}
	p.rn.AppliedTo(m.Index)
	p.answerReads()
	p.publish()
	if p.removed != nil && !p.isLeader() {
		p.destroy(t, p.removed.region, nil)
	}
}

// onChangedPeer makes an applied conf change effective in raft and in everything that depends on it.
func (p *peer) onChangedPeer(res message.ChangedPeer) {
	selfRemoved := res.Region != nil && res.Change.ChangeType == eraftpb.ConfChangeType_RemoveNode && res.Peer.Id == p.meta.Id
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
		p.logger.Info("applied conf change", zap.Stringer("type", cc.ChangeType), zap.Uint64("changed-peer-id", res.Peer.Id),
			zap.Uint64("changed-store-id", res.Peer.StoreId), zap.Uint64("conf-ver", res.Region.RegionEpoch.ConfVer))
		p.setRegion(res.Region)
		if cc.ChangeType == eraftpb.ConfChangeType_RemoveNode {
			delete(p.lastHeard, res.Peer.Id)
		} else {
			p.lastHeard[res.Peer.Id] = p.store.clock.Now()
		}
	}
	p.rn.ApplyConfChange(cc)
	if res.Region != nil && p.isLeader() {
		p.rn.BroadcastHeartbeat() // creates a new peer at once
		p.heartbeatRegion()
	}
}

// onSplitDone takes over the left half and lets the right one begin.
func (p *peer) onSplitDone(res message.SplitDone) {
	p.setRegion(res.Left)
	heirs := p.once.heirs(p.regionID, res.Index)
	p.once.noteVersion(res.Index, res.Left.RegionEpoch.Version)
	left, right := res.Left, res.Right
	p.logger.Info("split region", zap.Uint64("new-region-id", right.Id), log.Key("split-key", right.StartKey),
		zap.Uint64("version", left.RegionEpoch.Version), zap.Bool("created", res.Created))
	p.stats = peerStats{size: p.stats.size / 2, keys: p.stats.keys / 2}
	p.times.splitCheck = p.store.clock.Now()
	if res.Created {
		msg := message.BecomeSplit{Region: right, Peer: res.RightPeer, Campaign: p.isLeader(), Ancestors: heirs}
		if err := p.store.createSplitPeer(&msg); err != nil {
			p.store.fail(fmt.Errorf("create peer of region %d after split: %w", right.Id, err))
			return
		}
	} else {
		p.store.regionRunner.clear(right)
	}
	if p.isLeader() {
		p.rn.BroadcastHeartbeat() // tells the commit index: the right half's election waits for the others
		p.heartbeatRegion()
		p.store.reportSplit(left, right)
	}
}

// createRightHalves lets the right halves of applied splits begin although the left one does not go on
// as it was: it is being destroyed, or replaced by a raft snapshot. They are durable and own their data.
func (p *peer) createRightHalves(m *message.Applied) {
	if m.PeerID != p.meta.Id {
		return
	}
	for _, res := range m.Results {
		split, ok := res.(message.SplitDone)
		if !ok || !split.Created {
			continue
		}
		right := split.Right
		p.logger.Info("split region that is being replaced", zap.Uint64("new-region-id", right.Id), log.Key("split-key", right.StartKey))
		if err := p.store.createSplitPeer(&message.BecomeSplit{Region: right, Peer: split.RightPeer}); err != nil {
			p.store.fail(fmt.Errorf("create peer of region %d after split: %w", right.Id, err))
		}
	}
}

// onBecomeSplit: a raft message had created this peer before the split was applied here. It keeps its
// term and vote and becomes the right half in place, so that no two objects ever stand for one region.
func (p *peer) onBecomeSplit(t *turn, m *message.BecomeSplit) {
	if p.initialized() || m.Peer.Id < p.meta.Id {
		// A raft snapshot was faster: it has the right half, and more.
		p.store.meta.finishSplit(m.Region.Id)
		return
	}
	p.failAllReads(&RegionNotFoundError{RegionID: p.regionID})
	np, err := p.store.newSplitPeer(m.Region, m.Peer)
	if err != nil {
		p.store.fail(fmt.Errorf("region %d: take over uninitialized peer: %w", p.regionID, err))
		return
	}
	p.meta, p.rn, p.ps, p.logger = np.meta, np.rn, np.ps, np.logger
	p.appliedIndex, p.appliedTerm = np.appliedIndex, np.appliedTerm
	p.rd, p.late, p.lazyCommit = raft.Ready{}, nil, eraftpb.HardState{}
	p.setRegion(m.Region)
	p.initOnce()
	p.once.ancestors = m.Ancestors
	p.store.meta.finishSplit(m.Region.Id)
	t.addApply(p.store.applierOf(p.regionID), registerTask(p))
	p.onStart(&message.Start{Campaign: m.Campaign})
	for _, v := range p.store.meta.takePendingVotes(p.regionID, p.meta.Id) {
		p.onRaft(t, v)
	}
}

// onLogGC drops raft-log entries that the engine has made durable. The request may come from an earlier
// life of the region on this store, or from before a raft snapshot: only what this peer itself has
// compacted counts.
func (p *peer) onLogGC(t *turn, m *message.LogGC) {
	if p.installing != 0 || m.Index > p.ps.truncated.Index {
		return
	}
	if st, ok := p.store.log.State(p.regionID); !ok || m.Index <= st.TruncatedIndex || m.Index > st.Last {
		return
	}
	t.log.Truncate(p.regionID, m.Index, m.Term)
	p.rn.CompactTo(m.Index)
}

// onOperator carries out an order of the placement service, planned for the epoch it names. Nobody waits
// for the answer: the service learns the outcome from heartbeats, and repeats what is still needed.
func (p *peer) onOperator(resp *schedulerResponse) {
	header := message.Header{RegionID: p.regionID, Peer: p.meta, Epoch: resp.RegionEpoch}
	if resp.GetTargetPeer().GetId() != p.meta.Id || !p.isLeader() {
		return
	}
	switch {
	case resp.ChangePeer != nil:
		p.onAdmin(&message.Admin{Header: header, Request: &raft_cmdpb.AdminRequest{
			CmdType:    raft_cmdpb.AdminCmdType_ChangePeer,
			ChangePeer: &raft_cmdpb.ChangePeerRequest{ChangeType: resp.ChangePeer.ChangeType, Peer: resp.ChangePeer.Peer},
		}})
	case resp.TransferLeader != nil:
		p.onAdmin(&message.Admin{Header: header, Request: &raft_cmdpb.AdminRequest{
			CmdType:        raft_cmdpb.AdminCmdType_TransferLeader,
			TransferLeader: &raft_cmdpb.TransferLeaderRequest{Peer: resp.TransferLeader.Peer},
		}})
	case resp.SplitRegion != nil:
		var key []byte
		if len(resp.SplitRegion.Keys) > 0 {
			key = resp.SplitRegion.Keys[0]
		}
		p.onSplitAt(&message.SplitAt{Header: header, Key: key})
	}
}

// onRegionTruth: the placement service has been asked whether this silent peer still belongs.
func (p *peer) onRegionTruth(t *turn, truth *metapb.Region) {
	if truth.GetRegionEpoch().GetConfVer() <= p.confVer() || peerByID(truth, p.meta.Id) != nil {
		return
	}
	p.logger.Info("destroying removed peer", log.Reason("told by the placement service"))
	region := CloneRegion(p.region())
	e := *truth.RegionEpoch
	region.RegionEpoch = &e
	p.destroy(t, region, nil)
}
