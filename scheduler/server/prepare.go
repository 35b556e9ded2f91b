package server

import (
	"sync"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

const (
	// collectFactor is the share of a store's regions that must have been confirmed in any case.
	collectFactor = 0.9
	// collectPause: with less than all of them, nothing new must have been confirmed for so long.
	// Balancing while reports still trickle in moves regions for differences that are not there.
	collectPause = 15 * time.Second
)

// prepareChecker decides when enough is known after a start or a takeover. Acting on an empty map
// would take every region for unreplicated and every leaving store for empty.
type prepareChecker struct {
	sync.Mutex
	since     time.Time
	prepared  bool
	confirmed map[uint64]int // by store
	beats     map[uint64]int // region_count of the first store heartbeat since
	sum       int            // confirmed regions
	last      time.Time      // when one was last confirmed
}

func (p *prepareChecker) reset(now time.Time) {
	p.Lock()
	defer p.Unlock()
	p.since, p.prepared, p.sum = now, false, 0
	p.confirmed, p.beats = make(map[uint64]int), make(map[uint64]int)
}

// collect notes a heartbeat: old is what was known of the region before, nil if nothing. A region
// that is confirmed counts for the stores that it is on now: replicas are added before all is
// prepared.
func (p *prepareChecker) collect(old, r *core.RegionInfo, now time.Time) {
	p.Lock()
	defer p.Unlock()
	if p.prepared || !r.Confirmed() {
		return
	}
	if old != nil && old.Confirmed() {
		p.count(old, -1)
	} else {
		p.last = now
	}
	p.count(r, 1)
}

// gone notes that a region is not there any more.
func (p *prepareChecker) gone(r *core.RegionInfo) {
	p.Lock()
	defer p.Unlock()
	if !p.prepared && r.Confirmed() {
		p.count(r, -1)
	}
}

func (p *prepareChecker) count(r *core.RegionInfo, by int) {
	p.sum += by
	for _, peer := range r.Peers() {
		p.confirmed[peer.StoreID] += by
	}
}

func (p *prepareChecker) storeBeat(id uint64, regions int) {
	p.Lock()
	defer p.Unlock()
	p.beats[id] = regions
}

func (p *prepareChecker) check(now time.Time, stores []*core.StoreInfo, s *view.Settings) bool {
	p.Lock()
	defer p.Unlock()
	if p.prepared {
		return true
	}
	if now.Sub(p.since) > s.Schedule.PrepareTimeout.D() {
		p.prepared = true
		return true
	}
	if p.sum == 0 {
		return false
	}
	settled := now.Sub(p.last) > collectPause
	for _, st := range stores {
		if !st.IsUp() || st.DownTime(now) > s.Schedule.StoreDisconnect.D() {
			continue
		}
		beat, heard := p.beats[st.ID()]
		if !heard {
			return false
		}
		expected := max(beat, st.RegionCount())
		got := p.confirmed[st.ID()]
		if got < expected && !settled || float64(got) < collectFactor*float64(expected) {
			return false
		}
	}
	p.prepared = true
	return true
}
