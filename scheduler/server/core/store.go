package core

import (
	"maps"
	"slices"
	"time"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// StoreCounts are a store's shares of the region map. Sizes are in MiB.
type StoreCounts struct {
	LeaderCount, RegionCount, PendingCount int
	LeaderSize, RegionSize                 int64
}

// StoreLimit bounds what may be in flight to and from a store, each way; 0 means the general
// setting.
type StoreLimit struct {
	Moves int   `json:"moves,omitempty"`
	MiB   int64 `json:"mib,omitempty"`
}

// StoreInfo is what is known about one store. Immutable once published.
type StoreInfo struct {
	meta          *metapb.Store
	stats         *schedulerpb.StoreStats // nil until the first store heartbeat
	lastHeartbeat time.Time
	// silence before lastHeartbeat, for people only: see WithEarlierSilence
	earlier      time.Duration
	counts       StoreCounts
	weight       float64
	leaderWeight float64 // 0: as weight
	evictLeaders bool
	evictUntil   time.Time // zero: until somebody ends it
	limit        StoreLimit
	labels       map[string]string // set by an operator, over those the store brings; never changed
	emptyBeats   int               // consecutive heartbeats with region_count == 0
	// why it is not known that the store is where it says; "" if it is
	unproven string
	clock    clockReading
	slow     Slowness
}

// StoreOption changes a copy of a store.
type StoreOption func(*StoreInfo)

// NewStore makes a store that is treated as seen at the given time: a placement leader that just
// took over must not take every store for dead.
func NewStore(meta *metapb.Store, now time.Time) *StoreInfo {
	return &StoreInfo{meta: meta, lastHeartbeat: now, weight: 1}
}

// Clone returns a changed copy.
func (s *StoreInfo) Clone(opts ...StoreOption) *StoreInfo {
	c := *s
	for _, o := range opts {
		o(&c)
	}
	return &c
}

// WithMeta replaces the store's description.
func WithMeta(meta *metapb.Store) StoreOption { return func(s *StoreInfo) { s.meta = meta } }

// WithState sets the life-cycle state.
func WithState(st metapb.StoreState) StoreOption {
	return func(s *StoreInfo) {
		m := *s.meta
		m.State = st
		s.meta = &m
	}
}

// WithStats records a store heartbeat.
func WithStats(stats *schedulerpb.StoreStats, now time.Time) StoreOption {
	return func(s *StoreInfo) {
		s.stats, s.lastHeartbeat, s.clock = stats, now, s.clock.next(stats, now)
		s.earlier = 0
		if stats.GetRegionCount() == 0 {
			s.emptyBeats++
		} else {
			s.emptyBeats = 0
		}
	}
}

// WithLastHeartbeat sets when the store was last heard of.
func WithLastHeartbeat(t time.Time) StoreOption {
	return func(s *StoreInfo) { s.lastHeartbeat, s.earlier = t, 0 }
}

// WithEarlierSilence notes for how much longer the store has been silent than DownTime says: a new
// leader listens itself before it takes a store for dead. WithLastHeartbeat and WithStats end it.
func WithEarlierSilence(d time.Duration) StoreOption { return func(s *StoreInfo) { s.earlier = d } }

// WithUnreadClock forgets what was known of the store's clock: it was read by another clock, or
// before others read it.
func WithUnreadClock() StoreOption { return func(s *StoreInfo) { s.clock = clockReading{} } }

// WithCounts sets the counters.
func WithCounts(c StoreCounts) StoreOption { return func(s *StoreInfo) { s.counts = c } }

// WithWeight sets the share of regions this store should hold relative to others.
func WithWeight(w float64) StoreOption { return func(s *StoreInfo) { s.weight = w } }

// WithEvictLeaders makes leaders leave the store.
func WithEvictLeaders(on bool) StoreOption { return func(s *StoreInfo) { s.evictLeaders = on } }

// WithLeaderWeight sets the share of leaders this store should have relative to others; 0 is that
// of regions.
func WithLeaderWeight(w float64) StoreOption { return func(s *StoreInfo) { s.leaderWeight = w } }

// WithEvictUntil sets when leaders may come back; zero is never by itself.
func WithEvictUntil(t time.Time) StoreOption { return func(s *StoreInfo) { s.evictUntil = t } }

// WithLimit sets the store's own limit.
func WithLimit(l StoreLimit) StoreOption { return func(s *StoreInfo) { s.limit = l } }

// WithLabels sets labels over those that the store brings; an empty value hides one of them.
func WithLabels(labels map[string]string) StoreOption {
	return func(s *StoreInfo) { s.labels = maps.Clone(labels) }
}

// WithUnproven sets why it is not known that the store is reached at its address; "" if it is.
func WithUnproven(why string) StoreOption { return func(s *StoreInfo) { s.unproven = why } }

// Unproven says why it is not known that the store is reached at its address; "" if it is.
func (s *StoreInfo) Unproven() string { return s.unproven }

// Limit returns the store's own limit.
func (s *StoreInfo) Limit() StoreLimit { return s.limit }

// SetLabels returns the labels that an operator set.
func (s *StoreInfo) SetLabels() map[string]string { return maps.Clone(s.labels) }

// ID returns the store's id.
func (s *StoreInfo) ID() uint64 { return s.meta.GetId() }

// Meta returns the store's description. Callers must not change it.
func (s *StoreInfo) Meta() *metapb.Store { return s.meta }

// Stats returns the last store heartbeat, nil before the first one.
func (s *StoreInfo) Stats() *schedulerpb.StoreStats { return s.stats }

// Address returns where the store serves.
func (s *StoreInfo) Address() string { return s.meta.GetAddress() }

// State returns the life-cycle state.
func (s *StoreInfo) State() metapb.StoreState { return s.meta.GetState() }

// IsUp is true unless the store is leaving or gone.
func (s *StoreInfo) IsUp() bool { return s.State() == metapb.StoreState_Up }

// IsOffline is true while the store is being emptied.
func (s *StoreInfo) IsOffline() bool { return s.State() == metapb.StoreState_Offline }

// IsTombstone is true for a store that left for good.
func (s *StoreInfo) IsTombstone() bool { return s.State() == metapb.StoreState_Tombstone }

// LastHeartbeat is when the store was last heard of.
func (s *StoreInfo) LastHeartbeat() time.Time { return s.lastHeartbeat }

// SilentSince is when the store was last heard of by any leader, as far as leaders have told each
// other.
func (s *StoreInfo) SilentSince() time.Time { return s.lastHeartbeat.Add(-s.earlier) }

// Skew bounds how far the store's clock is ahead of this member's.
func (s *StoreInfo) Skew() Skew { return s.clock.skew }

// DownTime is how long the store has been silent.
func (s *StoreInfo) DownTime(now time.Time) time.Duration { return now.Sub(s.lastHeartbeat) }

// IsBusy is true if the store asked for mercy.
func (s *StoreInfo) IsBusy() bool { return s.stats.GetIsBusy() || s.stats.GetIsSlow() }

// IsDamaged tells whether the store has reported a peer's replica as damaged.
func (s *StoreInfo) IsDamaged(peerID uint64) bool {
	_, found := slices.BinarySearch(s.stats.GetDamagedPeerIds(), peerID)
	return found
}

// Counts returns the store's shares of the region map.
func (s *StoreInfo) Counts() StoreCounts { return s.counts }

// RegionSize is the sum of the sizes of all its peers in MiB.
func (s *StoreInfo) RegionSize() int64 { return s.counts.RegionSize }

// RegionCount is the number of its peers.
func (s *StoreInfo) RegionCount() int { return s.counts.RegionCount }

// LeaderCount is the number of regions it leads.
func (s *StoreInfo) LeaderCount() int { return s.counts.LeaderCount }

// EvictLeaders tells whether leaders must leave.
func (s *StoreInfo) EvictLeaders() bool { return s.evictLeaders }

// EvictUntil is when leaders may come back to a store that sheds them; zero is never by itself.
func (s *StoreInfo) EvictUntil() time.Time { return s.evictUntil }

// EmptyBeats is how many store heartbeats in a row reported no region.
func (s *StoreInfo) EmptyBeats() int { return s.emptyBeats }

// Weight is the store's relative share, 1 by default.
func (s *StoreInfo) Weight() float64 {
	if s.weight <= 0 {
		return 1e-3
	}
	return s.weight
}

// LeaderWeight is the store's relative share of leaders: its own, or that of regions.
func (s *StoreInfo) LeaderWeight() float64 {
	if s.leaderWeight > 0 {
		return s.leaderWeight
	}
	return s.Weight()
}

// OwnLeaderWeight is the share of leaders that was set, 0 if none was.
func (s *StoreInfo) OwnLeaderWeight() float64 { return s.leaderWeight }

// Capacity in bytes, 0 if unknown.
func (s *StoreInfo) Capacity() uint64 { return s.stats.GetCapacity() }

// Available bytes, 0 if unknown.
func (s *StoreInfo) Available() uint64 { return s.stats.GetAvailable() }

// LowSpace is true below the given free share; unknown capacity is not low.
func (s *StoreInfo) LowSpace(minFreeRatio float64) bool {
	if s.stats.GetIsDiskFull() {
		return true
	}
	c := s.Capacity()
	return c > 0 && float64(s.Available()) < minFreeRatio*float64(c)
}

// Label returns the value of a label, "" if the store has none of that name.
func (s *StoreInfo) Label(key string) string {
	if v, ok := s.labels[key]; ok {
		return v
	}
	for _, l := range s.meta.GetLabels() {
		if l.GetKey() == key {
			return l.GetValue()
		}
	}
	return ""
}

// Labels returns all labels.
func (s *StoreInfo) Labels() map[string]string {
	out := make(map[string]string, len(s.meta.GetLabels()))
	for _, l := range s.meta.GetLabels() {
		out[l.GetKey()] = l.GetValue()
	}
	maps.Copy(out, s.labels)
	maps.DeleteFunc(out, func(_, v string) bool { return v == "" })
	return out
}
