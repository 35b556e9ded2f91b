package raftstore

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/runner"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// damagedLog is a raft log that has met damage in region 1, in whose hard state there is a vote.
func damagedLog(t *testing.T) *raftlog.Log {
	t.Helper()
	l := decayedLog(t)
	_, err := l.Entries(1, meta.InitLogIndex+1, meta.InitLogIndex+2, math.MaxUint64)
	require.Error(t, err)
	require.Error(t, l.Damaged(1))
	return l
}

// decayedLog is a raft log that does not know yet that an entry of region 1 is damaged.
func decayedLog(t *testing.T) *raftlog.Log {
	t.Helper()
	fs := faultfs.NewMemFS(nil)
	l, err := raftlog.Open("raft", raftlog.Options{
		SegmentSize: 1 << 20, CacheBytes: 1 << 20, FS: fs, Manual: true, Logger: zap.NewNop(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	var b logBatch
	initialLogState(&b, l, 1)
	b.SetHardState(1, eraftpb.HardState{Term: 8, Vote: 3, Commit: meta.InitLogIndex})
	mark := []byte("this will be another")
	b.Append(1, []eraftpb.Entry{{Index: meta.InitLogIndex + 1, Term: 8, Data: mark}})
	require.NoError(t, l.Write(&b, true))
	l.TrimCache(1, meta.InitLogIndex+1)
	damageFile(t, fs, mark)
	return l
}

// damageFile flips a bit of what is found in a segment.
func damageFile(t *testing.T, fs *faultfs.MemFS, what []byte) {
	t.Helper()
	names, err := fs.List("raft")
	require.NoError(t, err)
	for _, name := range names {
		f, err := fs.Open(filepath.Join("raft", name))
		require.NoError(t, err)
		size, err := f.Size()
		require.NoError(t, err)
		data := make([]byte, size)
		_, err = f.ReadAt(data, 0)
		require.NoError(t, err)
		if i := bytes.Index(data, what); i >= 0 {
			_, err = f.WriteAt([]byte{what[0] ^ 1}, int64(i))
			require.NoError(t, err)
			return
		}
	}
	t.Fatal("not found")
}

// requireSilent fails unless a region is quarantined with what its log held.
func requireSilent(t *testing.T, s *Store) {
	t.Helper()
	require.Eventually(t, func() bool {
		return s.Quarantined()[1] != ""
	}, 10*time.Second, time.Millisecond)
	require.Eventually(t, func() bool {
		return s.router.get(1) == nil
	}, 10*time.Second, time.Millisecond)
	require.Error(t, s.log.Damaged(1), "the damage is forgotten")
	st, ok := s.log.State(1)
	require.True(t, ok)
	require.Equal(t, eraftpb.HardState{Term: 8, Vote: 3, Commit: meta.InitLogIndex}, st.HardState)
}

// TestDamagedLogIsNeverReset: whatever state a start, a message or a split finds a region in, a
// damaged log is not set to something new, which would forget the damage, and with it perhaps a
// vote.
func TestDamagedLogIsNeverReset(t *testing.T) {
	for name, state := range map[string]*rspb.RegionLocalState{
		"normal": {State: rspb.PeerState_Normal, Region: trio(), Peer: voter(1, 1)},
		"applying": {
			State: rspb.PeerState_Applying, Region: trio(),
			Applying: &eraftpb.SnapshotMetadata{Index: 40, Term: 9}, Peer: voter(1, 1),
		},
		"uninitialized": {
			State:  rspb.PeerState_Normal,
			Region: &metapb.Region{Id: 1, RegionEpoch: trio().RegionEpoch}, Peer: voter(1, 1),
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, e := newTestStore(t)
			s.log = damagedLog(t)
			b := e.NewBatch()
			meta.Put(b, meta.RegionStateKey(1), state)
			meta.Put(b, meta.ApplyStateKey(1), meta.InitialApplyState())
			require.NoError(t, e.Write(b, true))
			startTestStore(t, s)
			requireSilent(t, s)
		})
	}
	t.Run("created by a message", func(t *testing.T) {
		s, _ := newTestStore(t)
		s.log = damagedLog(t)
		startTestStore(t, s)
		require.NoError(t, s.HandleRaft(vote(trio(), voter(2, 2), voter(1, 1))))
		requireSilent(t, s)
		// And it goes when its region says so.
		require.NoError(t, s.HandleRaft(tombstone(trio(), 3, voter(1, 1))))
		require.Eventually(t, func() bool {
			return len(s.Quarantined()) == 0
		}, 10*time.Second, time.Millisecond)
	})
	t.Run("created by a split", func(t *testing.T) {
		s, _ := newTestStore(t)
		s.log = damagedLog(t)
		startTestStore(t, s)
		require.NoError(t,
			s.creator.createSplitPeer(&message.BecomeSplit{Region: trio(), Peer: voter(1, 1)}))
		requireSilent(t, s)
	})
}

// TestDamageThatIsFoundLaterEndsTheReplica: it has promised entries that are not what they were, so
// it does not vote any more from the moment on in which it knows.
func TestDamageThatIsFoundLaterEndsTheReplica(t *testing.T) {
	r := trio()
	s, e := newTestStore(t, r)
	s.log = decayedLog(t)
	startTestStore(t, s)
	require.EqualValues(t, 1, peerID(t, s, 1))
	require.NoError(t, s.HandleRaft(envelope(r, voter(2, 2), voter(1, 1), eraftpb.Message{
		MsgType: eraftpb.MessageType_MsgAppend, Term: 8, Index: meta.InitLogIndex + 1, LogTerm: 8,
		Commit: meta.InitLogIndex + 1,
	})))
	// What is read in a turn is dealt with in the next.
	require.Eventually(t, func() bool {
		_ = s.HandleRaft(envelope(r, voter(2, 2), voter(1, 1),
			eraftpb.Message{MsgType: eraftpb.MessageType_MsgHeartbeat, Term: 8}))
		return s.Quarantined()[1] != ""
	}, 10*time.Second, time.Millisecond)
	requireSilent(t, s)
	st, err := meta.LoadApplyState(e, 1, 0)
	require.NoError(t, err)
	require.EqualValues(t, meta.InitLogIndex, st.AppliedIndex)
	require.Positive(t, s.Counts().ReadErrors)
}

// TestReadErrorsAreReported: the first one of a store may pass; with the second the store is not to
// get more to do. What says nothing about the disk does not count.
func TestReadErrorsAreReported(t *testing.T) {
	s, _ := newTestStore(t, trio())
	for _, err := range []error{
		nil, engine.ErrClosed, regionerr.ErrStopping, context.Canceled,
		&regionerr.RegionNotFoundError{}, runner.ErrBusy,
		fmt.Errorf("write: %w", syscall.ENOSPC), fmt.Errorf("write: %w", syscall.EDQUOT),
	} {
		s.ReadFailed(1, err)
	}
	require.Zero(t, s.Counts().ReadErrors)
	s.ReadFailed(1, errIO)
	s.ReadFailed(1, errIO)
	require.EqualValues(t, 2, s.Counts().ReadErrors)
	require.False(t, s.reporter.collect(time.Now()).IsSlow)
	s.ReadFailed(2, errIO)
	require.True(t, s.reporter.collect(time.Now()).IsSlow)
	require.EqualValues(t, 3, s.reporter.collect(time.Now()).ReadErrors)
}

// TestReportsAreBounded: a store heartbeat names some of the regions and peers, however many there
// are.
func TestReportsAreBounded(t *testing.T) {
	s, _ := newTestStore(t)
	now := s.clock.Now()
	for i := range uint64(2 * maxReported) {
		s.quarantine.add(&metapb.Region{Id: 1000 - i}, &metapb.Peer{Id: 2000 - i}, errIO)
		s.reporter.starving.add(3000-i, now)
	}
	s.reporter.starving.add(1, now.Add(-time.Hour))
	stats := s.reporter.collect(now)
	require.Len(t, stats.QuarantinedRegionIds, maxReported)
	require.Len(t, stats.StarvingPeerIds, maxReported)
	require.EqualValues(t, 1000-2*maxReported+1, stats.QuarantinedRegionIds[0])
	require.EqualValues(t, 3000-2*maxReported+1, stats.StarvingPeerIds[0],
		"what is not said again expires")
}

// TestFullDiskIsNoFailedRead: a raft snapshot that is not built because the disk is full says
// nothing about what is on the disk. The region keeps its leader, and nothing is counted.
func TestFullDiskIsNoFailedRead(t *testing.T) {
	s, _ := newTestStore(t, trio())
	s.snaps.SetFull(func() bool { return true })
	startTestStore(t, s)
	requireAlive(t, s, 1)
	_, err := s.regionRunner.buildSnapshot(1)
	require.ErrorIs(t, err, snap.ErrBusy)
	s.regionRunner.doBuild(1)
	requireAlive(t, s, 1)
	require.Zero(t, s.Counts().ReadErrors)
	require.False(t, s.router.get(1).sick.Load(), "the peer would step aside")
}

// TestShortLogIsQuarantined: an engine that is ahead of the raft log belongs to a replica that has
// forgotten what it promised. It is not run, and the others are (F-6).
func TestShortLogIsQuarantined(t *testing.T) {
	s, e := newTestStore(t, trio(), region(2, "m", "t", 1, 1, voter(4, 1)),
		region(3, "t", "w", 1, 1, voter(7, 1)))
	b := e.NewBatch()
	for id, applied := range map[uint64]uint64{1: 7, 2: 6} {
		meta.Put(b, meta.ApplyStateKey(id),
			&rspb.RaftApplyState{AppliedIndex: applied, TruncatedState: &initTruncated})
	}
	require.NoError(t, e.Write(b, true))
	var lb logBatch
	for _, id := range []uint64{1, 2} {
		initialLogState(&lb, s.log, id)
		lb.Append(id, []eraftpb.Entry{{Index: 6, Term: 5}})
	}
	require.NoError(t, s.log.Write(&lb, true))
	l := listenTo(s)
	startTestStore(t, s)
	require.Contains(t, s.Quarantined()[1], "applied index 7, but the raft log ends at 6")
	require.Len(t, s.Quarantined(), 1)
	require.NoError(t, s.HandleRaft(vote(trio(), voter(2, 2), voter(1, 1))))
	handleInOrder(t, s)
	require.Zero(t, peerID(t, s, 1))
	require.Empty(t, l.messages(func(m *rspb.RaftMessage) bool { return m.RegionId == 1 }),
		"it votes")
	require.EqualValues(t, 4, peerID(t, s, 2))
	require.EqualValues(t, 7, peerID(t, s, 3))

	// Once it is removed from the region it is cleared away.
	require.NoError(t, s.HandleRaft(tombstone(trio(), 3, voter(1, 1))))
	require.Eventually(t, func() bool {
		st, err := meta.LoadRegionState(e, 1)
		return err == nil && st.State == rspb.PeerState_Tombstone
	}, 10*time.Second, time.Millisecond)
	require.Empty(t, s.Quarantined())
}
