package raft

import (
	"errors"
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

func snapAt(index, term uint64, ids ...uint64) *eraftpb.Snapshot {
	return &eraftpb.Snapshot{Data: []byte("state"), Metadata: &eraftpb.SnapshotMetadata{
		Index: index, Term: term, ConfState: &eraftpb.ConfState{Nodes: ids},
	}}
}

// A snapshot replaces log and members; everything that is asked of the log is answered from it
// (trap D4).
func TestSnapshotReplacesLogAndMembers2C(t *testing.T) {
	r := newRaft(courseConfig(1, []uint64{1, 2}, storageWith(terms(1, 1))))
	r.becomeFollower(11, 2)
	mustStep(t, r,
		eraftpb.Message{MsgType: tSnap, From: 2, Term: 11, Snapshot: snapAt(11, 11, 1, 2, 3)})
	equal(t, "last", r.RaftLog.LastIndex(), uint64(11))
	equal(t, "first", r.RaftLog.firstIndex(), uint64(12))
	equal(t, "committed", r.RaftLog.committed, uint64(11))
	term, err := r.RaftLog.Term(11)
	equal(t, "term", []any{term, err}, []any{uint64(11), nil})
	equal(t, "members", nodes(r), []uint64{1, 2, 3})
	m := take(r)[0]
	equal(t, "answer", []any{m.MsgType, m.Index, m.Reject}, []any{tAppResp, uint64(11), false})
	equal(t, "nothing to persist", len(r.RaftLog.unstableEntries()), 0)
	equal(t, "nothing to apply", len(r.RaftLog.nextEnts()), 0)
	// The log goes on behind it.
	mustStep(t, r, eraftpb.Message{
		MsgType: tApp, From: 2, Term: 11, Index: 11, LogTerm: 11, Commit: 12,
		Entries: []*eraftpb.Entry{{Index: 12, Term: 11}},
	})
	equal(t, "last", r.RaftLog.LastIndex(), uint64(12))
	equal(t, "to persist", len(r.RaftLog.unstableEntries()), 1)
}

// Through RawNode: the snapshot is handed out until it is persisted, before the entries behind it.
func TestReadyCarriesSnapshotBeforeEntries2C(t *testing.T) {
	for _, opts := range [][]option{nil, {production}} {
		st := NewMemoryStorage()
		rn := mkRaw(t, st, []uint64{1, 2}, opts...)
		_ = rn.Step(eraftpb.Message{
			MsgType: tSnap, From: 2, Term: 3, Snapshot: snapAt(10, 2, 1, 2),
		})
		_ = rn.Step(eraftpb.Message{
			MsgType: tApp, From: 2, Term: 3, Index: 10, LogTerm: 2, Commit: 11,
			Entries: []*eraftpb.Entry{{Index: 11, Term: 3}},
		})
		rd := rn.Ready()
		equal(t, "snapshot", rd.Snapshot.Metadata.Index, uint64(10))
		equal(t, "sync", rd.MustSync, true)
		equal(t, "entries", len(rd.Entries), 1)
		equal(t, "apply before the snapshot", len(rd.CommittedEntries), 0)
		equal(t, "hard state", rd.HardState.Commit, uint64(11))
		if err := st.ApplySnapshot(rd.Snapshot); err != nil {
			t.Fatal(err)
		}
		_ = st.Append(rd.Entries)
		rn.Advance(rd)
		equal(t, "applied", rn.Applied(), uint64(10))
		rd = rn.Ready()
		equal(t, "snapshot again", rd.Snapshot.Metadata == nil, true)
		equal(t, "apply behind it", len(rd.CommittedEntries), 1)
		rn.Advance(rd)
		equal(t, "has ready", rn.HasReady(), false)
	}
}

// Snapshots that are not needed: old ones (trap D2), ones whose last entry is in the log, and ones
// of a time when the node was no member (trap D3).
func TestNeedlessSnapshotsAreIgnored2C(t *testing.T) {
	for _, tc := range []struct {
		name   string
		snap   *eraftpb.Snapshot
		commit uint64
	}{
		{"older than the commit index", snapAt(1, 1, 1, 2), 2},
		{"at the commit index", snapAt(2, 1, 1, 2), 2},
		{"in the log: commits", snapAt(3, 1, 1, 2), 3},
		{"without the node", snapAt(9, 9, 2, 3), 2},
	} {
		r := newRaft(courseConfig(1, []uint64{1, 2}, storageWith(terms(1, 1, 1))))
		r.RaftLog.committed = 2
		r.becomeFollower(2, 2)
		mustStep(t, r, eraftpb.Message{MsgType: tSnap, From: 2, Term: 2, Snapshot: tc.snap})
		equal(t, tc.name+": pending", r.RaftLog.pendingSnapshot == nil, true)
		equal(t, tc.name+": log", r.RaftLog.allEntries(), terms(1, 1, 1))
		equal(t, tc.name+": commit", r.RaftLog.committed, tc.commit)
		m := take(r)[0]
		equal(t, tc.name+": answer", []any{m.MsgType, m.Index}, []any{tAppResp, tc.commit})
	}
	r := mkRaft(1, []uint64{1, 2})
	for _, s := range []*eraftpb.Snapshot{
		nil, {}, {Metadata: &eraftpb.SnapshotMetadata{Index: 9}},
	} {
		mustStep(t, r, eraftpb.Message{MsgType: tSnap, From: 2, Term: 2, Snapshot: s})
		equal(t, "last", r.RaftLog.LastIndex(), uint64(0))
	}
}

// A learner takes a snapshot that names it as one, and a peer that knew nothing learns its group.
func TestEmptyPeerLearnsItsGroup2C(t *testing.T) {
	r := mkRaft(4, nil)
	for range 40 {
		r.tick()
	}
	equal(t, "campaigns of nobody", len(take(r)), 0)
	mustStep(t, r, eraftpb.Message{MsgType: tHeartbeat, From: 1, Term: 5})
	equal(t, "answer", take(r)[0].MsgType, tHeartResp)
	mustStep(t, r, eraftpb.Message{MsgType: tApp, From: 1, Term: 5, Index: 7, LogTerm: 5})
	m := take(r)[0]
	equal(t, "rejection", []any{m.Reject, m.RejectHint}, []any{true, uint64(0)})
	snap := snapAt(9, 5, 1, 2, 3)
	snap.Metadata.ConfState.Learners = []uint64{4}
	mustStep(t, r, eraftpb.Message{MsgType: tSnap, From: 1, Term: 5, Snapshot: snap})
	equal(t, "members", nodes(r), []uint64{1, 2, 3, 4})
	equal(t, "learner", r.Prs[4].IsLearner, true)
}

// compacted makes a leader whose log starts behind what follower 2 needs.
func compacted(t *testing.T, st Storage) *Raft {
	t.Helper()
	r := newRaft(courseConfig(1, []uint64{1, 2}, st))
	r.Term = 1
	r.becomeCandidate()
	r.becomeLeader()
	take(r)
	return r
}

func compactedStorage(t *testing.T) *MemoryStorage {
	t.Helper()
	st := storageWith(terms(1, 1, 1, 1, 1, 1))
	if _, err := st.CreateSnapshot(4, &eraftpb.ConfState{Nodes: []uint64{1, 2}},
		[]byte("s")); err != nil {
		t.Fatal(err)
	}
	if err := st.Compact(4); err != nil {
		t.Fatal(err)
	}
	return st
}

// A follower that needs truncated entries gets a snapshot, once it has shown that it is there, and
// no appends until that arrived, failed, or was given up.
func TestLaggardGetsSnapshot2C(t *testing.T) {
	reject := eraftpb.Message{
		MsgType: tAppResp, From: 2, Term: 2, Reject: true, Index: 6, RejectHint: 0,
	}
	start := func() *Raft {
		r := compacted(t, compactedStorage(t))
		mustStep(t, r, reject)
		msgs := take(r)
		equal(t, "messages", len(msgs), 1)
		equal(t, "type", msgs[0].MsgType, tSnap)
		equal(t, "index", msgs[0].Snapshot.Metadata.Index, uint64(4))
		equal(t, "progress", r.Prs[2].String(), "snapshot match=0 next=1 pending-snapshot=4")
		mustStep(t, r,
			eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}})
		equal(t, "appends in between", len(take(r)), 0)
		return r
	}
	t.Run("answered", func(t *testing.T) {
		r := start()
		mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 2, Index: 4})
		equal(t, "state", r.Prs[2].State, ProgressReplicate)
		m := ofType(take(r), tApp)[0]
		equal(t, "appends go on", m.Index, uint64(4))
	})
	t.Run("reported", func(t *testing.T) {
		r := start()
		(&RawNode{Raft: r}).ReportSnapshot(2, true)
		equal(t, "progress", r.Prs[2].String(), "probe match=0 next=5 paused")
		mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 2})
		equal(t, "probes behind it", take(r)[0].Index, uint64(4))
	})
	t.Run("failed", func(t *testing.T) {
		r := start()
		(&RawNode{Raft: r}).ReportSnapshot(2, false)
		equal(t, "progress", r.Prs[2].String(), "probe match=0 next=1 paused")
		mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 2})
		equal(t, "another one", take(r)[0].MsgType, tSnap)
	})
	t.Run("never heard of again", func(t *testing.T) {
		r := start()
		for range 4 * 10 {
			r.tick()
		}
		equal(t, "state", r.Prs[2].State, ProgressProbe)
	})
	t.Run("heartbeats ask", func(t *testing.T) {
		r := start()
		mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 2})
		m := take(r)[0]
		equal(t, "question", []any{m.MsgType, len(m.Entries)}, []any{tApp, 0})
		f := mkRaft(2, []uint64{1, 2})
		mustStep(t, f,
			eraftpb.Message{MsgType: tSnap, From: 1, Term: 2, Snapshot: snapAt(4, 1, 1, 2)})
		take(f)
		mustStep(t, f, m)
		mustStep(t, r, take(f)[0])
		equal(t, "state", r.Prs[2].State, ProgressReplicate)
	})
	t.Run("stale report", func(t *testing.T) {
		r := start()
		mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 2, Index: 4})
		(&RawNode{Raft: r}).ReportSnapshot(2, false)
		equal(t, "state", r.Prs[2].State, ProgressReplicate)
	})
}

