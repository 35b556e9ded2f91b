package gcworker

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// Placement is what a worker needs of the placement service.
type Placement interface {
	GetGCState(ctx context.Context) (*schedulerpb.GetGCStateResponse, error)
	AdvanceSafePoints(ctx context.Context, txnTarget, gcTarget uint64) (txn, gc uint64, err error)
}

// Cluster is what a worker does with locks and garbage; *txn.Client is one.
type Cluster interface {
	Timestamp(ctx context.Context) (uint64, error)
	ResolveExpired(ctx context.Context, before uint64) (ended int, err error)
	ResolveAll(ctx context.Context, safePoint uint64) (ended int, err error)
	Collect(
		ctx context.Context, safePoint uint64,
		step func(ctx context.Context, done txn.Collected) error,
	) error
}

// Options are what a Worker is made of.
type Options struct {
	LifeTime, Interval time.Duration
	// Rate bounds the bytes of deletes a second.
	Rate int64
	// Leads tells whether this store is the one to do it.
	Leads     func(ctx context.Context) bool
	Placement Placement
	Cluster   Cluster
	Logger    *zap.Logger
}

const (
	// clientTerm is for how long a client that has raised a safe point is expected to go on with
	// it.
	clientTerm = 24 * time.Hour
	// minLockAge is the age from which on locks are looked at: younger ones come and go with their
	// transactions.
	minLockAge  = 30 * time.Second
	logicalBits = 18
)

// Stats count since the start.
type Stats struct {
	Rounds, Failures, Expired, Ended, Versions, Bytes uint64
	// SafePoint is the last one up to which everything was collected.
	SafePoint uint64
	// Last is when the last round has ended, and LastError what has ended it.
	Last      time.Time
	LastError string
}

// Worker collects garbage. Run is called once; Stats is safe for concurrent use.
type Worker struct {
	opt Options
	mu  struct {
		sync.Mutex
		stats Stats
	}
}

// New returns a worker that does nothing yet.
func New(opt Options) *Worker { return &Worker{opt: opt} }

// Stats returns what was done.
func (w *Worker) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.stats
}

func (w *Worker) note(f func(s *Stats)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.mu.stats)
}

// Run does a round at each interval in which this store is the one to do it, until ctx ends.
func (w *Worker) Run(ctx context.Context) {
	tick := time.NewTicker(w.opt.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !w.opt.Leads(ctx) {
			// another store goes on, and this one does not know how far
			w.note(func(s *Stats) { s.SafePoint = 0 })
			continue
		}
		if err := w.Round(ctx); err != nil && ctx.Err() == nil {
			w.opt.Logger.Warn("collecting garbage failed", zap.Error(err))
		}
	}
}

// Round does what there is to do once.
func (w *Worker) Round(ctx context.Context) error {
	err := w.round(ctx)
	w.note(func(s *Stats) {
		s.Rounds++
		s.Last, s.LastError = time.Now(), ""
		if err != nil {
			s.Failures++
			s.LastError = err.Error()
		}
	})
	return err
}

func (w *Worker) round(ctx context.Context) error {
	now, err := w.opt.Cluster.Timestamp(ctx)
	if err != nil {
		return err
	}
	expired, err := w.opt.Cluster.ResolveExpired(ctx, before(now, minLockAge))
	w.note(func(s *Stats) { s.Expired += uint64(expired) })
	if err != nil {
		return err
	}
	safePoint, err := w.raise(ctx, now)
	if err != nil || safePoint == 0 || safePoint <= w.Stats().SafePoint {
		return err
	}
	versions := w.Stats().Versions
	begun := time.Now()
	if err := w.opt.Cluster.Collect(ctx, safePoint, w.pace); err != nil {
		return err
	}
	w.note(func(s *Stats) { s.SafePoint = safePoint })
	w.opt.Logger.Info("collected garbage", zap.Uint64("safe-point", safePoint),
		zap.Uint64("versions", w.Stats().Versions-versions),
		zap.Duration("took", time.Since(begun)))
	return nil
}

// before is the timestamp that is older by d.
func before(ts uint64, d time.Duration) uint64 {
	ms := uint64(d.Milliseconds())
	if ts>>logicalBits <= ms {
		return 0
	}
	return (ts>>logicalBits - ms) << logicalBits
}

// raise returns a safe point up to which garbage may be collected: all locks up to it are resolved.
// 0 is none.
func (w *Worker) raise(ctx context.Context, now uint64) (uint64, error) {
	st, err := w.opt.Placement.GetGCState(ctx)
	if err != nil {
		return 0, err
	}
	if st.ByClient && time.Duration(st.ClientAgoMs)*time.Millisecond < clientTerm {
		// The client has resolved locks as well, but stores did not refuse others while it did.
		return st.GcSafePoint, w.resolve(ctx, st.GcSafePoint)
	}
	target, _, err := w.opt.Placement.AdvanceSafePoints(ctx, before(now, w.opt.LifeTime), 0)
	if err != nil {
		return 0, err
	}
	if err := w.resolve(ctx, target); err != nil {
		return 0, err
	}
	_, safePoint, err := w.opt.Placement.AdvanceSafePoints(ctx, 0, target)
	return min(safePoint, target), err
}

func (w *Worker) resolve(ctx context.Context, safePoint uint64) error {
	if safePoint == 0 || safePoint <= w.Stats().SafePoint {
		return nil
	}
	ended, err := w.opt.Cluster.ResolveAll(ctx, safePoint)
	w.note(func(s *Stats) { s.Ended += uint64(ended) })
	return err
}

// errLost ends a round when another store has taken over.
var errLost = errors.New("gcworker: another store takes over")

// pace counts a step, and waits until the next one is due.
func (w *Worker) pace(ctx context.Context, done txn.Collected) error {
	w.note(func(s *Stats) { s.Versions, s.Bytes = s.Versions+done.Versions, s.Bytes+done.Bytes })
	if !w.opt.Leads(ctx) {
		return errLost
	}
	if done.Bytes == 0 {
		return ctx.Err()
	}
	wait := time.NewTimer(time.Duration(int64(done.Bytes) * int64(time.Second) / w.opt.Rate))
	defer wait.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wait.C:
		return nil
	}
}
