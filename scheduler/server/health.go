package server

import (
	"context"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/scheduler/server/health"
)

const (
	// healthInterval is how often the leader judges the cluster by itself, so that it knows since
	// when a condition holds.
	healthInterval = 5 * time.Second
	// healthAge is how old a report may be that is shown; more if it takes long to make.
	healthAge      = 200 * time.Millisecond
	healthAgeShare = 20
)

// healthKeeper has the leader's judgement of the cluster. On followers it is empty: they pass
// questions on.
//
// Lock order: healthKeeper.mu < BasicCluster.mu. No IO is done under it.
type healthKeeper struct {
	s  *Server
	mu struct {
		sync.Mutex
		leads   time.Time // since then
		last    *health.Report
		took    time.Duration
		members map[uint64]probed // the other members
		// told is what the leader has told of when conditions began.
		told map[string]time.Time
	}
}

// begin forgets what an earlier leadership knew.
func (k *healthKeeper) begin() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.leads, k.mu.last, k.mu.members = time.Now(), nil, nil
}

// began is when the conditions of the last report have begun.
func (k *healthKeeper) began() map[string]time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]time.Time{}
	if k.mu.last != nil {
		for _, c := range k.mu.last.Conditions {
			out[c.Key()] = c.Since
		}
	}
	return out
}

// learn keeps what a leader says of when conditions began, for a leadership of this member.
func (k *healthKeeper) learn(began map[string]time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.told = began
}

// report judges the cluster, unless that was done a moment ago.
func (k *healthKeeper) report() *health.Report {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if r := k.mu.last; r != nil && now.Sub(r.Time) < max(healthAge, healthAgeShare*k.mu.took) {
		return r
	}
	k.mu.last = health.Assess(k.viewLocked(now))
	k.mu.took = time.Since(now)
	return k.mu.last
}

// pause is until the leader judges again by itself.
func (k *healthKeeper) pause() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(healthInterval, healthAgeShare*k.mu.took)
}

// viewLocked takes the picture.
func (k *healthKeeper) viewLocked(now time.Time) *health.View {
	s, set := k.s, k.s.cluster.Settings()
	v := &health.View{
		Now: now, Leading: now.Sub(k.mu.leads), Prepared: s.cluster.Prepared(),
		Schedule: &set.Schedule, Replication: &set.Replication,
		Stores: s.cluster.Core().Stores(), Regions: s.cluster.Core().ScanRegions(nil, nil, 0),
		Before: k.mu.last, Told: k.mu.told,
	}
	v.Bootstrapped, _ = s.bootstrapped()
	names := map[uint64]string{}
	for _, m := range s.members() {
		names[m.MemberId] = memberName(m)
		v.Members = append(v.Members, k.memberLocked(m))
	}
	for _, a := range s.node.alarms() {
		name := names[a.Member]
		if name == "" {
			name = utoa(a.Member)
		}
		v.Alarms = append(v.Alarms, health.EtcdAlarm{Member: name, Kind: a.Kind})
	}
	return v
}

// watchHealth judges the cluster now and then until ctx, the leadership, ends, and says what has
// begun and ended.
func (s *Server) watchHealth(ctx context.Context) {
	said := map[string]health.Condition{}
	for sleep(ctx, s.health.pause()) {
		said = s.sayHealth(said, s.health.report())
	}
}

// sayHealth logs one line for each condition that has begun or ended.
func (s *Server) sayHealth(
	said map[string]health.Condition, r *health.Report,
) map[string]health.Condition {
	now := make(map[string]health.Condition, len(r.Conditions))
	for _, c := range r.Conditions {
		now[c.Key()] = c
		if _, known := said[c.Key()]; known {
			continue
		}
		say := s.logger.Warn
		if c.Severity == health.SeverityNotice {
			say = s.logger.Info
		}
		say("health condition began", zap.String("code", string(c.Code)),
			zap.String("severity", string(c.Severity)),
			zap.String("subject", c.Subject), zap.String("detail", c.Detail),
			zap.Uint64s("regions", c.Regions))
	}
	for key, c := range said {
		if _, still := now[key]; !still {
			s.logger.Info("health condition ended", zap.String("code", string(c.Code)),
				zap.String("subject", c.Subject))
		}
	}
	return now
}

// healthJSON is the report with who made it, and the cluster's mode, empty before the first store
// came.
type healthJSON struct {
	*health.Report
	Summary string `json:"summary"`
	Leader  string `json:"leader"`
	Mode    string `json:"mode,omitempty"`
}

// healthAnswer is the leader's report as the API gives it.
func healthAnswer(s *Server, r *health.Report) healthJSON {
	s.leaderMu.RLock()
	meta := s.leaderMu.meta
	s.leaderMu.RUnlock()
	h := healthJSON{Report: r, Summary: r.Text(), Leader: s.cfg.Name, Mode: meta.GetMode()}
	if meta != nil && h.Mode == "" {
		h.Mode = string(clustermode.Raw)
	}
	return h
}

// getHealth answers 200 whatever the state is: degraded placement is not a reason to restart
// anything.
func (s *Server) getHealth(*http.Request) (any, error) {
	r := s.health.report()
	return healthAnswer(s, r), nil
}

// leaderKnown is nil if somebody leads and, if it is this member, serves.
func (s *Server) leaderKnown() error {
	leader, _ := s.elector.Leader()
	if leader == nil || leader.MemberId == s.self.MemberId && !s.IsLeader() {
		return s.noLeaderAPI()
	}
	return nil
}
