package raftstore

import (
	"context"
	"errors"
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	"github.com/tinykv/tinykv/raft"
)

// The life of a write at its leader. Store.Write checks the store's limits and lays it into the
// region's mailbox -> onWrite checks it as of now and gathers it -> flushWrites makes one entry of
// all that is gathered -> propose has raft append it and remembers whose callbacks wait -> the raft
// worker persists and sends it (ready.go) -> giveToApply gives the committed entry, with its
// proposals, to the apply worker, which carries it out and answers.
//
// Other writes take side ways: retries wait for what is applied (exactly_once.go), writes that come
// while leadership changes wait for the next leader (transfer.go), and writes to a region that is
// going into another one for the end of that (merge.go).
//
// Invariant: inflight counts the payload of every write between Store.Write and its answer.

// Write queues a write; its callback is answered exactly once. It never blocks.
func (s *Store) Write(w *message.Write) {
	size := int64(len(w.Payload))
	if err := s.ready(); err != nil {
		w.Callback.Fail(err)
		return
	}
	if s.inflight.Add(size) > s.limits.Load().inflight {
		s.inflight.Add(-size)
		w.Callback.Fail(&regionerr.BusyError{
			Reason: "too many bytes of writes are in flight on this store",
		})
		return
	}
	w.Came(s.age())
	if err := s.router.send(w.Header.RegionID, w); err != nil {
		s.inflight.Add(-size)
		w.Callback.Fail(goneElse(s.ranges, err, w.Header, w.MinKey))
	}
}

// expire has a region that this store leads remove keys that have expired. A full disk is no reason
// not to.
func (s *Store) expire(ctx context.Context, r *metapb.Region, req *raft_cmdpb.ExpireRequest) error {
	deadline, _ := ctx.Deadline()
	w := &message.Write{
		Header: message.Header{
			RegionID: r.Id, Peer: regions.PeerOnStore(r, s.storeID), Epoch: r.RegionEpoch,
		},
		MinKey: r.StartKey, MaxKey: r.StartKey, DeletesOnly: true, Deadline: s.Due(deadline),
		Callback:    message.NewCallback(),
		Conditional: &message.Condition{Needs: feature.TTL},
		Payload:     message.AppendExpire(nil, req),
	}
	s.Write(w)
	res, err := w.Callback.Wait(ctx)
	if err == nil {
		err = res.Err
	}
	return err
}

func (p *peer) notLeader() error {
	leader := p.leaderPeer()
	if leader != nil && leader.Id == p.self.Id {
		leader = nil
	}
	return &regionerr.NotLeaderError{RegionID: p.regionID, Leader: leader}
}

func isNotLeader(err error) bool {
	var elsewhere *regionerr.NotLeaderError
	return errors.As(err, &elsewhere)
}

func (p *peer) epochNotMatch() error {
	return &regionerr.EpochNotMatchError{
		RegionID: p.regionID, Regions: p.store.ranges.withNeighbours(p.region()),
	}
}

// checkHeader refuses a command that is not for this peer as it is now. The order is fixed, so that
// a client always learns the most basic fault first: store, peer, leader, term, epoch, deadline.
func (p *peer) checkHeader(h message.Header, version, confVer bool, deadline time.Time) error {
	if h.Peer.GetStoreId() != p.store.storeID {
		return &regionerr.StoreNotMatchError{Request: h.Peer.GetStoreId(), Actual: p.store.storeID}
	}
	if h.Peer.GetId() != p.self.Id {
		return &regionerr.PeerNotMatchError{
			RegionID: p.regionID, Request: h.Peer.GetId(), Actual: p.self.Id,
		}
	}
	if !p.isLeader() || p.removed != nil {
		return p.notLeader()
	}
	if h.Term != 0 && h.Term+1 < p.rn.Term() {
		return &regionerr.StaleCommandError{Term: p.rn.Term()}
	}
	if (version || confVer) && h.Epoch == nil {
		return regionerr.Invalidf("request for region %d has no epoch", p.regionID)
	}
	if !regions.EpochMatches(p.region(), h.Epoch, version, confVer) {
		return p.epochNotMatch()
	}
	if !deadline.IsZero() && p.store.clock.Now().After(deadline) {
		// Proposing it now would let a write land after its client has given up (N3).
		return regionerr.ErrDeadlineExceeded
	}
	if p.merge.state != nil {
		return errMerging
	}
	return nil
}

