package raft

import (
	"errors"
	"fmt"
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

func mkRaw(t testing.TB, st Storage, peers []uint64, opts ...option) *RawNode {
	t.Helper()
	rn, err := NewRawNode(courseConfig(1, peers, st, opts...))
	if err != nil {
		t.Fatal(err)
	}
	return rn
}

// pump does what an owner does, until there is nothing to do. It returns what was applied.
func pump(t testing.TB, rn *RawNode, st *MemoryStorage) (applied []eraftpb.Entry) {
	t.Helper()
	for rn.HasReady() {
		rd := rn.Ready()
		if err := st.Append(rd.Entries); err != nil {
			t.Fatal(err)
		}
		if !IsEmptyHardState(rd.HardState) {
			_ = st.SetHardState(rd.HardState)
		}
		for _, e := range rd.CommittedEntries {
			if e.EntryType == eraftpb.EntryType_EntryConfChange {
				var cc eraftpb.ConfChange
				if err := cc.Unmarshal(e.Data); err != nil {
					t.Fatal(err)
				}
				rn.ApplyConfChange(cc)
			}
		}
		applied = append(applied, rd.CommittedEntries...)
		rn.Advance(rd)
		if n := len(rd.CommittedEntries); n > 0 && rn.Raft.RaftLog.asyncApply {
			rn.AppliedTo(rd.CommittedEntries[n-1].Index)
		}
	}
	return applied
}

// A node without news has no Ready, and what it would return is empty in the agreed way.
func TestReadyOfAnIdleNodeIsEmpty2AC(t *testing.T) {
	rn := mkRaw(t, NewMemoryStorage(), []uint64{1})
	equal(t, "has ready", rn.HasReady(), false)
	equal(t, "ready", rn.Ready(), Ready{Entries: []eraftpb.Entry{}})
}

// A group of one leads at once; what it proposes is persisted and applied by one Ready.
func TestGroupOfOneCommitsInOneReady2AC(t *testing.T) {
	st := NewMemoryStorage()
	rn := mkRaw(t, st, []uint64{1})
	if err := rn.Campaign(); err != nil {
		t.Fatal(err)
	}
	rd := rn.Ready()
	equal(t, "soft state", rd.SoftState, &SoftState{Lead: 1, RaftState: StateLeader})
	equal(t, "hard state", rd.HardState, eraftpb.HardState{Term: 1, Vote: 1, Commit: 1})
	equal(t, "must sync", rd.MustSync, true)
	equal(t, "entries", rd.Entries, terms(1))
	equal(t, "committed", rd.CommittedEntries, terms(1))
	_ = st.Append(rd.Entries)
	rn.Advance(rd)
	equal(t, "has ready", rn.HasReady(), false)

	if err := rn.Propose([]byte("foo")); err != nil {
		t.Fatal(err)
	}
	rd = rn.Ready()
	want := []eraftpb.Entry{{Term: 1, Index: 2, Data: []byte("foo")}}
	equal(t, "entries", rd.Entries, want)
	equal(t, "committed", rd.CommittedEntries, want)
	if rd.SoftState != nil {
		t.Fatal("soft state did not change")
	}
	_ = st.Append(rd.Entries)
	rn.Advance(rd)
	equal(t, "has ready", rn.HasReady(), false)
}

// After a restart what was committed and not applied comes again, and nothing else.
func TestRestartHandsOutWhatWasNotApplied2AC(t *testing.T) {
	for _, opts := range [][]option{nil, {production}} {
		for applied := uint64(0); applied <= 2; applied++ {
			st := storageWith(terms(1, 1, 1))
			_ = st.SetHardState(eraftpb.HardState{Term: 1, Commit: 2})
			rn := mkRaw(t, st, []uint64{1, 2},
				append(opts, func(c *Config) { c.Applied = applied })...)
			want := Ready{Entries: []eraftpb.Entry{}}
			if applied < 2 {
				want.CommittedEntries = terms(1, 1, 1)[applied:2]
			}
			rd := rn.Ready()
			equal(t, fmt.Sprintf("ready, applied %d", applied), rd, want)
			rn.Advance(rd)
			equal(t, "has ready", rn.HasReady(), false)
		}
	}
}

// What was applied was committed, even if the commit index was not written; what the log does not
// have cannot have been applied.
func TestRestartTrustsTheAppliedIndex2AC(t *testing.T) {
	st := storageWith(terms(1, 1, 1))
	_ = st.SetHardState(eraftpb.HardState{Term: 1, Commit: 1})
	rn := mkRaw(t, st, []uint64{1, 2}, func(c *Config) { c.Applied = 3 })
	equal(t, "committed", rn.Committed(), uint64(3))
	_, err := NewRawNode(courseConfig(1, nil, st, func(c *Config) { c.Applied = 4 }))
	if err == nil {
		t.Fatal("applied beyond the log")
	}
	_ = st.SetHardState(eraftpb.HardState{Term: 1, Commit: 9})
	if _, err := NewRawNode(courseConfig(1, nil, st)); err == nil {
		t.Fatal("committed beyond the log")
	}
}

// A restart from a snapshot starts behind it, with its members.
func TestRestartFromSnapshot2AC(t *testing.T) {
	st := NewMemoryStorage()
	_ = st.SetHardState(eraftpb.HardState{Term: 1, Commit: 3})
	err := st.ApplySnapshot(eraftpb.Snapshot{Metadata: &eraftpb.SnapshotMetadata{
		Index: 2, Term: 1,
		ConfState: &eraftpb.ConfState{Nodes: []uint64{1, 2}, Learners: []uint64{3}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	last := []eraftpb.Entry{{Term: 1, Index: 3, Data: []byte("foo")}}
	_ = st.Append(last)
	rn := mkRaw(t, st, nil)
	rd := rn.Ready()
	equal(t, "ready", rd, Ready{Entries: []eraftpb.Entry{}, CommittedEntries: last})
	rn.Advance(rd)
	equal(t, "has ready", rn.HasReady(), false)
	equal(t, "members", nodes(rn.Raft), []uint64{1, 2, 3})
	pr, _ := rn.ProgressOf(3)
	equal(t, "learner", pr.IsLearner, true)
}

// The soft state comes when it changes; the hard state likewise, and a vote needs a sync while a
// commit index does not.
func TestStatesComeWhenTheyChange2AC(t *testing.T) {
	st := NewMemoryStorage()
	rn := mkRaw(t, st, []uint64{1, 2, 3})
	step := func(m eraftpb.Message) Ready {
		if err := rn.Step(m); err != nil {
			t.Fatal(err)
		}
		rd := rn.Ready()
		_ = st.Append(rd.Entries)
		rn.Advance(rd)
		return rd
	}
	rd := step(eraftpb.Message{MsgType: tApp, From: 2, Term: 1, Entries: pointers(terms(1, 1))})
	equal(t, "soft", rd.SoftState, &SoftState{Lead: 2, RaftState: StateFollower})
	equal(t, "hard", rd.HardState, eraftpb.HardState{Term: 1})
	equal(t, "sync", rd.MustSync, true)
	rd = step(eraftpb.Message{MsgType: tHeartbeat, From: 2, Term: 1, Commit: 1})
	equal(t, "soft", rd.SoftState == nil, true)
	equal(t, "hard", rd.HardState, eraftpb.HardState{Term: 1, Commit: 1})
	equal(t, "sync for a commit index", rd.MustSync, false)
	rd = step(eraftpb.Message{MsgType: tHeartbeat, From: 2, Term: 1, Commit: 1})
	equal(t, "hard", IsEmptyHardState(rd.HardState), true)
	rd = step(eraftpb.Message{MsgType: tVote, From: 3, Term: 2, Index: 9, LogTerm: 1})
	equal(t, "hard", rd.HardState, eraftpb.HardState{Term: 2, Vote: 3, Commit: 1})
	equal(t, "sync for a vote", rd.MustSync, true)
}

// A Ready stays as it is, whatever raft does afterwards (traps F-12, Q1).
func TestReadyIsNotWrittenTo2AC(t *testing.T) {
	for _, opts := range [][]option{nil, {production}} {
		st := NewMemoryStorage()
		rn := mkRaw(t, st, []uint64{1, 2}, opts...)
		_ = rn.Step(eraftpb.Message{
			MsgType: tApp, From: 2, Term: 1, Entries: pointers(terms(1, 1, 1)),
		})
		rd := rn.Ready()
		_ = rn.Step(eraftpb.Message{
			MsgType: tApp, From: 2, Term: 2, Index: 1, LogTerm: 1, Commit: 2,
			Entries: []*eraftpb.Entry{{Index: 2, Term: 2}},
		})
		_ = rn.Step(eraftpb.Message{
			MsgType: tApp, From: 2, Term: 2, Index: 2, LogTerm: 2,
			Entries: []*eraftpb.Entry{{Index: 3, Term: 2}},
		})
		equal(t, "entries", rd.Entries, terms(1, 1, 1))
		// The late Advance must not take the new entries for persisted (trap B-6). To write the
		// first one twice does no harm.
		rn.Advance(rd)
		equal(t, "still to persist", rn.Ready().Entries, terms(1, 2, 2))
	}
}

// With AckOnPersist the leader counts itself when Advance says so (trap B-14), even alone.
func TestLeaderCountsItselfWhenPersisted2AC(t *testing.T) {
	st := NewMemoryStorage()
	rn := mkRaw(t, st, []uint64{1}, func(c *Config) { c.AckOnPersist = true })
	_ = rn.Campaign()
	rd := rn.Ready()
	equal(t, "committed before the sync", len(rd.CommittedEntries), 0)
	_ = st.Append(rd.Entries)
	rn.Advance(rd)
	equal(t, "committed", rn.Committed(), uint64(1))
	equal(t, "to apply", len(rn.Ready().CommittedEntries), 1)
}

// Two followers may commit an entry that the leader has not persisted (thesis 10.2.1).
func TestFollowersMayBeFasterThanTheLeadersDisk2AC(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3}, func(c *Config) { c.AckOnPersist = true })
	r.becomeCandidate()
	r.becomeLeader()
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: 1})
	equal(t, "committed with one follower", r.RaftLog.committed, uint64(0))
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 3, Term: 1, Index: 1})
	equal(t, "committed with two", r.RaftLog.committed, uint64(1))
}

