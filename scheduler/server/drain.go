package server

import (
	"fmt"
	"sync"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/checker"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

const (
	// drainWindow is over how long the rate of an offline is measured.
	drainWindow = time.Minute
	// drainLooks bounds how many regions of a leaving store are looked at for what they wait for.
	drainLooks = 1000
	// drainNames bounds how many regions are named with what they wait for.
	drainNames = 5
)

// drainSample is what was left on a store at a moment.
type drainSample struct {
	at      time.Time
	regions int
	mib     int64
}

// drains watch stores being emptied. The leader's loop writes, the API reads. It is the knowledge of one leader: another
// one measures anew, from what is left then.
//
// Invariant: samples of a store are in order of time, the first one is the largest.
type drains struct {
	mu struct {
		sync.Mutex
		samples map[uint64][]drainSample
	}
}

// note takes a sample of each store that is being emptied, and forgets the others.
func (d *drains) note(now time.Time, stores []*core.StoreInfo) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := map[uint64][]drainSample{}
	for _, st := range stores {
		if !st.IsOffline() {
			continue
		}
		list := append(d.mu.samples[st.ID()], drainSample{now, st.RegionCount(), st.RegionSize()})
		// A split or a write may add to what is left.
		list[0].regions, list[0].mib = max(list[0].regions, st.RegionCount()), max(list[0].mib, st.RegionSize())
		for len(list) > 2 && now.Sub(list[1].at) > drainWindow {
			list = append(list[:1], list[2:]...) // the first one is the beginning
		}
		next[st.ID()] = list
	}
	d.mu.samples = next
}

// drainJSON is how far the emptying of a store has come.
type drainJSON struct {
	// DoneShare is what is gone of what was there when this placement leader first looked, from 0 to 1.
	DoneShare  float64 `json:"done_share"`
	Regions    int     `json:"regions_left"`
	SizeMiB    int64   `json:"size_left_mib"`
	RegionRate float64 `json:"regions_per_second"`
	RateMiB    float64 `json:"mib_per_second"`
	// ETASeconds is absent while nothing moves.
	ETASeconds *float64 `json:"eta_seconds,omitempty"`
	// Waiting says for what regions wait, how many, and names some.
	Waiting map[string]drainWait `json:"waiting,omitempty"`
}

type drainWait struct {
	Count   int      `json:"count"`
	Regions []uint64 `json:"regions"`
}

// progress of a store, by the rate of the last minute.
func (d *drains) progress(st *core.StoreInfo) drainJSON {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.mu.samples[st.ID()]
	if len(list) == 0 {
		return drainOf(st, drainSample{}, drainSample{}, drainSample{})
	}
	return drainOf(st, list[0], list[min(1, len(list)-1)], list[len(list)-1])
}

func drainOf(st *core.StoreInfo, first, from, last drainSample) drainJSON {
	out := drainJSON{Regions: st.RegionCount(), SizeMiB: st.RegionSize()}
	if first.mib > 0 {
		out.DoneShare = min(1, max(0, 1-float64(st.RegionSize())/float64(first.mib)))
	}
	seconds := last.at.Sub(from.at).Seconds()
	if seconds <= 0 {
		return out
	}
	out.RegionRate = max(0, float64(from.regions-last.regions)/seconds)
	out.RateMiB = max(0, float64(from.mib-last.mib)/seconds)
	if out.RateMiB > 0 {
		eta := float64(st.RegionSize()) / out.RateMiB
		out.ETASeconds = &eta
	}
	return out
}

// drain is the progress of a store that is being emptied, nil of others.
func (s *Server) drain(st *core.StoreInfo) *drainJSON {
	if !st.IsOffline() {
		return nil
	}
	out := s.drains.progress(st)
	return &out
}

// drainWaits finds what regions of a leaving store wait for: what the checker says that is not possible now.
func (s *Server) drainWaits(st *core.StoreInfo) map[string]drainWait {
	base := s.cluster.viewBase()
	base.AllocID = func() (uint64, error) { return 1, nil } // nothing that is planned here is carried out
	v := view.New(base, s.cluster.controller.Running())
	out := map[string]drainWait{}
	for i, r := range s.cluster.Core().StoreRegions(st.ID()) {
		if i == drainLooks {
			break
		}
		why := ""
		if !r.Confirmed() {
			why = "no leader has reported"
		} else if res := checker.Check(v, r); res.Blocked != "" && !v.Busy(r.ID()) {
			why = fmt.Sprintf("%s: %s", res.Defect, res.Blocked)
		}
		if why == "" {
			continue
		}
		w := out[why]
		if w.Count++; len(w.Regions) < drainNames {
			w.Regions = append(w.Regions, r.ID())
		}
		out[why] = w
	}
	return out
}

// storeWatch tells of stores that fall silent and are given up. Owned by the leader's loop; a new leader
// says it once more of those that are silent.
type storeWatch struct {
	states map[uint64]string
}

// look adds an event for each store that has become disconnected or down since the last look.
func (w *storeWatch) look(s *Server) {
	next := map[uint64]string{}
	for _, st := range s.cluster.Core().Stores() {
		state := s.stateName(st)
		next[st.ID()] = state
		if w.states[st.ID()] == state {
			continue
		}
		silent := time.Since(st.SilentSince()).Round(time.Second)
		switch state {
		case "disconnected":
			s.cluster.events.add("store-disconnected", fmt.Sprintf("store %d has not reported for %s", st.ID(), silent))
		case "down":
			s.cluster.events.add("store-down", fmt.Sprintf(
				"store %d has not reported for %s: its replicas are replaced", st.ID(), silent))
		}
	}
	w.states = next
}
