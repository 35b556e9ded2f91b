package raftstore

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/raft"
)

// A replica in quarantine is on disk and takes no part: it does not vote, does not count as having
// its entries, and serves nothing. Its data may be the last copy, so it is not deleted. It got
// there because a start or a read found damage, because its log ends before what it had
// acknowledged, or because the store runs on an older copy of its data.
//
// The store reports its damaged peers with each heartbeat, and the placement service replaces them.
// What is left here goes once the region's members say that the peer is none any more: by a message
// of a newer peer, or by what the placement service knows of the region.
type quarantine struct {
	s  *Store
	mu struct {
		sync.Mutex
		regions map[uint64]damagedReplica
	}
}

type damagedReplica struct {
	peer   *metapb.Peer
	region *metapb.Region
	reason error
}

// maxTruthQuestions bounds how many regions the placement service is asked about after one store
// heartbeat.
const maxTruthQuestions = 64

// errOldCopy: the whole store runs on data that is older than what it had promised.
var errOldCopy = errors.New(
	"raftstore: the data of this store is an older copy than what the store had promised")

func (q *quarantine) add(region *metapb.Region, peer *metapb.Peer, reason error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.regions == nil {
		q.mu.regions = map[uint64]damagedReplica{}
	}
	q.mu.regions[region.Id] = damagedReplica{peer, region, reason}
}

func (q *quarantine) remove(regionID uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.mu.regions, regionID)
}

func (q *quarantine) has(regionID uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, ok := q.mu.regions[regionID]
	return ok
}

// peers are the ids of the damaged peers, in rising order.
func (q *quarantine) peers() []uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	var ids []uint64
	for _, d := range q.mu.regions {
		ids = append(ids, d.peer.Id)
	}
	slices.Sort(ids)
	return ids
}

// ids are the regions of the damaged replicas, in rising order.
func (q *quarantine) ids() []uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Sorted(maps.Keys(q.mu.regions))
}

// some are at most n of the damaged replicas.
func (q *quarantine) some(n int) []damagedReplica {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]damagedReplica, 0, min(n, len(q.mu.regions)))
	for _, d := range q.mu.regions {
		if len(out) == n {
			break
		}
		out = append(out, d)
	}
	return out
}

// Quarantined lists damaged replicas that are not served, with the reason.
func (s *Store) Quarantined() map[uint64]string { return s.quarantine.reasons() }

// reasons are why the replicas are not served, by region; nil if there are none.
func (q *quarantine) reasons() map[uint64]string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.mu.regions) == 0 {
		return nil
	}
	out := map[uint64]string{}
	for id, d := range q.mu.regions {
		out[id] = d.reason.Error()
	}
	return out
}

// addQuarantine adds the damaged peers to a store heartbeat.
func (sr *storeReporter) addQuarantine(stats *schedulerpb.StoreStats) {
	stats.DamagedPeerIds = sr.s.quarantine.peers()
}

// releaseQuarantine asks the placement service whether damaged replicas still belong to their
// regions. One that does not is destroyed as if a member of its region had told so.
func (sr *storeReporter) releaseQuarantine(ctx context.Context) {
	for _, d := range sr.s.quarantine.some(maxTruthQuestions) {
		truth, err := sr.s.placement.RegionByID(ctx, d.region.Id)
		if err != nil {
			if ctx.Err() == nil {
				sr.s.logger.Debug("asking for the region of a damaged replica failed",
					log.RegionID(d.region.Id), zap.Error(err))
			}
			return
		}
		if truth.GetRegionEpoch().GetConfVer() <= d.region.GetRegionEpoch().GetConfVer() ||
			regions.PeerByID(truth, d.peer.Id) != nil || len(truth.GetPeers()) == 0 {
			continue
		}
		gone := gcMessage(sr.s.clusterID, truth.Id, truth.RegionEpoch, truth.Peers[0], d.peer)
		_ = sr.s.creator.send(gone) // or again after the next heartbeat
	}
}

