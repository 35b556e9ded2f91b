package server

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/filter"
	"github.com/tinykv/tinykv/scheduler/server/schedule/merge"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

type memberJSON struct {
	Name       string   `json:"name"`
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peer_urls"`
	ClientURLs []string `json:"client_urls"`
	Leader     bool     `json:"leader"`
	EtcdLeader bool     `json:"etcd_leader"`
	Learner    bool     `json:"learner"`
	Self       bool     `json:"self"`
	Alarm      string   `json:"alarm,omitempty"` // what keeps its etcd from writing
}

func (s *Server) memberList() []memberJSON {
	leader, _ := s.elector.Leader()
	etcdLeader := s.node.quorumLeader()
	var out []memberJSON
	for _, m := range s.members() {
		out = append(out, memberJSON{
			Name: m.Name, ID: m.MemberId, PeerURLs: m.PeerUrls, ClientURLs: m.ClientUrls,
			Leader: m.MemberId == leader.GetMemberId(), EtcdLeader: m.MemberId == etcdLeader,
			Learner: m.learner, Self: m.MemberId == s.self.MemberId,
		})
	}
	for _, a := range s.node.alarms() {
		for i := range out {
			if out[i].ID == a.Member {
				out[i].Alarm = a.Kind
			}
		}
	}
	return out
}

func (s *Server) getMembers(*http.Request) (any, error) {
	return map[string]any{
		"cluster_id": s.clusterID, "members": s.memberList(), "alarms": nonNil(s.node.alarms()),
	}, nil
}

// placementJSON counts what is not as it should be.
type placementJSON struct {
	Regions    int `json:"regions"`
	Missing    int `json:"missing_replicas"`
	Extra      int `json:"extra_replicas"`
	Down       int `json:"down_replicas"`
	Pending    int `json:"pending_replicas"`
	Leaderless int `json:"leaderless"`
	Offline    int `json:"on_offline_stores"`
	Empty      int `json:"empty"`
}

// defects returns what is not as it should be with one region.
func (s *Server) defects(v *view.View, r *core.RegionInfo) []string {
	var out []string
	if r.Voters() < v.MaxReplicas() {
		out = append(out, "miss-peer")
	}
	if r.Voters() > v.MaxReplicas() {
		out = append(out, "extra-peer")
	}
	if r.HasPending() {
		out = append(out, "pending-peer")
	}
	if _, ok := r.Leader(); !ok || !r.Confirmed() && s.cluster.Prepared() {
		out = append(out, "no-leader") // as health reports it
	}
	down, offline := len(r.DownPeers()) > 0, false
	for _, st := range v.StoresOf(r) {
		down = down || !filter.Connected(st, v.Env())
		offline = offline || st.IsOffline()
	}
	if down {
		out = append(out, "down-peer")
	}
	if offline {
		out = append(out, "offline-peer")
	}
	if r.Size() <= 1 && r.Keys() == 0 {
		out = append(out, "empty")
	}
	return out
}

func (s *Server) placement() placementJSON {
	v := s.cluster.newView()
	var h placementJSON
	for _, r := range s.cluster.Core().ScanRegions(nil, nil, 0) {
		h.Regions++
		for _, d := range s.defects(v, r) {
			switch d {
			case "miss-peer":
				h.Missing++
			case "extra-peer":
				h.Extra++
			case "pending-peer":
				h.Pending++
			case "no-leader":
				h.Leaderless++
			case "down-peer":
				h.Down++
			case "offline-peer":
				h.Offline++
			case "empty":
				h.Empty++
			}
		}
	}
	return h
}

func (s *Server) getCluster(r *http.Request) (any, error) {
	ctx, cancel := requestContext(r)
	defer cancel()
	boot, err := s.storage.Get(ctx, s.keys.BootstrapTime())
	if err != nil {
		return nil, err
	}
	var bootTime *time.Time
	if ns, err := storage.ParseUint64(boot.Value); err == nil {
		t := time.Unix(0, int64(ns)).UTC()
		bootTime = &t
	}
	states := map[string]int{}
	var capacity, available, used uint64
	v := s.cluster.newView()
	for _, st := range v.Stores() {
		states[s.stateName(st)]++
		capacity, available, used = capacity+st.Capacity(), available+st.Available(),
			used+st.Stats().GetUsedSize()
	}
	ops := map[string]int{}
	for _, op := range s.cluster.Controller().Records() {
		ops[op.Desc]++
	}
	l := s.leadership()
	var term uint64
	if l != nil {
		term = l.Term
	}
	booted, _ := s.bootstrapped()
	report := s.health.report()
	return map[string]any{
		"id": s.clusterID, "bootstrapped": booted, "bootstrap_time": bootTime, "leader": s.cfg.Name,
		"term":    term,
		"members": s.memberList(), "prepared": s.cluster.Prepared(), "stores": states,
		"capacity": capacity, "available": available, "used_size": used,
		"health": healthAnswer(s, report), "placement": s.placement(), "operators": ops,
		"max_replicas": v.MaxReplicas(),
		"features":     nonNil(s.cluster.Features().Names()),
		"heartbeats": map[string]uint64{
			"unchanged": s.cluster.stats.unchanged.Load(),
			"updated":   s.cluster.stats.updated.Load(),
			"stale":     s.cluster.stats.stale.Load(), "invalid": s.cluster.stats.invalid.Load(),
		},
		"timestamps": s.metrics.tsoHandled.Load(), "time": time.Now().UTC(),
	}, nil
}

