package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/checker"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

const (
	storeCheckInterval = time.Second
	// buryBeats is how many empty store heartbeats in a row an offline store must send before it
	// becomes a tombstone.
	buryBeats = 2
)

// storeSettings are what an operator set about a store.
type storeSettings struct {
	Weight float64 `json:"weight,omitempty"`
	// LeaderWeight is the share of leaders; 0 is Weight.
	LeaderWeight float64 `json:"leader-weight,omitempty"`
	EvictLeaders bool    `json:"evict-leaders,omitempty"`
	// Labels go over those that the store brings; an empty value hides one of them.
	Labels map[string]string `json:"labels,omitempty"`
	Limit  core.StoreLimit   `json:"limit,omitzero"`
}

func (s *storeSettings) apply(st *core.StoreInfo) *core.StoreInfo {
	if s == nil {
		return st
	}
	opts := []core.StoreOption{
		core.WithEvictLeaders(s.EvictLeaders), core.WithLabels(s.Labels), core.WithLimit(s.Limit),
		core.WithLeaderWeight(s.LeaderWeight),
	}
	if s.Weight > 0 {
		opts = append(opts, core.WithWeight(s.Weight))
	}
	return st.Clone(opts...)
}

// storeSettings finds what operators set about stores.
func (d hardState) storeSettings(k storage.Keys) (map[uint64]*storeSettings, error) {
	out := make(map[uint64]*storeSettings)
	for key, value := range d {
		n, ok := strings.CutPrefix(key, k.StoreSettings())
		if !ok {
			continue
		}
		id, err := strconv.ParseUint(n, 10, 64)
		if err != nil {
			continue
		}
		set := &storeSettings{}
		if err := json.Unmarshal(value, set); err != nil {
			return nil, fmt.Errorf("decode settings of store %d: %w", id, err)
		}
		out[id] = set
	}
	return out, nil
}

// loadSettings takes over schedule settings that were changed at run time.
func (s *Server) loadSettings(d hardState) error {
	value, ok := d[s.keys.ScheduleConfig()]
	if !ok {
		return nil
	}
	set := settingsOf(s.cfg)
	if err := json.Unmarshal(value, set); err != nil {
		return fmt.Errorf("decode schedule settings: %w", err)
	}
	s.cluster.SetSettings(set)
	return nil
}

// checkStores buries offline stores that are empty, for certain: everything is known, no region has
// a peer there, and the store itself said so twice. A store that merely has not been heard of yet
// is never buried.
func (s *Server) checkStores(ctx context.Context) {
	if !s.cluster.Prepared() {
		return
	}
	for _, st := range s.cluster.Core().Stores() {
		if !st.IsOffline() || st.RegionCount() > 0 || st.EmptyBeats() < buryBeats {
			continue
		}
		if err := s.setStoreState(ctx, st.ID(), metapb.StoreState_Tombstone); err != nil {
			s.logger.Warn("burying a store failed", log.StoreID(st.ID()), zap.Error(err))
			return
		}
	}
}

func (s *Server) setStoreState(ctx context.Context, id uint64, state metapb.StoreState) error {
	c := s.cluster
	c.storeMu.Lock()
	defer c.storeMu.Unlock()
	st := c.Core().Store(id)
	if st == nil {
		return fmt.Errorf("%w: %d", ErrUnknownStore, id)
	}
	m := *st.Meta()
	m.State = state
	if err := s.saveStore(ctx, &m); err != nil {
		return err
	}
	c.Core().UpdateStore(id, core.WithMeta(&m))
	c.health.Store(nil)
	c.events.add("store-"+strings.ToLower(state.String()), fmt.Sprintf("store %d", id))
	s.logger.Info("store changed state", log.StoreID(id), zap.String("state", state.String()))
	c.planner.Wake()
	return nil
}

// ErrNoRoom means that the remaining stores cannot take what an offline store holds.
var ErrNoRoom = errors.New("server: the remaining stores cannot take the data")

// OfflineStore starts to empty a store, after checking that the others can take its replicas.
func (s *Server) OfflineStore(ctx context.Context, id uint64) error {
	c := s.cluster
	st := c.Core().Store(id)
	if st == nil {
		return fmt.Errorf("%w: %d", ErrUnknownStore, id)
	}
	if st.IsTombstone() {
		return fmt.Errorf("store %d is tombstone", id)
	}
	rest, free := 0, uint64(0)
	known := true
	for _, o := range c.Core().Stores() {
		if o.ID() == id || !o.IsUp() {
			continue
		}
		rest++
		free += o.Available()
		known = known && o.Capacity() > 0
	}
	replicas := c.Settings().Replication.MaxReplicas
	if rest < replicas && st.RegionCount() > 0 {
		return fmt.Errorf("%w: %d stores would remain, %d replicas are needed", ErrNoRoom, rest,
			replicas)
	}
	if need := uint64(st.RegionSize()) << 20; known && need > free {
		return fmt.Errorf("%w: store %d holds %d MiB, the others have %d MiB free", ErrNoRoom, id,
			need>>20, free>>20)
	}
	return s.setStoreState(ctx, id, metapb.StoreState_Offline)
}

// UpStore cancels an offline.
func (s *Server) UpStore(ctx context.Context, id uint64) error {
	if st := s.cluster.Core().Store(id); st != nil && st.IsTombstone() {
		return fmt.Errorf("store %d is tombstone: it was removed for good", id)
	}
	return s.setStoreState(ctx, id, metapb.StoreState_Up)
}

