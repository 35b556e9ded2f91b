package raftstore

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// countedEngine counts the engine snapshots that are open, and calls after behind the taking of
// each.
type countedEngine struct {
	engine.Engine
	open  atomic.Int64
	after func()
}

type countedSnapshot struct {
	engine.Snapshot
	e *countedEngine
}

func (e *countedEngine) NewSnapshot() engine.Snapshot {
	s := &countedSnapshot{e.Engine.NewSnapshot(), e}
	e.open.Add(1)
	if e.after != nil {
		e.after()
	}
	return s
}

func (s *countedSnapshot) Close() {
	s.e.open.Add(-1)
	s.Snapshot.Close()
}

// TestSnapshotIsOfOneMoment: what is applied while a raft snapshot is being built is not in it,
// neither data nor index nor region; a log that was cut off meanwhile makes the build fail, and the
// next one works. No engine snapshot stays open (I-9, I-10, I-12).
func TestSnapshotIsOfOneMoment(t *testing.T) {
	s, _ := newTestStore(t, trio())
	e := &countedEngine{Engine: s.engine}
	s.useEngine(e)
	startTestStore(t, s)
	requireAlive(t, s, 1)
	apply := func(key string, index uint64) {
		b := e.NewBatch()
		b.Put(engine.DataKey(engine.CFDefault, []byte(key)), []byte("v"))
		meta.Put(b, meta.ApplyStateKey(1),
			&rspb.RaftApplyState{AppliedIndex: index, TruncatedState: &initTruncated})
		require.NoError(t, e.Write(b, false))
	}
	var lb logBatch
	lb.Append(1, []eraftpb.Entry{{Index: 6, Term: 6}, {Index: 7, Term: 7}, {Index: 8, Term: 8}})
	require.NoError(t, s.log.Write(&lb, true))
	apply("a", 6)
	e.after = func() { e.after = nil; apply("b", 7) }
	built, err := s.regionRunner.buildSnapshot(1)
	require.NoError(t, err)
	require.EqualValues(t, 6, built.Metadata.Index)
	require.EqualValues(t, 6, built.Metadata.Term)
	var data rspb.RaftSnapshotData
	require.NoError(t, data.Unmarshal(built.Data))
	var keys uint64
	for _, f := range data.Meta.CfFiles {
		keys += f.Size_
	}
	whole, err := s.regionRunner.buildSnapshot(1)
	require.NoError(t, err)
	require.EqualValues(t, 7, whole.Metadata.Index)
	require.NoError(t, data.Unmarshal(whole.Data))
	var more uint64
	for _, f := range data.Meta.CfFiles {
		more += f.Size_
	}
	require.Greater(t, more, keys, "the key that came meanwhile is in the next one only")

	e.after = func() {
		e.after = nil
		apply("c", 8)
		var lb logBatch
		lb.Truncate(1, 8, 8)
		require.NoError(t, s.log.Write(&lb, true))
	}
	_, err = s.regionRunner.buildSnapshot(1)
	require.ErrorContains(t, err, "term of applied entry 7")
	built, err = s.regionRunner.buildSnapshot(1)
	require.NoError(t, err)
	require.EqualValues(t, 8, built.Metadata.Term, "the log keeps the term at its beginning")
	_, err = s.regionRunner.buildSnapshot(77)
	require.Error(t, err)
	require.Zero(t, e.open.Load(), "engine snapshots left open")
}

