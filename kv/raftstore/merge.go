package raftstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/raft"
)

// A merge: region S, the source, goes into its neighbour T, the target, on the same stores. T's log
// decides.
//
//	propose       S's leader proposes PrepareMerge, with T's epoch T0
//	              (from here on its writes wait: holdWrite)
//	onNewVersion  it is applied, as entry P: S is frozen. It serves nothing, and no other entry takes effect
//	ack           each frozen replica tells S's leader once it has published that, and again in each mergeInterval
//	sendReady     all have: the leader tells T's replicas, and again in each mergeInterval
//	onOrder       T's leader, if T is exactly at T0 and all its replicas are initialized, proposes CommitMerge
//	apply         CommitMerge takes effect at T0 only: T joined, S's tombstone, in one synced batch (apply/merge.go)
//	onDone        T takes the range in memory, S's peer ends (onAbsorbed), its log goes (retireSource)
//
// S's leader that has waited for too long sends Cancel: T's leader proposes RefuseMerge, which
// changes T's epoch. Whatever changes it first decides: the merge, or anything else, which has
// refused it for ever. Only with proof of a refusal does S's leader propose RollbackMerge. Each
// frozen replica looks at T on its own store (look), and asks the other stores of S when that says
// nothing (answerMerge). A raft snapshot of T takes S's replica over (install.go).
//
// The protocol is searched exhaustively in tests/model, with the variants of it that lose data;
// names are the same there.
//
// Invariants:
//   - an acknowledgement promises: P is applied and synced here, the read handle says so, and
//     nothing of S is served or proposed here until RollbackMerge(P) is applied, also after a
//     restart;
//   - CommitMerge is proposed after all replicas of S have acknowledged its P, at T0 only;
//   - a replica of S ends only by CommitMerge, by T's snapshot, or when T here has passed
//     CommitMerge or is gone, and its data go only where no other region is.

const (
	// mergeInterval is how often a frozen replica looks how the merge stands, and says what it has
	// to say again.
	mergeInterval = 200 * time.Millisecond
	// mergeLimit is for how long the source's leader waits, for the acknowledgements and for the
	// target's answer together, until it asks the target to refuse. Writes wait meanwhile, and a
	// merge is never urgent. With the way out it is less than a second if the target has a quorum.
	mergeLimit = 700 * time.Millisecond
	// mergeHoldLimit bounds for how long a write to a frozen region waits. One that has waited for
	// that long is refused, and its client may have something else to do.
	mergeHoldLimit = time.Second
)

// errMerging answers commands to a frozen region.
var errMerging = &regionerr.BusyError{Reason: "the region is being merged into another one"}

// merger is a peer's part in it. Most of it is of the source's peer.
type merger struct {
	p *peer
	// state is set while the region is frozen. The rest of the source's part begins anew with each.
	state *rspb.MergingState
	next  time.Time
	// acks are the peers that are frozen, by the leader's knowledge.
	acks map[uint64]bool
	// What was learnt of the target: it has refused; it has passed the epoch; the source has ended
	// on another store.
	refused, beyond, merged bool

	// A leader's, of its term: since when it waits, and whether it has sent an order; its
	// RollbackMerge; the second question, and who has answered it.
	term      uint64
	since     time.Time
	readySent bool
	rollback  uint64
	nonce     uint64
	answered  map[uint64]bool

	// early are acknowledgements that came before this leader was frozen itself: the entry that
	// each peer names. At most one for each peer of the region.
	early map[uint64]uint64

	mergeProposals
}

// mergeProposals is what a leader, of the source or of the target, has under way. It outlives the
// freeze.
type mergeProposals struct {
	// The target's leader: its newest CommitMerge or RefuseMerge, and the term in which it proposed
	// that.
	order, orderTerm uint64
	// The source's leader: the same of its newest PrepareMerge.
	prepare, prepareTerm uint64
	// urgent is the newest of these entries while a follower may not know that it is committed; it
	// learns that without waiting for a tick (tellCommitted).
	urgent uint64

	// held are writes that wait for the end of the merge, in the order in which they came.
	//
	// Invariant: what waits here has not been proposed; it is checked anew when the wait ends, its
	// deadline too.
	held      []mergeHeld
	heldBytes int
}

