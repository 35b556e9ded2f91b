package crash

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// scenario is a piece of a store's life.
type scenario struct {
	name             string
	stores, replicas int
	tune             func(*config.Config)
	// crash is the store that will crash.
	crash uint64
	// before brings the cluster to where the piece begins; crash points are taken during run.
	before func(c *cluster.Cluster, w *writer)
	run    func(c *cluster.Cluster, w *writer)
}

const region = cluster.FirstRegionID

// keys lie in all parts that the scenarios split off.
var keys = []string{"a", "b1", "b2", "c", "d1", "e"}

// prepare makes the crashing store the leader or a follower.
func (s *scenario) prepare(c *cluster.Cluster, w *writer) uint64 {
	w.put(keys...)
	if s.before != nil {
		s.before(c, w)
	}
	return s.crash
}

// lead makes a store lead the first region.
func lead(store uint64) func(*cluster.Cluster, *writer) {
	return func(c *cluster.Cluster, _ *writer) {
		c.Eventually(10*time.Second, func() string {
			if c.Placement.Region(region) == nil {
				return "no region heartbeat yet"
			}
			return ""
		})
		c.TransferLeader(region, cluster.OnStore(c.Placement.Region(region), store))
	}
}

func peerOn(c *cluster.Cluster, store uint64) uint64 {
	if p := cluster.PeerOf(c, store, region); p != nil {
		return p.Peer.Id
	}
	return 0
}

func waitPeer(c *cluster.Cluster, store uint64, there bool) {
	c.Eventually(10*time.Second, func() string {
		if (peerOn(c, store) != 0) != there {
			return fmt.Sprintf("store %d has peer %d", store, peerOn(c, store))
		}
		return ""
	})
}

func writes(c *cluster.Cluster, w *writer) {
	for range 3 {
		w.put(keys...)
		c.CheckConsistency() // also waits for a follower that the quorum did without
	}
}

// conditionals are writes whose effect depends on what is there, which a start must come to again.
func conditionals(c *cluster.Cluster, w *writer) {
	for range 2 {
		w.swap(keys...)
		w.deleteRange("b", "c", "b1", "b2")
		w.put("a", "b1")
		w.swap(keys...)
		c.CheckConsistency()
	}
}

// expiring are writes with and without a TTL: a start must bring values and expiry times back
// together.
func expiring(c *cluster.Cluster, w *writer) {
	w.putTTL(keys...)
	w.put("a", "b1")
	w.swap(keys...)
	w.putTTL("a", "b2")
	c.CheckConsistency()
}

// leaveBehind cuts a follower off while the others write.
func leaveBehind(store uint64) func(*cluster.Cluster, *writer) {
	return func(c *cluster.Cluster, w *writer) {
		lead(1)(c, w)
		var others []uint64
		for _, n := range c.Nodes() {
			if n.ID != store {
				others = append(others, n.ID)
			}
		}
		c.Net.Partition(others)
		for range 3 {
			w.put(keys...)
		}
	}
}

// catchUp lets it get what the others have committed meanwhile: entries, and in the same messages
// that they are committed.
func catchUp(c *cluster.Cluster, w *writer) {
	c.Net.Heal()
	c.CheckConsistency()
	w.put(keys...)
	c.CheckConsistency()
}

func splits(c *cluster.Cluster, w *writer) {
	for _, key := range []string{"c", "b"} {
		c.Split([]byte(key))
		w.put(keys...)
	}
	c.CheckConsistency()
}

func addPeer(c *cluster.Cluster, w *writer) {
	c.AddPeer(region, 3)
	w.put(keys...)
	c.CheckConsistency()
}

func removePeer(store uint64) func(*cluster.Cluster, *writer) {
	return func(c *cluster.Cluster, w *writer) {
		c.RemovePeer(region, cluster.OnStore(c.Placement.Region(region), store))
		waitPeer(c, store, false)
		w.put(keys...)
		c.CheckConsistency()
	}
}