// onWrite checks a write and puts it into the group that becomes one entry.
func (p *peer) onWrite(w *message.Write) {
	err := p.checkHeader(w.Header, true, false, w.Deadline)
	if w.Bound && !p.leadsIn(w.Header.Term) {
		if err == nil {
			err = &regionerr.StaleCommandError{Term: p.rn.Term()}
		}
		p.refuseWrite(w, err)
		return
	}
	if p.transfer.hold(w, err) || p.merge.holdWrite(w, err) {
		return
	}
	if err == nil {
		err = p.checkWrite(w)
	}
	if err != nil {
		p.refuseWrite(w, err)
		return
	}
	if !p.once.admit(w) {
		return
	}
	if p.writeSize > 0 &&
		(w.Conditional != nil ||
			p.writeSize+len(w.Payload) > int(p.store.cfg.Raftstore.MaxBatchEntry)) {
		p.flushWrites()
	}
	p.writes = append(p.writes, w)
	p.writeSize += len(w.Payload)
	p.boundWrites = p.boundWrites || w.Bound
	if w.Conditional != nil {
		p.flushWrites()
	}
}

// leadsIn tells whether this peer leads, in this very term.
func (p *peer) leadsIn(term uint64) bool { return p.isLeader() && p.rn.Term() == term }

func (p *peer) refuseWrite(w *message.Write, err error) {
	p.store.inflight.Add(-int64(len(w.Payload)))
	w.Callback.Fail(err)
}

// refuseOtherTerms refuses those of the gathered writes that are bound to a term which has ended
// since they came: the messages of one turn may hold another term's beginning.
func (p *peer) refuseOtherTerms() {
	kept := p.writes[:0]
	for _, w := range p.writes {
		if !w.Bound || p.leadsIn(w.Header.Term) {
			kept = append(kept, w)
			continue
		}
		p.writeSize -= len(w.Payload)
		p.refuseWrite(w, &regionerr.StaleCommandError{Term: p.rn.Term()})
	}
	clear(p.writes[len(kept):])
	p.writes, p.boundWrites = kept, false
}

func (p *peer) checkWrite(w *message.Write) error {
	if err := regions.CheckKey(p.region(), w.MinKey); err != nil {
		return err
	}
	if err := regions.CheckKey(p.region(), w.MaxKey); err != nil {
		return err
	}
	if limit := uint64(p.store.cfg.Raftstore.MaxEntry); uint64(len(w.Payload)) > limit {
		return &regionerr.EntryTooLargeError{
			RegionID: p.regionID, Size: uint64(len(w.Payload)), Limit: limit,
		}
	}
	if err := checkFeatures(p, w); err != nil {
		return err
	}
	if !w.DeletesOnly && p.store.diskFull.Load() {
		return &regionerr.DiskFullError{StoreID: p.store.storeID}
	}
	if len(p.proposals) >= p.store.cfg.Raftstore.MaxPendingPerRegion {
		return &regionerr.BusyError{Reason: "too many writes of this region are not applied yet"}
	}
	return nil
}

// checkFeatures refuses what not every store of the cluster can carry out.
func checkFeatures(p *peer, w *message.Write) error {
	var needs feature.Set
	if w.Conditional != nil {
		needs = w.Conditional.Needs
	}
	if w.Expiring {
		needs |= feature.TTL
	}
	if missing := needs &^ p.store.features(); missing != 0 {
		return &regionerr.FeatureError{Missing: missing}
	}
	if w.Expiring && p.region().ExpiryFloor == 0 {
		// The floor is raised before the write is sent, so the region has changed since.
		return &regionerr.BusyError{Reason: "the region is not prepared for keys that expire"}
	}
	return nil
}

