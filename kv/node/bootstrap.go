package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/scheduler/client"
)

// Bootstrapper is what joining a cluster needs of the placement service.
type Bootstrapper interface {
	ClusterID() uint64
	AllocID(ctx context.Context) (uint64, error)
	IsBootstrapped(ctx context.Context) (bool, error)
	Bootstrap(ctx context.Context, store *metapb.Store, region *metapb.Region) error
	GetClusterConfig(ctx context.Context) (*metapb.Cluster, error)
	RegisterRun(
		ctx context.Context, store *metapb.Store, rebuild bool,
	) (incarnation uint64, err error)
}

// Join gives the store its identity and makes the cluster's first region if there is none yet.
//
// It can be interrupted after every step and run again: the identity is kept first, and the run's
// number before the placement service counts it; a prepared first region is kept before it is
// proposed to the service, and dropped if another store was faster (K15).
//
// If the placement service knows that the data is an older copy than what the store had promised,
// the identity says so from then on: no peer that is here now is served again, and the store is
// rebuilt.
func Join(
	ctx context.Context, b Bootstrapper, e engine.Engine, raftLog *raftlog.Log, store *metapb.Store, logger *zap.Logger,
) (*rspb.StoreIdent, error) {
	ident := new(rspb.StoreIdent)
	found, err := meta.Load(e, meta.StoreIdentKey, ident)
	if err != nil {
		return nil, err
	}
	if found && ident.ClusterId != b.ClusterID() {
		return nil,
			fmt.Errorf(
				"this store belongs to cluster %d, but the placement service serves cluster %d; "+
					"check --scheduler, or use an empty data directory", ident.ClusterId,
				b.ClusterID())
	}
	if !found {
		id, err := b.AllocID(ctx)
		if err != nil {
			return nil, fmt.Errorf("allocate a store id: %w", err)
		}
		ident.ClusterId, ident.StoreId = b.ClusterID(), id
	}
	if err := beginRun(e, ident); err != nil {
		return nil, err
	}
	store.Id = ident.StoreId
	store.Incarnation, store.Run, store.LogSequence = ident.Incarnation, ident.PendingRun,
		raftLog.SyncedSequence()
	if err := bootstrap(ctx, b, e, raftLog, store, logger); err != nil {
		return nil, err
	}
	if err := learnMode(ctx, b, ident); err != nil {
		return nil, err
	}
	incarnation, err := b.RegisterRun(ctx, store, false)
	if errors.Is(err, client.ErrOldCopy) {
		incarnation, err = rebuild(ctx, b, e, ident, store, err, logger)
	}
	if err != nil {
		if errors.Is(err, client.ErrStoreTombstone) {
			return nil,
				fmt.Errorf(
					"store %d was removed from the cluster; start with an empty data directory to join as a new store", ident.StoreId)
		}
		return nil, fmt.Errorf("register store %d: %w", ident.StoreId, err)
	}
	ident.Incarnation, ident.PendingRun = incarnation, 0
	return ident, keepIdent(e, ident)
}

// learnMode takes the cluster's mode from the placement service. It never changes, so a store that
// knows another one is not of this cluster as it was.
func learnMode(ctx context.Context, b Bootstrapper, ident *rspb.StoreIdent) error {
	cfg, err := b.GetClusterConfig(ctx)
	if err != nil {
		return fmt.Errorf("ask for the cluster's mode: %w", err)
	}
	mode, err := clustermode.Parse(cfg.GetMode())
	if err != nil {
		return fmt.Errorf("the placement service's answer: %w", err)
	}
	if ident.Mode != "" && ident.Mode != string(mode) {
		return fmt.Errorf(
			"store %d holds data of mode %s, but the placement service says that the cluster is in mode %s: "+
				"it was not begun as this cluster's, or taken over by a plan with the wrong mode",
			ident.StoreId, ident.Mode, mode)
	}
	ident.Mode = string(mode)
	return nil
}

// keepIdent makes the identity durable.
func keepIdent(e engine.Engine, ident *rspb.StoreIdent) error {
	batch := e.NewBatch()
	meta.Put(batch, meta.StoreIdentKey, ident)
	return e.Write(batch, true)
}

// beginRun gives the run a number, unless a start that was interrupted has one already.
func beginRun(e engine.Engine, ident *rspb.StoreIdent) error {
	if ident.PendingRun != 0 {
		return nil
	}
	ident.PendingRun = rand.Uint64() | 1
	return keepIdent(e, ident)
}

