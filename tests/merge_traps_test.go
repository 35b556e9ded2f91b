package tests

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
	"github.com/tinykv/tinykv/tests/cluster"
)

// merging is a cluster with two regions: the target on the left, led by store 2, and the source,
// led by store 1.
type merging struct {
	t              *testing.T
	c              *cluster.Cluster
	cl             *client.Client
	source, target uint64
}

func newMerging(t *testing.T, o cluster.Options) *merging {
	t.Helper()
	o.Replicas = 3
	tune := o.Tune
	o.Tune = func(cfg *config.Config) {
		mergeOn(cfg)
		if tune != nil {
			tune(cfg)
		}
	}
	m := &merging{t: t, c: cluster.New(t, o)}
	m.cl = m.c.Client()
	t.Cleanup(m.cl.Close)
	m.c.WaitLeader(cluster.FirstRegionID)
	m.c.Split([]byte("m"))
	m.source, m.target = regionAt(t, m.c, "x"), regionAt(t, m.c, "a")
	m.put("a", "x")
	m.lead()
	m.c.CheckConsistency()
	return m
}

// lead has the source and the target led by different stores, so that what they say to each other
// passes the network.
func (m *merging) lead() {
	m.t.Helper()
	m.c.TransferLeader(m.source, cluster.OnStore(m.c.Placement.Region(m.source), 1))
	m.c.TransferLeader(m.target, cluster.OnStore(m.c.Placement.Region(m.target), 2))
}

func (m *merging) put(keys ...string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, key := range keys {
		require.NoError(m.t, m.cl.Put(ctx, []byte(key), []byte("value of "+key)))
	}
}

func (m *merging) check(keys ...string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, key := range keys {
		v, found, err := m.cl.Get(ctx, []byte(key))
		require.NoError(m.t, err)
		require.True(m.t, found, key)
		require.Equal(m.t, "value of "+key, string(v))
	}
}

// hold keeps back the messages of the given kinds.
func (m *merging) hold(kinds ...rspb.MergeMessage_Kind) {
	m.c.Net.Hold(func(_ uint64, rm *rspb.RaftMessage) bool {
		return slices.Contains(kinds, rm.Merge.GetKind()) && rm.Merge != nil
	})
}

func (m *merging) release() {
	m.c.Net.Hold(nil)
	m.c.Net.Release(func(uint64, *rspb.RaftMessage) bool { return true })
}

// freeze begins a merge whose order to the target is held back, and waits until all replicas of the
// source are frozen.
func (m *merging) freeze() {
	m.t.Helper()
	m.begin()
	m.awaitFrozen()
}

// begin begins a merge: the source is frozen at its leader.
func (m *merging) begin() {
	m.t.Helper()
	m.c.Eventually(10*time.Second, func() string {
		if err := m.c.MergeOnce(m.source, m.target); err != nil {
			return err.Error()
		}
		return ""
	})
}

func (m *merging) awaitFrozen() {
	m.t.Helper()
	m.c.Eventually(10*time.Second, func() string {
		for _, p := range m.c.Placement.Region(m.source).Peers {
			if info := cluster.PeerOf(m.c, p.StoreId, m.source); info == nil ||
				info.MergingInto != m.target {
				return fmt.Sprintf("the source is not frozen on store %d: %+v", p.StoreId, info)
			}
		}
		return ""
	})
}

// awaitMerged waits until nothing of the source is left but tombstones.
func (m *merging) awaitMerged() {
	m.t.Helper()
	m.c.Eventually(20*time.Second, func() string {
		if m.c.Placement.Region(m.source) != nil {
			return "the source is there"
		}
		return m.c.Remains(m.source)
	})
}

// awaitRefused waits until the source goes on, with a version greater by two than before.
func (m *merging) awaitRefused(before uint64) {
	m.t.Helper()
	m.c.Eventually(20*time.Second, func() string {
		if v := m.c.Placement.Region(m.source).GetRegionEpoch().GetVersion(); v != before+2 {
			return fmt.Sprintf("the source's version is %d, was %d", v, before)
		}
		return ""
	})
}

func (m *merging) version() uint64 { return m.c.Placement.Region(m.source).RegionEpoch.Version }

func (m *merging) onDisk(store, region uint64) *rspb.RegionLocalState {
	m.t.Helper()
	st, err := meta.LoadRegionState(m.c.Node(store).Engine(), region)
	require.NoError(m.t, err)
	return st
}