// mergeHeld is a write that waits, and until when.
type mergeHeld struct {
	write *message.Write
	until time.Time
}

// resume begins a peer's life, frozen if it was. Nobody reads its handle yet.
func (mg *merger) resume(state *rspb.MergingState, now time.Time) {
	if state != nil {
		mg.freeze(state, now)
	}
}

func (mg *merger) freeze(state *rspb.MergingState, now time.Time) {
	acks := map[uint64]bool{}
	for peer, commit := range mg.early {
		if commit == state.Commit {
			acks[peer] = true
		}
	}
	*mg = merger{
		p: mg.p, state: state, since: now, acks: acks, mergeProposals: mg.mergeProposals,
	}
	mg.p.store.ranges.freeze(frozenRegion{region: mg.p.region(), peer: mg.p.self, state: state})
}

func (mg *merger) thaw() {
	*mg = merger{p: mg.p, mergeProposals: mg.mergeProposals}
	mg.p.store.ranges.thaw(mg.p.regionID)
}

// propose has the region frozen, to go into a target that this store knows exactly as the order
// names it.
func (mg *merger) propose(a *message.Admin) error {
	p, order := mg.p, a.Request.GetPrepareMerge().GetTarget()
	target := p.store.ranges.region(order.GetId())
	switch {
	case !p.store.cfg.Raftstore.Merge:
		return regionerr.Invalidf("merging regions is switched off (raftstore.region-merge)")
	case p.store.encodedKeys && !p.store.features().Has(feature.TxnMerge):
		return &regionerr.FeatureError{Missing: feature.TxnMerge}
	case !p.store.features().Has(feature.Merge):
		return &regionerr.FeatureError{Missing: feature.Merge}
	case !regions.IsInitialized(target):
		return regionerr.Invalidf("region %d is not on the store of region %d's leader",
			order.GetId(), p.regionID)
	case !regions.SameEpoch(order.GetRegionEpoch(), target.RegionEpoch):
		return &regionerr.EpochNotMatchError{
			RegionID: target.Id, Regions: p.store.ranges.withNeighbours(target),
		}
	case !regions.SameStores(target, p.region()):
		return regionerr.Invalidf("regions %d and %d do not have their voters on the same stores",
			p.regionID, target.Id)
	case p.rn.HasPendingConfChange() || p.split.index != 0 || p.stats.askingSplit ||
		p.rn.LeadTransferee() != raft.None ||
		p.appliedTerm != p.rn.Term() || p.store.ranges.isFrozen(target.Id):
		return &regionerr.BusyError{
			Reason: "a split, a merge, or a change of members or leader is under way",
		}
	}
	if _, err := regions.Join(target, p.region(), 1); err != nil {
		return err
	}
	if !mg.replicasFollow() {
		return &regionerr.BusyError{Reason: "not all replicas follow the leader's log"}
	}
	c := *a
	c.Request = &raft_cmdpb.AdminRequest{
		CmdType:      raft_cmdpb.AdminCmdType_PrepareMerge,
		PrepareMerge: &raft_cmdpb.PrepareMergeRequest{Target: target},
	}
	if p.proposeAdmin(&c) {
		mg.prepare, mg.prepareTerm = p.rn.LastIndex(), p.rn.Term()
		mg.urgent = mg.prepare
	}
	return nil
}

// freezing tells whether this leader has a PrepareMerge under way. What it proposed behind it
// would be refused when it is applied.
func (mg *merger) freezing() bool {
	return mg.prepare > mg.p.appliedIndex && mg.p.leadsIn(mg.prepareTerm)
}

