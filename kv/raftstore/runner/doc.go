// Package runner holds the background tasks of a store: each is one goroutine with a bounded queue
// that gets copies and returns its results as messages. A full queue drops the task; its sender
// asks again.
package runner

import "github.com/tinykv/tinykv/kv/raftstore/message"

// Sender routes a message to a region's peer; it never blocks.
type Sender func(regionID uint64, m message.Msg) error
