package raftstore

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// lonely stands for everything around a store: nobody listens, nobody answers.
type lonely struct{}

var errNobody = errors.New("nobody there")

func (lonely) Send(uint64, []*rspb.RaftMessage) {}
func (lonely) AskSplit(context.Context, *metapb.Region) (*schedulerpb.AskSplitResponse, error) {
	return nil, errNobody
}
func (lonely) ReportSplit(context.Context, *metapb.Region, *metapb.Region) error {
	return errNobody
}
func (lonely) RegionHeartbeat(*schedulerpb.RegionHeartbeatRequest)           {}
func (lonely) StoreHeartbeat(context.Context, *schedulerpb.StoreStats) error { return nil }
func (lonely) RegionByID(context.Context, uint64) (*metapb.Region, error) {
	return nil, errNobody
}

// newTestStore makes store 1 with replicas of the regions, over an engine and a raft log in memory.
// It is not started. Its clock ticks so rarely that nothing happens by itself.
func newTestStore(t testing.TB, replicas ...*metapb.Region) (*Store, *memengine.Engine) {
	t.Helper()
	return newFaultyStore(t, nil, replicas...)
}

// newFaultyStore is newTestStore with somebody who decides about the raft log's operations.
func newFaultyStore(
	t testing.TB, log *faultfs.Controller, replicas ...*metapb.Region,
) (*Store, *memengine.Engine) {
	t.Helper()
	cfg := config.Default()
	cfg.Raftstore.TickInterval = config.Dur(time.Minute)
	cfg.Raftstore.RaftWorkers, cfg.Raftstore.ApplyWorkers = 1, 1
	require.NoError(t, cfg.Validate())
	e := memengine.New()
	raftLog, err := raftlog.Open("raft", raftlog.Options{
		SegmentSize: 1 << 20, CacheBytes: 1 << 20, FS: faultfs.NewMemFS(log), Manual: true,
		Logger: zap.NewNop(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, raftLog.Close()) })
	snaps, err := snap.Open(t.TempDir(), 4)
	require.NoError(t, err)
	b := e.NewBatch()
	for _, r := range replicas {
		meta.PutRegionState(b, rspb.PeerState_Normal, r, regions.PeerOnStore(r, 1))
		meta.Put(b, meta.ApplyStateKey(r.Id), meta.InitialApplyState())
	}
	require.NoError(t, e.Write(b, true))
	s := New(Options{
		Config: cfg, ClusterID: 7, StoreID: 1, Engine: e, Log: raftLog, Snapshots: snaps,
		Transport: lonely{}, Placement: lonely{}, Logger: zap.NewNop(), Seed: 1,
	})
	return s, e
}

// startTestStore starts a store and stops it with the test.
func startTestStore(t testing.TB, s *Store) {
	t.Helper()
	require.NoError(t, s.Start(context.Background()))
	t.Cleanup(s.Stop)
}

// requireAlive fails if the store has failed, or its peer of a region does not answer.
func requireAlive(t testing.TB, s *Store, regionID uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := s.Inspect(ctx, regionID, func(*PeerView) {})
	select {
	case failed := <-s.Failed():
		t.Fatalf("the store failed: %v", failed)
	default:
	}
	var absent *regionerr.RegionNotFoundError
	if err != nil && !errors.As(err, &absent) {
		t.Fatalf("region %d does not answer: %v", regionID, err)
	}
}
