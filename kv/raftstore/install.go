package raftstore

import (
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/raft"
)

// The installation of a raft snapshot, from the message to the applied state:
//
//	acceptSnapshot  raft worker: checks it and its files, reserves its range; then raft may take it or ignore it
//	acceptInstall   raft worker, raft took it: the state Applying, synced, before the raft log is reset
//	startInstall    raft worker, after the sync: the region is the new one; entries committed from here on wait
//	apply worker    writes what it has of the old state, then hands over to the region runner
//	doInstall       region runner: verifies the files, clears both ranges, puts the data in, Normal and the applied
//	                index in one synced batch
//	onInstalled     raft worker: the applied index moves, what has waited is applied
//
// A crash at any place is finished by recoverApplying (recover.go). The transport receives the
// files (package snap).

// acceptSnapshot decides about an incoming raft snapshot, and reserves its range: nothing else may
// take that range until raft has ignored the snapshot or it is installed. A refused snapshot is
// sent again.
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
	if regions.PeerByID(region, p.self.Id) == nil {
		return drop("this peer is not in it")
	}
	if p.installing != 0 {
		return drop("another one is being installed")
	}
	if regions.EpochStale(region.RegionEpoch, p.region().GetRegionEpoch()) {
		return drop("its epoch is old")
	}
	if err := p.store.snaps.CheckReceived(p.regionID, snap.Metadata.Term, snap.Metadata.Index,
		data.GetMeta()); err != nil {
		return drop("its files are not usable", zap.Error(err))
	}
	taken, other := p.store.ranges.reserveSnapshot(region)
	if other != nil {
		return drop("its range is taken", zap.Uint64("by-region-id", other.Id))
	}
	p.offered, p.takeover = true, taken
	return true
}

// releaseOffer gives back the range of a raft snapshot that raft has ignored, if there is one.
func (p *peer) releaseOffer() {
	if p.offered {
		p.offered, p.takeover = false, nil
		p.store.ranges.releaseSnapshot(p.regionID)
	}
}

// acceptInstall begins the installation of a raft snapshot: the state Applying becomes durable
// before the raft log is reset, so that a crash anywhere leads back here (I-3).
func (p *peer) acceptInstall(t *turn, snap *eraftpb.Snapshot) {
	var data rspb.RaftSnapshotData
	if err := data.Unmarshal(snap.Data); err != nil {
		panic(fmt.Sprintf("raftstore: accepted raft snapshot of region %d does not decode: %v",
			p.regionID, err))
	}
	md := snap.Metadata
	meta.Put(t.states, meta.RegionStateKey(p.regionID), &rspb.RegionLocalState{
		State: rspb.PeerState_Applying, Region: data.Region, Applying: md, Peer: p.self,
	})
	for i := range p.takeover {
		// In the same batch: a source must not be gone before its target has its range, nor after
		// it (tests/model).
		meta.PutMerged(t.states, p.takeover[i].record(), data.Region)
	}
	t.log.Reset(p.regionID, md.Index, md.Term)
	p.unwrittenCommit = eraftpb.HardState{}
	if raft.IsEmptyHardState(p.rd.HardState) {
		t.log.SetHardState(p.regionID,
			eraftpb.HardState{Term: p.rn.Term(), Vote: p.rn.Status().Vote, Commit: md.Index})
	}
}

// startInstall hands the raft snapshot to the apply worker, behind all earlier entries of the
// region, and from there to the region runner.
func (p *peer) startInstall(t *turn, snap *eraftpb.Snapshot) {
	var data rspb.RaftSnapshotData
	if err := data.Unmarshal(snap.Data); err != nil {
		panic(fmt.Sprintf("raftstore: accepted raft snapshot of region %d does not decode: %v",
			p.regionID, err))
	}
	p.installing = snap.Metadata.Index
	p.split.index = 0
	if p.merge.state != nil {
		// the snapshot is from after the end of the freeze: a frozen region is not copied
		p.merge.thaw()
	}
	p.stats.counted = message.Counted{} // the data is another, and came by no write
	old := p.region()
	// What waited for entries that the snapshot covers may or may not have been carried out.
	p.store.endUnknown(p.takeProposals(snap.Metadata.Index), errCovered)
	p.logger.Info("installing raft snapshot", zap.Uint64("index", snap.Metadata.Index),
		zap.Uint64("term", snap.Metadata.Term))
	for _, source := range p.takeover {
		p.logger.Info("taking over a frozen region",
			zap.Uint64("source-region-id", source.region.Id))
		p.store.endSource(source.region, source.peer, data.Region, p.self.Id)
	}
	p.takeover = nil
	p.setRegion(data.Region)
	task := installTask{
		region: data.Region, old: old, peer: p.self, files: data.Meta,
		index: snap.Metadata.Index, term: snap.Metadata.Term,
	}
	t.addApply(p.store.appliers.of(p.regionID), apply.Task{RegionID: p.regionID, End: &apply.End{
		Then: func() { p.store.regionRunner.install(&task) },
	}})
}

