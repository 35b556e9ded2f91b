package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
	rpc "github.com/tinykv/tinykv/pkg/rpc/client"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
	placement "github.com/tinykv/tinykv/scheduler/client"
)

// startSecured starts a cluster with TLS on all ports, and returns the directory of its
// certificates.
func startSecured(t *testing.T, schedulers int) (*localcluster.Cluster, string) {
	t.Helper()
	dir := t.TempDir()
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: dir, Stores: 3, Schedulers: schedulers, StoreConfig: fastStores, TLS: true,
		OnExit: func(p *localcluster.Process, err error) {
			t.Errorf("%s ended by itself (%s): %s", p.Name, localcluster.ExitText(err),
				p.LastWords())
		},
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	return c, filepath.Join(dir, "certs")
}

func filesOf(dir, name string) security.Files {
	return security.Files{
		CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, name+".crt"),
		Key: filepath.Join(dir, name+".key"),
	}
}

func identityOf(t *testing.T, f security.Files) *security.Identity {
	t.Helper()
	id, err := security.LoadIdentity(f, nil)
	require.NoError(t, err)
	return id
}

func openAs(t *testing.T, c *localcluster.Cluster, f security.Files) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cl, err := client.Open(ctx, c.Endpoints(),
		client.Options{Timeout: 20 * time.Second, Identity: identityOf(t, f)})
	require.NoError(t, err)
	t.Cleanup(cl.Close)
	return cl
}

