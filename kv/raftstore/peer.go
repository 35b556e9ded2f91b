package raftstore

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/raft"
)

// peer is this store's replica of a region.
//
// It is owned by whichever raft worker holds its mailbox. Everyone else sends a message, or reads
// the immutable read handle.
//
// Life: Absent -> uninitialized (created by a vote or a commit-0 heartbeat; no range) ->
// initialized (by raft snapshot or split) -> destroyed, leaving a tombstone that keeps the region's
// epoch and the peer id.
type peer struct {
	store    *Store
	box      *mailbox
	logger   *zap.Logger
	regionID uint64
	self     *metapb.Peer
	rn       *raft.RawNode
	ps       *peerStorage
	// cache holds peers learnt from messages, besides those of the region: answers to a peer that
	// this replica does not know yet must find their store.
	cache map[uint64]*metapb.Peer

	// stopped: destroyed; every later message is answered with RegionNotFound.
	stopped bool
	// removed: the conf change that removes this peer is applied on disk. A leader lingers until
	// the others know (C3).
	removed *lingering

	// bornAt is the conf version of the message that created this peer, if one did: it belonged to
	// the region then, also while it knows nothing else of it.
	bornAt uint64

	// applied is what the apply worker has reported.
	appliedIndex, appliedTerm uint64
	// installing is the index of the raft snapshot being installed, 0 if none; entries committed
	// meanwhile wait in heldApply.
	installing uint64
	heldApply  []apply.Task
	// offered: a raft snapshot was stepped in this turn and has its range reserved; takeover are
	// the frozen regions that it takes over.
	offered  bool
	takeover []frozenRegion

	proposals []message.Proposal // sorted by index
	// writes are gathered for the next entry; writeSize is the sum of their bytes.
	writes    []*message.Write
	writeSize int
	// boundWrites: one of writes is bound to a term.
	boundWrites bool

	// Parts of its life, each in the file that its type is in. Each has a pointer back to the peer.
	reads    readQueue
	lease    leaseState
	once     onceState
	split    splitter
	transfer transfer
	merge    merger
	sleep    sleeper
	sick     sickness
	compare  comparer
	compact  compactor
	report   regionReport
	handled  *readHandle // what readers see

	rd   raft.Ready
	late []eraftpb.Message
	// handedEarly is how many of rd's committed entries are with the apply worker already.
	handedEarly int
	// unwrittenCommit is a hard state that only moved the commit index: it is written with the next
	// batch. Empty if there is none.
	unwrittenCommit eraftpb.HardState

	stats peerStats
	times peerTimes
	// lastHeard notes when each other peer was last heard, to report down peers.
	lastHeard      map[uint64]time.Time
	leaderSince    time.Time
	lastLeaderSeen time.Time
}

type peerStats struct {
	size, keys uint64
	sizeKnown  bool
	sizeDelta  int64
	// counted is the last count of the size, sinceCount the bytes written since, estimates how
	// often the size was estimated since. The next count waits for countAfter bytes.
	counted                message.Counted
	sinceCount, countAfter uint64
	estimates              int
	writtenBytes           uint64
	writtenKeys            uint64
	logBytes               uint64
	checkingSplit          bool
	askingSplit            bool
	lastCompactRequest     uint64
	// trimmed is up to where the cache of the log was emptied.
	trimmed uint64
}

type peerTimes struct {
	heartbeat, logGC, splitCheck, stale time.Time
	lastReport                          time.Time
	// tick is when the last whole tick was complete.
	tick time.Time
}

// origin is what a peer begins with.
type origin struct {
	region    *metapb.Region
	self      *metapb.Peer
	applied   uint64
	truncated rspb.RaftTruncatedState
	// grace makes it refuse votes for one election timeout: it may have acknowledged a leader's
	// lease before the restart.
	grace bool
	// bornAt and from are of the message that created it, if one did. from is nil after a restart
	// over a record of an older program.
	bornAt uint64
	from   *metapb.Peer
	// installing is the index of the raft snapshot that is being installed, 0 if none.
	installing uint64
	// ancestors are the regions that its data comes from.
	ancestors []message.Ancestor
	// merging is set if the region is frozen.
	merging *rspb.MergingState
}

