// Package embed runs a TinyKV cluster in the calling process, for tests of programs that use one:
//
//	c, err := embed.Start(ctx, embed.Config{Stores: 3})
//	if err != nil { ... }
//	defer c.Stop()
//	cl, err := c.Client(ctx)
//
// It is the same code as the servers', over real connections on free ports of the loopback
// interface; any client that speaks TiKV's or TinyKV's protocol can use it. TiKV's own client-go
// shares the module kvproto with this one: v2.0.7 and the version of TiDB 8.5 do not compile with
// the one that this module needs, and have to be in another process, as beside `tinyctl
// playground`. Single stores can be stopped, killed and
// started again, and cut off from the others. Several clusters may run at the same time.
//
// Data lies in a temporary directory, unless Config.Dir names one, and lives as long as the cluster
// does.
package embed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/client/txn"
	storeconfig "github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/node"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/pkg/freeport"
	placement "github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server"
	schedulerconfig "github.com/tinykv/tinykv/scheduler/server/config"
)

// version is what embedded servers call themselves.
const version = "embedded"

// Config says what Start starts. The zero value is a cluster of one store and one scheduler.
type Config struct {
	// Stores is the number of stores, default 1; regions have as many replicas, at most 3.
	Stores int
	// Schedulers is the number of members of the placement service, default 1.
	Schedulers int
	// Txn makes a new cluster one of transactions, which refuses raw requests.
	Txn bool
	// Dir is where the data lies; it must not be in use, and what another cluster left there is
	// taken up if it had as many servers. Empty is a temporary directory that Stop removes.
	Dir string
	// Logger gets what the servers log; nil drops it.
	Logger *zap.Logger
	// TuneStore and TuneScheduler change the configuration of a server before it starts, by its
	// index from 0.
	TuneStore     func(i int, cfg *storeconfig.Config)
	TuneScheduler func(i int, cfg *schedulerconfig.Config)
}

// Cluster is a running cluster. Safe for concurrent use, but for calls about the same store, which
// must come one after the other.
type Cluster struct {
	cfg        Config
	dir        string
	logger     *zap.Logger
	links      *links
	schedulers []*server.Server
	stores     []*Store
	stopOnce   sync.Once
	err        error
}

// Store is one store of a cluster.
type Store struct {
	c     *Cluster
	index int
	cfg   *storeconfig.Config
	mu    struct {
		sync.Mutex
		node *node.Node // nil while it does not run
	}
}

// Start starts a cluster and returns once it serves reads and writes. The caller stops it. ctx
// bounds the start only.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	cfg.Stores, cfg.Schedulers = max(cfg.Stores, 1), max(cfg.Schedulers, 1)
	c := &Cluster{cfg: cfg, dir: cfg.Dir, logger: cfg.Logger, links: newLinks(cfg.Stores)}
	if c.logger == nil {
		c.logger = zap.NewNop()
	}
	if c.dir == "" {
		dir, err := os.MkdirTemp("", "tinykv-embed-")
		if err != nil {
			return nil, fmt.Errorf("embed: %w", err)
		}
		c.dir = dir
	}
	err := c.startSchedulers(ctx)
	if err == nil {
		err = c.startStores(ctx)
	}
	if err == nil {
		err = c.waitServing(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embed: %w", err), c.Stop())
	}
	return c, nil
}

// layoutFile names the addresses under which the members of the placement service know each other:
// they have to be the same when a directory is taken up.
const layoutFile = "embed.json"

// peerAddrs are the members' addresses.
func (c *Cluster) peerAddrs() ([]string, error) {
	var addrs []string
	path := filepath.Join(c.dir, layoutFile)
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &addrs); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if len(addrs) != c.cfg.Schedulers {
			return nil,
				fmt.Errorf("%s has a cluster of %d schedulers, not %d", c.dir, len(addrs),
					c.cfg.Schedulers)
		}
		return addrs, nil
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	if addrs, err = freeport.Addrs(c.cfg.Schedulers); err != nil {
		return nil, err
	}
	if data, err = json.Marshal(addrs); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	return addrs, os.WriteFile(path, data, 0o600)
}

