package server

import (
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/filter"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

type storeJSON struct {
	ID            uint64            `json:"id"`
	Address       string            `json:"address"`
	StatusAddress string            `json:"status_address,omitempty"`
	Version       string            `json:"version,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	// State is up, disconnected, down, offline or tombstone.
	State         string     `json:"state"`
	LastHeartbeat *time.Time `json:"last_heartbeat"`
	StartTime     *time.Time `json:"start_time,omitempty"`
	SilentSeconds float64    `json:"silent_seconds"`
	Capacity      uint64     `json:"capacity"`
	Available     uint64     `json:"available"`
	UsedSize      uint64     `json:"used_size"`
	LeaderCount   int        `json:"leader_count"`
	RegionCount   int        `json:"region_count"`
	PendingCount  int        `json:"pending_count"`
	LeaderSizeMiB int64      `json:"leader_size_mib"`
	RegionSizeMiB int64      `json:"region_size_mib"`
	// ReportedRegions is what the store itself says it holds.
	ReportedRegions uint32  `json:"reported_regions"`
	Weight          float64 `json:"weight"`
	// LeaderWeight is the share of leaders, Weight that of data.
	LeaderWeight float64 `json:"leader_weight"`
	EvictLeaders bool    `json:"evict_leaders"`
	// EvictSeconds is how long leaders are still kept off; absent if until somebody ends it.
	EvictSeconds float64 `json:"evict_seconds,omitempty"`
	// LimitMoves and LimitMiB bound what is in flight each way: the store's own limit or the
	// general one.
	LimitMoves int   `json:"limit_moves"`
	LimitMiB   int64 `json:"limit_mib"`
	// OwnLimit is true if the store has a limit of its own.
	OwnLimit bool `json:"own_limit"`
	Busy     bool `json:"busy"`
	// Load is the size by weight once running operators are done: what balancing makes equal.
	LoadMiB     float64 `json:"load_mib"`
	MeanLoadMiB float64 `json:"mean_load_mib"`
	InMoves     int     `json:"moves_in"`
	OutMoves    int     `json:"moves_out"`
	InMiB       int64   `json:"in_flight_in_mib"`
	OutMiB      int64   `json:"in_flight_out_mib"`
	// NotTarget and NotSource name the rule that keeps balance from using the store.
	NotTarget string `json:"not_target,omitempty"`
	NotSource string `json:"not_source,omitempty"`
	// Features are those that the store knows; one that is missing here is not in force.
	Features []string `json:"features,omitempty"`
	// Drain is how far the emptying of an offline store has come.
	Drain *drainJSON `json:"drain,omitempty"`
	// Flow is what the store has read for clients and written as a replica, a second, in its last
	// interval.
	Flow flowJSON `json:"flow"`
	// Slow is present while leaders keep away because of the store's disk.
	Slow *slowJSON `json:"slow,omitempty"`
	// Unproven says why the store is not known to be at its address.
	Unproven string `json:"unproven,omitempty"`
}

// flowJSON is a rate, in keys and bytes a second.
type flowJSON struct {
	KeysRead     float64 `json:"keys_read"`
	BytesRead    float64 `json:"bytes_read"`
	KeysWritten  float64 `json:"keys_written"`
	BytesWritten float64 `json:"bytes_written"`
}

// slowJSON says how slow a store's disk is: what syncs of its raft log take, and at the others.
type slowJSON struct {
	Since   time.Time `json:"since"`
	SyncMS  float64   `json:"sync_ms"`
	UsualMS float64   `json:"usual_ms"`
	// until leaders may come back, unless another report is slow
	ForSeconds float64 `json:"for_seconds"`
}

func slow(s *core.StoreInfo, now time.Time) *slowJSON {
	if !s.IsSlow(now) {
		return nil
	}
	is, ms := s.Slowness(), func(d time.Duration) float64 {
		return float64(d.Microseconds()) / 1000
	}
	return &slowJSON{
		Since: is.Since.UTC(), SyncMS: ms(is.Takes), UsualMS: ms(is.Usual),
		ForSeconds: is.Until.Sub(now).Seconds(),
	}
}

// flow is what a store has reported last; all 0 if nothing.
func flow(st *schedulerpb.StoreStats) flowJSON {
	// s
	span := float64(max(1,
		int64(st.GetInterval().GetEndTimestamp()-st.GetInterval().GetStartTimestamp())))
	rate := func(n uint64) float64 { return float64(n) / span }
	return flowJSON{
		KeysRead: rate(st.GetKeysRead()), BytesRead: rate(st.GetBytesRead()),
		KeysWritten: rate(st.GetKeysWritten()), BytesWritten: rate(st.GetBytesWritten()),
	}
}

// stateName is the store's state for people.
func (s *Server) stateName(st *core.StoreInfo) string {
	env := filter.Env{Now: time.Now(), Schedule: &s.cluster.Settings().Schedule}
	switch {
	case st.IsTombstone():
		return "tombstone"
	case st.IsOffline():
		return "offline"
	case filter.Down(st, env):
		return "down"
	case !filter.Connected(st, env):
		return "disconnected"
	default:
		return "up"
	}
}

func (s *Server) storeJSON(v *view.View, st *core.StoreInfo, mean float64) storeJSON {
	c, inf := st.Counts(), v.Influence(st.ID())
	out := storeJSON{
		ID: st.ID(), Address: st.Address(), StatusAddress: st.Meta().GetStatusAddress(),
		Version: st.Meta().GetVersion(), Labels: st.Labels(), State: s.stateName(st),
		SilentSeconds: st.DownTime(v.Now).Seconds(),
		Capacity:      st.Capacity(), Available: st.Available(), UsedSize: st.Stats().GetUsedSize(),
		LeaderCount: c.LeaderCount, RegionCount: c.RegionCount, PendingCount: c.PendingCount,
		LeaderSizeMiB: c.LeaderSize, RegionSizeMiB: c.RegionSize,
		ReportedRegions: st.Stats().GetRegionCount(),
		Weight:          st.Weight(), LeaderWeight: st.LeaderWeight(),
		EvictLeaders: st.EvictLeaders(), Busy: st.IsBusy(),
		LoadMiB: v.Load(st), MeanLoadMiB: mean, Flow: flow(st.Stats()), Slow: slow(st, v.Now),
		Unproven: st.Unproven(), Features: feature.Set(st.Meta().GetFeatures()).Names(),
		InMoves: inf.InMoves, OutMoves: inf.OutMoves, InMiB: inf.InBytes, OutMiB: inf.OutBytes,
	}
	if until := st.EvictUntil(); st.EvictLeaders() && !until.IsZero() {
		out.EvictSeconds = max(0, until.Sub(v.Now).Seconds())
	}
	out.Drain = s.drain(st)
	l := st.Limit()
	out.OwnLimit = l != core.StoreLimit{}
	out.LimitMoves, out.LimitMiB = v.Limit(st.ID())
	if st.Stats() != nil {
		t := st.LastHeartbeat().UTC()
		out.LastHeartbeat = &t
	}
	if ts := st.Meta().GetStartTimestamp(); ts != 0 {
		t := time.Unix(ts, 0).UTC()
		out.StartTime = &t
	}
	out.NotTarget, _ = filter.Refusal(st, filter.RegionTarget, v.Env())
	if out.NotTarget == "" && !v.HasBudget(st.ID(), true, false) {
		out.NotTarget = "budget"
	}
	if out.NotTarget == "" && v.Load(st) >= mean {
		out.NotTarget = "above-mean"
	}
	out.NotSource, _ = filter.Refusal(st, filter.RegionSource, v.Env())
	if out.NotSource == "" && v.Load(st) <= mean {
		out.NotSource = "below-mean"
	}
	return out
}

func meanLoad(v *view.View) float64 {
	var size, weight float64
	for _, st := range v.Stores() {
		if filter.Allows(st, filter.RegionSource, v.Env()) {
			size, weight = size+float64(v.Size(st)), weight+v.Weight(st)
		}
	}
	if weight == 0 {
		return 0
	}
	return size / weight
}

func (s *Server) getStores(r *http.Request) (any, error) {
	v := s.cluster.newView()
	mean := meanLoad(v)
	out := []storeJSON{}
	for _, st := range v.Stores() {
		if st.IsTombstone() && r.URL.Query().Get("tombstone") == "" {
			continue
		}
		out = append(out, s.storeJSON(v, st, mean))
	}
	return map[string]any{"count": len(out), "stores": out}, nil
}

func (s *Server) getStore(r *http.Request) (any, error) {
	id, err := pathID(r, "id")
	if err != nil {
		return nil, err
	}
	v := s.cluster.newView()
	st := v.Store(id)
	if st == nil {
		return nil, notFound("store %d is not registered", id)
	}
	out := s.storeJSON(v, st, meanLoad(v))
	if out.Drain != nil {
		out.Drain.Waiting = s.drainWaits(st)
	}
	return out, nil
}

// storeFields are what the actions of a store take.
var storeFields = map[string][]string{
	"offline": nil, "up": nil, "evict": nil, "unevict": nil,
	"bury": {"force"}, "weight": {"weight", "leader_weight"}, "labels": {"labels"},
	"limit": {"moves", "mib"},
}

func (s *Server) postStore(r *http.Request) (any, error) {
	id, err := pathID(r, "id")
	if err != nil {
		return nil, err
	}
	var body struct {
		Weight       *float64          `json:"weight"`
		LeaderWeight *float64          `json:"leader_weight"`
		Force        bool              `json:"force"`
		Labels       map[string]string `json:"labels"`
		core.StoreLimit
	}
	if err := decodeFields(r, &body, storeFields); err != nil {
		return nil, err
	}
	ctx, cancel := requestContext(r)
	defer cancel()
	switch action := r.PathValue("action"); action {
	case "offline":
		err = s.OfflineStore(ctx, id)
	case "up":
		err = s.UpStore(ctx, id)
	case "bury":
		err = s.BuryStore(ctx, id, body.Force)
	case "evict":
		var d time.Duration
		if text := r.URL.Query().Get("for"); text != "" {
			if d, err = time.ParseDuration(text); err != nil || d <= 0 {
				return nil, badRequest("for: %q is not a duration above 0", text)
			}
		}
		err = s.EvictLeaders(ctx, id, d)
	case "unevict":
		err = s.SetStoreSettings(ctx, id, func(set *storeSettings) { set.EvictLeaders = false })
	case "weight":
		if err = checkWeights(body.Weight, body.LeaderWeight); err != nil {
			return nil, err
		}
		err = s.SetStoreSettings(ctx, id, func(set *storeSettings) {
			if body.Weight != nil {
				set.Weight = *body.Weight
			}
			if body.LeaderWeight != nil {
				set.LeaderWeight = *body.LeaderWeight
			}
		})
	case "labels":
		if err := checkLabels(body.Labels); err != nil {
			return nil, err
		}
		err = s.SetStoreSettings(ctx, id, func(set *storeSettings) {
			set.Labels = mergeLabels(set.Labels, body.Labels)
		})
	case "limit":
		if body.Moves < 0 || body.MiB < 0 {
			return nil,
				badRequest("limit: moves and mib must not be negative; 0 is the general limit")
		}
		err = s.SetStoreSettings(ctx, id, func(set *storeSettings) { set.Limit = body.StoreLimit })
	default:
		return nil,
			badRequest(
				"unknown action %q: offline, up, bury, evict, unevict, weight, labels or limit",
				action)
	}
	if err != nil {
		return nil, err
	}
	return s.getStore(r)
}

// checkWeights refuses shares that nothing could be balanced by. A leader weight of 0 takes the own
// one away.
func checkWeights(weight, leaders *float64) error {
	switch {
	case weight == nil && leaders == nil, weight != nil && (*weight <= 0 || *weight > 1000):
		return badRequest("weight: a number above 0 and up to 1000 is needed")
	case leaders != nil && (*leaders < 0 || *leaders > 1000):
		return badRequest(
			"leader_weight: a number up to 1000 is needed; 0 is the weight of the data")
	}
	return nil
}

// checkLabels refuses names and values that filters and tables could not show.
func checkLabels(labels map[string]string) error {
	if len(labels) == 0 {
		return badRequest("labels: at least one is needed, as {\"labels\": {\"zone\": \"z1\"}}")
	}
	for k, v := range labels {
		if k == "" || len(k) > 63 || len(v) > 63 || strings.ContainsAny(k+v, " =\n\t") {
			return badRequest(
				"labels: %q=%q: names and values of up to 63 characters without space and '=' are needed", k, v)
		}
	}
	return nil
}

// mergeLabels applies a change; an empty value hides what the store itself brings.
func mergeLabels(old, change map[string]string) map[string]string {
	out := maps.Clone(old)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, change)
	return out
}

// deleteStore drops the record of a tombstone.
func (s *Server) deleteStore(r *http.Request) (any, error) {
	id, err := pathID(r, "id")
	if err != nil {
		return nil, err
	}
	st := s.cluster.Core().Store(id)
	if st == nil {
		return nil, notFound("store %d is not registered", id)
	}
	if !st.IsTombstone() {
		return nil, badRequest("store %d is %s: take it offline first", id, s.stateName(st))
	}
	ctx, cancel := requestContext(r)
	defer cancel()
	if err := s.write(ctx, storage.Delete(s.keys.Store(id)),
		storage.Delete(s.keys.StoreSetting(id))); err != nil {
		return nil, err
	}
	s.cluster.Core().RemoveStore(id)
	return map[string]any{"removed": id}, nil
}
