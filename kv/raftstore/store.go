package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
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

// Transport sends raft messages to other stores. Send takes over the slice; it never blocks: what does
// not fit into its bounded queues is dropped and reported through Store.ReportUnreachable.
type Transport interface {
	Send(storeID uint64, msgs []*rspb.RaftMessage)
}

// Placement is what a store needs of the placement service. RegionHeartbeat never blocks; the others
// honour their context.
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
	// EncodedKeys: the cluster holds transactions, so regions are split between encoded keys only.
	EncodedKeys bool
	// DiskCritical tells that even the disk's reserve is being used up; nil means never.
	DiskCritical func() bool
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
// New starts nothing; Start recovers and starts all goroutines; Stop ends them. An IO error on the write
// path turns the store to failed: every waiting command is answered, Failed reports it, and the process
// is expected to exit. A failed fsync is never retried.
type Store struct {
	cfg          *config.Config
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
	diskCritical func() bool
	features     func() feature.Set
	swaps        swapMemo

	meta         *storeMeta
	live         *liveness
	dormant      dormantRegions
	router       *router
	appliers     []*applyWorker
	regionRunner *regionRunner
	logGC        *runner.RaftLogGC
	splitChecker *runner.SplitChecker
	hasher       *runner.Hasher
	tasks        *runner.SchedulerTasks

	storeCh       chan storeMsg
	inflight      atomic.Int64
	work          workCounters
	diskFull      atomic.Bool
	leaseReads    bool
	encodedKeys   bool
	leaseDuration time.Duration
	startTime     time.Time

	quarantine        quarantine
	starving          starvation
	quarantineThrough uint64
	incarnation, run  uint64

	readErrors readErrors
	diverged   diverged

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
		snaps: o.Snapshots, trans: o.Transport, placement: o.Placement, clock: o.Clock, seed: o.Seed, stats: o.Stats, diskCritical: o.DiskCritical,
		logger: o.Logger.With(log.StoreID(o.StoreID)),
		meta:   newStoreMeta(), storeCh: make(chan storeMsg, 4096), failed: make(chan error, 1),
	}
	if s.clock == nil {
		s.clock = SystemClock()
	}
	if s.features = o.Features; s.features == nil {
		s.features = func() feature.Set { return feature.Supported }
	}
	s.live = newLiveness(s.clock)
	rc := &o.Config.Raftstore
	s.router = newRouter(rc.MaxPendingPerRegion, rc.RaftWorkers)
	s.leaseReads = rc.ReadMode == "lease"
	s.leaseDuration = rc.LeaseDuration()
	s.quarantineThrough, s.incarnation, s.run = o.QuarantineThrough, o.Incarnation, o.Run
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for i := range rc.ApplyWorkers {
		s.appliers = append(s.appliers, newApplyWorker(s, i))
	}
	s.regionRunner = newRegionRunner(s)
	s.logGC = runner.NewRaftLogGC(s.engine.Sync, s.Send, s.fail)
	s.splitChecker = runner.NewSplitChecker(s.engine, uint64(rc.RegionSplitSize), uint64(rc.RegionMaxSize), s.Send)
	if s.encodedKeys = o.EncodedKeys; s.encodedKeys {
		s.splitChecker.SplitBetweenKeys()
	}
	s.hasher = runner.NewHasher(int64(rc.CompareRate), s.Send)
	s.tasks = runner.NewSchedulerTasks(rc.SchedulerTimeout.Duration, 64)
	return s
}

// Start recovers the peers from disk and starts to run them. Errors name what is damaged.
func (s *Store) Start(context.Context) error {
	s.startTime = s.clock.Now()
	if err := s.recover(); err != nil {
		return err
	}
	for _, w := range s.appliers {
		s.goIn(&s.applyWG, w.run)
	}
	s.goIn(&s.wg, func() { s.regionRunner.run(s.ctx) })
	s.goIn(&s.wg, func() { s.logGC.Run(s.ctx) })
	s.goIn(&s.wg, func() { s.splitChecker.Run(s.ctx) })
	s.goIn(&s.wg, func() { s.tasks.Run(s.ctx) })
	s.goIn(&s.wg, func() { s.hasher.Run(s.ctx) })
	s.goIn(&s.wg, s.runComparisons)
	for i := range s.cfg.Raftstore.RaftWorkers {
		s.goIn(&s.workers, newRaftWorker(s, i).run)
	}
	s.goIn(&s.wg, s.runStoreWorker)
	s.goIn(&s.wg, s.runTicker)
	s.goIn(&s.wg, s.runStoreHeartbeat)
	s.goIn(&s.wg, s.runSnapshotGC)
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
			w.close()
		}
		s.applyWG.Wait()
		s.wg.Wait()
		s.answerAll(ErrStopping)
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
			w.close()
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
		w.abandon(w.queue.tasks)
		w.queue.tasks = nil
	}
}

