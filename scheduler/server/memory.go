package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

// memory is what a leader knows only because it has led for a while, kept for the next one: for how
// long each store has been silent, which schedulers a person has paused, and for how long stores
// shed their leaders. Without it leaders that follow each other faster than max-store-down-time
// would never take a store for dead, and a pause would end with its leader.
//
// Durations are kept, not points in time: clocks of two members are never compared. What passes
// between the last save of one leader and the start of the next is not counted, so that a silence
// is never overstated: nobody listened then.
type memory struct {
	SilentMS map[uint64]int64 `json:"silent-ms,omitempty"` // by store
	PausedMS map[string]int64 `json:"paused-ms,omitempty"` // what is left, by scheduler
	EvictMS  map[uint64]int64 `json:"evict-ms,omitempty"`  // what is left, by store
	// LogSequences are how far the stores have reported their raft logs as synced.
	LogSequences map[uint64]uint64 `json:"log-sequences,omitempty"`
}

func (m memory) empty() bool { return len(m.SilentMS)+len(m.PausedMS)+len(m.EvictMS) == 0 }

const (
	memoryInterval = 3 * time.Second
	// listenFirst is how long a new leader listens itself before it takes a store for dead: the
	// last that its predecessor heard of it may not have been saved.
	listenFirst = 3 * time.Second
	// maxSilentMS is a century: what says more is damaged.
	maxSilentMS = 100 * 365 * 24 * 3600 * 1000
)

// memoryPauses are the two intervals for a cluster where stores are taken for dead after a short
// time.
func (c *RaftCluster) memoryPauses() (save, listen time.Duration) {
	down := c.Settings().Schedule.MaxStoreDownTime.D()
	return max(min(memoryInterval, down/10), 50*time.Millisecond), min(listenFirst, down/4)
}

// remember is what the next leader should know.
func (c *RaftCluster) remember() memory {
	now := c.opts.Now()
	m := memory{
		SilentMS: map[uint64]int64{}, PausedMS: map[string]int64{}, EvictMS: map[uint64]int64{},
		LogSequences: c.sequences.all(),
	}
	for _, s := range c.core.Stores() {
		if silent := now.Sub(s.SilentSince()); !s.IsTombstone() && silent >= time.Second/10 {
			m.SilentMS[s.ID()] = silent.Milliseconds()
		}
		if until := s.EvictUntil(); !until.IsZero() && !s.IsTombstone() {
			// if it is over, the end is still to be written
			m.EvictMS[s.ID()] = max(1, until.Sub(now).Milliseconds())
		}
	}
	for name, until := range c.planner.Paused() {
		if left := until.Sub(now); left > 0 {
			m.PausedMS[name] = left.Milliseconds()
		}
	}
	return m
}

// recallMemory is the leader's first step: what the leader before knew holds from here on.
func (s *Server) recallMemory() {
	s.memoryMu.Lock()
	defer s.memoryMu.Unlock()
	s.saved = s.recalled
	s.cluster.recall(s.recalled)
}

// recall takes over what the leader before knew. It is called after TakeOver.
func (c *RaftCluster) recall(m memory) {
	now := c.opts.Now()
	_, listen := c.memoryPauses()
	most := (c.Settings().Schedule.MaxStoreDownTime.D() - listen).Milliseconds()
	for id, ms := range m.SilentMS {
		silent := time.Duration(max(0, min(ms, most))) * time.Millisecond
		earlier := time.Duration(max(0, min(ms, maxSilentMS)))*time.Millisecond - silent
		c.core.UpdateStore(id, core.WithLastHeartbeat(now.Add(-silent)),
			core.WithEarlierSilence(earlier))
	}
	for _, s := range c.core.Stores() {
		var until time.Time
		if ms, ok := m.EvictMS[s.ID()]; ok {
			until = now.Add(time.Duration(ms) * time.Millisecond)
		}
		c.core.UpdateStore(s.ID(), core.WithEvictUntil(until))
	}
	pauses := make(map[string]time.Time)
	for name, ms := range m.PausedMS {
		pauses[name] = now.Add(time.Duration(ms) * time.Millisecond)
	}
	c.planner.SetPaused(pauses)
	c.sequences.replace(m.LogSequences)
	c.health.Store(nil)
}

// loadMemory decodes what the leader before has saved. A damaged one is as if it had not: nothing
// that depends on it is lost for good.
func (s *Server) loadMemory(d hardState) memory {
	var m memory
	if value, ok := d[s.keys.Memory()]; ok {
		if err := json.Unmarshal(value, &m); err != nil {
			s.logger.Warn("what the leader before knew of silent stores and pauses is not readable",
				zap.Error(err))
			return memory{}
		}
	}
	return m
}

// saveMemory writes what this leader knows, unless there is nothing to know.
func (s *Server) saveMemory(ctx context.Context) error {
	s.memoryMu.Lock() // the later of two saves must not hold the earlier state
	defer s.memoryMu.Unlock()
	m := s.cluster.remember()
	if m.empty() && s.saved.empty() && maps.Equal(m.LogSequences, s.saved.LogSequences) {
		return nil
	}
	value, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := s.write(ctx, storage.Put(s.keys.Memory(), value)); err != nil {
		return fmt.Errorf("save silent stores and pauses: %w", err)
	}
	s.saved = m
	return nil
}

// keepMemory saves until ctx, the leadership, ends.
func (s *Server) keepMemory(ctx context.Context) {
	for {
		save, _ := s.cluster.memoryPauses()
		if !sleep(ctx, save) {
			return
		}
		if err := s.saveMemory(ctx); err != nil && ctx.Err() == nil {
			s.logger.Warn("saving failed", zap.Error(err))
		}
	}
}

// pause stops a scheduler for a while, or resumes it, for this leader and those that follow.
func (s *Server) pause(
	ctx context.Context, p *schedule.Planner, name string, until time.Time,
) error {
	p.Pause(name, until)
	return s.saveMemory(ctx)
}
