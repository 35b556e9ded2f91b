package raftstore

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/raft"
)

// A region in which nothing happens sleeps: leader and followers stop their clocks and heartbeats.
//
// The leader decides, when for a while nothing was asked of the region and every peer is known to
// have the whole log; it tells the followers by a heartbeat with a flag, which they do not answer.
// A follower that does not agree, or that never gets the message, goes on, misses the leader's
// heartbeats, asks for pre-votes, and so wakes the leader. Any message and any command wakes a
// peer; stores that share sleeping regions watch each other instead (liveness).
//
// Safety: a sleeping peer counts no ticks, so it votes later than it could, never earlier: the
// lease of a leader relies on nothing else. The lease itself goes by the clock and runs out while
// the leader sleeps; the next read asks a quorum again.

// sleeper is a peer's part of it.
type sleeper struct {
	p *peer

	asleep bool
	stores []uint64 // counted as sleeping with
	began  time.Time
	active time.Time
}

// try lets a leader and its followers sleep if nothing is left to do.
func (sl *sleeper) try(t *turn, now time.Time) {
	after := sl.p.store.cfg.Raftstore.HibernateAfter.Duration
	if sl.p.box.read.Load() {
		sl.p.box.read.Store(false) // local reads leave a mark instead of a message
		sl.active = now
	}
	if after <= 0 || now.Sub(sl.active) < after || !sl.isQuiet() {
		return
	}
	last := sl.p.rn.LastIndex()
	for _, q := range sl.p.region().Peers {
		if q.Id == sl.p.self.Id {
			continue
		}
		pr, ok := sl.p.rn.ProgressOf(q.Id)
		if !ok || pr.State != raft.ProgressReplicate || pr.Match != last || !pr.RecentActive {
			return
		}
	}
	for _, q := range sl.p.region().Peers {
		if q.Id == sl.p.self.Id {
			continue
		}
		t.send(q.StoreId, &rspb.RaftMessage{
			RegionId: sl.p.regionID, FromPeer: sl.p.self, ToPeer: q,
			RegionEpoch: sl.p.region().RegionEpoch,
			ClusterId:   sl.p.store.clusterID, Hibernate: true,
			Message: &eraftpb.Message{
				MsgType: eraftpb.MessageType_MsgHeartbeat, From: sl.p.self.Id, To: q.Id,
				Term: sl.p.rn.Term(), Commit: last,
			},
		})
	}
	sl.begin()
}

// isQuiet tells whether nothing is under way at a leader.
func (sl *sleeper) isQuiet() bool {
	st := &sl.p.stats
	return sl.p.sick.err == nil && sl.p.merge.state == nil && sl.p.removed == nil &&
		sl.p.installing == 0 && sl.p.split.index == 0 &&
		len(sl.p.proposals) == 0 && len(sl.p.writes) == 0 && len(sl.p.transfer.writes) == 0 &&
		len(sl.p.once.held) == 0 && len(sl.p.merge.held) == 0 &&
		len(sl.p.reads.arrived) == 0 && len(sl.p.reads.asked) == 0 &&
		len(sl.p.reads.confirmed) == 0 &&
		!st.checkingSplit && !st.askingSplit && st.sizeKnown && len(sl.p.report.reported) == 0 &&
		sl.p.rn.LeadTransferee() == raft.None && !sl.p.rn.HasPendingConfChange() &&
		!sl.p.rn.HasReady() &&
		sl.p.appliedIndex == sl.p.rn.LastIndex() && sl.p.rn.Committed() == sl.p.rn.LastIndex() &&
		sl.p.appliedTerm == sl.p.rn.Term()
}

// onHibernate is a follower's answer to its leader's wish: it sleeps if it knows of nothing else.
// False: the message is to be treated as the heartbeat that it is, whose answer wakes the leader.
func (sl *sleeper) onHibernate(m *eraftpb.Message) bool {
	if !sl.p.initialized() || sl.p.rn.State() != raft.StateFollower || sl.p.rn.Term() != m.Term ||
		sl.p.rn.Lead() != m.From ||
		sl.p.installing != 0 || sl.p.removed != nil || sl.p.merge.state != nil ||
		sl.p.rn.LastIndex() != m.Commit || sl.p.rn.Committed() != m.Commit {
		return false
	}
	sl.p.noteLeader(sl.p.store.clock.Now())
	sl.begin()
	return true
}

