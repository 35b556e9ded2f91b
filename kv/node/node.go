// Package node assembles a tinykv-server: data directory, engine, raft log, placement client,
// raftstore, transport, gRPC and status servers, in an order in which each part finds what it
// needs, and takes them down in the opposite one.
package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/engines"
	"github.com/tinykv/tinykv/kv/gcworker"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/kv/server"
	"github.com/tinykv/tinykv/kv/server/tikv"
	"github.com/tinykv/tinykv/kv/settings"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/storage/raftstorage"
	"github.com/tinykv/tinykv/kv/storage/standalone"
	"github.com/tinykv/tinykv/kv/transport"
	"github.com/tinykv/tinykv/kv/vfs"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/pkg/descriptors"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/pkg/reflect"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
)

// Node is a running tinykv-server. Start and Stop are called by one goroutine.
type Node struct {
	cfg     *config.Config
	logger  *zap.Logger
	version string
	started time.Time
	dial    Dialer // nil: by TCP
	// identity is the store's certificate; nil without TLS.
	identity *security.Identity
	files    descriptors.Plan

	dir       *DataDir
	engine    engine.Engine
	raftLog   *raftlog.Log
	placement *client.Client
	// deadlocks is nil where there are no transactions.
	deadlocks *detector
	// gc is nil where nothing is collected.
	gc        *gcworker.Worker
	snaps     *snap.Manager
	trans     *transport.Transport
	peers     *transport.Peers
	service   *server.Server
	addresses *addressBook
	store     *raftstore.Store
	ident     rspb.StoreIdent
	grpc      *rpc.Server
	health    *health.Server
	listener  net.Listener
	status    *statusServer
	space     *spaceGuard
	disk      *diskWatch
	features  features
	live      *settings.Live

	// corrupt counts messages that were damaged on their way here.
	corrupt atomic.Uint64
	// run is the number of this run of the store; 0 without placement service. registered: that
	// service knows it.
	run        uint64
	registered atomic.Bool
	serving    atomic.Bool // grpc is set up

	failed   chan error
	stopOnce sync.Once
	wg       sync.WaitGroup
	cancel   context.CancelFunc
}

// New makes a node from a validated configuration. It does no IO.
func New(cfg *config.Config, version string, logger *zap.Logger) *Node {
	return &Node{
		cfg: cfg, logger: logger, version: version, failed: make(chan error, 4),
		features: features{known: feature.Supported}, live: settings.New(cfg, logger),
	}
}

// Dialer makes the connections of a store to others, and to the placement service.
type Dialer = security.Dialer

// DialBy replaces how connections are made. To be called before Start.
func (n *Node) DialBy(d Dialer) { n.dial = d }

// SetLogLevel lets the log level be changed while the store runs. To be called before Start.
func (n *Node) SetLogLevel(level zap.AtomicLevel) {
	n.live.On("log.level", func(c *config.Config) {
		if l, err := log.ParseLevel(c.Log.Level); err == nil { // it was validated
			level.SetLevel(l)
		}
	})
}

// SetFiles says how many files the process may have open, and what for. To be called before Start.
func (n *Node) SetFiles(p descriptors.Plan) { n.files = p }

// Failed delivers the error after which the process must exit.
func (n *Node) Failed() <-chan error { return n.failed }

// Addr is the address that is listened on.
func (n *Node) Addr() string { return n.listener.Addr().String() }

// StoreID is the store's id once the node has started.
func (n *Node) StoreID() uint64 { return n.ident.StoreId }

// Store is the raftstore; nil in standalone mode.
func (n *Node) Store() *raftstore.Store { return n.store }

// loadIdentity reads the certificates that the store serves with; nil without TLS.
func loadIdentity(sec *config.Security, logger *zap.Logger) (*security.Identity, error) {
	if !sec.TLS() {
		return nil, nil
	}
	id, err := security.LoadNamed(sec.Files(), sec.CertAllowedCN, sec.Names())
	if err != nil {
		return nil, fmt.Errorf("security: %w", err)
	}
	id.OnRefused(func(remote string, err error) {
		logger.Warn("refused a connection", zap.String("remote", remote), zap.Error(err))
	})
	return id, nil
}