// newPeer makes a peer over what is durable.
func newPeer(s *Store, o origin) (*peer, error) {
	region, self, applied := o.region, o.self, o.applied
	p := &peer{
		store: s, regionID: region.Id, self: self, bornAt: o.bornAt, installing: o.installing,
		logger:    s.logger.With(log.RegionID(region.Id), log.PeerID(self.Id)),
		cache:     map[uint64]*metapb.Peer{},
		lastHeard: map[uint64]time.Time{},
	}
	if o.from != nil {
		p.cache[o.from.Id] = o.from
	}
	p.reads.p, p.lease.p, p.once.p, p.transfer.p, p.split.p, p.compact.p = p, p, p, p, p, p
	p.report.p, p.sleep.p, p.sick.p, p.compare.p, p.merge.p = p, p, p, p, p
	p.box = &mailbox{regionID: region.Id, peer: p}
	p.ps = &peerStorage{store: s, regionID: region.Id, region: region, truncated: o.truncated}
	p.appliedIndex = applied
	if applied > 0 {
		t, err := p.ps.Term(applied)
		if err != nil {
			return nil,
				fmt.Errorf("region %d: term of applied entry %d: %w", region.Id, applied, err)
		}
		p.appliedTerm = t
	}
	cfg := &s.cfg.Raftstore
	rc := &raft.Config{
		ID: self.Id, ElectionTick: cfg.ElectionTicks, HeartbeatTick: cfg.HeartbeatTicks,
		Storage: p.ps, Applied: applied, Rand: newRand(s.seed, region.Id, self.Id),
		PreVote: true, CheckQuorum: true,
		MaxSizePerMsg:   uint64(cfg.MaxMessageEntries),
		MaxInflightMsgs: cfg.MaxInflightMsgs, MaxInflightBytes: uint64(cfg.MaxInflightBytes),
		MaxUncommittedBytes:       uint64(cfg.MaxUncommitted),
		MaxCommittedBytesPerReady: uint64(4 * cfg.MaxMessageEntries),
		AckOnPersist:              true, AsyncApply: true,
		LogCacheBytes: uint64(cfg.MaxMessageEntries), UnstableOnly: true, LazyCommit: true,
	}
	if o.grace && regions.IsInitialized(region) {
		rc.VoteGraceTicks = cfg.ElectionTicks
	}
	rn, err := raft.NewRawNode(rc)
	if err != nil {
		return nil, fmt.Errorf("region %d: %w", region.Id, err)
	}
	p.rn = rn
	now := s.clock.Now()
	p.noteLeader(now)
	p.sleep.active = now
	p.times.stale = now.Add(jitter(cfg.StalePeerCheck.Duration))
	p.times.splitCheck = now
	p.box.compared.Store(s.comparisons.slot(region.Id))
	p.reads.init(s, region.Id)
	p.once.begin()
	p.once.ancestors = o.ancestors
	p.merge.resume(o.merging, now)
	p.publish()
	return p, nil
}

func (p *peer) region() *metapb.Region { return p.ps.region }
func (p *peer) isLeader() bool         { return p.rn.State() == raft.StateLeader }

// initialized tells whether the peer knows its range.
func (p *peer) initialized() bool { return regions.IsInitialized(p.region()) }

// leaderPeer is the peer that this replica believes to lead, nil if unknown.
func (p *peer) leaderPeer() *metapb.Peer {
	if id := p.rn.Lead(); id != raft.None {
		return p.peerOf(id)
	}
	return nil
}

// peerOf finds a peer by id among the region's and those learnt from messages.
func (p *peer) peerOf(id uint64) *metapb.Peer {
	if q := regions.PeerByID(p.region(), id); q != nil {
		return q
	}
	return p.cache[id]
}

// setRegion makes a new region value the current one: the only place, so that the worker's view,
// raft's storage, the range map and the read handle change together.
func (p *peer) setRegion(r *metapb.Region) {
	p.ps.region = r
	for _, source := range p.store.ranges.setRegion(r, p.self.Id) {
		_ = p.store.router.send(source, &message.Wake{}) // it looks by itself, later
	}
	if self := regions.PeerByID(r, p.self.Id); self != nil {
		p.self = self
	}
	for id := range p.cache {
		if regions.PeerByID(r, id) != nil {
			delete(p.cache, id)
		}
	}
	p.publish()
}