func (sl *sleeper) begin() {
	if sl.asleep {
		return
	}
	sl.asleep, sl.began = true, sl.p.store.clock.Now()
	sl.stores = sl.stores[:0]
	for _, q := range sl.p.region().Peers {
		if q.Id != sl.p.self.Id {
			sl.stores = append(sl.stores, q.StoreId)
		}
	}
	sl.p.store.live.sleep(sl.stores)
	if !sl.p.isLeader() {
		sl.p.times.stale = sl.began.Add(sl.nextCheck())
	}
	sl.setDuty()
	sl.p.box.asleep.Store(true)
	sl.p.store.router.noteAwake(sl.p.box, false)
}

// wake starts the clock again, as if the leader had been heard just now.
func (sl *sleeper) wake() {
	if !sl.asleep {
		return
	}
	now := sl.p.store.clock.Now()
	if sl.p.box.dormant.Swap(false) {
		sl.countDormantTime(now)
	} else {
		sl.p.noteLeader(now)
	}
	sl.asleep, sl.active = false, now
	if soon := now.Add(
		jitter(sl.p.store.cfg.Raftstore.StalePeerCheck.Duration)); sl.p.times.stale.After(soon) {
		sl.p.times.stale = soon
	}
	sl.p.box.asleep.Store(false)
	if !sl.p.stopped {
		sl.p.store.router.noteAwake(sl.p.box, true)
	}
	sl.p.store.live.wake(sl.stores)
	for _, q := range sl.p.region().Peers {
		sl.p.lastHeard[q.Id] = now
	}
}

// stir wakes the peer if the message asks for it, and notes that something was asked of the region.
// What the store sends itself, and questions that change nothing, do not wake.
func (sl *sleeper) stir(m message.Msg) {
	dormant := sl.p.box.dormant.Load()
	switch m := m.(type) {
	case *message.Raft:
		if !m.Message.Hibernate || dormant {
			sl.wake()
		}
	case *message.Write, *message.Read, *message.Admin, *message.SplitAt, *message.Operator,
		*message.BecomeSplit,
		*message.CompareReplicas, *message.Wake, *message.Unreachable, *message.SnapshotSent,
		*message.SnapshotInstalled,
		*message.ReadFailed:
		sl.wake()
		sl.active = sl.p.store.clock.Now()
		if dormant {
			sl.campaignFirst()
		}
	}
}

// sleepingChecks is how many times longer than one without a leader a sleeping follower goes on
// before it asks the placement service whether it still belongs to its region.
const sleepingChecks = 4

// doDuty is what a sleeping peer has to do all the same, and sets when it is due again: a leader
// reports to the placement service; a follower asks it whether it still belongs, since the entry
// that removes it may have been lost on its way, and nobody speaks to it afterwards (G6).
func (sl *sleeper) doDuty(now time.Time) {
	switch {
	case sl.p.isLeader():
		if !now.Before(sl.p.times.heartbeat) {
			sl.p.report.send()
		}
	case !now.Before(sl.p.times.stale) && !sl.p.box.dormant.Load():
		sl.p.times.stale = now.Add(sl.nextCheck())
		sl.p.store.ask.regionTruth(sl.p.regionID)
	}
	sl.setDuty()
}

func (sl *sleeper) nextCheck() time.Duration {
	return jitter(sleepingChecks * sl.p.store.cfg.Raftstore.StalePeerCheck.Duration)
}

// setDuty tells the ticker when doDuty is due. A dormant follower is roused by others.
func (sl *sleeper) setDuty() {
	duty := int64(0)
	switch {
	case sl.p.isLeader():
		duty = int64(sl.p.times.heartbeat.Sub(sl.p.store.clock.Base()))
	case !sl.p.box.dormant.Load():
		duty = int64(sl.p.times.stale.Sub(sl.p.store.clock.Base()))
	}
	sl.p.box.duty.Store(duty)
}

// onStoreLost wakes a peer, and lets a follower whose leader was on the lost store campaign soon.
// Of a sleep, the time for which the store was silent counts: the leader was not heard for at least
// as long.
func (sl *sleeper) onStoreLost(m *message.StoreLost) {
	if sl.p.box.dormant.Load() {
		return // it relies on no other store
	}
	asleep := sl.asleep
	sl.wake()
	leader := sl.p.leaderPeer()
	if leader == nil || leader.StoreId != m.StoreID || sl.p.rn.State() != raft.StateFollower {
		return
	}
	silent := sl.began
	if m.Heard.After(silent) {
		silent = m.Heard
	}
	if asleep && silent.Before(sl.p.times.tick) {
		sl.p.times.tick = silent
	}
	rank := 0
	for _, q := range sl.p.region().Peers {
		if q.Id < sl.p.self.Id && q.Id != leader.Id && !regions.IsLearner(q) {
			rank++
		}
	}
	// One tick more than the smallest timeout, so that the others' leases are over as well when
	// they are asked; and two between candidates, so that one is elected before the next one
	// begins.
	sl.p.rn.ExpectElection(1 + 2*rank)
	sl.p.transfer.loseLeader(leader.Id)
}