// Start brings the server up. While the placement service cannot be reached it waits, and says so
// in the log. On an error everything that was started is taken down again.
func (n *Node) Start(ctx context.Context) (err error) {
	n.started = time.Now()
	defer func() {
		if err != nil {
			n.Stop()
		}
	}()
	if open := n.cfg.InTheClear(); len(open) > 0 {
		n.logger.Warn(
			"other machines are served without TLS, as --insecure allows: anyone who reaches these addresses can read "+
				"and change all data", zap.Strings("addresses", open))
	}
	if n.identity, err = loadIdentity(&n.cfg.Security, n.logger); err != nil {
		return err
	}
	n.cfg = sized(n.cfg)
	// The address first: a wrong one must not leave a half-made data directory behind.
	if n.listener, err = net.Listen("tcp", n.cfg.Addr); err != nil {
		return fmt.Errorf("addr %s: %w", n.cfg.Addr, plainNetError(err))
	}
	if n.cfg.StatusAddr != "" {
		if n.status, err = newStatusServer(n); err != nil {
			return fmt.Errorf("status-addr %s: %w", n.cfg.StatusAddr, plainNetError(err))
		}
	}
	if n.dir, err = OpenDataDir(n.cfg.DataDir); err != nil {
		return err
	}
	mode := "raft"
	if !n.cfg.Storage.Raft {
		mode = "standalone"
	}
	marker, err := n.openMarker(mode)
	if err != nil {
		return err
	}
	if err = n.watchSpace(); err != nil {
		return err
	}
	if n.engine, err = engines.Open(n.cfg.Storage.Engine, engine.Options{
		Dir: n.dir.Sub("kv"), CacheBytes: int64(n.cfg.Storage.Cache),
		MemTableBytes:      spreadSize(int64(n.cfg.Storage.MemTable)),
		LeastMemTableBytes: spreadSize(int64(min(n.cfg.Storage.MemTable, config.LeastMemTable))),
		OpenFiles:          n.openTables(), Logger: n.logger.Named("engine"), OnFailure: n.fail,
	}); err != nil {
		return fmt.Errorf("open engine in %s: %w", n.dir.Sub("kv"), err)
	}
	var run context.Context
	run, n.cancel = context.WithCancel(context.Background())
	var st storage.Storage
	if n.cfg.Storage.Raft {
		if err = n.startRaft(ctx, run, marker); err != nil {
			return err
		}
		st = raftstorage.New(n.store, n.engine, n.cfg.Server.RequestTimeout.Duration)
	} else {
		st = standalone.New(n.engine)
	}
	var closeGC func()
	n.gc, closeGC = n.newGC()
	n.serve(st)
	n.startGC(run, closeGC) //nolint:contextcheck // it lives as long as the node
	n.logger.Info("tinykv-server is ready", zap.String("addr", n.Addr()),
		zap.String("version", n.version),
		log.StoreID(n.ident.StoreId), log.ClusterID(n.ident.ClusterId), zap.Stringer("memtable-size", n.cfg.Storage.MemTable),
		zap.Stringer("cache-size", n.cfg.Storage.Cache), zap.Duration("took", time.Since(n.started)))
	return nil
}