// missCommit has a store miss CommitMerge, and all of the target from there on, until the target's
// log does not reach back to it. The source is frozen there.
func (m *merging) missCommit(store uint64) {
	m.t.Helper()
	var missed atomic.Bool
	m.c.Net.Hold(func(to uint64, rm *rspb.RaftMessage) bool {
		if to == store && rm.RegionId == m.target && cluster.CommitsMerge(rm) {
			missed.Store(true)
		}
		return to == store && rm.RegionId == m.target && missed.Load()
	})
	m.begin()
	m.c.Eventually(20*time.Second, func() string {
		if m.c.Placement.Region(m.source) != nil {
			return "the source is there"
		}
		return ""
	})
	require.Equal(m.t, rspb.PeerState_Merging, m.onDisk(store, m.source).GetState(),
		"store %d missed nothing", store)
}

// outgrow drops the entries of the target's log that a store misses.
func (m *merging) outgrow() {
	m.t.Helper()
	m.put("a", "x")
	last, _ := m.c.Node(2).Log().State(m.target)
	m.c.Eventually(10*time.Second, func() string {
		m.put("a", "x")
		if err := m.c.CompactLog(m.target); err != nil {
			return err.Error()
		}
		if now, _ := m.c.Node(2).Log().State(m.target); now.TruncatedIndex < last.Last {
			return fmt.Sprintf("the log begins after %d, not %d", now.TruncatedIndex, last.Last)
		}
		return ""
	})
}

func smallLog(cfg *config.Config) {
	cfg.Raftstore.LogGCCountLimit, cfg.Raftstore.LogGCThreshold = 6, 1
}

// TestMergeTakeover: a raft snapshot of the target takes over the frozen replica of a store that
// missed the merge.
func TestMergeTakeover(t *testing.T) {
	m := newMerging(t, cluster.Options{Stores: 3, Tune: smallLog})
	m.missCommit(3)
	m.outgrow()
	snaps := m.c.Net.Snaps.Load()
	m.c.Net.Hold(nil)
	m.awaitMerged()
	require.Greater(t, m.c.Net.Snaps.Load(), snaps)
	require.Equal(t, m.target, m.onDisk(3, m.source).GetMergedInto().GetTargetId())
	m.c.CheckConsistency()
	m.c.Node(3).Stop()
	m.c.Node(3).Restart()
	m.c.CheckConsistency()
	m.check("a", "x")
}

// TestMergeSplitBack: the joined region is split at the old border, and a store that missed both
// gets a raft snapshot of the target that does not have the source's range. Its frozen replica
// learns from it that the merge took place.
func TestMergeSplitBack(t *testing.T) {
	m := newMerging(t, cluster.Options{Stores: 3, Tune: smallLog})
	m.missCommit(3)
	m.c.Split([]byte("m"))
	m.outgrow()
	m.c.Net.Hold(nil)
	m.awaitMerged()
	require.Nil(t, m.onDisk(3, m.source).GetMergedInto(), "it was destroyed")
	require.NotEqual(t, m.source, regionAt(t, m.c, "x"))
	m.c.CheckConsistency()
	m.check("a", "x")
}

// TestMergeTargetRemoved: the target's replica is moved away from a store that missed the merge.
// The frozen replica there asks the other stores.
func TestMergeTargetRemoved(t *testing.T) {
	m := newMerging(t, cluster.Options{Stores: 4})
	m.missCommit(3)
	removed := cluster.OnStore(m.c.Placement.Region(m.target), 3)
	m.c.Eventually(10*time.Second, func() string {
		r := m.c.Placement.Region(m.target)
		if cluster.OnStore(r, 3) == nil {
			return ""
		}
		return fmt.Sprint(m.c.ChangePeer(m.target, eraftpb.ConfChangeType_RemoveNode, removed))
	})
	// The store gets the message of its removal, and no other.
	r := m.c.Placement.Region(m.target)
	require.NoError(t, m.c.Node(3).Store().HandleRaft(&rspb.RaftMessage{
		RegionId: r.Id, FromPeer: r.Peers[0], ToPeer: removed, RegionEpoch: r.RegionEpoch,
		IsTombstone: true, ClusterId: cluster.ClusterID,
	}))
	m.awaitMerged()
	m.c.Net.Hold(nil)
	m.c.CheckConsistency()
	m.check("a", "x")
}

