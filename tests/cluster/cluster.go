// Package cluster runs several stores in one process over engines and raft logs in memory that can
// lose what was not synced, a network that can fail, and a placement service that follows the
// test's orders. The stores themselves are the real ones. For tests only.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/enginefault"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/node"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/kv/server"
	"github.com/tinykv/tinykv/kv/storage/raftstorage"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// ClusterID is the id of every test cluster.
const ClusterID = 4711

// FirstRegionID is the region that a cluster begins with.
const FirstRegionID = 1

// Options shape a cluster.
type Options struct {
	Stores int // default 5
	// Replicas is how many of the stores have the first region; default all.
	Replicas int
	Seed     uint64
	// Tune changes the configuration, which begins as TestConfig.
	Tune func(*config.Config)
	// Txn makes a cluster of transactions.
	Txn bool
	// Verbose logs what the stores log.
	Verbose bool
	// LogSegment is the size of the raft log's segments, default 1 MiB.
	LogSegment int64
	// Controllers see the operations of a store's raft log and engine.
	Controllers map[uint64]*faultfs.Controller
	// Images are the disks to begin with, instead of a first region; FirstID is the last id that
	// was given out before they were taken.
	Images  map[uint64]Image
	FirstID uint64
	// Failed is called, on a goroutine of its own, when a store has failed; without it the test
	// fails.
	Failed func(n *Node, err error)
	// Clock makes the clock of a store; without it all have the process's.
	Clock func(store uint64) raftstore.Clock
	// PlacementTime is the placement service's time, which limits that of stores; nil: there is no
	// limit.
	PlacementTime func(ctx context.Context) (time.Time, error)
	// Inspect sees the disks of each store before it starts.
	Inspect func(n *Node, log *raftlog.Log)
}

// TestConfig makes everything fast and small.
func TestConfig() *config.Config {
	c := config.Default()
	r := &c.Raftstore
	r.TickInterval = config.Dur(10 * time.Millisecond)
	r.HeartbeatTicks, r.ElectionTicks = 2, 10
	r.HibernateAfter = config.Dur(50 * time.Millisecond) // regions sleep and wake all the time
	r.RaftWorkers, r.ApplyWorkers = 2, 2
	r.LogGCInterval, r.LogGCKeep = config.Dur(50*time.Millisecond), config.Dur(time.Second)
	r.SplitCheckInterval = config.Dur(50 * time.Millisecond)
	r.RegionHeartbeatInterval = config.Dur(50 * time.Millisecond)
	r.StoreHeartbeatInterval = config.Dur(200 * time.Millisecond)
	r.StalePeerCheck = config.Dur(500 * time.Millisecond)
	r.SnapshotGCInterval = config.Dur(time.Second)
	r.ExpirySweep = config.Dur(100 * time.Millisecond)
	c.Server.RequestTimeout = config.Dur(5 * time.Second)
	return c
}

// Cluster is a running set of stores.
type Cluster struct {
	t         testing.TB
	cfg       *config.Config
	opts      Options
	Net       *Network
	Placement *Placement
	logger    *zap.Logger
	dir       string

	mu    sync.Mutex
	rng   *rand.Rand
	nodes map[uint64]*Node
}

// Node is one store; it survives Stop and Crash through its disks.
type Node struct {
	ID  uint64
	c   *Cluster
	dir string
	ctl *faultfs.Controller // nil: nobody watches

	mu      sync.Mutex
	engine  *memengine.Engine
	fs      *faultfs.MemFS
	log     *raftlog.Log
	snaps   *snap.Manager
	store   *raftstore.Store
	server  *server.Server
	running bool
	// life counts starts: what a store that has crashed still says does not count.
	life atomic.Int64
}

