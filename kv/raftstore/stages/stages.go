// Package stages counts how long the stages of writes take on the store of their leader, and logs
// the slow ones.
package stages

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/timing"
)

// Stage is a part of the way of an entry. Together, Wait, Commit, ApplyWait and Apply are the
// whole; Append runs beside Commit.
type Stage int

const (
	Wait      Stage = iota // from the store's taking the command to raft's taking the entry
	Append                 // from there until the leader's own raft log is synced
	Commit                 // from raft's taking it until the entry is given to be applied
	ApplyWait              // until the apply worker begins with it
	Apply                  // until the engine has it
	count
)

// All are the stages in order.
func All() []Stage { return []Stage{Wait, Append, Commit, ApplyWait, Apply} }

func (s Stage) String() string {
	return [count]string{"wait", "append-log", "commit", "apply-wait", "apply"}[s]
}

// Of is when a stage of an entry began, and how long it took.
func (s Stage) Of(t *message.Stages) (from, took time.Duration) {
	from, to := t.Came, t.Proposed
	switch s {
	case Append:
		from, to = t.Proposed, t.Appended
	case Commit:
		from, to = t.Proposed, t.Committed
	case ApplyWait:
		from, to = t.Committed, t.Begun
	case Apply:
		from, to = max(t.Begun, t.Committed), t.Applied
	}
	return from, max(to-from, 0)
}

// logEvery is how often a slow entry is logged; those between are counted.
const logEvery = time.Second

// Recorder counts the stages of entries. Safe for concurrent use.
type Recorder struct {
	stages    [count]timing.Histogram
	threshold atomic.Int64 // in ns
	logger    *zap.Logger
	// next is from when on a slow entry is logged, as the store's age; passed counts those that
	// were not.
	next   atomic.Int64
	passed atomic.Uint64
}

// New returns a recorder that logs entries that take as long as threshold; 0: none.
func New(threshold time.Duration, logger *zap.Logger) *Recorder {
	r := &Recorder{logger: logger}
	r.SetThreshold(threshold)
	return r
}

// SetThreshold changes the threshold of New, from the next entry on.
func (r *Recorder) SetThreshold(threshold time.Duration) { r.threshold.Store(int64(threshold)) }

// Note counts an entry of a region that the engine has.
func (r *Recorder) Note(regionID uint64, p *message.Proposal) {
	for s := range r.stages {
		_, took := Stage(s).Of(&p.Stages)
		r.stages[s].Note(took, 1)
	}
	threshold := time.Duration(r.threshold.Load())
	if total := p.Stages.Applied - p.Stages.Came; threshold > 0 && total >= threshold {
		r.slow(regionID, p, total)
	}
}

func (r *Recorder) slow(regionID uint64, p *message.Proposal, total time.Duration) {
	now, next := int64(p.Stages.Applied), r.next.Load()
	if now < next || !r.next.CompareAndSwap(next, now+int64(logEvery)) {
		r.passed.Add(1)
		return
	}
	fields := []zap.Field{
		log.RegionID(regionID), zap.Uint64("index", p.Index()), zap.Int("bytes", p.Size()),
		zap.Int("commands", p.Commands()),
		zap.Duration("took", total),
	}
	for _, s := range All() {
		_, took := s.Of(&p.Stages)
		fields = append(fields, zap.Duration(s.String(), took))
	}
	if n := r.passed.Swap(0); n > 0 {
		fields = append(fields, zap.Uint64("others", n))
	}
	r.logger.Warn("slow write", fields...)
}

// Read is how long a stage has taken.
func (r *Recorder) Read(s Stage) timing.Counts { return r.stages[s].Read() }
