package raftstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sort"
	"sync/atomic"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/raft"
)

// PeerView shows a peer to a function that runs on the worker holding it (message.Inspect). It must
// not be kept beyond that call.
type PeerView struct{ p *peer }

// Status is raft's own view.
func (v *PeerView) Status() raft.Status { return v.p.rn.Status() }

// Info copies what tools and tests want to know.
func (v *PeerView) Info() PeerInfo {
	p := v.p
	info := PeerInfo{
		Region: p.region(), Peer: p.self, Leader: p.leaderPeer(), IsLeader: p.isLeader(),
		Term:        p.rn.Term(),
		CommitIndex: p.rn.Committed(), AppliedIndex: p.appliedIndex, LastIndex: p.rn.LastIndex(),
		LastTerm:       p.lastTerm(),
		TruncatedIndex: p.ps.truncated.Index, Size: p.stats.size, Keys: p.stats.keys,
		Installing: p.installing != 0, Proposals: len(p.proposals),
		Held:   len(p.merge.held) + len(p.transfer.writes),
		Asleep: p.sleep.asleep && !p.box.dormant.Load(),
	}
	if m := p.merge.state; m != nil {
		info.MergingInto, info.Merge = m.Target.Id, p.merge.describe()
	}
	for _, q := range p.report.pending() {
		if p.isLeader() {
			info.Pending = append(info.Pending, q.Id)
		}
	}
	return info
}

// PeerInfo is a snapshot of a peer's state.
type PeerInfo struct {
	Region         *metapb.Region `json:"region"`
	Peer           *metapb.Peer   `json:"peer"`
	Leader         *metapb.Peer   `json:"leader"`
	IsLeader       bool           `json:"is_leader"`
	Term           uint64         `json:"term"`
	CommitIndex    uint64         `json:"commit_index"`
	AppliedIndex   uint64         `json:"applied_index"`
	LastIndex      uint64         `json:"last_index"`
	LastTerm       uint64         `json:"last_term"`
	TruncatedIndex uint64         `json:"truncated_index"`
	Size           uint64         `json:"size"`
	Keys           uint64         `json:"keys"`
	Pending        []uint64       `json:"pending,omitempty"`
	Installing     bool           `json:"installing,omitempty"`
	Proposals      int            `json:"proposals,omitempty"`
	// Held are writes that wait for the end of a merge or for the next leader.
	Held int `json:"held,omitempty"`
	// Asleep is a sleep that leader and followers agreed on, not that since the store's start.
	Asleep bool `json:"asleep,omitempty"`
	// MergingInto is the region into which this one, frozen, is to go; 0 if it is not frozen. Merge
	// says how that stands.
	MergingInto uint64 `json:"merging_into,omitempty"`
	Merge       string `json:"merge,omitempty"`
}

// Inspect runs fn on the worker that holds the region's peer; fn gets nil if the peer is being
// destroyed.
func (s *Store) Inspect(ctx context.Context, regionID uint64, fn func(*PeerView)) error {
	done := make(chan struct{})
	err := s.router.send(regionID, &message.Inspect{Fn: func(v any) {
		defer close(done)
		view, _ := v.(*PeerView)
		fn(view)
	}})
	if err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ctx.Done():
		return regionerr.ErrStopping
	}
}

// lastTerm is the term of the last entry of the log; 0 if that can not be read.
func (p *peer) lastTerm() uint64 {
	term, err := p.rn.Raft.RaftLog.Term(p.rn.LastIndex())
	if err != nil {
		return 0
	}
	return term
}

// MaxKnownID is the largest id of a region, peer or store that this store knows.
func (s *Store) MaxKnownID() uint64 {
	most := s.storeID
	for _, r := range s.ranges.all() {
		most = max(most, r.Id, r.MaxPeerId)
		for _, p := range r.Peers {
			most = max(most, p.Id, p.StoreId)
		}
	}
	return most
}

// Peer returns the state of a region's peer on this store.
func (s *Store) Peer(ctx context.Context, regionID uint64) (info PeerInfo, err error) {
	gone := true
	err = s.Inspect(ctx, regionID, func(v *PeerView) {
		if v != nil {
			gone, info = false, v.Info()
		}
	})
	if err == nil && gone {
		err = &regionerr.RegionNotFoundError{RegionID: regionID}
	}
	return info, err
}

// Peers returns the state of all peers, by region id. Peers that vanish meanwhile are left out.
func (s *Store) Peers(ctx context.Context) ([]PeerInfo, error) {
	var ids []uint64
	s.router.boxes.Range(func(k, _ any) bool {
		ids = append(ids, k.(uint64))
		return true
	})
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	var out []PeerInfo
	for _, id := range ids {
		info, err := s.Peer(ctx, id)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("inspect region %d: %w", id, ctx.Err())
		}
		if err == nil {
			out = append(out, info)
		}
	}
	return out, nil
}

// Regions returns the regions of this store as its range tree has them, initialized ones only.
func (s *Store) Regions() []*metapb.Region {
	var out []*metapb.Region
	for _, r := range s.ranges.all() {
		if regions.IsInitialized(r) {
			out = append(out, r)
		}
	}
	return out
}

