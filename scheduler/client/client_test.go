package client_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			_, _ = os.Stderr.WriteString(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

const waitFor, tick = 10 * time.Second, 2 * time.Millisecond

// start returns a service that needs no etcd, on a fixed address.
func start(t *testing.T, addr string) *server.Server {
	t.Helper()
	cfg := servertest.Config(t)
	cfg.Storage.Backend = "memory"
	if addr != "" {
		cfg.ClientUrls = "http://" + addr
	}
	return servertest.Start(t, cfg, nil)
}

func dial(t *testing.T, endpoints ...string) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitFor)
	defer cancel()
	c, err := client.New(ctx, endpoints)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func bootstrap(t *testing.T, c *client.Client) *metapb.Region {
	t.Helper()
	r := &metapb.Region{
		Id: 2, RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		Peers: []*metapb.Peer{{Id: 3, StoreId: 1}},
	}
	require.NoError(t, c.Bootstrap(t.Context(), &metapb.Store{Id: 1, Address: "s1"}, r))
	return r
}

// A client that is started first waits, says so, and goes on when the service comes.
func TestNewWaitsForTheService(t *testing.T) {
	addr := servertest.FreeAddr(t)
	seen, logs := observer.New(zap.WarnLevel)
	type result struct {
		c   *client.Client
		err error
	}
	done := make(chan result, 1)
	go func() {
		c, err := client.New(t.Context(), []string{addr}, client.WithLogger(zap.New(seen)))
		done <- result{c, err}
	}()
	require.Eventually(t, func() bool {
		return logs.FilterMessage("waiting for the scheduler").Len() == 1
	}, waitFor, tick)
	start(t, addr)
	res := <-done
	require.NoError(t, res.err)
	defer res.c.Close()
	require.NotZero(t, res.c.ClusterID())
}

func TestNewEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := client.New(ctx, []string{servertest.FreeAddr(t)})
	require.ErrorContains(t, err, "not reachable")
	_, err = client.New(ctx, nil)
	require.ErrorContains(t, err, "no endpoint")
}

// A member that accepts connections and never answers does not hold up discovery.
func TestHangingMember(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed with the test
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	s := start(t, "")
	began := time.Now()
	c := dial(t, l.Addr().String(), s.ClientURL())
	require.Less(t, time.Since(began), time.Second)
	_, err = c.AllocID(t.Context())
	require.NoError(t, err)
}

// Region heartbeats are merged by region while they wait; the newest one arrives. After a new
// stream was bound the store is asked to send everything again.
func TestHeartbeatsMergeAndRebind(t *testing.T) {
	addr := servertest.FreeAddr(t)
	s := start(t, addr)
	c := dial(t, addr)
	region := bootstrap(t, c)
	var mu sync.Mutex
	rebound := 0
	c.SetReconnectHandler(func() { mu.Lock(); rebound++; mu.Unlock() })
	for size := range uint64(1000) {
		c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
			Region: region, Leader: region.Peers[0], Term: 6, ApproximateSize: (size + 1) << 20,
		})
	}
	require.Eventually(t, func() bool {
		return s.Cluster().Core().Region(2).Size() == 1000
	}, waitFor, tick)
	require.Zero(t, c.DroppedHeartbeats())
	mu.Lock()
	require.Zero(t, rebound, "the first stream is no reconnect")
	mu.Unlock()
	s.Stop()
	// must not block
	c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
		Region: region, Leader: region.Peers[0], Term: 7,
	})
	require.NotPanics(t, c.Close)
	require.NotPanics(t, c.Close, "closing twice")
	_, err := c.AllocID(t.Context())
	require.ErrorIs(t, err, client.ErrClosed)
	_, _, err = c.GetTS(t.Context())
	require.Error(t, err)
}

// A service of another cluster on the same address is not taken for the old one.
func TestAnotherCluster(t *testing.T) {
	addr := servertest.FreeAddr(t)
	s := start(t, addr)
	c := dial(t, addr)
	bootstrap(t, c)
	s.Stop()
	start(t, addr)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := c.GetRegion(ctx, nil)
	require.Error(t, err)
	require.ErrorContains(t, err, "cluster id")
}