// sendRaft queues a raft message for the peer it is addressed to.
func (p *peer) sendRaft(t *turn, m *eraftpb.Message) {
	to := p.peerOf(m.To)
	if to == nil {
		p.logger.Debug("dropping message to unknown peer", zap.Uint64("to", m.To))
		return
	}
	rm := t.newMessage()
	*rm = rspb.RaftMessage{
		RegionId: p.regionID, FromPeer: p.self, ToPeer: to, Message: m,
		RegionEpoch: p.region().RegionEpoch, ClusterId: p.store.clusterID,
	}
	if p.initialized() && isInitialMessage(m) {
		// The receiver may have to create the peer, and must see that the range is free.
		rm.StartKey, rm.EndKey = p.region().StartKey, p.region().EndKey
	}
	t.send(to.StoreId, rm)
}

// isInitialMessage tells whether a message may create a peer: a vote, or the heartbeat with commit
// 0 that a leader sends to a peer it knows nothing of.
func isInitialMessage(m *eraftpb.Message) bool {
	switch m.MsgType {
	case eraftpb.MessageType_MsgRequestVote, eraftpb.MessageType_MsgPreVote:
		return true
	case eraftpb.MessageType_MsgHeartbeat:
		return m.Commit == 0
	}
	return false
}

// confVer is the newest conf version at which this peer is known to have been a member. A message
// that says that it is none must know a newer one. An uninitialized peer that believed an older
// one, of a placement service which has not heard of it yet, would leave a tombstone behind, and
// the region would miss a voter for ever.
func (p *peer) confVer() uint64 { return max(p.region().GetRegionEpoch().GetConfVer(), p.bornAt) }

// isVote tells whether a message asks for a vote.
func isVote(m *eraftpb.Message) bool {
	return m.GetMsgType() == eraftpb.MessageType_MsgRequestVote ||
		m.GetMsgType() == eraftpb.MessageType_MsgPreVote
}

// wantsTurn tells whether the peer has more to do at once.
func (p *peer) wantsTurn() bool {
	// A read that fails is tried again with the next message or tick.
	return !p.stopped &&
		(len(p.writes) > 0 || p.ps.readErr == nil && p.rn.HasReady() || p.transfer.hasEnded() ||
			p.merge.hasHeldEnded())
}

// awaitsApplied tells whether something waits for the apply worker's next report, so that it must
// be worked off at once even if it only says how far the worker has come.
func (p *peer) awaitsApplied() bool {
	return len(p.reads.confirmed) > 0 || len(p.once.held) > 0 || p.split.index != 0 ||
		len(p.merge.held) > 0 ||
		p.installing != 0 || p.removed != nil ||
		p.rn.LeadTransferee() != raft.None
}

// handleMessages works off what was in the mailbox. Neighbouring writes become one raft entry.
func (p *peer) handleMessages(t *turn, msgs []message.Msg) {
	for _, m := range msgs {
		if p.stopped {
			p.refuse(m)
			continue
		}
		p.handleMessage(t, m)
	}
	if p.stopped {
		return
	}
	p.merge.tellCommitted()
	p.transfer.resume()
	p.merge.resumeWrites()
	p.once.resume()
	p.flushWrites()
	p.reads.ask()
	p.sick.tend(t)
}

