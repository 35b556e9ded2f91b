package server_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// TestFeatures: a feature comes into force once all stores announce it, for good; a store without
// it is refused from then on, also by the next leader. Stores that are gone for good do not count.
func TestFeatures(t *testing.T) {
	const both = feature.ConditionalOps | feature.Transactions
	cfg := servertest.Config(t)
	s := servertest.Start(t, cfg, zap.NewNop())
	c := newClient(t, s.ClientURL())
	put := func(id uint64, f feature.Set) error {
		return c.PutStore(t.Context(),
			&metapb.Store{
				Id: id, Address: "s" + string(rune('0'+id)), Version: "v9", Features: uint64(f),
			})
	}
	inForce := func(id uint64) feature.Set {
		t.Helper()
		f, err := c.Heartbeat(t.Context(),
			&schedulerpb.StoreStats{StoreId: id, Capacity: 1 << 40, Available: 1 << 40})
		require.NoError(t, err)
		return f
	}
	require.NoError(t, c.Bootstrap(t.Context(), &metapb.Store{Id: 1, Address: "s1"}, nil))
	require.NoError(t, put(1, 0))
	require.NoError(t, put(2, both))
	require.NoError(t, put(3, feature.Transactions))
	require.Zero(t, inForce(2), "store 1 is of an older version")
	require.NoError(t, put(1, both))
	require.Equal(t, feature.Transactions, inForce(2))
	require.Equal(t, []any{"transactions"}, call(t, s, "GET", "/stores/3", "", 200)["features"],
		"what holds the other one back")
	require.Equal(t, []any{"transactions"}, call(t, s, "GET", "/cluster", "", 200)["features"])
	require.ErrorContains(t, put(1, feature.ConditionalOps),
		"the cluster uses transactions, which store 1 of version \"v9\" does not know")
	require.ErrorContains(t, put(4, 0), "start it with a newer tinykv-server", "a new store, too")
	require.Equal(t, feature.Transactions, inForce(3), "nothing is taken back")

	require.NoError(t, s.OfflineStore(t.Context(), 3))
	require.Equal(t, feature.Transactions, inForce(1), "a leaving store still has replicas")
	require.NoError(t, s.UpStore(t.Context(), 3))
	require.NoError(t, put(3, both))
	require.Equal(t, both, inForce(1))

	s.Stop()
	s = servertest.Start(t, cfg, zap.NewNop())
	c = newClient(t, s.ClientURL())
	require.Equal(t, both, inForce(1), "recorded")
	require.ErrorContains(t, put(2, feature.Transactions), "conditional-ops")
}

// TestTombstonesDoNotCount: what a store that is gone for good did not know comes into force
// without it.
func TestTombstonesDoNotCount(t *testing.T) {
	s := servertest.StartTest(t)
	c := newClient(t, s.ClientURL())
	require.NoError(t,
		c.Bootstrap(t.Context(), &metapb.Store{Id: 1, Address: "s1", Features: 1}, nil))
	f, err := c.Heartbeat(t.Context(), &schedulerpb.StoreStats{StoreId: 1})
	require.NoError(t, err)
	require.Equal(t, feature.ConditionalOps, f, "a new cluster has what its first store knows")
	require.NoError(t, c.PutStore(t.Context(), &metapb.Store{Id: 1, Address: "s1", Features: 3}))
	require.NoError(t, c.PutStore(t.Context(), &metapb.Store{Id: 2, Address: "s2", Features: 1}))
	f, err = c.Heartbeat(t.Context(), &schedulerpb.StoreStats{StoreId: 1})
	require.NoError(t, err)
	require.Equal(t, feature.ConditionalOps, f)
	require.NoError(t, server.SetState(t.Context(), s, 2, metapb.StoreState_Tombstone))
	f, err = c.Heartbeat(t.Context(), &schedulerpb.StoreStats{StoreId: 1})
	require.NoError(t, err)
	require.Equal(t, feature.ConditionalOps|feature.Transactions, f)
}
