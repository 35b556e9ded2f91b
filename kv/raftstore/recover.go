package raftstore

import (
	"bytes"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// What a start finds is one of these, per region:
//
//	engine state   raft log                     then
//	------------   --------------------------   ------------------------------------------------------
//	Normal         reaches the applied index    run; entries after the applied index are applied again
//	Normal, new    none, or only a vote         the crash came between a split and its log: begin the log
//	Normal         shorter, or damaged          quarantine: the replica promised more than it has; it does
//	                                            not vote, and is replaced through the placement service
//	Normal, no peers  any but damaged           uninitialized peer: run, it waits for a raft snapshot
//	any but Tombstone  damaged                  quarantine: a vote may be among what is lost
//	Merging        as Normal                    as Normal; the region is frozen again before anyone can ask it
//	Applying       any but damaged              reset the log to the snapshot, install it again
//	Tombstone      any                          finish the clean-up
//	none           some                         a region that the engine does not know yet: kept; its vote
//	                                            and entries are adopted when a split or a message makes it; if it is
//	                                            damaged, the replica is then quarantined instead
//
// Data in ranges that belong to no region is what an unfinished destruction left: it is cleared.

// recovery is the start of a store.
type recovery struct{ s *Store }

// run builds the peers. Called before any goroutine runs.
func (rc *recovery) run() error {
	if err := rc.settleApplied(); err != nil {
		return err
	}
	snap := rc.s.engine.NewSnapshot()
	defer snap.Close()
	var ranges []*metapb.Region
	var tombstones []uint64
	count := 0
	err := meta.VisitRegionStates(snap, func(st *rspb.RegionLocalState) error {
		if st.State == rspb.PeerState_Tombstone {
			tombstones = append(tombstones, st.Region.Id)
			return nil
		}
		if regions.IsInitialized(st.Region) {
			ranges = append(ranges, st.Region)
		}
		count++
		return wrapRecover(st.Region.Id, rc.recoverPeer(snap, st))
	})
	if err != nil {
		return err
	}
	if err := checkDisjoint(ranges); err != nil {
		return err
	}
	if err := rc.finishTombstones(tombstones); err != nil {
		return err
	}
	if err := rc.clearOrphans(snap, ranges); err != nil {
		return err
	}
	rc.s.logger.Info("recovered peers", zap.Int("count", count),
		zap.Int("tombstones", len(tombstones)))
	return nil
}

// settleApplied moves what the apply workers' tables say into the regions' apply states, so that
// those alone count from here on.
func (rc *recovery) settleApplied() error {
	snap := rc.s.engine.NewSnapshot()
	defer snap.Close()
	b := rc.s.engine.NewBatch()
	if err := meta.SettleApplied(snap, b); err != nil {
		return fmt.Errorf("recover applied indexes: %w", err)
	}
	if b.Len() == 0 {
		return nil
	}
	return rc.s.engine.Write(b, false)
}

func checkDisjoint(all []*metapb.Region) error {
	slices.SortFunc(all, func(a, b *metapb.Region) int {
		return bytes.Compare(a.StartKey, b.StartKey)
	})
	for i := 1; i < len(all); i++ {
		if a, b := all[i-1], all[i]; regions.Overlap(a.StartKey, a.EndKey, b.StartKey, b.EndKey) {
			return fmt.Errorf("%w: regions %d and %d overlap", engine.ErrCorrupt, a.Id, b.Id)
		}
	}
	return nil
}

func (rc *recovery) recoverPeer(snap engine.Snapshot, st *rspb.RegionLocalState) error {
	region, self := st.Region, st.Peer
	if self == nil {
		self = regions.PeerOnStore(region, rc.s.storeID)
	}
	if self == nil || self.StoreId != rc.s.storeID {
		return fmt.Errorf("%w: no peer of store %d in its state", engine.ErrCorrupt, rc.s.storeID)
	}
	if st.State == rspb.PeerState_Merging {
		// Whether its peer runs or not: the target's entry, or its raft snapshot, takes the range.
		rc.s.ranges.freeze(frozenRegion{region: region, peer: self, state: st.Merging})
	}
	if err := rc.s.log.Damaged(region.Id); err != nil {
		// Whatever the state is: a reset would forget the damage, and with it perhaps a vote.
		rc.s.quarantine.admit(region, self, err)
		return nil
	}
	if self.Id <= rc.s.quarantineThrough {
		rc.s.quarantine.admit(region, self, errOldCopy)
		return nil
	}
	if st.Damaged != "" {
		rc.s.quarantine.admit(region, self, fmt.Errorf("%w: %s", errDamaged, st.Damaged))
		return nil
	}
	if st.State == rspb.PeerState_Applying {
		return rc.recoverApplying(st, self)
	}
	if !regions.IsInitialized(region) {
		blank := &metapb.Region{Id: region.Id, RegionEpoch: &metapb.RegionEpoch{}}
		return rc.add(origin{
			region: blank, self: self, bornAt: region.GetRegionEpoch().GetConfVer(),
			from: st.CreatedBy,
		}, nil)
	}
	apply, err := meta.LoadApplyRecord(snap, region.Id)
	if err != nil {
		return err
	}
	if apply == nil {
		return fmt.Errorf("%w: no apply state", engine.ErrCorrupt)
	}
	if err := rc.beginLog(region.Id, apply); err != nil {
		return err
	}
	if err := rc.checkLog(region.Id, apply); err != nil {
		rc.s.quarantine.admit(region, self, err)
		return nil
	}
	var merging *rspb.MergingState
	if st.State == rspb.PeerState_Merging {
		merging = st.Merging
	}
	return rc.add(origin{
		region: region, self: self, applied: apply.AppliedIndex, truncated: *apply.TruncatedState,
		merging: merging,
	}, nil)
}

// beginLog makes the log of a region that a split has created, if a crash came in between. Errors
// are IO errors.
func (rc *recovery) beginLog(regionID uint64, apply *rspb.RaftApplyState) error {
	if st, ok := rc.s.log.State(regionID); ok && st.Last != 0 || !meta.IsInitialApplyState(apply) {
		return nil
	}
	var b logBatch
	initialLogState(&b, rc.s.log, regionID)
	return rc.s.log.Write(&b, true)
}

// checkLog verifies that the raft log has what the engine says was applied from it. Errors are
// damage.
func (rc *recovery) checkLog(regionID uint64, apply *rspb.RaftApplyState) error {
	st, ok := rc.s.log.State(regionID)
	switch {
	case !ok:
		return fmt.Errorf("%w: applied index %d, but no raft log", errDamaged, apply.AppliedIndex)
	case st.Last < apply.AppliedIndex:
		return fmt.Errorf("%w: applied index %d, but the raft log ends at %d", errDamaged,
			apply.AppliedIndex, st.Last)
	case st.TruncatedIndex > apply.AppliedIndex:
		return fmt.Errorf("%w: applied index %d, but the raft log begins after %d", errDamaged,
			apply.AppliedIndex, st.TruncatedIndex)
	}
	return nil
}

// recoverApplying resumes the installation of a raft snapshot. The log may not have been reset yet.
func (rc *recovery) recoverApplying(st *rspb.RegionLocalState, self *metapb.Peer) error {
	md := st.Applying
	if md == nil || md.Index == 0 {
		return fmt.Errorf("%w: state Applying without a snapshot", engine.ErrCorrupt)
	}
	ls, _ := rc.s.log.State(st.Region.Id)
	if ls.TruncatedIndex < md.Index {
		var b logBatch
		hs := ls.HardState
		hs.Term, hs.Commit = max(hs.Term, md.Term), max(hs.Commit, md.Index)
		if hs.Term != ls.HardState.Term {
			hs.Vote = 0
		}
		b.Reset(st.Region.Id, md.Index, md.Term)
		b.SetHardState(st.Region.Id, hs)
		if err := rc.s.log.Write(&b, true); err != nil {
			return err
		}
	}
	cf, err := rc.s.snaps.ReceivedMeta(st.Region.Id, md.Term, md.Index)
	if err != nil {
		rc.s.quarantine.admit(st.Region, self,
			fmt.Errorf("%w: raft snapshot to install: %w", errDamaged, err))
		return nil
	}
	truncated := rspb.RaftTruncatedState{Index: md.Index, Term: md.Term}
	return rc.add(origin{
		region: st.Region, self: self, applied: md.Index, truncated: truncated,
		installing: md.Index,
	}, &installTask{
		region: st.Region, old: st.Region, peer: self, files: cf, index: md.Index, term: md.Term,
	})
}

// add makes a peer that goes on where it was. install is the installation to resume, nil if none.
func (rc *recovery) add(o origin, install *installTask) error {
	o.grace = true
	p, err := newPeer(rc.s, o)
	if err != nil {
		return err
	}
	rc.s.ranges.setRegion(o.region, o.self.Id)
	rc.s.router.register(p)
	if install != nil {
		rc.s.regionRunner.install(install)
	} else {
		rc.s.appliers.forRegion(o.region.Id).Push(p.beginTask())
		if o.merging == nil {
			rc.s.ticker.layDormant(p)
		}
	}
	return rc.s.router.push(p.box, &message.Start{})
}

// finishTombstones removes what a crash in mid-destruction left of peers besides their tombstone.
func (rc *recovery) finishTombstones(ids []uint64) error {
	var lb logBatch
	eb := rc.s.engine.NewBatch()
	for _, id := range ids {
		if _, ok := rc.s.log.State(id); ok {
			lb.Delete(id)
		}
		if _, found, err := rc.s.engine.Get(meta.ApplyStateKey(id)); err != nil {
			return err
		} else if found {
			eb.Delete(meta.ApplyStateKey(id))
		}
	}
	if !lb.Empty() {
		// What the log could replay must be durable: the data of a region that went into another
		// one has gone on.
		if err := rc.s.engine.Sync(); err != nil {
			return err
		}
		if err := rc.s.log.Write(&lb, true); err != nil {
			return err
		}
	}
	if eb.Len() > 0 {
		return rc.s.engine.Write(eb, false)
	}
	return nil
}

// clearOrphans clears data between the ranges of the regions, which are sorted and disjoint.
func (rc *recovery) clearOrphans(snap engine.Snapshot, sorted []*metapb.Region) error {
	start := []byte{}
	for _, r := range sorted {
		if bytes.Compare(start, r.StartKey) < 0 {
			if err := rc.clearUserRange(snap, start, r.StartKey); err != nil {
				return err
			}
		}
		if len(r.EndKey) == 0 {
			return nil
		}
		start = r.EndKey
	}
	return rc.clearUserRange(snap, start, nil)
}

// clearUserRange deletes the user keys in [start, end) of all column families.
func (rc *recovery) clearUserRange(snap engine.Snapshot, start, end []byte) error {
	for _, cf := range engine.AllCFs {
		lo, hi := engine.DataKey(cf, start), engine.DataEndKey(cf, end)
		it := snap.NewIterator(lo, hi)
		it.First()
		any, err := it.Valid(), it.Err()
		it.Close()
		if err != nil {
			return err
		}
		if any {
			rc.s.logger.Info("clearing data that belongs to no region", log.Key("start-key", start),
				log.Key("end-key", end))
			if err := engine.ClearRange(rc.s.engine, lo, hi); err != nil {
				return err
			}
		}
	}
	return nil
}

func wrapRecover(regionID uint64, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("recover region %d: %w", regionID, err)
}