// TestWhichSnapshotsAreRefused: by a peer that knows better, each for its own reason, and before
// anything of it is looked at in the files (I-1, I-8).
func TestWhichSnapshotsAreRefused(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	s, _ := newTestStore(t, trio(), region(2, "m", "", 3, 3, voter(4, 1)))
	s.logger = zap.New(core)
	startTestStore(t, s)
	var missing *rspb.SnapshotMeta
	with := func(r *metapb.Region) []byte {
		data, err := (&rspb.RaftSnapshotData{Region: r, Meta: missing}).Marshal()
		require.NoError(t, err)
		return data
	}
	peers := trio().Peers
	for want, data := range map[string][]byte{
		"malformed":                {0xff},
		"of another region":        with(region(2, "", "m", 9, 9, peers...)),
		"this peer is not in it":   with(region(1, "", "m", 9, 9, peers[1:]...)),
		"its epoch is old":         with(region(1, "", "z", 1, 2, peers...)),
		"its files are not usable": with(region(1, "", "m", 2, 3, peers...)),
	} {
		logs.TakeAll()
		require.NoError(t, s.HandleRaft(envelope(trio(), peers[1], peers[0], eraftpb.Message{
			MsgType: eraftpb.MessageType_MsgSnapshot, Term: 6,
			Snapshot: &eraftpb.Snapshot{
				Data: data, Metadata: &eraftpb.SnapshotMetadata{Index: 50, Term: 6},
			},
		})))
		require.NoError(t,
			s.Inspect(context.Background(), 1, func(v *PeerView) {
				require.False(t, v.Info().Installing)
			}))
		refused := logs.FilterMessage("refusing raft snapshot").All()
		require.Len(t, refused, 1, want)
		require.Equal(t, want, refused[0].ContextMap()["reason"])
	}
}

// TestReadsCheckTheRegionOfTheirView: a reader holds an engine snapshot, and what counts is the
// region as it is in there: whole before an installation or a split, refused in the middle of one
// and after it (I-13).
func TestReadsCheckTheRegionOfTheirView(t *testing.T) {
	s, e := newTestStore(t, trio())
	b := e.NewBatch()
	b.Put(engine.DataKey(engine.CFDefault, []byte("a")), []byte("v"))
	require.NoError(t, e.Write(b, true))
	h := message.Header{RegionID: 1, Peer: voter(1, 1), Epoch: trio().RegionEpoch}
	before := e.NewSnapshot()
	defer before.Close()
	check := func(state rspb.PeerState, r *metapb.Region) error {
		b := e.NewBatch()
		meta.PutRegionState(b, state, r, voter(1, 1))
		require.NoError(t, e.Write(b, true))
		view := e.NewSnapshot()
		defer view.Close()
		_, err := s.CheckSnapshot(view, h, []byte("a"))
		return err
	}
	var gone *regionerr.RegionNotFoundError
	require.ErrorAs(t, check(rspb.PeerState_Applying, trio()), &gone)
	require.NoError(t,
		engine.ClearRange(e, engine.DataKey(engine.CFDefault, nil),
			engine.DataEndKey(engine.CFDefault, nil)))
	require.ErrorAs(t, check(rspb.PeerState_Tombstone, trio()), &gone)
	var mismatch *regionerr.EpochNotMatchError
	require.ErrorAs(t, check(rspb.PeerState_Normal, region(1, "", "f", 3, 2, trio().Peers...)),
		&mismatch)
	require.NoError(t, check(rspb.PeerState_Normal, trio()))

	r, err := s.CheckSnapshot(before, h, []byte("a"))
	require.NoError(t, err)
	require.Equal(t, "m", string(r.EndKey))
	_, found, err := before.Get(engine.DataKey(engine.CFDefault, []byte("a")))
	require.NoError(t, err)
	require.True(t, found, "a reader does not see what is cleared behind it")
}

// TestMissingSnapshotIsGivenUp: a start that finds the state Applying sets the log to the raft
// snapshot, which a crash may have prevented, and does without the replica if the files are gone
// (F-7, I-4).
func TestMissingSnapshotIsGivenUp(t *testing.T) {
	s, e := newTestStore(t)
	b := e.NewBatch()
	meta.Put(b, meta.RegionStateKey(1), &rspb.RegionLocalState{
		State: rspb.PeerState_Applying, Region: trio(),
		Applying: &eraftpb.SnapshotMetadata{Index: 40, Term: 9}, Peer: voter(1, 1),
	})
	require.NoError(t, e.Write(b, true))
	var lb logBatch
	initialLogState(&lb, s.log, 1)
	lb.Append(1, []eraftpb.Entry{{Index: 6, Term: 5}})
	require.NoError(t, s.log.Write(&lb, true))
	startTestStore(t, s)
	require.Contains(t, s.Quarantined()[1], "raft snapshot to install")
	st, ok := s.log.State(1)
	require.True(t, ok)
	require.EqualValues(t, 40, st.TruncatedIndex)
	require.EqualValues(t, 40, st.Last)
	require.Equal(t, eraftpb.HardState{Term: 9, Commit: 40}, st.HardState)
}
