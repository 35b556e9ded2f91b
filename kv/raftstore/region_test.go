package raftstore

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

func region(id uint64, start, end string, version, conf uint64, peers ...*metapb.Peer) *metapb.Region {
	return &metapb.Region{
		Id: id, StartKey: []byte(start), EndKey: []byte(end), Peers: peers,
		RegionEpoch: &metapb.RegionEpoch{Version: version, ConfVer: conf},
	}
}

func voter(id, store uint64) *metapb.Peer { return &metapb.Peer{Id: id, StoreId: store} }

func learner(id, store uint64) *metapb.Peer {
	return &metapb.Peer{Id: id, StoreId: store, Role: metapb.PeerRole_Learner}
}

func TestRangesAreHalfOpenAndEmptyEndIsInfinite(t *testing.T) {
	r := region(1, "b", "d", 1, 1)
	for key, in := range map[string]bool{"a": false, "b": true, "c": true, "d": false, "": false} {
		require.Equal(t, in, ContainsKey(r, []byte(key)), key)
	}
	require.True(t, ContainsKey(region(1, "", "", 1, 1), []byte{0xff, 0xff}))
	require.True(t, ContainsKey(region(1, "", "", 1, 1), nil))
	for key, ok := range map[string]bool{"": false, "a": false, "b": false, "c": true, "d": false, "e": false} {
		require.Equal(t, ok, strictlyInside(r, []byte(key)), key)
	}
}

// TestRangesOverlapAgainstTwin compares with a walk over all keys of a tiny key space.
func TestRangesOverlapAgainstTwin(t *testing.T) {
	keys := []string{"", "a", "b", "c", "d"}
	gen := rapid.SampledFrom(keys)
	rapid.Check(t, func(t *rapid.T) {
		a := region(1, gen.Draw(t, "s1"), gen.Draw(t, "e1"), 1, 1)
		b := region(2, gen.Draw(t, "s2"), gen.Draw(t, "e2"), 1, 1)
		if (len(a.EndKey) > 0 && string(a.StartKey) >= string(a.EndKey)) || (len(b.EndKey) > 0 && string(b.StartKey) >= string(b.EndKey)) {
			return // not a region
		}
		both := false
		for _, k := range append(keys, "e") {
			both = both || ContainsKey(a, []byte(k)) && ContainsKey(b, []byte(k))
		}
		require.Equal(t, both, rangesOverlap(a.StartKey, a.EndKey, b.StartKey, b.EndKey))
	})
}

func TestConfChangesOfARegion(t *testing.T) {
	base := region(1, "", "", 1, 5, voter(1, 1), voter(2, 2), learner(3, 3))
	for _, tc := range []struct {
		name string
		kind eraftpb.ConfChangeType
		peer *metapb.Peer
		want []*metapb.Peer // nil: no effect
	}{
		{"add", eraftpb.ConfChangeType_AddNode, voter(4, 4), []*metapb.Peer{voter(1, 1), voter(2, 2), learner(3, 3), voter(4, 4)}},
		{"add learner", eraftpb.ConfChangeType_AddLearnerNode, voter(4, 4), []*metapb.Peer{voter(1, 1), voter(2, 2), learner(3, 3), learner(4, 4)}},
		{"promote", eraftpb.ConfChangeType_AddNode, voter(3, 3), []*metapb.Peer{voter(1, 1), voter(2, 2), voter(3, 3)}},
		{"add again", eraftpb.ConfChangeType_AddNode, voter(2, 2), nil},
		{"add learner again", eraftpb.ConfChangeType_AddLearnerNode, voter(3, 3), nil},
		{"demote", eraftpb.ConfChangeType_AddLearnerNode, voter(2, 2), nil},
		{"another peer on the same store", eraftpb.ConfChangeType_AddNode, voter(9, 2), nil},
		{"the same peer on another store", eraftpb.ConfChangeType_AddNode, voter(2, 9), nil},
		{"remove", eraftpb.ConfChangeType_RemoveNode, voter(2, 2), []*metapb.Peer{voter(1, 1), learner(3, 3)}},
		{"remove again", eraftpb.ConfChangeType_RemoveNode, voter(7, 7), nil},
		{"remove by the wrong store", eraftpb.ConfChangeType_RemoveNode, voter(2, 3), nil},
	} {
		got := changedRegion(base, tc.kind, tc.peer)
		if tc.want == nil {
			require.Nil(t, got, tc.name)
			continue
		}
		require.Equal(t, tc.want, got.Peers, tc.name)
		require.EqualValues(t, 6, got.RegionEpoch.ConfVer, tc.name)
		require.EqualValues(t, 1, got.RegionEpoch.Version, tc.name)
	}
	// The original is never touched, and the last voter stays.
	require.Equal(t, region(1, "", "", 1, 5, voter(1, 1), voter(2, 2), learner(3, 3)), base)
	single := region(1, "", "", 1, 5, voter(1, 1), learner(2, 2))
	require.Nil(t, changedRegion(single, eraftpb.ConfChangeType_RemoveNode, voter(1, 1)))
	rest := changedRegion(single, eraftpb.ConfChangeType_RemoveNode, voter(2, 2))
	require.NotNil(t, rest)
	require.EqualValues(t, 2, maxPeerID(rest), "the id of a removed peer is remembered")
	require.EqualValues(t, 7, maxPeerID(changedRegion(rest, eraftpb.ConfChangeType_AddNode, voter(7, 3))))
}