// New starts a cluster whose first region has its replicas in place already. Everything ends with
// the test.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Stores == 0 {
		o.Stores = 5
	}
	if o.Replicas == 0 {
		o.Replicas = o.Stores
	}
	if o.LogSegment == 0 {
		o.LogSegment = 1 << 20
	}
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano())
	}
	t.Logf("cluster seed %d", o.Seed)
	c := &Cluster{
		t: t, cfg: TestConfig(), opts: o, dir: t.TempDir(), nodes: map[uint64]*Node{},
		logger: zap.NewNop(),
	}
	if o.Verbose {
		c.logger = zaptest.NewLogger(t)
	}
	if o.Tune != nil {
		o.Tune(c.cfg)
	}
	require.NoError(t, c.cfg.Validate())
	c.rng = rand.New(rand.NewPCG(o.Seed, 1))
	c.Net = newNetwork(c, o.Seed)
	c.Placement = newPlacement(c.node)
	c.Placement.nextID = max(c.Placement.nextID, o.FirstID)
	var peers []*metapb.Peer
	for id := uint64(1); id <= uint64(o.Replicas); id++ {
		peers = append(peers, &metapb.Peer{Id: id, StoreId: id})
	}
	for id := uint64(1); id <= uint64(o.Stores); id++ {
		n := c.newNode(id)
		require.NoError(t, n.open())
		if o.Inspect != nil {
			o.Inspect(n, n.log)
		}
		if id <= uint64(o.Replicas) && o.Images == nil {
			st := node.FirstRegion(FirstRegionID, peers[id-1])
			st.Region.Peers = peers
			require.NoError(t, node.WriteFirstRegion(n.engine, n.log, st, false))
		}
	}
	t.Cleanup(c.stop)
	for _, n := range c.Nodes() {
		require.NoError(t, n.start())
	}
	return c
}

func (c *Cluster) newNode(id uint64) *Node {
	n := &Node{ID: id, c: c, dir: filepath.Join(c.dir, fmt.Sprint(id)), ctl: c.opts.Controllers[id]}
	if im, ok := c.opts.Images[id]; ok {
		n.engine, n.fs = im.Engine, im.FS
		require.NoError(c.t, im.writeSnapshots(n.dir))
	} else {
		n.engine, n.fs = memengine.New(), faultfs.NewMemFS(n.ctl)
	}
	c.mu.Lock()
	c.nodes[id] = n
	c.mu.Unlock()
	return n
}

func (c *Cluster) node(id uint64) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id]
}

// ElectionTimeout is the smallest election timeout of the stores.
func (c *Cluster) ElectionTimeout() time.Duration { return c.cfg.Raftstore.ElectionTimeout() }

// Node returns a store by id.
func (c *Cluster) Node(id uint64) *Node { return c.node(id) }

// Nodes returns all stores by id.
func (c *Cluster) Nodes() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*Node
	for id := uint64(1); len(out) < len(c.nodes); id++ {
		if n := c.nodes[id]; n != nil {
			out = append(out, n)
		}
	}
	return out
}

func (c *Cluster) stop() {
	for _, n := range c.Nodes() {
		n.Stop()
	}
	c.Net.close()
}

func (c *Cluster) handleRaft(to uint64, m *rspb.RaftMessage) error {
	n := c.node(to)
	if n == nil {
		return errors.New("no such store")
	}
	s := n.Store()
	if s == nil {
		return errors.New("store is down")
	}
	return s.HandleRaft(m)
}

// open opens the disks.
func (n *Node) open() error {
	log, err := raftlog.Open("raft",
		raftlog.Options{
			SegmentSize: n.c.opts.LogSegment, CacheBytes: 1 << 20, FS: n.fs, Logger: n.c.logger,
		})
	if err != nil {
		return fmt.Errorf("store %d: %w", n.ID, err)
	}
	n.log = log
	n.snaps, err = snap.Open(n.dir, 8)
	return err
}

func (n *Node) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.c
	var eng engine.Engine = n.engine
	if n.ctl != nil {
		eng = enginefault.Wrap(eng, n.ctl)
	}
	var clock raftstore.Clock
	if c.opts.Clock != nil {
		clock = c.opts.Clock(n.ID)
	}
	n.store = raftstore.New(raftstore.Options{
		Clock:  clock,
		Config: c.cfg, ClusterID: ClusterID, StoreID: n.ID, Engine: eng, Log: n.log,
		Snapshots: n.snaps,
		Transport: &endpoint{c.Net, n, n.life.Load()}, Placement: c.Placement, Logger: c.logger,
		Seed:        c.opts.Seed + n.ID,
		EncodedKeys: c.opts.Txn, PlacementTime: c.opts.PlacementTime,
	})
	st := raftstorage.New(n.store, eng, c.cfg.Server.RequestTimeout.Duration)
	n.server = server.New(c.cfg, st, n.store, n.snaps, c.logger)
	n.server.SetPeers(peersOf{c})
	if c.opts.Txn {
		n.server.SetMode(clustermode.Txn)
		n.server.SetSafePoints(c.Placement.safePoints())
		n.server.SetTimestamps(c.Placement.timestamps())
		n.server.SetDetector(detector{c})
	}
	if err := n.store.Start(context.Background()); err != nil {
		return fmt.Errorf("store %d: %w", n.ID, err)
	}
	n.running = true
	failed, id := n.store.Failed(), n.ID
	store := n.store
	// Ends with the store.
	go func() {
		<-store.Done()
		select {
		case err := <-failed:
			n.mu.Lock()
			current := n.store == store && n.running
			n.mu.Unlock()
			switch {
			case !current:
			case c.opts.Failed != nil:
				c.opts.Failed(n, err)
			default:
				c.t.Errorf("store %d failed: %v", id, err)
			}
		default:
		}
	}()
	return nil
}