// openMarker reads the directory's marker, nil if it is new, and writes what it must say before
// anything else does.
func (n *Node) openMarker(mode string) (*Marker, error) {
	marker, err := n.dir.ReadMarker()
	if err != nil {
		return nil, err
	}
	for _, option := range []struct {
		on      bool
		feature feature.Set
	}{
		{n.cfg.Raftstore.Merge, feature.Merge}, {n.cfg.Raftstore.Merge, feature.TxnMerge},
		{n.cfg.Raftstore.AsyncCommit, feature.AsyncCommit},
	} {
		if !option.on && !marker.announced().Has(option.feature) {
			// What is not announced cannot come into force, and an older program can go on with the
			// directory.
			n.features.known &^= option.feature
		}
	}
	announce := n.features.known
	if mode != "raft" {
		announce = 0 // nothing is announced, and there is no log
	}
	now := Marker{Engine: n.cfg.Storage.Engine, Mode: mode, Features: announce.Names()}
	if marker == nil {
		err = n.dir.WriteMarker(now)
	} else {
		err = errors.Join(marker.check(n.cfg.DataDir, n.cfg.Storage.Engine, mode),
			marker.CheckFeatures(n.cfg.DataDir, n.features.known))
		if err == nil {
			err = n.dir.Upgrade(marker, announce)
		}
		now = *marker
	}
	n.features.begin(n.dir, now, n.logger)
	return marker, err
}

func (n *Node) startRaft(ctx, run context.Context, marker *Marker) (err error) {
	if err = n.openRaftLog(); err != nil {
		return err
	}
	if n.snaps, err = snap.Open(n.dir.Sub("snap"), n.cfg.Server.SnapshotReceiveLimit); err != nil {
		return fmt.Errorf("open snapshot directory: %w", err)
	}
	n.snaps.Pace(int64(n.cfg.Server.SnapshotRate))
	n.snaps.SetFull(n.space.full)
	if err := n.connect(ctx, marker); err != nil {
		return err
	}
	ident, joined, err := n.join(ctx)
	if err != nil {
		return err
	}
	n.ident = *ident
	if marker != nil && marker.StoreID != 0 {
		if err := marker.checkIdent(n.cfg.DataDir, ident.ClusterId, ident.StoreId); err != nil {
			return err
		}
	} else if err := n.features.identify(ident.ClusterId, ident.StoreId); err != nil {
		return err
	}
	n.trans = transport.New(transport.Options{
		Resolver: n.resolve, Snapshots: n.snaps, SnapshotLimit: n.cfg.Server.SnapshotSendLimit,
		SnapshotTimeout: n.cfg.Server.SnapshotTimeout.Duration,
		MaxMessage:      int(n.cfg.Server.GRPCMaxMessage),
		OnCorrupt:       n.noteCorrupt, Dial: n.dialer(), Logger: n.logger.Named("transport"),
	})
	n.registered.Store(joined)
	n.store = raftstore.New(raftstore.Options{
		Config: n.cfg, ClusterID: ident.ClusterId, StoreID: ident.StoreId, Engine: n.engine,
		Log:       n.raftLog,
		Snapshots: n.snaps, Transport: n.trans, Logger: n.logger,
		Placement:   placement{n.placement, &n.registered, n.fail, n.features.learn},
		Incarnation: ident.Incarnation, Run: n.run, QuarantineThrough: ident.QuarantineThrough,
		Seed: uint64(time.Now().UnixNano()) ^ ident.StoreId, Stats: n.fillStats,
		ReportNow: n.disk.alarm, DiskCritical: n.space.critical,
		Features: n.features.inForce, PlacementTime: n.placementTime,
		EncodedKeys: clustermode.Mode(ident.Mode) == clustermode.Txn,
	})
	n.trans.SetFeedback(n.store)
	n.placement.SetRegionHeartbeatHandler(n.store.HandleOperator)
	n.placement.SetReconnectHandler(n.store.HeartbeatAll)
	if err := n.store.Start(ctx); err != nil {
		return err
	}
	if !joined {
		n.wg.Add(1)
		// Owned by the node; ends in Stop.
		go func() { defer n.wg.Done(); n.joinLater(run) }()
	}
	n.wg.Add(2)
	// Both owned by the node; end in Stop.
	go func() {
		defer n.wg.Done()
		select {
		case err := <-n.store.Failed():
			n.fail(err)
		case <-run.Done():
		}
	}()
	go func() {
		defer n.wg.Done()
		if err := n.space.watch(run, n.store.SetDiskFull, n.relieve); err != nil {
			n.fail(err)
		}
	}()
	return nil
}

