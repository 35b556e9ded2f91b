package meta

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// TestSettleApplied: the larger index of table and record counts, whichever worker's table it is; a
// region without an apply state does not get one; the tables are gone afterwards.
func TestSettleApplied(t *testing.T) {
	e := memengine.New()
	b := e.NewBatch()
	for id, applied := range map[uint64]uint64{1: 10, 2: 10, 3: 10} {
		Put(b, ApplyStateKey(id),
			&rspb.RaftApplyState{
				AppliedIndex: applied, TruncatedState: &rspb.RaftTruncatedState{Index: 7, Term: id},
			})
	}
	b.Put(AppliedTableKey(0), AppendApplied(AppendApplied(nil, 1, 300), 2, 9))
	b.Put(AppliedTableKey(7), AppendApplied(AppendApplied(nil, 4, 1<<60), 3, 11))
	require.NoError(t, e.Write(b, false))
	st, err := LoadApplyState(e, 1, 0)
	require.NoError(t, err)
	require.EqualValues(t, 300, st.AppliedIndex)
	st, err = LoadApplyState(e, 1, 7)
	require.NoError(t, err)
	require.EqualValues(t, 10, st.AppliedIndex, "the table of another worker")
	st, err = LoadApplyState(e, 4, 7)
	require.NoError(t, err)
	require.Nil(t, st)

	b = e.NewBatch()
	snap := e.NewSnapshot()
	require.NoError(t, SettleApplied(snap, b))
	snap.Close()
	require.NoError(t, e.Write(b, false))
	for id, want := range map[uint64]uint64{1: 300, 2: 10, 3: 11} {
		st, err := LoadApplyRecord(e, id)
		require.NoError(t, err)
		require.EqualValues(t, want, st.AppliedIndex, "region %d", id)
		require.Equal(t, &rspb.RaftTruncatedState{Index: 7, Term: id}, st.TruncatedState)
	}
	st, err = LoadApplyRecord(e, 4)
	require.NoError(t, err)
	require.Nil(t, st)
	snap = e.NewSnapshot()
	defer snap.Close()
	it := snap.NewIterator(AppliedTableMinKey, AppliedTableMaxKey)
	defer it.Close()
	it.First()
	require.False(t, it.Valid(), "a table is left")
}

// FuzzApplied: a table of any bytes is read whole or is damage, and never moves an index back.
func FuzzApplied(f *testing.F) {
	f.Add(AppendApplied(AppendApplied(nil, 1, 300), 1<<63, 9), uint64(7))
	f.Add([]byte{1}, uint64(7))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, uint64(7))
	f.Fuzz(func(t *testing.T, table []byte, applied uint64) {
		e := memengine.New()
		b := e.NewBatch()
		Put(b, ApplyStateKey(1), &rspb.RaftApplyState{AppliedIndex: applied})
		b.Put(AppliedTableKey(0), table)
		require.NoError(t, e.Write(b, false))
		st, loadErr := LoadApplyState(e, 1, 0)
		b = e.NewBatch()
		snap := e.NewSnapshot()
		defer snap.Close()
		settleErr := SettleApplied(snap, b)
		for _, err := range []error{loadErr, settleErr} {
			if err != nil && !errors.Is(err, engine.ErrCorrupt) {
				t.Fatal(err)
			}
		}
		if (loadErr == nil) != (settleErr == nil) {
			t.Fatalf("%v, but %v", loadErr, settleErr)
		}
		if loadErr != nil {
			return
		}
		require.GreaterOrEqual(t, st.AppliedIndex, applied)
		require.NoError(t, e.Write(b, false))
		settled, err := LoadApplyRecord(e, 1)
		require.NoError(t, err)
		require.Equal(t, st.AppliedIndex, settled.AppliedIndex)
	})
}