// What may leave before the sync: a leader's own messages of a durable term, nothing else, and
// nothing at all where the leader counts itself at once.
func TestEarlyMessages2AC(t *testing.T) {
	for _, ack := range []bool{false, true} {
		st := NewMemoryStorage()
		rn := mkRaw(t, st, []uint64{1, 2, 3}, func(c *Config) { c.AckOnPersist = ack })
		_ = rn.Campaign()
		rd := rn.Ready()
		early, late := rd.SplitMessages()
		equal(t, "early vote requests", len(early), 0)
		equal(t, "late vote requests", len(late), 2)
		_ = st.Append(rd.Entries)
		rn.Advance(rd)
		_ = rn.Step(eraftpb.Message{MsgType: tVoteResp, From: 2, Term: 1})
		rd = rn.Ready()
		early, late = rd.SplitMessages()
		wantEarly := 0
		if ack {
			wantEarly = 2
		}
		equal(t, "early appends", len(early), wantEarly)
		equal(t, "late appends", len(late), 2-wantEarly)
	}
}

// A leader that is elected and replicates within one Ready has not persisted its vote: its appends
// wait.
func TestNewTermIsNotSentEarly2AC(t *testing.T) {
	rn := mkRaw(t, NewMemoryStorage(), []uint64{1}, func(c *Config) { c.AckOnPersist = true })
	rn.ApplyConfChange(eraftpb.ConfChange{
		ChangeType: eraftpb.ConfChangeType_AddLearnerNode, NodeId: 2,
	})
	_ = rn.Campaign()
	rd := rn.Ready()
	early, late := rd.SplitMessages()
	equal(t, "early", len(early), 0)
	equal(t, "late", len(late), 1)
}

