package conformance

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop"
	"google.golang.org/grpc/interop/grpc_testing"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/node"
	"github.com/tinykv/tinykv/pkg/rpc/client"
	"github.com/tinykv/tinykv/pkg/security"
)

// certified makes the files of a server on this machine and of a client, by one authority.
func certified(t *testing.T) (server, client security.Files) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, security.CreateCA(dir))
	server, err := security.CreateCert(dir,
		security.CertRequest{Name: "node", Role: security.RoleNode, Hosts: []string{"127.0.0.1"}})
	require.NoError(t, err)
	client, err = security.CreateCert(dir,
		security.CertRequest{Name: "client", Role: security.RoleClient})
	require.NoError(t, err)
	return server, client
}

func identity(t *testing.T, f security.Files) *security.Identity {
	t.Helper()
	id, err := security.LoadIdentity(f, nil)
	require.NoError(t, err)
	return id
}

// TestInteropOverTLS: all cases, from both clients to both servers, with certificates on both
// sides.
func TestInteropOverTLS(t *testing.T) {
	serverFiles, clientFiles := certified(t)
	server, peer := identity(t, serverFiles), identity(t, clientFiles)
	ours, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	theirs, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	goServer := grpc.NewServer(grpc.Creds(credentials.NewTLS(server.Server("h2"))))
	grpc_testing.RegisterTestServiceServer(goServer, interop.NewTestServer())
	done := make(chan error, 1)
	go func() { done <- goServer.Serve(theirs) }()
	defer func() { goServer.Stop(); <-done }()

	dial := security.DialService(nil, peer.Client)
	own := func(checksum bool) func(addr string) (grpc.ClientConnInterface, func() error) {
		return func(addr string) (grpc.ClientConnInterface, func() error) {
			c := client.New(security.Address(addr, true),
				client.Options{Checksum: checksum, Dial: dial})
			return c, c.Close
		}
	}
	everyPair(t, map[string]string{
		"pkg/rpc over TLS": serveOurs(t, server.Listen(ours, false, "h2")),
		"grpc-go":          theirs.Addr().String(),
	}, map[string]func(addr string) (grpc.ClientConnInterface, func() error){
		"pkg/rpc over TLS": own(false), "pkg/rpc with checksums over TLS": own(true),
		"grpc-go": func(addr string) (grpc.ClientConnInterface, func() error) {
			c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(peer.Credentials()))
			require.NoError(t, err)
			return c, c.Close
		},
	})
}

// TestH2SpecOverTLS: a store that serves TLS passes all cases. h2spec shows no certificate, so
// something in between does.
func TestH2SpecOverTLS(t *testing.T) {
	serverFiles, clientFiles := certified(t)
	cfg := config.Default()
	cfg.Addr, cfg.StatusAddr, cfg.DataDir = "127.0.0.1:0", "127.0.0.1:0", t.TempDir()
	cfg.Storage.Raft, cfg.Storage.ReserveSpace = false, 0
	cfg.Security.CAPath, cfg.Security.CertPath, cfg.Security.KeyPath = serverFiles.CA,
		serverFiles.Cert, serverFiles.Key
	cfg.EnsureDefaults()
	require.NoError(t, cfg.Validate())
	n := node.New(cfg, "test", zap.NewNop())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, n.Start(ctx))
	defer n.Stop()
	ours := h2spec(t,
		wrapped(t, n.Addr(), security.DialService(nil, identity(t, clientFiles).Client)),
		5*time.Second)
	t.Logf("h2spec: a store passes %d of %d cases over TLS", count(ours, passed), len(ours))
	for name, outcome := range ours {
		if outcome != passed {
			t.Errorf("%s: %s", name, outcome)
		}
	}
	require.Len(t, ours, h2specCases)
}

// wrapped listens in the clear and passes each connection on over TLS, until the test ends. The end
// of either side's sending ends the other's.
func wrapped(t *testing.T, to string, dial security.Dialer) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	pass := func(from net.Conn) {
		defer from.Close()
		far, err := dial(ctx, security.Address(to, true))
		if err != nil {
			return
		}
		defer far.Close()
		stop := context.AfterFunc(ctx, func() { _ = far.Close(); _ = from.Close() })
		defer stop()
		wg.Go(func() {
			_, _ = io.Copy(far, from)
			_ = far.Close()
		})
		_, _ = io.Copy(from, far)
	}
	wg.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { pass(from) })
		}
	})
	t.Cleanup(func() { cancel(); _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}
