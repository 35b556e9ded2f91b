package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/history"
	"github.com/tinykv/tinykv/scheduler/server/schedule"
	"github.com/tinykv/tinykv/scheduler/server/schedule/merge"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
	"github.com/tinykv/tinykv/scheduler/server/schedulers"
)

// ErrUnknownStore means a report from a store that never registered.
var ErrUnknownStore = errors.New("server: store is not registered")

// ClusterOptions are what a RaftCluster is built from. The simulation passes its own clock, seed
// and sender.
type ClusterOptions struct {
	Settings *view.Settings
	Now      func() time.Time
	Seed     uint64
	Sender   schedule.Sender
	AllocID  func() (uint64, error)
	Logger   *zap.Logger
	// Mode is that of the cluster; nil, or empty, is raw.
	Mode func() string
	// VerifyStores keeps new stores from getting regions until somebody says that they were
	// reached.
	VerifyStores bool
}

// RaftCluster is the soft state of the cluster and the code that acts on it.
//
// It exists on every member. On followers it only serves routing; on the leader Run plans.
type RaftCluster struct {
	core       *core.BasicCluster
	controller *schedule.Controller
	planner    *schedule.Planner
	opts       ClusterOptions
	settings   atomic.Pointer[view.Settings]
	health     atomic.Pointer[view.View] // stores' health, refreshed every healthTTL
	prepare    prepareChecker
	events     *eventLog
	stats      heartbeatStats
	rng        *rand.Rand
	onChange   func(*core.RegionInfo) // told of every changed record; must only queue
	confirmed  atomic.Bool            // some record may come from a heartbeat

	scatter scatterer
	merges  *merge.Policy

	history *history.History

	// storeMu makes read-check-write of one store atomic; it is held over the storage write, and
	// nothing else waits for it but other changes of stores.
	storeMu sync.Mutex
	// sequences are what the stores have promised about their raft logs.
	sequences sequences
	// features are those in force, as recorded in the storage; they change under storeMu.
	features atomic.Uint64
}

// heartbeatStats count region heartbeats by outcome.
type heartbeatStats struct {
	unchanged, updated, stale, invalid atomic.Uint64
}

const healthTTL = 100 * time.Millisecond

// NewRaftCluster returns an empty cluster that does nothing by itself.
func NewRaftCluster(opts ClusterOptions) *RaftCluster {
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	c := &RaftCluster{
		core: core.NewBasicCluster(), opts: opts, events: newEventLog(opts.Now),
		history: history.New(),
		rng: rand.New(rand.NewPCG(opts.Seed,
			0x5eed)), //nolint:gosec // placement needs no secrets
	}
	c.settings.Store(opts.Settings)
	c.controller = schedule.NewController(c.core, opts.Sender, opts.Now, opts.Settings)
	c.controller.OnStart(c.events.operatorStarted)
	c.merges = merge.New(opts.Now(), c.noMerges)
	c.controller.OnEnd(func(rec operator.Record) {
		c.events.operatorEnded(rec)
		c.merges.Ended(rec)
	})
	c.planner = schedule.NewPlanner(c.core, c.controller, c.newView, c.Prepared,
		schedulers.Default()...)
	c.planner.UseMerges(c.merges)
	c.prepare.reset(opts.Now())
	return c
}

// Core returns the region map and the stores.
func (c *RaftCluster) Core() *core.BasicCluster { return c.core }

// Controller returns the owner of running operators.
func (c *RaftCluster) Controller() *schedule.Controller { return c.controller }

// Planner returns the planner.
func (c *RaftCluster) Planner() *schedule.Planner { return c.planner }

// Settings returns the options in force.
func (c *RaftCluster) Settings() *view.Settings { return c.settings.Load() }

// SetSettings changes the options.
func (c *RaftCluster) SetSettings(s *view.Settings) {
	c.settings.Store(s)
	c.controller.SetSettings(s)
	c.health.Store(nil)
	c.planner.Wake()
}