// With AsyncApply entries are handed out once, and only the owner moves the applied index.
func TestAsyncApplyHandsOutOnce2AC(t *testing.T) {
	st := storageWith(terms(1, 1, 1))
	_ = st.SetHardState(eraftpb.HardState{Term: 1, Commit: 3})
	rn := mkRaw(t, st, []uint64{1, 2}, func(c *Config) {
		c.AsyncApply, c.MaxCommittedBytesPerReady = true, 1
	})
	for want := uint64(1); want <= 3; want++ {
		rd := rn.Ready()
		equal(t, "entries", len(rd.CommittedEntries), 1)
		equal(t, "index", rd.CommittedEntries[0].Index, want)
		rn.Advance(rd)
	}
	equal(t, "has ready", rn.HasReady(), false)
	equal(t, "applied", rn.Applied(), uint64(0))
	rn.AppliedTo(2)
	equal(t, "applied", rn.Applied(), uint64(2))
	rn.AppliedTo(1)
	equal(t, "applied does not go back", rn.Applied(), uint64(2))
	equal(t, "has ready", rn.HasReady(), false)
}

// Memory holds what is not persisted plus a bounded tail; the rest is read from the storage and is
// the same.
func TestLogInMemoryIsBounded2AC(t *testing.T) {
	for _, cache := range []uint64{0, 200} {
		st := NewMemoryStorage()
		rn := mkRaw(t, st, []uint64{1}, func(c *Config) {
			c.UnstableOnly, c.LogCacheBytes = true, cache
		})
		_ = rn.Campaign()
		var applied []eraftpb.Entry
		for i := range 100 {
			if err := rn.Propose([]byte(fmt.Sprintf("value %d", i))); err != nil {
				t.Fatal(err)
			}
			applied = append(applied, pump(t, rn, st)...)
			if _, bytes := rn.LogInMemory(); bytes > cache {
				t.Fatalf("%d bytes in memory, limit %d", bytes, cache)
			}
		}
		equal(t, "applied", len(applied), 101)
		all, err := rn.Raft.RaftLog.slice(1, 102, 0)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "log", all, applied)
		few, err := rn.Raft.RaftLog.slice(50, 102, 60)
		if err != nil || len(few) == 0 || len(few) > 5 || few[0].Index != 50 {
			t.Fatalf("%v %v", few, err)
		}
	}
}