// admit keeps a damaged replica on disk, but does not run it.
func (q *quarantine) admit(region *metapb.Region, self *metapb.Peer, err error) {
	q.s.logger.Error(
		"replica is damaged and will not be served; remove its peer, the region then gets a new one",
		log.RegionID(region.Id), log.PeerID(self.Id), zap.Error(err))
	q.s.ranges.setRegion(region, self.Id)
	q.add(region, self, err)
}

// onQuarantined removes a damaged replica when the region says that it does not belong any more.
func (cr *creator) onQuarantined(st *rspb.RegionLocalState, m *rspb.RaftMessage) {
	removed := m.IsTombstone && m.GetToPeer().GetId() == st.GetPeer().GetId() &&
		m.RegionEpoch.GetConfVer() > st.Region.GetRegionEpoch().GetConfVer()
	replaced := m.GetToPeer().GetId() > st.GetPeer().GetId()
	if !removed && !replaced {
		return
	}
	cr.s.quarantine.remove(m.RegionId)
	cr.s.logger.Info("removing damaged replica", log.RegionID(m.RegionId))
	region := st.Region
	if m.RegionEpoch.GetConfVer() > region.RegionEpoch.GetConfVer() {
		region = regions.Told(region, m.RegionEpoch)
	}
	task := &destroyTask{region: region, data: st.Region, peer: st.Peer}
	cr.s.appliers.forRegion(m.RegionId).Push(task.begin(cr.s.regionRunner))
}

var errDamaged = errors.New("raftstore: damaged replica")

// A read that fails says that this replica's disk is not what it was, while others have the same
// data. The error is the answer to the request; besides, ReadFailed:
//
//   - counts it (Counts, and with it metrics and status) and logs at most one line in
//     readErrorPause;
//   - has the region's leader hand its leadership over, at once, to a follower that is fit;
//   - has the replica quarantined afterwards, if the others suffice without it: it takes no part
//     any more, and the placement service replaces it. It is as it was after a restart, since all
//     that it has promised is on disk;
//   - has the store reported as slow from the second such region on, or when it happens again
//     later: nothing is placed there any more.
//
// A write that fails stops the store, and so does a read without which an entry cannot be applied.

// readErrorPause is between two log lines, and how much later an error counts as another event.
const readErrorPause = 10 * time.Second

type readErrors struct {
	s     *Store
	total atomic.Uint64
	again atomic.Bool
	mu    struct {
		sync.Mutex
		region uint64
		since  time.Time
		logged time.Time
	}
}

// ReadFailed takes the error of a read of a region's data. What says nothing about the disk is
// ignored. It never blocks.
func (s *Store) ReadFailed(regionID uint64, err error) {
	if !isDiskError(err) {
		return
	}
	s.readErrors.note(regionID, err)
	if b := s.router.get(regionID); b != nil && !b.sick.Swap(true) {
		_ = s.router.push(b, &message.ReadFailed{Err: err}) // or the peer is gone
	}
}

// isDiskError tells whether an error comes from a disk that does not give back what is on it: not
// from the request, the region, or the end of the store, and not from a disk that is full.
func isDiskError(err error) bool {
	if err == nil {
		return false
	}
	for _, other := range []error{
		engine.ErrClosed, regionerr.ErrStopping, regionerr.ErrFailed, runner.ErrBusy,
		context.Canceled, context.DeadlineExceeded,
		snap.ErrBusy, syscall.ENOSPC, syscall.EDQUOT,
	} {
		if errors.Is(err, other) {
			return false
		}
	}
	_, about := regionerr.ToProto(err)
	return !about
}

// note counts a failed read.
func (r *readErrors) note(regionID uint64, err error) {
	total, now := r.total.Add(1), r.s.clock.Now()
	r.mu.Lock()
	if r.mu.since.IsZero() {
		r.mu.region, r.mu.since = regionID, now
	} else if r.mu.region != regionID || now.Sub(r.mu.since) >= readErrorPause {
		r.again.Store(true)
	}
	say := r.mu.logged.IsZero() || now.Sub(r.mu.logged) >= readErrorPause
	if say {
		r.mu.logged = now
	}
	r.mu.Unlock()
	if say {
		r.s.logger.Error("reading failed",
			log.RegionID(regionID), zap.Uint64("read-errors", total), zap.Error(err))
	}
}

