package node

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// TestLearnedFeatures: what is in force is on disk before the store uses it, and a restart knows
// it. A marker that cannot be written puts nothing in force; the next heartbeat tries again.
func TestLearnedFeatures(t *testing.T) {
	d, err := OpenDataDir(t.TempDir())
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	const known = feature.ConditionalOps | feature.Transactions
	f := &features{known: known}
	f.begin(d, Marker{Engine: "pebble", Mode: "raft", Features: known.Names()}, zap.NewNop())
	require.NoError(t, f.identify(7, 3))
	require.Zero(t, f.inForce())

	path := d.Path
	d.Path = d.Sub("missing")
	f.learn(feature.ConditionalOps)
	require.Zero(t, f.inForce(), "it was not possible to keep it")
	d.Path = path
	f.learn(feature.ConditionalOps | 1<<9)
	require.Equal(t, feature.ConditionalOps, f.inForce(),
		"what the program does not know is left out")
	f.learn(0)
	require.Equal(t, feature.ConditionalOps, f.inForce(), "nothing is taken back")

	m, err := d.ReadMarker()
	require.NoError(t, err)
	require.Equal(t, &Marker{
		Format: 3, Engine: "pebble", Mode: "raft", ClusterID: 7, StoreID: 3,
		Features: known.Names(), FeaturesOn: []string{"conditional-ops"},
	}, m)
	again := &features{known: known}
	again.begin(d, *m, zap.NewNop())
	require.Equal(t, feature.ConditionalOps, again.inForce())
}

// TestFeaturesOfANewCluster: they are in force once the first store has reported. A program that
// does not know them refuses the directory, and the placement service refuses its store.
func TestFeaturesOfANewCluster(t *testing.T) {
	s := servertest.StartTest(t)
	dir := t.TempDir()
	start := func(known feature.Set, dir string) (*Node, error) {
		return startedAs(t, known, func(c *config.Config) {
			c.DataDir, c.Scheduler = dir, []string{s.ClientURL()}
			c.Raftstore.StoreHeartbeatInterval.Duration = 20 * time.Millisecond
		})
	}
	n, err := start(feature.ConditionalOps, dir)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return n.features.inForce() == feature.ConditionalOps
	}, 20*time.Second, 5*time.Millisecond)
	n.Stop()
	_, err = start(feature.Transactions, dir)
	require.ErrorContains(t, err, "conditional-ops")
	_, err = start(feature.Transactions, t.TempDir())
	require.ErrorContains(t, err, "the cluster uses conditional-ops, which store")
	text, err := os.ReadFile(dir + "/" + markerFile)
	require.NoError(t, err)
	require.Contains(t, string(text), "format = 3\n", "a program of before refuses it")
	n, err = start(feature.ConditionalOps|feature.Transactions, dir)
	require.NoError(t, err)
	require.True(t, n.features.inForce().Has(feature.ConditionalOps),
		"known from the first moment on")
	require.Eventually(t, func() bool {
		return n.features.inForce().Has(feature.Transactions)
	}, 20*time.Second, 5*time.Millisecond, "all stores know it now")
}

// TestUpgradeOneByOne: a cluster of two stores is upgraded. The feature comes into force with the
// second one, which starts again with what it has.
func TestUpgradeOneByOne(t *testing.T) {
	s := servertest.StartTest(t)
	start := func(known feature.Set, dir string) *Node {
		t.Helper()
		n, err := startedAs(t, known, func(c *config.Config) {
			c.DataDir, c.Scheduler = dir, []string{s.ClientURL()}
			c.Raftstore.StoreHeartbeatInterval.Duration = 20 * time.Millisecond
		})
		require.NoError(t, err)
		return n
	}
	beats := func(n *Node) {
		t.Helper()
		was := s.Cluster().Core().Store(n.StoreID()).LastHeartbeat()
		require.Eventually(t, func() bool {
			return s.Cluster().Core().Store(n.StoreID()).LastHeartbeat().After(was)
		}, 20*time.Second, 5*time.Millisecond)
	}
	oldDir := t.TempDir()
	older := start(0, oldDir)
	text, err := os.ReadFile(oldDir + "/" + markerFile)
	require.NoError(t, err)
	require.Contains(t, string(text), "format = 2\n", "an older program can go on with it")
	newer := start(feature.ConditionalOps, t.TempDir())
	beats(older)
	beats(newer)
	require.Zero(t, newer.features.inForce(), "store %d does not know it", older.StoreID())

	older.Stop()
	beats(newer)
	require.Zero(t, newer.features.inForce(), "it is away, and may come back as it was")
	upgraded := start(feature.ConditionalOps, oldDir)
	require.Equal(t, older.StoreID(), upgraded.StoreID())
	for _, n := range []*Node{newer, upgraded} {
		require.Eventually(t, func() bool {
			return n.features.inForce() == feature.ConditionalOps
		}, 20*time.Second, 5*time.Millisecond)
	}
}
