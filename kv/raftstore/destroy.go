package raftstore

import (
	"context"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// The end of a peer that does not belong to its region any more. The cause is a message of another
// store (onGCMessage), an answer of the placement service (onRegionTruth), its own removal
// (confchange.go) or a newer peer in its place (checkRaft). destroy has the order of what follows.

// gcMessage tells a peer that it does not belong to its region any more.
func gcMessage(
	cluster, regionID uint64, epoch *metapb.RegionEpoch, from, to *metapb.Peer,
) *rspb.RaftMessage {
	return &rspb.RaftMessage{
		RegionId: regionID, FromPeer: from, ToPeer: to, RegionEpoch: epoch, IsTombstone: true,
		ClusterId: cluster,
	}
}

// onGCMessage destroys this peer if the sender's region is newer: it has checked that this store is
// not in it.
func (p *peer) onGCMessage(t *turn, rm *rspb.RaftMessage) {
	if rm.ToPeer.GetId() != p.self.Id || rm.RegionEpoch.GetConfVer() <= p.confVer() {
		return
	}
	p.logger.Info("destroying removed peer", log.Reason("told by another store"))
	p.destroy(t, regions.Told(p.region(), rm.RegionEpoch), nil)
}

// checkStale lets a peer that has long heard no leader ask the placement service whether it still
// belongs to its region: not every removed peer campaigns, so not every one gets an answer from the
// others (G6).
func (p *peer) checkStale(now time.Time) {
	if now.Before(p.times.stale) {
		return
	}
	interval := p.store.cfg.Raftstore.StalePeerCheck.Duration
	p.times.stale = now.Add(jitter(interval))
	if now.Sub(p.lastLeaderSeen) >= interval {
		p.store.ask.regionTruth(p.regionID)
	}
}

func (pt *placementTasks) regionTruth(regionID uint64) {
	pt.tasks.Submit(func(ctx context.Context) {
		region, err := pt.s.placement.RegionByID(ctx, regionID)
		if err == nil {
			_ = pt.s.Send(regionID, &message.RegionTruth{Region: region})
		}
	})
}

// onRegionTruth: the placement service has been asked whether this silent peer still belongs.
func (p *peer) onRegionTruth(t *turn, truth *metapb.Region) {
	if truth == nil {
		showItself(p, t)
		return
	}
	if truth.GetRegionEpoch().GetConfVer() <= p.confVer() ||
		regions.PeerByID(truth, p.self.Id) != nil {
		return
	}
	p.logger.Info("destroying removed peer", log.Reason("told by the placement service"))
	p.destroy(t, regions.Told(p.region(), truth.RegionEpoch), nil)
}

// showItself has the stores of all peers that a silent one knows look at what they have of its
// region, which the placement service does not know: it is too new, or it has gone into another
// one. In that case those stores have tombstones, and answer that it does not belong to the region
// (tellMerged). To a peer that lives the message says nothing new.
func showItself(p *peer, t *turn) {
	ids := slices.Collect(maps.Keys(p.cache))
	for _, q := range p.region().GetPeers() {
		if q.Id != p.self.Id {
			ids = append(ids, q.Id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		p.sendRaft(t, &eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgHeartbeatResponse, From: p.self.Id, To: id,
			Term: p.rn.Term(),
		})
	}
}

// destroy begins the end of a peer. From now on it answers everything with RegionNotFound; the rest
// happens in an order in which a crash anywhere is finished at the next start (G10):
//
//	apply worker: behind all earlier entries, forget the region; Tombstone{region, peer id}, synced
//	region runner: raft log deleted, synced -> data of the range cleared -> apply state gone
//	then: range map and router forget the region; only now may a newer peer be created
//
// region carries the epoch that the tombstone keeps. again is a raft message to route once the
// region is gone (it is for the newer peer).
func (p *peer) destroy(t *turn, region *metapb.Region, again *rspb.RaftMessage) {
	if p.stopped || (!p.initialized() && !p.store.ranges.beginDying(p.regionID)) {
		return // of a peer that a split takes over; the message that ends it comes again
	}
	p.sleep.wake() // ends its share in the store's accounts
	p.stopped = true
	p.logger.Info("destroying peer", zap.Uint64("conf-ver", region.GetRegionEpoch().GetConfVer()))
	p.endCommands(&regionerr.RegionNotFoundError{RegionID: p.regionID})
	p.lease.end()
	p.publish()
	task := &destroyTask{box: p.box, region: region, data: p.region(), peer: p.self, again: again}
	t.ends = append(t.ends, task.begin(p.store.regionRunner))
	p.store.regionRunner.cancel(p.regionID)
}

// refuse answers what arrives at a destroyed peer.
func (p *peer) refuse(m message.Msg) {
	switch m := m.(type) {
	case *message.Write:
		p.store.inflight.Add(-int64(len(m.Payload)))
		m.Callback.Fail(goneError(p.store.ranges, m.Header, m.MinKey))
	case *message.BecomeSplit:
		// The old peer is still being cleared away; the store worker tries again.
		p.store.creator.postpone(m)
	case *message.Inspect:
		m.Fn(nil)
	case *message.Applied:
		p.merge.endSources(m)
		p.split.createRightHalves(m)
	case *message.Absorbed:
		p.store.retireSource(nil, p.region(), p.self)
	case *message.CompareReplicas:
		m.Done(message.Comparison{}, &regionerr.RegionNotFoundError{RegionID: p.regionID})
	default:
		message.CallbackOf(m).Fail(&regionerr.RegionNotFoundError{RegionID: p.regionID})
	}
}

// destroyTask removes what is left of a peer.
type destroyTask struct {
	box    *mailbox       // nil if the peer does not run
	region *metapb.Region // with the epoch for the tombstone
	data   *metapb.Region // whose range holds data, if it is initialized
	peer   *metapb.Peer
	again  *rspb.RaftMessage
}

// begin is the apply worker's part: the tombstone, behind all earlier entries; then it is the
// region runner's turn.
func (t *destroyTask) begin(r *regionRunner) apply.Task {
	return apply.Task{RegionID: t.region.Id, End: &apply.End{
		Tombstone: t.region, Peer: t.peer, Then: func() { r.destroy(t) },
	}}
}

// destroy removes what is left of a peer whose tombstone is durable.
func (r *regionRunner) destroy(t *destroyTask) {
	r.add(func() error {
		s := r.store
		if err := r.keepTombstone(t); err != nil {
			return err
		}
		var lb logBatch
		lb.Delete(t.region.Id)
		if err := s.log.Write(&lb, true); err != nil {
			return err
		}
		if err := s.regionRunner.clearData(t.data); err != nil {
			return err
		}
		b := s.engine.NewBatch()
		b.Delete(meta.ApplyStateKey(t.region.Id))
		if err := s.engine.Write(b, false); err != nil {
			return err
		}
		s.snaps.DeleteRegion(t.region.Id)
		s.regionRunner.peerGone(t)
		s.logger.Info("destroyed peer", log.RegionID(t.region.Id), log.PeerID(t.peer.Id))
		return nil
	})
}

// keepTombstone makes the tombstone durable again if an installation that could not be canceled in
// time has put the state Normal over it. Without that a later start would find a region without an
// apply state (G8).
func (r *regionRunner) keepTombstone(t *destroyTask) error {
	st, err := meta.LoadRegionState(r.store.engine, t.region.Id)
	if err != nil || st.GetState() == rspb.PeerState_Tombstone {
		return err
	}
	b := r.store.engine.NewBatch()
	meta.PutRegionState(b, rspb.PeerState_Tombstone, t.region, t.peer)
	return r.store.engine.Write(b, true)
}

// clearData deletes the data of a region's range, but only where no other region of this store
// lives: the old range of a peer may have been taken over in part (I-1, I-2).
func (r *regionRunner) clearData(of *metapb.Region) error {
	if !regions.IsInitialized(of) {
		return nil
	}
	for _, free := range r.store.ranges.freeRanges(of) {
		if err := engine.ClearFamilies(r.store.engine, free.start, free.end); err != nil {
			return err
		}
	}
	return nil
}

// clear queues the clearing of a range that no region of this store has. A newer peer of the region
// itself may take the range meanwhile: then its data stays.
func (r *regionRunner) clear(region *metapb.Region) {
	nobody := *region
	nobody.Id = 0
	r.add(func() error { return r.clearData(&nobody) })
}

// peerGone is called by the region runner when nothing of a destroyed peer is left.
func (r *regionRunner) peerGone(task *destroyTask) {
	r.store.ranges.removeRegion(task.region.Id, task.peer.Id)
	if task.box != nil {
		for _, m := range r.store.router.close(task.box) {
			task.box.peer.refuse(m)
		}
	}
	if task.again != nil {
		_ = r.store.creator.send(task.again)
	}
}
