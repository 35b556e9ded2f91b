package regions

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

func region(
	id uint64, start, end string, version, conf uint64, peers ...*metapb.Peer,
) *metapb.Region {
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
		require.Equal(t, in, Contains(r, []byte(key)), key)
	}
	require.True(t, Contains(region(1, "", "", 1, 1), []byte{0xff, 0xff}))
	require.True(t, Contains(region(1, "", "", 1, 1), nil))
	for key, ok := range map[string]bool{
		"": false, "a": false, "b": false, "c": true, "d": false, "e": false,
	} {
		require.Equal(t, ok, StrictlyInside(r, []byte(key)), key)
	}
}

// TestRangesOverlapAgainstTwin compares with a walk over all keys of a tiny key space.
func TestRangesOverlapAgainstTwin(t *testing.T) {
	keys := []string{"", "a", "b", "c", "d"}
	gen := rapid.SampledFrom(keys)
	rapid.Check(t, func(t *rapid.T) {
		a := region(1, gen.Draw(t, "s1"), gen.Draw(t, "e1"), 1, 1)
		b := region(2, gen.Draw(t, "s2"), gen.Draw(t, "e2"), 1, 1)
		if (len(a.EndKey) > 0 && string(a.StartKey) >= string(a.EndKey)) ||
			(len(b.EndKey) > 0 && string(b.StartKey) >= string(b.EndKey)) {
			return // not a region
		}
		both := false
		for _, k := range append(keys, "e") {
			both = both || Contains(a, []byte(k)) && Contains(b, []byte(k))
		}
		require.Equal(t, both, Overlap(a.StartKey, a.EndKey, b.StartKey, b.EndKey))
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
		{
			"add", eraftpb.ConfChangeType_AddNode, voter(4, 4),
			[]*metapb.Peer{voter(1, 1), voter(2, 2), learner(3, 3), voter(4, 4)},
		},
		{
			"add learner", eraftpb.ConfChangeType_AddLearnerNode, voter(4, 4),
			[]*metapb.Peer{voter(1, 1), voter(2, 2), learner(3, 3), learner(4, 4)},
		},
		{
			"promote", eraftpb.ConfChangeType_AddNode, voter(3, 3),
			[]*metapb.Peer{voter(1, 1), voter(2, 2), voter(3, 3)},
		},
		{"add again", eraftpb.ConfChangeType_AddNode, voter(2, 2), nil},
		{"add learner again", eraftpb.ConfChangeType_AddLearnerNode, voter(3, 3), nil},
		{"demote", eraftpb.ConfChangeType_AddLearnerNode, voter(2, 2), nil},
		{"another peer on the same store", eraftpb.ConfChangeType_AddNode, voter(9, 2), nil},
		{"the same peer on another store", eraftpb.ConfChangeType_AddNode, voter(2, 9), nil},
		{
			"remove", eraftpb.ConfChangeType_RemoveNode, voter(2, 2),
			[]*metapb.Peer{voter(1, 1), learner(3, 3)},
		},
		{"remove again", eraftpb.ConfChangeType_RemoveNode, voter(7, 7), nil},
		{"remove by the wrong store", eraftpb.ConfChangeType_RemoveNode, voter(2, 3), nil},
	} {
		got := Change(base, tc.kind, tc.peer)
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
	require.Nil(t, Change(single, eraftpb.ConfChangeType_RemoveNode, voter(1, 1)))
	rest := Change(single, eraftpb.ConfChangeType_RemoveNode, voter(2, 2))
	require.NotNil(t, rest)
	require.EqualValues(t, 2, MaxPeerID(rest), "the id of a removed peer is remembered")
	require.EqualValues(t, 7, MaxPeerID(Change(rest, eraftpb.ConfChangeType_AddNode, voter(7, 3))))
}

func TestSplitRegion(t *testing.T) {
	base := region(1, "b", "f", 3, 7, voter(1, 1), voter(2, 2))
	left, right, err := Split(base,
		&raft_cmdpb.SplitRequest{
			SplitKey: []byte("d"), NewRegionId: 9, NewPeerIds: []uint64{10, 11},
		})
	require.NoError(t, err)
	require.Equal(t, region(1, "b", "d", 4, 7, voter(1, 1), voter(2, 2)), left)
	want := region(9, "d", "f", 4, 7, voter(10, 1), voter(11, 2))
	want.MaxPeerId = 11
	require.Equal(t, want, right)
	require.Equal(t, region(1, "b", "f", 3, 7, voter(1, 1), voter(2, 2)), base)
	for name, req := range map[string]*raft_cmdpb.SplitRequest{
		"nil":           nil,
		"no key":        {NewRegionId: 9, NewPeerIds: []uint64{10, 11}},
		"key at start":  {SplitKey: []byte("b"), NewRegionId: 9, NewPeerIds: []uint64{10, 11}},
		"key at end":    {SplitKey: []byte("f"), NewRegionId: 9, NewPeerIds: []uint64{10, 11}},
		"key outside":   {SplitKey: []byte("z"), NewRegionId: 9, NewPeerIds: []uint64{10, 11}},
		"too few peers": {SplitKey: []byte("d"), NewRegionId: 9, NewPeerIds: []uint64{10}},
		"too many peers": {
			SplitKey: []byte("d"), NewRegionId: 9, NewPeerIds: []uint64{10, 11, 12},
		},
		"same peer twice":    {SplitKey: []byte("d"), NewRegionId: 9, NewPeerIds: []uint64{10, 10}},
		"peer id 0":          {SplitKey: []byte("d"), NewRegionId: 9, NewPeerIds: []uint64{10, 0}},
		"region id 0":        {SplitKey: []byte("d"), NewPeerIds: []uint64{10, 11}},
		"region id is taken": {SplitKey: []byte("d"), NewRegionId: 1, NewPeerIds: []uint64{10, 11}},
	} {
		_, _, err := Split(base, req)
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
		version, conf := EpochParts(&raft_cmdpb.AdminRequest{CmdType: cmd})
		require.Equal(t, want, [2]bool{version, conf}, cmd)
	}
	version, conf := EpochParts(nil)
	require.Equal(t, [2]bool{true, false}, [2]bool{version, conf}, "normal commands")
	r := region(1, "", "", 2, 2)
	require.True(t, EpochMatches(r, &metapb.RegionEpoch{Version: 2, ConfVer: 9}, true, false))
	require.False(t, EpochMatches(r, &metapb.RegionEpoch{Version: 3, ConfVer: 2}, true, false),
		"a newer epoch is refused too")
	require.False(t, EpochMatches(r, nil, true, false))
}
