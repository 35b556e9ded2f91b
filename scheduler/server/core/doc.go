// Package core holds what the placement service knows about the cluster: the map of regions and
// the stores with their counters.
//
// Everything in it is soft state. It is rebuilt from heartbeats, so nothing here is written to
// disk by this package; epochs, not arrival order, decide which of two reports is true.
//
// RegionInfo and StoreInfo are immutable: a change publishes a new value. BasicCluster owns both
// maps and is the only one who replaces values.
//
// Concurrency: BasicCluster is safe for concurrent use. Its lock is a leaf: no IO, no channel
// send and no other lock is taken while it is held, apart from the id shards below it.
package core