// rebuild registers a store that runs on an older copy of its data. No peer up to the newest id
// that was ever given out is served; the placement service replaces them one by one.
func rebuild(
	ctx context.Context, b Bootstrapper, e engine.Engine, ident *rspb.StoreIdent, store *metapb.Store, why error, logger *zap.Logger,
) (uint64, error) {
	through, err := b.AllocID(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w; allocate an id: %w", why, err)
	}
	ident.QuarantineThrough = through
	if err := keepIdent(e, ident); err != nil {
		return 0, err
	}
	logger.Error(
		"this data directory is an older copy than what the store had promised: none of its replicas is served, they are replaced one by one",
		log.StoreID(ident.StoreId), zap.Error(why))
	return b.RegisterRun(ctx, store, true)
}

func bootstrap(
	ctx context.Context, b Bootstrapper, e engine.Engine, raftLog *raftlog.Log, store *metapb.Store, logger *zap.Logger,
) error {
	prepared := new(rspb.RegionLocalState)
	found, err := meta.Load(e, meta.PrepareBootstrapKey, prepared)
	if err != nil {
		return err
	}
	if !found {
		done, err := b.IsBootstrapped(ctx)
		if err != nil {
			return fmt.Errorf("ask whether the cluster is bootstrapped: %w", err)
		}
		if done {
			return nil
		}
		if prepared, err = prepareRegion(ctx, b, e, raftLog, store.Id); err != nil {
			return err
		}
	}
	region := prepared.Region
	err = b.Bootstrap(ctx, store, region)
	switch {
	case errors.Is(err, client.ErrAlreadyBootstrapped):
		logger.Info("another store has bootstrapped the cluster")
		return dropPrepared(e, raftLog, region.Id)
	case err != nil:
		return fmt.Errorf("bootstrap the cluster: %w", err)
	}
	logger.Info("bootstrapped the cluster", log.RegionID(region.Id), log.StoreID(store.Id))
	batch := e.NewBatch()
	batch.Delete(meta.PrepareBootstrapKey)
	return e.Write(batch, true)
}

// prepareRegion writes the first region: its log, then its states together with the note that it is
// not agreed upon yet.
func prepareRegion(
	ctx context.Context, b Bootstrapper, e engine.Engine, raftLog *raftlog.Log, storeID uint64,
) (*rspb.RegionLocalState, error) {
	regionID, err := b.AllocID(ctx)
	if err != nil {
		return nil, fmt.Errorf("allocate a region id: %w", err)
	}
	peerID, err := b.AllocID(ctx)
	if err != nil {
		return nil, fmt.Errorf("allocate a peer id: %w", err)
	}
	st := FirstRegion(regionID, &metapb.Peer{Id: peerID, StoreId: storeID})
	return st, WriteFirstRegion(e, raftLog, st, true)
}

// FirstRegion is the state of a cluster's first region: the whole key space, with the given peers;
// the first of them is this store's.
func FirstRegion(
	regionID uint64, self *metapb.Peer, others ...*metapb.Peer,
) *rspb.RegionLocalState {
	return &rspb.RegionLocalState{Peer: self, Region: &metapb.Region{
		Id: regionID, Peers: append([]*metapb.Peer{self}, others...),
		RegionEpoch: &metapb.RegionEpoch{
			Version: meta.InitEpochVersion, ConfVer: meta.InitEpochConfVer,
		},
	}}
}

// WriteFirstRegion makes a first region durable; prepared adds the note that undoes it if another
// store bootstraps the cluster.
func WriteFirstRegion(
	e engine.Engine, raftLog *raftlog.Log, st *rspb.RegionLocalState, prepared bool,
) error {
	var lb raftlog.Batch
	lb.Reset(st.Region.Id, meta.InitLogIndex, meta.InitLogTerm)
	lb.SetHardState(st.Region.Id, meta.InitialHardState())
	if err := raftLog.Write(&lb, true); err != nil {
		return err
	}
	batch := e.NewBatch()
	meta.Put(batch, meta.RegionStateKey(st.Region.Id), st)
	meta.Put(batch, meta.ApplyStateKey(st.Region.Id), meta.InitialApplyState())
	if prepared {
		meta.Put(batch, meta.PrepareBootstrapKey, st)
	}
	return e.Write(batch, true)
}

func dropPrepared(e engine.Engine, raftLog *raftlog.Log, regionID uint64) error {
	batch := e.NewBatch()
	batch.Delete(meta.RegionStateKey(regionID))
	batch.Delete(meta.ApplyStateKey(regionID))
	batch.Delete(meta.PrepareBootstrapKey)
	if err := e.Write(batch, true); err != nil {
		return err
	}
	var lb raftlog.Batch
	lb.Delete(regionID)
	return raftLog.Write(&lb, true)
}

// joinTimeout bounds one attempt to talk to the placement service at start.
const joinTimeout = 30 * time.Second