// TestSecuredCluster: who has a certificate of the cluster is served as far as its role goes;
// nobody else is.
func TestSecuredCluster(t *testing.T) {
	c, certs := startSecured(t, 1)
	cl := openAs(t, c, filesOf(certs, "client"))
	require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("v")))
	value, found, err := cl.Get(t.Context(), []byte("k"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "v", string(value))

	waitSecuredReplicas(t, cl, 3)
	t.Run("doctor", func(t *testing.T) {
		admin := filesOf(certs, "admin")
		var text []byte
		// reports of all stores and regions must be there
		eventually(t, 30*time.Second, func() (err error) {
			cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"), "-s",
				strings.Join(c.Endpoints(), ","),
				"--ca", admin.CA, "--cert", admin.Cert, "--key", admin.Key, "doctor")
			if text, err = cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, text)
			}
			return nil
		})
		for _, topic := range []string{
			"certificates", "clocks", "open files", "reached from here",
		} {
			require.Contains(t, string(text), "ok  "+topic)
		}
	})

	store, asClient := c.Stores[0].Addr, identityOf(t, filesOf(certs, "client"))
	t.Run("a client in a store's place", func(t *testing.T) {
		conn := rpc.New(security.Address(store, true),
			rpc.Options{Dial: security.DialService(nil, asClient.Client)})
		defer conn.Close()
		for name, open := range map[string]func(context.Context, tinykvpb.TinyKvClient) error{
			"raft": func(ctx context.Context, s tinykvpb.TinyKvClient) error {
				st, err := s.RaftBatch(ctx)
				if err == nil {
					err = st.Send(&rspb.BatchRaftMessage{})
				}
				if err == nil || err.Error() == "EOF" {
					_, err = st.CloseAndRecv()
				}
				return err
			},
			"snapshot": func(ctx context.Context, s tinykvpb.TinyKvClient) error {
				st, err := s.Snapshot(ctx)
				if err == nil {
					_, err = st.CloseAndRecv()
				}
				return err
			},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			err := open(ctx, tinykvpb.NewTinyKvClient(conn))
			cancel()
			require.Equal(t, codes.PermissionDenied, status.Code(err), "%s: %v", name, err)
		}
		p := cl.Placement()
		err := p.PutStore(t.Context(), &metapb.Store{Id: 99, Address: "127.0.0.1:1"})
		require.ErrorContains(t, err, "needs a certificate of the role node")
	})
	t.Run("without a certificate of the cluster", func(t *testing.T) {
		other := filepath.Join(t.TempDir(), "other")
		require.NoError(t, security.CreateCA(other))
		foreign, err := security.CreateCert(other,
			security.CertRequest{Name: "client", Role: security.RoleClient})
		require.NoError(t, err)
		foreign.CA = filesOf(certs, "client").CA // it trusts the cluster, which does not trust it
		late, err := security.CreateCert(certs,
			security.CertRequest{Name: "late", Role: security.RoleClient, Life: time.Nanosecond})
		require.NoError(t, err)
		for name, f := range map[string]security.Files{
			"foreign": foreign, "expired": late, "none": {CA: foreign.CA},
		} {
			refused(t, name, store, identityOf(t, f).Client)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			_, err := placement.New(ctx, c.Endpoints(), placement.WithIdentity(identityOf(t, f)))
			cancel()
			require.Error(t, err, name)
		}
		refused(t, "plain text", store, nil)
		for _, addr := range []string{store, c.Stores[0].Status, c.Schedulers[0].Addr} {
			nc, err := net.Dial("tcp", addr)
			require.NoError(t, err)
			require.NoError(t, nc.SetDeadline(time.Now().Add(20*time.Second)))
			_, _ = nc.Write([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
			b := make([]byte, 512)
			n, _ := nc.Read(b)
			_ = nc.Close()
			require.NotContains(t, string(b[:n]), "200 OK", "plain HTTP at %s", addr)
		}
	})
	t.Run("who trusts another authority", func(t *testing.T) {
		other := filepath.Join(t.TempDir(), "other")
		require.NoError(t, security.CreateCA(other))
		f := filesOf(certs, "client")
		f.CA = filepath.Join(other, "ca.crt")
		refused(t, "a server that is not trusted", store, identityOf(t, f).Client)
	})
}

// TestClusterWithRolesByName: a cluster of which no certificate has the URI of a role, so that the
// lists of names alone say who is a server, an admin or a client.
func TestClusterWithRolesByName(t *testing.T) {
	dir := t.TempDir()
	certs := filepath.Join(dir, "certs")
	require.NoError(t, security.CreateCA(certs))
	for _, r := range []security.CertRequest{
		{Name: "node", Hosts: []string{"127.0.0.1"}}, {Name: "admin"}, {Name: "client"},
		{Name: "printer"},
	} {
		_, err := security.CreateCert(certs, r)
		require.NoError(t, err)
	}
	const lists = "\n[security]\ncert-node-cn = [\"node\"]\n" +
		"cert-admin-cn = [\"admin\"]\ncert-client-cn = [\"client\"]\n"
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: dir, Stores: 3, Schedulers: 1, TLS: true,
		StoreConfig: fastStores + lists, SchedulerConfig: lists,
		OnExit: func(p *localcluster.Process, err error) {
			t.Errorf("%s ended by itself (%s): %s", p.Name, localcluster.ExitText(err),
				p.LastWords())
		},
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	cl := openAs(t, c, filesOf(certs, "client"))
	require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("v")))
	waitSecuredReplicas(t, cl, 3) // stores send each other messages of raft, and snapshots

	err = cl.Placement().PutStore(t.Context(), &metapb.Store{Id: 99, Address: "127.0.0.1:1"})
	require.ErrorContains(t, err, "needs a certificate of the role node")
	cluster, err := cl.Placement().GetClusterConfig(t.Context())
	require.NoError(t, err)
	require.ErrorContains(t, cl.Placement().PutClusterConfig(t.Context(), cluster),
		"needs a certificate of the role admin")
	admin := openAs(t, c, filesOf(certs, "admin"))
	require.NoError(t, admin.Placement().PutClusterConfig(t.Context(), cluster))
	refused(t, "in no list", c.Stores[0].Addr, identityOf(t, filesOf(certs, "printer")).Client)

	out, err := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"), "cert", "check",
		"--certs-dir", certs, "--config", filepath.Join(dir, "tinykv-server.toml")).CombinedOutput()
	require.Error(t, err, "one certificate is in no list")
	require.Equal(t, 1, strings.Count(string(out), "has no role"), "%s", out)
}

