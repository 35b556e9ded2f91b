package server

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// EtcdOf is the client that a member reaches its own etcd with, inside the process.
func EtcdOf(s *Server) *clientv3.Client { return s.node.(*node).client }

// SetState records a store's state without asking whether it may be so.
func SetState(ctx context.Context, s *Server, id uint64, state metapb.StoreState) error {
	return s.setStoreState(ctx, id, state)
}

// HealthTold is when conditions have begun, as a follower knows it from its leader.
func HealthTold(s *Server) map[string]time.Time {
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	return s.health.mu.told
}
