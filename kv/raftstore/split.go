package raftstore

import (
	"bytes"
	"context"
	"slices"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// A split, from its planning to its proposal: the split checker measures the region and chooses a key
// (runner.SplitChecker) -> onSplitChecked -> the placement service gives ids (askSplit) -> onAskedSplit
// proposes the admin command, under the epoch for which it was planned.

type schedulerResponse = schedulerpb.RegionHeartbeatResponse

// onSplitChecked takes the measured size and begins a split if a key was found.
func (p *peer) onSplitChecked(m *message.SplitChecked) {
	st := &p.stats
	st.checkingSplit = false
	if m.Err != nil {
		p.store.noteReadError(p.regionID, m.Err)
		p.fallSick(m.Err)
		return
	}
	if m.Epoch.GetVersion() != p.region().RegionEpoch.Version {
		return
	}
	changed := !st.sizeKnown || st.size != m.Size
	st.size, st.keys, st.sizeKnown, st.sizeDelta = m.Size, m.Keys, true, 0
	if st.estimates++; m.Counted != (message.Counted{}) {
		p.noteCount(m.Counted)
	}
	if !p.isLeader() {
		return
	}
	if len(m.SplitKey) == 0 {
		if changed {
			p.heartbeatRegion()
		}
		return
	}
	// Until the split takes place the region is too big: whatever refuses it, a conf change or a placement service that is
	// away, the next check finds that again, and nobody sleeps.
	st.sizeKnown = false
	p.askSplit(m.SplitKey, nil)
}

// noteCount keeps a count of the region's size. One that finds little of what was written, because values were
// overwritten, makes the next one wait for more; not if the region is too big, whose split may fail and is tried again then.
// No count waits for more than RegionMaxSize, so a region whose values were overwritten and that begins to grow may be
// twice as big as it should before it is split.
func (p *peer) noteCount(m message.Counted) {
	st, cfg := &p.stats, &p.store.cfg.Raftstore
	found := m.Size - min(m.Size, st.counted.Size)
	if found < st.sinceCount/4 && m.Size <= uint64(cfg.RegionMaxSize) {
		st.countAfter = min(2*max(st.countAfter, uint64(cfg.RegionSplitSize)/8), uint64(cfg.RegionMaxSize))
	} else {
		st.countAfter = 0
	}
	st.counted, st.sinceCount, st.estimates = m, 0, 0
}

// onSplitAt begins a split that a person, a test or the placement service asked for.
func (p *peer) onSplitAt(m *message.SplitAt) {
	if err := p.checkHeader(m.Header, true, false, zeroTime); err != nil {
		m.Callback.Fail(err)
		return
	}
	if len(m.Key) == 0 {
		p.store.splitChecker.Middle(p.region(), func(key []byte, err error) {
			again := &message.SplitAt{Header: m.Header, Key: key, Callback: m.Callback}
			if err != nil {
				p.store.ReadFailed(p.regionID, err)
				m.Callback.Fail(&BusyError{Reason: "measuring the region failed: " + err.Error()})
			} else if len(key) == 0 {
				m.Callback.Fail(invalidf("region %d has no key to split at", p.regionID))
			} else if err := p.store.router.push(p.box, again); err != nil {
				m.Callback.Fail(err)
			}
		})
		return
	}
	if p.store.encodedKeys {
		cut, ok := memcomparable.CutTimestamp(m.Key)
		if !ok {
			m.Callback.Fail(invalidf("split key %x is not an encoded key, and this cluster is in mode txn", m.Key))
			return
		}
		m.Key = cut
	}
	if !strictlyInside(p.region(), m.Key) {
		m.Callback.Fail(invalidf("split key %x is not strictly inside region %d", m.Key, p.regionID))
		return
	}
	p.askSplit(m.Key, m.Callback)
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
		res, err := s.splitAt(ctx, h, key)
		if err != nil {
			return nil, err
		}
		halves := res.Admin().GetSplit().GetRegions()
		if len(halves) != 2 {
			return nil, invalidf("split of region %d at %x made %d regions", h.RegionID, key, len(halves))
		}
		h.Epoch = halves[0].RegionEpoch
		parts = append(halves, parts[min(len(parts), 1):]...)
	}
	return parts, nil
}

