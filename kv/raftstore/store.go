package raftstore

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/kv/raftstore/stages"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

type logBatch = raftlog.Batch

const (
	initIndex   = meta.InitLogIndex
	normalState = rspb.PeerState_Normal
)

var (
	initTruncated = rspb.RaftTruncatedState{Index: meta.InitLogIndex, Term: meta.InitLogTerm}
	zeroTime      time.Time
)

// Transport sends raft messages to other stores. Send takes over the slice; it never blocks: what
// does not fit into its bounded queues is dropped and reported through Store.ReportUnreachable.
type Transport interface {
	Send(storeID uint64, msgs []*rspb.RaftMessage)
}

// Placement is what a store needs of the placement service. RegionHeartbeat never blocks; the
// others honour their context.
type Placement interface {
	AskSplit(ctx context.Context, region *metapb.Region) (*schedulerpb.AskSplitResponse, error)
	ReportSplit(ctx context.Context, left, right *metapb.Region) error
	RegionHeartbeat(req *schedulerpb.RegionHeartbeatRequest)
	StoreHeartbeat(ctx context.Context, stats *schedulerpb.StoreStats) error
	// RegionByID returns nil without error for an unknown region.
	RegionByID(ctx context.Context, id uint64) (*metapb.Region, error)
}

// Clock tells the time. Base is a fixed moment before all others.
type Clock interface {
	Now() time.Time
	Base() time.Time
}

type systemClock struct{ base time.Time }

func (c systemClock) Now() time.Time  { return time.Now() }
func (c systemClock) Base() time.Time { return c.base }

// SystemClock is the process's clock; its times carry a monotonic reading.
func SystemClock() Clock { return systemClock{time.Now()} }

// Options are what a Store is made of.
type Options struct {
	Config    *config.Config
	ClusterID uint64
	StoreID   uint64
	Engine    engine.Engine
	Log       *raftlog.Log
	Snapshots *snap.Manager
	Transport Transport
	Placement Placement
	Clock     Clock
	Logger    *zap.Logger
	// Incarnation and Run name this run of the store; 0 if runs are not counted.
	Incarnation, Run uint64
	// QuarantineThrough is the largest peer id whose data must not be used; 0 if there is none.
	QuarantineThrough uint64
	// Seed feeds election timeouts and jitter.
	Seed uint64
	// Stats fills capacity, available and used size of a store heartbeat; nil leaves them 0.
	Stats func(*schedulerpb.StoreStats)
	// ReportNow makes the store send a heartbeat at once with each value; nil means never.
	ReportNow <-chan struct{}
	// EncodedKeys: the cluster holds transactions, so regions are split between encoded keys only.
	EncodedKeys bool
	// DiskCritical tells that even the disk's reserve is being used up; nil means never.
	DiskCritical func() bool
	// PlacementTime asks for the placement service's time, which limits the store's
	// (runner.ClockLimit); nil: it has no limit.
	PlacementTime func(ctx context.Context) (time.Time, error)
	// Features are those in force in the cluster; nil means all that this program knows.
	Features func() feature.Set
}

// Store is one tinykv-server's set of region peers.
//
//	             ┌─ raft workers (a region is held by at most one) ── raft log
//	router ──────┤        │ committed entries            ▲ reports
//	(mailboxes)  │        ▼                              │
//	             │   apply workers (sticky by region) ── engine
//	             └─ store worker: messages for regions that are not here
//	region runner: raft snapshots, destruction; log GC; split checker; placement tasks
//
// New starts nothing; Start recovers and starts all goroutines; Stop ends them. An IO error on the
// write path turns the store to failed: every waiting command is answered, Failed reports it, and
// the process is expected to exit. A failed fsync is never retried.
type Store struct {
	cfg          *config.Config
	limits       atomic.Pointer[limits]
	storeID      uint64
	clusterID    uint64
	engine       engine.Engine
	log          *raftlog.Log
	snaps        *snap.Manager
	trans        Transport
	placement    Placement
	clock        Clock
	logger       *zap.Logger
	seed         uint64
	stats        func(*schedulerpb.StoreStats)
	reportNow    <-chan struct{}
	diskCritical func() bool
	features     func() feature.Set
	swaps        apply.Swaps

	ranges       *rangeMap
	live         *liveness
	router       *router
	appliers     appliers
	regionRunner *regionRunner
	logGC        *runner.RaftLogGC
	splitChecker *runner.SplitChecker
	hasher       *runner.Hasher
	sweeper      *runner.Sweeper
	clockLimit   *runner.ClockLimit
	creator      *creator
	intake       intake
	ticker       ticker
	ask          placementTasks
	reporter     storeReporter
	comparisons  comparisons

	inflight atomic.Int64
	// millis is the latest time that Millis has returned.
	millis atomic.Uint64
	// reads and written are what regions led here have reported as read, and what replicas here
	// have applied, since the last report of the store.
	reads, written flow
	work           workCounters
	stages         *stages.Recorder
	diskFull       atomic.Bool
	leaseReads     bool
	encodedKeys    bool
	leaseDuration  time.Duration
	startTime      time.Time

	quarantine        quarantine
	quarantineThrough uint64
	incarnation, run  uint64

	readErrors readErrors

	failOnce sync.Once
	failed   chan error
	broken   atomic.Bool
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	workers  sync.WaitGroup
	applyWG  sync.WaitGroup
	stopOnce sync.Once
}