// snapshotAfter makes the peer to be added need a raft snapshot.
func compact(c *cluster.Cluster, w *writer) {
	lead(1)(c, w)
	c.Eventually(10*time.Second, func() string {
		if err := c.CompactLog(region); err != nil {
			return err.Error()
		}
		return ""
	})
	w.put(keys...)
}

// moveAround removes the peer of store 3 and adds a new one there.
func replace(c *cluster.Cluster, w *writer) {
	removePeer(3)(c, w)
	addPeer(c, w)
}

func logGC(c *cluster.Cluster, w *writer) {
	for range 2 {
		for range 3 {
			w.put(keys...)
		}
		time.Sleep(700 * time.Millisecond) // the log GC's own pace; nothing to wait for
	}
	c.CheckConsistency()
}

func smallLog(cfg *config.Config) {
	cfg.Raftstore.LogGCCountLimit, cfg.Raftstore.LogGCThreshold = 6, 1
}

func mergeOn(cfg *config.Config) { cfg.Raftstore.Merge = true }

func mergeSmallLog(cfg *config.Config) {
	mergeOn(cfg)
	smallLog(cfg)
}

// splitOff makes two regions, led by a store.
func splitOff(store uint64) func(*cluster.Cluster, *writer) {
	return func(c *cluster.Cluster, w *writer) {
		lead(store)(c, w)
		c.Split([]byte("c"))
		w.put(keys...)
	}
}

func regionOf(c *cluster.Cluster, key string) uint64 {
	r, err := c.Placement.GetRegion(context.Background(), []byte(key))
	if err != nil || r == nil {
		return 0
	}
	return r.Meta.Id
}

// merges joins the two regions, splits the joined one, and joins the parts the other way round.
func merges(c *cluster.Cluster, w *writer) {
	c.Merge(regionOf(c, "e"), regionOf(c, "a"))
	w.put(keys...)
	c.CheckConsistency()
	c.Split([]byte("b"))
	w.put(keys...)
	c.Merge(regionOf(c, "a"), regionOf(c, "e"))
	w.put(keys...)
	c.CheckConsistency()
}

// refuse freezes a region whose target never learns that it may take it: it asks to be refused, and
// goes on.
func refuse(c *cluster.Cluster, w *writer) {
	c.Net.Hold(func(_ uint64, m *rspb.RaftMessage) bool {
		return m.Merge.GetKind() == rspb.MergeMessage_Ack
	})
	source := regionOf(c, "e")
	version := c.Placement.Region(source).RegionEpoch.Version
	c.Eventually(10*time.Second, func() string {
		err := c.MergeOnce(source, regionOf(c, "a"))
		if err == nil {
			return ""
		}
		return err.Error()
	})
	c.Eventually(20*time.Second, func() string {
		if now := c.Placement.Region(source).RegionEpoch.Version; now != version+2 {
			return fmt.Sprintf("version %d after %d", now, version)
		}
		return ""
	})
	c.Net.Hold(nil)
	w.put(keys...)
	c.CheckConsistency()
}

// missMerge has a store miss the merge, whose freeze it has acknowledged, up to entries that are
// not there any more: a raft snapshot of the joined region takes its frozen replica over.
func missMerge(store uint64) func(*cluster.Cluster, *writer) {
	return func(c *cluster.Cluster, w *writer) {
		lead(1)(c, w)
		// Under load the store may have come to lead the target, and then misses nothing.
		for !tryMissMerge(c, w, store) {
			c.Net.Hold(nil)
			c.CheckConsistency()
		}
	}
}

func tryMissMerge(c *cluster.Cluster, w *writer, store uint64) bool {
	c.Split([]byte("c"))
	w.put(keys...)
	source, target := regionOf(c, "e"), regionOf(c, "a")
	c.TransferLeader(target, cluster.OnStore(c.Placement.Region(target), 1))
	var missed atomic.Bool
	c.Net.Hold(func(to uint64, m *rspb.RaftMessage) bool {
		if to == store && m.RegionId == target && cluster.CommitsMerge(m) {
			missed.Store(true)
		}
		return to == store && m.RegionId == target && missed.Load()
	})
	c.Eventually(20*time.Second, func() string {
		if c.Placement.Region(source) == nil {
			return ""
		}
		return fmt.Sprint(c.MergeOnce(source, target))
	})
	log, _ := c.Node(1).Log().State(target)
	c.Eventually(10*time.Second, func() string {
		w.put(keys...)
		if err := c.CompactLog(target); err != nil {
			return err.Error()
		}
		if now, _ := c.Node(1).Log().State(target); now.TruncatedIndex < log.Last {
			return fmt.Sprintf("the log begins after %d, not %d", now.TruncatedIndex, log.Last)
		}
		return ""
	})
	return stateOf(c, store, source).GetState() == rspb.PeerState_Merging
}

