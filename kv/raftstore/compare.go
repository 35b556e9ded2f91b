package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// Replicas are compared with each other, so that bytes that changed below or above the checksums of
// one store do not stay unnoticed until that replica leads:
//
//  1. The leader proposes ComputeHash. The entry changes nothing.
//  2. Each replica that applies it takes an engine snapshot, which shows the data as of that entry, and its runner.Hasher
//     hashes it. A follower sends the hash to its leader (ReplicaHash in a RaftMessage).
//  3. Once all have answered, or the time is over, the leader judges. A replica whose hash is not that of most voters is
//     told so: it is quarantined, also after a restart, and the placement service replaces it. A leader steps aside
//     first. If no hash is that of most voters nobody knows which one is right: the region is reported and nothing is
//     touched.
//
// A hash that does not come (a slow replica, an older version, a message that got lost) says
// nothing. Reading all data also finds damaged blocks: they are failed reads, see quarantine.go.
//
// Time is divided into slots of Raftstore.CompareInterval, which begin at another time for each
// region. Each replica notes in which slot its region was last found equal, and the leader compares
// when that is not the current one. So a change of the leader neither repeats nor drops a
// comparison. A peer begins with the slot it is created in.

// errDiverged: a replica's data are not those of most replicas.
var errDiverged = errors.New(
	"raftstore: the data of this replica differ from those of most replicas")

const (
	// compareWait is how long a leader waits for hashes.
	compareWait = 5 * time.Minute
	// compareRetry is how soon a region is compared again of which not all replicas have answered,
	// or which differ.
	compareRetry = 10 * time.Minute
	// compareLook is how often a store looks for regions that are due.
	compareLook = time.Minute
)

// comparer is a peer's part in it.
type comparer struct {
	p *peer
	// current is the comparison that this leader carries out, nil if none; hashed is the last hash
	// of this replica's own data.
	current *comparison
	hashed  rspb.ReplicaHash
}

// comparison is a leader's comparison that is under way.
type comparison struct {
	asked       *message.CompareReplicas
	index, term uint64
	hashes      map[uint64]uint64
}

// begin begins a comparison.
func (cr *comparer) begin(m *message.CompareReplicas) {
	refuse := func(err error) { m.Done(message.Comparison{}, err) }
	if err := cr.p.checkHeader(m.Header, false, false, zeroTime); err != nil {
		refuse(err)
		return
	}
	if c := cr.current; c != nil {
		if c.term == cr.p.rn.Term() {
			refuse(&regionerr.BusyError{
				Reason: "the replicas of this region are being compared already",
			})
			return
		}
		cr.drop(cr.p.notLeader()) // of an earlier leadership
	}
	cr.p.flushWrites()
	admin := &message.Admin{
		Request: &raft_cmdpb.AdminRequest{CmdType: raft_cmdpb.AdminCmdType_ComputeHash},
	}
	if !cr.p.proposeAdmin(admin) {
		refuse(&regionerr.BusyError{Reason: "the region takes no commands at the moment"})
		return
	}
	cr.current = &comparison{
		asked: m, index: cr.p.rn.LastIndex(), term: cr.p.rn.Term(), hashes: map[uint64]uint64{},
	}
}

// drop ends a comparison that cannot be judged.
func (cr *comparer) drop(cause error) {
	if cr.current != nil {
		cr.current.asked.Done(message.Comparison{}, cause)
		cr.current = nil
	}
}

// onHashed takes the hash of this replica's own data.
func (cr *comparer) onHashed(t *turn, m *message.Hashed) {
	if m.PeerID != cr.p.self.Id {
		return
	}
	if m.Err != nil {
		cr.p.store.ReadFailed(cr.p.regionID, fmt.Errorf("hash the region: %w", m.Err))
		return
	}
	cr.hashed = rspb.ReplicaHash{Index: m.Index, Term: m.Term, Hash: m.Hash}
	if cr.p.isLeader() {
		cr.note(t, cr.p.self.Id, &cr.hashed)
		return
	}
	if leader := cr.p.leaderPeer(); leader != nil {
		own := cr.hashed
		cr.send(t, leader, &own)
	}
}

// onReplicaHash takes a hash from a follower, or a verdict from the leader.
func (cr *comparer) onReplicaHash(t *turn, rm *rspb.RaftMessage) {
	h, from := rm.Hash, rm.FromPeer.GetId()
	if h.Verdict == rspb.ReplicaHash_None {
		if cr.p.isLeader() {
			cr.note(t, from, h)
		}
		return
	}
	if cr.p.isLeader() || from != cr.p.rn.Lead() || h.Term != cr.p.rn.Term() {
		return // of a leader that is none any more
	}
	cr.takeVerdict(h)
}

