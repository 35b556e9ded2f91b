package node

import (
	"testing"

	"github.com/stretchr/testify/require"
)

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
