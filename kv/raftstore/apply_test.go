package raftstore

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/enginefault"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore/apply"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// useEngine puts another engine in a store's place for it. Before Start.
func (s *Store) useEngine(e engine.Engine) {
	s.engine = e
	s.appliers = newAppliers(s)
}

// carryOut has a store's apply worker carry out tasks, behind the beginning of a region.
func carryOut(t testing.TB, s *Store, r *metapb.Region, tasks ...apply.Task) {
	t.Helper()
	w := s.appliers.forRegion(r.Id)
	w.Push(apply.Task{RegionID: r.Id, Begin: &apply.Begin{
		Peer: r.Peers[0], Region: r, Applied: meta.InitLogIndex, Term: meta.InitLogTerm,
		Truncated: initTruncated,
	}})
	w.Push(tasks...)
	_, err := w.RunQueued()
	require.NoError(t, err)
}

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
	s.useEngine(enginefault.Wrap(e, &ctl))
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
	require.Eventually(t, func() bool {
		return peerID(t, s, 9) == 11
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, put(s, region(1, "", "c", 2, 1, voter(1, 1)), "a").wait(t))
}

// TestDamagedEntryEndsTheReplica: a committed entry that does not decode is damage of this replica.
// It is not skipped, and nothing is applied from it on; the store and its other regions go on.
func TestDamagedEntryEndsTheReplica(t *testing.T) {
	r := trio()
	for _, e := range []eraftpb.Entry{
		{Data: []byte{0xff, 1, 2}},
		{Data: []byte{0xff}, EntryType: eraftpb.EntryType_EntryConfChange},
	} {
		s, engine := newTestStore(t, r)
		e.Index, e.Term = 6, 6
		next := eraftpb.Entry{Index: 7, Term: 6}
		carryOut(t, s, r, apply.Task{RegionID: 1, Entries: []eraftpb.Entry{e, next}},
			apply.Task{RegionID: 1, Entries: []eraftpb.Entry{next}})
		st, err := meta.LoadApplyState(engine, 1, 0)
		require.NoError(t, err)
		require.EqualValues(t, 5, st.AppliedIndex)
		require.EqualValues(t, 1, s.Work().CorruptEntries)
		require.EqualValues(t, 1, s.readErrors.total.Load())

		// From another store it is not even taken.
		m := envelope(r, voter(2, 2), voter(1, 1), eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgAppend, Term: 6, Index: 5, LogTerm: 5,
			Entries: []*eraftpb.Entry{&e},
		})
		var invalid *regionerr.InvalidError
		require.ErrorAs(t, s.HandleRaft(m), &invalid)
	}
}

// absent is what a key must not have to be swapped.
const absent = "\x00absent"

func swapRequest(key, expected, value string) *raft_cmdpb.CompareAndSwapRequest {
	r := &raft_cmdpb.CompareAndSwapRequest{Cf: "default", Key: []byte(key), Value: []byte(value)}
	if expected != absent {
		r.Expected = &raft_cmdpb.ExpectedValue{Value: []byte(expected)}
	}
	return r
}

func requireValue(t *testing.T, e engine.Engine, cf engine.CF, key, want string) {
	t.Helper()
	v, found, err := e.Get(engine.DataKey(cf, []byte(key)))
	require.NoError(t, err)
	require.Equal(t, want != absent, found, key)
	if found {
		require.Equal(t, want, string(v), key)
	}
}