// Many callers get distinct timestamps in batches.
func TestTimestampsAreBatched(t *testing.T) {
	s := start(t, "")
	c := dial(t, s.ClientURL())
	var mu sync.Mutex
	seen := map[[2]int64]bool{}
	var wg sync.WaitGroup
	for range 200 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			last := [2]int64{}
			for range 20 {
				p, l, err := c.GetTS(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if p < last[0] || p == last[0] && l <= last[1] {
					t.Errorf("(%d,%d) after %v", p, l, last)
				}
				last = [2]int64{p, l}
				mu.Lock()
				if seen[last] {
					t.Errorf("%v twice", last)
				}
				seen[last] = true
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	require.Len(t, seen, 4000)
}

// Lookups that wait at the same time share requests; each caller gets the region of its own key,
// also where none is known, and also from a service that knows no shared requests.
func TestLookupsAreShared(t *testing.T) {
	const regions = 100
	s := start(t, "")
	bootstrap(t, dial(t, s.ClientURL()))
	for i := range regions {
		r := &metapb.Region{
			Id: uint64(i + 10), StartKey: fmt.Appendf(nil, "k%03d", i),
			EndKey:      fmt.Appendf(nil, "k%03d", i+1),
			RegionEpoch: &metapb.RegionEpoch{Version: 2, ConfVer: 1},
			Peers:       []*metapb.Peer{{Id: uint64(i + 1000), StoreId: 1}},
		}
		require.NoError(t, s.Cluster().HandleRegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
			Region: r, Leader: r.Peers[0], Term: 6,
		}))
	}
	proxy := &counter{to: servertest.DirectClient(t, s.ClientAddr())}
	proxy.serve(t)
	look := func() {
		c := dial(t, proxy.addr)
		var wg sync.WaitGroup
		for g := range 64 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := range 50 {
					n := (g*7 + i) % (regions + 1)
					r, err := c.GetRegion(t.Context(), fmt.Appendf(nil, "k%03dx", n))
					switch {
					case err != nil:
						t.Errorf("key %d: %v", n, err)
					case n == regions && r != nil:
						t.Errorf("got region %d where there is none", r.Meta.Id)
					case n < regions &&
						(r == nil || r.Meta.Id != uint64(n+10) || r.Leader.GetStoreId() != 1):
						t.Errorf("key %d: got %v", n, r)
					}
				}
			}()
		}
		wg.Wait()
	}
	look()
	require.Zero(t, proxy.single.Load())
	require.Less(t, proxy.shared.Load(), int64(64*50/4), "requests are shared")
	proxy.old.Store(true)
	look()
	require.EqualValues(t, 64*50, proxy.single.Load())
}

// counter is a service that passes lookups on and counts them; old is one of before requests were
// shared.
type counter struct {
	schedulerpb.UnimplementedSchedulerServer
	to             schedulerpb.SchedulerClient
	addr           string
	old            atomic.Bool
	single, shared atomic.Int64
}

func (p *counter) serve(t *testing.T) {
	t.Helper()
	gs := grpc.NewServer(codec.ServerOption())
	schedulerpb.RegisterSchedulerServer(gs, p)
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed with the test
	require.NoError(t, err)
	p.addr = l.Addr().String()
	go func() { _ = gs.Serve(l) }() // ends with Stop
	t.Cleanup(gs.Stop)
}

func (p *counter) GetMembers(
	ctx context.Context, req *schedulerpb.GetMembersRequest,
) (*schedulerpb.GetMembersResponse, error) {
	resp, err := p.to.GetMembers(ctx, req)
	if err == nil {
		resp.Leader.ClientUrls, resp.Members = []string{p.addr}, nil
	}
	return resp, err
}

func (p *counter) GetRegion(
	ctx context.Context, req *schedulerpb.GetRegionRequest,
) (*schedulerpb.GetRegionResponse, error) {
	p.single.Add(1)
	return p.to.GetRegion(ctx, req)
}

