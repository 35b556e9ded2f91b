package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/reflect"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/id"
	"github.com/tinykv/tinykv/scheduler/server/member"
	"github.com/tinykv/tinykv/scheduler/server/pdface"
	"github.com/tinykv/tinykv/scheduler/server/storage"
	"github.com/tinykv/tinykv/scheduler/server/tso"
)

const (
	requestTimeout = 5 * time.Second
	reclaimTimeout = 5 * time.Minute // defragmenting reads and writes all there is
)

// Server is one member of the placement service.
//
// Life: New checks the configuration and starts nothing; Start returns when the member serves;
// Stop is idempotent and returns when every goroutine has ended.
type Server struct {
	cfg    *config.Config
	logger *zap.Logger
	node   backend
	front  *front
	guard  *security.Guard
	// callbacks find out whether stores are where they say.
	callbacks *callbacks
	storage   storage.Storage
	keys      storage.Keys
	elector   *member.Elector
	cluster   *RaftCluster
	ids       *id.Allocator
	tso       *tso.Oracle
	streams   *hbStreams
	drains    drains
	forward   *forwarder
	metrics   *metrics
	health    *healthKeeper
	feed      changeFeed
	// transport carries requests to the leader on followers.
	transport *http.Transport
	identity  *security.Identity // nil without TLS
	logLevel  *zap.AtomicLevel

	clusterID uint64
	self      *schedulerpb.Member
	ready     chan struct{} // closed when Start has set everything up
	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	failed    chan error
	bodies    atomic.Uint64 // over HTTP, that were too large or did not come

	leaderMu struct {
		sync.RWMutex
		serving      *member.Leadership // set once a new leader is ready to answer
		ctx          context.Context    // ends with the leadership
		bootstrapped bool
		bootstrapper uint64
		meta         *metapb.Cluster
	}
	// recalled is what the leader before knew: set by load, used when this member takes over.
	recalled memory
	// memoryMu holds back a save while another one is written; saved is the last one.
	memoryMu sync.Mutex
	saved    memory
	// holdsMu makes read-change-write of the merge holds atomic; it is held over the write.
	holdsMu  sync.Mutex
	stopOnce sync.Once
}

