package raftstore

import (
	"fmt"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// applyAdmin carries out a replicated admin command that is not a conf change.
func (w *applyWorker) applyAdmin(a *applier, e *eraftpb.Entry, cmd *message.Entry) (message.Result, error) {
	var req raft_cmdpb.AdminRequest
	if err := req.Unmarshal(cmd.Admin); err != nil {
		return message.Result{}, fmt.Errorf("%w: admin command: %w", errUndecodable, err)
	}
	version, confVer := epochParts(&req)
	if !epochMatches(a.region, cmd.Header.RegionEpoch, version, confVer) {
		if req.CmdType == raft_cmdpb.AdminCmdType_Split {
			a.report.Results = append(a.report.Results, message.SplitRefused{Index: e.Index})
		}
		return message.Result{Err: w.epochNotMatch(a)}, nil
	}
	switch req.CmdType {
	case raft_cmdpb.AdminCmdType_Split:
		return w.applySplit(a, e, req.GetSplit())
	case raft_cmdpb.AdminCmdType_CompactLog:
		return w.applyCompactLog(a, req.GetCompactLog()), nil
	case raft_cmdpb.AdminCmdType_ComputeHash:
		return w.applyComputeHash(a, e)
	}
	return message.Result{Err: invalidf("admin command %v is not replicated", req.CmdType)}, nil
}

// applyCompactLog moves the truncated state forward, never back and never beyond what is applied. The
// raft log itself follows once the engine has made this durable (D13).
func (w *applyWorker) applyCompactLog(a *applier, req *raft_cmdpb.CompactLogRequest) message.Result {
	if req.GetCompactIndex() <= a.truncated.Index || req.CompactIndex > a.applied {
		return message.Result{Err: invalidf("log of region %d cannot be compacted to %d", a.regionID, req.GetCompactIndex())}
	}
	a.truncated = rspb.RaftTruncatedState{Index: req.CompactIndex, Term: req.CompactTerm}
	a.report.Results = append(a.report.Results, message.CompactedLog{Index: req.CompactIndex, Term: req.CompactTerm})
	return message.Result{Answer: adminAnswer(&raft_cmdpb.AdminResponse{
		CmdType: raft_cmdpb.AdminCmdType_CompactLog, CompactLog: &raft_cmdpb.CompactLogResponse{},
	})}
}

// applySplit writes both halves, the right one's beginning and the applied index in one synced batch.
func (w *applyWorker) applySplit(a *applier, e *eraftpb.Entry, req *raft_cmdpb.SplitRequest) (message.Result, error) {
	left, right, err := splitRegion(a.region, req)
	if err != nil {
		a.report.Results = append(a.report.Results, message.SplitRefused{Index: e.Index})
		return message.Result{Err: err}, nil
	}
	self := PeerOnStore(right, w.store.storeID)
	done := message.SplitDone{Index: e.Index, Left: left, Right: right, RightPeer: self}
	if self != nil {
		done.Created, err = w.mayCreate(right, self)
		if err != nil {
			return message.Result{}, fmt.Errorf("state of new region %d: %w", right.Id, err)
		}
	}
	meta.PutRegionState(w.batch, rspb.PeerState_Normal, left, a.peer)
	if done.Created {
		meta.PutRegionState(w.batch, rspb.PeerState_Normal, right, self)
		meta.Put(w.batch, meta.ApplyStateKey(right.Id), meta.InitialApplyState())
	}
	w.sync = true
	a.region = left
	a.report.Results = append(a.report.Results, done)
	return message.Result{Region: left, Answer: adminAnswer(&raft_cmdpb.AdminResponse{
		CmdType: raft_cmdpb.AdminCmdType_Split,
		Split:   &raft_cmdpb.SplitResponse{Regions: []*metapb.Region{left, right}},
	})}, nil
}

// mayCreate decides whether a split creates the new region's peer here. Not if this store already had a
// newer peer of that region: one that is there, or that has been removed again (G1). What then lies in
// the right half is cleared.
func (w *applyWorker) mayCreate(right *metapb.Region, self *metapb.Peer) (bool, error) {
	st, err := meta.LoadRegionState(w.store.engine, right.Id)
	if err != nil {
		return false, err
	}
	if st != nil {
		switch removed := st.State == rspb.PeerState_Tombstone; {
		case removed && st.GetPeer().GetId() >= self.Id:
			return false, nil
		case !removed && (isInitialized(st.Region) || st.GetPeer().GetId() > self.Id):
			return false, nil // an uninitialized peer of the same id becomes the right half
		}
	}
	return w.store.meta.reserveSplit(right, self.Id), nil
}

// applyConfChange changes the members of a region. A duplicate or a change that was planned for
// another configuration has no effect, but raft still learns that the entry is done.
func (w *applyWorker) applyConfChange(
	a *applier, index uint64, cc eraftpb.ConfChange, cmd *raft_cmdpb.RaftCmdRequest,
) message.Result {
	none := func(err error) message.Result {
		a.report.Results = append(a.report.Results, message.ChangedPeer{Index: index})
		return message.Result{Err: err}
	}
	req := cmd.GetAdminRequest().GetChangePeer()
	peer := req.GetPeer()
	if peer == nil || peer.Id != cc.NodeId || req.ChangeType != cc.ChangeType || peer.Id == 0 || peer.StoreId == 0 {
		return none(invalidf("conf change %d is malformed", index))
	}
	if !epochMatches(a.region, cmd.GetHeader().GetRegionEpoch(), false, true) {
		return none(w.epochNotMatch(a))
	}
	region := changedRegion(a.region, cc.ChangeType, peer)
	if region == nil {
		// A repeated command: what it asks for is so already.
		res := none(nil)
		res.Region, res.Answer = a.region, changePeerResponse(a.region)
		return res
	}
	state := rspb.PeerState_Normal
	if cc.ChangeType == eraftpb.ConfChangeType_RemoveNode && peer.Id == a.peer.Id {
		state = rspb.PeerState_Tombstone
		a.removed = true
	}
	a.region = region
	if self := peerByID(region, a.peer.Id); self != nil {
		a.peer = self
	}
	meta.PutRegionState(w.batch, state, region, a.peer)
	w.sync = true
	a.report.Results = append(a.report.Results, message.ChangedPeer{Index: index, Change: cc, Peer: peer, Region: region})
	return message.Result{Region: region, Answer: changePeerResponse(region)}
}

func decodeConfChange(data []byte) (cc eraftpb.ConfChange, cmd *raft_cmdpb.RaftCmdRequest, err error) {
	cc, command, err := message.DecodeConfChange(data)
	if err != nil {
		return cc, nil, fmt.Errorf("%w: %w", errUndecodable, err)
	}
	return cc, &command, nil
}

// checkEntry tells whether an entry decodes when it is applied.
func checkEntry(e *eraftpb.Entry) error {
	switch e.GetEntryType() {
	case eraftpb.EntryType_EntryConfChange:
		_, _, err := decodeConfChange(e.Data)
		return err
	case eraftpb.EntryType_EntryNormal:
	default:
		return fmt.Errorf("%w: entry type %d", errUndecodable, e.EntryType)
	}
	cmd, err := message.DecodeEntry(e.Data)
	if err == nil && cmd.Admin != nil {
		err = new(raft_cmdpb.AdminRequest).Unmarshal(cmd.Admin)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errUndecodable, err)
	}
	return nil
}

func changePeerResponse(r *metapb.Region) *message.Answer {
	return adminAnswer(&raft_cmdpb.AdminResponse{
		CmdType:    raft_cmdpb.AdminCmdType_ChangePeer,
		ChangePeer: &raft_cmdpb.ChangePeerResponse{Region: r},
	})
}

func adminAnswer(r *raft_cmdpb.AdminResponse) *message.Answer { return &message.Answer{Admin: r} }

// changedRegion is the region after a conf change, nil if it has no effect.
func changedRegion(r *metapb.Region, kind eraftpb.ConfChangeType, peer *metapb.Peer) *metapb.Region {
	q := *peer
	switch kind {
	case eraftpb.ConfChangeType_AddNode:
		q.Role = metapb.PeerRole_Voter
		return withPeerAdded(r, &q)
	case eraftpb.ConfChangeType_AddLearnerNode:
		q.Role = metapb.PeerRole_Learner
		return withPeerAdded(r, &q)
	case eraftpb.ConfChangeType_RemoveNode:
		return withPeerRemoved(r, &q)
	}
	return nil
}