func (p *counter) GetRegions(
	ctx context.Context, req *schedulerpb.GetRegionsRequest,
) (*schedulerpb.GetRegionsResponse, error) {
	if p.old.Load() {
		return p.UnimplementedSchedulerServer.GetRegions(ctx, req)
	}
	p.shared.Add(1)
	return p.to.GetRegions(ctx, req)
}

func TestRegionsAndConfig(t *testing.T) {
	s := servertest.StartTest(t, func(c *config.Config) { c.Storage.Backend = "memory" })
	c := dial(t, s.ClientURL())
	parent := bootstrap(t, c)
	ctx := t.Context()
	c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
		Region: parent, Leader: parent.Peers[0], Term: 6,
	})
	require.Eventually(t, func() bool {
		return s.Cluster().Core().Region(2).Confirmed()
	}, waitFor, tick)

	ids, err := c.AskSplit(ctx, parent)
	require.NoError(t, err)
	require.Len(t, ids.NewPeerIds, 1)
	stale := *parent
	stale.RegionEpoch = &metapb.RegionEpoch{}
	_, err = c.AskSplit(ctx, &stale)
	require.ErrorIs(t, err, client.ErrRejected)

	left, right := *parent, metapb.Region{Id: ids.NewRegionId, StartKey: []byte("m")}
	left.EndKey, left.RegionEpoch = []byte("m"), &metapb.RegionEpoch{Version: 2, ConfVer: 1}
	right.RegionEpoch, right.Peers = left.RegionEpoch,
		[]*metapb.Peer{{Id: ids.NewPeerIds[0], StoreId: 1}}
	require.NoError(t, c.ReportSplit(ctx, &left, &right))
	require.Error(t, c.ReportSplit(ctx, &left, &left))
	for key, want := range map[string]uint64{"a": 2, "m": ids.NewRegionId, "z": ids.NewRegionId} {
		r, err := c.GetRegion(ctx, []byte(key))
		require.NoError(t, err)
		require.Equal(t, want, r.Meta.Id)
		require.EqualValues(t, 1, r.Leader.StoreId, "the same store leads both halves")
	}
	prev, err := c.GetPrevRegion(ctx, []byte("z"))
	require.NoError(t, err)
	require.EqualValues(t, 2, prev.Meta.Id)
	none, err := c.GetPrevRegion(ctx, []byte("a"))
	require.NoError(t, err)
	require.Nil(t, none)
	none, err = c.GetRegionByID(ctx, 12345)
	require.NoError(t, err)
	require.Nil(t, none)
	list, err := c.ScanRegions(ctx, nil, nil, 0)
	require.NoError(t, err)
	require.Len(t, list, 2)
	list, err = c.ScanRegions(ctx, []byte("b"), []byte("m"), 10)
	require.NoError(t, err)
	require.Len(t, list, 1)

	require.NoError(t, c.PutClusterConfig(ctx, &metapb.Cluster{MaxPeerCount: 5}))
	cfg, err := c.GetClusterConfig(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 5, cfg.MaxPeerCount)
	require.Equal(t, 5, s.Cluster().Settings().Replication.MaxReplicas)
	require.Error(t, c.PutClusterConfig(ctx, &metapb.Cluster{}))
	_, err = c.GetOperator(ctx, 2)
	require.ErrorIs(t, err, client.ErrRegionNotFound)
	require.NoError(t, c.ScatterRegion(ctx, 2))
	members, err := c.GetMembers(ctx)
	require.NoError(t, err)
	require.Len(t, members.Members, 1)
}

// TestEndpointsThatCannotAnswer: what can never work is refused at once, not waited for.
func TestEndpointsThatCannotAnswer(t *testing.T) {
	_, err := client.New(t.Context(), []string{"https://127.0.0.1:1"})
	require.ErrorContains(t, err, "uses TLS")
	_, err = client.New(t.Context(), []string{"http://127.0.0.1:1"},
		client.WithTLS(&tls.Config{MinVersion: tls.VersionTLS12}))
	require.ErrorContains(t, err, "does not use TLS")
}
