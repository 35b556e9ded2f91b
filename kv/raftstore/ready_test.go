package raftstore

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// TestOnlyWhatIsSyncedIsApplied holds a sync of the raft log up: committed entries that an earlier
// one has covered are applied meanwhile, those that it is to cover are not (F-6).
func TestOnlyWhatIsSyncedIsApplied(t *testing.T) {
	r := trio()
	var ctl faultfs.Controller
	s, e := newFaultyStore(t, &ctl, r)
	startTestStore(t, s)

	// Entry i puts the key "k" to the letter i.
	appendOf := func(prev, commit uint64, indexes ...uint64) *rspb.RaftMessage {
		m := eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgAppend, Term: 6, Index: prev, LogTerm: 6,
			Commit: commit,
		}
		if prev == 5 {
			m.LogTerm = 5
		}
		for _, i := range indexes {
			data := message.AppendHeader(nil, r.Id, r.RegionEpoch)
			data = message.AppendPut(data, string(engine.CFDefault), []byte("k"),
				[]byte{byte('a' + i)})
			m.Entries = append(m.Entries, &eraftpb.Entry{Term: 6, Index: i, Data: data})
		}
		return envelope(r, voter(2, 2), voter(1, 1), m)
	}
	applied := func() string {
		value, _, err := e.Get(engine.DataKey(engine.CFDefault, []byte("k")))
		require.NoError(t, err)
		return string(value)
	}
	require.NoError(t, s.HandleRaft(appendOf(5, 5, 6, 7)))
	require.Eventually(t, func() bool {
		st, _ := s.log.State(r.Id)
		return st.Last == 7
	}, 10*time.Second, time.Millisecond)

	reached, release := make(chan struct{}), make(chan struct{})
	letGo := sync.OnceFunc(func() { close(release) })
	t.Cleanup(letGo) // or the store cannot stop
	ctl.Set(func(op faultfs.Op) error {
		if op.Kind == "sync" {
			ctl.Set(nil)
			close(reached)
			<-release
		}
		return nil
	})
	// Entries 6 and 7 are synced; 8 and 9 come with this message, which says that 8 is committed as
	// well.
	require.NoError(t, s.HandleRaft(appendOf(7, 8, 8, 9)))
	<-reached
	require.Eventually(t, func() bool {
		return applied() == "h"
	}, 10*time.Second, time.Millisecond, "7 waits for the sync of 8")
	// The apply worker has done all that was handed to it.
	idle := make(chan struct{})
	last := message.NewCallbackFunc(func(message.Result) { close(idle) })
	s.appliers[0].Push(apply.Task{
		RegionID: 999, Proposals: []message.Proposal{message.NewProposal(9, 6, 0, last)},
	})
	<-idle
	require.Equal(t, "h", applied(), "8 is applied, but not synced")
	letGo()
	require.Eventually(t, func() bool { return applied() == "i" }, 10*time.Second, time.Millisecond)
	requireAlive(t, s, r.Id)
}

// TestDestructionFollowsTheTurn: while a turn's changes of the raft log are written, one of them
// about a region that is destroyed in the same turn, nobody can be deleting that region's log yet:
// a change behind the deletion would bring it back.
func TestDestructionFollowsTheTurn(t *testing.T) {
	r := trio()
	var ctl faultfs.Controller
	s, e := newFaultyStore(t, &ctl, r)
	var lb logBatch
	initialLogState(&lb, s.log, r.Id)
	require.NoError(t, s.log.Write(&lb, true))
	lb.Clear()
	lb.Append(r.Id, []eraftpb.Entry{{Term: 6, Index: 6}, {Term: 6, Index: 7}})
	require.NoError(t, s.log.Write(&lb, true))
	require.NoError(t, (&recovery{s}).run())
	box := s.router.get(r.Id)
	box.peer.ps.truncated = rspb.RaftTruncatedState{Index: 6, Term: 6}

	destroying := func() bool {
		_, err := s.appliers[0].RunQueued()
		require.NoError(t, err)
		st, err := meta.LoadRegionState(e, r.Id)
		require.NoError(t, err)
		return st.State == rspb.PeerState_Tombstone
	}
	writes, early := 0, false
	ctl.Set(func(op faultfs.Op) error {
		if op.Kind == "write" {
			writes++
			early = early || destroying()
		}
		return nil
	})
	for _, m := range []message.Msg{
		&message.LogGC{Index: 6, Term: 6}, &message.Raft{Message: tombstone(r, 3, r.Peers[0])},
	} {
		_, err := s.router.put(box, m)
		require.NoError(t, err)
	}
	require.NoError(t, newRaftWorker(s, 0).runTurn([]*mailbox{box}))
	ctl.Set(nil)
	require.NotZero(t, writes)
	require.False(t, early, "the destruction may begin before the turn is written")
	require.True(t, destroying())
}