// ClusterID is the cluster that the store belongs to.
func (s *Store) ClusterID() uint64 { return s.clusterID }

// Send routes a message to a region's peer. It never blocks.
func (s *Store) Send(regionID uint64, m message.Msg) error { return s.router.send(regionID, m) }

// Write queues a write; its callback is answered exactly once. It never blocks.
func (s *Store) Write(w *message.Write) {
	size := int64(len(w.Payload))
	if err := s.ready(); err != nil {
		w.Callback.Fail(err)
		return
	}
	if s.inflight.Add(size) > int64(s.cfg.Raftstore.MaxStoreInflight) {
		s.inflight.Add(-size)
		w.Callback.Fail(&BusyError{Reason: "too many bytes of writes are in flight on this store"})
		return
	}
	if err := s.router.send(w.Header.RegionID, w); err != nil {
		s.inflight.Add(-size)
		w.Callback.Fail(err)
	}
}

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

// Admin queues an admin command; its callback is answered exactly once.
func (s *Store) Admin(a *message.Admin) {
	err := s.ready()
	if err == nil {
		err = s.router.send(a.Header.RegionID, a)
	}
	if err != nil {
		a.Callback.Fail(err)
	}
}

// Due is a deadline of the process's clock, which contexts have, in the store's: those of messages are compared with that.
func (s *Store) Due(deadline time.Time) time.Time {
	if _, same := s.clock.(systemClock); same || deadline.IsZero() {
		return deadline
	}
	return s.clock.Now().Add(time.Until(deadline))
}

func (s *Store) ready() error {
	if s.broken.Load() {
		return ErrFailed
	}
	if s.ctx.Err() != nil {
		return ErrStopping
	}
	return nil
}

// HandleRaft takes a message from another store. It never blocks; the error says why it was dropped.
func (s *Store) HandleRaft(m *rspb.RaftMessage) (err error) {
	s.HandleRaftBatch([]*rspb.RaftMessage{m}, func(_ *rspb.RaftMessage, why error) { err = why })
	return err
}

// HandleRaftBatch takes messages that came together, so that their regions share a turn. It never blocks;
// dropped hears of each message that was not taken, and why.
func (s *Store) HandleRaftBatch(msgs []*rspb.RaftMessage, dropped func(m *rspb.RaftMessage, why error)) {
	woken := make([]*mailbox, 0, len(msgs))
	letters := make([]message.Raft, len(msgs))
	for i, m := range msgs {
		letters[i].Message = m
		box, err := s.takeRaft(&letters[i])
		if err != nil {
			dropped(m, err)
		} else if box != nil {
			woken = append(woken, box)
		}
	}
	s.router.ready.push(woken...)
}

// takeRaft checks a message's envelope and routes it. It returns the mailbox that has to be put into the
// ready queue, if there is one.
func (s *Store) takeRaft(letter *message.Raft) (*mailbox, error) {
	m := letter.Message
	switch {
	case m.ClusterId != 0 && m.ClusterId != s.clusterID:
		return nil, invalidf("message of cluster %d arrived in cluster %d", m.ClusterId, s.clusterID)
	case m.GetToPeer().GetStoreId() != s.storeID:
		return nil, &StoreNotMatchError{Request: m.GetToPeer().GetStoreId(), Actual: s.storeID}
	case isGreeting(m):
		s.live.hear(m.FromPeer.StoreId, m.Incarnation)
		return nil, nil
	case m.RegionId == 0 || m.FromPeer == nil || m.FromPeer.Id == 0 || m.RegionEpoch == nil:
		return nil, invalidf("raft message without region, sender or epoch")
	case m.Hash != nil:
		// It has no raft message.
	case !m.IsTombstone && (m.Message == nil || m.Message.From != m.FromPeer.Id || m.Message.To != m.ToPeer.Id):
		return nil, invalidf("raft message of region %d names other peers than its envelope", m.RegionId)
	}
	if err := s.verifyEntries(m); err != nil {
		return nil, err
	}
	if !s.live.hear(m.FromPeer.StoreId, m.Incarnation) {
		return nil, invalidf("message of an earlier run of store %d, incarnation %d", m.FromPeer.StoreId, m.Incarnation)
	}
	return s.routeRaft(letter)
}

