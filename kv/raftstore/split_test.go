package raftstore

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

func splitRequest(key string, newRegion uint64, newPeers ...uint64) *raft_cmdpb.AdminRequest {
	return &raft_cmdpb.AdminRequest{CmdType: raft_cmdpb.AdminCmdType_Split,
		Split: &raft_cmdpb.SplitRequest{
			SplitKey: []byte(key), NewRegionId: newRegion, NewPeerIds: newPeers,
		}}
}

func adminEntry(t testing.TB, r *metapb.Region, req *raft_cmdpb.AdminRequest) []byte {
	t.Helper()
	data, err := (&raft_cmdpb.RaftCmdRequest{
		Header:       &raft_cmdpb.RaftRequestHeader{RegionId: r.Id, RegionEpoch: r.RegionEpoch},
		AdminRequest: req,
	}).Marshal()
	require.NoError(t, err)
	return data
}

// TestSplitMeetsOtherPeers: a split creates its right half unless this store has or had a newer
// peer of that region, or one that knows its range (G1).
func TestSplitMeetsOtherPeers(t *testing.T) {
	none := &metapb.Region{Id: 9, RegionEpoch: &metapb.RegionEpoch{}}
	known := region(9, "g", "m", 3, 3, voter(11, 1), voter(12, 2), voter(13, 3))
	for name, tc := range map[string]struct {
		state   rspb.PeerState
		region  *metapb.Region
		peer    uint64
		running bool
		want    bool
	}{
		"nothing":                   {want: true},
		"uninitialized, same id":    {rspb.PeerState_Normal, none, 11, true, true},
		"uninitialized, smaller id": {rspb.PeerState_Normal, none, 10, true, true},
		"uninitialized, larger id":  {rspb.PeerState_Normal, none, 12, true, false},
		"initialized":               {rspb.PeerState_Normal, known, 11, true, false},
		"being installed":           {rspb.PeerState_Applying, known, 11, true, false},
		"removed, smaller id":       {rspb.PeerState_Tombstone, none, 10, false, true},
		"removed, same id":          {rspb.PeerState_Tombstone, none, 11, false, false},
		"removed, larger id":        {rspb.PeerState_Tombstone, known, 12, false, false},
		"removed before the report": {rspb.PeerState_Tombstone, known, 11, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := trio()
			s, e := newTestStore(t, r)
			s.ranges.setRegion(r, 1)
			if tc.region != nil {
				b := e.NewBatch()
				meta.PutRegionState(b, tc.state, tc.region, voter(tc.peer, 1))
				require.NoError(t, e.Write(b, true))
			}
			if tc.running {
				s.ranges.setRegion(tc.region, tc.peer)
			}
			box := &mailbox{regionID: 1, peer: &peer{regionID: 1}}
			box.peer.box = box
			require.True(t, s.router.register(box.peer))
			cb := message.NewCallback()
			data := adminEntry(t, r, splitRequest("f", 9, 11, 12, 13))
			carryOut(t, s, r, apply.Task{
				RegionID: 1, Entries: []eraftpb.Entry{{Index: 6, Term: 6, Data: data}},
				Proposals: []message.Proposal{message.NewProposal(6, 6, 0, cb)},
			})
			require.NoError(t, pending{cb}.wait(t))
			msgs, _, _ := box.take(maxTurnBytes)
			require.Len(t, msgs, 1)
			done := msgs[0].(*message.Applied).Results[0].(message.SplitDone)
			require.Equal(t, tc.want, done.Created)
			st, err := meta.LoadRegionState(e, 9)
			require.NoError(t, err)
			if tc.want {
				require.Equal(t, rspb.PeerState_Normal, st.State)
				require.EqualValues(t, 11, st.Peer.Id)
			} else {
				require.Equal(t, tc.state, st.State, "what was there stays")
				require.Equal(t, tc.peer, st.Peer.Id)
			}
		})
	}
}