// refused expects that a store does not serve a get.
func refused(t *testing.T, name, store string, as func(...string) *tls.Config) {
	t.Helper()
	conn := rpc.New(security.Address(store, as != nil),
		rpc.Options{Dial: security.DialService(nil, as)})
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := tinykvpb.NewTinyKvClient(conn).RawGet(ctx, &kvrpcpb.RawGetRequest{Key: []byte("k")})
	require.Error(t, err, name)
	code := status.Code(err)
	require.True(t, code == codes.Unavailable || code == codes.DeadlineExceeded, "%s: %v", name,
		err)
}

// load writes and reads, and asks the placement service, until stopped, and counts what went wrong.
type load struct {
	wg      sync.WaitGroup
	stop    chan struct{}
	ops     atomic.Int64 // writes and reads
	stamps  atomic.Int64 // timestamps
	failure atomic.Pointer[error]
}

func startLoad(t *testing.T, cl *client.Client) *load {
	t.Helper()
	l := &load{stop: make(chan struct{})}
	for w := range 4 {
		l.run(&l.ops, func(ctx context.Context, i int) error {
			key, value := fmt.Appendf(nil, "load-%d", w), fmt.Append(nil, i)
			if err := cl.Put(ctx, key, value); err != nil {
				return err
			}
			got, _, err := cl.Get(ctx, key)
			if err == nil && string(got) != string(value) {
				err = fmt.Errorf("read %q after %q", got, value)
			}
			return err
		})
	}
	var last int64
	l.run(&l.stamps, func(ctx context.Context, _ int) error {
		physical, logical, err := cl.Placement().GetTS(ctx)
		ts := physical<<18 + logical
		if err == nil && ts <= last {
			err = fmt.Errorf("timestamp %d after %d", ts, last)
		}
		last = ts
		time.Sleep(time.Millisecond) // the pace; without it timestamps would take all the time
		return err
	})
	return l
}

// run calls f until the load is stopped, or f fails.
func (l *load) run(count *atomic.Int64, f func(context.Context, int) error) {
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		for i := 0; ; i++ {
			select {
			case <-l.stop:
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			err := f(ctx, i)
			cancel()
			if err != nil {
				l.failure.CompareAndSwap(nil, &err)
				return
			}
			count.Add(1)
		}
	}()
}

// end stops the load, which must have gone on without an error.
func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	if err := l.failure.Load(); err != nil {
		t.Fatal(*err)
	}
	t.Logf("%d writes and reads, %d timestamps without an error", l.ops.Load(), l.stamps.Load())
}

// goesOn waits until the load has gone on for a while.
func (l *load) goesOn(t *testing.T) {
	t.Helper()
	ops, stamps := l.ops.Load()+50, l.stamps.Load()+50
	require.Eventually(t, func() bool {
		return l.ops.Load() >= ops && l.stamps.Load() >= stamps || l.failure.Load() != nil
	}, 30*time.Second, time.Millisecond)
}

// put replaces a file, as a tool for certificates does.
func putFile(t *testing.T, path string, parts ...string) {
	t.Helper()
	var all []byte
	for _, p := range parts {
		data, err := os.ReadFile(p)
		require.NoError(t, err)
		all = append(all, data...)
	}
	require.NoError(t, os.WriteFile(path+".new", all, 0o600))
	require.NoError(t, os.Rename(path+".new", path))
}

// reread is longer than servers and clients take until they see new files.
const reread = 1200 * time.Millisecond

