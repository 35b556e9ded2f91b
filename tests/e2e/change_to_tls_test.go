package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/pkg/durable"
	"github.com/tinykv/tinykv/pkg/security"
)

// TestChangeToTLSUnderLoad: a cluster without TLS gets it, server by server, while clients read and
// write: first each server serves both, then clients change, then connections without TLS are
// refused.
func TestChangeToTLSUnderLoad(t *testing.T) {
	dir := t.TempDir()
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: dir, Stores: 3, Schedulers: 1, StoreConfig: fastStores,
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	certs := filepath.Join(dir, "certs")
	require.NoError(t, security.CreateCA(certs))
	node, err := security.CreateCert(certs,
		security.CertRequest{Name: "node", Role: security.RoleNode, Hosts: []string{"127.0.0.1"}})
	require.NoError(t, err)
	app, err := security.CreateCert(certs,
		security.CertRequest{Name: "app", Role: security.RoleClient})
	require.NoError(t, err)
	configure := func(file, before, ca string, plain bool) {
		text := fmt.Sprintf(
			"%s\n[security]\n%s = %q\ncert-path = %q\nkey-path = %q\nallow-plain = %v\n",
			before, ca, node.CA, node.Cert, node.Key, plain)
		require.NoError(t, durable.WriteFile(filepath.Join(dir, file), []byte(text)))
	}
	restart := func(l *load, ps ...*localcluster.Process) {
		for _, p := range ps {
			p.Stop(20 * time.Second)
			require.NoError(t, p.Start())
			require.NoError(t, p.WaitReady(t.Context()))
			l.goesOn(t)
		}
	}
	plain := open(t, c)
	require.NoError(t, plain.Put(t.Context(), []byte("k"), []byte("v")))
	waitSecuredReplicas(t, plain, 3)
	l := startLoad(t, plain)
	configure("tinykv-server.toml", fastStores, "ca-path", true)
	restart(l, c.Stores...)
	configure("tinyscheduler.toml", "", "cacert-path", true)
	restart(l, c.Schedulers...)

	octx, ocancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer ocancel()
	secured, err := client.Open(octx, []string{"https://" + c.Schedulers[0].Addr},
		client.Options{Timeout: 20 * time.Second, Identity: identityOf(t, app)})
	require.NoError(t, err)
	t.Cleanup(secured.Close)
	l.end(t)
	l = startLoad(t, secured)
	configure("tinykv-server.toml", fastStores, "ca-path", false)
	restart(l, c.Stores...)
	configure("tinyscheduler.toml", "", "cacert-path", false)
	restart(l, c.Schedulers...)
	waitSecuredReplicas(t, secured, 3)
	l.end(t)
	refused(t, "plain text", c.Stores[0].Addr, nil)
	late, lcancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer lcancel()
	require.Error(t, plain.Put(late, []byte("k"), []byte("plain")), "a client without certificates")
	value, found, err := secured.Get(t.Context(), []byte("k"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "v", string(value))
}