// Store is the running store, nil while it is down.
func (n *Node) Store() *raftstore.Store {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.running {
		return nil
	}
	return n.store
}

// Server is the running store's service.
func (n *Node) Server() *server.Server {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.server
}

// Engine is the store's engine.
func (n *Node) Engine() *memengine.Engine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.engine
}

// Log is the store's raft log, for a look at it while the store runs.
func (n *Node) Log() *raftlog.Log {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.log
}

func (n *Node) snapshots() *snap.Manager {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.snaps
}

func (n *Node) reportSnapshot(region, peer uint64, ok bool) {
	if s := n.Store(); s != nil {
		s.ReportSnapshot(region, peer, ok)
	}
}

func (n *Node) handleOperator(resp *schedulerpb.RegionHeartbeatResponse) {
	if s := n.Store(); s != nil {
		s.HandleOperator(resp)
	}
}

// Stop ends the store in good order.
func (n *Node) Stop() {
	n.mu.Lock()
	if !n.running {
		n.mu.Unlock()
		return
	}
	n.running = false
	store := n.store
	n.mu.Unlock()
	store.Stop()
	if err := n.log.Close(); err != nil {
		n.c.t.Errorf("store %d: %v", n.ID, err)
	}
}

// Crash ends the store at once: what was not synced may be lost, of the engine and of the raft log
// each for itself.
func (n *Node) Crash(loss faultfs.Loss) {
	n.mu.Lock()
	if !n.running {
		n.mu.Unlock()
		return
	}
	n.running = false
	store := n.store
	// From now on nothing that the dying store sends or answers gets out ...
	n.life.Add(1)
	// ... so nobody learns of what it still writes. The disks as they are at this moment:
	n.c.mu.Lock()
	engineRng := rand.New(rand.NewPCG(n.c.rng.Uint64(), 1))
	n.c.mu.Unlock()
	// All as of one moment: what the engine has applied is in the raft log, and what the raft log
	// has dropped is synced in the engine. While the engine stands still the raft log may run
	// ahead, which is as good as an engine that is late.
	var fs *faultfs.MemFS
	var dir string
	eng := n.engine.CrashWith(loss, engineRng, func() {
		fs = n.fs.Crash(loss, engineRng, n.ctl)
		dir = n.keepSnapshots()
	})
	n.c.t.Logf("crash of store %d, loss %d", n.ID, loss)
	n.mu.Unlock()
	store.Stop()
	_ = n.log.Close()
	n.mu.Lock()
	n.fs, n.engine, n.dir = fs, eng, dir
	n.mu.Unlock()
}