// newView takes a full picture for the planner.
func (c *RaftCluster) newView() *view.View {
	return view.New(c.viewBase(), c.controller.Running())
}

func (c *RaftCluster) viewBase() view.View {
	return view.View{
		Now: c.opts.Now(), Settings: c.Settings(), Regions: c.core, Rand: c.rng,
		Busy: c.controller.Busy, AllocID: c.opts.AllocID,
		GivenUp: c.controller.GivenUp, TimedOut: c.controller.TimedOut,
		LeftLately: c.controller.LeftLately,
		Merges:     c.planner.WillMerge,
	}
}

// healthView is a picture of the stores' health that may be a little old. It is never written to,
// so that all heartbeat goroutines may share it.
func (c *RaftCluster) healthView() *view.View {
	now := c.opts.Now()
	if v := c.health.Load(); v != nil && now.Sub(v.Now) < healthTTL {
		return v
	}
	v := view.New(c.viewBase(), nil)
	c.health.Store(v)
	return v
}

// HandleRegionHeartbeat takes in a heartbeat. Most of them say what is known: those cost a lookup
// and a comparison.
func (c *RaftCluster) HandleRegionHeartbeat(hb *schedulerpb.RegionHeartbeatRequest) error {
	if old := c.core.Region(hb.GetRegion().GetId()); old != nil && hb.Region != nil &&
		old.Unchanged(hb) {
		c.stats.unchanged.Add(1)
		c.controller.Dispatch(c.healthView, old)
		return nil
	}
	if err := validateHeartbeat(hb); err != nil {
		c.stats.invalid.Add(1)
		return err
	}
	r := core.RegionFromHeartbeat(hb)
	if err := c.processRegionHeartbeat(r); err != nil {
		return err
	}
	c.controller.Dispatch(c.healthView, r)
	return nil
}

func validateHeartbeat(hb *schedulerpb.RegionHeartbeatRequest) error {
	m := hb.GetRegion()
	switch {
	case m.GetId() == 0:
		return fmt.Errorf("%w: heartbeat without region id", core.ErrInvalidRegion)
	case len(m.GetPeers()) == 0:
		return fmt.Errorf("%w: region %d has no peers", core.ErrInvalidRegion, m.GetId())
	case hb.GetLeader() == nil:
		return fmt.Errorf("%w: region %d has no leader", core.ErrInvalidRegion, m.GetId())
	}
	for _, p := range m.GetPeers() {
		if p.GetId() == hb.Leader.Id && p.GetStoreId() == hb.Leader.StoreId {
			return nil
		}
	}
	return fmt.Errorf("%w: leader %d is not a peer of region %d", core.ErrInvalidRegion,
		hb.Leader.Id, m.GetId())
}

// processRegionHeartbeat updates the record of a region, if the report is news:
//
//  1. a report whose epoch is behind what is known, of this region or of one that shares keys with
//     it, is stale: an isolated former leader may go on reporting for long;
//  2. a report that changes nothing visible is skipped;
//  3. otherwise the record is replaced, overlapping older records leave, and the counters of every
//     store that had or has a peer are published.
func (c *RaftCluster) processRegionHeartbeat(r *core.RegionInfo) error {
	if old := c.core.Region(r.ID()); old != nil && old.SameAs(r) {
		c.stats.unchanged.Add(1)
		return nil
	}
	if r.Source() == core.SourceHeartbeat && !c.confirmed.Load() {
		c.confirmed.Store(true)
	}
	res, err := c.core.PutRegion(r)
	if err != nil {
		if errors.Is(err, core.ErrStale) {
			c.stats.stale.Add(1)
		} else {
			c.stats.invalid.Add(1)
		}
		return err
	}
	c.stats.updated.Add(1)
	c.core.UpdateStoreStatus(touchedStores(r, res)...)
	for _, d := range res.Displaced {
		c.controller.RegionGone(d.ID(), r)
		c.prepare.gone(d)
	}
	c.prepare.collect(res.Old, r, c.opts.Now())
	c.merges.Note(r, res.Old, res.Displaced, c.opts.Now())
	if needsCheck(r, res.Old, c.Settings().Replication.MaxReplicas) {
		c.planner.MarkDirty(r.ID())
	}
	if c.onChange != nil {
		c.onChange(r)
	}
	return nil
}