// verifyEntries refuses a message with an entry that is not the one that was proposed: the leader sends it again. The log
// refuses a batch with an entry of another type, and what does not decode is damage when it is applied. Either would
// cost more than a message that comes again.
func (s *Store) verifyEntries(m *rspb.RaftMessage) error {
	for _, e := range m.GetMessage().GetEntries() {
		if err := checkEntry(e); err != nil {
			s.work.corruptEntries.Add(1)
			s.logger.Error("dropped raft message with damaged entry", log.RegionID(m.RegionId), log.PeerID(m.ToPeer.Id),
				zap.Uint64("from-store-id", m.FromPeer.StoreId), zap.Uint64("from-peer-id", m.FromPeer.Id),
				log.Index(e.Index), zap.Error(err))
			return invalidf("raft message of region %d has a damaged entry %d", m.RegionId, e.Index)
		}
	}
	return nil
}

// HandleOperator takes an order of the placement service.
func (s *Store) HandleOperator(resp *schedulerpb.RegionHeartbeatResponse) {
	if resp.RegionId != 0 && (resp.ChangePeer != nil || resp.TransferLeader != nil || resp.SplitRegion != nil) {
		_ = s.router.send(resp.RegionId, &message.Operator{Response: resp})
	}
}

// ReportUnreachable tells a region that messages to one of its peers were dropped.
func (s *Store) ReportUnreachable(regionID, toPeer uint64) {
	_ = s.router.send(regionID, &message.Unreachable{ToPeer: toPeer})
}

// ReportSnapshot tells a region how sending a raft snapshot ended.
func (s *Store) ReportSnapshot(regionID, toPeer uint64, ok bool) {
	_ = s.router.send(regionID, &message.SnapshotSent{ToPeer: toPeer, OK: ok})
}

// HeartbeatAll makes every leader report to the placement service at once: a new placement leader
// begins without knowing the regions.
func (s *Store) HeartbeatAll() {
	s.router.boxes.Range(func(_, v any) bool {
		_ = s.router.push(v.(*mailbox), &message.HeartbeatNow{})
		return true
	})
}

// newRand is the source of a peer's election timeouts: different for each peer, the same for a seed.
func (s *Store) newRand(regionID, peerID uint64) *randSource {
	return &randSource{rand.New(rand.NewPCG(s.seed^regionID, peerID))}
}

type randSource struct{ r *rand.Rand }

// Intn implements raft.RandSource.
func (s *randSource) Intn(n int) int { return s.r.IntN(n) }

// jitter spreads periodic work of many peers: d to 1.5 d.
func (s *Store) jitter(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d)/2+1))
}

func (s *Store) applierOf(regionID uint64) int { return int(regionID % uint64(len(s.appliers))) }

func (s *Store) applierFor(regionID uint64) *applyWorker { return s.appliers[s.applierOf(regionID)] }

// scheduleAsk asks the placement service for split ids in the background; false if too many wait.
func (s *Store) scheduleAsk(done func(message.AskedSplit), region *metapb.Region) bool {
	return s.tasks.Submit(func(ctx context.Context) {
		ids, err := s.placement.AskSplit(ctx, region)
		done(message.AskedSplit{IDs: ids, Err: err})
	})
}

func (s *Store) reportSplit(left, right *metapb.Region) {
	s.tasks.Submit(func(ctx context.Context) {
		if err := s.placement.ReportSplit(ctx, left, right); err != nil {
			s.logger.Debug("reporting split failed", zap.Error(err))
		}
	})
}

func (s *Store) askRegionTruth(regionID uint64) {
	s.tasks.Submit(func(ctx context.Context) {
		region, err := s.placement.RegionByID(ctx, regionID)
		if err == nil {
			_ = s.Send(regionID, &message.RegionTruth{Region: region})
		}
	})
}