// holdWrite keeps a write to a region that is frozen, or is about to be, until the merge has ended:
// its client is then sent to the joined region, or the write is proposed here. err is what is to be
// said to it otherwise. False: it does not wait, or too much waits already.
func (mg *merger) holdWrite(w *message.Write, err error) bool {
	cfg := &mg.p.store.cfg.Raftstore
	if !(errors.Is(err, errMerging) || err == nil && mg.freezing()) || mg.p.removed != nil ||
		len(mg.held) >= cfg.MaxPendingPerRegion ||
		mg.heldBytes+len(w.Payload) > int(cfg.MaxUncommitted) {
		return false
	}
	mg.held = append(mg.held,
		mergeHeld{write: w, until: mg.p.store.clock.Now().Add(mergeHoldLimit)})
	mg.heldBytes += len(w.Payload)
	return true
}

// hasHeldEnded tells whether writes have waited long enough: all of them, or the oldest.
func (mg *merger) hasHeldEnded() bool {
	return len(mg.held) > 0 && (mg.state == nil && !mg.freezing() || !mg.p.isLeader() ||
		!mg.p.store.clock.Now().Before(mg.held[0].until))
}

// resumeWrites carries on with the writes whose wait has ended.
func (mg *merger) resumeWrites() {
	if !mg.hasHeldEnded() {
		return
	}
	if mg.p.isLeader() && (mg.state != nil || mg.freezing()) {
		for now := mg.p.store.clock.Now(); len(mg.held) > 0 && !now.Before(mg.held[0].until); {
			w := mg.held[0].write
			mg.held[0] = mergeHeld{}
			mg.held, mg.heldBytes = mg.held[1:], mg.heldBytes-len(w.Payload)
			mg.p.refuseWrite(w, errMerging)
		}
		return
	}
	held := mg.held
	mg.held, mg.heldBytes = nil, 0
	for _, h := range held {
		mg.p.onWrite(h.write)
	}
}

// dropWrites refuses the writes that wait: the peer ends.
func (mg *merger) dropWrites(cause error) {
	for _, h := range mg.held {
		mg.p.refuseWrite(h.write, cause)
	}
	mg.held, mg.heldBytes = nil, 0
}

// tellCommitted has the others learn that an entry of a merge is committed as soon as each has it:
// all of them have to apply it, and clients wait.
func (mg *merger) tellCommitted() {
	if mg.urgent != 0 && mg.p.rn.TellCommit(mg.urgent) {
		mg.urgent = 0
	}
}

// refuseBehind answers the proposals of a frozen replica whose region has gone into another one, so
// that RollbackMerge takes effect never: nothing behind the entry that froze it has had, or will
// have, any. What was proposed before it has been handed to the apply worker.
func (mg *merger) refuseBehind(cause error) {
	p, kept := mg.p, 0
	if mg.state == nil {
		return
	}
	for i := range p.proposals {
		prop := &p.proposals[i]
		if prop.Index() <= mg.state.Commit {
			p.proposals[kept] = *prop
			kept++
			continue
		}
		p.store.inflight.Add(-int64(prop.Size()))
		prop.RefusedAtApply(cause)
	}
	clear(p.proposals[kept:])
	p.proposals = p.proposals[:kept]
}

// replicasFollow tells whether every other peer has taken entries of this leader's log, in this
// term. An uninitialized one has no log that they could follow.
func (mg *merger) replicasFollow() bool {
	for _, q := range mg.p.region().Peers {
		if q.Id == mg.p.self.Id {
			continue
		}
		pr, ok := mg.p.rn.ProgressOf(q.Id)
		if !ok || pr.State != raft.ProgressReplicate || !pr.RecentActive ||
			pr.Match < mg.p.ps.truncated.Index {
			return false
		}
	}
	return true
}