func (c *Cluster) schedulerConfigs() ([]*schedulerconfig.Config, error) {
	peers, err := c.peerAddrs()
	if err != nil {
		return nil, err
	}
	var cfgs []*schedulerconfig.Config
	var initial []string
	for i := range c.cfg.Schedulers {
		cfg := schedulerconfig.Default()
		cfg.Name = fmt.Sprintf("scheduler-%d", i+1)
		cfg.DataDir = filepath.Join(c.dir, cfg.Name)
		cfg.ClientUrls, cfg.PeerUrls = "http://127.0.0.1:0", "http://"+peers[i]
		cfg.TickInterval, cfg.ElectionInterval = schedulerconfig.Duration(10*time.Millisecond),
			schedulerconfig.Duration(100*time.Millisecond)
		cfg.LeaseTTL = schedulerconfig.Duration(time.Second)
		cfg.Replication.MaxReplicas = min(c.cfg.Stores, 3)
		cfg.UnsafeNoFsync = true // the process and its data end together
		if c.cfg.Txn {
			cfg.Mode = string(clustermode.Txn)
		}
		initial = append(initial, cfg.Name+"="+cfg.PeerUrls)
		cfgs = append(cfgs, cfg)
	}
	for i, cfg := range cfgs {
		cfg.InitialCluster = strings.Join(initial, ",")
		if c.cfg.TuneScheduler != nil {
			c.cfg.TuneScheduler(i, cfg)
		}
	}
	return cfgs, nil
}

func (c *Cluster) startSchedulers(ctx context.Context) error {
	cfgs, err := c.schedulerConfigs()
	if err != nil {
		return err
	}
	for _, cfg := range cfgs {
		s, err := server.New(cfg, c.logger.Named(cfg.Name))
		if err != nil {
			return fmt.Errorf("%s: %w", cfg.Name, err)
		}
		c.schedulers = append(c.schedulers, s)
	}
	return each(c.schedulers, func(s *server.Server) error {
		if err := s.Start(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.Name(), err)
		}
		return s.WaitLeader(ctx)
	})
}

// each calls f for all at the same time.
func each[T any](all []T, f func(T) error) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, one := range all {
		wg.Add(1)
		// Ends with f.
		go func() { defer wg.Done(); errs[i] = f(one) }()
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *Cluster) startStores(ctx context.Context) error {
	for i := range c.cfg.Stores {
		cfg := storeconfig.Default()
		cfg.Scheduler = c.Endpoints()
		addrs, err := freeport.Addrs(2) // a store that comes back has the same
		if err != nil {
			return err
		}
		cfg.Addr, cfg.StatusAddr = addrs[0], addrs[1]
		cfg.DataDir = filepath.Join(c.dir, fmt.Sprintf("store-%d", i+1))
		cfg.Storage.ReserveSpace = 0
		cfg.Storage.Cache, cfg.Storage.MemTable = 8*storeconfig.MiB, 4*storeconfig.MiB
		cfg.RaftLog.SegmentSize = 8 * storeconfig.MiB
		cfg.Raftstore.RegionHeartbeatInterval = storeconfig.Dur(time.Second)
		cfg.Raftstore.StoreHeartbeatInterval = storeconfig.Dur(time.Second)
		cfg.Server.ShutdownTimeout = storeconfig.Dur(2 * time.Second)
		if c.cfg.TuneStore != nil {
			c.cfg.TuneStore(i, cfg)
		}
		cfg.EnsureDefaults()
		if err := cfg.Validate(); err != nil {
			return fmt.Errorf("store %d: %w", i, err)
		}
		c.stores = append(c.stores, &Store{c: c, index: i, cfg: cfg})
	}
	return each(c.stores, func(s *Store) error { return s.Start(ctx) })
}

