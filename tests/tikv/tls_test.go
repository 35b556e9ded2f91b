package tikv

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/config"
	"github.com/tikv/client-go/v2/rawkv"
)

// TestSecuredCluster: the client's own options for TLS are all that it takes.
func TestSecuredCluster(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	cert := func(args ...string) {
		t.Helper()
		out, err := exec.Command(filepath.Join(binDir, "tinyctl"),
			append([]string{"cert", "--certs-dir", dir}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	cert("create-ca")
	cert("create-node", "127.0.0.1")
	cert("create-client", "app")
	files := func(name string) (ca, crt, key string) {
		return filepath.Join(dir, "ca.crt"), filepath.Join(dir, name+".crt"),
			filepath.Join(dir, name+".key")
	}
	ca, crt, key := files("node-127.0.0.1")
	c := startClusterWith(t, 3, "https://",
		[]string{"--cacert", ca, "--cert", crt, "--key", key},
		[]string{"--ca", ca, "--cert", crt, "--key", key})
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	ca, crt, key = files("app")
	security := config.Security{ClusterSSLCA: ca, ClusterSSLCert: crt, ClusterSSLKey: key}
	cli, err := rawkv.NewClient(ctx, []string{"https://" + c.scheduler.addr}, security)
	require.NoError(t, err)
	defer func() { require.NoError(t, cli.Close()) }()
	require.NoError(t, cli.Put(ctx, []byte("k"), []byte("v")))
	value, err := cli.Get(ctx, []byte("k"))
	require.NoError(t, err)
	require.Equal(t, "v", string(value))
}
