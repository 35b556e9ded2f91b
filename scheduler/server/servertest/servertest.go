// Package servertest starts placement services for tests: fast ticks, no fsync, free ports, a
// temporary directory. Production code may not import it.
package servertest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tinykv/tinykv/pkg/freeport"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
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
	cfg.UnsafeNoFsync = true
	cfg.VerifyStores = false // most tests have no stores that answer
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

// Start starts a member with the given configuration, waits for a leader and stops it with the
// test.
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

// StartCluster starts n members that know each other and waits until one leads.
func StartCluster(t testing.TB, n int, opts ...Option) []*server.Server {
	t.Helper()
	cfgs := make([]*config.Config, n)
	var initial []string
	for i := range n {
		cfgs[i] = Config(t)
		cfgs[i].Name = fmt.Sprintf("m%d", i+1)
		cfgs[i].ClientUrls = "http://" + FreeAddr(t)
		cfgs[i].PeerUrls = "http://" + FreeAddr(t)
		initial = append(initial, cfgs[i].Name+"="+cfgs[i].PeerUrls)
	}
	out := make([]*server.Server, n)
	errs := make(chan error, n)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i, cfg := range cfgs {
		cfg.InitialCluster = strings.Join(initial, ",")
		for _, o := range opts {
			o(cfg)
		}
		s, err := server.New(cfg, zap.NewNop())
		if err != nil {
			t.Fatalf("new scheduler: %v", err)
		}
		out[i] = s
		go func() { errs <- s.Start(ctx) }()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Fatalf("start scheduler: %v", err)
		}
	}
	t.Cleanup(func() { // all at once: the last ones have no quorum to wait for
		var wg sync.WaitGroup
		for _, s := range out {
			wg.Add(1)
			go func() { defer wg.Done(); s.Stop() }()
		}
		wg.Wait()
	})
	for _, s := range out {
		if err := s.WaitLeader(ctx); err != nil {
			t.Fatalf("scheduler elected no leader: %v", err)
		}
	}
	return out
}

// FreeAddr returns a host:port that nobody listens on right now, and another one with each call.
func FreeAddr(t testing.TB) string {
	t.Helper()
	addrs, err := freeport.Addrs(1)
	if err != nil {
		t.Fatal(err)
	}
	return addrs[0]
}

// DirectClient returns a stub for one member, without leader discovery.
func DirectClient(t testing.TB, addr string) schedulerpb.SchedulerClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(codec.CallOption()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return schedulerpb.NewSchedulerClient(conn)
}