// In the course's setting memory follows a truncation of the storage.
func TestMemoryFollowsTruncation2AC(t *testing.T) {
	st := NewMemoryStorage()
	rn := mkRaw(t, st, []uint64{1})
	_ = rn.Campaign()
	for range 10 {
		_ = rn.Propose([]byte("x"))
	}
	pump(t, rn, st)
	if err := st.Compact(6); err != nil {
		t.Fatal(err)
	}
	_ = rn.Propose([]byte("x"))
	pump(t, rn, st)
	equal(t, "first", rn.Status().FirstIndex, uint64(7))
	if n, _ := rn.LogInMemory(); n != 6 {
		t.Fatalf("%d entries in memory", n)
	}
}

// Local messages do not come from a network, nor answers from strangers.
func TestNetworkMessagesAreChecked2AC(t *testing.T) {
	rn := mkRaw(t, NewMemoryStorage(), []uint64{1, 2})
	for _, typ := range []eraftpb.MessageType{
		tHup, tBeat, tProp, tCheck, eraftpb.MessageType_MsgUnreachable,
	} {
		if err := rn.Step(eraftpb.Message{MsgType: typ, From: 2, Term: 1}); !errors.Is(err,
			ErrStepLocalMsg) {
			t.Errorf("%v: %v", typ, err)
		}
	}
	for _, typ := range []eraftpb.MessageType{tApp, tVote, tHeartbeat, tSnap, tAppResp} {
		if err := rn.Step(eraftpb.Message{MsgType: typ, From: 2}); !errors.Is(err,
			ErrStepLocalMsg) {
			t.Errorf("%v without a term: %v", typ, err)
		}
	}
	for _, typ := range []eraftpb.MessageType{tAppResp, tVoteResp, tHeartResp} {
		err := rn.Step(eraftpb.Message{MsgType: typ, From: 9, Term: 5})
		if !errors.Is(err, ErrStepPeerNotFound) {
			t.Errorf("%v: %v", typ, err)
		}
	}
	for _, from := range []uint64{None, 1} {
		for _, typ := range []eraftpb.MessageType{tApp, tVote, tHeartbeat, tSnap, tPreVote, tNow} {
			if err := rn.Step(eraftpb.Message{MsgType: typ, From: from, Term: 5}); !errors.Is(err,
				ErrStepLocalMsg) {
				t.Errorf("%v from %d: %v", typ, from, err)
			}
		}
	}
	equal(t, "term", rn.Term(), uint64(0))
}

