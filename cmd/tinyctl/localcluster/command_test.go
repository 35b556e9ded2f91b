package localcluster

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestCommandReady: a server of another kind is waited for at the address that clients use.
func TestCommandReady(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, Command(t.TempDir(), "other", "other", l.Addr().String()).WaitReady(ctx))
}
