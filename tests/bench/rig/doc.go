// Package rig runs the servers that benchmarks compare, each kind as real processes of this machine
// with data in a directory that goes away: TinyKV's placement service and stores, etcd, and the
// yardsticks of package ideal. It also does to them what the benchmarks need: split regions, move
// leaders, kill.
package rig
