package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine/enginefault"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/node"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/tests/cluster"
)

// placement is a placement service as Join sees it. With rival, another store bootstraps the
// cluster between our question whether that was done and our own attempt.
type placement struct {
	next   uint64
	first  *metapb.Region
	rival  bool
	stores map[uint64]bool
	runs   map[uint64]metapb.Store
	mode   string
}

func (p *placement) ClusterID() uint64 { return cluster.ClusterID }

func (p *placement) AllocID(context.Context) (uint64, error) {
	p.next++
	return p.next, nil
}

func (p *placement) IsBootstrapped(context.Context) (bool, error) { return p.first != nil, nil }

func (p *placement) GetClusterConfig(context.Context) (*metapb.Cluster, error) {
	return &metapb.Cluster{Id: cluster.ClusterID, Mode: p.mode}, nil
}

func (p *placement) Bootstrap(_ context.Context, _ *metapb.Store, region *metapb.Region) error {
	if p.rival {
		p.first, p.rival = &metapb.Region{Id: 999}, false
	}
	switch {
	case p.first == nil:
		p.first = region
	case p.first.Id != region.Id || p.first.Peers[0].Id != region.Peers[0].Id:
		return client.ErrAlreadyBootstrapped
	}
	return nil
}

// RegisterRun counts as the placement service does: a crash at any point must not make a store look
// like an older copy of itself.
func (p *placement) RegisterRun(_ context.Context, s *metapb.Store, rebuild bool) (uint64, error) {
	p.stores[s.Id] = true
	if p.runs == nil {
		p.runs = map[uint64]metapb.Store{}
	}
	known := p.runs[s.Id]
	switch {
	case s.Run == 0 || rebuild:
		return 0,
			errors.New(
				"a store that was never copied calls itself an older copy, or does not count")
	case s.Run == known.Run:
		return known.Incarnation, nil
	case s.Incarnation < known.Incarnation || s.LogSequence < known.LogSequence:
		return 0, client.ErrOldCopy
	}
	known = *s
	known.Incarnation++
	p.runs[s.Id] = known
	return known.Incarnation, nil
}

// disks are a store's, before it is part of a cluster.
type disks struct {
	fs  *faultfs.MemFS
	eng *memengine.Engine
}

// join runs Join until it ends or the k-th operation; it reports whether it got through.
func (d *disks) join(p *placement, ctl *faultfs.Controller) (bool, error) {
	log, err := raftlog.Open("raft",
		raftlog.Options{SegmentSize: logSegment, FS: d.fs, Manual: true})
	if err != nil {
		return false, err
	}
	_, err = node.Join(context.Background(), p, enginefault.Wrap(d.eng, ctl), log,
		&metapb.Store{Address: "store-1"}, zap.NewNop())
	if cerr := log.Close(); err == nil {
		err = cerr
	}
	return err == nil, err
}

// TestCrashBootstrap stops the world at every operation of Join, including those with which the
// raft log is created, and at every operation of the second attempt as well.
func TestCrashBootstrap(t *testing.T) {
	total := 0
	for _, rival := range []bool{false, true} {
		for _, l := range losses {
			for k := int64(1); ; k++ {
				done, n := crashJoin(t, rival, l, k)
				total += n
				if done {
					break
				}
			}
		}
	}
	fmt.Printf("crash: %d points of bootstrap\n", total)
}

// crashJoin crashes Join at k, and the next attempt at every k2; then it must get through.
func crashJoin(t *testing.T, rival bool, l loss, k int64) (done bool, points int) {
	t.Helper()
	for k2 := int64(1); ; k2++ {
		what := fmt.Sprintf("rival %v, loss %s, k %d, then %d", rival, l.name, k, k2)
		rng := rand.New(rand.NewPCG(uint64(k), uint64(k2)))
		p := &placement{rival: rival, stores: map[uint64]bool{}}
		d := &disks{faultfs.NewMemFS(nil), memengine.New()}
		through := [2]bool{}
		for i, at := range []int64{k, k2} {
			ctl := &faultfs.Controller{}
			ctl.Set(faultfs.CrashAt(at))
			d.fs = d.fs.Crash(faultfs.KeepAll, nil, ctl)
			var err error
			if through[i], err = d.join(p, ctl); !through[i] {
				require.ErrorIs(t, err, faultfs.ErrCrashed, what)
			}
			d = &disks{d.fs.Crash(l.one.Log, rng, nil), d.eng.Crash(l.one.Engine, rng)}
		}
		points++
		_, err := d.join(p, nil)
		require.NoError(t, err, what)
		checkJoined(t, p, d, what)
		if through[0] && through[1] {
			return true, points
		}
		if through[1] {
			return false, points
		}
	}
}

// checkJoined: the store has its identity and, if it won, the first region and nothing else.
func checkJoined(t *testing.T, p *placement, d *disks, what string) {
	t.Helper()
	var ident rspb.StoreIdent
	found, err := meta.Load(d.eng, meta.StoreIdentKey, &ident)
	require.NoError(t, err, what)
	require.True(t, found, what)
	require.True(t, p.stores[ident.StoreId], what)
	found, err = meta.Load(d.eng, meta.PrepareBootstrapKey, new(rspb.RegionLocalState))
	require.NoError(t, err, what)
	require.False(t, found, "%s: the note of a prepared region is left", what)

	var regions []uint64
	view := d.eng.NewSnapshot()
	defer view.Close()
	require.NoError(t, meta.VisitRegionStates(view, func(st *rspb.RegionLocalState) error {
		regions = append(regions, st.Region.Id)
		require.Equal(t, rspb.PeerState_Normal, st.State, what)
		return nil
	}), what)
	log, err := raftlog.Open("raft",
		raftlog.Options{SegmentSize: logSegment, FS: d.fs, Manual: true})
	require.NoError(t, err, what)
	defer func() { require.NoError(t, log.Close()) }()
	if p.first.Id == 999 {
		require.Empty(t, regions, what)
		return
	}
	require.Equal(t, []uint64{p.first.Id}, regions, what)
	st, ok := log.State(p.first.Id)
	require.True(t, ok, "%s: the first region has no raft log", what)
	require.EqualValues(t, meta.InitLogIndex, st.Last, what)
}