// To a node that has not spoken no snapshot is sent: it may not exist yet.
func TestNoSnapshotIntoTheVoid2C(t *testing.T) {
	r := compacted(t, compactedStorage(t))
	r.Prs[2].Next = 1
	equal(t, "sent", r.sendAppend(2), false)
	mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 2})
	equal(t, "after a word", take(r)[0].MsgType, tSnap)
}

type noSnapshots struct {
	*MemoryStorage
	err error
}

func (s *noSnapshots) Snapshot() (eraftpb.Snapshot, error) { return eraftpb.Snapshot{}, s.err }

// Whatever keeps a snapshot from being made, it is asked for again (trap D7).
func TestSnapshotIsAskedForAgain2C(t *testing.T) {
	for _, err := range []error{ErrSnapshotTemporarilyUnavailable, errors.New("disk"), nil} {
		st := &noSnapshots{compactedStorage(t), err}
		r := compacted(t, st)
		mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 2, Reject: true, Index: 6})
		equal(t, "messages", len(take(r)), 0)
		equal(t, "state", r.Prs[2].State, ProgressProbe)
	}
}

// A whole group: the one that was away comes back by snapshot, and log and members are right.
func TestGroupCatchesUpBySnapshot2C(t *testing.T) {
	c := mkCluster(t, 3)
	c.campaign(1)
	c.isolate(3)
	for range 50 {
		c.propose(1, "x")
	}
	c.persist(1)
	lead := c.nodes[1]
	if _, err := c.storage[1].CreateSnapshot(lead.RaftLog.applied, lead.confState(),
		nil); err != nil {
		t.Fatal(err)
	}
	if err := c.storage[1].Compact(lead.RaftLog.applied); err != nil {
		t.Fatal(err)
	}
	lead.RaftLog.maybeCompact()
	c.heal()
	snaps := 0
	c.hook = func(m eraftpb.Message) bool {
		if m.MsgType == tSnap {
			snaps++
		}
		return true
	}
	c.beat(1)
	c.propose(1, "y")
	equal(t, "snapshots", snaps, 1)
	equal(t, "committed", c.nodes[3].RaftLog.committed, lead.RaftLog.committed)
	equal(t, "last", c.nodes[3].RaftLog.LastIndex(), lead.RaftLog.LastIndex())
}

