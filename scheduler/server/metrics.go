package server

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tinykv/tinykv/scheduler/server/health"
	"github.com/tinykv/tinykv/scheduler/server/schedule/merge"
	"github.com/tinykv/tinykv/scheduler/server/schedule/view"
)

// metrics count what the service does. They are read when somebody asks, so that the paths they
// count pay one atomic addition. Names are PD's where PD has them.
type metrics struct {
	s               *Server
	registry        *prometheus.Registry
	tsoHandled      atomic.Uint64
	storeHeartbeats atomic.Uint64
}

func newMetrics(s *Server) *metrics {
	m := &metrics{s: s, registry: prometheus.NewRegistry()}
	m.registry.MustRegister(m)
	return m
}

// handler serves these and etcd's own metrics.
func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(prometheus.Gatherers{prometheus.DefaultGatherer, m.registry},
		promhttp.HandlerOpts{})
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descHeartbeat = desc("pd_scheduler_region_heartbeat", "Region heartbeats by outcome.", "status")
	descStoreBeat = desc("pd_scheduler_store_heartbeat", "Store heartbeats.")
	descPush      = desc("pd_hbstream_region_message", "Commands sent to stores.", "status")
	descStore     = desc("pd_scheduler_store_status", "State of a store.", "address", "store",
		"type")
	descCluster = desc("pd_cluster_status", "State of the cluster.", "type")
	descRegions = desc("pd_regions_status", "Regions that are not as they should be.", "type")
	descOps     = desc("pd_schedule_operators_count", "Operators that ended.", "type")
	descRunning = desc("pd_schedule_operators_running", "Operators under way.", "type")
	descTSO     = desc("pd_tso_handled", "Timestamps handed out.")
	descLeader  = desc("pd_server_is_leader", "1 on the placement leader.")
	descLease   = desc("pd_lease_local_ttl_remaining_seconds",
		"How long the leadership is valid without renewal.")
	descAlarm = desc("tinykv_etcd_alarm",
		"1 for each alarm of etcd, which refuses writes then.", "member", "type")
	descKnown = desc("tinykv_known_regions",
		"Regions that this member knows: a follower, those that it has taken over from the leader.",
		"type")
	descHealthy = desc("tinykv_healthy",
		"1 if the cluster is healthy, 0 if not; absent while that is not known.")
	descCondition = desc("tinykv_health_conditions",
		"Regions, replicas, stores or members that are not as they should be.", "code", "severity")
	descSkew = desc("tinykv_store_clock_skew_seconds",
		"How far a store's clock is ahead of the placement leader's.", "store")
	descConns   = desc("tinykv_client_port_connections", "Connections to the client port.")
	descRefused = desc("tinykv_client_port_refused_connections_total",
		"Connections to the client port that there was no room for.")
	descRequestBytes = desc("tinykv_client_port_request_bytes",
		"Bytes of requests by gRPC, and of calls under way.")
	descOverfull = desc("tinykv_client_port_overfull_connections_total",
		"Connections that ended because requests by gRPC were more than max-request-bytes.")
	descCallsRefused = desc("tinykv_client_port_refused_calls_total",
		"Calls, headers and messages by gRPC that passed a limit; connections with too many pings.",
		"limit")
	descUnread = desc("tinykv_client_port_unread_answers_total",
		"Connections that ended because the client did not take an answer over HTTP.")
	descBodies = desc("tinykv_client_port_refused_bodies_total",
		"Bodies over HTTP that were too large, or did not arrive in time.")
	descPeers = desc("tinykv_peer_port_connections",
		"Connections to the peer port.")
	descPeersRefused = desc("tinykv_peer_port_refused_connections_total",
		"Connections to the peer port that there was no room for.")
	descPeerRequests = desc("tinykv_peer_port_refused_requests_total",
		"Requests to the peer port that a browser made, or that were sent to a foreign name.")
	descSlow = desc("tinykv_client_port_slow_handshakes_total",
		"Connections that ended in their handshakes because too many others came.")
	descLogins = desc("tinykv_failed_logins_total",
		"Tokens that were wrong, or not looked at after too many wrong ones.", "result")
	descExpiry = desc("tinykv_certificate_expiry_timestamp_seconds",
		"When this server's certificate ends, in seconds since 1970.")
	descMerges = desc("tinykv_merge_regions",
		"Small regions by what keeps them from being merged.", "reason")
	descHolds = desc("tinykv_merge_holds",
		"Ranges whose regions are not merged because somebody has said so.")
	descPrepared = desc("pd_scheduler_prepared", "1 once enough is known to balance.")
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descHeartbeat, descStoreBeat, descPush, descStore, descCluster, descRegions, descOps,
		descRunning, descTSO,
		descLeader, descLease, descPrepared, descAlarm, descKnown, descHealthy, descCondition,
		descSkew,
		descConns, descRefused, descSlow, descUnread, descBodies, descPeers, descPeersRefused,
		descPeerRequests, descExpiry, descRequestBytes, descOverfull,
		descCallsRefused,
		descLogins, descMerges, descHolds,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	st := &m.s.cluster.stats
	counter(descHeartbeat, st.unchanged.Load(), "unchanged")
	counter(descHeartbeat, st.updated.Load(), "updated")
	counter(descHeartbeat, st.stale.Load(), "stale")
	counter(descHeartbeat, st.invalid.Load(), "invalid")
	counter(descStoreBeat, m.storeHeartbeats.Load())
	counter(descPush, m.s.streams.sent.Load(), "sent")
	counter(descPush, m.s.streams.dropped.Load(), "dropped")
	counter(descTSO, m.tsoHandled.Load())
	if f := m.s.front; f != nil {
		gauge(descConns, float64(f.open.Load()))
		counter(descRefused, f.refused.Load())
		counter(descSlow, f.slow.Load())
		counter(descUnread, f.unread.Load())
		gauge(descRequestBytes, float64(f.room.Held()))
		counter(descOverfull, f.room.Closed())
		refused := f.room.Refused()
		counter(descCallsRefused, refused.Calls.Load(), "calls")
		counter(descCallsRefused, refused.Headers.Load(), "headers")
		counter(descCallsRefused, refused.Messages.Load(), "messages")
		counter(descCallsRefused, refused.Pings.Load(), "pings")
		counter(descBodies, m.s.bodies.Load())
	}
	counter(descLogins, m.s.guard.Attempts.Failed(), "wrong")
	counter(descLogins, m.s.guard.Attempts.Refused(), "refused")
	if id := m.s.identity; id != nil {
		gauge(descExpiry, float64(id.Expires().Unix()))
	}
	if n, ok := m.s.node.(*node); ok {
		gauge(descPeers, float64(n.door.Conns()))
		counter(descPeersRefused, n.door.Full())
		counter(descPeerRequests, n.door.Refused())
	}
	if m.s.node != nil {
		for _, a := range m.s.node.alarms() {
			gauge(descAlarm, 1, utoa(a.Member), a.Kind)
		}
	}
	regions, led := 0, 0
	for _, r := range m.s.cluster.Core().ScanRegions(nil, nil, 0) {
		regions++
		if r.LeaderStore() != 0 {
			led++
		}
	}
	gauge(descKnown, float64(regions), "all")
	gauge(descKnown, float64(led), "with_leader")
	l := m.s.leadership()
	if l == nil {
		gauge(descLeader, 0)
		return
	}
	gauge(descLeader, 1)
	gauge(descLease, l.Remaining().Seconds())
	m.collectLeader(gauge, counter)
}

