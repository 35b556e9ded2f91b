package loadgen

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/tinykv/tinykv/pkg/freeport"
)

// startEtcd runs one member in this process.
func startEtcd(t *testing.T) string {
	t.Helper()
	ports, err := freeport.Find(2)
	require.NoError(t, err)
	at := func(i int) url.URL {
		return url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", ports[i])}
	}
	c := embed.NewConfig()
	c.Dir, c.LogLevel = t.TempDir(), "fatal"
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{at(0)}, []url.URL{at(0)}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{at(1)}, []url.URL{at(1)}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	require.NoError(t, err)
	t.Cleanup(func() {
		e.Close()
		<-e.Server.StopNotify()
	})
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		t.Fatal("etcd is not ready")
	}
	return at(0).Host
}

// TestEtcd: every operation of the driver does what the others' do.
func TestEtcd(t *testing.T) {
	addr := startEtcd(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	d, err := NewEtcd(ctx, EtcdOptions{Endpoints: []string{addr}, Conns: 2, LeaderOnly: true})
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, d.Put(ctx, []byte("a"), []byte("1")))
	require.NoError(t, d.Put(ctx, []byte("b"), []byte("22")))
	v, err := d.Read(ctx, []byte("b"))
	require.NoError(t, err)
	require.Equal(t, "22", string(v))
	n, err := d.Scan(ctx, []byte("a"), 100)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	n, err = d.Scan(ctx, []byte("a"), 1)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	n, err = d.Scan(ctx, []byte("aa"), 100)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.NoError(t, d.Delete(ctx, []byte("b")))
	v, err = d.Read(ctx, []byte("b"))
	require.NoError(t, err)
	require.Nil(t, v)

	servers, err := EtcdServers(ctx, []string{addr})
	require.NoError(t, err)
	require.Contains(t, servers, addr)
	require.Equal(t, []int{os.Getpid()}, ListenerPIDs(servers))
	leader, err := EtcdLeader(ctx, []string{addr})
	require.NoError(t, err)
	require.Equal(t, addr, leader)
}

// TestScanEnd: a bounded scan still finds all that its limit allows.
func TestScanEnd(t *testing.T) {
	const keys, limit = 10_000, 100
	var all [][]byte
	for i := range uint64(keys) {
		all = append(all, Key(i, 16))
	}
	slices.SortFunc(all, bytes.Compare)
	for _, at := range []int{0, 1, 77, 5000, keys - 3*limit} {
		end := scanEnd(all[at], limit, keys)
		require.NotNil(t, end)
		n, _ := slices.BinarySearchFunc(all, end, bytes.Compare)
		require.InDelta(t, 2*limit, n-at, limit/2, "from key %d", at)
	}
	require.Nil(t, scanEnd(all[keys-limit], limit, keys), "near the end of the key space")
	require.Nil(t, scanEnd(all[0], limit, 0))
	require.Nil(t, scanEnd([]byte("short"), limit, keys))
}

func TestHostPorts(t *testing.T) {
	require.Equal(t, []string{"127.0.0.1:1", "[::1]:2", "h:3"},
		hostPorts([]string{"http://127.0.0.1:1", "https://[::1]:2", "h:3", "unix://x"}))
}