// note takes a replica's answer, and judges if it was the last one.
func (cr *comparer) note(t *turn, from uint64, h *rspb.ReplicaHash) {
	c := cr.current
	if c == nil || h.Index != c.index || h.Term != c.term ||
		regions.PeerByID(cr.p.region(), from) == nil {
		return
	}
	c.hashes[from] = h.Hash
	for _, q := range cr.p.region().Peers {
		if _, known := c.hashes[q.Id]; !known {
			return
		}
	}
	cr.end(t)
}

// end judges by the answers that have come.
func (cr *comparer) end(t *turn) {
	c := cr.current
	if !cr.p.isLeader() || cr.p.rn.Term() != c.term {
		cr.drop(cr.p.notLeader())
		return
	}
	cr.current = nil
	out, majority := judge(cr.p.region(), c.hashes)
	out.Index = c.index
	cr.p.store.comparisons.note(cr.p, &out)
	verdict := rspb.ReplicaHash{
		Index: c.index, Term: c.term, Hash: majority, Verdict: rspb.ReplicaHash_Majority,
	}
	if out.Equal() {
		verdict.Verdict = rspb.ReplicaHash_Equal
	}
	if out.Equal() || len(out.Diverged) > 0 {
		for _, q := range cr.p.region().Peers {
			if q.Id != cr.p.self.Id {
				v := verdict
				cr.send(t, q, &v)
			}
		}
		cr.takeVerdict(&verdict)
	}
	c.asked.Done(out, nil)
}

// judge compares the hashes of a region's replicas. The majority's hash is that of more than half
// of the voters, counted among all of them: what has not answered agrees with nobody. Learners are
// judged and do not count.
func judge(
	region *metapb.Region, hashes map[uint64]uint64,
) (out message.Comparison, majority uint64) {
	out = message.Comparison{Region: region, Hashes: map[uint64]uint64{}}
	votes, differ := map[uint64]int{}, map[uint64]bool{}
	decided := false
	for _, q := range region.Peers {
		h, known := hashes[q.Id]
		if !known {
			continue
		}
		out.Hashes[q.Id], differ[h] = h, true
		if regions.IsLearner(q) {
			continue
		}
		votes[h]++
		if votes[h] > regions.VoterCount(region)/2 {
			majority, decided = h, true
		}
	}
	if len(differ) < 2 {
		return out, majority
	}
	if !decided {
		out.Undecided = true
		return out, 0
	}
	for id, h := range out.Hashes {
		if h != majority {
			out.Diverged = append(out.Diverged, id)
		}
	}
	slices.Sort(out.Diverged)
	return out, majority
}

// takeVerdict is what a replica makes of the comparison's outcome.
func (cr *comparer) takeVerdict(v *rspb.ReplicaHash) {
	if v.Verdict == rspb.ReplicaHash_Equal {
		cr.p.box.compared.Store(cr.p.store.comparisons.slot(cr.p.regionID))
		return
	}
	if own := &cr.hashed; own.Index == v.Index && own.Term == v.Term && own.Hash != v.Hash {
		cr.p.sick.note(fmt.Errorf("%w: hash %016x instead of %016x as of entry %d", errDiverged,
			own.Hash, v.Hash, v.Index))
	}
}

func (cr *comparer) send(t *turn, to *metapb.Peer, h *rspb.ReplicaHash) {
	rm := t.newMessage()
	*rm = rspb.RaftMessage{
		RegionId: cr.p.regionID, FromPeer: cr.p.self, ToPeer: to,
		RegionEpoch: cr.p.region().RegionEpoch,
		ClusterId:   cr.p.store.clusterID, Hash: h,
	}
	t.send(to.StoreId, rm)
}

// diverged are the regions of which this store, as their leader, has found that no replicas' data
// have a majority.
type diverged struct {
	mu struct {
		sync.Mutex
		regions map[uint64]struct{}
	}
}

func (d *diverged) set(regionID uint64, is bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !is {
		delete(d.mu.regions, regionID)
		return
	}
	if d.mu.regions == nil {
		d.mu.regions = map[uint64]struct{}{}
	}
	d.mu.regions[regionID] = struct{}{}
}