// TestConditionalRequestsStandAlone: those that come together with other writes get their own
// answers, and their effects in the order in which they came.
func TestConditionalRequestsStandAlone(t *testing.T) {
	r := region(1, "", "", 1, 1, voter(1, 1))
	s, e := newTestStore(t, r)
	startTestStore(t, s)
	require.NoError(t, put(s, r, "k").wait(t))
	var cbs []*message.Callback
	send := func(alone bool, payload []byte) {
		w := &message.Write{
			Header: message.Header{RegionID: 1, Peer: r.Peers[0], Epoch: r.RegionEpoch},
			MinKey: []byte("k"), MaxKey: []byte("k"),
			Payload: payload, Callback: message.NewCallback(),
		}
		if alone {
			w.Conditional = &message.Condition{Needs: feature.ConditionalOps}
		}
		s.Write(w)
		cbs = append(cbs, w.Callback)
	}
	put := func(value string) {
		send(false, message.AppendPut(nil, "", []byte("k"), []byte(value)))
	}
	swap := func(expected, value string) {
		send(true, message.AppendSwap(nil, swapRequest("k", expected, value)))
	}
	// the worker is busy: all of them wait in the mailbox
	require.NoError(t, s.Inspect(t.Context(), 1, func(*PeerView) {
		put("1")
		swap("1", "2")
		put("3")
		swap("2", "4")
		swap("3", "5")
		put("6")
	}))
	for i, want := range []string{"", "1", "", "no 3", "3", ""} {
		res, err := cbs[i].Wait(t.Context())
		require.NoError(t, err)
		require.NoError(t, res.Err)
		if want == "" {
			require.Nil(t, res.Swap())
			continue
		}
		text := string(res.Swap().Previous)
		if !res.Swap().Swapped {
			text = "no " + text
		}
		require.Equal(t, want, text)
	}
	requireValue(t, e, engine.CFDefault, "k", "6")
}

// TestConditionalRequestsNeedAllStores: while the feature is not in force they are refused, and
// nothing is proposed.
func TestConditionalRequestsNeedAllStores(t *testing.T) {
	r := region(1, "", "", 1, 1, voter(1, 1))
	s, e := newTestStore(t, r)
	s.features = func() feature.Set { return feature.Transactions }
	startTestStore(t, s)
	require.NoError(t, put(s, r, "k").wait(t))
	cb := message.NewCallback()
	s.Write(&message.Write{
		Header: message.Header{RegionID: 1, Peer: r.Peers[0], Epoch: r.RegionEpoch},
		MinKey: []byte("k"), MaxKey: []byte("k"),
		Payload: message.AppendSwap(nil, swapRequest("k", "v", "w")), Callback: cb,
		Conditional: &message.Condition{Needs: feature.ConditionalOps},
	})
	var missing *regionerr.FeatureError
	require.ErrorAs(t, pending{cb}.wait(t), &missing)
	require.ErrorContains(t, missing,
		"every store of the cluster must run a version that knows conditional-ops")
	requireValue(t, e, engine.CFDefault, "k", "v")
}

// TestReadErrorAtASwapStopsTheStore: a replica that can not read the value must not decide. The
// restart applies the entry.
func TestReadErrorAtASwapStopsTheStore(t *testing.T) {
	r := region(1, "", "", 1, 1, voter(1, 1))
	s, e := newTestStore(t, r)
	var ctl faultfs.Controller
	s.useEngine(enginefault.Wrap(e, &ctl))
	startTestStore(t, s)
	require.NoError(t, put(s, r, "k").wait(t))
	before, err := meta.LoadApplyState(e, 1, 0)
	require.NoError(t, err)
	failing(&ctl, "get")
	cb := message.NewCallback()
	s.Write(&message.Write{
		Header: message.Header{RegionID: 1, Peer: r.Peers[0], Epoch: r.RegionEpoch},
		MinKey: []byte("k"), MaxKey: []byte("k"),
		Payload: message.AppendSwap(nil, swapRequest("k", "v", "w")), Callback: cb,
		Conditional: &message.Condition{Needs: feature.ConditionalOps},
	})
	requireFailed(t, s, errIO)
	ctl.Set(nil)
	s.Stop()
	requireUnknown(t, pending{cb}.wait(t))
	after, err := meta.LoadApplyState(e, 1, 0)
	require.NoError(t, err)
	require.Equal(t, before.AppliedIndex, after.AppliedIndex)
	requireValue(t, e, engine.CFDefault, "k", "v")

	s = again(t, s)
	require.NoError(t, put(s, r, "other").wait(t))
	requireValue(t, e, engine.CFDefault, "k", "w")
}
