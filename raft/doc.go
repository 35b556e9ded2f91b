// Package raft is a replicated log: one Raft a member, one group a log. It is a state machine with no
// clock, network, disk, goroutine or lock; its owner has those.
package raft
