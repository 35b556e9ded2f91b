package apply

import (
	"fmt"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// applyAdmin carries out a replicated admin command that is not a conf change.
func (w *Worker) applyAdmin(
	a *applier, e *eraftpb.Entry, cmd *message.Entry,
) (message.Result, error) {
	var req raft_cmdpb.AdminRequest
	if err := req.Unmarshal(cmd.Admin); err != nil {
		return message.Result{}, fmt.Errorf("%w: admin command: %w", ErrUndecodable, err)
	}
	if a.merging != nil && req.CmdType != raft_cmdpb.AdminCmdType_RollbackMerge {
		return message.Result{Err: w.frozen(a)}, nil
	}
	version, confVer := regions.EpochParts(&req)
	if !regions.EpochMatches(a.region, cmd.Header.RegionEpoch, version, confVer) {
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
	case raft_cmdpb.AdminCmdType_PrepareMerge:
		return w.applyPrepareMerge(a, e, req.GetPrepareMerge()), nil
	case raft_cmdpb.AdminCmdType_CommitMerge:
		return w.applyCommitMerge(a, e, req.GetCommitMerge())
	case raft_cmdpb.AdminCmdType_RollbackMerge:
		return w.applyRollbackMerge(a, e, req.GetRollbackMerge()), nil
	case raft_cmdpb.AdminCmdType_RefuseMerge:
		return w.applyRefuseMerge(a, e), nil
	}
	return message.Result{
		Err: regionerr.Invalidf("admin command %v is not replicated", req.CmdType),
	}, nil
}

// applyCompactLog moves the truncated state forward, never back and never beyond what is applied.
// The raft log itself follows once the engine has made this durable (D13).
func (w *Worker) applyCompactLog(a *applier, req *raft_cmdpb.CompactLogRequest) message.Result {
	if req.GetCompactIndex() <= a.truncated.Index || req.CompactIndex > a.applied {
		return message.Result{
			Err: regionerr.Invalidf("log of region %d cannot be compacted to %d", a.regionID,
				req.GetCompactIndex()),
		}
	}
	a.truncated = rspb.RaftTruncatedState{Index: req.CompactIndex, Term: req.CompactTerm}
	a.report.Results = append(a.report.Results,
		message.CompactedLog{Index: req.CompactIndex, Term: req.CompactTerm})
	return message.Result{Answer: message.AdminAnswer(&raft_cmdpb.AdminResponse{
		CmdType: raft_cmdpb.AdminCmdType_CompactLog, CompactLog: &raft_cmdpb.CompactLogResponse{},
	})}
}

// applyComputeHash has the region hashed as of the entry. The batch is written first: what comes
// before the entry must be in the snapshot, and nothing after it.
func (w *Worker) applyComputeHash(a *applier, e *eraftpb.Entry) (message.Result, error) {
	if err := w.flush(); err != nil {
		return message.Result{}, err
	}
	m := message.Hashed{PeerID: a.peer.Id, Index: e.Index, Term: e.Term}
	w.hasher.Hash(runner.HashTask{Region: a.region, Message: m, View: w.engine.NewSnapshot()})
	return message.Result{}, nil
}