// New makes a store. It does no IO.
func New(o Options) *Store {
	s := &Store{
		cfg: o.Config, storeID: o.StoreID, clusterID: o.ClusterID, engine: o.Engine, log: o.Log,
		snaps: o.Snapshots, trans: o.Transport, placement: o.Placement, clock: o.Clock,
		seed:  o.Seed,
		stats: o.Stats, reportNow: o.ReportNow,
		diskCritical: o.DiskCritical,
		logger:       o.Logger.With(log.StoreID(o.StoreID)),
		ranges:       newRangeMap(), failed: make(chan error, 1),
	}
	if s.clock == nil {
		s.clock = SystemClock()
	}
	if s.features = o.Features; s.features == nil {
		s.features = func() feature.Set { return feature.Supported }
	}
	s.live, s.stages = newLiveness(s.clock), stages.New(o.Config.Server.SlowLog.Duration, s.logger)
	rc := &o.Config.Raftstore
	s.limits.Store(limitsOf(rc))
	s.router = newRouter(rc.MaxPendingPerRegion, rc.RaftWorkers)
	s.leaseReads = rc.ReadMode == "lease"
	s.leaseDuration = rc.LeaseDuration()
	s.quarantineThrough, s.incarnation, s.run = o.QuarantineThrough, o.Incarnation, o.Run
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.regionRunner = newRegionRunner(s)
	s.logGC = runner.NewRaftLogGC(s.engine.Sync, s.Send, s.fail)
	s.splitChecker = runner.NewSplitChecker(s.engine, uint64(rc.RegionSplitSize),
		uint64(rc.RegionMaxSize), s.Send)
	if s.encodedKeys = o.EncodedKeys; s.encodedKeys {
		s.splitChecker.SplitBetweenKeys()
	}
	s.hasher = runner.NewHasher(int64(rc.CompareRate), s.Send)
	s.clockLimit = runner.NewClockLimit(s.clock.Now, o.PlacementTime, s.logger)
	s.sweeper = runner.NewSweeper(runner.SweeperOptions{
		Engine: s.engine, Interval: rc.ExpirySweep.Duration, Millis: s.Millis, Logger: s.logger,
		Led: s.expiringLed, Expire: s.expire, Failed: s.ReadFailed,
	})
	s.appliers = newAppliers(s)
	s.ask = placementTasks{s: s, tasks: runner.NewSchedulerTasks(rc.SchedulerTimeout.Duration, 64)}
	s.creator = newCreator(s)
	s.intake.s, s.ticker.s, s.reporter.s, s.comparisons.s, s.quarantine.s, s.readErrors.s = s, s, s,
		s, s, s
	return s
}

// firstTimeWait is how long a start waits for the placement service's time. Without it the store
// goes by its clock, and no key is swept, until the service answers.
const firstTimeWait = 300 * time.Millisecond

// Start recovers the peers from disk and starts to run them. Errors name what is damaged.
func (s *Store) Start(ctx context.Context) error {
	s.startTime = s.clock.Now()
	tctx, cancel := context.WithTimeout(ctx, firstTimeWait)
	defer cancel()
	if err := s.clockLimit.Check(tctx); err != nil {
		s.logger.Warn("the placement service's time is not known yet", zap.Error(err))
	}
	if err := (&recovery{s}).run(); err != nil {
		return err
	}
	for _, w := range s.appliers {
		s.goIn(&s.applyWG, func() {
			if err := w.Run(); err != nil {
				s.fail(err)
			}
		})
	}
	s.goIn(&s.wg, func() { s.regionRunner.run(s.ctx) })
	s.goIn(&s.wg, func() { s.logGC.Run(s.ctx) })
	s.goIn(&s.wg, func() { s.splitChecker.Run(s.ctx) })
	s.goIn(&s.wg, func() { s.ask.tasks.Run(s.ctx) })
	s.goIn(&s.wg, func() { s.hasher.Run(s.ctx) })
	s.goIn(&s.wg, func() { s.sweeper.Run(s.ctx) })
	s.goIn(&s.wg, s.comparisons.run)
	for i := range s.cfg.Raftstore.RaftWorkers {
		s.goIn(&s.workers, newRaftWorker(s, i).run)
	}
	s.goIn(&s.wg, s.creator.run)
	s.goIn(&s.wg, s.ticker.run)
	s.goIn(&s.wg, s.reporter.run)
	s.goIn(&s.wg, s.regionRunner.runSnapshotGC)
	return nil
}

