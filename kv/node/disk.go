//go:build !chaos

package node

import "github.com/tinykv/tinykv/kv/vfs"

// The tests that make disks slow, broken or forgetful replace these (build tag chaos).

// beforeSync is called before each sync of the raft log.
func beforeSync() error { return nil }

// raftLogFiles is the file system of the raft log.
func raftLogFiles() (vfs.FS, error) { return vfs.OS, nil }