// TestMergeRefusedByAnotherChange: the target is split before it learns that it may take the source
// over. What it learns later changes nothing, and the source goes on.
func TestMergeRefusedByAnotherChange(t *testing.T) {
	m := newMerging(t, cluster.Options{Stores: 3})
	m.hold(rspb.MergeMessage_Ready, rspb.MergeMessage_Cancel)
	before := m.version()
	m.freeze()
	m.c.Split([]byte("g"))
	m.awaitRefused(before)
	m.put("x")
	m.release()
	m.c.CheckConsistency()
	require.Equal(t, before+2, m.version(), "a late order had an effect")
	m.check("a", "x")
	m.target = regionAt(t, m.c, "h")
	m.c.Merge(m.source, m.target)
	m.c.CheckConsistency()
	m.check("a", "x")
}

// TestMergeNeedsEveryReplica: a replica that has not acknowledged the freeze holds the merge up; it
// is given up, and what the replica says of that attempt later does not count for the next one.
func TestMergeNeedsEveryReplica(t *testing.T) {
	m := newMerging(t, cluster.Options{Stores: 3})
	var late atomic.Bool
	m.c.Net.Hold(func(_ uint64, rm *rspb.RaftMessage) bool {
		return rm.Merge.GetKind() == rspb.MergeMessage_Ack && rm.FromPeer.StoreId == 3 &&
			!late.Load()
	})
	before := m.version()
	m.begin()
	m.awaitRefused(before)
	m.put("x")
	acks := m.c.Net.Held(func(uint64, *rspb.RaftMessage) bool { return true })
	require.Positive(t, acks)

	m.lead()
	m.begin()
	late.Store(true)
	m.c.Net.Release(func(_ uint64, rm *rspb.RaftMessage) bool {
		return rm.Merge.GetSource().GetRegionEpoch().GetVersion() == before+1
	})
	late.Store(false)
	m.awaitRefused(before + 2)
	m.release()
	m.c.CheckConsistency()
	m.check("a", "x")
	m.c.Merge(m.source, m.target)
	m.c.CheckConsistency()
}

// TestMergeWithoutALearner: a learner is added to the source and removed again while its store does
// not answer, before it has data, and the source goes into the target. Nobody tells the replica,
// and the placement service does not know its region any more. It asks, and the stores that
// remember the merge answer. After a restart it asks as well.
func TestMergeWithoutALearner(t *testing.T) {
	t.Run("running", func(t *testing.T) { mergeWithoutALearner(t, func(*cluster.Node) {}) })
	t.Run("restarted", func(t *testing.T) {
		mergeWithoutALearner(t, func(n *cluster.Node) {
			for range 2 { // what the first start leaves is enough for the second
				n.Stop()
				n.Restart()
			}
		})
	})
}

// mergeWithoutALearner calls restart before the learner's store can ask.
func mergeWithoutALearner(t *testing.T, restart func(*cluster.Node)) {
	m := newMerging(t, cluster.Options{Stores: 4, Tune: func(cfg *config.Config) {
		cfg.Raftstore.StalePeerCheck = config.Dur(500 * time.Millisecond)
	}})
	m.c.Net.Hold(func(to uint64, rm *rspb.RaftMessage) bool {
		return to == 4 && rm.Message.GetMsgType() == eraftpb.MessageType_MsgSnapshot
	})
	p := &metapb.Peer{Id: m.c.Placement.AllocID(), StoreId: 4}
	require.NoError(t, m.c.ChangePeer(m.source, eraftpb.ConfChangeType_AddLearnerNode, p))
	m.c.Eventually(20*time.Second, func() string {
		if cluster.PeerOf(m.c, 4, m.source) == nil {
			return "store 4 has no replica yet"
		}
		return ""
	})
	m.c.Net.Partition([]uint64{1, 2, 3}, []uint64{4})
	m.c.RemovePeer(m.source, p)
	m.begin()
	m.c.Eventually(20*time.Second, func() string {
		if m.c.Placement.Region(m.source) != nil {
			return "the source is there"
		}
		return ""
	})
	require.NotNil(t, cluster.PeerOf(m.c, 4, m.source), "it does not know")
	restart(m.c.Node(4))
	require.NotNil(t, cluster.PeerOf(m.c, 4, m.source), "it does not know")
	m.c.Net.Heal()
	m.awaitMerged()
	m.check("a", "x")
	m.c.CheckConsistency()
}

