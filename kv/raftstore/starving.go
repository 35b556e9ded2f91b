package raftstore

import (
	"slices"
	"sync"
	"time"

	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/raft"
)

// A follower starves if it stays at one index while its leader has committed more. It may answer heartbeats all the
// while, so nothing else shows it: it is neither down nor, as long as the log reaches back far enough, pending. Leaders
// look at their followers with each region heartbeat, and the store reports the starving ones with its own.

// standstillIntervals is for how many intervals of the region heartbeat a follower must have stood still.
const standstillIntervals = 3

// maxReported bounds the lists of regions and peers in a store heartbeat.
const maxReported = 64

// standstill is where a follower that is behind was found, and since when.
type standstill struct {
	match    uint64
	since    time.Time
	reported bool
}

// starvation holds the starving followers of the regions led here. Workers write it, the store heartbeat reads it. What is
// not written again expires, so that a leader that steps down has nothing to take back.
type starvation struct {
	mu struct {
		sync.Mutex
		seen map[uint64]time.Time // by peer
	}
}

func (s *starvation) add(peerID uint64, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.seen == nil {
		s.mu.seen = map[uint64]time.Time{}
	}
	s.mu.seen[peerID] = now
}

func (s *starvation) remove(peerID uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.seen, peerID)
}

// peers are those that were written since the given time, in rising order. The others are forgotten.
func (s *starvation) peers(since time.Time) []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []uint64
	for id, at := range s.mu.seen {
		if at.Before(since) {
			delete(s.mu.seen, id)
			continue
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// noteStandstill looks which followers get no further. It is called with each region heartbeat.
func (p *peer) noteStandstill(now time.Time) {
	var next map[uint64]standstill
	limit := standstillIntervals * p.store.cfg.Raftstore.RegionHeartbeatInterval.Duration
	p.rn.VisitProgress(func(id uint64, pr raft.Progress) {
		if id == p.meta.Id || pr.Match >= p.rn.Committed() {
			return
		}
		s, seen := p.standstill[id]
		// What an earlier term of this leader has seen says nothing: the index begins at 0 again.
		if !seen || s.match != pr.Match || s.since.Before(p.leaderSince) {
			s = standstill{match: pr.Match, since: now}
		}
		if now.Sub(s.since) >= limit {
			s.reported = true
			p.store.starving.add(id, now)
		}
		if next == nil {
			next = map[uint64]standstill{}
		}
		next[id] = s
	})
	for id, s := range p.standstill {
		if s.reported && !next[id].reported {
			p.store.starving.remove(id)
		}
	}
	p.standstill = next
}

// reportHealth adds to a store heartbeat what only people act on. Every list is bounded.
func (s *Store) reportHealth(stats *schedulerpb.StoreStats, now time.Time) {
	expiry := 2 * standstillIntervals * s.cfg.Raftstore.RegionHeartbeatInterval.Duration
	starving, quarantined := s.starving.peers(now.Add(-expiry)), s.quarantine.ids()
	stats.StarvingPeerIds = starving[:min(len(starving), maxReported)]
	diverged := s.diverged.list()
	stats.DivergedRegionIds = diverged[:min(len(diverged), maxReported)]
	stats.QuarantinedRegionIds = quarantined[:min(len(quarantined), maxReported)]
	stats.ReadErrors = s.readErrors.total.Load()
}