// flushWrites proposes the gathered writes as one entry.
func (p *peer) flushWrites() {
	if p.boundWrites {
		p.refuseOtherTerms()
	}
	if len(p.writes) == 0 {
		return
	}
	buf := make([]byte, 0, p.writeSize+48+message.ChecksumSize)
	buf = message.AppendHeader(buf, p.regionID, p.region().RegionEpoch)
	cbs := make([]*message.Callback, len(p.writes))
	now, waited, traced := p.store.age(), time.Duration(0), false
	for i, w := range p.writes {
		buf = append(buf, w.Payload...)
		cbs[i] = w.Callback
		waited, traced = max(waited, w.Waited(now)), traced || w.Traced
	}
	buf = message.AppendChecksum(buf)
	size := p.writeSize
	clear(p.writes)
	p.writes, p.writeSize = p.writes[:0], 0
	if p.propose(size, cbs, func() error { return p.rn.Propose(buf) }) {
		last := &p.proposals[len(p.proposals)-1]
		last.Stages.Came, last.Traced = now-waited, traced
	}
}

// propose has raft append an entry and remembers who waits for it, or refuses their commands when
// raft drops it. Whether the entry is in the log decides which: it may be on its way to the
// followers from then on.
func (p *peer) propose(size int, cbs []*message.Callback, do func() error) bool {
	before := p.rn.LastIndex()
	err := do()
	if p.rn.LastIndex() == before {
		p.store.inflight.Add(-int64(size))
		p.refuseDropped(cbs, err)
		return false
	}
	prop := message.NewProposal(before+1, p.rn.Term(), size, cbs...)
	prop.Stages.Proposed = p.store.age()
	prop.Stages.Came = prop.Stages.Proposed
	p.proposals = append(p.proposals, prop)
	return true
}

// refuseDropped answers commands that raft has not taken into its log.
func (p *peer) refuseDropped(cbs []*message.Callback, err error) {
	if err == nil {
		err = raft.ErrProposalDropped
	}
	var answer error
	switch {
	case errors.Is(err, raft.ErrUncommittedFull):
		answer = &regionerr.BusyError{Reason: "too many bytes of this region are not committed yet"}
	case !p.isLeader():
		answer = p.notLeader()
	case p.rn.LeadTransferee() != raft.None:
		answer = &regionerr.BusyError{Reason: "leadership is being transferred"}
	default:
		answer = &regionerr.BusyError{Reason: err.Error()}
	}
	for _, cb := range cbs {
		cb.Fail(answer)
	}
}

// takeProposals removes the proposals up to an index: the apply worker answers them.
func (p *peer) takeProposals(upTo uint64) []message.Proposal {
	n := 0
	for n < len(p.proposals) && p.proposals[n].Index() <= upTo {
		n++
	}
	if n == 0 {
		return nil
	}
	out := make([]message.Proposal, n)
	copy(out, p.proposals)
	for i, now := 0, p.store.age(); i < n; i++ {
		out[i].Stages.Committed = now
	}
	rest := copy(p.proposals, p.proposals[n:])
	clear(p.proposals[rest:])
	p.proposals = p.proposals[:rest]
	return out
}

// giveToApply gives committed entries to the apply worker.
func (p *peer) giveToApply(t *turn, entries []eraftpb.Entry) {
	task := apply.Task{
		RegionID: p.regionID, Entries: entries,
		Proposals: p.takeProposals(entries[len(entries)-1].Index),
	}
	switch {
	case p.installing != 0:
		p.heldApply = append(p.heldApply, task)
	case p.removed == nil:
		t.addApply(p.store.appliers.of(p.regionID), task)
	default:
		// Committed, and applied by those who stay.
		p.store.endUnknown(task.Proposals, &regionerr.RegionNotFoundError{RegionID: p.regionID})
	}
}

// endCommands answers every command of a peer that ends: those that were not proposed are refused,
// the outcome of the others is unknown.
func (p *peer) endCommands(cause error) {
	for _, w := range append(p.writes, p.transfer.writes...) {
		p.store.inflight.Add(-int64(len(w.Payload)))
		w.Callback.Fail(cause)
	}
	p.writes, p.writeSize, p.transfer.writes = nil, 0, nil
	p.once.drop(cause)
	p.merge.dropWrites(cause)
	p.store.endUnknown(p.proposals, cause)
	p.proposals = nil
	for _, t := range p.heldApply {
		p.store.endUnknown(t.Proposals, cause)
	}
	p.heldApply = nil
	p.compare.drop(cause)
	p.reads.failAll(cause)
}

// endUnknown ends proposals whose outcome this store will not learn.
func (s *Store) endUnknown(props []message.Proposal, cause error) {
	for i := range props {
		s.inflight.Add(-int64(props[i].Size()))
		props[i].Unknown(cause)
	}
}