func (d *diverged) list() []uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ids []uint64
	for id := range d.mu.regions {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// comparisons are those of the regions that a store leads.
type comparisons struct {
	s        *Store
	diverged diverged
}

// Diverged lists the regions whose replicas differ without a majority, as far as this store has
// compared them.
func (s *Store) Diverged() []uint64 { return s.comparisons.diverged.list() }

// note counts, logs and remembers the outcome.
func (cs *comparisons) note(p *peer, out *message.Comparison) {
	cs.s.work.comparisons.Add(1)
	cs.diverged.set(p.regionID, out.Undecided)
	switch {
	case out.Undecided:
		cs.s.work.divergences.Add(1)
		p.logger.Error("replicas differ, and none of their data has a majority; nothing is changed",
			log.Index(out.Index), zap.Any("hashes", out.Hashes))
	case len(out.Diverged) > 0:
		cs.s.work.divergences.Add(1)
		p.logger.Error("replicas differ from the majority and will be replaced",
			log.Index(out.Index), zap.Uint64s("diverged-peer-ids", out.Diverged),
			zap.Any("hashes", out.Hashes))
	}
}

// CompareReplicas has this store's peer of a region, which must lead, compare the region's
// replicas. When ctx ends it judges by the answers that have come by then.
func (s *Store) CompareReplicas(ctx context.Context, h message.Header) (message.Comparison, error) {
	type outcome struct {
		c   message.Comparison
		err error
	}
	done := make(chan outcome, 1)
	m := &message.CompareReplicas{Header: h, Done: func(c message.Comparison, err error) {
		done <- outcome{c, err}
	}}
	if err := s.router.send(h.RegionID, m); err != nil {
		return message.Comparison{}, err
	}
	over := ctx.Done()
	for {
		select {
		case out := <-done:
			return out.c, out.err
		case <-s.ctx.Done():
			return message.Comparison{}, regionerr.ErrStopping
		case <-over:
			over = nil
			if err := s.router.send(h.RegionID, &message.EndComparison{Comparison: m}); err != nil {
				return message.Comparison{}, err
			}
		}
	}
}

// slot is the slot of time that a region is in.
func (cs *comparisons) slot(regionID uint64) int64 {
	interval := cs.s.cfg.Raftstore.CompareInterval.Duration
	if interval <= 0 {
		return 0
	}
	// Spread evenly: ids are given out one after the other.
	offset := int64(regionID * 0x9e3779b97f4a7c15 >> 1 % uint64(interval))
	return (cs.s.clock.Now().UnixNano() - offset) / int64(interval)
}

// run compares the replicas of the regions that this store leads, one region at a time.
func (cs *comparisons) run() {
	interval := cs.s.cfg.Raftstore.CompareInterval.Duration
	if interval <= 0 {
		return
	}
	ticker := time.NewTicker(min(compareLook, interval/4+1))
	defer ticker.Stop()
	notBefore := map[uint64]time.Time{}
	for {
		select {
		case <-cs.s.ctx.Done():
			return
		case <-ticker.C:
			for _, b := range cs.due(notBefore) {
				cs.compareDue(b, notBefore)
			}
		}
	}
}

// due are the mailboxes of the regions that this store leads and that are due.
func (cs *comparisons) due(notBefore map[uint64]time.Time) []*mailbox {
	var due []*mailbox
	now := cs.s.clock.Now()
	cs.s.router.boxes.Range(func(_, v any) bool {
		b := v.(*mailbox)
		h := b.handle.Load()
		leads := h != nil && h.leader != nil && h.leader.Id == h.peer.Id
		if leads && len(h.region.Peers) > 1 && b.compared.Load() != cs.slot(b.regionID) &&
			!now.Before(notBefore[b.regionID]) {
			due = append(due, b)
		}
		return true
	})
	for id, t := range notBefore {
		if now.After(t) {
			delete(notBefore, id)
		}
	}
	return due
}

func (cs *comparisons) compareDue(b *mailbox, notBefore map[uint64]time.Time) {
	h := b.handle.Load()
	if h == nil || cs.s.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(cs.s.ctx, compareWait)
	defer cancel()
	out, err := cs.s.CompareReplicas(ctx, message.Header{RegionID: b.regionID, Peer: h.peer})
	if err == nil && out.Equal() {
		return
	}
	notBefore[b.regionID] = cs.s.clock.Now().Add(min(compareRetry,
		cs.s.cfg.Raftstore.CompareInterval.Duration))
	if err != nil && cs.s.ctx.Err() == nil {
		cs.s.logger.Debug("comparing replicas failed", log.RegionID(b.regionID), zap.Error(err))
	}
}