func (p *peer) handleMessage(t *turn, m message.Msg) {
	p.sleep.stir(m)
	switch m := m.(type) {
	case *message.Raft:
		p.onRaft(t, m.Message)
	case *message.Write:
		p.onWrite(m)
	case *message.Read:
		if err := p.checkHeader(m.Header, true, false, m.Deadline); err != nil {
			m.Callback.Fail(err)
		} else {
			p.reads.arrived = append(p.reads.arrived, m)
		}
	case *message.Admin:
		p.onAdmin(m)
	case *message.Applied:
		p.onApplied(t, m)
	case *message.LogGC:
		p.compact.onDurable(t, m)
	case *message.Start:
		p.onStart(m)
	case *message.BecomeSplit:
		p.split.onBecome(t, m)
	case *message.StoreLost:
		p.sleep.onStoreLost(m)
	case *message.Unreachable:
		p.rn.ReportUnreachable(m.ToPeer)
	case *message.SnapshotSent:
		p.rn.ReportSnapshot(m.ToPeer, m.OK)
	case *message.SnapshotBuilt:
		p.ps.onBuilt(m.Snapshot)
		if p.isLeader() && m.Snapshot != nil {
			p.rn.BroadcastHeartbeat() // the answers make raft try the follower again
		}
	case *message.SnapshotInstalled:
		p.onInstalled(t, m)
	case *message.Wake:
		p.merge.lookNow(t)
	case *message.Absorbed:
		p.merge.onAbsorbed(t, m)
	case *message.SplitChecked:
		p.split.onChecked(m)
	case *message.AskedSplit:
		p.split.onAsked(m)
	case *message.SplitAt:
		p.split.onSplitAt(m)
	case *message.Operator:
		p.onOperator(m.Response)
	case *message.RegionTruth:
		p.onRegionTruth(t, m.Region)
	case *message.HeartbeatNow:
		if p.isLeader() {
			p.report.send()
		}
	case *message.ReadFailed:
		p.sick.note(m.Err)
	case *message.CompareReplicas:
		p.compare.begin(m)
	case *message.EndComparison:
		if p.compare.current != nil && p.compare.current.asked == m.Comparison {
			p.compare.end(t)
		}
	case *message.Hashed:
		p.compare.onHashed(t, m)
	case *message.Inspect:
		m.Fn(&PeerView{p})
	}
}

func (p *peer) onStart(m *message.Start) {
	if m.Campaign || (len(p.region().Peers) == 1 && p.region().Peers[0].Id == p.self.Id) {
		if err := p.rn.Campaign(); err != nil {
			p.logger.Debug("campaign refused", zap.Error(err))
		}
	}
}

// onApplied takes the report of the apply worker.
func (p *peer) onApplied(t *turn, m *message.Applied) {
	if m.PeerID != p.self.Id || m.Index <= p.appliedIndex {
		return
	}
	if p.installing != 0 {
		// The report is older than the raft snapshot, whose region and members raft has taken over.
		p.merge.endSources(m)
		p.split.createRightHalves(m)
		return
	}
	st := &p.stats
	st.sizeDelta += m.SizeDelta
	st.writtenBytes += uint64(m.Written)
	st.sinceCount += uint64(m.Written)
	st.writtenKeys += uint64(m.WrittenKeys)
	p.store.written.add(uint64(m.WrittenKeys), uint64(m.Written))
	st.size = uint64(max(0, int64(st.size)+m.SizeDelta))
	st.keys = uint64(max(0, int64(st.keys)+m.KeysDelta))
	if m.Shrunk {
		st.sizeKnown = false // the next tick has it measured
	}
	for _, res := range m.Results {
		switch res := res.(type) {
		case message.ChangedPeer:
			p.onChangedPeer(res)
		case message.SplitDone:
			p.split.onDone(res)
		case message.SplitRefused:
			if res.Index >= p.split.index {
				p.split.index = 0
			}
		case message.NewVersion:
			p.merge.onNewVersion(res)
		case message.RaisedFloor:
			p.setRegion(res.Region)
		case message.MergeDone:
			p.merge.onDone(res)
		case message.CompactedLog:
			p.ps.truncated = rspb.RaftTruncatedState{Index: res.Index, Term: res.Term}
			p.store.logGC.Request(p.regionID, res.Index, res.Term)
		}
	}
	p.appliedIndex, p.appliedTerm = m.Index, m.Term
	if p.split.index != 0 && p.split.index <= m.Index {
		p.split.index = 0
	}
	p.rn.AppliedTo(m.Index)
	p.reads.answer()
	p.publish()
	p.merge.tick(t, p.store.clock.Now())
	if p.removed != nil && !p.isLeader() {
		p.destroy(t, p.removed.region, nil)
	}
}
