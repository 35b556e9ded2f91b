package tests

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/tests/cluster"
)

// TestLeaderThatTheClientCannotReach: another store passes the client's requests on, while the
// leader stays where it is.
func TestLeaderThatTheClientCannotReach(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	leader := c.WaitLeader(cluster.FirstRegionID)
	var cut atomic.Uint64
	cl := c.ClientCutOff(func(store uint64) bool { return store == cut.Load() })
	defer cl.Close()
	mustPut(t, c, cl, "a", "1")
	cut.Store(leader.ID)
	mustPut(t, c, cl, "b", "2") // finds the way
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	require.NoError(t, cl.Put(ctx, []byte("c"), []byte("3")))
	v, found, err := cl.Get(ctx, []byte("b"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "2", string(v))
	require.NoError(t, cl.Delete(ctx, []byte("a")))
	kvs, err := cl.Scan(ctx, nil, nil, 10)
	require.NoError(t, err)
	require.Len(t, kvs, 2)
	require.Equal(t, leader, c.WaitLeader(cluster.FirstRegionID))
	require.NotZero(t, forwarded(c))

	cut.Store(0)
	c.Eventually(10*time.Second, func() string {
		before := forwarded(c)
		mustPut(t, c, cl, "d", "4")
		if forwarded(c) > before {
			return "still goes by way of another store"
		}
		return ""
	})
}

// forwarded is how many requests the stores have passed on.
func forwarded(c *cluster.Cluster) (n uint64) {
	for _, node := range c.Nodes() {
		n += node.Server().Forwarded()
	}
	return n
}

// TestHistoryOfClientsThatAreCutOff: leaders move and stores crash, while no client reaches more
// than two stores of three, and which ones changes. What is passed on is linearizable with the
// rest.
func TestHistoryOfClientsThatAreCutOff(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	c.WaitLeader(cluster.FirstRegionID)
	h := cluster.NewHistory()
	stop := make(chan struct{})
	var clients, faults sync.WaitGroup
	begun := time.Now()
	for i := range 4 {
		cl := c.ClientCutOff(func(store uint64) bool {
			return store == uint64((i+int(time.Since(begun)/(700*time.Millisecond)))%3+1)
		})
		defer cl.Close()
		clients.Add(1)
		go func() { defer clients.Done(); runClient(cl, h, i, stop) }()
	}
	var counts faultCounts
	faults.Add(2)
	go func() { defer faults.Done(); transferer(c, &counts, stop) }()
	go func() { defer faults.Done(); crasher(c, &counts, stop) }()
	for begun := time.Now(); time.Since(begun) < 4*time.Second ||
		h.Known() < 200 && time.Since(begun) < 20*time.Second; {
		time.Sleep(20 * time.Millisecond) // not a synchronisation: the length of the round
	}
	close(stop)
	faults.Wait()
	for _, n := range c.Nodes() {
		n.Restart()
	}
	clients.Wait()
	c.CheckConsistency()
	h.Check(t)
	require.GreaterOrEqual(t, h.OK, 200)
	t.Logf("%d operations, %d unknown, %d requests passed on by the last runs of the stores", h.OK,
		h.Unknown, forwarded(c))
}

// TestRouteFromBeforeTheReplicas: a client that knows a region from when it had one peer finds the
// others once that one does not lead any more, whether it answers or not.
func TestRouteFromBeforeTheReplicas(t *testing.T) {
	for name, end := range map[string]func(c *cluster.Cluster, n *cluster.Node){
		"cut off": func(c *cluster.Cluster, n *cluster.Node) { c.Net.Partition([]uint64{n.ID}) },
		"stopped": func(_ *cluster.Cluster, n *cluster.Node) { n.Stop() },
	} {
		t.Run(name, func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Stores: 3, Replicas: 1})
			old := c.WaitLeader(cluster.FirstRegionID)
			cl := c.Client()
			defer cl.Close()
			mustPut(t, c, cl, "k", "1") // the region has one peer
			for id := uint64(1); id <= 3; id++ {
				if id != old.ID {
					c.AddPeer(cluster.FirstRegionID, id)
				}
			}
			c.CheckConsistency() // all three have everything
			end(c, old)
			mustPut(t, c, cl, "k", "2")
			mustGet(t, c, cl, "k", "2")
		})
	}
}