// askSplit asks the placement service for the ids of the new region. Only one request at a time.
func (p *peer) askSplit(key []byte, cb *message.Callback) {
	if p.stats.askingSplit || p.splitIndex != 0 {
		cb.Fail(&BusyError{Reason: "a split of this region is already on its way"})
		return
	}
	region := p.region()
	p.stats.askingSplit = true
	started := p.store.scheduleAsk(func(asked message.AskedSplit) {
		asked.Epoch, asked.SplitKey, asked.Callback = region.RegionEpoch, key, cb
		if err := p.store.router.push(p.box, &asked); err != nil {
			cb.Fail(err)
		}
	}, region)
	if !started {
		p.stats.askingSplit = false
		cb.Fail(&BusyError{Reason: "too many requests to the placement service"})
	}
}

// onAskedSplit proposes the split if the region is still the one it was planned for.
func (p *peer) onAskedSplit(m *message.AskedSplit) {
	p.stats.askingSplit = false
	if m.Err != nil {
		p.logger.Warn("asking for split ids failed", zap.Error(m.Err))
		m.Callback.Fail(&BusyError{Reason: "the placement service gave no ids: " + m.Err.Error()})
		return
	}
	p.logger.Debug("proposing split", log.Key("split-key", m.SplitKey))
	p.onAdmin(&message.Admin{
		Header: message.Header{RegionID: p.regionID, Peer: p.meta, Epoch: m.Epoch},
		Request: &raft_cmdpb.AdminRequest{
			CmdType: raft_cmdpb.AdminCmdType_Split,
			Split: &raft_cmdpb.SplitRequest{
				SplitKey: bytes.Clone(m.SplitKey), NewRegionId: m.IDs.GetNewRegionId(), NewPeerIds: m.IDs.GetNewPeerIds(),
			},
		},
		Callback: m.Callback,
	})
}

// newSplitPeer makes the durable beginning of a region that a split has created, and a peer on it.
func (s *Store) newSplitPeer(region *metapb.Region, self *metapb.Peer) (*peer, error) {
	var b logBatch
	initialLogState(&b, s.log, region.Id)
	if err := s.log.Write(&b, true); err != nil {
		return nil, err
	}
	return newPeer(s, region, self, initIndex, initTruncated, false)
}

// createSplitPeer creates the right half's peer on this store, or hands it to the uninitialized peer
// that a raft message has created before.
func (s *Store) createSplitPeer(m *message.BecomeSplit) error {
	if box := s.router.get(m.Region.Id); box != nil {
		if err := s.router.push(box, m); err != nil {
			return s.sendStore(storeCreateSplit{*m})
		}
		return nil
	}
	if err := s.log.Damaged(m.Region.Id); err != nil {
		// A message had created a peer of the region here before, and its vote may be among what is lost.
		s.quarantineRegion(m.Region, m.Peer, err)
		s.meta.finishSplit(m.Region.Id)
		return nil
	}
	p, err := s.newSplitPeer(m.Region, m.Peer)
	if err != nil {
		return err
	}
	p.once.ancestors = m.Ancestors
	s.meta.setRegion(m.Region, m.Peer.Id)
	s.applierFor(m.Region.Id).push([]applyTask{registerTask(p)})
	if !s.router.register(p) {
		return s.sendStore(storeCreateSplit{*m})
	}
	s.meta.finishSplit(m.Region.Id)
	_ = s.router.push(p.box, &message.Start{Campaign: m.Campaign})
	for _, v := range s.meta.takePendingVotes(m.Region.Id, m.Peer.Id) {
		_ = s.router.push(p.box, &message.Raft{Message: v})
	}
	return nil
}