func TestSplitRegion(t *testing.T) {
	base := region(1, "b", "f", 3, 7, voter(1, 1), voter(2, 2))
	left, right, err := splitRegion(base, &raft_cmdpb.SplitRequest{SplitKey: []byte("d"), NewRegionId: 9, NewPeerIds: []uint64{10, 11}})
	require.NoError(t, err)
	require.Equal(t, region(1, "b", "d", 4, 7, voter(1, 1), voter(2, 2)), left)
	want := region(9, "d", "f", 4, 7, voter(10, 1), voter(11, 2))
	want.MaxPeerId = 11
	require.Equal(t, want, right)
	require.Equal(t, region(1, "b", "f", 3, 7, voter(1, 1), voter(2, 2)), base)
	for name, req := range map[string]*raft_cmdpb.SplitRequest{
		"nil":                nil,
		"no key":             {NewRegionId: 9, NewPeerIds: []uint64{10, 11}},
		"key at start":       {SplitKey: []byte("b"), NewRegionId: 9, NewPeerIds: []uint64{10, 11}},
		"key at end":         {SplitKey: []byte("f"), NewRegionId: 9, NewPeerIds: []uint64{10, 11}},
		"key outside":        {SplitKey: []byte("z"), NewRegionId: 9, NewPeerIds: []uint64{10, 11}},
		"too few peers":      {SplitKey: []byte("d"), NewRegionId: 9, NewPeerIds: []uint64{10}},
		"too many peers":     {SplitKey: []byte("d"), NewRegionId: 9, NewPeerIds: []uint64{10, 11, 12}},
		"same peer twice":    {SplitKey: []byte("d"), NewRegionId: 9, NewPeerIds: []uint64{10, 10}},
		"peer id 0":          {SplitKey: []byte("d"), NewRegionId: 9, NewPeerIds: []uint64{10, 0}},
		"region id 0":        {SplitKey: []byte("d"), NewPeerIds: []uint64{10, 11}},
		"region id is taken": {SplitKey: []byte("d"), NewRegionId: 1, NewPeerIds: []uint64{10, 11}},
	} {
		_, _, err := splitRegion(base, req)
		require.Error(t, err, name)
	}
}

