package apply

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/regionerr"
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

// roundOf has a worker apply payloads as the entries of one task, at a region's beginning, and
// returns the answers.
func roundOf(t *testing.T, w *Worker, r *metapb.Region, payloads ...[]byte) []message.Result {
	t.Helper()
	w.begin(r.Id, beginning(r))
	var entries []eraftpb.Entry
	for i, p := range payloads {
		data := message.AppendChecksum(append(message.AppendHeader(nil, r.Id, r.RegionEpoch), p...))
		entries = append(entries,
			eraftpb.Entry{Index: uint64(meta.InitLogIndex + 1 + i), Term: 6, Data: data})
	}
	task, cbs := entriesOf(r.Id, entries...)
	require.NoError(t, w.round([]Task{task}))
	out := make([]message.Result, len(cbs))
	for i, cb := range cbs {
		out[i] = answered(t, cb)
	}
	return out
}

// TestSwapSeesThePendingBatch: a compare-and-swap is decided by all that precedes it in the log,
// also by what the apply worker has not written to the engine yet.
func TestSwapSeesThePendingBatch(t *testing.T) {
	r := region(1, "", "", 1, 1, voter(1, 1))
	w, _, e := newTestWorker(t, nil, r)
	put := func(key, value string) []byte {
		return message.AppendPut(nil, "default", []byte(key), []byte(value))
	}
	remove := swapRequest("k", "two", "")
	remove.Delete = true
	other := swapRequest("k", absent, "locked")
	other.Cf = "lock"
	got := roundOf(t, w, r,
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
		nil, nil, value(true, "one"), value(false, "two"), value(false, "two"), none(true),
		value(true, "two"), none(false),
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

// TestDeleteRangeStaysInItsRegion: neither keys of other regions and column families, nor what
// comes later in the log.
func TestDeleteRangeStaysInItsRegion(t *testing.T) {
	for _, tombstones := range []bool{true, false} {
		r, next := region(1, "b", "m", 1, 1, voter(1, 1)), region(2, "m", "", 1, 1, voter(2, 1))
		var wrap func(engine.Engine) engine.Engine
		if !tombstones {
			wrap = func(e engine.Engine) engine.Engine { return plainEngine{e} }
		}
		w, _, e := newTestWorker(t, wrap, r, next)
		b := e.NewBatch()
		for _, key := range []string{"a", "b", "c", "l\xff\xff", "m", "z"} {
			b.Put(engine.DataKey(engine.CFDefault, []byte(key)), []byte("v"))
			b.Put(engine.DataKey(engine.CFWrite, []byte(key)), []byte("w"))
		}
		require.NoError(t, e.Write(b, true))
		got := roundOf(t, w, r,
			message.AppendPut(nil, "default", []byte("d"), []byte("before")),
			message.AppendDeleteRange(nil, "default", []byte("a"), []byte("m")),
			message.AppendDeleteRange(nil, "default", []byte("b"), []byte("m\x00")),
			message.AppendDeleteRange(nil, "default", []byte("b"), nil),
			message.AppendDeleteRange(nil, "default", []byte("c"), []byte("c")),
			message.AppendDeleteRange(nil, "holidays", []byte("b"), []byte("m")),
		)
		for i, want := range []string{
			"", "key_not_in_region", "key_not_in_region", "key_not_in_region", "", "",
		} {
			if i > 0 {
				require.Error(t, got[i].Err, i)
			}
			if want != "" {
				var out *regionerr.KeyNotInRegionError
				require.ErrorAs(t, got[i].Err, &out, i)
			}
		}
		requireValue(t, e, engine.CFDefault, "d", "before")
		got = roundOf(t, w, r,
			message.AppendDeleteRange(nil, "default", []byte("b"), []byte("m")),
			message.AppendPut(nil, "default", []byte("c"), []byte("after")),
		)
		require.NoError(t, got[0].Err)
		for key, want := range map[string]string{
			"a": "v", "b": absent, "c": "after", "d": absent, "l\xff\xff": absent, "m": "v",
			"z": "v",
		} {
			requireValue(t, e, engine.CFDefault, key, want)
		}
		requireValue(t, e, engine.CFWrite, "b", "w")
		got = roundOf(t, w, next, message.AppendDeleteRange(nil, "default", []byte("n"), nil))
		require.NoError(t, got[0].Err)
		requireValue(t, e, engine.CFDefault, "m", "v")
		requireValue(t, e, engine.CFDefault, "z", absent)
	}
}

// TestSwaps: what has swapped is remembered, within bounds; nothing is made up of what is
// forgotten.
func TestSwaps(t *testing.T) {
	var m Swaps
	id := func(n uint64) message.WriteID { return message.WriteID{Client: 1, Number: n} }
	_, known := m.Of(id(1))
	require.False(t, known)
	m.Note(id(1), false)
	swapped, known := m.Of(id(1))
	require.True(t, known && !swapped)
	m.Note(id(1), true)
	m.Note(id(1), false)
	swapped, _ = m.Of(id(1))
	require.True(t, swapped, "it has swapped once")
	for n := range uint64(maxSwaps) {
		m.Note(id(2+n), false)
	}
	swapped, known = m.Of(id(1))
	require.True(t, known && swapped)
	for n := range uint64(2 * maxSwaps) {
		m.Note(id(1<<32+n), false)
	}
	_, known = m.Of(id(1))
	require.False(t, known)
}