// keepSnapshots returns a directory with the files of raft snapshots as they are: the dying store
// may delete what it has installed, in an engine that nobody will see.
func (n *Node) keepSnapshots() string {
	dir := filepath.Join(n.c.dir, fmt.Sprintf("%d.%d", n.ID, n.life.Load()))
	err := os.Mkdir(dir, 0o700)
	files, lerr := os.ReadDir(n.dir)
	for _, f := range files {
		// It may be gone by now; then it was not needed at this moment either.
		if e := os.Link(filepath.Join(n.dir, f.Name()), filepath.Join(dir, f.Name())); !errors.Is(e,
			os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if err = errors.Join(err, lerr); err != nil {
		n.c.t.Errorf("store %d: snapshots: %v", n.ID, err)
	}
	return dir
}

// Restart starts a store that is down. A failure fails the test, but does not end it: it may be
// called by any goroutine.
func (n *Node) Restart() {
	if err := n.TryRestart(); err != nil {
		n.c.t.Errorf("restart: %v", err)
	}
}

// TryRestart starts a store that is down, if its disks allow it.
func (n *Node) TryRestart() error {
	n.mu.Lock()
	running := n.running
	var err error
	if !running {
		err = n.open()
	}
	n.mu.Unlock()
	if running || err != nil {
		return err
	}
	if err = n.start(); err != nil {
		return errors.Join(err, n.log.Close())
	}
	return nil
}

// Client returns a client of the cluster with the default options, but for how long it waits.
func (c *Cluster) Client() *client.Client { return c.client(false) }

// ClientOnce returns a client that does not send writes of unknown outcome again.
func (c *Cluster) ClientOnce() *client.Client { return c.client(true) }

// ClientCutOff returns a client that cannot reach the stores that cut names.
func (c *Cluster) ClientCutOff(cut func(store uint64) bool) *client.Client {
	return client.New(c.Placement, client.Options{
		Timeout: 10 * time.Second, AttemptTimeout: time.Second,
		Dial: func(_ context.Context, storeID uint64) (tinykvpb.TinyKvClient, error) {
			if cut(storeID) {
				return &stub{c: c}, nil // of no store
			}
			return &stub{c: c, id: storeID}, nil
		},
	})
}

// peersOf lets a store pass requests on to the others.
type peersOf struct{ c *Cluster }

func (p peersOf) Peer(_ context.Context, storeID uint64) (tinykvpb.TinyKvClient, error) {
	return &stub{c: p.c, id: storeID}, nil
}

func (c *Cluster) client(once bool) *client.Client {
	return client.New(c.Placement, client.Options{
		Timeout: 10 * time.Second, AttemptTimeout: time.Second, NoRetryUnknown: once,
		Dial: func(_ context.Context, storeID uint64) (tinykvpb.TinyKvClient, error) {
			return &stub{c: c, id: storeID}, nil
		},
	})
}

// ClientThrough returns a client whose requests go through what wrap makes of the stores' services.
func (c *Cluster) ClientThrough(
	wrap func(tinykvpb.TinyKvClient) tinykvpb.TinyKvClient,
) *client.Client {
	return client.New(c.Placement, client.Options{
		Timeout: 10 * time.Second, AttemptTimeout: time.Second,
		Dial: func(_ context.Context, storeID uint64) (tinykvpb.TinyKvClient, error) {
			return wrap(&stub{c: c, id: storeID}), nil
		},
	})
}

// stub calls a store's service in process.
type stub struct {
	tinykvpb.TinyKvClient
	c  *Cluster
	id uint64
}

// call runs a request against the store, unless it is down; an answer of a store that has crashed
// meanwhile is lost.
func call[Req, Resp any](
	ctx context.Context, s *stub, in Req,
	do func(*server.Server, context.Context, Req) (Resp, error),
) (Resp, error) {
	var none Resp
	n := s.c.node(s.id)
	if n == nil {
		return none, status.Error(codes.Unavailable, "connection refused")
	}
	n.mu.Lock()
	srv, running, life := n.server, n.running, n.life.Load()
	n.mu.Unlock()
	if !running {
		return none, status.Error(codes.Unavailable, "connection refused")
	}
	resp, err := do(srv, ctx, in)
	if n.life.Load() != life {
		return none, status.Error(codes.Unavailable, "connection reset")
	}
	return resp, err
}

func (s *stub) RawGet(
	ctx context.Context, in *kvrpcpb.RawGetRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawGetResponse, error) {
	return call(ctx, s, in, (*server.Server).RawGet)
}

func (s *stub) RawPut(
	ctx context.Context, in *kvrpcpb.RawPutRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawPutResponse, error) {
	return call(ctx, s, in, (*server.Server).RawPut)
}

func (s *stub) RawDelete(
	ctx context.Context, in *kvrpcpb.RawDeleteRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawDeleteResponse, error) {
	return call(ctx, s, in, (*server.Server).RawDelete)
}

func (s *stub) RawCAS(
	ctx context.Context, in *kvrpcpb.RawCASRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawCASResponse, error) {
	return call(ctx, s, in, (*server.Server).RawCAS)
}

func (s *stub) DestroyRange(
	ctx context.Context, in *kvrpcpb.DestroyRangeRequest, _ ...grpc.CallOption,
) (*kvrpcpb.DestroyRangeResponse, error) {
	return call(ctx, s, in, (*server.Server).DestroyRange)
}

func (s *stub) RawDeleteRange(
	ctx context.Context, in *kvrpcpb.RawDeleteRangeRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawDeleteRangeResponse, error) {
	return call(ctx, s, in, (*server.Server).RawDeleteRange)
}

func (s *stub) RawBatchGet(
	ctx context.Context, in *kvrpcpb.RawBatchGetRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawBatchGetResponse, error) {
	return call(ctx, s, in, (*server.Server).RawBatchGet)
}

func (s *stub) RawBatchPut(
	ctx context.Context, in *kvrpcpb.RawBatchPutRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawBatchPutResponse, error) {
	return call(ctx, s, in, (*server.Server).RawBatchPut)
}

func (s *stub) RawBatchDelete(
	ctx context.Context, in *kvrpcpb.RawBatchDeleteRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawBatchDeleteResponse, error) {
	return call(ctx, s, in, (*server.Server).RawBatchDelete)
}

func (s *stub) RawChecksum(
	ctx context.Context, in *kvrpcpb.RawChecksumRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawChecksumResponse, error) {
	return call(ctx, s, in, (*server.Server).RawChecksum)
}

func (s *stub) RawGetKeyTTL(
	ctx context.Context, in *kvrpcpb.RawGetKeyTTLRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawGetKeyTTLResponse, error) {
	return call(ctx, s, in, (*server.Server).RawGetKeyTTL)
}

func (s *stub) RawScan(
	ctx context.Context, in *kvrpcpb.RawScanRequest, _ ...grpc.CallOption,
) (*kvrpcpb.RawScanResponse, error) {
	return call(ctx, s, in, (*server.Server).RawScan)
}

func (s *stub) Forward(
	ctx context.Context, in *kvrpcpb.ForwardRequest, _ ...grpc.CallOption,
) (*kvrpcpb.ForwardResponse, error) {
	return call(ctx, s, in, (*server.Server).Forward)
}

func (s *stub) CheckConsistency(
	ctx context.Context, in *kvrpcpb.CheckConsistencyRequest, _ ...grpc.CallOption,
) (*kvrpcpb.CheckConsistencyResponse, error) {
	return call(ctx, s, in, (*server.Server).CheckConsistency)
}

// WaitLeader waits until a running store leads the region, and returns it.
func (c *Cluster) WaitLeader(regionID uint64) *Node {
	c.t.Helper()
	var found *Node
	c.Eventually(20*time.Second, func() string {
		for _, n := range c.Nodes() {
			if s := n.Store(); s != nil {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				info, err := s.Peer(ctx, regionID)
				cancel()
				if err == nil && info.IsLeader && info.AppliedIndex >= info.CommitIndex {
					found = n
					return ""
				}
			}
		}
		return fmt.Sprintf("region %d has no leader", regionID)
	})
	return found
}

// Eventually waits until check returns "", and fails with what it says last.
func (c *Cluster) Eventually(timeout time.Duration, check func() string) {
	c.t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		what := check()
		if what == "" {
			return
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			c.t.Logf("goroutines:\n%s", buf[:runtime.Stack(buf, true)])
			require.FailNow(c.t, "the deadline passed", "%s", what)
		}
		time.Sleep(5 * time.Millisecond) // polls a condition
	}
}

// AddPeer orders a replica on a store and waits for it.
func (c *Cluster) AddPeer(regionID, storeID uint64) *metapb.Peer {
	c.t.Helper()
	p := c.OrderPeer(regionID, storeID)
	c.waitOrder(regionID, "add peer")
	return p
}

// OrderPeer orders a replica on a store and does not wait for it.
func (c *Cluster) OrderPeer(regionID, storeID uint64) *metapb.Peer {
	p := &metapb.Peer{Id: c.Placement.AllocID(), StoreId: storeID}
	c.Placement.orderChange(regionID, eraftpb.ConfChangeType_AddNode, p)
	return p
}

// RemovePeer orders a replica to be removed and waits until the region does without it.
func (c *Cluster) RemovePeer(regionID uint64, p *metapb.Peer) {
	c.t.Helper()
	c.Placement.orderChange(regionID, eraftpb.ConfChangeType_RemoveNode, p)
	c.waitOrder(regionID, "remove peer")
}

// TransferLeader orders a leader transfer and waits for it.
func (c *Cluster) TransferLeader(regionID uint64, p *metapb.Peer) {
	c.t.Helper()
	c.Placement.orderTransfer(regionID, p)
	c.waitOrder(regionID, "transfer leader")
}

func (c *Cluster) waitOrder(regionID uint64, what string) {
	c.t.Helper()
	c.Eventually(20*time.Second, func() string {
		if c.Placement.pendingOrder(regionID) {
			return fmt.Sprintf("%s of region %d is not done: %v", what, regionID,
				c.Placement.Region(regionID))
		}
		return ""
	})
}

// Split splits the region that has key at it and waits until the placement service knows both
// halves.
func (c *Cluster) Split(key []byte) {
	c.t.Helper()
	c.Eventually(20*time.Second, func() string {
		r, err := c.Placement.GetRegion(context.Background(), key)
		if err != nil || r == nil {
			return fmt.Sprintf("no region for %q", key)
		}
		if string(r.Meta.StartKey) == string(key) {
			return ""
		}
		if n := c.node(r.Leader.GetStoreId()); n != nil && n.Store() != nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_, err = n.Store().SplitAt(ctx, r.Meta.Id, key)
			cancel()
		}
		return fmt.Sprintf("split at %q: %v", key, err)
	})
}