// onNewVersion takes over what an entry of a merge has made of the region. What it says is
// published before anyone is told.
func (mg *merger) onNewVersion(res message.NewVersion) {
	p := mg.p
	p.once.noteVersion(res.Index, res.Region.RegionEpoch.Version)
	mg.urgent = max(mg.urgent, res.Index)
	switch {
	case res.Merging != nil:
		p.logger.Info("region is frozen, to be merged",
			zap.Uint64("target-region-id", res.Merging.Target.GetId()),
			log.Index(res.Index), zap.Uint64("version", res.Region.RegionEpoch.Version))
		p.reads.failAll(errMerging)
		mg.freeze(res.Merging, p.store.clock.Now())
		p.setRegion(res.Region)
		p.store.ranges.freeze(frozenRegion{region: res.Region, peer: p.self, state: res.Merging})
		return
	case mg.state != nil:
		p.logger.Info("merge was refused, the region goes on",
			zap.Uint64("version", res.Region.RegionEpoch.Version))
		mg.thaw()
	default:
		p.logger.Info("refused a merge", zap.Uint64("version", res.Region.RegionEpoch.Version))
	}
	p.setRegion(res.Region)
	if p.isLeader() {
		p.report.send()
	}
}

// tick is what a frozen replica does once in mergeInterval, and right after it was frozen.
func (mg *merger) tick(t *turn, now time.Time) {
	if mg.state == nil || mg.p.stopped || mg.p.installing != 0 ||
		!due(now, &mg.next, mergeInterval) {
		return
	}
	if !mg.look(t) {
		return
	}
	if mg.p.isLeader() {
		mg.acks[mg.p.self.Id] = true
		mg.lead(t, now)
		return
	}
	leader := mg.p.leaderPeer()
	if leader == nil {
		return
	}
	mg.send(t, leader, &rspb.MergeMessage{Kind: rspb.MergeMessage_Ack})
	if mg.refused {
		mg.send(t, leader,
			&rspb.MergeMessage{Kind: rspb.MergeMessage_Answer, Verdict: rspb.MergeMessage_Refused})
	}
}

// lookNow is what a frozen replica does when the target has changed on its store.
func (mg *merger) lookNow(t *turn) {
	mg.next = time.Time{}
	mg.tick(t, mg.p.store.clock.Now())
}

// describe says how the merge of a frozen region stands, for people.
func (mg *merger) describe() string {
	what := "waits for the target"
	switch {
	case mg.refused:
		what = "refused"
	case mg.merged:
		what = "merged elsewhere"
	case mg.beyond:
		what = "the target has gone on"
	case mg.p.isLeader() && !mg.allAcked():
		what = fmt.Sprintf("%d of %d replicas are frozen", len(mg.acks), len(mg.p.region().Peers))
	}
	return fmt.Sprintf("frozen by entry %d for the target at %v: %s", mg.state.Commit,
		mg.state.Target.RegionEpoch, what)
}

// look judges by what this store has of the target, all from one engine snapshot: the source may
// have ended in it. False: this replica has ended, or goes on, or does so soon.
func (mg *merger) look(t *turn) bool {
	view := mg.p.store.engine.NewSnapshot()
	defer view.Close()
	own, err := meta.LoadRegionState(view, mg.p.regionID)
	if err != nil {
		mg.p.sick.note(err)
		return false
	}
	if own.GetState() != rspb.PeerState_Merging || own.Merging.GetCommit() != mg.state.Commit {
		return false // the message that says so is on its way
	}
	if mg.nonce != 0 {
		mg.answered[mg.p.self.Id] = true
	}
	target, err := meta.LoadRegionState(view, mg.state.Target.Id)
	if err != nil {
		mg.p.sick.note(err)
		return false
	}
	verdict := mergeVerdict(target, own)
	mg.learn(verdict)
	absent := target == nil || target.State == rspb.PeerState_Tombstone
	if verdict == rspb.MergeMessage_Committed ||
		mg.merged && (absent || verdict == rspb.MergeMessage_Unknown) {
		// The target here does not apply the merge any more: it has passed it without this range,
		// or is gone.
		mg.p.logger.Info("destroying a replica whose region went into another one",
			zap.Uint64("target-region-id", mg.state.Target.Id))
		mg.refuseBehind(&regionerr.RegionNotFoundError{RegionID: mg.p.regionID})
		mg.p.destroy(t, mg.p.region(), nil)
		return false
	}
	if absent || verdict == rspb.MergeMessage_Unknown {
		mg.ask(t)
	}
	return true
}

