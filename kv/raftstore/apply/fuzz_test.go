package apply

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// applySeeds are entries of every kind; kind says whether an entry is a conf change.
func applySeeds(t testing.TB) (seeds [][]byte, confChange []bool) {
	add := func(cc bool, m interface{ Marshal() ([]byte, error) }) {
		b, err := m.Marshal()
		require.NoError(t, err)
		seeds, confChange = append(seeds, b), append(confChange, cc)
	}
	now := &metapb.RegionEpoch{Version: 1, ConfVer: 1}
	header := &raft_cmdpb.RaftRequestHeader{RegionId: 1, RegionEpoch: now}
	admin := func(a *raft_cmdpb.AdminRequest) *raft_cmdpb.RaftCmdRequest {
		return &raft_cmdpb.RaftCmdRequest{Header: header, AdminRequest: a}
	}
	for _, ids := range [][]uint64{{11, 12, 13}, {11, 12}, {11, 11, 13}, {0, 1, 2}, {1, 2, 3}} {
		for _, id := range []uint64{0, 1, 2, 9} {
			for _, key := range []string{"", "c", "m", "z"} {
				add(false, admin(&raft_cmdpb.AdminRequest{CmdType: raft_cmdpb.AdminCmdType_Split,
					Split: &raft_cmdpb.SplitRequest{
						SplitKey: []byte(key), NewRegionId: id, NewPeerIds: ids,
					}}))
			}
		}
	}
	add(false, admin(&raft_cmdpb.AdminRequest{CmdType: raft_cmdpb.AdminCmdType_Split}))
	for _, i := range []uint64{0, 5, 6, 1 << 63} {
		add(false, admin(&raft_cmdpb.AdminRequest{CmdType: raft_cmdpb.AdminCmdType_CompactLog,
			CompactLog: &raft_cmdpb.CompactLogRequest{CompactIndex: i, CompactTerm: 6}}))
	}
	add(false, admin(&raft_cmdpb.AdminRequest{CmdType: 99}))
	for _, kind := range []eraftpb.ConfChangeType{0, 1, 2, 77} {
		for _, p := range []*metapb.Peer{
			voter(1, 1), voter(2, 2), voter(9, 9), voter(9, 2), voter(2, 9), voter(0, 4),
			voter(4, 0),
		} {
			ctx, err := admin(&raft_cmdpb.AdminRequest{CmdType: raft_cmdpb.AdminCmdType_ChangePeer,
				ChangePeer: &raft_cmdpb.ChangePeerRequest{ChangeType: kind, Peer: p}}).Marshal()
			require.NoError(t, err)
			add(true, &eraftpb.ConfChange{ChangeType: kind, NodeId: p.Id, Context: ctx})
			add(true, &eraftpb.ConfChange{ChangeType: kind, NodeId: p.Id + 1, Context: ctx})
		}
	}
	add(true, &eraftpb.ConfChange{})
	put := message.AppendPut(message.AppendHeader(nil, 1, now), "write", []byte("c"), []byte("v"))
	seeds = append(seeds, put, message.AppendPut(put, "default", []byte("z"), nil),
		message.AppendDelete(put, "nope", []byte("c")))
	return seeds, append(confChange, false, false, false)
}

// FuzzApply carries out an entry of any bytes on two stores that have the region: both come to the
// same region, and nothing outside the region changes (F-13, H8). Bytes that no leader proposes are
// damage: nothing is applied.
func FuzzApply(f *testing.F) {
	seeds, confChange := applySeeds(f)
	for i := range seeds {
		f.Add(seeds[i], confChange[i])
	}
	f.Fuzz(func(t *testing.T, data []byte, confChange bool) {
		var after []*metapb.Region
		for range 2 {
			r := region(1, "b", "m", 1, 1, voter(1, 1), voter(2, 2), voter(3, 3))
			w, h, e := newTestWorker(t, nil, r, region(2, "m", "", 1, 1, voter(4, 1)))
			b := e.NewBatch()
			b.Put(engine.DataKey(engine.CFDefault, []byte("z")), []byte("other's"))
			require.NoError(t, e.Write(b, true))
			a := w.regions[1]
			entry := eraftpb.Entry{Index: 6, Term: 6, Data: data}
			if confChange {
				entry.EntryType = eraftpb.EntryType_EntryConfChange
			}
			if err := w.round([]Task{{RegionID: 1, Entries: []eraftpb.Entry{entry}}}); err != nil {
				t.Fatalf("an entry of any bytes stopped the store: %v", err)
			}
			if len(h.damaged) > 0 {
				require.EqualValues(t, 5, a.applied)
				require.Equal(t, r, a.region)
				continue
			}
			require.EqualValues(t, 6, a.applied)
			st, err := meta.LoadApplyState(e, 1, 0)
			require.NoError(t, err)
			require.EqualValues(t, 6, st.AppliedIndex)
			require.LessOrEqual(t, st.TruncatedState.Index, st.AppliedIndex)
			value, found, err := e.Get(engine.DataKey(engine.CFDefault, []byte("z")))
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, "other's", string(value))
			other, err := meta.LoadRegionState(e, 2)
			require.NoError(t, err)
			require.Equal(t, "m", string(other.Region.StartKey))
			after = append(after, a.region)
		}
		require.NotEqual(t, 1, len(after))
		if len(after) == 0 {
			return
		}
		require.Equal(t, after[0], after[1])
		require.Positive(t, regions.VoterCount(after[0]))
	})
}