func (n *Node) openRaftLog() error {
	n.disk = newDiskWatch(n.cfg.Raftstore.SlowSync.Duration)
	files, err := raftLogFiles()
	if err != nil {
		return err
	}
	if n.raftLog, err = raftlog.Open(n.dir.Sub("raft"), raftlog.Options{
		FS:          vfs.AroundSync(counting{files, n.space}, n.disk.around),
		SegmentSize: int64(n.cfg.RaftLog.SegmentSize), CacheBytes: int64(n.cfg.RaftLog.Cache),
		Logger: n.logger.Named("raftlog"),
	}); err != nil {
		return fmt.Errorf("open raft log in %s: %w", n.dir.Sub("raft"), err)
	}
	return nil
}

// watchSpace makes the guard of the disk's space.
func (n *Node) watchSpace() (err error) {
	o := spaceOptions{
		reserve: uint64(n.cfg.Storage.ReserveSpace), capacity: uint64(n.cfg.Storage.Capacity),
		need: spaceNeed(n.cfg),
	}
	if n.space, err = newSpaceGuard(n.cfg.DataDir, o); err != nil {
		return err
	}
	if n.space.tooSmall() {
		total, _ := n.space.disk()
		n.logger.Warn(
			"the disk is small for this configuration: writes stop when half of it is used; "+
				"smaller storage.memtable-size and raftlog.segment-size help",
			zap.Uint64("disk-bytes", total), zap.Uint64("reserve-bytes", o.need))
	}
	return nil
}

// relieve is called now and then as long as the disk is full. Deletes bring back space only once
// they are in the engine's files, and there may be too few of them to fill a memtable.
func (n *Node) relieve() {
	f, ok := n.engine.(engine.Flusher)
	if !ok {
		return
	}
	if err := f.Flush(); err != nil {
		n.fail(fmt.Errorf("flush on a full disk: %w", err))
	}
}

// dialer makes the connections to other stores.
func (n *Node) dialer() Dialer {
	if n.identity == nil {
		return security.DialService(n.dial, nil)
	}
	return security.DialService(n.dial, n.identity.Client)
}

// secured has a listener serve TLS, if this store has a certificate.
func (n *Node) secured(l net.Listener, protocols ...string) net.Listener {
	if n.identity == nil {
		return l
	}
	return n.identity.Listen(l, n.cfg.Security.AllowPlain, protocols...)
}

func (n *Node) storeMeta() *metapb.Store {
	st := &metapb.Store{
		Address: n.cfg.AdvertiseAddr, StatusAddress: n.cfg.AdvertiseStatusAddr, Version: n.version,
		StartTimestamp: n.started.Unix(), Features: uint64(n.features.known),
		Tls:        n.identity != nil,
		AllowPlain: n.cfg.Security.AllowPlain,
	}
	// A port chosen by the system is known only now.
	if _, port, err := net.SplitHostPort(st.Address); err == nil && port == "0" {
		st.Address = n.Addr()
	}
	if n.status != nil {
		if _, port, err := net.SplitHostPort(st.StatusAddress); err == nil && port == "0" {
			st.StatusAddress = n.status.addr()
		}
	}
	for k, v := range n.cfg.Labels {
		st.Labels = append(st.Labels, &metapb.StoreLabel{Key: k, Value: v})
	}
	return st
}

