package apply

import (
	"errors"
	"fmt"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// A merge in the state machine. PrepareMerge freezes the source: from then on only RollbackMerge,
// which names it, takes effect there. CommitMerge in the target's log takes the source's range
// over, in one synced batch: the joined region, the source's tombstone, and how far the target is
// applied. It relies on the freeze being in the engine, and synced, on every store of the source,
// which each replica has acknowledged before anyone proposes CommitMerge (raftstore/merge.go).
//
// Invariant: the source's state is written by its own worker until it is frozen, and then by one of
// two: its own worker, for RollbackMerge, or the target's, for CommitMerge. Both are in the logs
// never (tests/model has the proof by search).

// ErrNoSource: the source of a committed merge is not frozen here as it must be. That cannot be; it
// is not made worse.
var ErrNoSource = errors.New("apply: the source of a merge is not frozen on this store")

// frozen is why an entry has no effect in a region that is being merged.
func (w *Worker) frozen(a *applier) error {
	return &regionerr.BusyError{
		Reason: fmt.Sprintf("region %d is being merged into region %d", a.regionID,
			a.merging.GetTarget().GetId()),
	}
}

// applyPrepareMerge freezes the region.
func (w *Worker) applyPrepareMerge(
	a *applier, e *eraftpb.Entry, req *raft_cmdpb.PrepareMergeRequest,
) message.Result {
	target := req.GetTarget()
	if target.GetRegionEpoch() == nil {
		return message.Result{
			Err: regionerr.Invalidf("merge of region %d without a target", a.regionID),
		}
	}
	if _, err := regions.Join(target, a.region, e.Index); err != nil ||
		!regions.SameStores(target, a.region) {
		return message.Result{
			Err: regionerr.Invalidf("region %d cannot go into region %d", a.regionID, target.Id),
		}
	}
	a.merging = &rspb.MergingState{Target: target, Commit: e.Index}
	return w.newVersion(a, e, raft_cmdpb.AdminCmdType_PrepareMerge)
}

// applyRollbackMerge ends the freeze that it names.
func (w *Worker) applyRollbackMerge(
	a *applier, e *eraftpb.Entry, req *raft_cmdpb.RollbackMergeRequest,
) message.Result {
	if a.merging == nil || a.merging.Commit != req.GetCommit() {
		return message.Result{
			Err: regionerr.Invalidf("region %d is not frozen by entry %d", a.regionID,
				req.GetCommit()),
		}
	}
	a.merging = nil
	return w.newVersion(a, e, raft_cmdpb.AdminCmdType_RollbackMerge)
}

// applyRefuseMerge leaves the epoch at which alone the merge could be committed.
func (w *Worker) applyRefuseMerge(a *applier, e *eraftpb.Entry) message.Result {
	return w.newVersion(a, e, raft_cmdpb.AdminCmdType_RefuseMerge)
}

// newVersion gives the region its next version and writes its state, synced.
func (w *Worker) newVersion(
	a *applier, e *eraftpb.Entry, kind raft_cmdpb.AdminCmdType,
) message.Result {
	a.region = regions.NextVersion(a.region)
	st := &rspb.RegionLocalState{State: rspb.PeerState_Normal, Region: a.region, Peer: a.peer}
	if a.merging != nil {
		st.State, st.Merging = rspb.PeerState_Merging, a.merging
	}
	meta.Put(w.batch, meta.RegionStateKey(a.regionID), st)
	w.sync = true
	a.report.Results = append(a.report.Results,
		message.NewVersion{Index: e.Index, Region: a.region, Merging: a.merging})
	return message.Result{
		Region: a.region, Answer: message.AdminAnswer(&raft_cmdpb.AdminResponse{CmdType: kind}),
	}
}

// applyCommitMerge takes the source's range over. The epoch was compared: it is the only one at
// which the merge may take place, and another entry with the same order comes too late.
func (w *Worker) applyCommitMerge(
	a *applier, e *eraftpb.Entry, req *raft_cmdpb.CommitMergeRequest,
) (message.Result, error) {
	source := req.GetSource()
	joined, err := regions.Join(a.region, source, req.GetCommit())
	if err != nil {
		return message.Result{Err: err}, nil //nolint:nilerr // a refusal is a result
	}
	// What the source's worker had to write was synced before its freeze was acknowledged, so it is
	// not asked.
	st, err := meta.LoadRegionState(w.engine, source.Id)
	if err != nil {
		return message.Result{},
			fmt.Errorf("state of region %d, which goes into region %d: %w", source.Id, a.regionID,
				err)
	}
	if into := st.GetMergedInto(); into.GetTargetId() == a.regionID && into.Commit == req.Commit {
		// A raft snapshot from behind this entry has taken the source over, and replaces all of
		// this soon.
		a.region = joined
		return message.Result{Region: joined}, nil
	}
	if st.GetState() != rspb.PeerState_Merging || st.Merging.GetCommit() != req.Commit ||
		st.Merging.GetTarget().GetId() != a.regionID {
		return message.Result{}, fmt.Errorf("%w: region %d has state %v, entry %d",
			ErrNoSource, source.Id, st.GetState(), st.GetMerging().GetCommit())
	}
	meta.PutRegionState(w.batch, rspb.PeerState_Normal, joined, a.peer)
	meta.PutMerged(w.batch, st, joined)
	w.sync = true
	a.region = joined
	a.report.Results = append(a.report.Results, message.MergeDone{
		Index: e.Index, Region: joined, Source: st.Region, SourcePeer: st.Peer,
	})
	if st.Damaged != "" {
		// The data that the region has now were not to be served.
		w.host.Damaged(a.regionID, fmt.Errorf("%w: %s", ErrNoSource, st.Damaged))
	}
	return message.Result{Region: joined, Answer: message.AdminAnswer(&raft_cmdpb.AdminResponse{
		CmdType: raft_cmdpb.AdminCmdType_CommitMerge,
	})}, nil
}
