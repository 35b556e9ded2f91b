package raftstore

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/raft"
)

// Reads never go through the log. Two ways prove that a local engine snapshot shows every write
// that was acknowledged before the read began:
//
// Lease. The leader may serve reads until the send time of a heartbeat round that a quorum has
// answered, plus less than the smallest election timeout: until then no quorum elects another
// leader, because followers refuse votes within an election timeout of hearing one (a restarted
// follower counts as having heard one). It needs an own-term entry applied, and is suspended
//   - while a split that this leader proposed is not applied: another store may apply it first, and
//     a new leader of the right half may accept writes there;
//   - for the rest of the term once a leader transfer has begun: the transferee's vote is not
//     refused, and its TimeoutNow may arrive arbitrarily late, also after the transfer was given
//     up.
//
// The handler's goroutine checks the handle and the lease, reads, and checks both again: a pause of
// the process in between cannot make a stale answer (E5, E6).
//
// Read index. The leader confirms its leadership by a heartbeat round that begins after the read
// arrived, waits until it has applied what was committed then, and the handler checks the region's
// epoch on the very engine snapshot that it reads (E4).

// readHandle is an immutable view of a peer for readers on other goroutines.
type readHandle struct {
	region *metapb.Region
	peer   *metapb.Peer
	term   uint64
	leader *metapb.Peer
	// lease is nil when local reads are not allowed.
	lease *leaseCell
}

// leaseCell holds a lease's end by two clocks: the monotonic clock stands still while the machine
// is suspended, the wall clock may be set back. Both must say that the lease holds.
type leaseCell struct {
	mono atomic.Int64
	wall atomic.Int64
}

func (c *leaseCell) set(clock Clock, start time.Time, d time.Duration) {
	c.mono.Store(int64(start.Sub(clock.Base()) + d))
	c.wall.Store(start.UnixNano() + int64(d))
}

func (c *leaseCell) end() {
	c.mono.Store(0)
	c.wall.Store(0)
}

func (c *leaseCell) valid(clock Clock) bool {
	now := clock.Now()
	return int64(now.Sub(clock.Base())) < c.mono.Load() && now.UnixNano() < c.wall.Load()
}

// leaseState is the leader's bookkeeping of heartbeat rounds.
type leaseState struct {
	p      *peer
	term   uint64
	cell   *leaseCell
	rounds []sentRound
	last   uint64
	// noLeaseTerm is the term in which a leader transfer was begun.
	noLeaseTerm uint64
}

type sentRound struct {
	round uint64
	at    time.Time
}

// noteRounds records when heartbeat rounds were made. Called before their messages leave, so that
// the recorded time is never later than the send time.
func (l *leaseState) noteRounds() {
	if !l.p.isLeader() {
		if l.cell != nil {
			l.cell.end()
			l.cell, l.rounds = nil, nil
		}
		return
	}
	if term := l.p.rn.Term(); l.term != term || l.cell == nil {
		if l.cell != nil {
			l.cell.end()
		}
		*l = leaseState{p: l.p, term: term, cell: new(leaseCell), noLeaseTerm: l.noLeaseTerm}
	}
	if l.p.rn.LeadTransferee() != raft.None && l.noLeaseTerm != l.term {
		l.noLeaseTerm = l.term
		l.cell.end()
	}
	if r := l.p.rn.HeartbeatRound(); r > l.last {
		l.rounds = append(l.rounds, sentRound{r, l.p.store.clock.Now()})
		l.last = r
	}
}

// renew extends the lease to what the answered rounds allow.
func (l *leaseState) renew() {
	if l.cell == nil || l.noLeaseTerm == l.term {
		return
	}
	q := l.p.rn.QuorumRound()
	n := 0
	for n < len(l.rounds) && l.rounds[n].round <= q {
		n++
	}
	if n == 0 {
		return
	}
	l.cell.set(l.p.store.clock, l.rounds[n-1].at, l.p.store.leaseDuration)
	l.rounds = append(l.rounds[:0], l.rounds[n:]...)
}

// end ends the lease.
func (l *leaseState) end() {
	if l.cell != nil {
		l.cell.end()
		l.cell = nil
	}
}

// publish makes the current state visible to readers, if it changed.
func (p *peer) publish() {
	if p.stopped {
		p.handled = nil
		p.box.handle.Store(nil)
		return
	}
	h := readHandle{region: p.region(), peer: p.self, term: p.rn.Term(), leader: p.leaderPeer()}
	if p.isLeader() {
		h.leader = p.self
		local := p.store.leaseReads && p.appliedTerm == h.term && p.split.index == 0 &&
			p.installing == 0 &&
			p.removed == nil && p.merge.state == nil && p.lease.cell != nil &&
			p.lease.term == h.term && p.lease.noLeaseTerm != h.term
		if local {
			h.lease = p.lease.cell
		}
	}
	if p.handled != nil && *p.handled == h {
		return
	}
	published := new(readHandle) // h itself stays off the heap: most calls change nothing
	*published = h
	p.handled = published
	p.box.handle.Store(published)
}