// sickness is what a peer knows of its failing reads.
type sickness struct {
	p   *peer
	err error
	// damaged: entries that it has promised are not what they were. It must not vote.
	damaged bool
	// diverged: its data are not those of the other replicas. It may vote, but must not be served,
	// nor after a restart.
	diverged bool
	// leave: when it stepped aside the others sufficed without it.
	leave bool
}

// reason is the reason for log lines.
func (si *sickness) reason() string {
	if si.diverged {
		return "its data differ from the other replicas'"
	}
	return "reading failed"
}

// note takes an error of a read, or what else says that this replica's data are not what they
// should be.
func (si *sickness) note(err error) {
	if si.err == nil {
		si.err = err
	}
	var d *raftlog.DamageError
	si.diverged = si.diverged || errors.Is(err, errDiverged)
	si.damaged = si.damaged || errors.As(err, &d) || errors.Is(err, apply.ErrUndecodable) ||
		errors.Is(err, apply.ErrNoSource) || errors.Is(err, errDamaged)
}

// tend lets a peer whose reads fail step aside, and end once another leads.
func (si *sickness) tend(t *turn) {
	if err := si.p.ps.readErr; err != nil {
		si.p.ps.readErr = nil
		si.p.store.readErrors.note(si.p.regionID, err)
		si.note(err)
	}
	if si.err == nil || si.p.stopped || si.p.installing != 0 || si.p.removed != nil {
		return
	}
	if si.p.isLeader() {
		si.stepAside()
		return
	}
	if si.p.rn.Lead() == raft.None {
		return
	}
	if si.leave || (si.damaged || si.diverged) && si.p.initialized() {
		si.retire(t)
		return
	}
	*si = sickness{p: si.p}
	si.p.box.sick.Store(false)
}

// stepAside hands leadership over. Without anyone to lead instead, the peer goes on: it may be the
// last one, and what it can read is better than nothing.
func (si *sickness) stepAside() {
	if si.p.rn.LeadTransferee() != raft.None {
		return
	}
	to := si.p.transfer.best()
	if to == nil {
		if regions.VoterCount(si.p.region()) == 1 && !si.damaged && !si.diverged {
			*si = sickness{p: si.p}
			si.p.box.sick.Store(false)
		}
		return
	}
	si.leave = si.othersSuffice()
	si.p.logger.Warn("stepping aside", log.Reason(si.reason()), zap.Error(si.err))
	si.p.transfer.start(to.Id)
}

// othersSuffice tells whether the healthy voters besides this leader are a majority.
func (si *sickness) othersSuffice() bool {
	healthy := 0
	for _, q := range si.p.region().Peers {
		if q.Id == si.p.self.Id || si.p.transfer.check(q) != nil {
			continue
		}
		if pr, _ := si.p.rn.ProgressOf(q.Id); pr.RecentActive {
			healthy++
		}
	}
	return healthy >= regions.VoterCount(si.p.region())/2+1
}

// retire quarantines a running replica. Its apply worker comes to the end of what is committed
// first; then the mailbox closes.
func (si *sickness) retire(t *turn) {
	si.p.sleep.wake()
	si.p.stopped = true
	si.p.logger.Error("replica is not served any more; the region gets a new one",
		log.Reason(si.reason()), zap.Error(si.err))
	si.p.endCommands(&regionerr.RegionNotFoundError{RegionID: si.p.regionID})
	si.p.lease.end()
	si.p.publish()
	si.p.store.quarantine.add(si.p.region(), si.p.self, si.err)
	end := &apply.End{Then: func() { si.p.store.quarantine.peerRetired(si.p.box) }}
	if si.damaged || si.diverged {
		end.Damaged = si.err.Error() // a restart does not mend it
	}
	t.ends = append(t.ends, apply.Task{RegionID: si.p.regionID, End: end})
}

// peerRetired is called by the apply worker when it has nothing of a retired peer any more.
func (q *quarantine) peerRetired(b *mailbox) {
	for _, m := range q.s.router.close(b) {
		b.peer.refuse(m)
	}
}
