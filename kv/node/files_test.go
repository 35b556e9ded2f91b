package node

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/server"
	"github.com/tinykv/tinykv/pkg/descriptors"
)

// TestFilesBoundConnectionsAndTables: what the process may have open is divided, and the
// configuration's limit holds where that allows more.
func TestFilesBoundConnectionsAndTables(t *testing.T) {
	for _, c := range []struct {
		limit                  uint64
		conns, perHost, tables int
	}{
		{256, 32, 32, 64}, {400, 104, 104, 136}, {1 << 20, 4096, 2048, 1000},
	} {
		files, err := descriptors.Share(c.limit)
		require.NoError(t, err)
		n := New(config.Default(), "test", zap.NewNop())
		n.SetFiles(files)
		o := server.Options(n.cfg)
		n.boundConns(&o)
		require.Equal(t, c.conns, o.MaxConns)
		require.Equal(t, c.perHost, o.MaxConnsPerHost)
		require.Equal(t, c.tables, n.openTables())
	}
	n := New(config.Default(), "test", zap.NewNop()) // in another program
	require.Zero(t, n.openTables())
}