// With a snapshot that is not installed yet a node does not campaign (trap C16).
func TestNoCampaignWithPendingSnapshot2C(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2})
	mustStep(t, r, eraftpb.Message{MsgType: tSnap, From: 2, Term: 2, Snapshot: snapAt(9, 1, 1, 2)})
	take(r)
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	mustStep(t, r, eraftpb.Message{MsgType: tNow, From: 2, Term: 2})
	equal(t, "messages", len(take(r)), 0)
	r.RaftLog.stableSnapTo(9)
	mustStep(t, r, eraftpb.Message{MsgType: tHup})
	equal(t, "state", r.State, StateCandidate)
}

// MemoryStorage: what each call does at the edges.
func TestMemoryStorageEdges2C(t *testing.T) {
	st := storageWith(terms(1, 1, 2, 2))
	wantErr := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Fatalf("%s: %v, want %v", what, err, want)
		}
	}
	wantErr("compact behind the log", st.Compact(9), ErrUnavailable)
	wantErr("compact", st.Compact(2), nil)
	wantErr("compact again", st.Compact(2), ErrCompacted)
	_, err := st.Entries(2, 4)
	wantErr("compacted entries", err, ErrCompacted)
	_, err = st.Entries(3, 9)
	wantErr("entries behind the log", err, ErrUnavailable)
	_, err = st.Term(1)
	wantErr("compacted term", err, ErrCompacted)
	_, err = st.Term(9)
	wantErr("term behind the log", err, ErrUnavailable)
	held, err := st.Entries(3, 5)
	wantErr("entries", err, nil)
	wantErr("replace", st.Append([]eraftpb.Entry{{Index: 4, Term: 3}}), nil)
	equal(t, "what was read stays", held, terms(1, 1, 2, 2)[2:])
	wantErr("old entries", st.Append(terms(1, 1)), nil)
	wantErr("old and new", st.Append(terms(1, 1, 2, 3, 3)), nil)
	last, _ := st.LastIndex()
	equal(t, "last", last, uint64(5))
	wantErr("gap", st.Append([]eraftpb.Entry{{Index: 9}}), ErrUnavailable)
	_, err = st.CreateSnapshot(4, &eraftpb.ConfState{Nodes: []uint64{1}}, nil)
	wantErr("snapshot", err, nil)
	_, err = st.CreateSnapshot(3, nil, nil)
	wantErr("older snapshot", err, ErrSnapOutOfDate)
	s, err := st.CreateSnapshot(5, nil, nil)
	wantErr("snapshot with the last members", err, nil)
	equal(t, "members", s.Metadata.ConfState.Nodes, []uint64{1})
	_, err = st.CreateSnapshot(9, nil, nil)
	wantErr("snapshot behind the log", err, ErrUnavailable)
	wantErr("stale snapshot", st.ApplySnapshot(*snapAt(5, 3, 1)), ErrSnapOutOfDate)
	wantErr("empty snapshot", st.ApplySnapshot(eraftpb.Snapshot{}), ErrSnapOutOfDate)
	wantErr("snapshot", st.ApplySnapshot(*snapAt(8, 4, 1)), nil)
	first, _ := st.FirstIndex()
	equal(t, "first", first, uint64(9))
}
