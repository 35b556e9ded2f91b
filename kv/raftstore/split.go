package raftstore

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/pkg/redact"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	"github.com/tinykv/tinykv/raft"
)

// The life of a split:
//
//	check      the leader has the split checker measure a region that has grown (runner.SplitChecker)
//	onChecked  a key is found; or a person, a test or the placement service names one (onSplitAt)
//	ask        the placement service gives the ids of the new region and its peers
//	onAsked    proposes the admin command, under the epoch for which it was planned; local reads end until it is
//	           applied (propose)
//	apply      writes both halves, the right one's beginning and the applied index in one synced batch (apply/split.go)
//	onDone     takes over the left half; createSplitPeer begins the right one's log and its peer, or onBecome does so in
//	           place of a peer that a raft message had created before
//
// If the left half does not go on as it was, createRightHalves lets the right one begin all the
// same.

// splitter is a peer's part in it.
type splitter struct {
	p *peer
	// index is that of the newest proposed, not yet applied split, 0 if none: no local reads until
	// then.
	index uint64
}

// estimatesInARow is how often a region's size may be estimated before it is counted again.
const estimatesInARow = 16

// check starts a check of the region's size, if it is unknown or has grown enough since the last.
func (sp *splitter) check() {
	st, limits := &sp.p.stats, sp.p.store.limits.Load()
	if st.checkingSplit || st.askingSplit {
		return
	}
	if st.sizeKnown && st.sizeDelta < int64(limits.splitRegion)/8 {
		return
	}
	check := runner.Check{
		Region: sp.p.region(), RegionID: sp.p.regionID,
		Guess: message.RegionSize{Size: st.size, Keys: st.keys}, Last: st.counted,
		Fits: st.counted.Size+st.sinceCount <= limits.maxRegion ||
			st.sinceCount < min(st.countAfter, limits.maxRegion),
	}
	if st.estimates >= estimatesInARow {
		check.Last = message.Counted{}
	}
	if sp.p.store.splitChecker.Check(check) {
		st.checkingSplit = true
	}
}

// onChecked takes the measured size and begins a split if a key was found.
func (sp *splitter) onChecked(m *message.SplitChecked) {
	st := &sp.p.stats
	st.checkingSplit = false
	if m.Err != nil {
		sp.p.store.readErrors.note(sp.p.regionID, m.Err)
		sp.p.sick.note(m.Err)
		return
	}
	if m.Epoch.GetVersion() != sp.p.region().RegionEpoch.Version {
		return
	}
	changed := !st.sizeKnown || st.size != m.Size
	st.size, st.keys, st.sizeKnown, st.sizeDelta = m.Size, m.Keys, true, 0
	if st.estimates++; m.Counted != (message.Counted{}) {
		sp.noteCount(m.Counted)
	}
	if !sp.p.isLeader() {
		return
	}
	if len(m.SplitKey) == 0 {
		if changed {
			sp.p.report.send()
		}
		return
	}
	// Until the split takes place the region is too big: whatever refuses it, a conf change or a
	// placement service that is away, the next check finds that again, and nobody sleeps.
	st.sizeKnown = false
	sp.ask(m.SplitKey, nil)
}

// noteCount keeps a count of the region's size. One that finds little of what was written, because
// values were overwritten, makes the next one wait for more; not if the region is too big, whose
// split may fail and is tried again then. No count waits for more than RegionMaxSize, so a region
// whose values were overwritten and that begins to grow may be twice as big as it should before it
// is split.
func (sp *splitter) noteCount(m message.Counted) {
	st, limits := &sp.p.stats, sp.p.store.limits.Load()
	found := m.Size - min(m.Size, st.counted.Size)
	if found < st.sinceCount/4 && m.Size <= limits.maxRegion {
		st.countAfter = min(2*max(st.countAfter, limits.splitRegion/8), limits.maxRegion)
	} else {
		st.countAfter = 0
	}
	st.counted, st.sinceCount, st.estimates = m, 0, 0
}

// SplitAt splits a region at a key, or in the middle if key is empty, and waits for it.
func (s *Store) SplitAt(ctx context.Context, regionID uint64, key []byte) (message.Result, error) {
	box := s.router.get(regionID)
	if box == nil {
		return message.Result{}, &regionerr.RegionNotFoundError{RegionID: regionID}
	}
	h := box.handle.Load()
	if h == nil {
		return message.Result{}, &regionerr.RegionNotFoundError{RegionID: regionID}
	}
	return s.router.splitAt(ctx,
		message.Header{RegionID: regionID, Peer: h.peer, Epoch: h.region.RegionEpoch}, key)
}

