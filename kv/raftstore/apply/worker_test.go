package apply

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/enginefault"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// TestBrokenRoundWritesNothing: neither what was applied before the error in the same round, nor of
// other regions.
func TestBrokenRoundWritesNothing(t *testing.T) {
	r, other := region(1, "", "m", 1, 1, voter(1, 1)), region(2, "m", "", 1, 1, voter(2, 1))
	var ctl faultfs.Controller
	w, h, e := newTestWorker(t, func(e engine.Engine) engine.Engine {
		return enginefault.Wrap(e, &ctl)
	}, r, other)
	ctl.SetReads(true)
	ctl.Set(faultfs.FailKind("get", errIO))
	data := message.AppendPut(message.AppendHeader(nil, 2, other.RegionEpoch), "default",
		[]byte("n"), []byte("v"))
	first, firsts := entriesOf(2, eraftpb.Entry{Index: 6, Term: 6, Data: data})
	second, seconds := entriesOf(1,
		eraftpb.Entry{Index: 6, Term: 6, Data: adminEntry(t, r, splitRequest("c", 9, 11))})
	err := w.round([]Task{first, second})
	require.ErrorIs(t, err, errIO)
	require.ErrorContains(t, err, "apply entry 6 of region 1")
	requireUnknown(t, firsts[0])
	requireUnknown(t, seconds[0])
	require.Empty(t, h.reports)
	for _, id := range []uint64{1, 2} {
		st, err := meta.LoadApplyState(e, id, 0)
		require.NoError(t, err)
		require.EqualValues(t, meta.InitLogIndex, st.AppliedIndex)
	}
}

// TestOutcomeBehindARemoval: the apply worker stops at the entry that removes its peer, or has none
// any more.
func TestOutcomeBehindARemoval(t *testing.T) {
	r := trio()
	w, _, _ := newTestWorker(t, nil, r)
	change := &raft_cmdpb.RaftCmdRequest{
		Header: &raft_cmdpb.RaftRequestHeader{RegionId: 1, RegionEpoch: r.RegionEpoch},
		AdminRequest: &raft_cmdpb.AdminRequest{
			CmdType: raft_cmdpb.AdminCmdType_ChangePeer,
			ChangePeer: &raft_cmdpb.ChangePeerRequest{
				ChangeType: eraftpb.ConfChangeType_RemoveNode, Peer: r.Peers[0],
			},
		},
	}
	context, err := change.Marshal()
	require.NoError(t, err)
	removal, err := (&eraftpb.ConfChange{
		ChangeType: eraftpb.ConfChangeType_RemoveNode, NodeId: 1, Context: context,
	}).Marshal()
	require.NoError(t, err)
	data := message.AppendPut(message.AppendHeader(nil, 1, r.RegionEpoch), "default", []byte("a"),
		[]byte("v"))
	before, cbs := entriesOf(1,
		eraftpb.Entry{
			Index: 6, Term: 6, Data: removal, EntryType: eraftpb.EntryType_EntryConfChange,
		},
		eraftpb.Entry{Index: 7, Term: 6, Data: data})
	after, late := entriesOf(1, eraftpb.Entry{Index: 8, Term: 6, Data: data})
	require.NoError(t, w.round([]Task{before, after}))
	require.NoError(t, answered(t, cbs[0]).Err)
	requireUnknown(t, cbs[1])
	requireUnknown(t, late[0])
}

// TestAnswersGoByIndexAndTerm: the entry at a proposal's index may be another leader's. Its client
// must not be told that its own command was carried out (F-8).
func TestAnswersGoByIndexAndTerm(t *testing.T) {
	r := trio()
	w, _, _ := newTestWorker(t, nil, r)
	put := message.AppendPut(message.AppendHeader(nil, 1, r.RegionEpoch), "default", []byte("a"),
		[]byte("v"))
	var props []message.Proposal
	var cbs [][2]*message.Callback
	for i := range uint64(4) {
		cbs = append(cbs, [2]*message.Callback{message.NewCallback(), message.NewCallback()})
		props = append(props, message.NewProposal(6+i, 6, 0, cbs[i][:]...))
	}
	require.NoError(t, w.applyEntries(&Task{RegionID: 1, Proposals: props, Entries: []eraftpb.Entry{
		{Index: 6, Term: 6, Data: put}, {Index: 7, Term: 7}, {Index: 8, Term: 7, Data: put},
	}}))
	require.NoError(t, w.flush())
	for i := range cbs {
		for _, cb := range cbs[i] {
			res := answered(t, cb)
			if i == 0 {
				require.NoError(t, res.Err)
				continue
			}
			var lost *regionerr.OverwrittenError
			require.Equal(t, i < 3, errors.As(res.Err, &lost),
				"only an entry of another term at its index says that it is lost")
			if i == 3 {
				requireUnknown(t, cb)
			}
		}
	}
}

// TestStagesOfAppliedEntries: a batch that is full in the middle of a round is answered at once,
// and what the worker did before is no part of the time of those behind it.
func TestStagesOfAppliedEntries(t *testing.T) {
	r := trio()
	w, h, _ := newTestWorker(t, nil, r)
	large := message.AppendPut(message.AppendHeader(nil, 1, r.RegionEpoch), "default", []byte("a"),
		make([]byte, flushBytes))
	small := message.AppendPut(message.AppendHeader(nil, 1, r.RegionEpoch), "default", []byte("b"),
		nil)
	task, cbs := entriesOf(1, eraftpb.Entry{Index: 6, Term: 6, Data: large},
		eraftpb.Entry{Index: 7, Term: 6, Data: small},
		eraftpb.Entry{Index: 8, Term: 6, Data: small})
	task.Proposals[1].Traced = true
	require.NoError(t, w.round([]Task{task}))
	require.Equal(t, []message.Stages{
		{Begun: 1 * time.Millisecond, Applied: 2 * time.Millisecond},
		{Begun: 2 * time.Millisecond, Applied: 3 * time.Millisecond},
		{Begun: 2 * time.Millisecond, Applied: 3 * time.Millisecond},
	}, h.stages)
	require.Equal(t, &h.stages[1], answered(t, cbs[1]).Stages())
	require.Nil(t, answered(t, cbs[2]).Stages(), "it is not traced")
}
