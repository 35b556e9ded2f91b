package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestStoreOfflineWaits: the command ends when the store is empty and retired, and the data is
// elsewhere.
func TestStoreOfflineWaits(t *testing.T) {
	c := start(t, 4)
	cl := open(t, c)
	for i := range 20 {
		require.NoError(t, cl.Put(t.Context(), fmt.Appendf(nil, "k%02d", i), make([]byte, 1<<10)))
	}
	waitReplicas(t, c, 3)
	k := console{t, c}
	var rs []regionView
	eventually(t, 20*time.Second, func() error {
		k.json("region list", &rs)
		if len(rs) != 1 || len(rs[0].Peers) != 3 {
			return fmt.Errorf("not at rest: %v", rs)
		}
		return nil
	})
	r, _, _ := k.where(rs[0].ID)
	k.has(fmt.Sprintf("store offline %d --wait", r.Leader),
		fmt.Sprintf("store %d is empty and retired", r.Leader))
	k.has("events -n 1000", "store-offline", "store-tombstone")
	k.json("region list", &rs)
	for _, p := range rs[0].Peers {
		require.NotEqual(t, r.Leader, p.Store)
	}
	require.Len(t, rs[0].Peers, 3)
	k.fails(fmt.Sprintf("store offline %d --wait", r.Leader), "is tombstone")
}