// TestMergeFrozenAcrossRestarts: what is frozen stays so, and nothing is served or written
// meanwhile.
func TestMergeFrozenAcrossRestarts(t *testing.T) {
	m := newMerging(t, cluster.Options{Stores: 3})
	m.deafenTarget()
	m.freeze()
	frozen := m.c.Placement.Region(m.source)
	for range 2 {
		for _, n := range m.c.Nodes() {
			n.Stop()
		}
		for _, n := range m.c.Nodes() {
			n.Restart()
		}
		m.awaitFrozen()
		require.Equal(t, rspb.PeerState_Merging, m.onDisk(2, m.source).GetState())
		m.c.WaitLeader(m.source)
		for _, n := range m.c.Nodes() {
			info := cluster.PeerOf(m.c, n.ID, m.source)
			if info == nil || !info.IsLeader {
				continue
			}
			for _, version := range []uint64{
				frozen.RegionEpoch.Version, info.Region.RegionEpoch.Version,
			} {
				r := *info.Region
				r.RegionEpoch = &metapb.RegionEpoch{
					Version: version, ConfVer: info.Region.RegionEpoch.ConfVer,
				}
				require.NotNil(t, cluster.RawPutWith(m.c, &r, []byte("x"), []byte("lost")),
					"version %d", version)
				m.refusesReads(n.ID, &r, info.Peer)
			}
		}
	}
	m.release()
	m.awaitEnd()
	m.c.CheckConsistency()
	m.check("a", "x")
}

// refusesReads reads from a frozen region for longer than a lease takes to begin.
func (m *merging) refusesReads(store uint64, r *metapb.Region, peer *metapb.Peer) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for begun := time.Now(); time.Since(begun) < 2*m.c.ElectionTimeout(); {
		_, refused, err := cluster.GetFrom(ctx, m.c, store,
			&kvrpcpb.Context{RegionId: r.Id, RegionEpoch: r.RegionEpoch, Peer: peer}, []byte("x"))
		require.NoError(m.t, err)
		require.NotNil(m.t, refused, "a frozen region is read")
	}
}

// TestMergeHoldsWrites: a write to a frozen region waits for the end of the merge, and its client
// learns then who has the key. So does who comes when the source is gone.
func TestMergeHoldsWrites(t *testing.T) {
	m := newMerging(t, cluster.Options{Stores: 3})
	m.hold(rspb.MergeMessage_Ready, rspb.MergeMessage_Cancel)
	m.freeze()
	frozen := cluster.PeerOf(m.c, 1, m.source).Region
	answers := make(chan *errorpb.Error, 1)
	put := func() { answers <- cluster.RawPutOn(m.c, 1, frozen, []byte("x"), []byte("new")) }
	begun := time.Now()
	go put() // ends with its answer
	m.c.Eventually(20*time.Second, func() string {
		if info := cluster.PeerOf(m.c, 1, m.source); info != nil && info.Held == 1 ||
			len(answers) > 0 {
			return ""
		}
		return "the write does not wait"
	})
	m.release()
	answer := <-answers
	for answer.GetServerIsBusy() != nil {
		// The machine is slow: the write has waited for as long as any may.
		require.GreaterOrEqual(t, time.Since(begun), time.Second)
		begun = time.Now()
		put()
		answer = <-answers
	}
	has := func(e *errorpb.Error) {
		t.Helper()
		require.NotNil(t, e.GetEpochNotMatch(), "%v", e)
		var ids []uint64
		for _, r := range e.GetEpochNotMatch().CurrentRegions {
			ids = append(ids, r.Id)
		}
		require.Contains(t, ids, m.target, "%v", e)
	}
	has(answer)
	m.awaitMerged()
	put()
	has(<-answers)
	_, refused, err := cluster.GetFrom(t.Context(), m.c, 1, &kvrpcpb.Context{
		RegionId: m.source, RegionEpoch: frozen.RegionEpoch, Peer: cluster.OnStore(frozen, 1),
	}, []byte("x"))
	require.NoError(t, err)
	has(refused)
	m.c.CheckConsistency()
	m.check("a", "x")
}

// TestMergeLateOrder: the source's leader has waited for too long and is to give up, but only the
// target can let it go, and that has no quorum. The orders come late, and one of them is carried
// out.
func TestMergeLateOrder(t *testing.T) {
	m := newMerging(t, cluster.Options{Stores: 3})
	m.deafenTarget()
	before := m.version()
	m.freeze()
	m.c.Eventually(20*time.Second, func() string {
		cancels := m.c.Net.Held(func(_ uint64, rm *rspb.RaftMessage) bool {
			return rm.Merge.GetKind() == rspb.MergeMessage_Cancel
		})
		if cancels < 3 {
			return "it does not want out"
		}
		return ""
	})
	m.awaitFrozen()
	for _, n := range m.c.Nodes() {
		require.Equal(t, before+1, m.onDisk(n.ID, m.source).Region.RegionEpoch.Version,
			"store %d has gone on without proof", n.ID)
	}
	m.release()
	m.awaitEnd()
	m.c.CheckConsistency()
	m.check("a", "x")
}

