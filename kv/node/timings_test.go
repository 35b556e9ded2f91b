package node

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/server"
	"github.com/tinykv/tinykv/kv/server/tikv"
	"github.com/tinykv/tinykv/kv/storage/standalone"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
)

// TestReadsAndWritesExist: the methods that are counted for the store's reports are those of its
// services.
func TestReadsAndWritesExist(t *testing.T) {
	cfg := config.Default()
	g := rpc.New(server.Options(cfg))
	t.Cleanup(g.Stop)
	st := standalone.New(memengine.New())
	svc := server.New(cfg, st, nil, nil, zap.NewNop())
	server.Register(g, svc)
	tikv.Register(g, tikv.New(cfg, 1, st, svc.Gate()))
	for _, m := range slices.Concat(reads, writes) {
		require.NotNil(t, g.Timing(m), m)
	}
}

func TestMethodNames(t *testing.T) {
	for path, want := range map[string][2]string{
		"/tikvpb.Tikv/RawGetKeyTTL":       {"tikv", "raw_get_key_ttl"},
		"/tikvpb.Tikv/KvGet":              {"tikv", "kv_get"},
		"/tinykvpb.TinyKv/RawCAS":         {"tinykv", "raw_cas"},
		"/grpc.health.v1.Health/Check":    {"health", "check"},
		"/tikvpb.Tikv/GetStoreSafeTS":     {"tikv", "get_store_safe_ts"},
		"/tikvpb.Tikv/UnsafeDestroyRange": {"tikv", "unsafe_destroy_range"},
	} {
		service, kind := methodName(path)
		require.Equal(t, want, [2]string{service, kind})
	}
	require.Equal(t, "deadline_exceeded", snake("DeadlineExceeded"))
}
