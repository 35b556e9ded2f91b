package tests

import (
	"fmt"
	"testing"
	"time"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/tests/cluster"
)

// TestSplitThatWasRefusedComesAgain: a region is too big, its split is refused, and nothing is
// written any more. It is split all the same, once nobody refuses.
func TestSplitThatWasRefusedComesAgain(t *testing.T) {
	c := cluster.New(t, cluster.Options{Stores: 3, Tune: func(cfg *config.Config) {
		cfg.Raftstore.RegionSplitSize, cfg.Raftstore.RegionMaxSize = 8*config.KiB, 12*config.KiB
	}})
	cl := c.Client()
	defer cl.Close()
	mustPut(t, c, cl, "k", "v")
	c.Placement.SetOff(true)
	for i := range 30 {
		mustPut(t, c, cl, fmt.Sprintf("k%02d", i), string(make([]byte, 1000)))
	}
	before := c.Placement.RefusedSplits()
	c.Eventually(20*time.Second, func() string {
		if n := c.Placement.RefusedSplits() - before; n < 3 {
			return fmt.Sprintf("%d requests for a split since the last write", n)
		}
		return ""
	})
	c.Placement.SetOff(false)
	c.Eventually(20*time.Second, func() string {
		if n := len(c.Placement.All()); n < 3 {
			return fmt.Sprintf("%d regions", n)
		}
		return ""
	})
	c.CheckConsistency()
}
