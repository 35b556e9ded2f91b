package offline

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// TestForeignDirectories: what is no store's, or may hold what this program does not know, is left
// alone.
func TestForeignDirectories(t *testing.T) {
	_, err := Open(t.TempDir(), zap.NewNop())
	require.ErrorContains(t, err, "not the data directory of a store")
	dir := t.TempDir()
	marker := "format = 3\nengine = \"pebble\"\nmode = \"raft\"\ncluster-id = 7\nstore-id = 3\nfeatures = [\"holidays\"]\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tinykv.toml"), []byte(marker), 0o600))
	_, err = Open(dir, zap.NewNop())
	require.ErrorContains(t, err, "holidays, which this version does not know")
	_, err = os.Stat(filepath.Join(dir, "kv"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