// The regions of a store that starts are dormant: they sleep, although they know no leader. If
// thousands of them held their elections at once, on all stores, messages would wait for longer
// than an election timeout, and elections would fail for as long as they went on.
//
// A dormant peer wakes by a raft message (a leader is there, or another store holds the election),
// by a request, or when its turn comes: the ticker rouses a few at a time. In the last two cases it
// campaigns at once, as hardly anybody else does so for that region in that moment. If a leader is
// there, pre-votes are refused and the leader is heard. A dormant peer watches no other store:
// there is no leader whose loss it would miss.
//
// Safety: a restarted voter refuses votes, its own too, until an election timeout after the start
// has passed (Config.VoteGraceTicks). What counts for that is the time that has really passed, up
// to an election timeout (elapsedTicks).

// A store rouses rouseMany regions in a tick while fewer than rouseAwake peers are awake; beyond
// that rouseFew, so that regions which find no quorum do not keep the others from their turn.
const (
	rouseAwake = 512
	rouseMany  = 32
	rouseFew   = 2
)

// layDormant lets a recovered peer sleep, unless it can lead by itself. Called before any goroutine
// runs.
func (ti *ticker) layDormant(p *peer) {
	if ti.s.cfg.Raftstore.HibernateAfter.Duration <= 0 || !p.initialized() ||
		len(p.region().Peers) < 2 {
		return
	}
	p.sleep.beginDormant()
	// In another order on each store, so that they seldom rouse the same region at the same time.
	boxes := append(ti.dormant, p.box)
	i, last := rand.IntN(len(boxes)), len(boxes)-1
	boxes[i], boxes[last] = boxes[last], boxes[i]
	ti.dormant = boxes
}

// beginDormant lets a peer that nothing runs yet sleep from the start on.
func (sl *sleeper) beginDormant() {
	sl.asleep, sl.began = true, sl.p.store.clock.Now()
	sl.p.box.asleep.Store(true)
	sl.p.box.dormant.Store(true)
	sl.p.store.router.noteAwake(sl.p.box, false)
}

// rouse gives some regions their turn, not before their votes may count.
func (ti *ticker) rouse() {
	if len(ti.dormant) == 0 ||
		ti.s.clock.Now().Sub(ti.s.startTime) < ti.s.cfg.Raftstore.ElectionTimeout() {
		return
	}
	n := rouseFew
	if ti.s.router.awake.Load() < rouseAwake {
		n = rouseMany
	}
	for n > 0 && len(ti.dormant) > 0 {
		last := len(ti.dormant) - 1
		b := ti.dormant[last]
		ti.dormant[last], ti.dormant = nil, ti.dormant[:last]
		if b.dormant.Load() {
			_ = ti.s.router.push(b, &message.Wake{}) // destroyed meanwhile
			n--
		}
	}
	if len(ti.dormant) == 0 {
		ti.dormant = nil
	}
}

// countDormantTime lets raft count the time since the start. No leader was heard in it.
func (sl *sleeper) countDormantTime(now time.Time) {
	for range sl.p.elapsedTicks(now, sl.p.store.cfg.Raftstore.ElectionTicks) {
		sl.p.rn.Tick()
	}
}

// campaignFirst holds the first election after the start; raft refuses if a vote might break a
// promise.
func (sl *sleeper) campaignFirst() {
	if sl.p.rn.State() != raft.StateFollower {
		return // the time since the start was enough for it
	}
	_ = sl.p.rn.Campaign()
	sl.p.rn.ExpectElection(1) // if it was too early
}

// liveness stands in for the heartbeats of regions that sleep: stores that share sleeping regions
// greet each other, and a store that falls silent wakes the regions shared with it. So the cost of
// idle regions depends on the number of stores, not of regions.
type liveness struct {
	clock Clock

	mu struct {
		sync.RWMutex
		stores map[uint64]*storeLife
	}
}

// storeLife is what is known of one other store.
type storeLife struct {
	heard  atomic.Int64 // since the clock's base
	asleep atomic.Int64 // sleeping regions of this store with a peer there
	// incarnation is the newest of which a message has come.
	incarnation atomic.Uint64
}

