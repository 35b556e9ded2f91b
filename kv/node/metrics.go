package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/gcworker"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
)

// registerMetrics exposes the store's counters under TiKV-like names. They are read when scraped,
// so that the hot paths keep nothing but plain counters.
func registerMetrics(reg *prometheus.Registry, n *Node) {
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			value))
	}
	counter := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help},
			value))
	}
	gauge("tikv_store_size_capacity_bytes", "Size of the disk.", func() float64 { t, _ := n.space.disk(); return float64(t) })
	gauge("tikv_store_size_available_bytes", "Free space of the disk.", func() float64 { _, f := n.space.disk(); return float64(f) })
	gauge("tikv_engine_size_bytes", "Bytes of the engine's files.", func() float64 {
		used, err := n.engine.DiskUsage()
		if err != nil {
			return 0
		}
		return float64(used)
	})
	registerLimits(gauge, counter, n)
	reg.MustRegister(requestMetrics{n})
	registerGC(gauge, counter, n)
	if n.identity != nil {
		gauge("tinykv_certificate_expiry_timestamp_seconds", "When this server's certificate ends, in seconds since 1970.",
			func() float64 { return float64(n.identity.Expires().Unix()) })
	}
	if r, ok := n.engine.(engine.Reporter); ok {
		reg.MustRegister(newEngineMetrics(r))
	}
	if n.store == nil {
		return
	}
	for kind, of := range map[string]func(raftstore.Counts) int{
		"region": func(c raftstore.Counts) int { return c.Regions }, "leader": func(c raftstore.Counts) int { return c.Leaders },
	} {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tikv_raftstore_region_count", Help: "Regions with a peer on this store, and those that it leads.",
			ConstLabels: prometheus.Labels{"type": kind},
		}, func() float64 { return float64(of(n.store.Counts())) }))
	}
	gauge("tikv_raftstore_inflight_bytes", "Bytes of writes that are not applied yet.", func() float64 { return float64(n.store.Counts().InflightBytes) })
	counter("tikv_raftstore_dropped_messages_total", "Raft messages dropped because a mailbox was full.", func() float64 { return float64(n.store.Counts().DroppedMessages) })
	counter("tikv_raftstore_read_errors_total", "Reads of regions' data and logs that failed.", func() float64 { return float64(n.store.Counts().ReadErrors) })
	counter("tikv_raftstore_raft_sent_messages_total", "Raft messages sent to other stores.", func() float64 { return float64(n.trans.Stats().Sent) })
	counter("tikv_raftstore_raft_sent_batches_total", "Stream messages that carried raft messages to other stores.", func() float64 { return float64(n.trans.Stats().Batches) })
	counter("tikv_raftstore_raft_unreachable_messages_total", "Raft messages that could not be sent.", func() float64 { return float64(n.trans.Stats().Dropped) })
	counter("tikv_raftstore_turns_total", "Turns of the raft workers.", func() float64 { return float64(n.store.Work().Turns) })
	counter("tikv_raftstore_turn_regions_total", "Regions that the turns of the raft workers ran.", func() float64 { return float64(n.store.Work().TurnRegions) })
	counter("tikv_raftstore_apply_batches_total", "Engine batches written by the apply workers.", func() float64 { return float64(n.store.Work().ApplyBatches) })
	counter("tinykv_corrupt_entries_total", "Entries in raft messages that were not the ones that were proposed.", func() float64 { return float64(n.store.Work().CorruptEntries) })
	counter("tinykv_forwarded_requests_total", "Requests of clients that were passed on to a store which they could not reach.", func() float64 { return float64(n.service.Forwarded()) })
	counter("tinykv_replica_comparisons_total", "Comparisons of a region's replicas with each other.", func() float64 { return float64(n.store.Work().Comparisons) })
	registerSweep(counter, n)
	counter("tinykv_replica_divergences_total", "Comparisons of a region's replicas that found a difference.", func() float64 { return float64(n.store.Work().Divergences) })
	gauge("tinykv_undecided_regions", "Regions led here whose replicas differ without a majority.", func() float64 { return float64(len(n.store.Diverged())) })
	counter("tinykv_corrupt_messages_total", "Messages that were damaged on their way to this store.", func() float64 { return float64(n.corrupt.Load()) })
	counter("tinykv_repeated_heartbeats_total", "Raft heartbeats sent again because a raft worker was in a long turn.",
		func() float64 { return float64(n.store.Work().RepeatedBeats) })
	counter("tinykv_retries_found_total", "Writes sent again whose earlier attempt was found in the log.", func() float64 { return float64(n.store.Work().RetriesFound) })
	counter("tinykv_retries_proposed_total", "Writes sent again of which no earlier attempt was in the log.", func() float64 { return float64(n.store.Work().RetriesProposed) })
	counter("tinykv_retries_undetermined_total", "Writes sent again of which the log could not tell whether they were carried out.", func() float64 { return float64(n.store.Work().RetriesUndetermined) })
	counter("tikv_raftstore_applied_entries_total", "Raft entries in those engine batches.", func() float64 { return float64(n.store.Work().AppliedEntries) })
	registerRaftLog(gauge, counter, n)
	reg.MustRegister(n.disk.seconds, newStageMetrics(n.store.Stages()))
	gauge("tikv_raftstore_slow_disk", "1 while the raft log's disk counts as slow.", func() float64 {
		if n.disk.slow() {
			return 1
		}
		return 0
	})
}

