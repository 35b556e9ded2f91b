package damage

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"sync"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/engines"
	"github.com/tinykv/tinykv/kv/node"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

const regionID = cluster.FirstRegionID

// group is three stores and the wires between them.
type group struct {
	cfg *config.Config
	dir string
	mu  sync.Mutex
	on  map[uint64]*disks
	// tries counts the directories that store 3 has had. An engine that failed leaves goroutines
	// behind, which may still write: each try has a directory of its own.
	tries int
}

// disks is one store with what it runs on.
type disks struct {
	store  *raftstore.Store
	engine engine.Engine
	log    *raftlog.Log
}

func newGroup(dir string) *group {
	g := &group{cfg: cluster.TestConfig(), dir: dir, on: map[uint64]*disks{}}
	r := &g.cfg.Raftstore
	r.HibernateAfter = config.Dur(0)
	// Nothing is written but by the test: store 3 is put back to what it had, and must not have
	// promised more.
	r.LogGCThreshold = math.MaxUint64
	r.ElectionTicks = 100
	return g
}

func (g *group) path(id uint64) string {
	if id == 3 {
		return filepath.Join(g.dir, fmt.Sprintf("3-%d", g.tries))
	}
	return filepath.Join(g.dir, fmt.Sprint(id))
}

// wire delivers messages of one store. Raft snapshots do not get through: none is needed.
type wire struct {
	g    *group
	from uint64
}

func (w wire) Send(to uint64, msgs []*rspb.RaftMessage) {
	for _, m := range msgs {
		data, err := m.Marshal()
		if err != nil {
			panic(err)
		}
		w.g.mu.Lock()
		d := w.g.on[to]
		w.g.mu.Unlock()
		if d == nil || m.GetMessage().GetSnapshot() != nil {
			continue
		}
		again := new(rspb.RaftMessage)
		if err := again.Unmarshal(data); err != nil {
			panic(err)
		}
		_ = d.store.HandleRaft(again)
	}
}

var errAway = errors.New("no placement service")

// away is a placement service that does not answer.
type away struct{}

func (away) AskSplit(context.Context, *metapb.Region) (*schedulerpb.AskSplitResponse, error) {
	return nil, errAway
}
func (away) ReportSplit(context.Context, *metapb.Region, *metapb.Region) error { return errAway }
func (away) RegionHeartbeat(*schedulerpb.RegionHeartbeatRequest)               {}
func (away) StoreHeartbeat(context.Context, *schedulerpb.StoreStats) error     { return errAway }
func (away) RegionByID(context.Context, uint64) (*metapb.Region, error) {
	return nil, errAway
}

// open brings up what store id has on its disks; first makes it a replica of the first region. An
// error is a refusal. Nothing is connected yet.
func (g *group) open(id uint64, first bool) (d *disks, err error) {
	d = &disks{}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	dir := g.path(id)
	if d.engine, err = engines.Open("pebble",
		engine.Options{
			Dir: filepath.Join(dir, "kv"), CacheBytes: 1 << 20, MemTableBytes: 256 << 10,
		}); err != nil {
		return d, fmt.Errorf("open engine in %s: %w", filepath.Join(dir, "kv"), err)
	}
	if d.log, err = raftlog.Open(filepath.Join(dir, "raft"),
		raftlog.Options{
			SegmentSize: 64 << 10, CacheBytes: 1 << 20, Logger: zap.NewNop(),
		}); err != nil {
		return d, fmt.Errorf("open raft log in %s: %w", filepath.Join(dir, "raft"), err)
	}
	snaps, err := snap.Open(filepath.Join(dir, "snap"), 4)
	if err != nil {
		return d, err
	}
	if first {
		peers := []*metapb.Peer{{Id: 1, StoreId: 1}, {Id: 2, StoreId: 2}, {Id: 3, StoreId: 3}}
		st := node.FirstRegion(regionID, peers[id-1])
		st.Region.Peers = peers
		if err := node.WriteFirstRegion(d.engine, d.log, st, false); err != nil {
			return d, err
		}
	}
	d.store = raftstore.New(raftstore.Options{
		Config: g.cfg, ClusterID: cluster.ClusterID, StoreID: id, Engine: d.engine, Log: d.log,
		Snapshots: snaps,
		Transport: wire{g, id}, Placement: away{}, Logger: zap.NewNop(), Seed: id,
	})
	return d, nil
}

// start runs an opened store and connects it. An error is a refusal.
func (g *group) start(id uint64, d *disks) error {
	if err := d.store.Start(context.Background()); err != nil {
		return fmt.Errorf("store in %s: %w", g.path(id), err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on[id] = d
	return nil
}

func (g *group) stop(id uint64) {
	g.mu.Lock()
	d := g.on[id]
	delete(g.on, id)
	g.mu.Unlock()
	if d != nil {
		d.close()
	}
}

func (g *group) close() {
	for id := range uint64(3) {
		g.stop(id + 1)
	}
}

func (d *disks) close() {
	if d.store != nil {
		d.store.Stop()
	}
	if d.log != nil {
		_ = d.log.Close()
	}
	if d.engine != nil {
		_ = d.engine.Close()
	}
}