// waitServing waits until a write, or a read of a transaction, is answered. It leaves no trace.
func (c *Cluster) waitServing(ctx context.Context) error {
	cl, err := c.Client(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	cfg, err := cl.Placement().GetClusterConfig(ctx)
	if err != nil {
		return err
	}
	if err := c.waitFeatures(ctx); err != nil {
		return err
	}
	if clustermode.Mode(cfg.GetMode()) != clustermode.Txn {
		return cl.Delete(ctx, []byte{0})
	}
	t := txn.New(cl, cl.Placement())
	defer t.Close()
	return t.Run(ctx, func(x *txn.Txn) error {
		_, _, err := x.Get(ctx, []byte{0})
		return err
	})
}

// waitFeatures waits until each store may use what all of them can do.
func (c *Cluster) waitFeatures(ctx context.Context) error {
	for {
		settled := true
		for _, s := range c.stores {
			s.mu.Lock()
			settled = settled && s.mu.node.Settled()
			s.mu.Unlock()
		}
		if settled {
			return nil
		}
		select {
		case <-time.After(time.Millisecond): // polls a condition
		case <-ctx.Done():
			return fmt.Errorf("features are not in force: %w", ctx.Err())
		}
	}
}

// TxnClient returns a client of transactions; the caller closes it.
func (c *Cluster) TxnClient(ctx context.Context) (*txn.Client, error) {
	return txn.Open(ctx, c.Endpoints(), client.Options{})
}

// Endpoints are the addresses of the placement service: what clients of TiKV call PD addresses.
func (c *Cluster) Endpoints() []string {
	var out []string
	for _, s := range c.schedulers {
		out = append(out, s.ClientAddr())
	}
	return out
}

// Stores are the cluster's stores, in the order of their indexes.
func (c *Cluster) Stores() []*Store { return c.stores }

// Client returns a client of the cluster; the caller closes it.
func (c *Cluster) Client(ctx context.Context) (*client.Client, error) {
	return client.Open(ctx, c.Endpoints(), client.Options{})
}

// WaitReplicas waits until every region has all its replicas, so that a store may be lost. A
// cluster begins with one.
func (c *Cluster) WaitReplicas(ctx context.Context) error {
	p, err := placement.New(ctx, c.Endpoints())
	if err != nil {
		return fmt.Errorf("embed: %w", err)
	}
	defer p.Close()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		regions, err := p.ScanRegions(ctx, nil, nil, 0)
		if err != nil {
			return fmt.Errorf("embed: %w", err)
		}
		missing := len(regions) == 0
		for _, r := range regions {
			missing = missing || r.Voters() < min(c.cfg.Stores, 3) || len(r.PendingPeers) > 0 ||
				r.Leader == nil
		}
		if !missing {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("embed: replicas are missing: %w", ctx.Err())
		}
	}
}

// Partition cuts the stores into groups that cannot reach each other, by their indexes; those that
// are not named are a group of their own together. Every store still reaches the placement service,
// and clients reach every store. It replaces an earlier partition.
func (c *Cluster) Partition(groups ...[]int) { c.links.partition(groups) }

// Isolate cuts one store off from all others and from the placement service, beside what Partition
// has cut. Clients still reach it.
func (c *Cluster) Isolate(store int) { c.links.isolate(store) }

// Heal ends all partitions.
func (c *Cluster) Heal() { c.links.heal() }

// Stop stops all servers and removes a temporary directory. Idempotent; returns when everything has
// ended. Several schedulers take some seconds, since each that leads looks for another one first,
// and connections between them may end five seconds later than they do.
func (c *Cluster) Stop() error {
	c.stopOnce.Do(func() {
		_ = each(c.stores, func(s *Store) error { s.Kill(); return nil })
		_ = each(c.schedulers, func(s *server.Server) error { s.Stop(); return nil })
		if c.cfg.Dir == "" {
			c.err = os.RemoveAll(c.dir)
		}
	})
	return c.err
}

// Start starts the store, at the address that it had before. It fails if the store runs.
func (s *Store) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.node != nil {
		return fmt.Errorf("store %d runs", s.index)
	}
	name := fmt.Sprintf("store-%d", s.index+1)
	n := node.New(s.cfg, version, s.c.logger.Named(name))
	n.DialBy(s.c.links.dialer(s.index))
	if err := n.Start(ctx); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.mu.node = n
	s.cfg.Addr, s.cfg.AdvertiseAddr = n.Addr(), n.Addr()
	s.c.links.learn(n.Addr(), s.index)
	return nil
}

// Stop stops the store as an operator would: leaders are handed over first. Nothing happens if it
// does not run.
func (s *Store) Stop() { s.end((*node.Node).Stop) }

// Kill ends the store at once: its connections break without a farewell. Nothing happens if it does
// not run.
func (s *Store) Kill() { s.end((*node.Node).Kill) }

func (s *Store) end(how func(*node.Node)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.node != nil {
		how(s.mu.node)
		s.mu.node = nil
	}
}

// Addr is the address that clients reach the store at, also while it does not run.
func (s *Store) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.Addr
}

// ID is the store's id in the cluster; 0 while it does not run.
func (s *Store) ID() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.node == nil {
		return 0
	}
	return s.mu.node.StoreID()
}

// Failed delivers the error after which the store, as a process, would have ended; nil while it
// does not run.
func (s *Store) Failed() <-chan error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.node == nil {
		return nil
	}
	return s.mu.node.Failed()
}