// readQueue holds the reads that wait for proof of leadership or for the apply worker.
type readQueue struct {
	p         *peer
	arrived   []*message.Read
	nextID    uint64
	asked     map[uint64][]*message.Read
	confirmed []confirmedReads
}

type confirmedReads struct {
	index uint64
	reads []*message.Read
}

// init gives the requests of this peer ids that no earlier life of it has used.
func (q *readQueue) init(s *Store, regionID uint64) {
	q.asked = map[uint64][]*message.Read{}
	q.nextID = uint64(s.clock.Now().UnixNano())
}

// ask starts one read-index request for all reads that have arrived. Each attempt has a fresh id.
func (q *readQueue) ask() {
	if len(q.arrived) == 0 {
		return
	}
	reads := q.arrived
	q.arrived = nil
	q.nextID++
	if err := q.p.rn.ReadIndex(q.nextID); err != nil {
		failReads(reads, q.p.notLeader())
		return
	}
	q.asked[q.nextID] = reads
}

// onStates moves confirmed reads on.
func (q *readQueue) onStates(states []raft.ReadState) {
	for _, st := range states {
		reads := q.asked[st.ID]
		delete(q.asked, st.ID)
		if len(reads) == 0 {
			continue
		}
		if st.Aborted {
			failReads(reads, q.p.notLeader())
			continue
		}
		q.confirmed = append(q.confirmed, confirmedReads{st.Index, reads})
	}
	q.answer()
}

// answer answers confirmed reads whose index is applied.
func (q *readQueue) answer() {
	if len(q.confirmed) == 0 || q.p.installing != 0 {
		return
	}
	var term uint64
	if q.p.leadsIn(q.p.appliedTerm) {
		// what was proposed in earlier terms lies before an entry that is applied, or is lost
		term = q.p.appliedTerm
	}
	kept := q.confirmed[:0]
	for _, c := range q.confirmed {
		if c.index > q.p.appliedIndex {
			kept = append(kept, c)
			continue
		}
		for _, r := range c.reads {
			r.Term = term
			r.Callback.Done(message.Result{Region: q.p.region()})
		}
	}
	clear(q.confirmed[len(kept):])
	q.confirmed = kept
}

// expire answers reads whose deadline has passed, so that a leader without quorum keeps none.
func (q *readQueue) expire(now time.Time) {
	expire := func(reads []*message.Read) []*message.Read {
		kept := reads[:0]
		for _, r := range reads {
			if !r.Deadline.IsZero() && now.After(r.Deadline) {
				r.Callback.Fail(regionerr.ErrDeadlineExceeded)
			} else {
				kept = append(kept, r)
			}
		}
		return kept
	}
	for id, reads := range q.asked {
		if reads = expire(reads); len(reads) == 0 {
			delete(q.asked, id)
		} else {
			q.asked[id] = reads
		}
	}
	for i := range q.confirmed {
		q.confirmed[i].reads = expire(q.confirmed[i].reads)
	}
}

func failReads(reads []*message.Read, err error) {
	for _, r := range reads {
		r.Callback.Fail(err)
	}
}

// failAll answers every waiting read.
func (q *readQueue) failAll(err error) {
	failReads(q.arrived, err)
	q.arrived = nil
	for id, reads := range q.asked {
		failReads(reads, err)
		delete(q.asked, id)
	}
	for _, c := range q.confirmed {
		failReads(c.reads, err)
	}
	q.confirmed = nil
}

// LocalRead is a permission to read without asking the peer's worker.
type LocalRead struct {
	// Region is the region to read within.
	Region *metapb.Region
	box    *mailbox
	handle *readHandle
	clock  Clock
}

// Valid must be called after reading: only if it still holds does the answer count.
func (l *LocalRead) Valid() bool {
	return l.box.handle.Load() == l.handle && l.handle.lease.valid(l.clock)
}

// Note counts what was read, keys and bytes of keys and values, for the placement service.
func (l *LocalRead) Note(keys, bytes int) { l.box.reads.add(uint64(keys), uint64(bytes)) }

// Term is that of the leadership under which the read is made. An entry of it is applied.
func (l *LocalRead) Term() uint64 { return l.handle.term }

// Millis is the store's time in milliseconds since 1970, at least 1: the clock's, held back if that
// is ahead of the placement service's. It never falls: after the clock is set back, it stands still
// until the clock has caught up.
func (s *Store) Millis() uint64 {
	now := uint64(max(1, s.clockLimit.Now().UnixMilli()))
	for {
		last := s.millis.Load()
		if now <= last {
			return last
		}
		if s.millis.CompareAndSwap(last, now) {
			return now
		}
	}
}

// MayExpire tells whether the region of a request is known here to be prepared for keys that
// expire. False also if the request is not for this store.
func (s *Store) MayExpire(h message.Header) bool {
	_, hd, err := s.handleFor(h, nil)
	return err == nil && hd.region.ExpiryFloor > 0
}

