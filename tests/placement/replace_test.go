// Package placement runs whole clusters, with their placement service, in this process: what is to
// be repaired, moved or spared without anybody's help.
package placement

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/client"
	storeconfig "github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/pkg/embed"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	placement "github.com/tinykv/tinykv/scheduler/client"
	schedulerconfig "github.com/tinykv/tinykv/scheduler/server/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is a running cluster with a client.
type cluster struct {
	*embed.Cluster
	t   *testing.T
	ctx context.Context
	cl  *client.Client
	dir string
}

// start starts stores with small regions and writes some data.
func start(t *testing.T, cfg embed.Config) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	c := &cluster{t: t, ctx: ctx, dir: t.TempDir()}
	cfg.Dir = c.dir
	tune := cfg.TuneStore
	cfg.TuneStore = func(i int, s *storeconfig.Config) {
		s.Raftstore.RegionSplitSize, s.Raftstore.RegionMaxSize = 64*storeconfig.KiB,
			96*storeconfig.KiB
		s.Raftstore.SplitCheckInterval = storeconfig.Dur(100 * time.Millisecond)
		if tune != nil {
			tune(i, s)
		}
	}
	var err error
	c.Cluster, err = embed.Start(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Stop()) })
	c.cl, err = c.Client(ctx)
	require.NoError(t, err)
	t.Cleanup(func() { c.cl.Close() })
	for i := range 40 {
		require.NoError(t, c.cl.Put(ctx, key(i), make([]byte, 16<<10)))
	}
	c.eventually(func([]*placement.Region) error { return nil })
	require.NoError(t, c.WaitReplicas(ctx))
	return c
}

func key(i int) []byte { return fmt.Appendf(nil, "k%02d", i) }

// eventually waits until there are several regions and check has nothing to say about them.
func (c *cluster) eventually(check func([]*placement.Region) error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	var last error
	for {
		rs, err := c.cl.Placement().ScanRegions(ctx, nil, nil, 0)
		if err == nil && len(rs) < 4 {
			err = fmt.Errorf("%d regions", len(rs))
		}
		if err == nil {
			err = check(rs)
		}
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			require.NoError(c.t, last)
		}
	}
}

// readAll reads everything that was written.
func (c *cluster) readAll() {
	c.t.Helper()
	for i := range 40 {
		v, found, err := c.cl.Get(c.ctx, key(i))
		require.NoError(c.t, err)
		require.True(c.t, found)
		require.Len(c.t, v, 16<<10)
	}
}

// victim is the store with the most replicas, its index and its id.
func (c *cluster) victim() (int, uint64) {
	c.t.Helper()
	best, id, most := 0, uint64(0), 0
	c.eventually(func(rs []*placement.Region) error {
		for i, s := range c.Stores() {
			n := 0
			for _, r := range rs {
				if voterOn(r, s.ID()) != nil {
					n++
				}
			}
			if n > most {
				best, id, most = i, s.ID(), n
			}
		}
		return nil
	})
	return best, id
}

func voterOn(r *placement.Region, store uint64) *metapb.Peer {
	for _, p := range r.Meta.Peers {
		if p.StoreId == store && p.Role != metapb.PeerRole_Learner {
			return p
		}
	}
	return nil
}

// TestDamagedReplicasAreReplaced: a store that has lost its raft log serves none of its replicas
// and says so. Each is replaced, learner first, while its region keeps three voters.
func TestDamagedReplicasAreReplaced(t *testing.T) {
	c := start(t, embed.Config{Stores: 4})
	i, id := c.victim()
	victim := c.Stores()[i]
	victim.Stop()
	before := map[uint64]bool{}
	c.eventually(func(rs []*placement.Region) error {
		for _, r := range rs {
			if p := voterOn(r, id); p != nil {
				before[p.Id] = true
			}
		}
		return nil
	})
	require.NotEmpty(t, before)
	require.NoError(t, os.RemoveAll(filepath.Join(c.dir, fmt.Sprintf("store-%d", i+1), "raft")))
	require.NoError(t, victim.Start(c.ctx))
	began := time.Now()
	c.eventually(func(rs []*placement.Region) error {
		for _, r := range rs {
			require.GreaterOrEqual(t, r.Voters(), 3, "region %d: %v", r.Meta.Id, r.Meta.Peers)
			for _, p := range r.Meta.Peers {
				if before[p.Id] {
					return fmt.Errorf("region %d still has damaged peer %d", r.Meta.Id, p.Id)
				}
			}
			if r.Voters() != len(r.Meta.Peers) {
				return fmt.Errorf("region %d has a learner", r.Meta.Id)
			}
		}
		return nil
	})
	t.Logf("%d replicas replaced after %s", len(before), time.Since(began).Round(time.Millisecond))
	c.readAll()
}

// TestSilentReplicasAreReplaced: a store reports, but its replicas do not answer their leaders.
// After peer-down-after they are replaced elsewhere, though the store is not down.
func TestSilentReplicasAreReplaced(t *testing.T) {
	c := start(t, embed.Config{
		Stores: 4,
		TuneStore: func(_ int, s *storeconfig.Config) {
			s.Raftstore.PeerDownAfter = storeconfig.Dur(2 * time.Second)
		},
		TuneScheduler: func(_ int, s *schedulerconfig.Config) {
			s.Schedule.MaxPeerDownTime = schedulerconfig.Duration(2 * time.Second)
		},
	})
	i, id := c.victim()
	c.Partition([]int{i}) // the others stay together
	began := time.Now()
	c.eventually(func(rs []*placement.Region) error {
		for _, r := range rs {
			require.GreaterOrEqual(t, r.Voters(), 3, "region %d: %v", r.Meta.Id, r.Meta.Peers)
			if voterOn(r, id) != nil || len(r.PendingPeers) > 0 && r.Voters() == len(r.Meta.Peers) {
				return fmt.Errorf("region %d: %v", r.Meta.Id, r.Meta.Peers)
			}
		}
		return nil
	})
	t.Logf("replaced after %s", time.Since(began).Round(time.Millisecond))
	c.readAll()
	c.Heal()
	c.readAll()
}