// CompactLog makes the region's leader compact its log up to what it has applied.
func (c *Cluster) CompactLog(regionID uint64) error {
	n := c.WaitLeader(regionID)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	info, err := n.Store().Peer(ctx, regionID)
	if err != nil {
		return err
	}
	_, err = n.Store().AdminCommand(ctx, regionID, &raft_cmdpb.AdminRequest{
		CmdType: raft_cmdpb.AdminCmdType_CompactLog,
		CompactLog: &raft_cmdpb.CompactLogRequest{
			CompactIndex: info.AppliedIndex, CompactTerm: info.Term,
		},
	})
	return err
}

// Transfer asks the region's leader once to hand over.
func (c *Cluster) Transfer(regionID uint64, to *metapb.Peer) error {
	return c.adminOnce(regionID, &raft_cmdpb.AdminRequest{
		CmdType:        raft_cmdpb.AdminCmdType_TransferLeader,
		TransferLeader: &raft_cmdpb.TransferLeaderRequest{Peer: to},
	})
}

// ChangePeer asks the region's leader once for a conf change.
func (c *Cluster) ChangePeer(regionID uint64, kind eraftpb.ConfChangeType, p *metapb.Peer) error {
	return c.adminOnce(regionID, &raft_cmdpb.AdminRequest{
		CmdType:    raft_cmdpb.AdminCmdType_ChangePeer,
		ChangePeer: &raft_cmdpb.ChangePeerRequest{ChangeType: kind, Peer: p},
	})
}