func (mg *merger) learn(v rspb.MergeMessage_Verdict) {
	mg.refused = mg.refused || v == rspb.MergeMessage_Refused
	mg.beyond = mg.beyond || v != rspb.MergeMessage_Nothing
}

// mergeVerdict is what a store's record of the target says of the merge of a frozen source. While
// the target is being replaced it may not have passed what its record says: nothing.
func mergeVerdict(target, source *rspb.RegionLocalState) rspb.MergeMessage_Verdict {
	if target == nil || target.State == rspb.PeerState_Applying ||
		target.State == rspb.PeerState_Normal && !regions.IsInitialized(target.Region) {
		return rspb.MergeMessage_Nothing
	}
	m := source.Merging
	return regions.MergeVerdict(target.Region, source.Region.Id, m.GetCommit(),
		m.GetTarget().GetRegionEpoch())
}

// lead is the leader's part, with what it knows.
func (mg *merger) lead(t *turn, now time.Time) {
	p := mg.p
	if term := p.rn.Term(); mg.term != term {
		mg.term, mg.since, mg.readySent, mg.rollback = term, now, false, 0
		mg.nonce, mg.answered = 0, nil
	}
	if p.appliedTerm != mg.term || mg.rollback > p.appliedIndex {
		// what earlier leaders have proposed is not known yet, or a RollbackMerge is under way
		return
	}
	if mg.refused || mg.proven() {
		mg.proposeRollback()
		return
	}
	late := now.Sub(mg.since) >= mergeLimit
	if mg.allAcked() && !late {
		mg.readySent = true
		mg.toTarget(t, rspb.MergeMessage_Ready)
	}
	if late {
		mg.toTarget(t, rspb.MergeMessage_Cancel)
		mg.ask(t)
	}
}

func (mg *merger) allAcked() bool {
	for _, q := range mg.p.region().Peers {
		if !mg.acks[q.Id] {
			return false
		}
	}
	return true
}

// proven is the second proof of a refusal: after an epoch of the target beyond T0 was seen, every
// store of the source was found to have it frozen, this one too, by its engine. A merge would have
// ended it on one of them first.
func (mg *merger) proven() bool {
	for _, q := range mg.p.region().Peers {
		if mg.nonce == 0 || !mg.answered[q.Id] {
			return false
		}
	}
	return true
}

func (mg *merger) proposeRollback() {
	a := &message.Admin{Request: &raft_cmdpb.AdminRequest{
		CmdType:       raft_cmdpb.AdminCmdType_RollbackMerge,
		RollbackMerge: &raft_cmdpb.RollbackMergeRequest{Commit: mg.state.Commit},
	}}
	if mg.p.proposeAdmin(a) {
		mg.rollback = mg.p.rn.LastIndex()
	}
}

// ask asks the other stores of the source. What they answer to a leader counts for the second proof
// if it has seen the target beyond T0 before it asked.
func (mg *merger) ask(t *turn) {
	if mg.beyond && mg.p.isLeader() && mg.nonce == 0 {
		mg.nonce, mg.answered = rand.Uint64()|1, map[uint64]bool{}
	}
	for _, q := range mg.p.region().Peers {
		if q.Id != mg.p.self.Id {
			mg.send(t, q, &rspb.MergeMessage{Kind: rspb.MergeMessage_Question, Nonce: mg.nonce})
		}
	}
}

// send sends a message to another peer of the source.
func (mg *merger) send(t *turn, to *metapb.Peer, m *rspb.MergeMessage) {
	m.Source, m.Commit = mg.p.region(), mg.state.Commit
	m.TargetId, m.TargetEpoch = mg.state.Target.Id, mg.state.Target.RegionEpoch
	t.send(to.StoreId, &rspb.RaftMessage{
		RegionId: mg.p.regionID, FromPeer: mg.p.self, ToPeer: to,
		RegionEpoch: mg.p.region().RegionEpoch,
		ClusterId:   mg.p.store.clusterID, Merge: m,
	})
}