// TestNewAuthorityUnderLoad: a cluster changes its authority and all certificates, without a stop
// and without an error: first both authorities are trusted, then the certificates are new, then the
// old authority is gone. Members of the placement service read the authorities for the connections
// that they make to each other at their start, so they are restarted one after the other when the
// file has changed. A rolling restart at the end has every connection made anew.
func TestNewAuthorityUnderLoad(t *testing.T) {
	c, certs := startSecured(t, 3)
	cl := openAs(t, c, filesOf(certs, "client"))
	require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("v")))
	waitSecuredReplicas(t, cl, 3)
	next := filepath.Join(t.TempDir(), "next")
	require.NoError(t, security.CreateCA(next))
	for _, r := range []security.CertRequest{
		{Name: "node", Role: security.RoleNode, Hosts: []string{"127.0.0.1", "localhost"}},
		{Name: "client", Role: security.RoleClient}, {Name: "admin", Role: security.RoleAdmin},
	} {
		_, err := security.CreateCert(next, r)
		require.NoError(t, err)
	}
	oldCA := filepath.Join(t.TempDir(), "old.crt")
	putFile(t, oldCA, filepath.Join(certs, "ca.crt"))
	l := startLoad(t, cl)
	l.goesOn(t)
	putFile(t, filepath.Join(certs, "ca.crt"), oldCA, filepath.Join(next, "ca.crt"))
	time.Sleep(reread) // the time that the servers take is what is waited for
	restartSchedulers(t, c, certs, l)
	for _, name := range []string{"node", "client", "admin"} {
		putFile(t, filepath.Join(certs, name+".key"), filepath.Join(next, name+".key"))
		putFile(t, filepath.Join(certs, name+".crt"), filepath.Join(next, name+".crt"))
	}
	time.Sleep(reread)
	l.goesOn(t)
	putFile(t, filepath.Join(certs, "ca.crt"), filepath.Join(next, "ca.crt"))
	time.Sleep(reread)
	restartSchedulers(t, c, certs, l)
	for _, p := range c.Stores {
		p.Stop(20 * time.Second)
		require.NoError(t, p.Start())
		require.NoError(t, p.WaitReady(t.Context()))
		l.goesOn(t)
	}
	l.end(t)
	waitSecuredReplicas(t, cl, 3)
	fresh := openAs(t, c, filesOf(next, "client"))
	_, found, err := fresh.Get(t.Context(), []byte("k"))
	require.NoError(t, err)
	require.True(t, found)
	refusedOld := filesOf(certs, "client")
	refusedOld.CA = oldCA
	refused(t, "who trusts the old authority only", c.Stores[0].Addr,
		identityOf(t, refusedOld).Client)
}

// restartSchedulers restarts one after the other, each when the one before is a member again.
func restartSchedulers(t *testing.T, c *localcluster.Cluster, certs string, l *load) {
	t.Helper()
	admin := identityOf(t, filesOf(certs, "admin"))
	for _, p := range c.Schedulers {
		p.Stop(20 * time.Second)
		require.NoError(t, p.Start())
		require.NoError(t, p.WaitReady(t.Context()))
		eventually(t, 30*time.Second, func() error { return followsOrLeads(t, p.Addr, admin) })
		l.goesOn(t)
	}
}

// followsOrLeads is nil if a member knows the leaders of etcd and of the placement service.
func followsOrLeads(t *testing.T, addr string, id *security.Identity) error {
	web := &http.Client{
		Transport: &http.Transport{TLSClientConfig: id.Client(), DisableKeepAlives: true},
		Timeout:   10 * time.Second,
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
		"https://"+addr+"/api/v1/members", nil)
	require.NoError(t, err)
	resp, err := web.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var list struct {
		Members []struct {
			Leader     bool `json:"leader"`
			EtcdLeader bool `json:"etcd_leader"`
		} `json:"members"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return err
	}
	leaders, etcdLeaders := 0, 0
	for _, m := range list.Members {
		if m.Leader {
			leaders++
		}
		if m.EtcdLeader {
			etcdLeaders++
		}
	}
	if leaders != 1 || etcdLeaders != 1 {
		return fmt.Errorf("%s knows of no leader: %+v", addr, list.Members)
	}
	return nil
}

// waitSecuredReplicas waits until the first region has n replicas.
func waitSecuredReplicas(t *testing.T, cl *client.Client, n int) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		r, err := cl.Placement().GetRegion(t.Context(), []byte("k"))
		if err != nil || r == nil || r.Voters() != n || len(r.PendingPeers) > 0 {
			return fmt.Errorf("not %d replicas yet: %v, %w", n, r, err)
		}
		return nil
	})
}