// registerRaftLog exposes what the raft log has and does.
func registerRaftLog(gauge, counter func(name, help string, value func() float64), n *Node) {
	of := func(value func(s raftlog.Stats) uint64) func() float64 {
		return func() float64 { return float64(value(n.raftLog.Stats())) }
	}
	gauge("tikv_raft_engine_segments", "Segment files of the raft log.",
		of(func(s raftlog.Stats) uint64 { return uint64(s.Segments) }))
	counter("tikv_raft_engine_fsyncs_total", "Syncs of the raft log.",
		of(func(s raftlog.Stats) uint64 { return s.Syncs }))
	counter("tikv_raft_engine_bytes_total", "Bytes written to the raft log.",
		of(func(s raftlog.Stats) uint64 { return s.BytesWritten }))
	counter("tikv_raft_engine_writes_total", "Batches written to the raft log.",
		of(func(s raftlog.Stats) uint64 { return s.Writes }))
}

// registerSweep exposes what the sweep of expired keys has done.
func registerSweep(counter func(name, help string, value func() float64), n *Node) {
	counter("tinykv_expired_keys_total", "Keys whose TTL was over and that the sweep has removed.",
		func() float64 { return float64(n.store.Work().ExpiredKeys) })
}

// registerLimits exposes what is held for clients, and what the limits on it have done.
func registerLimits(gauge, counter func(name, help string, value func() float64), n *Node) {
	stats := func(of func(s rpc.Stats) float64) func() float64 {
		return func() float64 { return of(n.grpc.Stats()) }
	}
	gauge("tinykv_connections", "Connections of clients.",
		stats(func(s rpc.Stats) float64 { return float64(s.Conns + s.Trial) }))
	gauge("tinykv_internal_connections", "Connections of other stores.",
		stats(func(s rpc.Stats) float64 { return float64(s.Internal) }))
	counter("tinykv_flooding_connections_total",
		"Connections closed because of too many pings, settings, empty frames or headers.",
		stats(func(s rpc.Stats) float64 { return float64(s.Floods) }))
	counter("tinykv_refused_calls_total", "Calls beyond those that a connection may have at once.",
		stats(func(s rpc.Stats) float64 { return float64(s.RefusedCalls) }))
	counter("tinykv_slow_handshakes_total",
		"Connections that ended in their handshakes because too many others came.",
		stats(func(s rpc.Stats) float64 { return float64(s.SlowHandshakes) }))
	counter("tinykv_connections_shed_total",
		"Idle connections that were closed to make room for others.",
		stats(func(s rpc.Stats) float64 { return float64(s.ConnsShed) }))
	counter("tinykv_connections_refused_total", "Connections for which there was no room.",
		stats(func(s rpc.Stats) float64 { return float64(s.ConnsRefused) }))
	gauge("tinykv_request_bytes", "Bytes held of clients' requests that are larger than a frame.",
		stats(func(s rpc.Stats) float64 { return float64(s.RequestBytes) }))
	counter("tinykv_busy_requests_total",
		"Requests refused because there was no room for their bytes.",
		stats(func(s rpc.Stats) float64 { return float64(s.BusyRequests) }))
	counter("tinykv_stalled_requests_total", "Requests given up because they did not go on.",
		stats(func(s rpc.Stats) float64 { return float64(s.StalledRequests) }))
	gauge("tinykv_answer_bytes", "Bytes held of answers that clients have not taken.",
		stats(func(s rpc.Stats) float64 { return float64(s.AnswerBytes) }))
	counter("tinykv_busy_answers_total",
		"Requests refused because there was no room for their answers.",
		stats(func(s rpc.Stats) float64 { return float64(s.BusyAnswers) }))
	counter("tinykv_stalled_readers_total",
		"Connections closed because their clients did not take their answers.",
		stats(func(s rpc.Stats) float64 { return float64(s.StalledReaders) }))
}

