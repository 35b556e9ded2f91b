package server

import (
	"sync"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

// collectFactor is the share of a store's regions that must have been confirmed.
const collectFactor = 0.9

// prepareChecker decides when enough is known after a start or a takeover. Acting on an empty map
// would take every region for unreplicated and every leaving store for empty.
type prepareChecker struct {
	sync.Mutex
	since     time.Time
	prepared  bool
	confirmed map[uint64]int // by store
	beats     map[uint64]int // region_count of the first store heartbeat since
	sum       int            // confirmed regions
}

func (p *prepareChecker) reset(now time.Time) {
	p.Lock()
	defer p.Unlock()
	p.since, p.prepared, p.sum = now, false, 0
	p.confirmed, p.beats = make(map[uint64]int), make(map[uint64]int)
}

// collect notes a region that was confirmed for the first time.
func (p *prepareChecker) collect(r *core.RegionInfo) {
	p.Lock()
	defer p.Unlock()
	p.sum++
	for _, peer := range r.Peers() {
		p.confirmed[peer.StoreID]++
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
	for _, st := range stores {
		if !st.IsUp() || st.DownTime(now) > s.Schedule.StoreDisconnect.D() {
			continue
		}
		beat, heard := p.beats[st.ID()]
		if !heard {
			return false
		}
		expected := max(beat, st.RegionCount())
		if float64(p.confirmed[st.ID()]) < collectFactor*float64(expected) {
			return false
		}
	}
	p.prepared = true
	return true
}