// expiringLed are the regions that this store leads and whose keys may expire.
func (s *Store) expiringLed() []runner.Led {
	if !s.clockLimit.Known() {
		return nil // what would be swept could not be undone
	}
	var out []runner.Led
	s.router.boxes.Range(func(_, v any) bool {
		box := v.(*mailbox)
		h := box.handle.Load()
		if h != nil && h.region.ExpiryFloor > 0 && h.leader != nil && h.leader.Id == h.peer.Id {
			out = append(out, runner.Led{Region: h.region, Term: h.term, Mortal: box.mortal.Load()})
		}
		return true
	})
	return out
}

// Counts are the store's gauges.
type Counts struct {
	Regions, Leaders int
	InflightBytes    int64
	DroppedMessages  uint64
	// ReadErrors are reads of regions' data and logs that failed.
	ReadErrors uint64
}

// Counts reads the gauges.
func (s *Store) Counts() Counts {
	c := Counts{
		InflightBytes: s.inflight.Load(), DroppedMessages: s.router.dropped.Load(),
		ReadErrors: s.readErrors.total.Load(),
	}
	s.router.boxes.Range(func(_, v any) bool {
		c.Regions++
		if h := v.(*mailbox).handle.Load(); h != nil && h.leader != nil &&
			h.leader.Id == h.peer.Id {
			c.Leaders++
		}
		return true
	})
	return c
}

// workCounters say how well the work of many regions is gathered. Each is counted once a turn or an
// apply batch, by the goroutine that ran it.
type workCounters struct {
	turns, turnRegions, applyBatches, appliedEntries   atomic.Uint64
	retriesFound, retriesProposed, retriesUndetermined atomic.Uint64
	repeatedBeats                                      atomic.Uint64
	corruptEntries                                     atomic.Uint64
	comparisons, divergences                           atomic.Uint64
}

// Work counts what the store's workers have done since the start. The ratios tell how much of it is
// shared: regions per turn, entries per apply batch.
type Work struct {
	// Turns of the raft workers, and the regions that they ran.
	Turns, TurnRegions uint64
	// ApplyBatches are the engine batches of the apply workers, AppliedEntries the raft entries in
	// them.
	ApplyBatches, AppliedEntries uint64
	// Writes that clients sent again: whose earlier attempt was found in the log, which were
	// proposed because none was, and of which the log could not tell.
	RetriesFound, RetriesProposed, RetriesUndetermined uint64
	// RepeatedBeats are heartbeats that were sent again while a raft worker was in a long turn.
	RepeatedBeats uint64
	// CorruptEntries are entries in raft messages that were not the ones that were proposed.
	CorruptEntries uint64
	// Comparisons of a region's replicas that were judged, and those of them that found a
	// difference.
	Comparisons, Divergences uint64
	// ExpiredKeys were removed by the sweep, in regions that this store led.
	ExpiredKeys uint64
}

// Work reads the counters.
func (s *Store) Work() Work {
	w := &s.work
	return Work{
		Turns: w.turns.Load(), TurnRegions: w.turnRegions.Load(),
		ApplyBatches: w.applyBatches.Load(), AppliedEntries: w.appliedEntries.Load(),
		RepeatedBeats: w.repeatedBeats.Load(),
		RetriesFound:  w.retriesFound.Load(), RetriesProposed: w.retriesProposed.Load(),
		RetriesUndetermined: w.retriesUndetermined.Load(), CorruptEntries: w.corruptEntries.Load(),
		Comparisons: w.comparisons.Load(), Divergences: w.divergences.Load(),
		ExpiredKeys: s.sweeper.Swept(),
	}
}

// StoreID is the store's id.
func (s *Store) StoreID() uint64 { return s.storeID }

// RegionHash is a hash of a region's data on this store as of an applied index. Replicas at the
// same index agree.
type RegionHash struct {
	Applied uint64 `json:"applied_index"`
	Keys    uint64 `json:"keys"`
	Hash    string `json:"hash"`
}

// HashRegion reads the region's data from one engine snapshot.
func (s *Store) HashRegion(regionID uint64) (RegionHash, error) {
	snap := s.engine.NewSnapshot()
	defer snap.Close()
	st, err := meta.LoadRegionState(snap, regionID)
	if err != nil {
		return RegionHash{}, err
	}
	apply, err := meta.LoadApplyState(snap, regionID, s.appliers.of(regionID))
	if err != nil {
		return RegionHash{}, err
	}
	if st == nil || apply == nil || st.State != normalState || !regions.IsInitialized(st.Region) {
		return RegionHash{}, &regionerr.RegionNotFoundError{RegionID: regionID}
	}
	out := RegionHash{Applied: apply.AppliedIndex}
	h := sha256.New()
	var length [8]byte
	for _, cf := range engine.Families(st.Region.ExpiryFloor > 0) {
		it := snap.NewIterator(engine.DataKey(cf, st.Region.StartKey),
			engine.DataEndKey(cf, st.Region.EndKey))
		for it.First(); it.Valid(); it.Next() {
			for _, part := range [2][]byte{it.Key(), it.Value()} {
				binary.BigEndian.PutUint64(length[:], uint64(len(part)))
				h.Write(length[:])
				h.Write(part)
			}
			out.Keys++
		}
		err := it.Err()
		it.Close()
		if err != nil {
			return RegionHash{}, err
		}
	}
	out.Hash = hex.EncodeToString(h.Sum(nil)[:16])
	return out, nil
}