// The limits of what may wait: of payload without a quorum, of appends on their way, of bytes in a
// message and of bytes for applying.
func TestLimits2AC(t *testing.T) {
	t.Run("uncommitted", func(t *testing.T) {
		r := lead(t, mkRaft(1, []uint64{1, 2, 3}, func(c *Config) { c.MaxUncommittedBytes = 10 }))
		rn := &RawNode{Raft: r}
		big := make([]byte, 100)
		equal(t, "one always fits", rn.Propose(big), nil)
		err := rn.Propose([]byte("x"))
		if !errors.Is(err, ErrUncommittedFull) || !errors.Is(err, ErrProposalDropped) {
			t.Fatal(err)
		}
		equal(t, "an empty one fits", rn.Propose(nil), nil)
		mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: 3})
		equal(t, "room again", rn.Propose([]byte("12345")), nil)
		equal(t, "room for two", rn.Propose([]byte("12345")), nil)
		equal(t, "and no more", rn.Propose([]byte("1")), ErrUncommittedFull)
		r.becomeFollower(2, None)
		equal(t, "counted anew", r.uncommitted.bytes, uint64(0))
	})
	t.Run("message", func(t *testing.T) {
		r := lead(t, mkRaft(1, []uint64{1, 2}, func(c *Config) { c.MaxSizePerMsg = 40 }))
		r.Prs[2].becomeProbe()
		r.Prs[2].paused = true
		for range 10 {
			mustStep(t, r,
				eraftpb.Message{
					MsgType: tProp, Entries: []*eraftpb.Entry{{Data: make([]byte, 10)}},
				})
		}
		mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 1})
		m := take(r)[0]
		equal(t, "entries that fit", len(m.Entries), 2)
	})
	t.Run("window", func(t *testing.T) {
		r := lead(t, mkRaft(1, []uint64{1, 2}, func(c *Config) { c.MaxInflightMsgs = 3 }))
		prop := eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: []byte("x")}}}
		for range 9 {
			mustStep(t, r, prop)
		}
		equal(t, "sent", len(take(r)), 3)
		mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: 3})
		if msgs := take(r); len(msgs) == 0 || len(msgs[0].Entries) != 6 {
			t.Fatalf("what waited goes in one message: %v", msgs)
		}
		n, _ := r.Prs[2].Inflight()
		if n > 3 {
			t.Fatalf("%d on their way", n)
		}
	})
	t.Run("window of bytes", func(t *testing.T) {
		r := lead(t, mkRaft(1, []uint64{1, 2}, func(c *Config) { c.MaxInflightBytes = 50 }))
		prop := eraftpb.Message{MsgType: tProp, Entries: []*eraftpb.Entry{{Data: make([]byte, 20)}}}
		for range 9 {
			mustStep(t, r, prop)
		}
		equal(t, "sent", len(take(r)), 2)
		// All answers are lost; a heartbeat's makes room for one.
		mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 1})
		equal(t, "sent after a heartbeat", len(take(r)), 1)
	})
}

