package tests

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/tests/cluster"
)

// TestFlippedBitsBetweenStores: bits of entries flip on their way between stores, beyond what the
// transport notices. What is damaged is dropped, counted and sent again; no replica applies it.
func TestFlippedBitsBetweenStores(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3})
	c.WaitLeader(cluster.FirstRegionID)
	cl := c.Client()
	defer cl.Close()
	c.Net.SetFlips(0.3)
	for i := range 300 {
		mustPut(t, c, cl, fmt.Sprintf("key-%03d", i%50), fmt.Sprintf("value-%d", i))
		if i == 150 {
			c.Split([]byte("key-025"))
		}
	}
	c.Net.SetFlips(0)
	for i := 250; i < 300; i++ {
		mustGet(t, c, cl, fmt.Sprintf("key-%03d", i%50), fmt.Sprintf("value-%d", i))
	}
	c.CheckConsistency()
	dropped := uint64(0)
	for _, n := range c.Nodes() {
		dropped += n.Store().Work().CorruptEntries
	}
	require.Positive(t, c.Net.Flipped.Load())
	require.Positive(t, dropped)
	t.Logf("%d bits flipped, %d entries refused", c.Net.Flipped.Load(), dropped)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	require.NoError(t, cl.Put(ctx, []byte("after"), nil))
}