// TestRightHalfLeadsAndReportsAtOnce: when the leader applies a split, the right half is there with
// its data, campaigns without waiting for an election timeout, and both halves are reported. The
// clock of this store stands still, so none of that can come from a tick (H6, G15).
func TestRightHalfLeadsAndReportsAtOnce(t *testing.T) {
	r := region(1, "", "m", 1, 1, voter(1, 1))
	s, _ := newTestStore(t, r)
	l := listenTo(s)
	startTestStore(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	require.Eventually(t, func() bool {
		p, err := s.Peer(ctx, 1)
		return err == nil && p.IsLeader
	}, 10*time.Second, time.Millisecond)
	res, err := s.AdminCommand(ctx, 1, splitRequest("f", 9, 11))
	require.NoError(t, err)
	require.Len(t, res.Admin().Split.Regions, 2)
	require.Eventually(t, func() bool {
		p, err := s.Peer(ctx, 9)
		return err == nil && p.IsLeader
	}, 10*time.Second, time.Millisecond)
	require.Eventually(t, func() bool {
		return l.reported(1, 2) && l.reported(9, 2)
	}, 10*time.Second, time.Millisecond)
	info, err := s.Peer(ctx, 9)
	require.NoError(t, err)
	require.EqualValues(t, meta.InitLogTerm+1, info.Term, "its first campaign has won")
}

// TestVoteWaitsForSplit: the vote for a right half that this store has not split off yet creates
// nothing, is kept, and is answered as soon as the split is applied (G1, H6).
func TestVoteWaitsForSplit(t *testing.T) {
	r := region(1, "", "m", 1, 1, voter(1, 1), voter(2, 2), voter(3, 3))
	s, _ := newTestStore(t, r)
	l := listenTo(s)
	startTestStore(t, s)
	right := region(9, "f", "m", 2, 1, voter(11, 1), voter(12, 2), voter(13, 3))
	handleInOrder(t, s, vote(right, right.Peers[1], right.Peers[0]))
	require.Zero(t, peerID(t, s, 9), "a peer in the range of another one")
	split := adminEntry(t, r, splitRequest("f", 9, 11, 12, 13))
	require.NoError(t, s.HandleRaft(envelope(r, r.Peers[1], r.Peers[0], eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgAppend, Term: 6, Index: 5, LogTerm: 5, Commit: 6,
		Entries: []*eraftpb.Entry{{Index: 6, Term: 6, Data: split}},
	})))
	waitPeerID(t, s, 9, 11)
	granted := func(m *rspb.RaftMessage) bool {
		return m.RegionId == 9 &&
			m.Message.GetMsgType() == eraftpb.MessageType_MsgRequestVoteResponse &&
			!m.Message.Reject
	}
	require.Eventually(t, func() bool {
		return len(l.messages(granted)) == 1
	}, 10*time.Second, time.Millisecond)
}

// TestStartBeginsLogAfterSplit: a crash between a split and the beginning of the new region's log,
// which lies in another file, is mended at start; a vote that was given before is kept (H7).
func TestStartBeginsLogAfterSplit(t *testing.T) {
	s, _ := newTestStore(t, trio(), region(2, "m", "", 1, 1, voter(4, 1), voter(5, 2)))
	var lb logBatch
	lb.SetHardState(2, eraftpb.HardState{Term: 8, Vote: 5})
	require.NoError(t, s.log.Write(&lb, true))
	startTestStore(t, s)
	for id, want := range map[uint64]eraftpb.HardState{
		1: {Term: 5, Commit: 5}, 2: {Term: 8, Vote: 5, Commit: 5},
	} {
		requireAlive(t, s, id)
		st, ok := s.log.State(id)
		require.True(t, ok)
		require.Equal(t, want, st.HardState)
		require.EqualValues(t, meta.InitLogIndex, st.Last)
	}
	require.Empty(t, s.Quarantined())
}

