package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/log"
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
	PutStore(ctx context.Context, store *metapb.Store) error
}

// Join gives the store its identity and makes the cluster's first region if there is none yet.
//
// It can be interrupted after every step and run again: the identity is kept first; a prepared first
// region is kept before the placement service is told, and dropped if another store was faster
// (reliability.md K15).
func Join(ctx context.Context, b Bootstrapper, e engine.Engine, raftLog *raftlog.Log, store *metapb.Store, logger *zap.Logger) (*rspb.StoreIdent, error) {
	ident := new(rspb.StoreIdent)
	found, err := meta.Load(e, meta.StoreIdentKey, ident)
	if err != nil {
		return nil, err
	}
	if found && ident.ClusterId != b.ClusterID() {
		return nil, fmt.Errorf("this store belongs to cluster %d, but the placement service serves cluster %d; "+
			"check --scheduler, or use an empty data directory", ident.ClusterId, b.ClusterID())
	}
	if !found {
		id, err := b.AllocID(ctx)
		if err != nil {
			return nil, fmt.Errorf("allocate a store id: %w", err)
		}
		ident.ClusterId, ident.StoreId = b.ClusterID(), id
		batch := e.NewBatch()
		meta.Put(batch, meta.StoreIdentKey, ident)
		if err := e.Write(batch, true); err != nil {
			return nil, err
		}
	}
	store.Id = ident.StoreId
	if err := bootstrap(ctx, b, e, raftLog, store, logger); err != nil {
		return nil, err
	}
	if err := b.PutStore(ctx, store); err != nil {
		if errors.Is(err, client.ErrStoreTombstone) {
			return nil, fmt.Errorf("store %d was removed from the cluster; start with an empty data directory to join as a new store", ident.StoreId)
		}
		return nil, fmt.Errorf("register store %d: %w", ident.StoreId, err)
	}
	return ident, nil
}

func bootstrap(ctx context.Context, b Bootstrapper, e engine.Engine, raftLog *raftlog.Log, store *metapb.Store, logger *zap.Logger) error {
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
func prepareRegion(ctx context.Context, b Bootstrapper, e engine.Engine, raftLog *raftlog.Log, storeID uint64) (*rspb.RegionLocalState, error) {
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

// FirstRegion is the state of a cluster's first region: the whole key space, with the given peers; the
// first of them is this store's.
func FirstRegion(regionID uint64, self *metapb.Peer, others ...*metapb.Peer) *rspb.RegionLocalState {
	return &rspb.RegionLocalState{Peer: self, Region: &metapb.Region{
		Id: regionID, Peers: append([]*metapb.Peer{self}, others...),
		RegionEpoch: &metapb.RegionEpoch{Version: meta.InitEpochVersion, ConfVer: meta.InitEpochConfVer},
	}}
}

// WriteFirstRegion makes a first region durable; prepared adds the note that undoes it if another store
// bootstraps the cluster.
func WriteFirstRegion(e engine.Engine, raftLog *raftlog.Log, st *rspb.RegionLocalState, prepared bool) error {
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
