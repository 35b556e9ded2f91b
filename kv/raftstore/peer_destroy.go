package raftstore

import (
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// destroy begins the end of a peer. From now on it answers everything with RegionNotFound; the rest
// happens in an order in which a crash anywhere is finished at the next start (G10):
//
//	apply worker: behind all earlier entries, forget the region; Tombstone{region, peer id}, synced
//	region runner: raft log deleted, synced -> data of the range cleared -> apply state gone
//	then: store meta and router forget the region; only now may a newer peer be created
//
// region carries the epoch that the tombstone keeps. again is a raft message to route once the region
// is gone (it is for the newer peer).
func (p *peer) destroy(t *turn, region *metapb.Region, again *rspb.RaftMessage) {
	if p.stopped || (!p.initialized() && !p.store.meta.beginDying(p.regionID)) {
		return // of a peer that a split takes over, whoever wants it gone will say so again
	}
	p.wake() // ends its share in the store's accounts
	p.stopped = true
	p.logger.Info("destroying peer", zap.Uint64("conf-ver", region.GetRegionEpoch().GetConfVer()))
	p.endCommands(&RegionNotFoundError{RegionID: p.regionID})
	p.noteEnd()
	p.publish()
	task := &destroyTask{box: p.box, region: region, data: p.region(), peer: p.meta, again: again}
	t.ends = append(t.ends, applyTask{kind: applyDestroy, regionID: p.regionID, destroy: task})
	p.store.regionRunner.cancel(p.regionID)
}

// noteEnd ends the lease.
func (p *peer) noteEnd() {
	if p.lease.cell != nil {
		p.lease.cell.end()
		p.lease.cell = nil
	}
}

// peerGone is called by the region runner when nothing of a destroyed peer is left.
func (s *Store) peerGone(task *destroyTask) {
	s.meta.removeRegion(task.region.Id, task.peer.Id)
	for _, m := range s.router.close(task.box) {
		task.box.peer.refuse(m)
	}
	if task.again != nil {
		_ = s.sendStore(storeRaft{task.again})
	}
}

// onInstalled takes the end of an installation.
func (p *peer) onInstalled(t *turn, m *message.SnapshotInstalled) {
	if p.installing == 0 || m.Index != p.installing {
		return
	}
	if m.Err != nil {
		// The files are gone or damaged, and this peer has promised to have them: it must not take part
		// any more. The placement service replaces it under a new peer id (B-3, I-4).
		p.logger.Error("raft snapshot cannot be installed, giving this replica up", zap.Error(m.Err))
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
	p.initOnce()
	p.once.ancestors = nil
	t.addApply(p.store.applierOf(p.regionID), registerTask(p))
	for _, task := range p.heldApply {
		t.addApply(p.store.applierOf(p.regionID), task)
	}
	p.heldApply = nil
	p.logger.Info("installed raft snapshot", zap.Uint64("index", m.Index))
	p.answerReads()
	p.publish()
}