// needsCheck keeps updates of mere size from waking the planner.
func needsCheck(r, old *core.RegionInfo, replicas int) bool {
	return old == nil || len(r.Peers()) != replicas || r.HasPending() != old.HasPending() ||
		len(r.DownPeers()) > 0 || r.ConfVer() != old.ConfVer() ||
		r.LeaderStore() != old.LeaderStore()
}

func touchedStores(r *core.RegionInfo, res core.PutResult) []uint64 {
	var ids []uint64
	add := func(r *core.RegionInfo) {
		for _, p := range r.Peers() {
			ids = append(ids, p.StoreID)
		}
	}
	add(r)
	if res.Old != nil {
		add(res.Old)
	}
	for _, d := range res.Displaced {
		add(d)
	}
	return ids
}

// heard notes a sign of life of a store beside its own reports: it has opened a stream.
func (c *RaftCluster) heard(s *core.StoreInfo) {
	now := c.opts.Now()
	if s.DownTime(now) > c.Settings().Schedule.StoreDisconnect.D() {
		c.health.Store(nil)
		defer c.planner.Wake()
	}
	c.core.UpdateStore(s.ID(), core.WithLastHeartbeat(now))
}

// HandleStoreHeartbeat takes in a store's report.
func (c *RaftCluster) HandleStoreHeartbeat(stats *schedulerpb.StoreStats) error {
	s := c.core.Store(stats.GetStoreId())
	if s == nil {
		return fmt.Errorf("%w: %d", ErrUnknownStore, stats.GetStoreId())
	}
	if run := s.Meta().GetRun(); run != 0 && stats.Run != 0 && run != stats.Run {
		return fmt.Errorf("%w: store %d was started again as incarnation %d at %s",
			ErrDuplicateStore, s.ID(),
			s.Meta().GetIncarnation(), s.Address())
	}
	if stats.LogSequence > 0 {
		c.sequences.set(s.ID(), stats.LogSequence)
	}
	now := c.opts.Now()
	c.history.Beat(s.ID(), stats.Run, now, stats.ReadClasses, stats.WriteClasses)
	wasDown := s.DownTime(now) > c.Settings().Schedule.StoreDisconnect.D()
	firstStats := s.Stats() == nil
	damaged := !slices.Equal(s.Stats().GetDamagedPeerIds(), stats.DamagedPeerIds)
	was := s.Slowness()
	s = c.core.UpdateStore(s.ID(), core.WithStats(stats, now),
		core.WithSyncs(c.usualSync(s.ID(), now), now))
	slow := c.noteSlowness(s, was)
	c.prepare.storeBeat(s.ID(), int(stats.GetRegionCount()))
	if wasDown {
		c.events.add("store-connected", fmt.Sprintf("store %d is heard again", s.ID()))
	}
	if damaged {
		c.events.add("store-damaged",
			fmt.Sprintf("store %d reports %d damaged replicas", s.ID(), len(stats.DamagedPeerIds)))
	}
	if wasDown || firstStats || damaged || slow {
		c.health.Store(nil)
		c.planner.Wake()
	}
	return nil
}

// usualSync is what syncs of the raft log take at the stores other than the given one that have
// reported lately.
func (c *RaftCluster) usualSync(id uint64, now time.Time) time.Duration {
	var others []*core.StoreInfo
	for _, o := range c.core.Stores() {
		if o.ID() != id && o.DownTime(now) <= c.Settings().Schedule.StoreDisconnect.D() {
			others = append(others, o)
		}
	}
	return core.UsualSync(others)
}