// errCovered is why the outcome of a proposal is not known: a raft snapshot has its index.
var errCovered = errors.New("raftstore: a raft snapshot covers the command")

// installTask replaces a region's state by a received raft snapshot.
type installTask struct {
	region, old *metapb.Region
	peer        *metapb.Peer
	files       *rspb.SnapshotMeta
	index, term uint64
}

// install queues the installation of a raft snapshot whose state Applying is durable.
func (r *regionRunner) install(t *installTask) {
	r.mu.Lock()
	delete(r.mu.canceled, t.region.Id)
	r.mu.Unlock()
	r.installing.Add(1)
	r.add(func() error {
		defer r.installing.Add(-1)
		err := r.doInstall(t)
		if errors.Is(err, errCanceled) {
			return nil
		}
		if err != nil && !errors.Is(err, snap.ErrUnusable) {
			return fmt.Errorf("install raft snapshot of region %d: %w", t.region.Id, err)
		}
		_ = r.store.Send(t.region.Id, &message.SnapshotInstalled{Index: t.index, Err: err})
		return nil
	})
}

var errCanceled = errors.New("raftstore: installation canceled")

// cancel makes a queued or running installation of the region end early.
func (r *regionRunner) cancel(regionID uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.canceled[regionID] = true
}

func (r *regionRunner) isCanceled(regionID uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.canceled[regionID]
}

// installBatchBytes bounds the batches in which the data of a raft snapshot goes into the engine.
const installBatchBytes = 1 << 20

// doInstall clears the old and the new range, puts the data in, and makes the region Normal in one
// synced batch. A crash before that batch finds Applying and does all of it again.
func (r *regionRunner) doInstall(t *installTask) error {
	s := r.store
	key := snap.Key{RegionID: t.region.Id, Term: t.term, Index: t.index}
	// The files are verified as a whole before anything is deleted.
	if err := s.snaps.Verify(key, t.files); err != nil {
		return err
	}
	ranges := []*metapb.Region{t.region}
	if regions.IsInitialized(t.old) {
		ranges = append(ranges, t.old)
	}
	for _, reg := range ranges {
		if err := s.regionRunner.clearData(reg); err != nil {
			return err
		}
	}
	b := s.engine.NewBatch()
	err := s.snaps.Read(key, t.files, func(k, v []byte) error {
		if r.isCanceled(t.region.Id) {
			return errCanceled
		}
		if user := engine.UserKey(k); !regions.Contains(t.region, user) {
			return fmt.Errorf("%w: key %v is outside the region", snap.ErrUnusable,
				redact.Key(user))
		}
		b.Put(k, v)
		if b.Size() < installBatchBytes {
			return nil
		}
		err := s.engine.Write(b, false)
		b.Reset()
		return err
	})
	if err != nil {
		return err
	}
	meta.PutRegionState(b, rspb.PeerState_Normal, t.region, t.peer)
	meta.Put(b, meta.ApplyStateKey(t.region.Id), &rspb.RaftApplyState{
		AppliedIndex:   t.index,
		TruncatedState: &rspb.RaftTruncatedState{Index: t.index, Term: t.term},
	})
	if err := s.engine.Write(b, true); err != nil {
		return err
	}
	s.snaps.DeleteReceived(key)
	return nil
}

// onInstalled takes the end of an installation.
func (p *peer) onInstalled(t *turn, m *message.SnapshotInstalled) {
	if p.installing == 0 || m.Index != p.installing {
		return
	}
	if m.Err != nil {
		// The files are gone or damaged, and this peer has promised to have them: it must not take
		// part any more. The placement service replaces it under a new peer id (B-3, I-4).
		p.logger.Error("raft snapshot cannot be installed, giving this replica up",
			zap.Error(m.Err))
		p.destroy(t, p.region(), nil)
		return
	}
	p.installing = 0
	p.appliedIndex = m.Index
	if term, err := p.ps.Term(m.Index); err == nil {
		p.appliedTerm = term
		p.ps.truncated = rspb.RaftTruncatedState{Index: m.Index, Term: term}
	}
	p.rn.AppliedTo(m.Index)
	p.stats = peerStats{}
	p.once.begin()
	p.once.ancestors = nil
	t.addApply(p.store.appliers.of(p.regionID), p.beginTask())
	for _, task := range p.heldApply {
		t.addApply(p.store.appliers.of(p.regionID), task)
	}
	p.heldApply = nil
	p.logger.Info("installed raft snapshot", zap.Uint64("index", m.Index))
	p.reads.answer()
	p.publish()
}
