package apply

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// pair are the regions of these tests: the target on the left, the source on the right.
func pair() (target, source *metapb.Region) {
	return region(1, "a", "m", 3, 2, voter(1, 1)), region(2, "m", "z", 7, 5, voter(2, 1))
}

// adminAt carries out one admin command as the next entry of a region, proposed at r's epoch.
func adminAt(
	t *testing.T, w *Worker, r *metapb.Region, req *raft_cmdpb.AdminRequest,
) message.Result {
	t.Helper()
	data := message.AppendChecksum(adminEntry(t, r, req))
	task, cbs := entriesOf(r.Id,
		eraftpb.Entry{Index: w.regions[r.Id].applied + 1, Term: 6, Data: data})
	require.NoError(t, w.round([]Task{task}))
	if w.regions[r.Id].broken {
		return message.Result{}
	}
	return answered(t, cbs[0])
}

func prepareOf(target *metapb.Region) *raft_cmdpb.AdminRequest {
	return &raft_cmdpb.AdminRequest{
		CmdType:      raft_cmdpb.AdminCmdType_PrepareMerge,
		PrepareMerge: &raft_cmdpb.PrepareMergeRequest{Target: target},
	}
}

func commitOf(source *metapb.Region, commit uint64) *raft_cmdpb.AdminRequest {
	return &raft_cmdpb.AdminRequest{
		CmdType:     raft_cmdpb.AdminCmdType_CommitMerge,
		CommitMerge: &raft_cmdpb.CommitMergeRequest{Source: source, Commit: commit},
	}
}

func rollbackOf(commit uint64) *raft_cmdpb.AdminRequest {
	return &raft_cmdpb.AdminRequest{
		CmdType:       raft_cmdpb.AdminCmdType_RollbackMerge,
		RollbackMerge: &raft_cmdpb.RollbackMergeRequest{Commit: commit},
	}
}

func stateIn(t *testing.T, e *memengine.Engine, id uint64) *rspb.RegionLocalState {
	t.Helper()
	st, err := meta.LoadRegionState(e, id)
	require.NoError(t, err)
	return st
}

func TestMergeAtItsTarget(t *testing.T) {
	target, source := pair()
	w, h, e := newTestWorker(t, nil, target, source)
	require.NoError(t, adminAt(t, w, source, prepareOf(target)).Err)
	frozen := stateIn(t, e, 2)
	require.Equal(t, rspb.PeerState_Merging, frozen.State)
	require.EqualValues(t, 8, frozen.Region.RegionEpoch.Version)
	require.EqualValues(t, meta.InitLogIndex+1, frozen.Merging.Commit)
	require.True(t, regions.SameEpoch(target.RegionEpoch, frozen.Merging.Target.RegionEpoch))

	res := adminAt(t, w, target, commitOf(frozen.Region, frozen.Merging.Commit))
	require.NoError(t, res.Err)
	joined := stateIn(t, e, 1)
	require.Equal(t, rspb.PeerState_Normal, joined.State)
	require.Equal(t, "z", string(joined.Region.EndKey))
	require.EqualValues(t, 9, joined.Region.RegionEpoch.Version, "greater than both")
	require.Len(t, joined.Region.Merges, 1)
	gone := stateIn(t, e, 2)
	require.Equal(t, rspb.PeerState_Tombstone, gone.State)
	require.Equal(t, &rspb.MergedState{TargetId: 1, Commit: frozen.Merging.Commit, Version: 9},
		gone.MergedInto)
	require.Equal(t, frozen.Peer, gone.Peer)
	st, err := meta.LoadApplyState(e, 1, 0)
	require.NoError(t, err)
	require.EqualValues(t, meta.InitLogIndex+1, st.AppliedIndex)
	last := h.reports[len(h.reports)-1]
	require.Equal(t, message.MergeDone{
		Index: meta.InitLogIndex + 1, Region: joined.Region, Source: frozen.Region,
		SourcePeer: frozen.Peer,
	}, last.Results[0])

	// The order came twice, and the second one is late.
	var stale *regionerr.EpochNotMatchError
	require.ErrorAs(t, adminAt(t, w, target, commitOf(frozen.Region, frozen.Merging.Commit)).Err,
		&stale)
	require.Equal(t, joined, stateIn(t, e, 1))
}