func stateOf(c *cluster.Cluster, store, region uint64) *rspb.RegionLocalState {
	st, err := meta.LoadRegionState(c.Node(store).Engine(), region)
	if err != nil {
		panic(err)
	}
	return st
}

// takeOver lets it hear again.
func takeOver(c *cluster.Cluster, w *writer) {
	c.Net.Hold(nil)
	c.CheckConsistency()
	w.put(keys...)
	c.CheckConsistency()
}

var scenarios = []*scenario{
	{name: "append-leader", stores: 3, replicas: 3, crash: 1, before: lead(1), run: writes},
	{name: "append-follower", stores: 3, replicas: 3, crash: 2, before: lead(1), run: writes},
	{
		name: "catch-up-follower", stores: 3, replicas: 3, crash: 2, before: leaveBehind(2),
		run: catchUp,
	},
	{name: "append-alone", stores: 1, replicas: 1, crash: 1, run: writes},
	{
		name: "conditional-leader", stores: 3, replicas: 3, crash: 1, before: lead(1),
		run: conditionals,
	},
	{name: "expiring-leader", stores: 3, replicas: 3, crash: 1, before: lead(1), run: expiring},
	{
		name: "conditional-follower", stores: 3, replicas: 3, crash: 2, before: lead(1),
		run: conditionals,
	},
	{name: "add-peer-leader", stores: 3, replicas: 2, crash: 1, before: lead(1), run: addPeer},
	{
		name: "remove-peer-leader", stores: 3, replicas: 3, crash: 1, before: lead(1),
		run: removePeer(3),
	},
	{name: "remove-self", stores: 3, replicas: 3, crash: 1, before: lead(1), run: removePeer(1)},
	{name: "destroy", stores: 3, replicas: 3, crash: 3, before: lead(1), run: removePeer(3)},
	{name: "replace", stores: 3, replicas: 3, crash: 3, before: lead(1), run: replace},
	{name: "split-leader", stores: 3, replicas: 3, crash: 1, before: lead(1), run: splits},
	{name: "split-follower", stores: 3, replicas: 3, crash: 2, before: lead(1), run: splits},
	{name: "snapshot-receive", stores: 3, replicas: 2, crash: 3, before: compact, run: addPeer},
	{name: "snapshot-send", stores: 3, replicas: 2, crash: 1, before: compact, run: addPeer},
	{
		name: "log-gc-leader", stores: 3, replicas: 3, crash: 1, before: lead(1), run: logGC,
		tune: smallLog,
	},
	{
		name: "log-gc-follower", stores: 3, replicas: 3, crash: 2, before: lead(1), run: logGC,
		tune: smallLog,
	},
	{
		name: "merge-leader", stores: 3, replicas: 3, crash: 1, before: splitOff(1), run: merges,
		tune: mergeOn,
	},
	{
		name: "merge-follower", stores: 3, replicas: 3, crash: 2, before: splitOff(1), run: merges,
		tune: mergeOn,
	},
	{
		name: "merge-refused-leader", stores: 3, replicas: 3, crash: 1, before: splitOff(1),
		run: refuse, tune: mergeOn,
	},
	{
		name: "merge-refused-follower", stores: 3, replicas: 3, crash: 2, before: splitOff(1),
		run: refuse, tune: mergeOn,
	},
	{
		name: "merge-takeover", stores: 3, replicas: 3, crash: 3, before: missMerge(3),
		run: takeOver, tune: mergeSmallLog,
	},
}
