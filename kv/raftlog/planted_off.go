//go:build !planted_b19

package raftlog

// plantedNoSync is the planted bug B19 (make planted): a log that forgets to sync. Off.
const plantedNoSync = false