// TestSplitWithoutPlacementServiceIsAnswered: the way through the placement service, which does not
// answer, ends with an answer for the one who asked, each time (F-10).
func TestSplitWithoutPlacementServiceIsAnswered(t *testing.T) {
	s, _ := newTestStore(t, region(1, "", "", 1, 1, voter(1, 1)))
	startTestStore(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	require.Eventually(t, func() bool {
		p, err := s.Peer(ctx, 1)
		return err == nil && p.IsLeader
	}, 10*time.Second, time.Millisecond)
	for range 3 {
		_, err := s.SplitAt(ctx, 1, []byte("k"))
		var busy *regionerr.BusyError
		require.ErrorAs(t, err, &busy)
		require.Contains(t, busy.Reason, errNobody.Error())
	}
	_, err := s.SplitAt(ctx, 1, nil)
	require.ErrorContains(t, err, "no key to split at", "an empty region has no middle")
}

// TestSplitKeyIsInsideAndSizesAreWhole: the key that the split checker chooses lies strictly inside
// the region, or there is none, and what it measures counts all column families of just this region
// (H4, H9).
func TestSplitKeyIsInsideAndSizesAreWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 'a', 0xff}), 0, 3)
		r := &metapb.Region{Id: 1, StartKey: key.Draw(t, "start"), EndKey: key.Draw(t, "end")}
		e := memengine.New()
		b := e.NewBatch()
		items := map[string]int{}
		for range rapid.IntRange(0, 12).Draw(t, "n") {
			k, n := key.Draw(t, "key"), rapid.IntRange(0, 9).Draw(t, "size")
			phys := engine.DataKey(rapid.SampledFrom(engine.CFs).Draw(t, "cf"), k)
			b.Put(phys, make([]byte, n))
			delete(items, string(phys))
			if regions.Contains(r, k) {
				items[string(phys)] = len(k) + n
			}
		}
		require.NoError(t, e.Write(b, true))
		view := e.NewSnapshot()
		defer view.Close()
		if len(r.EndKey) > 0 && bytes.Compare(r.StartKey, r.EndKey) >= 0 {
			return // not a region
		}
		m, err := runner.Measure(view, r, rapid.Uint64Range(0, 40).Draw(t, "split"), false)
		require.NoError(t, err)
		size := 0
		for _, n := range items {
			size += n
		}
		require.EqualValues(t, size, m.Size)
		require.EqualValues(t, len(items), m.Keys)
		require.True(t, m.SplitKey == nil || regions.StrictlyInside(r, m.SplitKey),
			"%x in [%x, %x)", m.SplitKey, r.StartKey, r.EndKey)
	})
}

// checks writes to a region of about 268 KB, of which nothing is left to write anew after 1,000
// writes, and checks its size after each 64. found is called with every finding.
func checks(
	t *testing.T, splitSize, maxSize config.Size, rounds int,
	found func(p *peer, m *message.SplitChecked),
) {
	h := newHandRun(t, 1)
	cfg := h.s.cfg.Raftstore
	cfg.RegionSplitSize, cfg.RegionMaxSize = splitSize, maxSize
	h.s.Adjust(&cfg)
	got := make(chan *message.SplitChecked, 1)
	h.s.splitChecker = runner.NewSplitChecker(h.s.engine, uint64(splitSize), uint64(maxSize),
		func(_ uint64, m message.Msg) error {
			got <- m.(*message.SplitChecked)
			return nil
		})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); h.s.splitChecker.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	p := h.s.router.get(1).peer
	for range rounds {
		h.writes(64)
		if p.split.check(); p.stats.checkingSplit {
			found(p, <-got)
		}
	}
}

// TestOverwrittenRegionIsCountedRarely: the region is not read again and again for values that
// replace others.
func TestOverwrittenRegionIsCountedRarely(t *testing.T) {
	const maxSize, rounds = 400 << 10, 200
	findings, counts := 0, 0
	checks(t, 320<<10, maxSize, rounds, func(p *peer, m *message.SplitChecked) {
		findings++
		if m.Counted != (message.Counted{}) {
			counts++
			require.Less(t, m.Size, uint64(300<<10))
		}
		require.Empty(t, m.SplitKey)
		p.split.onChecked(m)
		require.Less(t, p.stats.sinceCount, uint64(maxSize+100<<10),
			"it is counted at the latest when as much was written as may be in it")
	})
	require.Greater(t, findings, rounds/4)
	require.GreaterOrEqual(t, counts, 5)
	require.Less(t, counts, findings/3)
}

// TestGrownRegionIsCountedInTime: a region that grows gets its split key as soon as it is too big.
func TestGrownRegionIsCountedInTime(t *testing.T) {
	const maxSize = 200 << 10
	var key []byte
	checks(t, 160<<10, maxSize, 1000/64, func(p *peer, m *message.SplitChecked) {
		if m.SplitKey != nil && key == nil {
			key = m.SplitKey
			require.Less(t, m.Size, uint64(maxSize*5/4))
		}
		m.SplitKey = nil
		p.split.onChecked(m)
	})
	require.NotNil(t, key)
}

// TestTooBigRegionIsCountedSoon: whatever is written to it, since its split may have failed.
func TestTooBigRegionIsCountedSoon(t *testing.T) {
	const splitSize = 160 << 10
	tooBig := 0
	checks(t, splitSize, 200<<10, 60, func(p *peer, m *message.SplitChecked) {
		if m.SplitKey != nil {
			tooBig++
		} else if tooBig > 0 {
			require.Fail(t, "it was not counted", "%d bytes after the last count",
				p.stats.sinceCount)
		}
		m.SplitKey = nil // the split fails
		p.split.onChecked(m)
	})
	require.Greater(t, tooBig, 10)
}
