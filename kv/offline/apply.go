package offline

import (
	"errors"
	"fmt"
	"math"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/pkg/recovery"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// Applied counts what a plan changed in a store.
type Applied struct {
	Reborn, Ended, Filled int
}

// Apply carries out this store's part of a plan: regions that go on as one replica, replicas that
// end, and empty regions in the place of holes. Everything is checked first. The raft logs of new
// regions come first, then all else in one synced batch: a crash leaves nothing or all of it, and a
// plan can be applied again.
//
// A replica that is not as the plan has it is an error: the plan was made from another state.
func (s *Store) Apply(plan *recovery.Regions) (Applied, error) {
	var done Applied
	if plan.ClusterID != s.Ident.ClusterId {
		return done,
			fmt.Errorf("the plan is about cluster %d, this is store %d of cluster %d",
				plan.ClusterID, s.Ident.StoreId, s.Ident.ClusterId)
	}
	for _, lost := range plan.Lost {
		if lost == s.Ident.StoreId {
			return done,
				fmt.Errorf(
					"store %d is lost by the plan; it must not come back: start with an empty data directory", lost)
		}
	}
	snap := s.engine.NewSnapshot()
	defer snap.Close()
	b := s.engine.NewBatch()
	var lb raftlog.Batch
	var errs []error
	count := func(n *int, changed bool, err error) {
		if changed {
			*n++
		}
		errs = append(errs, err)
	}
	for i := range plan.Rebirths {
		if r := &plan.Rebirths[i]; r.StoreID == s.Ident.StoreId {
			changed, err := s.rebirth(snap, b, r)
			count(&done.Reborn, changed, err)
		}
	}
	for i := range plan.Ends {
		if e := &plan.Ends[i]; e.StoreID == s.Ident.StoreId {
			changed, err := s.end(snap, b, e)
			count(&done.Ended, changed, err)
		}
	}
	for _, h := range plan.Holes {
		if h.Fill != nil && h.Fill.Peers[0].StoreID == s.Ident.StoreId {
			changed, err := s.fill(snap, b, &lb, h.Fill)
			count(&done.Filled, changed, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Applied{}, err
	}
	if !lb.Empty() {
		if err := s.log.Write(&lb, true); err != nil {
			return Applied{}, err
		}
	}
	if b.Len() == 0 {
		return done, nil
	}
	return done, s.engine.Write(b, true)
}

func toRegion(r *recovery.Region) *metapb.Region {
	m := &metapb.Region{
		Id: r.ID, StartKey: r.Start, EndKey: r.End,
		RegionEpoch: &metapb.RegionEpoch{Version: r.Version, ConfVer: r.ConfVer},
	}
	for _, p := range r.Peers {
		m.Peers = append(m.Peers, &metapb.Peer{Id: p.ID, StoreId: p.StoreID})
		m.MaxPeerId = max(m.MaxPeerId, p.ID)
	}
	return m
}

// rebirth makes the replica the only member of its region.
func (s *Store) rebirth(snap engine.Snapshot, b engine.Batch, r *recovery.Rebirth) (bool, error) {
	st, err := meta.LoadRegionState(snap, r.Was.ID)
	if err != nil {
		return false, err
	}
	epoch := st.GetRegion().GetRegionEpoch()
	if st != nil && epoch.GetConfVer() == r.Becomes.ConfVer &&
		epoch.GetVersion() == r.Becomes.Version {
		return false, nil // applied before
	}
	ls, _ := s.log.State(r.Was.ID)
	switch {
	case st == nil || st.GetPeer().GetId() != r.PeerID:
		return false, fmt.Errorf("region %d: peer %d is not here", r.Was.ID, r.PeerID)
	case st.State != rspb.PeerState_Normal || st.Damaged != "":
		return false,
			fmt.Errorf("region %d: the replica is %v %s and cannot go on alone", r.Was.ID, st.State,
				st.Damaged)
	case epoch.GetConfVer() != r.Was.ConfVer || epoch.GetVersion() != r.Was.Version:
		return false,
			fmt.Errorf("region %d: its epoch is %d:%d, the plan was made at %d:%d; make a new plan",
				r.Was.ID,
				epoch.GetVersion(), epoch.GetConfVer(), r.Was.Version, r.Was.ConfVer)
	case ls.LastTerm < r.LastTerm || ls.LastTerm == r.LastTerm && ls.Last < r.LastIndex:
		return false,
			fmt.Errorf(
				"region %d: its raft log ends at %d of term %d, before what it had when the plan was made", r.Was.ID, ls.Last, ls.LastTerm)
	}
	region := toRegion(&r.Becomes)
	region.MaxPeerId = max(region.MaxPeerId, st.Region.MaxPeerId)
	// What merges it had up to its new epoch, which does not come from its log, is not known to
	// those who ask.
	region.Merges, region.MergesFloor = st.Region.Merges, math.MaxUint64
	region.ExpiryFloor = st.Region.ExpiryFloor
	meta.PutRegionState(b, rspb.PeerState_Normal, region, region.Peers[0])
	return true, nil
}

// end leaves a tombstone; the next start clears the rest.
func (s *Store) end(snap engine.Snapshot, b engine.Batch, e *recovery.End) (bool, error) {
	st, err := meta.LoadRegionState(snap, e.RegionID)
	if err != nil || st == nil || st.State == rspb.PeerState_Tombstone {
		return false, err
	}
	if st.GetPeer().GetId() != e.PeerID {
		return false, fmt.Errorf("region %d: peer %d is not here", e.RegionID, e.PeerID)
	}
	region := regions.Told(st.Region, &metapb.RegionEpoch{Version: e.Version, ConfVer: e.ConfVer})
	meta.PutRegionState(b, rspb.PeerState_Tombstone, region, st.Peer)
	return true, nil
}

// fill begins an empty region.
func (s *Store) fill(
	snap engine.Snapshot, b engine.Batch, lb *raftlog.Batch, r *recovery.Region,
) (bool, error) {
	st, err := meta.LoadRegionState(snap, r.ID)
	if err != nil || st != nil {
		return false, err
	}
	lb.Reset(r.ID, meta.InitLogIndex, meta.InitLogTerm)
	lb.SetHardState(r.ID, meta.InitialHardState())
	region := toRegion(r)
	meta.PutRegionState(b, rspb.PeerState_Normal, region, region.Peers[0])
	meta.Put(b, meta.ApplyStateKey(r.ID), meta.InitialApplyState())
	return true, nil
}