// engineMetrics asks the engine once per scrape.
type engineMetrics struct {
	engine engine.Reporter
	descs  []*prometheus.Desc // of engineValues, in order
}

var engineValues = []struct {
	name, help string
	kind       prometheus.ValueType
	value      func(s *engine.Stats) float64
}{
	{
		"write_stalls_total", "Times that writes had to wait for flushes or compactions.",
		prometheus.CounterValue, func(s *engine.Stats) float64 { return float64(s.WriteStalls) },
	},
	{
		"write_stall_seconds_total", "How long they waited.", prometheus.CounterValue,
		func(s *engine.Stats) float64 { return s.StallTime.Seconds() },
	},
	{
		"num_memtables", "Tables in memory, the one being filled among them.",
		prometheus.GaugeValue, func(s *engine.Stats) float64 { return float64(s.MemTables) },
	},
	{"memtable_bytes", "Memory of those.", prometheus.GaugeValue, func(s *engine.Stats) float64 {
		return float64(s.MemTableBytes)
	}},
	{
		"level0_depth", "Layers of level 0, in each of which a key may lie.", prometheus.GaugeValue,
		func(s *engine.Stats) float64 { return float64(s.Level0Depth) },
	},
	{
		"wal_bytes_total", "Bytes written to the write-ahead log.", prometheus.CounterValue,
		func(s *engine.Stats) float64 { return float64(s.LogBytes) },
	},
	{
		"flush_bytes_total", "Bytes written by flushes.", prometheus.CounterValue,
		func(s *engine.Stats) float64 { return float64(s.FlushedBytes) },
	},
	{
		"compaction_bytes_total", "Bytes written by compactions.", prometheus.CounterValue,
		func(s *engine.Stats) float64 { return float64(s.CompactedBytes) },
	},
	{
		"pending_compaction_bytes", "Bytes that compactions still have to write.",
		prometheus.GaugeValue, func(s *engine.Stats) float64 { return float64(s.CompactionDebt) },
	},
	{
		"block_cache_hits_total", "Blocks found in the cache.", prometheus.CounterValue,
		func(s *engine.Stats) float64 { return float64(s.CacheHits) },
	},
	{
		"block_cache_misses_total", "Blocks read from files.", prometheus.CounterValue,
		func(s *engine.Stats) float64 { return float64(s.CacheMisses) },
	},
}

func newEngineMetrics(r engine.Reporter) *engineMetrics {
	m := &engineMetrics{engine: r}
	for _, v := range engineValues {
		m.descs = append(m.descs, prometheus.NewDesc("tikv_engine_"+v.name, v.help, nil, nil))
	}
	return m
}

// Describe implements prometheus.Collector.
func (m *engineMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range m.descs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *engineMetrics) Collect(out chan<- prometheus.Metric) {
	s := m.engine.Stats()
	for i, v := range engineValues {
		out <- prometheus.MustNewConstMetric(m.descs[i], v.kind, v.value(&s))
	}
}

// registerGC exposes what this store has done as the collector of the cluster's garbage.
func registerGC(gauge, counter func(name, help string, value func() float64), n *Node) {
	if n.gc == nil {
		return
	}
	gauge("tinykv_gc_safe_point_seconds",
		"Time up to which this store has collected all garbage; 0: another one does.",
		func() float64 { return float64(n.gc.Stats().SafePoint>>18) / 1000 })
	count := func(name, help string, of func(s gcworker.Stats) uint64) {
		counter("tinykv_gc_"+name+"_total", help, func() float64 {
			return float64(of(n.gc.Stats()))
		})
	}
	count("rounds", "Rounds of garbage collection.", func(s gcworker.Stats) uint64 {
		return s.Rounds
	})
	count("failed_rounds", "Rounds that were given up.", func(s gcworker.Stats) uint64 {
		return s.Failures
	})
	count("versions", "Old versions and rollbacks removed.", func(s gcworker.Stats) uint64 {
		return s.Versions
	})
	count("bytes", "Bytes of deletes written for it.", func(s gcworker.Stats) uint64 {
		return s.Bytes
	})
	count("expired_locks", "Locks of dead clients resolved.", func(s gcworker.Stats) uint64 {
		return s.Expired
	})
	count("ended_locks", "Locks older than the safe point.", func(s gcworker.Stats) uint64 {
		return s.Ended
	})
}