func (c *Cluster) adminOnce(regionID uint64, req *raft_cmdpb.AdminRequest) error {
	leader := c.Placement.Leader(regionID)
	n := c.node(leader.GetStoreId())
	if n == nil {
		return errors.New("no leader is known")
	}
	s := n.Store()
	if s == nil {
		return errors.New("the leader's store is down")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	_, err := s.AdminCommand(ctx, regionID, req)
	return err
}

// RandomConfChange adds a replica on a store without one, or removes one if more than least are
// left.
func (c *Cluster) RandomConfChange(r *metapb.Region, least int) bool {
	c.mu.Lock()
	add := len(r.Peers) <= least || (len(r.Peers) < len(c.nodes) && c.rng.IntN(2) == 0)
	pick := c.rng.IntN(1 << 20)
	var free []uint64
	for id := range c.nodes {
		if regions.PeerOnStore(r, id) == nil {
			free = append(free, id)
		}
	}
	c.mu.Unlock()
	if add && len(free) == 0 {
		return false
	}
	req := &raft_cmdpb.ChangePeerRequest{ChangeType: eraftpb.ConfChangeType_RemoveNode}
	if add {
		req.ChangeType = eraftpb.ConfChangeType_AddNode
		req.Peer = &metapb.Peer{Id: c.Placement.AllocID(), StoreId: free[pick%len(free)]}
	} else {
		req.Peer = r.Peers[pick%len(r.Peers)]
	}
	return c.adminOnce(r.Id,
		&raft_cmdpb.AdminRequest{
			CmdType: raft_cmdpb.AdminCmdType_ChangePeer, ChangePeer: req,
		}) == nil
}

// SplitOnce asks once for a split at key.
func (c *Cluster) SplitOnce(key []byte) error {
	r, err := c.Placement.GetRegion(context.Background(), key)
	if err != nil {
		return err
	}
	if r == nil {
		return errors.New("no region is known for the key")
	}
	n := c.node(r.Leader.GetStoreId())
	if n == nil || n.Store() == nil {
		return errors.New("the leader's store is down")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	_, err = n.Store().SplitAt(ctx, r.Meta.Id, key)
	return err
}