func (n *Node) serve(st storage.Storage) {
	opts := server.Options(n.cfg)
	opts.OnCorrupt = n.noteCorrupt
	opts.OnSlow = (&slowRequests{logger: n.logger}).note
	n.boundConns(&opts)
	n.grpc = rpc.New(opts)
	n.grpc.SetSlowAfter(n.cfg.Server.SlowLog.Duration)
	n.adjustable()
	var raft transport.RaftHandler
	if n.store != nil {
		raft = n.store
	}
	svc := server.New(n.cfg, st, raft, n.snaps, n.logger)
	svc.SetSettings(n.live)
	if n.trans != nil {
		n.peers = n.trans.Peers()
		svc.SetPeers(n.peers)
	}
	n.service = svc
	foreign := tikv.New(n.cfg, n.ident.StoreId, st, svc.Gate())
	mode := clustermode.Mode(n.ident.Mode)
	svc.SetMode(mode)
	foreign.SetMode(mode)
	if n.transactional() {
		svc.SetSafePoints(n.safePoints())
		svc.SetTimestamps(n.timestamps())
		svc.SetDetector(n.newDetector())
	}
	foreign.SetTransactions(svc.Transactions())
	server.Register(n.grpc, svc)
	tikv.Register(n.grpc, foreign)
	n.health = health.NewServer()
	// By this name the placement service recognises the store when it calls back.
	n.health.SetServingStatus(security.StoreService(n.ident.ClusterId, n.ident.StoreId,
		n.started.Unix()),
		healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(n.grpc, n.health)
	// the placement service looks whether a store is there
	n.grpc.Internal(healthpb.Health_Check_FullMethodName)
	if err := reflect.Register(n.grpc, "tinykvpb.proto"); err != nil {
		n.logger.Warn("no gRPC reflection", zap.Error(err))
	}
	n.serving.Store(true)
	n.wg.Add(1)
	// Owned by the node; ends when Stop stops the gRPC server.
	go func() {
		defer n.wg.Done()
		if err := n.grpc.Serve(n.secured(n.listener, "h2")); err != nil &&
			!errors.Is(err, rpc.ErrStopped) {
			n.fail(fmt.Errorf("serve %s: %w", n.cfg.Addr, err))
		}
	}()
	if n.status != nil {
		n.status.start()
	}
}

// adjustable names the settings that change while the store runs, beside log.level. Each must be
// read at each use, or be swapped, by what apply calls: TestStoreSettings shows that of each.
func (n *Node) adjustable() {
	n.live.On("server.slow-log-threshold", func(c *config.Config) {
		n.grpc.SetSlowAfter(c.Server.SlowLog.Duration)
		if n.store != nil {
			n.store.Stages().SetThreshold(c.Server.SlowLog.Duration)
		}
	})
	if n.store == nil {
		return
	}
	for _, name := range []string{
		"max-store-inflight-bytes", "region-max-size", "region-split-size",
		"compare-max-bytes-per-sec",
	} {
		n.live.On("raftstore."+name, func(c *config.Config) { n.store.Adjust(&c.Raftstore) })
	}
}

func (n *Node) fail(err error) {
	select {
	case n.failed <- err:
	default:
	}
}

// Stop takes the server down: no new work, leaders handed over, requests drained, everything
// durable. Idempotent.
func (n *Node) Stop() { n.stopOnce.Do(func() { n.retreat(); n.stop() }) }

// Kill takes the server down at once: connections break, leaders are not handed over, requests are
// not answered. What was acknowledged is durable. Idempotent; for servers in the process of a test.
func (n *Node) Kill() {
	n.stopOnce.Do(func() {
		if n.grpc != nil {
			n.grpc.Stop()
		}
		n.stop()
	})
}

// retreat lets others take over before the server is taken down.
func (n *Node) retreat() {
	timeout := n.cfg.Server.ShutdownTimeout.Duration
	if n.health != nil {
		n.health.Shutdown()
	}
	if n.store != nil {
		ctx, cancel := context.WithTimeout(context.Background(), timeout/2)
		n.store.TransferLeaders(ctx)
		cancel()
	}
	if n.grpc != nil {
		drained := make(chan struct{})
		// Ends when the server has stopped, at the latest by the hard stop below.
		go func() { n.grpc.GracefulStop(); close(drained) }()
		select {
		case <-drained:
		case <-time.After(min(timeout/2, time.Second)):
			n.grpc.Stop() // streams of other stores never end by themselves
			<-drained
		}
	}
}

func (n *Node) stop() {
	if n.grpc == nil && n.listener != nil {
		_ = n.listener.Close()
	}
	if n.cancel != nil {
		n.cancel()
	}
	if n.store != nil {
		n.store.Stop()
	}
	if n.peers != nil {
		n.peers.Close()
	}
	if n.trans != nil {
		n.trans.Stop()
	}
	if n.deadlocks != nil {
		n.deadlocks.kv.Close()
	}
	if n.placement != nil {
		n.placement.Close()
	}
	n.wg.Wait()
	if n.raftLog != nil {
		if err := n.raftLog.Close(); err != nil {
			n.logger.Error("closing raft log failed", zap.Error(err))
		}
	}
	if n.engine != nil {
		if err := n.engine.Close(); err != nil {
			n.logger.Error("closing engine failed", zap.Error(err))
		}
	}
	if n.status != nil {
		n.status.stop()
	}
	if n.dir != nil {
		_ = n.dir.Close()
	}
}

// placementService is what of the client is adapted.
type placementService interface {
	AskSplit(ctx context.Context, region *metapb.Region) (*schedulerpb.AskSplitResponse, error)
	ReportSplit(ctx context.Context, left, right *metapb.Region) error
	RegionHeartbeat(req *schedulerpb.RegionHeartbeatRequest)
	Heartbeat(ctx context.Context, stats *schedulerpb.StoreStats) (feature.Set, error)
	GetRegionByID(ctx context.Context, id uint64) (*client.Region, error)
}

// placement adapts the client to what the raftstore needs.
type placement struct {
	placementService
	// registered is true once the placement service knows this run.
	registered *atomic.Bool
	fail       func(error)
	learn      func(feature.Set) // what is in force
}

// StoreHeartbeat ends the store if another run of it has taken its place. Before this run is
// registered, which a start without the placement service puts off, the run that the service knows
// is the one before: registering decides then.
func (p placement) StoreHeartbeat(ctx context.Context, stats *schedulerpb.StoreStats) error {
	// before the call: an answer may be older than the registration
	registered := p.registered.Load()
	inForce, err := p.Heartbeat(ctx, stats)
	if err == nil {
		p.learn(inForce)
	}
	if registered && errors.Is(err, client.ErrDuplicateStore) {
		p.fail(fmt.Errorf("this run of the store has been replaced: %w", err))
	}
	return err
}

func (p placement) RegionByID(ctx context.Context, id uint64) (*metapb.Region, error) {
	r, err := p.GetRegionByID(ctx, id)
	if err != nil || r == nil {
		return nil, err
	}
	return r.Meta, nil
}

func (n *Node) fillStats(st *schedulerpb.StoreStats) {
	capacity, free := n.space.disk()
	used, err := n.engine.DiskUsage()
	if err != nil {
		n.logger.Warn("measuring the engine failed", zap.Error(err))
	}
	st.Capacity, st.Available, st.UsedSize = capacity, free, used
	st.IsSlow = n.disk.slow()
	takes, hangs := n.disk.stats()
	st.SyncMicros, st.SyncHangsMicros = uint64(takes.Microseconds()), uint64(hangs.Microseconds())
	if n.serving.Load() {
		st.ReadClasses, st.WriteClasses = requestClasses(n.grpc)
	}
}

// noteCorrupt reports a message that was damaged on its way. Its connection ends, and what was
// under way on it is sent again, so there is at most one line for each connection.
func (n *Node) noteCorrupt(remote net.Addr, method string) {
	n.corrupt.Add(1)
	n.logger.Error("dropped message that was damaged on its way, closing its connection",
		zap.Stringer("from", remote), zap.String("method", method))
}

// plainNetError strips the repetition of the address from a listen error.
func plainNetError(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return fmt.Errorf("%w; choose another address or stop what uses it", op.Err)
	}
	return err
}

// spreadSize takes up to a quarter off a memtable's size, at random: replicas write the same data,
// and stores with memtables of one size would all flush and compact at the same moments, with no
// quorum left that is quick.
func spreadSize(size int64) int64 { return size - rand.Int64N(size/4+1) }
