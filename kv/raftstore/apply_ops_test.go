package raftstore

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/enginefault"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/pkg/feature"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// absent is what a key must not have to be swapped.
const absent = "\x00absent"

func swapRequest(key, expected, value string) *raft_cmdpb.CompareAndSwapRequest {
	r := &raft_cmdpb.CompareAndSwapRequest{Cf: "default", Key: []byte(key), Value: []byte(value)}
	if expected != absent {
		r.Expected = &raft_cmdpb.ExpectedValue{Value: []byte(expected)}
	}
	return r
}

// roundOf has a worker apply payloads as the entries of one task, and returns the answers.
func roundOf(t *testing.T, s *Store, r *metapb.Region, payloads ...[]byte) []message.Result {
	t.Helper()
	w := s.appliers[0]
	w.regions[r.Id] = &applier{
		regionID: r.Id, peer: r.Peers[0], region: r, applied: meta.InitLogIndex, term: 5, truncated: initTruncated,
	}
	task := applyTask{kind: applyEntries, regionID: r.Id}
	var cbs []*message.Callback
	for i, p := range payloads {
		data := message.AppendChecksum(append(message.AppendHeader(nil, r.Id, r.RegionEpoch), p...))
		index := uint64(meta.InitLogIndex + 1 + i)
		cbs = append(cbs, message.NewCallback())
		task.entries = append(task.entries, eraftpb.Entry{Index: index, Term: 6, Data: data})
		task.proposals = append(task.proposals, message.NewProposal(index, 6, 0, cbs[i]))
	}
	require.NoError(t, w.round([]applyTask{task}))
	out := make([]message.Result, len(cbs))
	for i, cb := range cbs {
		res, err := cb.Wait(t.Context())
		require.NoError(t, err)
		out[i] = res
	}
	return out
}

