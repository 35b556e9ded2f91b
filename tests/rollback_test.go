package tests

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/tests/cluster"
)

// rolledBack runs a cluster of three stores in which store b lags, lets b2 acknowledge writes, and
// puts an older copy of its disks in place. It returns when the copy is quarantined.
func rolledBack(t *testing.T) (c *cluster.Cluster, leader, lagging, copied *cluster.Node) {
	t.Helper()
	c = cluster.New(t, cluster.Options{Stores: 3})
	leader = c.WaitLeader(first)
	for _, n := range c.Nodes() {
		switch {
		case n == leader:
		case lagging == nil:
			lagging = n
		default:
			copied = n
		}
	}
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "old")
	c.CheckConsistency()
	images, err := copied.Images([]cluster.Loss{{Log: faultfs.KeepAll, Engine: faultfs.KeepAll}},
		rand.New(rand.NewPCG(1, 1)))
	require.NoError(t, err)
	c.Net.Partition([]uint64{leader.ID, copied.ID}, []uint64{lagging.ID})
	for i := range 20 {
		mustPut(t, c, cl, "k", fmt.Sprint("new-", i))
	}
	copied.Stop()
	copied.Replace(images[0])
	copied.Restart()
	c.Eventually(20*time.Second, func() string {
		if reason := copied.Store().Quarantined()[first]; reason == "" {
			return "the rolled back replica is not quarantined"
		}
		return ""
	})
	return c, leader, lagging, copied
}

// TestRolledBackStore: a store comes back with an older copy of its disks, without entries that it
// had acknowledged. Its replica is quarantined as soon as its leader speaks to it. When the leader
// dies, the other two must not elect one of them: the acknowledged writes would be gone without a
// word.
func TestRolledBackStore(t *testing.T) {
	c, leader, lagging, copied := rolledBack(t)
	require.Contains(t, copied.Store().Quarantined()[first], "an older copy")
	leader.Stop()
	c.Net.Heal()
	deadline := time.Now().Add(30 * c.ElectionTimeout())
	for time.Now().Before(deadline) {
		p := cluster.PeerOf(c, lagging.ID, first)
		require.NotNil(t, p)
		require.False(t, p.IsLeader,
			"elected with the help of a store that has forgotten what it acknowledged")
		time.Sleep(time.Millisecond) // the absence of an election is what is observed
	}
	leader.Restart()
	cl := c.Client()
	defer cl.Close()
	mustGet(t, c, cl, "k", "new-19")
}