// New returns a server that is not started.
func New(cfg *config.Config, logger *zap.Logger) (*Server, error) {
	if err := cfg.Adjust(); err != nil {
		return nil, err
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if logger == nil {
		logger = zap.NewNop()
	}
	s := &Server{cfg: cfg, logger: logger, ready: make(chan struct{}), failed: make(chan error, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.streams = newHBStreams(func() uint64 { return s.clusterID }, logger)
	var err error
	if s.identity, err = memberIdentity(cfg.Security); err != nil {
		return nil, err
	}
	s.guard, s.callbacks = newGuard(cfg), newCallbacks(s)
	s.forward, s.transport = newForwarder(s), transportOf(s.identity)
	s.cluster = NewRaftCluster(ClusterOptions{
		Settings: settingsOf(cfg), Now: time.Now, Seed: uint64(time.Now().UnixNano()),
		Sender: s.streams, AllocID: s.allocPeerID, Logger: logger, VerifyStores: cfg.VerifyStores,
		Mode: func() string { return modeOf(s) },
	})
	s.cluster.onChange = s.feed.changed
	s.metrics, s.health = newMetrics(s), &healthKeeper{s: s}
	return s, nil
}

// Start brings the member up and returns when it serves requests. A single member, or a majority,
// elects a leader right afterwards.
func (s *Server) Start(ctx context.Context) error {
	if open := s.cfg.InTheClear(); len(open) > 0 {
		s.logger.Warn(
			"other machines are served without TLS, as --insecure allows: anyone who reaches these addresses can read "+
				"and change the cluster", zap.Strings("addresses", open))
	}
	if s.cfg.EnableGRPCGateway {
		s.logger.Warn("enable-grpc-gateway has no effect: etcd's gateway is not served")
	}
	if err := s.startBackend(ctx); err != nil {
		return err
	}
	s.front.serve(s.api(), s.register, s.grpcOptions())
	if err := s.setUp(ctx); err != nil {
		s.Stop()
		return err
	}
	for _, run := range []func(){
		func() { s.elector.Run(s.ctx, s.lead) },
		s.watchNode,
		func() { s.follow(s.ctx, syncPath, s.readRegions) },
		func() { s.follow(s.ctx, eventsPath, s.readEvents) },
		func() { s.keepSnapshots(s.ctx) },
	} {
		s.wg.Add(1)
		go func() { // all of them end with s.ctx; Stop waits
			defer s.wg.Done()
			run()
		}()
	}
	close(s.ready)
	s.logger.Info("serving", log.ClusterID(s.clusterID), zap.String("name", s.cfg.Name),
		zap.String("client-address", s.ClientAddr()))
	return nil
}

// startBackend takes the client port, so that a wrong address is found before anything is done, and
// starts what keeps the hard state.
func (s *Server) startBackend(ctx context.Context) error {
	f, err := listenFront(ctx, s.cfg)
	if err != nil {
		return err
	}
	if f.id != nil {
		f.id.OnRefused(func(remote string, err error) {
			s.logger.Warn("refused a connection to the client port", zap.String("remote", remote),
				zap.Error(err))
		})
	}
	addr := f.addr().String()
	if s.cfg.Storage.Backend == "embedded" {
		var n *node
		if n, err = startNode(ctx, s.cfg, s.logger, addr); err == nil {
			s.node = n
		}
	} else {
		var e *external
		if e, err = startExternal(ctx, s.cfg, s.logger, addr); err == nil {
			s.node = e
		}
	}
	if err != nil {
		f.stop()
		return err
	}
	s.front = f
	return nil
}

func (s *Server) setUp(ctx context.Context) error {
	s.storage = s.node.store()
	if s.cfg.Recover != "" {
		if err := s.takeOverCluster(ctx); err != nil {
			return fmt.Errorf("--recover %s: %w", s.cfg.Recover, err)
		}
	}
	clusterID, err := initClusterID(ctx, s.storage)
	if err != nil {
		return err
	}
	if err := s.node.directory().claim(clusterID); err != nil {
		return err
	}
	s.clusterID = clusterID
	s.keys = storage.KeysOf(clusterID)
	s.self = s.node.self()
	if err := s.node.ready(ctx, s.keys); err != nil {
		return fmt.Errorf("register member: %w", err)
	}
	s.loadSnapshot()
	s.ids = id.New(s.storage, s.keys.AllocID(), s.fence)
	s.tso = tso.New(s.storage, s.keys.Timestamp(), s.cfg.TSOSaveInterval.D(), time.Now)
	s.elector = member.New(s.storage, member.Options{
		Self: s.self, Keys: s.keys, TTL: s.cfg.TTL(), Logger: s.logger, Eligible: s.node.isVoter,
	})
	return nil
}

// initClusterID reads the cluster's id or makes it; the first of several members wins.
func initClusterID(ctx context.Context, st storage.Storage) (uint64, error) {
	for {
		kv, err := st.Get(ctx, storage.ClusterIDKey)
		if err == nil && kv.ModRevision != 0 {
			return storage.ParseUint64(kv.Value)
		}
		if err == nil {
			var r [4]byte
			_, _ = rand.Read(r[:])
			clusterID := uint64(time.Now().Unix())<<32 + uint64(binary.BigEndian.Uint32(r[:]))
			_, err = st.Txn(ctx, []storage.Cond{storage.RevisionIs(storage.ClusterIDKey, 0)},
				[]storage.Op{storage.Put(storage.ClusterIDKey, storage.Uint64(clusterID))})
			if err == nil {
				return clusterID, nil
			}
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("read the cluster id: %w", err)
		}
		if !errors.Is(err, storage.ErrConflict) {
			select { // no quorum yet
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// watchNode notices that the backend ended by itself.
func (s *Server) watchNode() {
	select {
	case <-s.ctx.Done():
	case err := <-s.node.failed():
		s.fail(err)
	case err := <-s.front.failed:
		s.fail(err)
	}
}

func (s *Server) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// Failed delivers the error that made this member unable to go on.
func (s *Server) Failed() <-chan error { return s.failed }

// Stop hands the leadership over and ends everything.
func (s *Server) Stop() {
	s.stopOnce.Do(func() {
		led := s.IsLeader()
		if s.node != nil {
			s.node.handOver() // first, so that the next placement leader finds a steady quorum
		}
		s.cancel()
		s.wg.Wait() // the elector releases the title on the way out
		if led && len(s.members()) > 1 {
			s.linger()
		}
		s.forward.close()
		if s.front != nil {
			s.front.stop()
		}
		if s.node != nil {
			s.node.close()
		}
	})
}

// linger keeps this member's vote in the quorum until another one has taken over and had time to
// read what it needs, or until that takes too long: yet another member may be down or behind.
func (s *Server) linger() {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.TTL()/2)
	defer cancel()
	for {
		kv, err := s.storage.Get(ctx, s.keys.Leader())
		next := &schedulerpb.Member{}
		if err == nil && next.Unmarshal(kv.Value) == nil && next.MemberId != 0 &&
			next.MemberId != s.self.MemberId {
			break
		}
		if !sleep(ctx, 5*time.Millisecond) {
			return
		}
	}
	sleep(ctx, s.cfg.TTL()/10)
}

// sleep returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// ClientAddr is host:port where this member serves.
func (s *Server) ClientAddr() string { return s.front.addr().String() }

// ClientURL is ClientAddr with a scheme.
func (s *Server) ClientURL() string { return s.scheme() + s.ClientAddr() }

// ClusterID returns the cluster's id.
func (s *Server) ClusterID() uint64 { return s.clusterID }

// Cluster returns the soft state.
func (s *Server) Cluster() *RaftCluster { return s.cluster }

// IsLeader tells whether this member leads and serves.
func (s *Server) IsLeader() bool { return s.leadership() != nil }

// Resign gives the leadership up.
func (s *Server) Resign() { s.elector.Resign("") }

// WaitLeader returns when some member leads, this one included.
func (s *Server) WaitLeader(ctx context.Context) error {
	for {
		m, changed := s.elector.Leader()
		if m != nil && (m.MemberId != s.self.MemberId || s.IsLeader()) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-time.After(20 * time.Millisecond): // becoming ready is not signaled
		}
	}
}

// leadership returns the valid leadership under which requests are answered, or nil.
func (s *Server) leadership() *member.Leadership {
	s.leaderMu.RLock()
	l := s.leaderMu.serving
	s.leaderMu.RUnlock()
	if l == nil || !l.Valid() {
		return nil
	}
	return l
}

// leaderContext ends when this member stops leading.
func (s *Server) leaderContext() context.Context {
	s.leaderMu.RLock()
	defer s.leaderMu.RUnlock()
	return s.leaderMu.ctx
}

func (s *Server) fence() (storage.Cond, uint64, bool) {
	l := s.leadership()
	if l == nil {
		return storage.Cond{}, 0, false
	}
	return l.Fence(), l.Term, true
}

// write carries out ops under the leadership's fence.
func (s *Server) write(ctx context.Context, ops ...storage.Op) error {
	fence, _, ok := s.fence()
	if !ok {
		return errNotLeader
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := s.storage.Txn(ctx, []storage.Cond{fence}, ops)
	if errors.Is(err, storage.ErrConflict) {
		return errNotLeader
	}
	return err
}

func (s *Server) allocPeerID() (uint64, error) {
	ctx, cancel := context.WithTimeout(s.ctx, requestTimeout)
	defer cancel()
	return s.ids.Alloc(ctx)
}

// lead is one term as the leader: timestamps and stores, then serving, then planning.
func (s *Server) lead(ctx context.Context, l *member.Leadership) error {
	began := time.Now()
	defer s.tso.Stop()
	oracle := make(chan error, 1)
	go func() { // waited for below
		oracle <- s.persist(ctx, func(ctx context.Context) error {
			return s.tso.Start(ctx, l.Fence())
		})
	}()
	err := s.persist(ctx, s.load)
	if err != nil {
		err = fmt.Errorf("load cluster: %w", err)
	}
	if started := <-oracle; started != nil {
		err = errors.Join(err, fmt.Errorf("start timestamps: %w", started))
	}
	if err != nil {
		return err
	}
	s.cluster.TakeOver()
	s.recallMemory()
	s.health.begin()
	s.callbacks.begin(ctx)
	defer s.callbacks.end()
	s.setServing(ctx, l)
	defer s.endServing()
	s.cluster.events.add("leader-changed", fmt.Sprintf("%s leads in term %d", s.cfg.Name, l.Term))
	s.logger.Info("leading", log.Term(l.Term), zap.Duration("took", time.Since(began)))

	var wg sync.WaitGroup
	defer wg.Wait()
	for _, run := range []func(context.Context){
		s.cluster.Run, s.keepMemory, s.watchMembers, s.watchHealth, s.cluster.keepHistory,
	} {
		wg.Add(1)
		go func() { // ends with ctx
			defer wg.Done()
			run(ctx)
		}()
	}
	return s.leaderLoop(ctx, l)
}

// persist repeats a step until it succeeds, with a short limit for each try: a request that was on
// its way to an etcd leader that died is never answered.
func (s *Server) persist(ctx context.Context, step func(context.Context) error) error {
	for {
		try, cancel := context.WithTimeout(ctx, s.cfg.TTL()/3)
		err := step(try)
		cancel()
		if err == nil || ctx.Err() != nil || errors.Is(err, tso.ErrNotLeader) ||
			errors.Is(err, storage.ErrConflict) {
			return err
		}
		s.logger.Warn("taking over: trying again", zap.Error(err))
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *Server) setServing(ctx context.Context, l *member.Leadership) {
	s.leaderMu.Lock()
	defer s.leaderMu.Unlock()
	s.leaderMu.serving, s.leaderMu.ctx = l, ctx
}

func (s *Server) endServing() {
	s.leaderMu.Lock()
	defer s.leaderMu.Unlock()
	s.leaderMu.serving, s.leaderMu.ctx = nil, nil
}

// leaderLoop does what a leader does every now and then.
func (s *Server) leaderLoop(ctx context.Context, l *member.Leadership) error {
	// A third of the window, as Extend saves it; with the default both tickers fire as one.
	extend := time.NewTicker(max(s.cfg.TSOSaveInterval.D()/3, 20*time.Millisecond))
	defer extend.Stop()
	stores := time.NewTicker(storeCheckInterval)
	defer stores.Stop()
	var watch storeWatch
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-extend.C:
			if err := s.tso.Extend(ctx, l.Fence()); errors.Is(err, tso.ErrNotLeader) {
				return err
			} else if err != nil && ctx.Err() == nil {
				s.logger.Warn("saving the timestamp bound failed", zap.Error(err))
			}
		case <-stores.C:
			s.checkStores(ctx)
			s.endEvictions(ctx)
			s.drains.note(time.Now(), s.cluster.Core().Stores())
			watch.look(s)
			s.promoteLearners(ctx)
		}
	}
}

// hardState is everything in the storage, by key. It is a few KB, so that a new leader reads it at
// once: key after key would be as many round trips, for which clients wait.
type hardState map[string][]byte

// load reads the hard state of the cluster.
func (s *Server) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	kvs, err := s.storage.Range(ctx, s.keys.All())
	if err != nil {
		return err
	}
	d := make(hardState, len(kvs))
	for _, kv := range kvs {
		d[kv.Key] = kv.Value
	}
	if err := s.loadSettings(d); err != nil {
		return err
	}
	var meta *metapb.Cluster
	var bootstrapper uint64
	if value, ok := d[s.keys.Cluster()]; ok {
		meta = &metapb.Cluster{}
		if err := meta.Unmarshal(value); err != nil {
			return fmt.Errorf("decode cluster: %w", err)
		}
		if value, ok := d[s.keys.BootstrapStore()]; ok {
			if bootstrapper, err = storage.ParseUint64(value); err != nil {
				return fmt.Errorf("decode bootstrap store: %w", err)
			}
		}
		if meta.MaxPeerCount > 0 {
			s.applyMaxReplicas(int(meta.MaxPeerCount))
		}
	}
	stores, err := s.loadStores(d)
	if err != nil {
		return err
	}
	if err := s.loadFeatures(d); err != nil {
		return err
	}
	loadHolds(s, d)
	s.recalled = s.loadMemory(d)
	s.cluster.SetStores(stores)
	s.leaderMu.Lock()
	defer s.leaderMu.Unlock()
	s.leaderMu.meta, s.leaderMu.bootstrapped, s.leaderMu.bootstrapper = meta, meta != nil,
		bootstrapper
	return nil
}

func (s *Server) loadStores(d hardState) ([]*core.StoreInfo, error) {
	settings, err := d.storeSettings(s.keys)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	var out []*core.StoreInfo
	for key, value := range d {
		if !strings.HasPrefix(key, s.keys.Stores()) {
			continue
		}
		m := &metapb.Store{}
		if err := m.Unmarshal(value); err != nil {
			return nil, fmt.Errorf("decode store %s: %w", key, err)
		}
		st := core.NewStore(m, now)
		if old := s.cluster.Core().Store(m.Id); old != nil {
			st = old.Clone(core.WithMeta(m)) // keep what heartbeats told before
		}
		out = append(out, settings[m.Id].apply(st))
	}
	return out, nil
}

func (s *Server) applyMaxReplicas(n int) {
	set := *s.cluster.Settings()
	set.Replication.MaxReplicas = n
	s.cluster.SetSettings(&set)
}

func (s *Server) bootstrapped() (bool, uint64) {
	s.leaderMu.RLock()
	defer s.leaderMu.RUnlock()
	return s.leaderMu.bootstrapped, s.leaderMu.bootstrapper
}

func (s *Server) register(gs *grpc.Server) {
	v := &service{s: s}
	schedulerpb.RegisterSchedulerServer(gs, v)
	pdface.Register(gs, pdface.New(v, pdBackend{v}))
	s.registerEtcd(gs)
	if err := reflect.Register(gs, "schedulerpb.proto"); err != nil {
		s.logger.Warn("no gRPC reflection", zap.Error(err))
	}
}

// Name returns the member's name.
func (s *Server) Name() string { return s.cfg.Name }

func firstURL(urls []string) string {
	if len(urls) == 0 {
		return ""
	}
	u := urls[0]
	if i := strings.Index(u, "://"); i >= 0 {
		u = u[i+3:]
	}
	return u
}

// SetLogLevel lets the log level be changed while the server runs.
func (s *Server) SetLogLevel(l zap.AtomicLevel) { s.logLevel = &l }