// toTarget sends an order to the target's replicas; its leader carries it out.
func (mg *merger) toTarget(t *turn, kind rspb.MergeMessage_Kind) {
	for _, q := range mg.state.Target.Peers {
		rm := &rspb.RaftMessage{
			RegionId: mg.state.Target.Id, FromPeer: mg.p.self, ToPeer: q,
			RegionEpoch: mg.state.Target.RegionEpoch,
			ClusterId:   mg.p.store.clusterID, Merge: &rspb.MergeMessage{
				Kind: kind, Source: mg.p.region(), Commit: mg.state.Commit,
				TargetId: mg.state.Target.Id, TargetEpoch: mg.state.Target.RegionEpoch,
			},
		}
		if q.StoreId == mg.p.store.storeID {
			_ = mg.p.store.router.send(rm.RegionId, &message.Raft{Message: rm}) // or it is not here
			continue
		}
		t.send(q.StoreId, rm)
	}
}

// onMessage takes a message about a merge: an order to this peer's region as the target, or what
// another store says to it as the source.
func (mg *merger) onMessage(t *turn, rm *rspb.RaftMessage) {
	m := rm.Merge
	switch m.Kind {
	case rspb.MergeMessage_Ready, rspb.MergeMessage_Cancel:
		mg.onOrder(m)
		return
	}
	if m.Kind == rspb.MergeMessage_Ack {
		mg.noteEarly(rm)
	}
	if mg.state == nil || m.Commit != mg.state.Commit || m.TargetId != mg.state.Target.Id ||
		regions.PeerByID(mg.p.region(), rm.FromPeer.Id) == nil {
		return // of an earlier attempt: the entry names it
	}
	switch m.Kind {
	case rspb.MergeMessage_Ack:
		mg.acks[rm.FromPeer.Id] = true
		if mg.allAcked() && !mg.readySent {
			mg.next = time.Time{}
		}
	case rspb.MergeMessage_Answer:
		refused, merged, proven := mg.refused, mg.merged, mg.proven()
		mg.learn(m.Verdict)
		mg.merged = mg.merged || m.Merged
		if m.Frozen && mg.nonce != 0 && m.Nonce == mg.nonce {
			mg.answered[rm.FromPeer.Id] = true
		}
		if mg.refused != refused || mg.merged != merged || mg.proven() != proven {
			mg.next = time.Time{}
		}
	}
	mg.tick(t, mg.p.store.clock.Now())
}

// noteEarly remembers an acknowledgement of an entry that is not applied here yet. An index of what
// is applied on one store is one entry on all, so it names the attempt.
func (mg *merger) noteEarly(rm *rspb.RaftMessage) {
	if rm.Merge.Commit <= mg.p.appliedIndex ||
		regions.PeerByID(mg.p.region(), rm.FromPeer.Id) == nil {
		return
	}
	if mg.early == nil {
		mg.early = map[uint64]uint64{}
	}
	mg.early[rm.FromPeer.Id] = rm.Merge.Commit
}