// runTicker wakes every peer that is not asleep once in an interval; how many ticks have passed is each
// peer's own reckoning (peer.elapsedTicks). While all sleep it only greets other stores and looks for duties.
func (s *Store) runTicker() {
	interval := s.cfg.Raftstore.TickInterval.Duration
	asleep := max(interval, min(dutyInterval, greetTimeouts*s.cfg.Raftstore.ElectionTimeout()))
	greetings := greetings{next: s.clock.Now()}
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.router.stirred:
		case <-timer.C:
			s.router.tick(1, s.live.now())
			s.greet(&greetings)
			s.rouse()
		}
		if s.router.awake.Load() > 0 || len(s.dormant.boxes) > 0 {
			timer.Reset(interval)
		} else {
			timer.Reset(asleep)
		}
	}
}

// dutyInterval is how late the duty of a sleeping peer may be.
const dutyInterval = time.Second

// TransferLeaders hands the leadership of every region to another peer, as far as one is fit, and
// returns when none is left or ctx ends. Part of a graceful stop.
func (s *Store) TransferLeaders(ctx context.Context) {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	fewest, progress := -1, time.Now()
	for {
		left := 0
		s.router.boxes.Range(func(_, v any) bool {
			b := v.(*mailbox)
			h := b.handle.Load()
			if h == nil || h.leader == nil || h.leader.Id != h.peer.Id || voterCount(h.region) < 2 {
				return true
			}
			left++
			_ = s.router.push(b, &message.Inspect{Fn: func(v any) {
				if view, ok := v.(*PeerView); ok && view.p.isLeader() && view.p.rn.LeadTransferee() == 0 {
					if to := view.p.bestTransferee(); to != nil {
						view.p.startTransfer(to.Id)
					}
				}
			}})
			return true
		})
		if fewest < 0 || left < fewest {
			fewest, progress = left, time.Now()
		}
		// Without progress there is nobody to hand over to: the other stores stop as well, or are gone.
		if left == 0 || time.Since(progress) > handOverPatience {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-s.ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// handOverPatience is how long TransferLeaders goes on without any region changing hands.
const handOverPatience = 700 * time.Millisecond

// SetDiskFull switches the refusal of writes that need space.
func (s *Store) SetDiskFull(full bool) {
	if s.diskFull.Swap(full) != full {
		s.logger.Warn("disk space reserve", zap.Bool("full", full))
	}
}

// AdminCommand runs an admin command on this store's peer of a region and waits: for tools and tests.
func (s *Store) AdminCommand(ctx context.Context, regionID uint64, req *raft_cmdpb.AdminRequest) (message.Result, error) {
	box := s.router.get(regionID)
	if box == nil {
		return message.Result{}, &RegionNotFoundError{RegionID: regionID}
	}
	h := box.handle.Load()
	if h == nil {
		return message.Result{}, &RegionNotFoundError{RegionID: regionID}
	}
	a := &message.Admin{
		Header:  message.Header{RegionID: regionID, Peer: h.peer, Epoch: h.region.RegionEpoch},
		Request: req, Callback: message.NewCallback(),
	}
	s.Admin(a)
	res, err := a.Callback.Wait(ctx)
	if err == nil {
		err = res.Err
	}
	return res, err
}

// SplitAt splits a region at a key, or in the middle if key is empty, and waits for it.
func (s *Store) SplitAt(ctx context.Context, regionID uint64, key []byte) (message.Result, error) {
	box := s.router.get(regionID)
	if box == nil {
		return message.Result{}, &RegionNotFoundError{RegionID: regionID}
	}
	h := box.handle.Load()
	if h == nil {
		return message.Result{}, &RegionNotFoundError{RegionID: regionID}
	}
	return s.splitAt(ctx, message.Header{RegionID: regionID, Peer: h.peer, Epoch: h.region.RegionEpoch}, key)
}

func (s *Store) splitAt(ctx context.Context, h message.Header, key []byte) (message.Result, error) {
	m := &message.SplitAt{Header: h, Key: key, Callback: message.NewCallback()}
	if err := s.router.send(h.RegionID, m); err != nil {
		return message.Result{}, err
	}
	res, err := m.Callback.Wait(ctx)
	if err == nil {
		err = res.Err
	}
	return res, err
}

func wrapRecover(regionID uint64, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("recover region %d: %w", regionID, err)
}

var errDamaged = errors.New("raftstore: damaged replica")

// Done is closed when the store stops or fails.
func (s *Store) Done() <-chan struct{} { return s.ctx.Done() }