// configJSON is what can be changed while the service runs.
type configJSON struct {
	Schedule    config.Schedule    `json:"schedule"`
	Replication config.Replication `json:"replication"`
}

func (s *Server) getConfig(*http.Request) (any, error) {
	set := s.cluster.Settings()
	return configJSON{set.Schedule, set.Replication}, nil
}

// patchConfig changes single settings: {"schedule": {"store-moves-in-flight": 4}}.
func (s *Server) patchConfig(r *http.Request) (any, error) {
	set := *s.cluster.Settings()
	next := configJSON{set.Schedule, set.Replication}
	// The body is decoded over the settings: slices must not be those of the live ones, which
	// others read and which stay if the change is refused.
	next.Schedule.Schedulers = slices.Clone(next.Schedule.Schedulers)
	next.Replication.LocationLabels = slices.Clone(next.Replication.LocationLabels)
	if err := decodeBody(r, &next); err != nil {
		return nil, err
	}
	if err := next.Schedule.Validate(); err != nil {
		return nil, badRequest("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if n := next.Replication.MaxReplicas; n < 1 || n > 15 {
		return nil, badRequest("replication.max-replicas: %d is not between 1 and 15", n)
	}
	ctx, cancel := requestContext(r)
	defer cancel()
	set.Schedule, set.Replication = next.Schedule, next.Replication
	value, err := json.Marshal(set)
	if err != nil {
		return nil, err
	}
	if err := s.write(ctx, storage.Put(s.keys.ScheduleConfig(), value)); err != nil {
		return nil, err
	}
	s.cluster.SetSettings(&set)
	s.leaderMu.RLock()
	meta := s.leaderMu.meta
	s.leaderMu.RUnlock()
	if meta != nil && meta.MaxPeerCount != uint32(set.Replication.MaxReplicas) {
		changed := *meta
		changed.MaxPeerCount = uint32(set.Replication.MaxReplicas)
		if err := s.putClusterConfig(ctx, &changed); err != nil {
			return nil, err
		}
	}
	s.cluster.events.add("config-changed", string(value))
	return next, nil
}

func (s *Server) getSchedulers(*http.Request) (any, error) {
	set := s.cluster.Settings()
	var out []map[string]any
	for _, name := range s.cluster.Planner().Schedulers() {
		until := s.cluster.Planner().PausedUntil(name)
		row := map[string]any{
			"name": name, "enabled": set.Schedule.Enabled(name), "paused": time.Now().Before(until),
		}
		if time.Now().Before(until) {
			row["paused_until"], row["paused_seconds"] = until.UTC(), time.Until(until).Seconds()
		}
		out = append(out, row)
	}
	return map[string]any{"schedulers": out}, nil
}

func (s *Server) postScheduler(r *http.Request) (any, error) {
	name, p := r.PathValue("name"), s.cluster.Planner()
	found := false
	for _, n := range p.Schedulers() {
		found = found || n == name
	}
	if !found {
		return nil,
			notFound("no scheduler %q; there are %s", name, strings.Join(p.Schedulers(), ", "))
	}
	switch r.PathValue("action") {
	case "pause":
		d := time.Hour
		if text := r.URL.Query().Get("for"); text != "" {
			var err error
			if d, err = time.ParseDuration(text); err != nil {
				return nil, badRequest("for: %q is not a duration", text)
			}
		}
		if err := s.pause(r.Context(), p, name, time.Now().Add(d)); err != nil {
			return nil, err
		}
	case "resume":
		if err := s.pause(r.Context(), p, name, time.Time{}); err != nil {
			return nil, err
		}
	default:
		return nil, badRequest("unknown action %q: pause or resume", r.PathValue("action"))
	}
	return s.getSchedulers(r)
}

func (s *Server) getExplain(r *http.Request) (any, error) {
	want := r.URL.Query().Get("scheduler")
	var out []any
	reg, err := regionParam(s, r)
	if err != nil {
		return nil, err
	}
	if reg != nil {
		if want != merge.Name {
			return nil, badRequest("only the policy merge says something of single regions")
		}
		d := s.cluster.explainMerge(reg)
		return map[string]any{"prepared": s.cluster.Prepared(), "decisions": []any{d}}, nil
	}
	for _, d := range s.cluster.Planner().Decisions() {
		if want == "" || want == d.Scheduler {
			out = append(out, d)
		}
	}
	return map[string]any{"prepared": s.cluster.Prepared(), "decisions": nonNil(out)}, nil
}

func (s *Server) postLeader(r *http.Request) (any, error) {
	switch r.PathValue("action") {
	case "resign":
		s.Resign()
		return map[string]any{"resigned": s.cfg.Name}, nil
	case "transfer":
		name := r.URL.Query().Get("to")
		for _, m := range s.members() {
			if m.Name == name {
				if m.MemberId != s.self.MemberId {
					s.elector.Resign(name)
				}
				return map[string]any{"resigned": s.cfg.Name, "successor": name}, nil
			}
		}
		return nil, notFound("no member %q", name)
	default:
		return nil, badRequest("unknown action %q: resign or transfer", r.PathValue("action"))
	}
}
