package runner

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tinykv/tinykv/kv/raftstore/message"
)

// logGCPause gathers requests of many regions before one engine sync.
const logGCPause = 500 * time.Millisecond

// RaftLogGC lets raft logs drop entries that the replicated log compaction has released.
//
// The engine is written without sync, because the raft log replays it: so before an entry goes,
// what was applied from it must be durable. The runner syncs the engine once for all regions that
// wait, and only then tells their peers to truncate (F-4, D13).
type RaftLogGC struct {
	sync func() error
	send Sender
	fail func(error)

	mu struct {
		sync.Mutex
		waiting map[uint64]message.LogGC
	}
	wake chan struct{}
}

// NewRaftLogGC makes the runner. syncEngine is Engine.Sync; fail receives an error after which the
// store must stop.
func NewRaftLogGC(syncEngine func() error, send Sender, fail func(error)) *RaftLogGC {
	g := &RaftLogGC{sync: syncEngine, send: send, fail: fail, wake: make(chan struct{}, 1)}
	g.mu.waiting = map[uint64]message.LogGC{}
	return g
}

// Request asks for entries up to index, whose term is given, to be dropped. One request per region
// waits: the newest.
func (g *RaftLogGC) Request(regionID, index, term uint64) {
	g.mu.Lock()
	g.mu.waiting[regionID] = message.LogGC{Index: index, Term: term}
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends.
func (g *RaftLogGC) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(logGCPause):
		}
		g.mu.Lock()
		batch := g.mu.waiting
		g.mu.waiting = map[uint64]message.LogGC{}
		g.mu.Unlock()
		if err := g.sync(); err != nil {
			g.fail(fmt.Errorf("sync engine before raft log truncation: %w", err))
			return
		}
		for id, m := range batch {
			_ = g.send(id, &m)
		}
	}
}
