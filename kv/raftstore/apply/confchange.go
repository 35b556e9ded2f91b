package apply

import (
	"fmt"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// applyConfChange changes the members of a region. A duplicate or a change that was planned for
// another configuration has no effect, but raft still learns that the entry is done.
func (w *Worker) applyConfChange(
	a *applier, index uint64, cc eraftpb.ConfChange, cmd *raft_cmdpb.RaftCmdRequest,
) message.Result {
	none := func(err error) message.Result {
		a.report.Results = append(a.report.Results, message.ChangedPeer{Index: index})
		return message.Result{Err: err}
	}
	req := cmd.GetAdminRequest().GetChangePeer()
	peer := req.GetPeer()
	if peer == nil || peer.Id != cc.NodeId || req.ChangeType != cc.ChangeType || peer.Id == 0 ||
		peer.StoreId == 0 {
		return none(regionerr.Invalidf("conf change %d is malformed", index))
	}
	if a.merging != nil {
		return none(w.frozen(a))
	}
	if !regions.EpochMatches(a.region, cmd.GetHeader().GetRegionEpoch(), false, true) {
		return none(w.epochNotMatch(a))
	}
	region := regions.Change(a.region, cc.ChangeType, peer)
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
	if self := regions.PeerByID(region, a.peer.Id); self != nil {
		a.peer = self
	}
	meta.PutRegionState(w.batch, state, region, a.peer)
	w.sync = true
	a.report.Results = append(a.report.Results,
		message.ChangedPeer{Index: index, Change: cc, Peer: peer, Region: region})
	return message.Result{Region: region, Answer: changePeerResponse(region)}
}

func decodeConfChange(
	data []byte,
) (cc eraftpb.ConfChange, cmd *raft_cmdpb.RaftCmdRequest, err error) {
	cc, command, err := message.DecodeConfChange(data)
	if err != nil {
		return cc, nil, fmt.Errorf("%w: %w", ErrUndecodable, err)
	}
	return cc, &command, nil
}

func changePeerResponse(r *metapb.Region) *message.Answer {
	return message.AdminAnswer(&raft_cmdpb.AdminResponse{
		CmdType:    raft_cmdpb.AdminCmdType_ChangePeer,
		ChangePeer: &raft_cmdpb.ChangePeerResponse{Region: r},
	})
}