// TestEpochPartsOfCommands is the table of trap H2.
func TestEpochPartsOfCommands(t *testing.T) {
	for cmd, want := range map[raft_cmdpb.AdminCmdType][2]bool{
		raft_cmdpb.AdminCmdType_Split:          {true, true},
		raft_cmdpb.AdminCmdType_ChangePeer:     {false, true},
		raft_cmdpb.AdminCmdType_CompactLog:     {false, false},
		raft_cmdpb.AdminCmdType_TransferLeader: {false, false},
	} {
		version, conf := epochParts(&raft_cmdpb.AdminRequest{CmdType: cmd})
		require.Equal(t, want, [2]bool{version, conf}, cmd)
	}
	version, conf := epochParts(nil)
	require.Equal(t, [2]bool{true, false}, [2]bool{version, conf}, "normal commands")
	r := region(1, "", "", 2, 2)
	require.True(t, epochMatches(r, &metapb.RegionEpoch{Version: 2, ConfVer: 9}, true, false))
	require.False(t, epochMatches(r, &metapb.RegionEpoch{Version: 3, ConfVer: 2}, true, false), "a newer epoch is refused too")
	require.False(t, epochMatches(r, nil, true, false))
}

// TestEveryErrorHasItsForm: each error is either a region error of the right kind, or none.
func TestEveryErrorHasItsForm(t *testing.T) {
	r := region(1, "a", "b", 1, 1)
	check := func(err error) string {
		pb, ok := RegionError(err)
		if !ok {
			return ""
		}
		require.NotEmpty(t, pb.Message)
		switch {
		case pb.NotLeader != nil:
			return "not_leader"
		case pb.RegionNotFound != nil:
			return "region_not_found"
		case pb.KeyNotInRegion != nil:
			return "key_not_in_region"
		case pb.EpochNotMatch != nil:
			return "epoch_not_match"
		case pb.StaleCommand != nil:
			return "stale_command"
		case pb.StoreNotMatch != nil:
			return "store_not_match"
		case pb.ServerIsBusy != nil:
			return "server_is_busy"
		case pb.RaftEntryTooLarge != nil:
			return "raft_entry_too_large"
		case pb.DiskFull != nil:
			return "disk_full"
		}
		return "message"
	}
	require.Equal(t, "not_leader", check(&NotLeaderError{RegionID: 1, Leader: voter(1, 1)}))
	require.Equal(t, "region_not_found", check(&RegionNotFoundError{RegionID: 1}))
	require.Equal(t, "region_not_found", check(&PeerNotMatchError{RegionID: 1}))
	require.Equal(t, "key_not_in_region", check(&KeyNotInRegionError{Key: []byte("x"), Region: r}))
	require.Equal(t, "epoch_not_match", check(&EpochNotMatchError{RegionID: 1, Regions: []*metapb.Region{r}}))
	require.Equal(t, "stale_command", check(&StaleCommandError{Term: 3}))
	require.Equal(t, "stale_command", check(&message.OverwrittenError{Term: 3}))
	require.Equal(t, "stale_command", check(&message.UnknownError{Cause: &RegionNotFoundError{RegionID: 1}}),
		"the cause would say that nothing was done")
	require.Equal(t, "store_not_match", check(&StoreNotMatchError{1, 2}))
	require.Equal(t, "server_is_busy", check(&BusyError{"x"}))
	require.Equal(t, "server_is_busy", check(ErrDeadlineExceeded))
	require.Equal(t, "raft_entry_too_large", check(&EntryTooLargeError{1, 2, 3}))
	require.Equal(t, "disk_full", check(&DiskFullError{1}))
	require.Equal(t, "message", check(invalidf("x")))
	require.Equal(t, "message", check(&FeatureError{Missing: 1}))
	for _, err := range []error{ErrStopping, ErrFailed, errors.New("disk on fire")} {
		require.Empty(t, check(err), err)
	}
}

