package raftstore

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine/enginefault"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

var errIO = errors.New("input/output error")

// failing makes all operations of a kind fail.
func failing(ctl *faultfs.Controller, kind string) {
	ctl.SetReads(true)
	ctl.Set(faultfs.FailKind(kind, errIO))
}

// requireFailed waits for the store to fail for a reason.
func requireFailed(t testing.TB, s *Store, why error) {
	t.Helper()
	select {
	case err := <-s.Failed():
		require.ErrorIs(t, err, why)
	case <-time.After(10 * time.Second):
		t.Fatal("the store goes on")
	}
}

// TestReadErrorStopsApply: a read that fails while a split is applied stops the store before the
// applied index passes the entry; else this replica would never split. The restart applies it.
func TestReadErrorStopsApply(t *testing.T) {
	r := region(1, "", "", 1, 1, voter(1, 1))
	s, e := newTestStore(t, r)
	var ctl faultfs.Controller
	s.engine = enginefault.Wrap(e, &ctl)
	startTestStore(t, s)
	require.NoError(t, put(s, r, "k").wait(t))
	before, err := meta.LoadApplyState(e, 1, 0)
	require.NoError(t, err)

	failing(&ctl, "get")
	cb := pending{message.NewCallback()}
	s.Admin(&message.Admin{
		Header:  message.Header{RegionID: 1, Peer: r.Peers[0], Epoch: r.RegionEpoch},
		Request: splitRequest("c", 9, 11), Callback: cb.cb,
	})
	requireFailed(t, s, errIO)
	ctl.Set(nil)
	s.Stop()
	requireUnknown(t, cb.wait(t))
	after, err := meta.LoadApplyState(e, 1, 0)
	require.NoError(t, err)
	require.Equal(t, before.AppliedIndex, after.AppliedIndex)

	s = again(t, s)
	require.Eventually(t, func() bool { return peerID(t, s, 9) == 11 }, 10*time.Second, time.Millisecond)
	require.NoError(t, put(s, region(1, "", "c", 2, 1, voter(1, 1)), "a").wait(t))
}

// TestBrokenRoundWritesNothing: neither what was applied before the error in the same round, nor of
// other regions.
func TestBrokenRoundWritesNothing(t *testing.T) {
	r, other := region(1, "", "m", 1, 1, voter(1, 1)), region(2, "m", "", 1, 1, voter(2, 1))
	s, e := newTestStore(t, r, other)
	var ctl faultfs.Controller
	s.engine = enginefault.Wrap(e, &ctl)
	failing(&ctl, "get")
	w := s.appliers[0]
	for _, reg := range []uint64{1, 2} {
		of := map[uint64]*applier{
			1: {regionID: 1, peer: r.Peers[0], region: r}, 2: {regionID: 2, peer: other.Peers[0], region: other},
		}[reg]
		of.applied, of.term, of.truncated = 5, 5, initTruncated
		w.regions[reg] = of
	}
	data := message.AppendPut(message.AppendHeader(nil, 2, other.RegionEpoch), "default", []byte("n"), []byte("v"))
	first, second := pending{message.NewCallback()}, pending{message.NewCallback()}
	err := w.round([]applyTask{
		{
			kind: applyEntries, regionID: 2, entries: []eraftpb.Entry{{Index: 6, Term: 6, Data: data}},
			proposals: []message.Proposal{message.NewProposal(6, 6, 0, first.cb)},
		},
		{
			kind: applyEntries, regionID: 1,
			entries:   []eraftpb.Entry{{Index: 6, Term: 6, Data: adminEntry(t, r, splitRequest("c", 9, 11))}},
			proposals: []message.Proposal{message.NewProposal(6, 6, 0, second.cb)},
		},
	})
	require.ErrorIs(t, err, errIO)
	require.ErrorContains(t, err, "apply entry 6 of region 1")
	requireUnknown(t, first.wait(t))
	requireUnknown(t, second.wait(t))
	for _, id := range []uint64{1, 2} {
		st, err := meta.LoadApplyState(e, id, 0)
		require.NoError(t, err)
		require.EqualValues(t, meta.InitLogIndex, st.AppliedIndex)
	}
}

// TestDamagedEntryStopsTheStore: a committed entry that does not decode is damage of this replica;
// it is not skipped.
func TestDamagedEntryStopsTheStore(t *testing.T) {
	r := trio()
	for _, e := range []eraftpb.Entry{
		{Data: []byte{0xff, 1, 2}}, {Data: []byte{0xff}, EntryType: eraftpb.EntryType_EntryConfChange},
	} {
		s, _ := newTestStore(t, r)
		w := s.appliers[0]
		w.regions[1] = &applier{regionID: 1, peer: r.Peers[0], region: r, applied: 5, term: 5, truncated: initTruncated}
		e.Index, e.Term = 6, 6
		err := w.round([]applyTask{{kind: applyEntries, regionID: 1, entries: []eraftpb.Entry{e}}})
		require.ErrorIs(t, err, errUndecodable)
		require.ErrorContains(t, err, "entry 6 of region 1")
		require.EqualValues(t, 5, w.regions[1].applied)

		// From another store it is not even taken.
		m := envelope(r, voter(2, 2), voter(1, 1), eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgAppend, Term: 6, Index: 5, LogTerm: 5, Entries: []*eraftpb.Entry{&e},
		})
		var invalid *InvalidError
		require.ErrorAs(t, s.HandleRaft(m), &invalid)
	}
}