// Heartbeat rounds: numbered, echoed, and confirmed by a quorum.
func TestHeartbeatRounds2AC(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}, withCheckQuorum))
	rn := &RawNode{Raft: r}
	rn.BroadcastHeartbeat()
	rn.BroadcastHeartbeat()
	equal(t, "round", rn.HeartbeatRound(), uint64(2))
	equal(t, "confirmed", rn.QuorumRound(), uint64(0))
	var rounds []uint64
	for _, m := range take(r) {
		rounds = append(rounds, m.Round)
	}
	equal(t, "rounds sent", rounds, []uint64{1, 1, 2, 2})
	f := mkRaft(2, []uint64{1, 2, 3})
	mustStep(t, f, eraftpb.Message{MsgType: tHeartbeat, From: 1, Term: 1, Round: 1})
	mustStep(t, r, take(f)[0])
	equal(t, "confirmed", rn.QuorumRound(), uint64(1))
	// A round that was never sent, and an answer of another term, confirm nothing.
	mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 2, Term: 1, Round: 9})
	equal(t, "confirmed", rn.QuorumRound(), uint64(1))
	r.becomeFollower(2, None)
	equal(t, "rounds of a follower", []uint64{rn.HeartbeatRound(), rn.QuorumRound()},
		[]uint64{0, 0})

	one := lead(t, mkRaft(1, []uint64{1}))
	alone := &RawNode{Raft: one}
	alone.BroadcastHeartbeat()
	equal(t, "alone", alone.QuorumRound(), alone.HeartbeatRound())
}

// Reads: batched onto a round, held back until the own term has committed, aborted with the
// leadership.
func TestReadIndexLife2AC(t *testing.T) {
	r := mkRaft(1, []uint64{1, 2, 3})
	rn := &RawNode{Raft: r}
	if err := rn.ReadIndex(1); !errors.Is(err, ErrNotLeader) {
		t.Fatal(err)
	}
	r.becomeCandidate()
	r.becomeLeader()
	take(r)
	equal(t, "early read", rn.ReadIndex(1), nil)
	equal(t, "no round for it", len(rn.Ready().Messages), 0)
	mustStep(t, r, eraftpb.Message{MsgType: tAppResp, From: 2, Term: 1, Index: 1})
	take(r)
	equal(t, "second read", rn.ReadIndex(2), nil)
	rd := rn.Ready()
	beats := ofType(rd.Messages, tHeartbeat)
	equal(t, "one round for both", len(beats), 2)
	equal(t, "answers before the quorum", len(rd.ReadStates), 0)
	mustStep(t, r, eraftpb.Message{MsgType: tHeartResp, From: 3, Term: 1, Round: beats[0].Round})
	equal(t, "answers", rn.Ready().ReadStates, []ReadState{{ID: 1, Index: 1}, {ID: 2, Index: 1}})
	equal(t, "third read", rn.ReadIndex(3), nil)
	rn.Ready()
	equal(t, "fourth read", rn.ReadIndex(4), nil)
	r.becomeFollower(2, None)
	equal(t, "aborted", rn.Ready().ReadStates,
		[]ReadState{{ID: 3, Aborted: true}, {ID: 4, Aborted: true}})
}

// Status and the accessors say what is.
func TestStatusTellsTheState2AC(t *testing.T) {
	r := lead(t, mkRaft(1, []uint64{1, 2, 3}))
	r.addLearner(4)
	rn := &RawNode{Raft: r}
	st := rn.Status()
	equal(t, "status",
		[]any{st.ID, st.Term, st.Vote, st.Commit, st.Lead, st.State, st.LastIndex, st.FirstIndex},
		[]any{
			uint64(1), uint64(1), uint64(1), uint64(1), uint64(1), StateLeader, uint64(1),
			uint64(1),
		})
	equal(t, "members", len(st.Progress), 4)
	equal(t, "learner", st.Progress[4].IsLearner, true)
	var ids []uint64
	rn.VisitProgress(func(id uint64, pr Progress) {
		ids = append(ids, id)
		equal(t, "same", pr.String(), func() string { p := st.Progress[id]; return p.String() }())
	})
	equal(t, "in order", ids, []uint64{1, 2, 3, 4})
	equal(t, "accessors",
		[]any{
			rn.Term(), rn.Lead(), rn.State(), rn.Committed(), rn.LastIndex(), rn.LeadTransferee(),
		},
		[]any{uint64(1), uint64(1), StateLeader, uint64(1), uint64(1), None})
	_, ok := rn.ProgressOf(9)
	equal(t, "stranger", ok, false)
	equal(t, "states",
		[]string{StateFollower.String(), StatePreCandidate.String(), ProgressSnapshot.String()},
		[]string{"follower", "pre-candidate", "snapshot"})
}