func (m *metrics) collectLeader(
	gauge func(*prometheus.Desc, float64, ...string),
	counter func(*prometheus.Desc, uint64, ...string),
) {
	c := m.s.cluster
	gauge(descPrepared, b2f(c.Prepared()))
	for name, n := range c.Controller().Ended() {
		counter(descOps, n, name)
	}
	running := map[string]int{}
	for _, op := range c.Controller().Records() {
		running[op.Desc]++
	}
	for name, n := range running {
		gauge(descRunning, float64(n), name)
	}
	refusals := c.Planner().Refusals(merge.Name)
	for rule, n := range refusals {
		gauge(descMerges, float64(n), rule)
	}
	if refusals["limit"] == 0 { // there is always one
		gauge(descMerges, 0, "limit")
	}
	gauge(descHolds, float64(len(c.merges.Holds(time.Now()))))
	h := m.s.placement()
	for name, n := range map[string]int{
		"miss-peer-region-count": h.Missing, "extra-peer-region-count": h.Extra,
		"down-peer-region-count":    h.Down,
		"pending-peer-region-count": h.Pending, "offline-peer-region-count": h.Offline,
		"empty-region-count":      h.Empty,
		"leaderless-region-count": h.Leaderless,
	} {
		gauge(descRegions, float64(n), name)
	}
	v := c.newView()
	gauge(descCluster, float64(h.Regions), "region_count")
	states := map[string]int{"up": 0, "disconnected": 0, "down": 0, "offline": 0, "tombstone": 0}
	for _, s := range v.Stores() {
		states[m.s.stateName(s)]++
	}
	for state, n := range states {
		gauge(descCluster, float64(n), "store_"+state+"_count")
	}
	m.collectStores(v, gauge)
	m.collectHealth(gauge)
}

// collectHealth has every condition, so that one that ends goes back to 0.
func (m *metrics) collectHealth(gauge func(*prometheus.Desc, float64, ...string)) {
	r := m.s.health.report()
	if r.Health != health.Unknown {
		gauge(descHealthy, b2f(r.Health == health.OK))
	}
	counts := map[health.Code]int{}
	for _, c := range r.Conditions {
		counts[c.Code] += c.Count
	}
	for _, k := range health.Table {
		gauge(descCondition, float64(counts[k.Code]), string(k.Code), string(k.Severity))
	}
	for _, s := range m.s.cluster.Core().Stores() {
		if skew := s.Skew(); skew.Known {
			gauge(descSkew, skew.Middle().Seconds(), utoa(s.ID()))
		}
	}
}

func (m *metrics) collectStores(v *view.View, gauge func(*prometheus.Desc, float64, ...string)) {
	for _, s := range v.Stores() {
		id := utoa(s.ID())
		for name, val := range map[string]float64{
			"region_count": float64(s.RegionCount()), "leader_count": float64(s.LeaderCount()),
			"region_size": float64(s.RegionSize()), "region_score": v.Load(s),
			"store_capacity":  float64(s.Capacity()),
			"store_available": float64(s.Available()),
			"store_used":      float64(s.Stats().GetUsedSize()),
			"moves_in":        float64(v.Influence(s.ID()).InMoves),
			"moves_out":       float64(v.Influence(s.ID()).OutMoves),
		} {
			gauge(descStore, val, s.Address(), id, name)
		}
	}
}
