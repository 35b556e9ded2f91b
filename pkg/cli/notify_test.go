package cli

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	require.NoError(t, Ready(), "nobody waits for it")

	path := filepath.Join(t.TempDir(), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	t.Setenv("NOTIFY_SOCKET", path)
	buf := make([]byte, 64)
	for want, call := range map[string]func() error{"READY=1": Ready, "STOPPING=1": Stopping} {
		require.NoError(t, call())
		n, err := conn.Read(buf)
		require.NoError(t, err)
		require.Equal(t, want, string(buf[:n]))
	}
	require.NoError(t, conn.Close())
	require.ErrorContains(t, Ready(), "notify the service manager of READY=1")
}