// noteSlowness adds an event if a store has become slow or is not any more, and tells whether it
// has.
func (c *RaftCluster) noteSlowness(s *core.StoreInfo, was core.Slowness) bool {
	is := s.Slowness()
	switch {
	case was.Since.IsZero() && !is.Since.IsZero():
		c.events.add("store-slow",
			fmt.Sprintf("store %d: syncs take %v, at others %v; leaders leave it", s.ID(),
				is.Takes.Round(time.Millisecond), is.Usual.Round(time.Millisecond)))
	case !was.Since.IsZero() && is.Since.IsZero():
		c.events.add("store-not-slow",
			fmt.Sprintf("store %d was slow for %v; leaders may come back", s.ID(),
				was.Until.Sub(was.Since).Round(time.Second)))
	default:
		return false
	}
	return true
}

// Prepared tells whether enough has been heard to balance and to bury stores.
func (c *RaftCluster) Prepared() bool {
	return c.prepare.check(c.opts.Now(), c.core.Stores(), c.Settings())
}

// Tick takes one planning turn and returns when the next is due.
func (c *RaftCluster) Tick() time.Time { return c.planner.Tick() }

// Run plans until ctx ends.
func (c *RaftCluster) Run(ctx context.Context) {
	const (
		shortest = 2 * time.Millisecond
		// operators have deadlines, and being prepared comes with time
		busy    = 100 * time.Millisecond
		longest = time.Second
	)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-c.planner.Woken():
			// Changes come in bursts: gather a little before the whole picture is taken.
			if !timer.Stop() {
				select {
				case <-timer.C:
				default:
				}
			}
			timer.Reset(shortest)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		}
		next := c.Tick()
		limit := longest
		if !c.controller.Idle() || !c.Prepared() {
			limit = busy
		}
		timer.Reset(min(max(next.Sub(c.opts.Now()), shortest), limit))
	}
}

// TakeOver prepares the cluster for leading: stores count as seen now, nothing is known to be
// confirmed, no operator runs.
func (c *RaftCluster) TakeOver() {
	now := c.opts.Now()
	c.controller.CancelAll("placement leader changed")
	for _, s := range c.core.Stores() {
		c.core.UpdateStore(s.ID(), core.WithLastHeartbeat(now), core.WithUnreadClock())
	}
	// A follower's records are copies. Only who led before has others, and a million take a while.
	if c.confirmed.Swap(false) {
		for _, r := range c.core.ScanRegions(nil, nil, 0) {
			if r.Source() == core.SourceHeartbeat {
				_, _ = c.core.PutRegion(r.Clone(core.WithSource(core.SourceSync)))
			}
		}
	}
	c.health.Store(nil)
	c.prepare.reset(now)
	c.merges.Reset(now)
}

// AddOperator admits an operator that a person asked for.
func (c *RaftCluster) AddOperator(op *operator.Operator) error {
	defer c.planner.Wake() // turns come often while operators run
	return c.controller.Add(c.newView(), op)
}

// addPair admits the two operators of a merge that a person asked for, or neither.
func (c *RaftCluster) addPair(merge, take *operator.Operator) error {
	defer c.planner.Wake()
	return c.controller.AddPair(c.newView(), merge, take)
}

// ReportSplit installs both halves of a split for routing. They count as confirmed only after their
// own heartbeats.
func (c *RaftCluster) ReportSplit(left, right *metapb.Region) error {
	if left.GetId() == 0 || right.GetId() == 0 {
		return errors.New("invalid split report: a half has no id")
	}
	if string(left.EndKey) != string(right.StartKey) || len(left.EndKey) == 0 {
		return fmt.Errorf("invalid split report: regions %d and %d are not neighbours", left.Id,
			right.Id)
	}
	var leaderStore uint64
	for _, id := range []uint64{left.Id, right.Id} {
		if old := c.core.Region(id); old != nil && leaderStore == 0 {
			leaderStore = old.LeaderStore()
		}
	}
	for _, m := range []*metapb.Region{left, right} {
		r := core.NewRegion(m, nil, core.WithLeaderStore(leaderStore),
			core.WithSource(core.SourceReport))
		if old := c.core.Region(m.Id); old != nil && old.Confirmed() &&
			old.Version() >= r.Version() {
			continue // its heartbeat was faster
		}
		if err := c.processRegionHeartbeat(r); err != nil && !errors.Is(err, core.ErrStale) {
			return err
		}
	}
	return nil
}

