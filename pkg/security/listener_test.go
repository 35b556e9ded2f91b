package security_test

import (
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
)

// echo serves what it reads on connections of a listener, with whether they had TLS.
func echo(t *testing.T, l net.Listener) (secured chan bool) {
	t.Helper()
	secured = make(chan bool, 16)
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 5)
			if _, err := io.ReadFull(nc, b); err == nil {
				_, _ = nc.Write(b)
				secured <- security.StateOf(nc) != nil
			}
			_ = nc.Close()
		}
	}()
	return secured
}

func say(nc net.Conn) (string, error) {
	defer nc.Close()
	if _, err := nc.Write([]byte("hello")); err != nil {
		return "", err
	}
	b := make([]byte, 5)
	_, err := io.ReadFull(nc, b)
	return string(b), err
}

func TestListener(t *testing.T) {
	dir := authority(t)
	node := identity(t, certificate(t, dir, "node", security.RoleNode, "127.0.0.1"))
	client := identity(t, certificate(t, dir, "app", security.RoleClient))
	for _, plain := range []bool{false, true} {
		raw, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		secured := echo(t, node.Listen(raw, plain, "h2"))
		nc, err := tls.Dial("tcp", raw.Addr().String(), client.Client("h2"))
		require.NoError(t, err)
		text, err := say(nc)
		require.NoError(t, err)
		require.Equal(t, "hello", text)
		require.True(t, <-secured)

		open, err := net.Dial("tcp", raw.Addr().String())
		require.NoError(t, err)
		text, err = say(open)
		if !plain {
			require.Error(t, err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, "hello", text)
		require.False(t, <-secured)
	}
}
