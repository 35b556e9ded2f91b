package server

import (
	"context"
	"fmt"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

// Features returns those in force.
func (c *RaftCluster) Features() feature.Set { return feature.Set(c.features.Load()) }

// checkFeatures refuses a store that does not know what is in force: others may send it entries
// that it cannot apply. storeMu is held.
func (c *RaftCluster) checkFeatures(m *metapb.Store) error {
	if missing := c.Features() &^ feature.Set(m.GetFeatures()); missing != 0 {
		return fmt.Errorf(
			"invalid put store: the cluster uses %s, which store %d of version %q does not know; "+
				"start it with a newer tinykv-server", missing, m.GetId(), m.GetVersion())
	}
	return nil
}

// announced is what all stores know that are not gone for good.
func (c *RaftCluster) announced() feature.Set {
	all, found := ^feature.Set(0), false
	for _, st := range c.core.Stores() {
		if !st.IsTombstone() {
			all, found = all&feature.Set(st.Meta().GetFeatures()), true
		}
	}
	if !found {
		return 0
	}
	return all
}

// AgreeFeatures puts in force what all stores have announced; save records it first. A store that
// registers meanwhile waits: it is refused if it does not know what has come into force.
func (c *RaftCluster) AgreeFeatures(save func(feature.Set) error) error {
	if c.Features().Has(c.announced()) {
		return nil
	}
	c.storeMu.Lock()
	defer c.storeMu.Unlock()
	added := c.announced() &^ c.Features()
	if added == 0 {
		return nil
	}
	next := c.Features() | added
	if err := save(next); err != nil {
		return err
	}
	c.features.Store(uint64(next))
	c.events.add("features", fmt.Sprintf("in force since all stores know them: %s", added))
	c.opts.Logger.Info("features came into force", zap.Stringer("features", added))
	return nil
}

// agreeFeatures returns the features in force. A record that cannot be written is tried again with
// the next heartbeat.
func (s *Server) agreeFeatures(ctx context.Context) feature.Set {
	err := s.cluster.AgreeFeatures(func(f feature.Set) error {
		return s.write(ctx, storage.Put(s.keys.Features(), storage.Uint64(uint64(f))))
	})
	if err != nil {
		s.logger.Warn("recording features failed", zap.Error(err))
	}
	return s.cluster.Features()
}

// loadFeatures takes over what earlier leaders have put in force.
func (s *Server) loadFeatures(d hardState) error {
	var f uint64
	if value, ok := d[s.keys.Features()]; ok {
		var err error
		if f, err = storage.ParseUint64(value); err != nil {
			return fmt.Errorf("decode features: %w", err)
		}
	}
	s.cluster.features.Store(f)
	return nil
}