// TestMergeNeedsT0: any change of the target's epoch, of either part, refuses the merge.
func TestMergeNeedsT0(t *testing.T) {
	for _, refuse := range []func(w *Worker, target *metapb.Region){
		func(w *Worker, target *metapb.Region) {
			require.NoError(t, adminAt(t, w, target, &raft_cmdpb.AdminRequest{
				CmdType:     raft_cmdpb.AdminCmdType_RefuseMerge,
				RefuseMerge: &raft_cmdpb.RefuseMergeRequest{SourceId: 2, Commit: 6},
			}).Err)
		},
		func(w *Worker, target *metapb.Region) {
			require.NoError(t, adminAt(t, w, target, splitRequest("c", 9, 11)).Err)
		},
		func(w *Worker, _ *metapb.Region) {
			a := w.regions[1]
			a.region = regions.Change(a.region, eraftpb.ConfChangeType_AddNode, voter(9, 2))
		},
	} {
		target, source := pair()
		w, _, e := newTestWorker(t, nil, target, source)
		require.NoError(t, adminAt(t, w, source, prepareOf(target)).Err)
		frozen := stateIn(t, e, 2)
		refuse(w, target)
		var stale *regionerr.EpochNotMatchError
		require.ErrorAs(t,
			adminAt(t, w, target, commitOf(frozen.Region, frozen.Merging.Commit)).Err, &stale)
		require.Equal(t, frozen, stateIn(t, e, 2))
		require.NotEqual(t, "z", string(w.regions[1].region.EndKey))
		require.Equal(t, rspb.MergeMessage_Refused,
			regions.MergeVerdict(w.regions[1].region, 2, frozen.Merging.Commit, target.RegionEpoch))
	}
}

// TestFrozenRegionChangesNothing: between PrepareMerge and its end no entry takes effect, whatever
// epoch it was proposed at.
func TestFrozenRegionChangesNothing(t *testing.T) {
	target, source := pair()
	w, _, e := newTestWorker(t, nil, target, source)
	require.NoError(t, adminAt(t, w, source, prepareOf(target)).Err)
	frozen := stateIn(t, e, 2)
	for _, r := range []*metapb.Region{source, frozen.Region} {
		put := message.AppendPut(message.AppendHeader(nil, 2, r.RegionEpoch), "default",
			[]byte("x"), []byte("v"))
		swap := message.AppendSwap(message.AppendHeader(nil, 2, r.RegionEpoch),
			swapRequest("x", absent, "v"))
		for _, data := range [][]byte{put, swap} {
			task, cbs := entriesOf(2,
				eraftpb.Entry{
					Index: w.regions[2].applied + 1, Term: 6, Data: message.AppendChecksum(data),
				})
			require.NoError(t, w.round([]Task{task}))
			require.Error(t, answered(t, cbs[0]).Err)
		}
		requireValue(t, e, engine.CFDefault, "x", absent)
		for _, req := range []*raft_cmdpb.AdminRequest{
			splitRequest("t", 9, 11), prepareOf(target), rollbackOf(frozen.Merging.Commit + 1),
			commitOf(target, 6),
			{
				CmdType:    raft_cmdpb.AdminCmdType_CompactLog,
				CompactLog: &raft_cmdpb.CompactLogRequest{CompactIndex: 6, CompactTerm: 6},
			},
			{CmdType: raft_cmdpb.AdminCmdType_ComputeHash},
			{
				CmdType:     raft_cmdpb.AdminCmdType_RefuseMerge,
				RefuseMerge: &raft_cmdpb.RefuseMergeRequest{},
			},
		} {
			require.Error(t, adminAt(t, w, r, req).Err, "%v", req.CmdType)
		}
		require.Equal(t, frozen, stateIn(t, e, 2))
		require.EqualValues(t, meta.InitLogIndex, w.regions[2].truncated.Index)
	}
	require.NoError(t, adminAt(t, w, frozen.Region, rollbackOf(frozen.Merging.Commit)).Err)
	st := stateIn(t, e, 2)
	require.Equal(t, rspb.PeerState_Normal, st.State)
	require.EqualValues(t, 9, st.Region.RegionEpoch.Version)
	require.Error(t, adminAt(t, w, st.Region, rollbackOf(frozen.Merging.Commit)).Err,
		"it has ended")
}

