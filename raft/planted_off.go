//go:build !planted

package raft

// Bugs planted on purpose (docs/testing-raft.md). Without the build tag they are constants, and the
// compiler removes them.
func plantB2() bool  { return false }
func plantB3() bool  { return false }
func plantB7() bool  { return false }
func plantB8() bool  { return false }
func plantB9() bool  { return false }
func plantB18() bool { return false }