// SetStores replaces what is known of all stores by what the storage holds.
func (c *RaftCluster) SetStores(stores []*core.StoreInfo) {
	keep := map[uint64]bool{}
	for _, s := range stores {
		keep[s.ID()] = true
		c.core.PutStore(s)
	}
	for _, s := range c.core.Stores() {
		if !keep[s.ID()] {
			c.core.RemoveStore(s.ID())
		}
	}
}

// checkNewStore refuses what would send raft messages to the wrong place.
func (c *RaftCluster) checkNewStore(m *metapb.Store) error {
	if m.GetId() == 0 {
		return errors.New("invalid put store: store id must not be 0")
	}
	if security.AnyHost(m.GetAddress()) {
		return fmt.Errorf(
			"invalid put store: nobody can reach store %d at %q; give the host that others reach with "+
				"--advertise-addr", m.GetId(), m.GetAddress())
	}
	for _, s := range c.core.Stores() {
		if s.ID() != m.GetId() && !s.IsTombstone() && s.Address() == m.GetAddress() {
			return fmt.Errorf("duplicated store address: %s already belongs to store %d",
				m.GetAddress(), s.ID())
		}
	}
	return nil
}

// PutStore registers a store and returns the incarnation of its run; save writes the description
// before it is published. ErrOldCopy unless rebuild says that the store knows.
func (c *RaftCluster) PutStore(
	m *metapb.Store, rebuild bool, save func(*metapb.Store) error,
) (uint64, error) {
	c.storeMu.Lock()
	defer c.storeMu.Unlock()
	if err := c.checkNewStore(m); err != nil {
		return 0, err
	}
	if err := c.checkFeatures(m); err != nil {
		return 0, err
	}
	stored := *m
	old := c.core.Store(m.GetId())
	var err error
	if stored.Incarnation, err = c.countRun(old, m, rebuild); err != nil {
		return 0, err
	}
	if old != nil {
		stored.State = old.State() // a leaving store stays leaving, whatever it says
	} else {
		stored.State = metapb.StoreState_Up
	}
	stored.LastHeartbeat = 0
	if err := save(&stored); err != nil {
		return 0, err
	}
	if stored.Run != 0 {
		c.sequences.set(stored.Id, stored.LogSequence)
	}
	now := c.opts.Now()
	if old == nil {
		st := core.NewStore(&stored, now)
		if c.opts.VerifyStores {
			st = st.Clone(core.WithUnproven(notCalledYet))
		}
		c.core.PutStore(st)
		c.events.add("store-registered", fmt.Sprintf("store %d at %s", m.GetId(), m.GetAddress()))
		c.opts.Logger.Info("registered store", log.StoreID(m.GetId()),
			zap.String("address", m.GetAddress()))
	} else {
		unproven := old.Unproven()
		if c.opts.VerifyStores && old.Address() != m.GetAddress() {
			unproven = notCalledYet
		}
		c.core.UpdateStore(m.GetId(), core.WithMeta(&stored), core.WithLastHeartbeat(now),
			core.WithUnproven(unproven))
	}
	c.health.Store(nil)
	c.planner.Wake()
	return stored.Incarnation, nil
}

// settingsOf builds the settings of a configuration.
func settingsOf(cfg *config.Config) *view.Settings {
	return &view.Settings{Schedule: cfg.Schedule, Replication: cfg.Replication}
}

// Heartbeats counts region heartbeats that were taken in, whatever they said.
func (c *RaftCluster) Heartbeats() uint64 {
	s := &c.stats
	return s.unchanged.Load() + s.updated.Load() + s.stale.Load() + s.invalid.Load()
}