// LeaderTerm checks a request against the region's read handle and returns the term in which this
// peer leads. It proves nothing: the leadership may have ended.
func (s *Store) LeaderTerm(h message.Header) (uint64, error) {
	_, hd, err := s.handleFor(h, nil)
	if err != nil {
		return 0, err
	}
	return hd.term, nil
}

// LocalRead checks a request against the region's read handle on the caller's goroutine; a nil key
// is not checked. It returns nil without error when leadership must be proven through the worker
// first (see Store.Read).
func (s *Store) LocalRead(h message.Header, key []byte) (*LocalRead, error) {
	box, hd, err := s.handleFor(h, key)
	if err != nil {
		return nil, err
	}
	if hd.lease == nil || !hd.lease.valid(s.clock) {
		return nil, nil
	}
	if !box.read.Load() {
		box.read.Store(true)
	}
	return &LocalRead{Region: hd.region, box: box, handle: hd, clock: s.clock}, nil
}

// handleFor returns the region's read handle if the request is for it as it is. A peer that sleeps
// and does not lead is woken.
func (s *Store) handleFor(h message.Header, key []byte) (*mailbox, *readHandle, error) {
	box := s.router.get(h.RegionID)
	if box == nil {
		return nil, nil, goneError(s.ranges, h, key)
	}
	hd := box.handle.Load()
	if hd == nil {
		return nil, nil, goneError(s.ranges, h, key)
	}
	if err := hd.check(s, h, key); err != nil {
		if isNotLeader(err) && box.asleep.Load() {
			// The client may not have reached the leader. One that lives answers the pre-vote.
			_ = s.router.push(box, &message.Wake{}) // or the region is gone
		}
		return nil, nil, err
	}
	return box, hd, nil
}

// goneError answers a request for a region that is not here. If another one of this store has its
// key at a greater version, the region that was meant has lost the key, most likely by a merge, and
// the client learns at once who has it. A nil key tells nothing.
func goneError(ranges *rangeMap, h message.Header, key []byte) error {
	if key != nil && h.Epoch != nil {
		if r := ranges.at(key); r != nil && r.Id != h.RegionID &&
			r.RegionEpoch.GetVersion() > h.Epoch.Version {
			return &regionerr.EpochNotMatchError{
				RegionID: h.RegionID, Regions: ranges.withNeighbours(r),
			}
		}
	}
	return &regionerr.RegionNotFoundError{RegionID: h.RegionID}
}

// goneElse is goneError if that is what err says, else err.
func goneElse(ranges *rangeMap, err error, h message.Header, key []byte) error {
	var gone *regionerr.RegionNotFoundError
	if errors.As(err, &gone) {
		return goneError(ranges, h, key)
	}
	return err
}

// check is the check order of a request: store, peer, leader, term, epoch, key.
func (hd *readHandle) check(s *Store, h message.Header, key []byte) error {
	if h.Peer.GetStoreId() != s.storeID {
		return &regionerr.StoreNotMatchError{Request: h.Peer.GetStoreId(), Actual: s.storeID}
	}
	if h.Peer.GetId() != hd.peer.Id {
		return &regionerr.PeerNotMatchError{
			RegionID: h.RegionID, Request: h.Peer.GetId(), Actual: hd.peer.Id,
		}
	}
	if hd.leader == nil || hd.leader.Id != hd.peer.Id {
		return &regionerr.NotLeaderError{RegionID: h.RegionID, Leader: hd.leader}
	}
	if h.Term != 0 && h.Term+1 < hd.term {
		return &regionerr.StaleCommandError{Term: hd.term}
	}
	if h.Epoch == nil {
		return regionerr.Invalidf("request for region %d has no epoch", h.RegionID)
	}
	if !regions.EpochMatches(hd.region, h.Epoch, true, false) {
		return &regionerr.EpochNotMatchError{
			RegionID: h.RegionID, Regions: s.ranges.withNeighbours(hd.region),
		}
	}
	if key == nil {
		return nil
	}
	return regions.CheckKey(hd.region, key)
}

// CheckSnapshot verifies, after a read index, that the region still has the epoch of the request on
// the engine snapshot that is about to be read. It returns the region as of that snapshot.
func (s *Store) CheckSnapshot(
	snap engine.Snapshot, h message.Header, key []byte,
) (*metapb.Region, error) {
	st, err := meta.LoadRegionState(snap, h.RegionID)
	if err != nil {
		return nil, err
	}
	if st != nil && st.State == rspb.PeerState_Merging {
		return nil, errMerging
	}
	if st == nil || st.State != normalState || regions.PeerOnStore(st.Region, s.storeID) == nil {
		return nil, &regionerr.RegionNotFoundError{RegionID: h.RegionID}
	}
	if !regions.EpochMatches(st.Region, h.Epoch, true, false) {
		return nil,
			&regionerr.EpochNotMatchError{
				RegionID: h.RegionID, Regions: s.ranges.withNeighbours(st.Region),
			}
	}
	if key == nil {
		return st.Region, nil
	}
	return st.Region, regions.CheckKey(st.Region, key)
}
