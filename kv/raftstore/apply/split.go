package apply

import (
	"fmt"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// applySplit writes both halves, the right one's beginning and the applied index in one synced
// batch.
func (w *Worker) applySplit(
	a *applier, e *eraftpb.Entry, req *raft_cmdpb.SplitRequest,
) (message.Result, error) {
	left, right, err := regions.Split(a.region, req)
	if err != nil {
		a.report.Results = append(a.report.Results, message.SplitRefused{Index: e.Index})
		return message.Result{Err: err}, nil //nolint:nilerr // a refusal is a result
	}
	self := regions.PeerOnStore(right, w.storeID)
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
	return message.Result{Region: left, Answer: message.AdminAnswer(&raft_cmdpb.AdminResponse{
		CmdType: raft_cmdpb.AdminCmdType_Split,
		Split:   &raft_cmdpb.SplitResponse{Regions: []*metapb.Region{left, right}},
	})}, nil
}

// mayCreate decides whether a split creates the new region's peer here. Not if this store already
// had a newer peer of that region: one that is there, or that has been removed again (G1). What
// then lies in the right half is cleared.
func (w *Worker) mayCreate(right *metapb.Region, self *metapb.Peer) (bool, error) {
	st, err := meta.LoadRegionState(w.engine, right.Id)
	if err != nil {
		return false, err
	}
	if st != nil {
		switch removed := st.State == rspb.PeerState_Tombstone; {
		case removed && st.GetPeer().GetId() >= self.Id:
			return false, nil
		case !removed && (regions.IsInitialized(st.Region) || st.GetPeer().GetId() > self.Id):
			return false, nil // an uninitialized peer of the same id becomes the right half
		}
	}
	return w.host.ReserveSplit(right, self.Id), nil
}
