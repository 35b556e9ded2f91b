// Package storage keeps the hard state of the placement service: a few kilobytes of cluster
// meta, stores, id and timestamp windows, configuration. It hides where they are kept: embedded
// etcd (the default), an etcd cluster run by someone else, or memory (tests).
//
// Every write of a placement leader goes through a transaction that carries the leader's fence (a
// comparison of the leadership term), so that a deposed leader can never overwrite anything.
// Regions are never stored here: they are soft state.
package storage