// onOrder proposes what the source's leader asks for, if this peer leads the target, which has not
// passed T0. The epoch is compared once more when the entry is applied. What cannot be done now is
// no answer: the order comes again.
func (mg *merger) onOrder(m *rspb.MergeMessage) {
	p := mg.p
	if !p.isLeader() || p.removed != nil || p.installing != 0 || mg.state != nil ||
		p.appliedTerm != p.rn.Term() ||
		m.Source == nil || m.TargetId != p.regionID ||
		!regions.SameEpoch(p.region().RegionEpoch, m.TargetEpoch) ||
		mg.orderTerm == p.rn.Term() && mg.order > p.appliedIndex {
		return
	}
	req := &raft_cmdpb.AdminRequest{
		CmdType:     raft_cmdpb.AdminCmdType_RefuseMerge,
		RefuseMerge: &raft_cmdpb.RefuseMergeRequest{SourceId: m.Source.Id, Commit: m.Commit},
	}
	if m.Kind == rspb.MergeMessage_Ready {
		if p.rn.HasPendingConfChange() || p.split.index != 0 ||
			p.rn.LeadTransferee() != raft.None || !mg.replicasFollow() {
			return
		}
		if _, err := regions.Join(p.region(), m.Source, m.Commit); err != nil ||
			!regions.SameStores(p.region(), m.Source) {
			p.logger.Error("refusing to merge what does not fit",
				zap.Uint64("source-region-id", m.Source.Id), zap.Error(err))
			return
		}
		req = &raft_cmdpb.AdminRequest{
			CmdType:     raft_cmdpb.AdminCmdType_CommitMerge,
			CommitMerge: &raft_cmdpb.CommitMergeRequest{Source: m.Source, Commit: m.Commit},
		}
	}
	p.flushWrites()
	if p.proposeAdmin(&message.Admin{Request: req}) {
		mg.order, mg.orderTerm = p.rn.LastIndex(), p.rn.Term()
		mg.urgent = mg.order
	}
}

// onDone takes the joined range over in memory.
func (mg *merger) onDone(res message.MergeDone) {
	p := mg.p
	p.logger.Info("merged region", zap.Uint64("source-region-id", res.Source.Id),
		zap.Uint64("version", res.Region.RegionEpoch.Version))
	p.once.noteVersion(res.Index, res.Region.RegionEpoch.Version)
	p.store.endSource(res.Source, res.SourcePeer, res.Region, p.self.Id)
	p.setRegion(res.Region)
	p.stats.sizeKnown, p.stats.counted = false, message.Counted{} // the next check measures it
	p.times.splitCheck = p.store.clock.Now()
	mg.urgent = max(mg.urgent, res.Index)
	if p.isLeader() {
		p.report.send()
	}
}

// endSources ends the sources of applied merges although the target does not go on as it was: it is
// being replaced by a raft snapshot, destroyed, or quarantined. Their tombstones are written.
func (mg *merger) endSources(m *message.Applied) {
	p := mg.p
	if m.PeerID != p.self.Id {
		return
	}
	for _, res := range m.Results {
		done, ok := res.(message.MergeDone)
		if !ok {
			continue
		}
		if p.installing == 0 && p.store.quarantine.has(p.regionID) {
			// its data may be the last copy
			p.store.endSource(done.Source, done.SourcePeer, done.Region, p.self.Id)
			continue
		}
		p.store.endSource(done.Source, done.SourcePeer, nil, 0)
		// unless the snapshot's region has the range: its data come later
		p.store.regionRunner.clear(done.Source)
	}
}

// endSource ends a source whose tombstone is written: its range is the joined region's, or nobody's
// if that is nil.
func (s *Store) endSource(
	source *metapb.Region, peer *metapb.Peer, into *metapb.Region, intoPeer uint64,
) {
	s.ranges.absorb(source.Id, into, intoPeer)
	if err := s.router.send(source.Id, &message.Absorbed{Into: into}); err != nil {
		s.retireSource(nil, source, peer) // it does not run: it is quarantined, or has ended
	}
}

// onAbsorbed ends the peer of a source. What was asked of it is answered; its data stay.
func (mg *merger) onAbsorbed(t *turn, m *message.Absorbed) {
	p := mg.p
	p.logger.Info("region went into another one", zap.Uint64("target-region-id", m.Into.GetId()))
	p.sleep.wake() // ends its share in the store's accounts
	p.stopped = true
	var cause error = &regionerr.RegionNotFoundError{RegionID: p.regionID}
	if m.Into != nil {
		cause = &regionerr.EpochNotMatchError{
			RegionID: p.regionID, Regions: []*metapb.Region{m.Into},
		}
	}
	mg.refuseBehind(cause)
	p.endCommands(cause)
	p.lease.end()
	p.publish()
	box, region, self := p.box, p.region(), p.self
	// Behind all that its apply worker has of it.
	t.ends = append(t.ends, apply.Task{RegionID: p.regionID, End: &apply.End{
		Then: func() { p.store.retireSource(box, region, self) },
	}})
}

