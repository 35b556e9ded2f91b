package peerdoor_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/scheduler/server/peerdoor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func identity(t *testing.T, dir, name string, role security.Role) *security.Identity {
	t.Helper()
	files, err := security.CreateCert(dir,
		security.CertRequest{Name: name, Role: role, Hosts: []string{"127.0.0.1"}})
	require.NoError(t, err)
	id, err := security.LoadIdentity(files, nil)
	require.NoError(t, err)
	return id
}

// open starts a door before something that answers with what it reads, and returns its address.
func open(t *testing.T, id *security.Identity, dataDir string) (*peerdoor.Door, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	d, err := peerdoor.Open(t.Context(), []string{addr}, id, dataDir, zap.NewNop())
	require.NoError(t, err)
	t.Cleanup(d.Close)
	inner, err := net.Listen("unix", d.Socket())
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := inner.Accept()
			if err != nil {
				return
			}
			go func() { defer nc.Close(); _, _ = io.Copy(nc, nc) }()
		}
	}()
	t.Cleanup(func() { _ = inner.Close(); <-done })
	return d, addr
}

// TestFloodOfPeers: connections above the limit are refused and counted, and members come in again
// when the others have gone.
func TestFloodOfPeers(t *testing.T) {
	const limit = 256
	dir := t.TempDir() + "/certs"
	require.NoError(t, security.CreateCA(dir))
	node := identity(t, dir, "node", security.RoleNode)
	d, addr := open(t, node, t.TempDir())
	var flood []net.Conn
	defer func() {
		for _, nc := range flood {
			_ = nc.Close()
		}
	}()
	for range limit {
		nc, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		flood = append(flood, nc)
	}
	require.Eventually(t, func() bool { return d.Conns() == limit }, 20*time.Second,
		time.Millisecond)
	require.Zero(t, d.Full())
	require.False(t, echoes(t, addr, node.Client("http/1.1")), "no room")
	require.EqualValues(t, 1, d.Full())
	for _, nc := range flood {
		require.NoError(t, nc.Close())
	}
	require.Eventually(t, func() bool { return d.Conns() == 0 }, 20*time.Second, time.Millisecond)
	require.True(t, echoes(t, addr, node.Client("http/1.1")))
}

// echoes tells whether what is behind the door answers.
func echoes(t *testing.T, addr string, cfg *tls.Config) bool {
	t.Helper()
	nc, err := net.DialTimeout("tcp", addr, 10*time.Second)
	require.NoError(t, err)
	defer nc.Close()
	require.NoError(t, nc.SetDeadline(time.Now().Add(20*time.Second)))
	if cfg != nil {
		cfg.ServerName = "127.0.0.1"
		nc = tls.Client(nc, cfg)
	}
	text := strings.Repeat("0123456789", 20000)
	sent := make(chan struct{})
	go func() { defer close(sent); _, _ = io.WriteString(nc, text) }()
	got := make([]byte, len(text))
	_, err = io.ReadFull(nc, got)
	_ = nc.Close()
	<-sent
	return err == nil && string(got) == text
}

// TestDoor: nodes reach what is behind the door, others do not; the socket is for this user only;
// an end of the door ends all.
func TestDoor(t *testing.T) {
	dir := t.TempDir() + "/certs"
	require.NoError(t, security.CreateCA(dir))
	node := identity(t, dir, "node", security.RoleNode)
	for _, dataDir := range []string{t.TempDir(), t.TempDir() + strings.Repeat("/long", 30)} {
		d, addr := open(t, node, dataDir)
		require.True(t, echoes(t, addr, node.Client("http/1.1")))
		for _, role := range []security.Role{security.RoleClient, security.RoleAdmin} {
			files, err := security.CreateCert(dir,
				security.CertRequest{Name: fmt.Sprint(role, len(dataDir)), Role: role})
			require.NoError(t, err)
			id, err := security.LoadIdentity(files, nil)
			require.NoError(t, err)
			require.False(t, echoes(t, addr, id.Client("http/1.1")), role)
		}
		require.False(t, echoes(t, addr, nil), "without TLS")
		info, err := os.Stat(strings.TrimSuffix(d.Socket(), "/etcd.sock"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o700), info.Mode().Perm())

		held, err := tls.Dial("tcp", addr, node.Client("http/1.1"))
		require.NoError(t, err)
		d.Close()
		require.NoError(t, held.SetDeadline(time.Now().Add(20*time.Second)))
		_, err = held.Read(make([]byte, 1))
		require.Error(t, err)
		_ = held.Close()
		_, err = net.DialTimeout("tcp", addr, time.Second)
		require.Error(t, err, "nobody listens")
		d.Close()
	}
	(*peerdoor.Door)(nil).Close()
}