// TestStoreMetaAgainstTwin drives the range tree with random regions and compares with a plain list.
func TestStoreMetaAgainstTwin(t *testing.T) {
	keys := []string{"", "a", "b", "c", "d", "e"}
	rapid.Check(t, func(t *rapid.T) {
		m := newStoreMeta()
		twin := map[uint64]*metapb.Region{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			id := uint64(rapid.IntRange(1, 5).Draw(t, "id"))
			if rapid.IntRange(0, 3).Draw(t, "op") == 0 {
				m.removeRegion(id, id)
				delete(twin, id)
				continue
			}
			i := rapid.IntRange(0, len(keys)-1).Draw(t, "start")
			j := rapid.IntRange(i+1, len(keys)).Draw(t, "end")
			end := ""
			if j < len(keys) {
				end = keys[j]
			}
			r := region(id, keys[i], end, 1, 1, voter(id, 1))
			free := true
			for _, o := range twin {
				free = free && (o.Id == id || !rangesOverlap(r.StartKey, r.EndKey, o.StartKey, o.EndKey))
			}
			m.mu.Lock()
			other := m.overlapLocked(id, r.StartKey, r.EndKey)
			m.mu.Unlock()
			require.Equal(t, free, other == nil)
			if free {
				m.setRegion(r, id)
				twin[id] = r
			}
			// What is free of r's range, key by key.
			nobody := region(99, keys[i], end, 1, 1, voter(99, 1))
			for _, k := range keys {
				owned, isFree := false, false
				for _, o := range twin {
					owned = owned || ContainsKey(o, []byte(k))
				}
				for _, f := range m.freeRanges(nobody) {
					isFree = isFree || ContainsKey(&metapb.Region{StartKey: f.start, EndKey: f.end}, []byte(k))
				}
				require.Equal(t, ContainsKey(nobody, []byte(k)) && !owned, isFree, "key %q", k)
			}
		}
		require.Equal(t, len(twin), len(m.all()))
		require.Equal(t, len(twin), m.mu.ranges.Len())
	})
}

// TestSplitAndDestructionGiveWayToEachOther: the state of a region is written by the split that creates it
// and by the destruction of an uninitialized peer, from two workers; only one of them may begin.
func TestSplitAndDestructionGiveWayToEachOther(t *testing.T) {
	right := region(2, "k", "", 2, 1, voter(12, 1))
	empty := &metapb.Region{Id: 2}
	for _, old := range []uint64{11, 12} {
		m := newStoreMeta()
		m.setRegion(empty, old)
		require.True(t, m.beginDying(2))
		require.False(t, m.reserveSplit(right, 12), "the tombstone of peer %d is on its way", old)
		m.removeRegion(2, old)
		require.True(t, m.reserveSplit(right, 12))

		m = newStoreMeta()
		m.setRegion(empty, old)
		require.True(t, m.reserveSplit(right, 12))
		require.False(t, m.beginDying(2), "the split has taken peer %d over", old)
		m.finishSplit(2)
		require.True(t, m.beginDying(2))
	}
}

func TestRemoveRegionOfAnotherPeerIsIgnored(t *testing.T) {
	m := newStoreMeta()
	m.setRegion(region(1, "", "", 1, 1, voter(5, 1)), 5)
	m.removeRegion(1, 4)
	require.Len(t, m.all(), 1)
	m.removeRegion(1, 5)
	m.removeRegion(1, 5)
	require.Empty(t, m.all())
	// An uninitialized region has no range, and removing it takes nobody else's.
	m.setRegion(region(1, "", "", 1, 1, voter(5, 1)), 5)
	m.setRegion(&metapb.Region{Id: 2, RegionEpoch: &metapb.RegionEpoch{}}, 7)
	m.removeRegion(2, 7)
	require.Equal(t, 1, m.mu.ranges.Len())
}

func TestNeighboursComeInKeyOrder(t *testing.T) {
	m := newStoreMeta()
	a, b, c := region(1, "", "b", 1, 1, voter(1, 1)), region(2, "b", "d", 1, 1, voter(2, 1)), region(3, "d", "", 1, 1, voter(3, 1))
	for _, r := range []*metapb.Region{c, a, b} {
		m.setRegion(r, r.Peers[0].Id)
	}
	require.Equal(t, []*metapb.Region{a, b, c}, m.withNeighbours(b))
	require.Equal(t, []*metapb.Region{a, b}, m.withNeighbours(a))
	require.Equal(t, []*metapb.Region{b, c}, m.withNeighbours(c))
}