func (r *router) splitAt(
	ctx context.Context, h message.Header, key []byte,
) (message.Result, error) {
	m := &message.SplitAt{Header: h, Key: key, Callback: message.NewCallback()}
	if err := r.send(h.RegionID, m); err != nil {
		return message.Result{}, err
	}
	res, err := m.Callback.Wait(ctx)
	if err == nil {
		err = res.Err
	}
	return res, err
}

// Split has each key begin a region, and returns the regions that the one of the header became, in
// key order. It cuts off the last part first, so that the rest keeps its id. An error may leave a
// part of the splits done.
func (s *Store) Split(
	ctx context.Context, h message.Header, keys [][]byte,
) ([]*metapb.Region, error) {
	local, err := s.LocalRead(h, keys[0])
	if err != nil {
		return nil, err
	}
	keys = slices.Clone(keys)
	slices.SortFunc(keys, func(a, b []byte) int { return bytes.Compare(b, a) })
	var parts []*metapb.Region
	if local != nil {
		parts = []*metapb.Region{local.Region}
	}
	for _, key := range slices.CompactFunc(keys, bytes.Equal) {
		if local != nil && bytes.Equal(key, local.Region.StartKey) {
			continue // it begins there
		}
		res, err := s.router.splitAt(ctx, h, key)
		if err != nil {
			return nil, err
		}
		halves := res.Admin().GetSplit().GetRegions()
		if len(halves) != 2 {
			return nil,
				regionerr.Invalidf("split of region %d at %v made %d regions", h.RegionID,
					redact.Key(key), len(halves))
		}
		h.Epoch = halves[0].RegionEpoch
		parts = append(halves, parts[min(len(parts), 1):]...)
	}
	return parts, nil
}

// onSplitAt begins a split that a person, a test or the placement service asked for.
func (sp *splitter) onSplitAt(m *message.SplitAt) {
	if err := sp.p.checkHeader(m.Header, true, false, zeroTime); err != nil {
		m.Callback.Fail(err)
		return
	}
	if len(m.Key) == 0 {
		sp.p.store.splitChecker.Middle(sp.p.region(), func(key []byte, err error) {
			again := &message.SplitAt{Header: m.Header, Key: key, Callback: m.Callback}
			if err != nil {
				sp.p.store.ReadFailed(sp.p.regionID, err)
				m.Callback.Fail(&regionerr.BusyError{
					Reason: "measuring the region failed: " + err.Error(),
				})
			} else if len(key) == 0 {
				m.Callback.Fail(regionerr.Invalidf("region %d has no key to split at",
					sp.p.regionID))
			} else if err := sp.p.store.router.push(sp.p.box, again); err != nil {
				m.Callback.Fail(err)
			}
		})
		return
	}
	if sp.p.store.encodedKeys {
		cut, ok := memcomparable.CutTimestamp(m.Key)
		if !ok {
			m.Callback.Fail(
				regionerr.Invalidf(
					"split key %v is not an encoded key, and this cluster is in mode txn",
					redact.Key(m.Key)))
			return
		}
		m.Key = cut
	}
	if !regions.StrictlyInside(sp.p.region(), m.Key) {
		m.Callback.Fail(regionerr.Invalidf("split key %v is not strictly inside region %d",
			redact.Key(m.Key), sp.p.regionID))
		return
	}
	sp.ask(m.Key, m.Callback)
}

// ask asks the placement service for the ids of the new region. Only one request at a time.
func (sp *splitter) ask(key []byte, cb *message.Callback) {
	if sp.p.stats.askingSplit || sp.index != 0 {
		cb.Fail(&regionerr.BusyError{Reason: "a split of this region is already on its way"})
		return
	}
	region := sp.p.region()
	sp.p.stats.askingSplit = true
	started := sp.p.store.ask.splitIDs(func(asked message.AskedSplit) {
		asked.Epoch, asked.SplitKey, asked.Callback = region.RegionEpoch, key, cb
		if err := sp.p.store.router.push(sp.p.box, &asked); err != nil {
			cb.Fail(err)
		}
	}, region)
	if !started {
		sp.p.stats.askingSplit = false
		cb.Fail(&regionerr.BusyError{Reason: "too many requests to the placement service"})
	}
}

