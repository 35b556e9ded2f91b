package sim

import (
	"slices"
	"time"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// Send implements schedule.Sender: the command reaches the store a little later.
func (s *Sim) Send(storeID uint64, resp *schedulerpb.RegionHeartbeatResponse) {
	s.Stats.Commands++
	s.after(commandLatency, func() { s.execute(storeID, resp) })
}

// execute does what a region's leader does with a command.
func (s *Sim) execute(storeID uint64, resp *schedulerpb.RegionHeartbeatResponse) {
	r := s.byID[resp.RegionId]
	if r == nil || r.frozen || r.leader != storeID || !s.usable(storeID) || !s.hasQuorum(r) {
		return
	}
	e := r.meta.RegionEpoch
	if resp.RegionEpoch.GetVersion() != e.Version || resp.RegionEpoch.GetConfVer() != e.ConfVer {
		return
	}
	switch {
	case resp.TransferLeader != nil:
		s.after(transferTime, func() { s.transfer(r, resp.TransferLeader.Peer) })
	case resp.ChangePeer != nil:
		s.after(confChangeTime, func() { s.changePeer(r, e, resp.ChangePeer) })
	case resp.Merge != nil:
		s.after(freezeTime, func() { s.freeze(r, e, resp.Merge.Target) })
	}
}

func (s *Sim) transfer(r *Region, to *metapb.Peer) {
	i := slices.IndexFunc(r.meta.Peers, func(p *metapb.Peer) bool { return p.Id == to.Id })
	if i < 0 || r.frozen || isLearner(r.meta.Peers[i]) || !s.canServe(r, to) ||
		!s.usable(r.leader) {
		return
	}
	if r.leader != to.StoreId {
		r.leader = to.StoreId
		r.term++
		s.Stats.Transfers++
		s.changed(r)
	}
}

func (s *Sim) changePeer(r *Region, e *metapb.RegionEpoch, cp *schedulerpb.ChangePeer) {
	if r.meta.RegionEpoch != e || r.frozen || !s.usable(r.leader) || !s.hasQuorum(r) {
		return // another change came first: the epoch does not fit any more
	}
	next := *r.meta
	next.RegionEpoch = &metapb.RegionEpoch{Version: e.Version, ConfVer: e.ConfVer + 1}
	before, votersBefore := s.healthy(r, r.meta), voters(r.meta)
	switch cp.ChangeType {
	case eraftpb.ConfChangeType_AddNode, eraftpb.ConfChangeType_AddLearnerNode:
		if !s.add(r, &next, cp) {
			return
		}
	case eraftpb.ConfChangeType_RemoveNode:
		if cp.Peer.StoreId == r.leader {
			s.faultf("region %d: the leader got the command to remove itself", r.meta.Id)
			return
		}
		next.Peers = slices.DeleteFunc(slices.Clone(next.Peers), func(p *metapb.Peer) bool {
			return p.Id == cp.Peer.Id
		})
		if len(next.Peers) == len(r.meta.Peers) {
			return
		}
		s.checkRemoval(r, &next, cp.Peer.Id)
		delete(r.sick, cp.Peer.Id)
		delete(r.noData, cp.Peer.Id)
		delete(s.stores[cp.Peer.StoreId].regions, r)
	default:
		return
	}
	r.meta = &next
	if after := s.healthy(r, r.meta); after <= voters(r.meta)/2 && before > votersBefore/2 {
		s.faultf("region %d: a command left %d healthy of %d voters", next.Id, after,
			voters(r.meta))
	}
	if cp.ChangeType == eraftpb.ConfChangeType_RemoveNode {
		s.afterRemove(r, cp.Peer.StoreId)
	}
	s.changed(r)
}

// add gives a region a new peer, or a learner that it has its vote. It tells whether that changed
// anything.
func (s *Sim) add(r *Region, next *metapb.Region, cp *schedulerpb.ChangePeer) bool {
	voter := cp.ChangeType == eraftpb.ConfChangeType_AddNode
	p := &metapb.Peer{Id: cp.Peer.Id, StoreId: cp.Peer.StoreId, Role: metapb.PeerRole_Voter}
	if i := slices.IndexFunc(next.Peers, func(q *metapb.Peer) bool {
		return q.StoreId == p.StoreId
	}); i >= 0 {
		if old := next.Peers[i]; old.Id != p.Id || !isLearner(old) || !voter {
			return false
		}
		if r.noData[p.Id] {
			s.faultf("region %d: learner %d was to be promoted without data", r.meta.Id, p.Id)
			return false
		}
		next.Peers = slices.Clone(next.Peers)
		next.Peers[i] = p
		return true
	}
	if voter {
		s.faultf("region %d: an empty voter was added", r.meta.Id)
	} else {
		p.Role = metapb.PeerRole_Learner
	}
	s.beforeAdd(r)
	next.Peers = append(slices.Clip(next.Peers), p)
	r.noData[p.Id] = true
	s.stores[p.StoreId].regions[r] = struct{}{}
	s.snapshot(r, p)
	return true
}

// snapshot gives a new replica its data after a while.
func (s *Sim) snapshot(r *Region, p *metapb.Peer) {
	sec := 0.2 + float64(r.size)/s.opts.RateMiB*(0.5+s.rng.Float64())
	s.after(time.Duration(sec*float64(time.Second)), func() { s.snapshotDone(r, p) })
}

func (s *Sim) snapshotDone(r *Region, p *metapb.Peer) {
	if !r.noData[p.Id] {
		return // removed meanwhile
	}
	if !s.usable(p.StoreId) || s.stores[p.StoreId].stalled || r.leader == 0 || !s.usable(r.leader) {
		s.after(electionTimeout, func() { s.snapshotDone(r, p) })
		return
	}
	delete(r.noData, p.Id)
	s.Stats.PeersAdded++
	s.Stats.BytesMoved += r.size
	if s.Stats.measuring {
		r.moves++
		if slices.Contains(r.trail, p.StoreId) {
			s.Stats.PingPong++
		}
		r.trail = append(r.trail, p.StoreId)
		s.Stats.lastMove = s.now
	}
	s.changed(r)
}

// Sicken makes the replicas of n regions that have one on the store, and none that is sick, take no
// part any more.
func (s *Sim) Sicken(id uint64, n int, damaged bool) {
	st := s.stores[id]
	st.sickened = true
	for _, r := range s.regions {
		i := slices.IndexFunc(r.meta.Peers, func(p *metapb.Peer) bool { return p.StoreId == id })
		if n == 0 || i < 0 || len(r.sick) > 0 {
			continue
		}
		n--
		r.sick = map[uint64]sickness{r.meta.Peers[i].Id: {damaged, s.now}}
		if r.leader == id {
			r.leader = 0
		}
	}
	s.elections()
	s.storeBeat(st)
}

// Disk sets what syncs take at a store.
func (s *Sim) Disk(id uint64, sync time.Duration) {
	st := s.stores[id]
	st.sync = sync
	s.storeBeat(st)
	s.after(2*time.Second, func() { s.storeBeat(st) })
}

// Label gives a store labels while the cluster runs.
func (s *Sim) Label(id uint64, labels ...*metapb.StoreLabel) {
	s.stores[id].labels = labels
	set := map[string]string{}
	for _, l := range labels {
		set[l.Key] = l.Value
	}
	s.cluster.Core().UpdateStore(id, core.WithLabels(set))
	s.cluster.Planner().Wake()
}

// damagedOn are the peers that a store reports as damaged.
func (s *Sim) damagedOn(st *Store) []uint64 {
	var out []uint64
	for r := range st.regions {
		for _, p := range r.meta.Peers {
			if p.StoreId == st.id && r.sick[p.Id].damaged {
				out = append(out, p.Id)
			}
		}
	}
	slices.Sort(out)
	return out
}

// Kill stops a store; its leaders are replaced after an election timeout.
func (s *Sim) Kill(id uint64) { s.stores[id].alive = false }

// Restart brings a store back.
func (s *Sim) Restart(id uint64) {
	s.stores[id].alive = true
	s.storeBeat(s.stores[id])
}

// Cut separates a store from the others. What it leads it goes on reporting, as the leader it
// believes to be.
func (s *Sim) Cut(id uint64) {
	st := s.stores[id]
	for _, r := range s.regions {
		if r.leader == id {
			r.stale = s.heartbeat(r)
		}
	}
	st.cut = true
	s.elections()
}

// Heal ends a cut.
func (s *Sim) Heal(id uint64) {
	s.stores[id].cut = false
	for _, r := range s.regions {
		r.stale = nil
	}
}
