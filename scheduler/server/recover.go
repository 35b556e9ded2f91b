package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/log"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/pkg/recovery"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

// takeOverCluster makes an empty data directory that of a cluster whose placement service is lost:
// its id, ids and timestamps above all that were given out, and its stores. One transaction does
// it, so a crash leaves all or nothing. A directory that has taken the cluster over before is left
// as it is.
func (s *Server) takeOverCluster(ctx context.Context) error {
	data, err := os.ReadFile(s.cfg.Recover)
	if err != nil {
		return err
	}
	var plan recovery.Scheduler
	if err := json.Unmarshal(data, &plan); err != nil {
		return fmt.Errorf("not a recovery file: %w", err)
	}
	if err := plan.Validate(); err != nil {
		return err
	}
	kv, err := s.storage.Get(ctx, storage.ClusterIDKey)
	if err != nil {
		return err
	}
	if kv.ModRevision != 0 {
		have, err := storage.ParseUint64(kv.Value)
		switch {
		case err != nil:
			return err
		case have != plan.ClusterID:
			return fmt.Errorf(
				"the data directory belongs to cluster %d, the file is about cluster %d; start with an empty one",
				have, plan.ClusterID)
		}
		s.logger.Info("the cluster was taken over before", log.ClusterID(have))
		return nil
	}
	ops, err := takeOverOps(&plan, s.cfg.Replication.MaxReplicas)
	if err != nil {
		return err
	}
	_, err = s.storage.Txn(ctx, []storage.Cond{storage.RevisionIs(storage.ClusterIDKey, 0)}, ops)
	if errors.Is(err, storage.ErrConflict) {
		return errors.New(
			"another member has begun a cluster here; start one member alone, let the others join it")
	}
	if err == nil {
		s.logger.Warn("took over a cluster whose placement service was lost",
			log.ClusterID(plan.ClusterID),
			zap.Int("stores", len(plan.Stores)),
			zap.Uint64s("stores-that-did-not-report", plan.Missing))
	}
	return err
}

func takeOverOps(plan *recovery.Scheduler, replicas int) ([]storage.Op, error) {
	keys := storage.KeysOf(plan.ClusterID)
	meta := &metapb.Cluster{Id: plan.ClusterID, MaxPeerCount: uint32(replicas), Mode: plan.Mode}
	value, err := meta.Marshal()
	if err != nil {
		return nil, err
	}
	ops := []storage.Op{
		storage.Put(storage.ClusterIDKey, storage.Uint64(plan.ClusterID)),
		storage.Put(keys.AllocID(), storage.Uint64(plan.AllocID)),
		storage.Put(keys.Timestamp(),
			storage.Uint64(uint64(plan.TimestampMS)*uint64(time.Millisecond))),
		storage.Put(keys.Cluster(), value),
	}
	features, unknown := feature.Parse(plan.Features)
	if len(unknown) > 0 {
		return nil,
			fmt.Errorf(
				"the cluster uses %s, which this version does not know; use a newer tinyscheduler",
				strings.Join(unknown, ", "))
	}
	ops = append(ops, storage.Put(keys.Features(), storage.Uint64(uint64(features))))
	for _, st := range plan.Stores {
		m := &metapb.Store{
			Id: st.ID, Address: st.Address, StatusAddress: st.StatusAddress, Version: st.Version,
			State: metapb.StoreState_Up,
			Tls:   st.TLS, AllowPlain: st.AllowPlain,
		}
		for k, v := range st.Labels {
			m.Labels = append(m.Labels, &metapb.StoreLabel{Key: k, Value: v})
		}
		if value, err = m.Marshal(); err != nil {
			return nil, err
		}
		ops = append(ops, storage.Put(keys.Store(st.ID), value))
	}
	return ops, nil
}