// splitIDs asks the placement service for split ids in the background; false if too many wait.
func (pt *placementTasks) splitIDs(done func(message.AskedSplit), region *metapb.Region) bool {
	return pt.tasks.Submit(func(ctx context.Context) {
		ids, err := pt.s.placement.AskSplit(ctx, region)
		done(message.AskedSplit{IDs: ids, Err: err})
	})
}

// onAsked proposes the split if the region is still the one it was planned for.
func (sp *splitter) onAsked(m *message.AskedSplit) {
	sp.p.stats.askingSplit = false
	if m.Err != nil {
		sp.p.logger.Warn("asking for split ids failed", zap.Error(m.Err))
		m.Callback.Fail(&regionerr.BusyError{
			Reason: "the placement service gave no ids: " + m.Err.Error(),
		})
		return
	}
	sp.p.logger.Debug("proposing split", log.Key("split-key", m.SplitKey))
	sp.p.onAdmin(&message.Admin{
		Header: message.Header{RegionID: sp.p.regionID, Peer: sp.p.self, Epoch: m.Epoch},
		Request: &raft_cmdpb.AdminRequest{
			CmdType: raft_cmdpb.AdminCmdType_Split,
			Split: &raft_cmdpb.SplitRequest{
				SplitKey: bytes.Clone(m.SplitKey), NewRegionId: m.IDs.GetNewRegionId(),
				NewPeerIds: m.IDs.GetNewPeerIds(),
			},
		},
		Callback: m.Callback,
	})
}

func (sp *splitter) propose(a *message.Admin) error {
	if _, _, err := regions.Split(sp.p.region(), a.Request.GetSplit()); err != nil {
		return err
	}
	// Local reads end before any replica can apply the split.
	old := sp.index
	sp.index = sp.p.rn.LastIndex() + 1
	sp.p.publish()
	if !sp.p.proposeAdmin(a) {
		sp.index = old
		sp.p.publish()
	}
	return nil
}

// onDone takes over the left half and lets the right one begin.
func (sp *splitter) onDone(res message.SplitDone) {
	sp.p.setRegion(res.Left)
	heirs := sp.p.once.heirs(sp.p.regionID, res.Index)
	sp.p.once.noteVersion(res.Index, res.Left.RegionEpoch.Version)
	left, right := res.Left, res.Right
	sp.p.logger.Info("split region", zap.Uint64("new-region-id", right.Id),
		log.Key("split-key", right.StartKey),
		zap.Uint64("version", left.RegionEpoch.Version), zap.Bool("created", res.Created))
	sp.p.stats = peerStats{size: sp.p.stats.size / 2, keys: sp.p.stats.keys / 2}
	sp.p.times.splitCheck = sp.p.store.clock.Now()
	if res.Created {
		msg := message.BecomeSplit{
			Region: right, Peer: res.RightPeer, Campaign: sp.p.isLeader(), Ancestors: heirs,
		}
		if err := sp.p.store.creator.createSplitPeer(&msg); err != nil {
			sp.p.store.fail(fmt.Errorf("create peer of region %d after split: %w", right.Id, err))
			return
		}
	} else {
		sp.p.store.regionRunner.clear(right)
	}
	if sp.p.isLeader() {
		// tells the commit index: the right half's election waits for the others
		sp.p.rn.BroadcastHeartbeat()
		sp.p.report.send()
		sp.p.store.ask.reportSplit(left, right)
	}
}

// createRightHalves lets the right halves of applied splits begin although the left one does not go
// on as it was: it is being destroyed, or replaced by a raft snapshot. They are durable and own
// their data.
func (sp *splitter) createRightHalves(m *message.Applied) {
	if m.PeerID != sp.p.self.Id {
		return
	}
	for _, res := range m.Results {
		split, ok := res.(message.SplitDone)
		if !ok || !split.Created {
			continue
		}
		right := split.Right
		sp.p.logger.Info("split region that is being replaced",
			zap.Uint64("new-region-id", right.Id), log.Key("split-key", right.StartKey))
		if err := sp.p.store.creator.createSplitPeer(&message.BecomeSplit{
			Region: right, Peer: split.RightPeer,
		}); err != nil {
			sp.p.store.fail(fmt.Errorf("create peer of region %d after split: %w", right.Id, err))
		}
	}
}