// BuryStore declares a store gone for good. It must be silent beyond the down time, and every
// region must have a healthy majority without it.
func (s *Server) BuryStore(ctx context.Context, id uint64, force bool) error {
	st := s.cluster.Core().Store(id)
	if st == nil {
		return fmt.Errorf("%w: %d", ErrUnknownStore, id)
	}
	if st.DownTime(time.Now()) < s.cluster.Settings().Schedule.StoreDisconnect.D() {
		return fmt.Errorf("store %d is alive (heard %v ago): take it offline instead", id,
			st.DownTime(time.Now()).Round(time.Millisecond))
	}
	if !force && st.RegionCount() > 0 {
		return fmt.Errorf("store %d still has %d regions", id, st.RegionCount())
	}
	return s.setStoreState(ctx, id, metapb.StoreState_Tombstone)
}

// EvictLeaders has a store shed its leaders, for a while or (0) until somebody ends it. How long is
// left is kept for the next leader (memory.go) before anything begins: an eviction never outlasts
// what was asked for.
func (s *Server) EvictLeaders(ctx context.Context, id uint64, d time.Duration) error {
	var until time.Time
	if d > 0 {
		until = time.Now().Add(d)
	}
	if s.cluster.Core().UpdateStore(id, core.WithEvictUntil(until)) == nil {
		return fmt.Errorf("%w: %d", ErrUnknownStore, id)
	}
	if err := s.saveMemory(ctx); err != nil {
		return err
	}
	if err := s.SetStoreSettings(ctx, id, func(set *storeSettings) {
		set.EvictLeaders = true
	}); err != nil {
		return err
	}
	// another change may have come between
	s.cluster.Core().UpdateStore(id, core.WithEvictUntil(until))
	return nil
}

// endEvictions lets leaders come back to stores whose time of shedding them is over.
func (s *Server) endEvictions(ctx context.Context) {
	now := time.Now()
	for _, st := range s.cluster.Core().Stores() {
		if until := st.EvictUntil(); !st.EvictLeaders() || until.IsZero() || now.Before(until) {
			continue
		}
		if err := s.SetStoreSettings(ctx, st.ID(), func(set *storeSettings) {
			set.EvictLeaders = false
		}); err != nil {
			s.logger.Warn("ending an eviction failed", log.StoreID(st.ID()), zap.Error(err))
			return
		}
		s.cluster.events.add("store-unevict",
			fmt.Sprintf("store %d may lead again: its time is over", st.ID()))
	}
}

// SetStoreSettings changes weights, labels, limit and leader eviction of a store.
func (s *Server) SetStoreSettings(
	ctx context.Context, id uint64, change func(*storeSettings),
) error {
	c := s.cluster
	c.storeMu.Lock()
	defer c.storeMu.Unlock()
	st := c.Core().Store(id)
	if st == nil {
		return fmt.Errorf("%w: %d", ErrUnknownStore, id)
	}
	set := &storeSettings{
		Weight: st.Weight(), LeaderWeight: st.OwnLeaderWeight(), EvictLeaders: st.EvictLeaders(),
		Labels: st.SetLabels(), Limit: st.Limit(),
	}
	change(set)
	value, err := json.Marshal(set)
	if err != nil {
		return err
	}
	if err := s.write(ctx, storage.Put(s.keys.StoreSetting(id), value)); err != nil {
		return err
	}
	c.Core().UpdateStore(id, core.WithWeight(set.Weight), core.WithEvictLeaders(set.EvictLeaders),
		core.WithLabels(set.Labels), core.WithLimit(set.Limit),
		core.WithLeaderWeight(set.LeaderWeight))
	if !set.EvictLeaders {
		c.Core().UpdateStore(id, core.WithEvictUntil(time.Time{}))
	}
	c.health.Store(nil)
	c.planner.Wake()
	return nil
}

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

// drains watch stores being emptied. The leader's loop writes, the API reads. It is the knowledge
// of one leader: another one measures anew, from what is left then.
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
		list[0].regions, list[0].mib = max(list[0].regions, st.RegionCount()),
			max(list[0].mib, st.RegionSize())
		for len(list) > 2 && now.Sub(list[1].at) > drainWindow {
			list = append(list[:1], list[2:]...) // the first one is the beginning
		}
		next[st.ID()] = list
	}
	d.mu.samples = next
}

// drainJSON is how far the emptying of a store has come.
type drainJSON struct {
	// DoneShare is what is gone of what was there when this placement leader first looked, from 0
	// to 1.
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

// drainWaits finds what regions of a leaving store wait for: what the checker says that is not
// possible now.
func (s *Server) drainWaits(st *core.StoreInfo) map[string]drainWait {
	base := s.cluster.viewBase()
	// nothing that is planned here is carried out
	base.AllocID = func() (uint64, error) { return 1, nil }
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

// storeWatch tells of stores that fall silent and are given up. Owned by the leader's loop; a new
// leader says it once more of those that are silent.
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
			s.cluster.events.add("store-disconnected",
				fmt.Sprintf("store %d has not reported for %s", st.ID(), silent))
		case "down":
			s.cluster.events.add("store-down", fmt.Sprintf(
				"store %d has not reported for %s: its replicas are replaced", st.ID(), silent))
		}
	}
	w.states = next
}