func newLiveness(clock Clock) *liveness {
	l := &liveness{clock: clock}
	l.mu.stores = map[uint64]*storeLife{}
	return l
}

func (l *liveness) now() int64 { return int64(l.clock.Now().Sub(l.clock.Base())) }

func (l *liveness) store(id uint64) *storeLife {
	l.mu.RLock()
	s := l.mu.stores[id]
	l.mu.RUnlock()
	if s != nil {
		return s
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s = l.mu.stores[id]; s == nil {
		s = new(storeLife)
		l.mu.stores[id] = s
	}
	return s
}

// hear notes that a store has sent something. False: a later run of that store was heard before, so
// this message is of one that has ended, or runs on a copy of its data.
func (l *liveness) hear(storeID, incarnation uint64) bool {
	s := l.store(storeID)
	for incarnation > 0 {
		newest := s.incarnation.Load()
		if incarnation < newest {
			return false
		}
		if incarnation == newest || s.incarnation.CompareAndSwap(newest, incarnation) {
			break
		}
	}
	s.heard.Store(l.now())
	return true
}

// sleep and wake count the sleeping regions of a store pair. A pair that begins counts as just
// heard: nothing need have been sent between two followers before.
func (l *liveness) sleep(stores []uint64) {
	for _, id := range stores {
		s := l.store(id)
		if s.asleep.Add(1) == 1 {
			s.heard.Store(max(s.heard.Load(), l.now()))
		}
	}
}

func (l *liveness) wake(stores []uint64) {
	for _, id := range stores {
		l.store(id).asleep.Add(-1)
	}
}

// heardAt is when a store was last heard; the clock's base if never.
func (l *liveness) heardAt(storeID uint64) time.Time {
	return l.clock.Base().Add(time.Duration(l.store(storeID).heard.Load()))
}

// shared lists the stores with sleeping regions; silent are those of them not heard for the
// timeout.
func (l *liveness) shared(timeout time.Duration) (all, silent []uint64) {
	now := l.now()
	l.mu.RLock()
	defer l.mu.RUnlock()
	for id, s := range l.mu.stores {
		if s.asleep.Load() <= 0 {
			continue
		}
		all = append(all, id)
		if now-s.heard.Load() >= int64(timeout) {
			silent = append(silent, id)
		}
	}
	return all, silent
}

// Greetings go out every greetTimeouts election timeouts; a store that was not heard for
// silenceTimeouts is taken for lost. A process that dies is noticed sooner, by its connections, and
// a request wakes the peer that it reaches; silence is the sign of a network that is gone.
const (
	greetTimeouts   = 2
	silenceTimeouts = 5
)

// greet greets and watches, if it is time. The ticker calls it, so that an idle store need not wake
// twice.
func (ti *ticker) greet() {
	timeout := ti.s.cfg.Raftstore.ElectionTimeout()
	if !due(ti.s.clock.Now(), &ti.nextGreeting, greetTimeouts*timeout) {
		return
	}
	all, silent := ti.s.live.shared(silenceTimeouts * timeout)
	for _, id := range all {
		ti.s.trans.Send(id, []*rspb.RaftMessage{ti.greeting(id)})
	}
	for _, id := range silent {
		ti.s.ReportStoreLost(id)
	}
}

func (ti *ticker) greeting(to uint64) *rspb.RaftMessage {
	return &rspb.RaftMessage{
		FromPeer: &metapb.Peer{StoreId: ti.s.storeID}, ToPeer: &metapb.Peer{StoreId: to},
		ClusterId: ti.s.clusterID, Hibernate: true,
		Incarnation: ti.s.incarnation,
	}
}

// isGreeting recognises what greeting makes.
func isGreeting(m *rspb.RaftMessage) bool {
	return m.RegionId == 0 && m.Hibernate && m.Message == nil && m.GetFromPeer().GetStoreId() != 0
}

// ReportStoreLost wakes the sleeping regions with a peer on a store that may be gone, and lets the
// followers of leaders there prepare to elect another one.
func (s *Store) ReportStoreLost(storeID uint64) {
	lost := &message.StoreLost{StoreID: storeID, Heard: s.live.heardAt(storeID)}
	s.router.boxes.Range(func(_, v any) bool {
		b := v.(*mailbox)
		if h := b.handle.Load(); h != nil && !b.dormant.Load() &&
			regions.PeerOnStore(h.region, storeID) != nil &&
			(b.asleep.Load() || h.leader.GetStoreId() == storeID) {
			_ = s.router.push(b, lost) // destroyed meanwhile
		}
		return true
	})
}