// createSplitPeer creates the right half's peer on this store, or hands it to the uninitialized
// peer that a raft message has created before.
func (cr *creator) createSplitPeer(m *message.BecomeSplit) error {
	if box := cr.s.router.get(m.Region.Id); box != nil {
		if err := cr.s.router.push(box, m); err != nil {
			cr.postpone(m)
		}
		return nil
	}
	if err := cr.s.log.Damaged(m.Region.Id); err != nil {
		// A message had created a peer of the region here before, and its vote may be among what is
		// lost.
		cr.s.quarantine.admit(m.Region, m.Peer, err)
		cr.s.ranges.finishSplit(m.Region.Id)
		return nil
	}
	p, err := cr.newSplitPeer(m)
	if err != nil {
		return err
	}
	cr.s.ranges.setRegion(m.Region, m.Peer.Id)
	cr.s.appliers.forRegion(m.Region.Id).Push(p.beginTask())
	if !cr.s.router.register(p) {
		cr.postpone(m)
		return nil
	}
	cr.s.ranges.finishSplit(m.Region.Id)
	_ = cr.s.router.push(p.box, &message.Start{Campaign: m.Campaign})
	for _, v := range cr.s.ranges.takePendingVotes(m.Region.Id, m.Peer.Id) {
		_ = cr.s.router.push(p.box, &message.Raft{Message: v})
	}
	return nil
}

// newSplitPeer makes the durable beginning of a region that a split has created, and a peer on it.
func (cr *creator) newSplitPeer(m *message.BecomeSplit) (*peer, error) {
	var b logBatch
	initialLogState(&b, cr.s.log, m.Region.Id)
	if err := cr.s.log.Write(&b, true); err != nil {
		return nil, err
	}
	return newPeer(cr.s, origin{
		region: m.Region, self: m.Peer, applied: initIndex, truncated: initTruncated,
		ancestors: m.Ancestors,
	})
}

// initialLogState makes the raft log of a region that a split or bootstrap has created. A vote that
// an uninitialized peer of the same region gave before is adopted, never forgotten.
func initialLogState(b *raftlog.Batch, log *raftlog.Log, regionID uint64) {
	hs := meta.InitialHardState()
	if st, ok := log.State(regionID); ok && st.HardState.Term >= hs.Term {
		hs.Term, hs.Vote = st.HardState.Term, st.HardState.Vote
	}
	b.Reset(regionID, meta.InitLogIndex, meta.InitLogTerm)
	b.SetHardState(regionID, hs)
}

// onBecome: a raft message had created this peer before the split was applied here. It keeps its
// term and vote and becomes the right half in place, so that no two objects ever stand for one
// region.
func (sp *splitter) onBecome(t *turn, m *message.BecomeSplit) {
	if sp.p.initialized() || m.Peer.Id < sp.p.self.Id {
		// A raft snapshot was faster: it has the right half, and more.
		sp.p.store.ranges.finishSplit(m.Region.Id)
		return
	}
	sp.p.reads.failAll(&regionerr.RegionNotFoundError{RegionID: sp.p.regionID})
	np, err := sp.p.store.creator.newSplitPeer(m)
	if err != nil {
		sp.p.store.fail(fmt.Errorf("region %d: take over uninitialized peer: %w", sp.p.regionID,
			err))
		return
	}
	sp.p.self, sp.p.rn, sp.p.ps, sp.p.logger = np.self, np.rn, np.ps, np.logger
	sp.p.appliedIndex, sp.p.appliedTerm = np.appliedIndex, np.appliedTerm
	sp.p.rd, sp.p.late, sp.p.unwrittenCommit = raft.Ready{}, nil, eraftpb.HardState{}
	sp.p.setRegion(m.Region)
	sp.p.once.begin()
	sp.p.once.ancestors = m.Ancestors
	sp.p.store.ranges.finishSplit(m.Region.Id)
	t.addApply(sp.p.store.appliers.of(sp.p.regionID), sp.p.beginTask())
	sp.p.onStart(&message.Start{Campaign: m.Campaign})
	for _, v := range sp.p.store.ranges.takePendingVotes(sp.p.regionID, sp.p.self.Id) {
		sp.p.onRaft(t, v)
	}
}

func (pt *placementTasks) reportSplit(left, right *metapb.Region) {
	pt.tasks.Submit(func(ctx context.Context) {
		if err := pt.s.placement.ReportSplit(ctx, left, right); err != nil {
			pt.s.logger.Debug("reporting split failed", zap.Error(err))
		}
	})
}
