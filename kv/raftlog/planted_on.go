//go:build planted_b19

package raftlog

// plantedNoSync is the planted bug B19: a log that forgets to sync. TestCrashAtEveryOperation must
// find it; a test that only kills processes cannot.
const plantedNoSync = true
