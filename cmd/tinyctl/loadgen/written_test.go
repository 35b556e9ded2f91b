package loadgen

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseIO(t *testing.T) {
	n, err := parseIO(
		"rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 8192\ncancelled_write_bytes: 4096\n")
	require.NoError(t, err)
	require.EqualValues(t, 4096, n)
	for _, bad := range []string{"", "wchar: 2\n", "write_bytes: x\n", "write_bytes\n"} {
		_, err := parseIO(bad)
		require.Error(t, err, bad)
	}
}

func TestWrittenBy(t *testing.T) {
	none, err := writtenBy(nil)
	require.NoError(t, err)
	require.Nil(t, none)
	if _, err := os.Stat("/proc/self/io"); err == nil {
		own, err := writtenBy([]int{os.Getpid()})
		require.NoError(t, err)
		require.GreaterOrEqual(t, own.Total, 0.0)
	}
	_, err = writtenBy([]int{1 << 30})
	require.Error(t, err)
}

// TestWrittenOfStores: the counters of all stores are summed up by part; one that is not there is
// an error.
func TestWrittenOfStores(t *testing.T) {
	metrics := map[string]float64{}
	for i, name := range WrittenMetrics() {
		require.Error(t, new(Written).Add(metrics))
		metrics[name] = float64(10 * (i + 1))
	}
	var got Written
	require.NoError(t, got.Add(metrics))
	require.NoError(t, got.Add(metrics))
	require.Equal(t, Written{Total: 200, Compaction: 20, Flush: 40, EngineLog: 60, RaftLog: 80},
		got)
	require.Equal(t, &Written{Total: 15, Compaction: 1.5, Flush: 3, EngineLog: 4.5, RaftLog: 6},
		got.since(&Written{Total: 50, Compaction: 5, Flush: 10, EngineLog: 15, RaftLog: 20}, 10))
}
