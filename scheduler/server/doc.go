// Package server is the placement service: it knows every region and store from their heartbeats,
// repairs and balances the cluster by answering heartbeats with commands, and hands out ids and
// timestamps.
//
// The life of a region heartbeat: the stream's goroutine compares it with the record
// (RaftCluster.HandleRegionHeartbeat); if nothing changed and the region has no operator that is
// all. Otherwise processRegionHeartbeat checks epochs and installs a new record, notes the region
// for the planner, and lets the controller advance the region's operator. Commands go to the store
// of the region's leader through its own small queue.
//
// Soft state (regions, counters, operators) lives in memory and dies with the process; hard state
// (ids, timestamps, stores, configuration) is in a storage.Storage and every write of it carries
// the leadership term.
//
// Concurrency: RaftCluster is safe for concurrent use. All work that only a leader may do hangs on
// the context of its leadership.
package server
