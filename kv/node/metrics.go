package node

import "github.com/prometheus/client_golang/prometheus"

// registerMetrics exposes the store's counters under TiKV-like names. They are read when scraped, so
// that the hot paths keep nothing but plain counters.
func registerMetrics(reg *prometheus.Registry, n *Node) {
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	counter := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value))
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
	if n.store == nil {
		return
	}
	gauge("tikv_raftstore_region_count", "Regions with a peer on this store.", func() float64 { return float64(n.store.Counts().Regions) })
	gauge("tikv_raftstore_leader_count", "Regions led by this store.", func() float64 { return float64(n.store.Counts().Leaders) })
	gauge("tikv_raftstore_inflight_bytes", "Bytes of writes that are not applied yet.", func() float64 { return float64(n.store.Counts().InflightBytes) })
	counter("tikv_raftstore_dropped_messages_total", "Raft messages dropped because a mailbox was full.", func() float64 { return float64(n.store.Counts().DroppedMessages) })
	counter("tikv_raftstore_raft_sent_messages_total", "Raft messages sent to other stores.", func() float64 { return float64(n.trans.Stats().Sent) })
	counter("tikv_raftstore_raft_sent_batches_total", "Stream messages that carried raft messages to other stores.", func() float64 { return float64(n.trans.Stats().Batches) })
	counter("tikv_raftstore_raft_unreachable_messages_total", "Raft messages that could not be sent.", func() float64 { return float64(n.trans.Stats().Dropped) })
	counter("tikv_raftstore_turns_total", "Turns of the raft workers.", func() float64 { return float64(n.store.Work().Turns) })
	counter("tikv_raftstore_turn_regions_total", "Regions that the turns of the raft workers ran.", func() float64 { return float64(n.store.Work().TurnRegions) })
	counter("tikv_raftstore_apply_batches_total", "Engine batches written by the apply workers.", func() float64 { return float64(n.store.Work().ApplyBatches) })
	counter("tikv_raftstore_applied_entries_total", "Raft entries in those engine batches.", func() float64 { return float64(n.store.Work().AppliedEntries) })
	gauge("tikv_raft_engine_segments", "Segment files of the raft log.", func() float64 { return float64(n.raftLog.Stats().Segments) })
	counter("tikv_raft_engine_fsyncs_total", "Syncs of the raft log.", func() float64 { return float64(n.raftLog.Stats().Syncs) })
	counter("tikv_raft_engine_writes_total", "Batches written to the raft log.", func() float64 { return float64(n.raftLog.Stats().Writes) })
	reg.MustRegister(n.disk.seconds)
	gauge("tikv_raftstore_slow_disk", "1 while the raft log's disk counts as slow.", func() float64 {
		if n.disk.slow() {
			return 1
		}
		return 0
	})
}