func (s *Store) goIn(wg *sync.WaitGroup, f func()) {
	wg.Add(1)
	// Owned by the store; ends in Stop.
	go func() {
		defer wg.Done()
		f()
	}()
}

// Stop ends all goroutines and answers every waiting command. Idempotent.
func (s *Store) Stop() {
	s.stopOnce.Do(func() {
		s.cancel()
		s.snaps.Pace(0)
		s.router.ready.close()
		s.workers.Wait()
		for _, w := range s.appliers {
			w.Close()
		}
		s.applyWG.Wait()
		s.wg.Wait()
		s.answerAll(regionerr.ErrStopping)
	})
}

// Failed delivers the error that stopped the store, at most once.
func (s *Store) Failed() <-chan error { return s.failed }

// fail stops the store after an error from which it must not go on.
func (s *Store) fail(err error) {
	s.failOnce.Do(func() {
		s.broken.Store(true)
		s.logger.Error("store failed", zap.Error(err))
		s.failed <- err // has room for the one error
		s.cancel()
		s.router.ready.close()
		for _, w := range s.appliers {
			w.Close()
		}
	})
}

// answerAll answers everything that still waits anywhere. Only after all workers have ended.
func (s *Store) answerAll(err error) {
	s.router.boxes.Range(func(_, v any) bool {
		b := v.(*mailbox)
		for _, m := range s.router.close(b) {
			message.CallbackOf(m).Fail(err)
		}
		b.peer.endCommands(err)
		return true
	})
	for _, w := range s.appliers {
		w.Abandon()
	}
}

// ClusterID is the cluster that the store belongs to.
func (s *Store) ClusterID() uint64 { return s.clusterID }

// Send routes a message to a region's peer. It never blocks.
func (s *Store) Send(regionID uint64, m message.Msg) error { return s.router.send(regionID, m) }

// Read queues a proof of leadership; its callback is answered exactly once.
func (s *Store) Read(r *message.Read) {
	err := s.ready()
	if err == nil {
		err = s.router.send(r.Header.RegionID, r)
	}
	if err != nil {
		r.Callback.Fail(err)
	}
}

// age is the time since the clock was made.
func (s *Store) age() time.Duration {
	if c, ok := s.clock.(systemClock); ok {
		return time.Since(c.base) // does not read the time of day
	}
	return s.clock.Now().Sub(s.clock.Base())
}

// TimeOf is the moment at which the store had an age, as those in message.Stages.
func (s *Store) TimeOf(age time.Duration) time.Time { return s.clock.Base().Add(age) }

// limits are the settings that change while the store runs.
//
// Invariant: maxRegion >= splitRegion, since both change at once.
type limits struct {
	inflight               int64
	splitRegion, maxRegion uint64
}

func limitsOf(rc *config.Raftstore) *limits {
	return &limits{
		inflight:    int64(rc.MaxStoreInflight),
		splitRegion: uint64(rc.RegionSplitSize), maxRegion: uint64(rc.RegionMaxSize),
	}
}

// Adjust takes the limits of a validated configuration: max-store-inflight-bytes from the next
// write on, region-split-size and region-max-size from the next check of a region's size on,
// compare-max-bytes-per-sec from the next part of a comparison on. Other options of it are not
// looked at. Safe for concurrent use.
func (s *Store) Adjust(rc *config.Raftstore) {
	l := limitsOf(rc)
	s.limits.Store(l)
	s.splitChecker.SetSizes(l.splitRegion, l.maxRegion)
	s.hasher.Pace(int64(rc.CompareRate))
}

// Stages are how long the stages of writes have taken.
func (s *Store) Stages() *stages.Recorder { return s.stages }

// Due is a deadline of the process's clock, which contexts have, in the store's: those of messages
// are compared with that.
func (s *Store) Due(deadline time.Time) time.Time {
	if _, same := s.clock.(systemClock); same || deadline.IsZero() {
		return deadline
	}
	return s.clock.Now().Add(time.Until(deadline))
}

func (s *Store) ready() error {
	if s.broken.Load() {
		return regionerr.ErrFailed
	}
	if s.ctx.Err() != nil {
		return regionerr.ErrStopping
	}
	return nil
}

// newRand is the source of a peer's election timeouts: different for each peer, the same for a
// seed.
func newRand(seed, regionID, peerID uint64) *randSource {
	return &randSource{rand.New(rand.NewPCG(seed^regionID, peerID))}
}

type randSource struct{ r *rand.Rand }

// Intn implements raft.RandSource.
func (s *randSource) Intn(n int) int { return s.r.IntN(n) }

// jitter spreads periodic work of many peers: d to 1.5 d.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d)/2+1))
}

// SetDiskFull switches the refusal of writes that need space.
func (s *Store) SetDiskFull(full bool) {
	if s.diskFull.Swap(full) != full {
		s.logger.Warn("disk space reserve", zap.Bool("full", full))
	}
}

// Done is closed when the store stops or fails.
func (s *Store) Done() <-chan struct{} { return s.ctx.Done() }
