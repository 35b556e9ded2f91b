// Package servertest starts placement services for tests: fast ticks, no fsync, free ports, a
// temporary directory. Production code may not import it.
package servertest

import (
	"context"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
)

// Option changes the configuration before the start.
type Option func(*config.Config)

// Config returns a configuration for tests: one member on free ports with fast ticks.
func Config(t testing.TB) *config.Config {
	t.Helper()
	cfg := config.Default()
	cfg.Name = "test"
	cfg.DataDir = t.TempDir()
	cfg.ClientUrls, cfg.PeerUrls = "http://127.0.0.1:0", "http://127.0.0.1:0"
	cfg.TickInterval = config.Duration(10 * time.Millisecond)
	cfg.ElectionInterval = config.Duration(100 * time.Millisecond)
	cfg.LeaseTTL = config.Duration(time.Second)
	cfg.UnsafeNoFsync, cfg.EnableGRPCGateway = true, false
	return cfg
}

// StartTest starts a member, waits until it leads and stops it with the test.
func StartTest(t testing.TB, opts ...Option) *server.Server {
	t.Helper()
	cfg := Config(t)
	for _, o := range opts {
		o(cfg)
	}
	return Start(t, cfg, zap.NewNop())
}

// Start starts a member with the given configuration, waits for a leader and stops it with the test.
func Start(t testing.TB, cfg *config.Config, logger *zap.Logger) *server.Server {
	t.Helper()
	s, err := server.New(cfg, logger)
	if err != nil {
		t.Fatalf("new scheduler: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Start(ctx); err != nil {
		t.Fatalf("start scheduler: %v", err)
	}
	t.Cleanup(s.Stop)
	if err := s.WaitLeader(ctx); err != nil {
		t.Fatalf("scheduler elected no leader: %v", err)
	}
	return s
}
