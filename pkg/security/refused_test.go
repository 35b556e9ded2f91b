package security_test

import (
	"context"
	"crypto/tls"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
)

// TestRefusedConnectionsAreReported: a server says who was refused and why, once in a while, and a
// client of a server that it does not believe says which certificate and which file.
func TestRefusedConnectionsAreReported(t *testing.T) {
	dir, other := authority(t), authority(t)
	node := identity(t, certificate(t, dir, "kv1", security.RoleNode, "127.0.0.1"))
	app := identity(t, certificate(t, dir, "app", security.RoleClient))
	foreign := certificate(t, other, "evil", security.RoleClient)
	theirs := identity(t, foreign)
	ours := foreign // believes the server, which does not believe it
	ours.CA = filepath.Join(dir, "ca.crt")
	evil := identity(t, ours)

	raw, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	echo(t, node.Listen(raw, false, "h2"))
	type report struct {
		remote string
		err    error
	}
	reports := make(chan report, 16)
	node.OnRefused(func(remote string, err error) { reports <- report{remote, err} })

	// Connections that merely end are not reported.
	nc, err := net.Dial("tcp", raw.Addr().String())
	require.NoError(t, err)
	require.NoError(t, nc.Close())

	dialed, err := tls.Dial("tcp", raw.Addr().String(), evil.Client("h2"))
	var from string
	if err == nil { // TLS 1.3: the refusal comes afterwards
		from = dialed.LocalAddr().String()
		_, err = say(dialed)
	}
	require.Error(t, err)
	select {
	case r := <-reports:
		require.Equal(t, from, r.remote)
		require.ErrorContains(t, r.err, `the certificate of "evil", signed by "TinyKV CA"`)
		require.ErrorContains(t, r.err, ours.CA)
		require.ErrorContains(t, r.err, "unknown authority")
	case <-time.After(time.Minute):
		t.Fatal("no report")
	}
	reported := time.Now()
	for range 5 {
		if dialed, err := tls.Dial("tcp", raw.Addr().String(), evil.Client("h2")); err == nil {
			_, err = say(dialed)
			require.Error(t, err)
		}
	}
	require.LessOrEqual(t, len(reports), int(time.Since(reported)/(9*time.Second)),
		"one in ten seconds")

	nc, err = net.Dial("tcp", raw.Addr().String())
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, _, err = theirs.Credentials().ClientHandshake(ctx, "127.0.0.1", nc)
	require.ErrorContains(t, err, `the certificate of "kv1"`)
	require.ErrorContains(t, err, filepath.Join(other, "ca.crt"))
	_, err = theirs.DialTLS(ctx, "tcp", raw.Addr().String())
	require.ErrorContains(t, err, filepath.Join(other, "ca.crt"))
	nc, err = app.DialTLS(ctx, "tcp", raw.Addr().String())
	require.NoError(t, err)
	require.NoError(t, nc.Close())
}
