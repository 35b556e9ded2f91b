//go:build !planted

package sim

// planted says whether a bug of docs/testing-raft.md is switched on: without the build tag, never.
func planted(string) bool { return false }
