package apply

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// TestAppliedIndexesInTheEngine applies entries of many more regions than an applied table has
// places, in batches of a few, with logs that are compacted and regions that end and begin anew.
// After every batch, which is where a crash may leave the engine, each region's applied index is
// there, with its data; and so it is after a start has settled the tables.
func TestAppliedIndexesInTheEngine(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { checkAppliedIndexes(t, seed) })
	}
}

func checkAppliedIndexes(t *testing.T, seed uint64) {
	const regions = 3 * tablePlaces
	rng := rand.New(rand.NewPCG(seed, 3))
	w, _, e := newTestWorker(t, nil)
	want := map[uint64]*applier{}
	wrote := map[uint64]string{}
	begin := func(id, index uint64) {
		key := fmt.Sprintf("%04d", id)
		r := region(id, key, key+"~", 1, 1, voter(id+1000, 1))
		b := e.NewBatch()
		meta.PutRegionState(b, rspb.PeerState_Normal, r, r.Peers[0])
		truncated := rspb.RaftTruncatedState{Index: index, Term: 5}
		meta.Put(b, meta.ApplyStateKey(id),
			&rspb.RaftApplyState{AppliedIndex: index, TruncatedState: &truncated})
		require.NoError(t, e.Write(b, false))
		w.begin(id,
			&Begin{Peer: r.Peers[0], Region: r, Applied: index, Term: 5, Truncated: truncated})
		want[id] = w.regions[id]
	}
	for id := range uint64(regions) {
		begin(id+1, 5)
	}
	apply := func(a *applier) {
		key := []byte(fmt.Sprintf("%04d", a.regionID))
		data := message.AppendHeader(nil, a.regionID, &metapb.RegionEpoch{ConfVer: 1, Version: 1})
		data = message.AppendPut(data, string(engine.CFDefault), key,
			[]byte(fmt.Sprint(a.applied+1)))
		wrote[a.regionID] = fmt.Sprint(a.applied + 1)
		entry := eraftpb.Entry{Index: a.applied + 1, Term: 6, Data: data}
		require.NoError(t,
			w.applyEntries(&Task{RegionID: a.regionID, Entries: []eraftpb.Entry{entry}}))
		if rng.IntN(10) == 0 {
			a.truncated = rspb.RaftTruncatedState{Index: a.applied, Term: 6}
		}
	}
	check := func(load func(id uint64) (*rspb.RaftApplyState, error)) {
		t.Helper()
		for id, a := range want {
			st, err := load(id)
			require.NoError(t, err)
			require.Equal(t, a.applied, st.AppliedIndex, "region %d", id)
			require.Equal(t, a.truncated, *st.TruncatedState, "region %d", id)
			value, _, err := e.Get(engine.DataKey(engine.CFDefault,
				[]byte(fmt.Sprintf("%04d", id))))
			require.NoError(t, err)
			require.Equal(t, wrote[id], string(value), "region %d", id)
		}
	}
	atRuntime := func(id uint64) (*rspb.RaftApplyState, error) {
		return meta.LoadApplyState(e, id, 0)
	}
	hot := rng.Uint64N(regions)
	for round := range 3 * tableLook {
		if round%500 == 0 {
			hot = rng.Uint64N(regions) // those that are busy change
		}
		for range 1 + rng.IntN(8) {
			id := (hot+rng.Uint64N(tablePlaces/2))%regions + 1
			if rng.IntN(20) == 0 {
				id = rng.Uint64N(regions) + 1
			}
			apply(want[id])
			if rng.IntN(200) == 0 {
				index := want[id].applied
				w.forget(id)
				require.NoError(t, w.flush())
				st, err := meta.LoadApplyRecord(e, id)
				require.NoError(t, err)
				require.Equal(t, index, st.AppliedIndex, "a forgotten region's own record says all")
				table, _, err := e.Get(meta.AppliedTableKey(0))
				require.NoError(t, err)
				require.NoError(t, meta.VisitApplied(table, func(other, _ uint64) error {
					require.NotEqual(t, id, other, "a forgotten region is in the table")
					return nil
				}))
				begin(id, index+rng.Uint64N(3))
			}
		}
		require.NoError(t, w.flush())
		if round%16 == 0 || round%tableLook < 3 {
			check(atRuntime)
		}
	}
	check(atRuntime)
	view, settled := e.NewSnapshot(), e.NewBatch()
	defer view.Close()
	require.NoError(t, meta.SettleApplied(view, settled))
	require.NoError(t, e.Write(settled, false))
	check(func(id uint64) (*rspb.RaftApplyState, error) { return meta.LoadApplyRecord(e, id) })
}

// TestBusyRegionsShareARecord: a batch over as many regions as the table has places writes their
// data and one record more.
func TestBusyRegionsShareARecord(t *testing.T) {
	_, _, e := newTestWorker(t, nil)
	table, batch := appliedTable{}, e.NewBatch()
	appliers := make([]*applier, tablePlaces)
	for i := range appliers {
		appliers[i] = &applier{regionID: uint64(i + 1)}
	}
	for round := range 2 * tableLook {
		for _, a := range appliers {
			a.applied++
			require.True(t, table.admit(a))
		}
		require.Empty(t, table.countBatch())
		table.put(batch)
		require.Equal(t, round+1, batch.Len())
	}
	extra := &applier{regionID: 1000}
	require.False(t, table.admit(extra), "no place is left")
	for range 2 * tableLook {
		table.admit(appliers[0])
		table.countBatch()
	}
	require.True(t, table.admit(extra), "those that rest have given up theirs")
	require.Equal(t, 2, table.taken)
}