// retireSource removes what is left of a source besides its tombstone and its data, which are
// another region's. Repeated, it changes nothing.
func (s *Store) retireSource(box *mailbox, source *metapb.Region, peer *metapb.Peer) {
	s.quarantine.remove(source.Id)
	s.regionRunner.add(func() error {
		// The log could replay what the engine has of the source; once it is gone, nothing can.
		if err := s.engine.Sync(); err != nil {
			return err
		}
		var lb logBatch
		lb.Delete(source.Id)
		if err := s.log.Write(&lb, true); err != nil {
			return err
		}
		b := s.engine.NewBatch()
		b.Delete(meta.ApplyStateKey(source.Id))
		if err := s.engine.Write(b, false); err != nil {
			return err
		}
		s.snaps.DeleteRegion(source.Id)
		if box != nil {
			for _, m := range s.router.close(box) {
				box.peer.refuse(m)
			}
		}
		s.logger.Info("removed merged peer", log.RegionID(source.Id), log.PeerID(peer.GetId()))
		return nil
	})
}

// answerMerge answers a question about a merge by what is in the engine, whether a peer runs or
// not. On the store worker.
func (s *Store) answerMerge(m *rspb.RaftMessage) error {
	q := m.Merge
	view := s.engine.NewSnapshot()
	defer view.Close()
	source, err := meta.LoadRegionState(view, m.RegionId)
	if err != nil {
		s.readErrors.note(m.RegionId, err) // the question comes again
		return nil
	}
	target, err := meta.LoadRegionState(view, q.TargetId)
	if err != nil {
		s.readErrors.note(q.TargetId, err)
		return nil
	}
	asked := &rspb.RegionLocalState{Region: q.Source, Merging: &rspb.MergingState{
		Target: &metapb.Region{Id: q.TargetId, RegionEpoch: q.TargetEpoch}, Commit: q.Commit,
	}}
	if q.Source.GetId() != m.RegionId || q.TargetEpoch == nil {
		return nil
	}
	s.answer(m, &rspb.MergeMessage{
		Kind: rspb.MergeMessage_Answer, Commit: q.Commit, TargetId: q.TargetId, Nonce: q.Nonce,
		Verdict: mergeVerdict(target, asked),
		Frozen: source.GetState() == rspb.PeerState_Merging &&
			source.Merging.GetCommit() == q.Commit,
		Merged: source.GetMergedInto().GetCommit() == q.Commit &&
			source.GetMergedInto().GetTargetId() == q.TargetId,
	})
	return nil
}

// tellMerged answers whatever comes from a member of a region that has ended here by a merge. On
// the store worker.
func (s *Store) tellMerged(st *rspb.RegionLocalState, m *rspb.RaftMessage) {
	if m.IsTombstone || regions.PeerByID(st.Region, m.FromPeer.GetId()) == nil {
		if !m.IsTombstone && regions.EpochStale(m.RegionEpoch, st.Region.RegionEpoch) {
			// It was removed before the merge, and does not know it.
			s.trans.Send(m.FromPeer.StoreId, []*rspb.RaftMessage{
				gcMessage(s.clusterID, m.RegionId, st.Region.RegionEpoch, m.ToPeer, m.FromPeer),
			})
		}
		return
	}
	s.answer(m, &rspb.MergeMessage{
		Kind: rspb.MergeMessage_Answer, Commit: st.MergedInto.Commit,
		TargetId: st.MergedInto.TargetId, Merged: true,
	})
}

// answer sends a message about a merge back to where one came from.
func (s *Store) answer(to *rspb.RaftMessage, m *rspb.MergeMessage) {
	s.trans.Send(to.FromPeer.StoreId, []*rspb.RaftMessage{{
		RegionId: to.RegionId, FromPeer: to.ToPeer, ToPeer: to.FromPeer,
		RegionEpoch: to.RegionEpoch, ClusterId: s.clusterID,
		Incarnation: s.incarnation, Merge: m,
	}})
}
