package security_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
)

func TestWide(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	key := filepath.Join(dir, "key")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.WriteFile(key, nil, 0o600))
	require.Empty(t, security.Wide(dir, key, "", filepath.Join(dir, "none")))
	require.NoError(t, os.Chmod(dir, 0o750))
	require.NoError(t, os.Chmod(key, 0o604))
	require.Equal(t, []string{
		dir + " is open to other users of this machine (0750): chmod 0700",
		key + " is open to other users of this machine (0604): chmod 0600",
	}, security.Wide(dir, key))
}