// TestSwapSeesThePendingBatch: a compare-and-swap is decided by all that precedes it in the log, also by what the apply
// worker has not written to the engine yet.
func TestSwapSeesThePendingBatch(t *testing.T) {
	r := region(1, "", "", 1, 1, voter(1, 1))
	s, e := newTestStore(t, r)
	put := func(key, value string) []byte { return message.AppendPut(nil, "default", []byte(key), []byte(value)) }
	remove := swapRequest("k", "two", "")
	remove.Delete = true
	other := swapRequest("k", absent, "locked")
	other.Cf = "lock"
	got := roundOf(t, s, r,
		put("k", "zero"), put("k", "one"),
		message.AppendSwap(nil, swapRequest("k", "one", "two")),
		message.AppendSwap(nil, swapRequest("k", "one", "three")),
		message.AppendSwap(nil, swapRequest("k", absent, "three")),
		message.AppendSwap(nil, other),
		message.AppendSwap(nil, remove),
		message.AppendSwap(nil, swapRequest("k", "", "three")),
		message.AppendSwap(nil, swapRequest("k", absent, "")),
		message.AppendSwap(nil, swapRequest("k", absent, "three")),
		message.AppendSwap(nil, swapRequest("k", "", "four")),
		message.AppendDelete(nil, "default", []byte("k")),
		message.AppendSwap(nil, swapRequest("k", absent, "five")),
		message.AppendDeleteRange(nil, "default", nil, nil),
		message.AppendSwap(nil, swapRequest("k", absent, "six")),
	)
	value := func(swapped bool, previous string) *message.Swap {
		return &message.Swap{Swapped: swapped, Found: true, Previous: []byte(previous)}
	}
	none := func(swapped bool) *message.Swap { return &message.Swap{Swapped: swapped} }
	for i, want := range []*message.Swap{
		nil, nil, value(true, "one"), value(false, "two"), value(false, "two"), none(true), value(true, "two"), none(false),
		none(true), value(false, ""), value(true, ""), nil, none(true), nil, none(true),
	} {
		require.NoError(t, got[i].Err)
		if want == nil {
			require.Nil(t, got[i].Swap())
			continue
		}
		require.NotNil(t, got[i].Swap(), i)
		have := *got[i].Swap()
		require.Equal(t, string(want.Previous), string(have.Previous), i)
		require.Equal(t, [2]bool{want.Swapped, want.Found}, [2]bool{have.Swapped, have.Found}, i)
	}
	requireValue(t, e, engine.CFDefault, "k", "six")
	requireValue(t, e, engine.CFLock, "k", "locked")
	st, err := meta.LoadApplyState(e, 1, 0)
	require.NoError(t, err)
	require.EqualValues(t, meta.InitLogIndex+15, st.AppliedIndex)
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

// plainEngine has no range tombstones.
type plainEngine struct{ engine.Engine }

// TestDeleteRangeStaysInItsRegion: neither keys of other regions and column families, nor what comes later in the log.
func TestDeleteRangeStaysInItsRegion(t *testing.T) {
	for _, tombstones := range []bool{true, false} {
		r, next := region(1, "b", "m", 1, 1, voter(1, 1)), region(2, "m", "", 1, 1, voter(2, 1))
		s, e := newTestStore(t, r, next)
		if !tombstones {
			s.engine = plainEngine{e}
		}
		b := e.NewBatch()
		for _, key := range []string{"a", "b", "c", "l\xff\xff", "m", "z"} {
			b.Put(engine.DataKey(engine.CFDefault, []byte(key)), []byte("v"))
			b.Put(engine.DataKey(engine.CFWrite, []byte(key)), []byte("w"))
		}
		require.NoError(t, e.Write(b, true))
		got := roundOf(t, s, r,
			message.AppendPut(nil, "default", []byte("d"), []byte("before")),
			message.AppendDeleteRange(nil, "default", []byte("a"), []byte("m")),
			message.AppendDeleteRange(nil, "default", []byte("b"), []byte("m\x00")),
			message.AppendDeleteRange(nil, "default", []byte("b"), nil),
			message.AppendDeleteRange(nil, "default", []byte("c"), []byte("c")),
			message.AppendDeleteRange(nil, "holidays", []byte("b"), []byte("m")),
		)
		for i, want := range []string{"", "key_not_in_region", "key_not_in_region", "key_not_in_region", "", ""} {
			if i > 0 {
				require.Error(t, got[i].Err, i)
			}
			if want != "" {
				var out *KeyNotInRegionError
				require.ErrorAs(t, got[i].Err, &out, i)
			}
		}
		requireValue(t, e, engine.CFDefault, "d", "before")
		s.appliers[0].regions = map[uint64]*applier{}
		got = roundOf(t, s, r,
			message.AppendDeleteRange(nil, "default", []byte("b"), []byte("m")),
			message.AppendPut(nil, "default", []byte("c"), []byte("after")),
		)
		require.NoError(t, got[0].Err)
		for key, want := range map[string]string{
			"a": "v", "b": absent, "c": "after", "d": absent, "l\xff\xff": absent, "m": "v", "z": "v",
		} {
			requireValue(t, e, engine.CFDefault, key, want)
		}
		requireValue(t, e, engine.CFWrite, "b", "w")
		got = roundOf(t, s, next, message.AppendDeleteRange(nil, "default", []byte("n"), nil))
		require.NoError(t, got[0].Err)
		requireValue(t, e, engine.CFDefault, "m", "v")
		requireValue(t, e, engine.CFDefault, "z", absent)
	}
}

// TestConditionalRequestsStandAlone: those that come together with other writes get their own answers, and their effects
// in the order in which they came.
func TestConditionalRequestsStandAlone(t *testing.T) {
	r := region(1, "", "", 1, 1, voter(1, 1))
	s, e := newTestStore(t, r)
	startTestStore(t, s)
	require.NoError(t, put(s, r, "k").wait(t))
	var cbs []*message.Callback
	send := func(alone bool, payload []byte) {
		w := &message.Write{
			Header: message.Header{RegionID: 1, Peer: r.Peers[0], Epoch: r.RegionEpoch}, MinKey: []byte("k"), MaxKey: []byte("k"),
			Payload: payload, Callback: message.NewCallback(),
		}
		if alone {
			w.Conditional = &message.Condition{Needs: feature.ConditionalOps}
		}
		s.Write(w)
		cbs = append(cbs, w.Callback)
	}
	put := func(value string) { send(false, message.AppendPut(nil, "", []byte("k"), []byte(value))) }
	swap := func(expected, value string) { send(true, message.AppendSwap(nil, swapRequest("k", expected, value))) }
	require.NoError(t, s.Inspect(t.Context(), 1, func(*PeerView) { // the worker is busy: all of them wait in the mailbox
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

// TestConditionalRequestsNeedAllStores: while the feature is not in force they are refused, and nothing is proposed.
func TestConditionalRequestsNeedAllStores(t *testing.T) {
	r := region(1, "", "", 1, 1, voter(1, 1))
	s, e := newTestStore(t, r)
	s.features = func() feature.Set { return feature.Transactions }
	startTestStore(t, s)
	require.NoError(t, put(s, r, "k").wait(t))
	cb := message.NewCallback()
	s.Write(&message.Write{
		Header: message.Header{RegionID: 1, Peer: r.Peers[0], Epoch: r.RegionEpoch}, MinKey: []byte("k"), MaxKey: []byte("k"),
		Payload: message.AppendSwap(nil, swapRequest("k", "v", "w")), Callback: cb,
		Conditional: &message.Condition{Needs: feature.ConditionalOps},
	})
	var missing *FeatureError
	require.ErrorAs(t, pending{cb}.wait(t), &missing)
	require.ErrorContains(t, missing, "every store of the cluster must run a version that knows conditional-ops")
	requireValue(t, e, engine.CFDefault, "k", "v")
}

// TestReadErrorAtASwapStopsTheStore: a replica that can not read the value must not decide. The restart applies the entry.
func TestReadErrorAtASwapStopsTheStore(t *testing.T) {
	r := region(1, "", "", 1, 1, voter(1, 1))
	s, e := newTestStore(t, r)
	var ctl faultfs.Controller
	s.engine = enginefault.Wrap(e, &ctl)
	startTestStore(t, s)
	require.NoError(t, put(s, r, "k").wait(t))
	before, err := meta.LoadApplyState(e, 1, 0)
	require.NoError(t, err)
	failing(&ctl, "get")
	cb := message.NewCallback()
	s.Write(&message.Write{
		Header: message.Header{RegionID: 1, Peer: r.Peers[0], Epoch: r.RegionEpoch}, MinKey: []byte("k"), MaxKey: []byte("k"),
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

// TestSwapMemo: what has swapped is remembered, within bounds; nothing is made up of what is forgotten.
func TestSwapMemo(t *testing.T) {
	var m swapMemo
	id := func(n uint64) message.WriteID { return message.WriteID{Client: 1, Number: n} }
	_, known := m.of(id(1))
	require.False(t, known)
	m.note(id(1), false)
	swapped, known := m.of(id(1))
	require.True(t, known && !swapped)
	m.note(id(1), true)
	m.note(id(1), false)
	swapped, _ = m.of(id(1))
	require.True(t, swapped, "it has swapped once")
	for n := range uint64(maxSwapMemo) {
		m.note(id(2+n), false)
	}
	swapped, known = m.of(id(1))
	require.True(t, known && swapped)
	for n := range uint64(2 * maxSwapMemo) {
		m.note(id(1<<32+n), false)
	}
	_, known = m.of(id(1))
	require.False(t, known)
}
