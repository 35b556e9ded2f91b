package server_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// TestMain looks for leaked goroutines for a while: connections between etcd members end only with
// their read timeout of five seconds.
func TestMain(m *testing.M) {
	flag.Parse()
	// The tests that run side by side wait most of the time, for members and leases.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	code := m.Run()
	var leak error
	for end := time.Now().Add(waitFor); code == 0 && time.Now().Before(end); {
		if leak = goleak.Find(); leak == nil {
			break
		}
	}
	if leak != nil && code == 0 {
		fmt.Fprintln(os.Stderr, leak)
		code = 1
	}
	os.Exit(code)
}

const waitFor, tick = 30 * time.Second, 5 * time.Millisecond

func newClient(t *testing.T, endpoints ...string) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := client.New(ctx, endpoints)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func TestBootstrapIDsTimestampsAndStores(t *testing.T) {
	s := servertest.StartTest(t)
	c := newClient(t, s.ClientURL())
	ctx := t.Context()
	require.NotZero(t, c.ClusterID())

	ok, err := c.IsBootstrapped(ctx)
	require.NoError(t, err)
	require.False(t, ok)
	_, err = c.GetRegion(ctx, []byte("k"))
	require.ErrorIs(t, err, client.ErrNotBootstrapped)

	id1, err := c.AllocID(ctx)
	require.NoError(t, err)
	id2, err := c.AllocID(ctx)
	require.NoError(t, err)
	require.Greater(t, id2, id1)

	store := &metapb.Store{Id: id1, Address: "127.0.0.1:1"}
	first := &metapb.Region{
		Id: id2, RegionEpoch: &metapb.RegionEpoch{ConfVer: 1, Version: 1},
		Peers: []*metapb.Peer{{Id: id2 + 1, StoreId: id1}},
	}
	require.NoError(t, c.Bootstrap(ctx, store, first))
	require.NoError(t, c.Bootstrap(ctx, store, first), "the same store may repeat it")
	require.ErrorIs(t, c.Bootstrap(ctx, &metapb.Store{Id: 99, Address: "x"}, nil),
		client.ErrAlreadyBootstrapped)
	r, err := c.GetRegion(ctx, []byte("k"))
	require.NoError(t, err)
	require.Equal(t, id2, r.Meta.Id)
	require.Nil(t, r.Leader)

	require.ErrorIs(t, c.PutStore(ctx, &metapb.Store{Id: 77, Address: "127.0.0.1:1"}),
		client.ErrRejected)
	_, err = c.GetStore(ctx, 12345)
	require.ErrorIs(t, err, client.ErrStoreNotFound)

	var last uint64
	for range 100 {
		p, l, err := c.GetTS(ctx)
		require.NoError(t, err)
		ts := uint64(p)<<18 | uint64(l)
		require.Greater(t, ts, last)
		last = ts
	}
	sp, err := c.UpdateGCSafePoint(ctx, 100)
	require.NoError(t, err)
	require.EqualValues(t, 100, sp)
	sp, err = c.UpdateGCSafePoint(ctx, 50)
	require.NoError(t, err)
	require.EqualValues(t, 100, sp, "the safe point never goes back")
}

// fakeStores carry out commands at once: the shortest possible store.
type fakeStores struct {
	t      *testing.T
	region *metapb.Region
	leader *metapb.Peer
	c      *client.Client
	seen   chan *metapb.Region
}

func (f *fakeStores) heartbeat() {
	f.c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
		Region: f.region, Leader: f.leader, ApproximateSize: 10 << 20, Term: 6,
	})
}

func (f *fakeStores) onCommand(resp *schedulerpb.RegionHeartbeatResponse) {
	cp := resp.GetChangePeer()
	if cp == nil || resp.RegionEpoch.GetConfVer() != f.region.RegionEpoch.ConfVer {
		return
	}
	next := *f.region
	next.RegionEpoch = &metapb.RegionEpoch{Version: 1, ConfVer: f.region.RegionEpoch.ConfVer + 1}
	if cp.ChangeType == eraftpb.ConfChangeType_AddNode {
		next.Peers = append(append([]*metapb.Peer{}, f.region.Peers...), cp.Peer)
	}
	f.region = &next
	f.heartbeat()
	f.seen <- &next
}

func bootstrapped(t *testing.T, s *server.Server, stores int) (*client.Client, *metapb.Region) {
	t.Helper()
	c := newClient(t, s.ClientURL())
	ctx := t.Context()
	first := &metapb.Region{
		Id: 1000, RegionEpoch: &metapb.RegionEpoch{ConfVer: 1, Version: 1},
		Peers: []*metapb.Peer{{Id: 1001, StoreId: 1}},
	}
	require.NoError(t, c.Bootstrap(ctx, &metapb.Store{Id: 1, Address: "s1"}, first))
	for i := range stores {
		id := uint64(i + 1)
		require.NoError(t,
			c.PutStore(ctx, &metapb.Store{Id: id, Address: "s" + string(rune('0'+id))}))
		require.NoError(t, c.StoreHeartbeat(ctx, &schedulerpb.StoreStats{
			StoreId: id, Capacity: 1 << 40, Available: 1 << 40, RegionCount: 1,
		}))
	}
	return c, first
}

func TestFirstRegionGetsThreeReplicas(t *testing.T) {
	s := servertest.StartTest(t)
	c, first := bootstrapped(t, s, 3)
	f := &fakeStores{
		t: t, region: first, leader: first.Peers[0], c: c, seen: make(chan *metapb.Region, 10),
	}
	c.SetRegionHeartbeatHandler(f.onCommand)
	began := time.Now()
	f.heartbeat()
	for want := 2; want <= 3; want++ {
		select {
		case r := <-f.seen:
			require.Len(t, r.Peers, want)
		case <-time.After(10 * time.Second):
			t.Fatalf("no command; operators: %v", s.Cluster().Controller().Records())
		}
	}
	t.Logf("three replicas after %v", time.Since(began))
	require.Less(t, time.Since(began), 2*time.Second)
	resp, err := c.GetOperator(t.Context(), first.Id)
	require.NoError(t, err)
	require.Equal(t, "make-up-replica", string(resp.Desc))
}