// deafenTarget keeps the target's replicas from hearing each other and the source, so that it
// decides nothing.
func (m *merging) deafenTarget() {
	m.c.Net.Hold(func(_ uint64, rm *rspb.RaftMessage) bool { return rm.RegionId == m.target })
}

// awaitEnd waits until the source has gone into the target or goes on.
func (m *merging) awaitEnd() {
	m.t.Helper()
	m.c.Eventually(30*time.Second, func() string {
		if m.c.Placement.Region(m.source) == nil {
			return m.c.Remains(m.source)
		}
		for _, n := range m.c.Nodes() {
			if info := cluster.PeerOf(m.c, n.ID, m.source); info == nil || info.MergingInto != 0 {
				return fmt.Sprintf("%+v", info)
			}
		}
		return ""
	})
}

// TestMergeUninitializedTarget: the target's new replica on a store has nothing yet. If the merge
// were committed now, it could get a raft snapshot from before it, and apply it over nothing.
func TestMergeUninitializedTarget(t *testing.T) {
	m := newMerging(t, cluster.Options{Stores: 3})
	m.c.RemovePeer(m.target, cluster.OnStore(m.c.Placement.Region(m.target), 3))
	m.c.Eventually(10*time.Second, func() string {
		if cluster.PeerOf(m.c, 3, m.target) != nil {
			return "the old replica is there"
		}
		return ""
	})
	m.c.Net.Hold(func(to uint64, rm *rspb.RaftMessage) bool {
		return to == 3 && rm.RegionId == m.target &&
			rm.GetMessage().GetMsgType() == eraftpb.MessageType_MsgSnapshot
	})
	m.c.Eventually(10*time.Second, func() string {
		if cluster.OnStore(m.c.Placement.Region(m.target), 3) != nil {
			return ""
		}
		return fmt.Sprint(m.c.ChangePeer(m.target, eraftpb.ConfChangeType_AddNode,
			&metapb.Peer{Id: m.c.Placement.AllocID(), StoreId: 3}))
	})
	before := m.version()
	m.begin()
	m.awaitRefused(before)
	m.c.Net.Hold(nil)
	m.c.CheckConsistency()
	m.c.Merge(m.source, m.target)
	m.c.CheckConsistency()
	m.check("a", "x")
}

// TestMergeIsSwitchedOff: the switch is of the store that leads the source. Clusters of
// transactions do not merge.
func TestMergeIsSwitchedOff(t *testing.T) {
	off := newMerging(t,
		cluster.Options{Stores: 3, Tune: func(cfg *config.Config) { cfg.Raftstore.Merge = false }})
	require.ErrorContains(t, off.c.MergeOnce(off.source, off.target), "switched off")
	require.Error(t, off.c.MergeOnce(off.source, off.source))
	off.c.CheckConsistency()
}

// TestMergeCycles merges and splits two hundred times. No peer, no log, no apply state and no data
// are left behind.
func TestMergeCycles(t *testing.T) {
	cycles := 200
	if testing.Short() {
		cycles = 20
	}
	m := newMerging(t, cluster.Options{Stores: 3})
	var gone []uint64
	for i := range cycles {
		a, x := regionAt(t, m.c, "a"), regionAt(t, m.c, "x")
		if i%2 == 1 {
			a, x = x, a
		}
		m.c.Merge(x, a)
		gone = append(gone, x)
		m.put("a", "x")
		if i < cycles-1 {
			m.c.Split([]byte("m"))
		}
	}
	m.check("a", "x")
	m.c.CheckConsistency()
	for _, id := range gone {
		require.Empty(t, m.c.Remains(id))
	}
	for _, n := range m.c.Nodes() {
		snap := n.Engine().NewSnapshot()
		records, tombstones := 0, 0
		require.NoError(t, meta.VisitRegionStates(snap, func(st *rspb.RegionLocalState) error {
			records++
			if st.State == rspb.PeerState_Tombstone {
				tombstones++
			} else {
				require.LessOrEqual(t, len(st.Region.Merges), 16)
			}
			return nil
		}))
		snap.Close()
		require.Equal(t, 1, records-tombstones, "store %d", n.ID)
		require.Equal(t, len(gone), tombstones, "store %d: one for each region that went", n.ID)
		n.Stop()
		n.Restart()
	}
	m.c.CheckConsistency()
	m.check("a", "x")
}
