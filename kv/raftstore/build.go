package raftstore

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/raft"
)

// A raft snapshot, from raft's question to its end: raft asks peerStorage.Snapshot -> the region
// runner builds the files from one engine snapshot -> onBuilt keeps it -> raft asks again and sends
// it; the transport sends its files -> ReportSnapshot. Old files are removed by runSnapshotGC.

// Snapshot implements raft.Storage. The first call starts the build and answers "temporarily
// unavailable"; raft asks again. A built snapshot that log compaction or a conf change has
// overtaken would only make the follower ask for another one: it is dropped and built again.
func (ps *peerStorage) Snapshot() (eraftpb.Snapshot, error) {
	if snap := ps.built; snap != nil {
		ps.built = nil
		if ps.snapshotUsable(snap) {
			return *snap, nil
		}
	}
	if !ps.building {
		ps.building = ps.store.regionRunner.build(ps.regionID)
	}
	return eraftpb.Snapshot{}, raft.ErrSnapshotTemporarilyUnavailable
}

func (ps *peerStorage) snapshotUsable(snap *eraftpb.Snapshot) bool {
	if snap.Metadata.Index < ps.truncated.Index {
		return false
	}
	var data rspb.RaftSnapshotData
	if err := data.Unmarshal(snap.Data); err != nil {
		return false
	}
	return data.GetRegion().GetRegionEpoch().GetConfVer() >= ps.region.GetRegionEpoch().GetConfVer()
}

// maxBuilds bounds how many raft snapshots are built at the same time.
const maxBuilds = 2

// build queues the building of a raft snapshot; false if too many wait already.
func (r *regionRunner) build(regionID uint64) bool {
	select {
	case r.builds <- regionID:
		return true
	default:
		return false
	}
}

func (r *regionRunner) doBuild(regionID uint64) {
	built, err := r.buildSnapshot(regionID)
	switch {
	case err == nil:
	case errors.Is(err, snap.ErrBusy):
		// The disk is full, which the store has said already. Raft asks again.
		r.store.logger.Debug("no raft snapshot is built", log.RegionID(regionID), zap.Error(err))
	case errors.Is(err, errNotNow), errors.Is(err, raftlog.ErrCompacted),
		errors.Is(err, raftlog.ErrUnavailable),
		errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		// It passes (D7): raft asks again.
		r.store.logger.Warn("building raft snapshot failed", log.RegionID(regionID), zap.Error(err))
	default:
		// Another replica can build it.
		r.store.ReadFailed(regionID, fmt.Errorf("build raft snapshot: %w", err))
	}
	_ = r.store.Send(regionID, &message.SnapshotBuilt{Snapshot: built})
}

// errNotNow: the region is being replaced or destroyed.
var errNotNow = errors.New("raftstore: region is not in a state to be copied")

// buildSnapshot takes region, applied index and data from one engine snapshot (D1).
func (r *regionRunner) buildSnapshot(regionID uint64) (*eraftpb.Snapshot, error) {
	view := r.store.engine.NewSnapshot()
	defer view.Close()
	st, err := meta.LoadRegionState(view, regionID)
	if err != nil {
		return nil, err
	}
	apply, err := meta.LoadApplyState(view, regionID, r.store.appliers.of(regionID))
	if err != nil {
		return nil, err
	}
	if st == nil || apply == nil || st.State != rspb.PeerState_Normal ||
		!regions.IsInitialized(st.Region) {
		return nil, errNotNow
	}
	term, err := r.store.log.Term(regionID, apply.AppliedIndex)
	if err != nil {
		return nil, fmt.Errorf("term of applied entry %d: %w", apply.AppliedIndex, err)
	}
	files, size, err := r.store.snaps.Build(view,
		snap.Key{RegionID: regionID, Term: term, Index: apply.AppliedIndex}, st.Region)
	if err != nil {
		return nil, err
	}
	data, err := (&rspb.RaftSnapshotData{Region: st.Region, FileSize: size, Meta: files}).Marshal()
	if err != nil {
		return nil, err
	}
	cs := confState(st.Region)
	return &eraftpb.Snapshot{
		Data:     data,
		Metadata: &eraftpb.SnapshotMetadata{ConfState: &cs, Index: apply.AppliedIndex, Term: term},
	}, nil
}

// onBuilt takes the result of a build.
func (ps *peerStorage) onBuilt(snap *eraftpb.Snapshot) {
	ps.building = false
	ps.built = snap
}

// ReportSnapshot tells a region how sending a raft snapshot ended.
func (s *Store) ReportSnapshot(regionID, toPeer uint64, ok bool) {
	_ = s.router.send(regionID, &message.SnapshotSent{ToPeer: toPeer, OK: ok})
}

// runSnapshotGC removes snapshot files that nobody needs any more.
func (r *regionRunner) runSnapshotGC() {
	ticker := time.NewTicker(r.store.cfg.Raftstore.SnapshotGCInterval.Duration)
	defer ticker.Stop()
	for {
		select {
		case <-r.store.ctx.Done():
			return
		case <-ticker.C:
			if err := r.store.snaps.GC(r.store.cfg.Raftstore.SnapshotMaxAge.Duration); err != nil {
				r.store.logger.Warn("removing old snapshot files failed", zap.Error(err))
			}
		}
	}
}