// TestMergeWithoutItsSource: a source that is not frozen as it must be cannot be. The target's
// replica stops before the entry, and nothing is lost.
func TestMergeWithoutItsSource(t *testing.T) {
	target, source := pair()
	for _, freeze := range []bool{false, true} {
		w, h, e := newTestWorker(t, nil, target, source)
		commit := uint64(meta.InitLogIndex + 1)
		if freeze {
			require.NoError(t, adminAt(t, w, source, prepareOf(target)).Err)
			commit++ // of another attempt
		}
		was := stateIn(t, e, 2)
		adminAt(t, w, target, commitOf(was.Region, commit))
		require.Len(t, h.damaged, 1)
		require.Equal(t, was, stateIn(t, e, 2))
		require.Equal(t, target, stateIn(t, e, 1).Region)
		st, err := meta.LoadApplyState(e, 1, 0)
		require.NoError(t, err)
		require.EqualValues(t, meta.InitLogIndex, st.AppliedIndex)
	}
}

// TestDamagedSource: the target takes a damaged source over, since its log says so, and its own
// replica is damaged from then on.
func TestDamagedSource(t *testing.T) {
	target, source := pair()
	w, h, e := newTestWorker(t, nil, target, source)
	require.NoError(t, adminAt(t, w, source, prepareOf(target)).Err)
	require.NoError(t,
		w.round([]Task{{RegionID: 2, End: &End{Damaged: "its data differ", Then: func() {}}}}))
	frozen := stateIn(t, e, 2)
	require.Equal(t, rspb.PeerState_Merging, frozen.State, "the freeze is kept")
	require.NotEmpty(t, frozen.Damaged)
	require.NoError(t, adminAt(t, w, target, commitOf(frozen.Region, frozen.Merging.Commit)).Err)
	require.NotNil(t, stateIn(t, e, 2).MergedInto)
	require.Len(t, h.damaged, 1)
	require.ErrorContains(t, h.damaged[0], "its data differ")
}

// TestMergeBehindATakeover: a raft snapshot from behind the entry has taken the source over before
// the entry is applied. What that has written stays.
func TestMergeBehindATakeover(t *testing.T) {
	target, source := pair()
	w, h, e := newTestWorker(t, nil, target, source)
	require.NoError(t, adminAt(t, w, source, prepareOf(target)).Err)
	frozen := stateIn(t, e, 2)
	joined, err := regions.Join(target, frozen.Region, frozen.Merging.Commit)
	require.NoError(t, err)
	b := e.NewBatch()
	applying := &rspb.RegionLocalState{
		State: rspb.PeerState_Applying, Region: joined, Peer: target.Peers[0],
	}
	meta.Put(b, meta.RegionStateKey(1), applying)
	meta.PutMerged(b, frozen, joined)
	require.NoError(t, e.Write(b, true))
	require.NoError(t, adminAt(t, w, target, commitOf(frozen.Region, frozen.Merging.Commit)).Err)
	require.Empty(t, h.damaged)
	require.Equal(t, rspb.PeerState_Applying, stateIn(t, e, 1).State)
	require.NotNil(t, stateIn(t, e, 2).MergedInto)
}
