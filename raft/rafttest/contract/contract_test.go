package contract_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/raft"
	"github.com/tinykv/tinykv/raft/rafttest/contract"
)

// fixture is a leader of term 3 with a log up to 6, committed and applied up to 5, and a Ready that
// is as it should be: an entry to persist, one to apply, and an append to send early. The tests
// forge it.
type fixture struct {
	storage *raft.MemoryStorage
	checker *contract.Checker
	view    contract.View
	rd      raft.Ready
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{storage: raft.NewMemoryStorage()}
	for i := uint64(1); i <= 6; i++ {
		require.NoError(t, f.storage.Append([]eraftpb.Entry{{Index: i, Term: (i + 1) / 2}}))
	}
	f.view = contract.View{
		ID:   1,
		Soft: raft.SoftState{Lead: 1, RaftState: raft.StateLeader},
		Hard: eraftpb.HardState{Term: 3, Vote: 1, Commit: 5},
	}
	f.checker = contract.New(f.view, 5, f.storage)
	f.view.Hard.Commit = 6
	f.rd = raft.Ready{
		HardState:        f.view.Hard,
		Entries:          []eraftpb.Entry{{Index: 7, Term: 3}},
		CommittedEntries: []eraftpb.Entry{{Index: 6, Term: 3}},
		Messages: []eraftpb.Message{{
			MsgType: eraftpb.MessageType_MsgAppend, From: 1, To: 2, Term: 3, Index: 6, LogTerm: 3,
			Commit:  6,
			Entries: []*eraftpb.Entry{{Index: 7, Term: 3}},
		}},
		ReadStates: []raft.ReadState{{ID: 1, Index: 6}},
		MustSync:   true,
	}
	return f
}

// follower makes the fixture one that follows node 2 in term 3.
func (f *fixture) follower() {
	f.view.Soft = raft.SoftState{Lead: 2, RaftState: raft.StateFollower}
	f.rd.SoftState = &raft.SoftState{Lead: 2, RaftState: raft.StateFollower}
	f.rd.Messages = nil
}

func (f *fixture) message() *eraftpb.Message { return &f.rd.Messages[0] }

func (f *fixture) answer(m eraftpb.Message) {
	f.follower()
	m.From, m.To = 1, 2
	f.rd.Messages = []eraftpb.Message{m}
}

func (f *fixture) snapshot(index uint64, members ...uint64) {
	f.follower()
	f.rd.CommittedEntries = nil
	f.rd.Entries = []eraftpb.Entry{}
	f.view.Hard.Commit = 9
	f.rd.HardState = f.view.Hard
	f.rd.Snapshot = eraftpb.Snapshot{Metadata: &eraftpb.SnapshotMetadata{
		Index: index, Term: 3, ConfState: &eraftpb.ConfState{Nodes: members},
	}}
}

// TestGoodReadyPasses: what the forged ones below start from, and the other good shapes, break
// nothing.
func TestGoodReadyPasses(t *testing.T) {
	for name, change := range map[string]func(*fixture){
		"leader":   func(*fixture) {},
		"follower": (*fixture).follower,
		"snapshot": func(f *fixture) { f.snapshot(9, 1, 2) },
		"entries behind a snapshot": func(f *fixture) {
			f.snapshot(9, 1, 2)
			f.rd.Entries = []eraftpb.Entry{{Index: 10, Term: 3}}
		},
		"replaced tail": func(f *fixture) {
			f.follower()
			f.rd.CommittedEntries, f.rd.ReadStates = nil, nil
			f.view.Hard.Commit = 5
			f.rd.HardState = eraftpb.HardState{}
			f.rd.Entries = []eraftpb.Entry{{Index: 6, Term: 3}}
		},
		"acknowledgement": func(f *fixture) {
			f.answer(eraftpb.Message{
				MsgType: eraftpb.MessageType_MsgAppendResponse, Term: 3, Index: 7,
			})
		},
		"question about the next term": func(f *fixture) {
			f.answer(eraftpb.Message{MsgType: eraftpb.MessageType_MsgPreVote, Term: 4})
		},
		"a request handed on": func(f *fixture) {
			f.follower()
			f.rd.Messages = []eraftpb.Message{
				{MsgType: eraftpb.MessageType_MsgTransferLeader, From: 3, To: 2},
			}
		},
	} {
		f := newFixture(t)
		change(f)
		require.NoError(t, f.checker.Ready(f.view, &f.rd), name)
		require.NoError(t, f.checker.Advance(&f.rd), name)
	}
}

// TestEveryClauseBites forges a Ready for each way in which a clause can be broken; each clause has
// at least one.
func TestEveryClauseBites(t *testing.T) {
	bitten := map[string]bool{}
	for _, tc := range forged() {
		t.Run(tc.clause+"/"+tc.name, func(t *testing.T) {
			f := newFixture(t)
			tc.change(f)
			var err error
			if tc.clause != "early" && tc.clause != "split" {
				err = f.checker.Ready(f.view, &f.rd)
			}
			if err == nil && tc.after != nil {
				err = tc.after(f)
			}
			require.Error(t, err)
			require.True(t, strings.HasPrefix(err.Error(), "ready: "+tc.clause+": "), "%v", err)
			bitten[tc.clause] = true
		})
	}
	for clause := range contract.Clauses {
		require.True(t, bitten[clause], "nothing breaks %s", clause)
	}
}

type forgery struct {
	clause, name string
	change       func(*fixture)
	after        func(*fixture) error
}

func forged() []forgery {
	return append(forgedStates(), forgedMessages()...)
}

func forgedStates() []forgery {
	return []forgery{
		{"turn", "two Readys", nothing, func(f *fixture) error {
			return f.checker.Ready(f.view, &f.rd)
		}},
		{"turn", "two Advances", nothing, func(f *fixture) error {
			return errors.Join(f.checker.Advance(&f.rd), f.checker.Advance(&f.rd))
		}},
		{"turn", "another Ready's Advance", nothing, func(f *fixture) error {
			return f.checker.Advance(&raft.Ready{})
		}},
		{"soft", "told and the same", func(f *fixture) {
			f.rd.SoftState = &raft.SoftState{Lead: 1, RaftState: raft.StateLeader}
		}, nil},
		{"soft", "not told", func(f *fixture) { f.view.Soft.Lead = 2 }, nil},
		{"hard", "not told", func(f *fixture) { f.rd.HardState = eraftpb.HardState{} }, nil},
		{"hard", "something else told", func(f *fixture) { f.rd.HardState.Term = 4 }, nil},
		{"hard", "told again", func(f *fixture) {
			f.view.Hard.Commit, f.rd.HardState.Commit = 5, 5
		}, nil},
		{"back", "commit", func(f *fixture) {
			f.view.Hard.Commit, f.rd.HardState.Commit = 4, 4
		}, nil},
		{"back", "term", func(f *fixture) { f.view.Hard.Term, f.rd.HardState.Term = 2, 2 }, nil},
		{"back", "second vote", func(f *fixture) {
			f.view.Hard.Vote, f.rd.HardState.Vote = 2, 2
		}, nil},
		{"entries", "nil", func(f *fixture) { f.rd.Entries, f.rd.MustSync = nil, false }, nil},
		{"entries", "gap behind the log", func(f *fixture) { f.rd.Entries[0].Index = 8 }, nil},
		{"entries", "gap inside", func(f *fixture) {
			f.rd.Entries = []eraftpb.Entry{{Index: 7, Term: 3}, {Index: 9, Term: 3}}
		}, nil},
		{"entries", "falling term", func(f *fixture) { f.rd.Entries[0].Term = 2 }, nil},
		{"entries", "term to come", func(f *fixture) { f.rd.Entries[0].Term = 4 }, nil},
		{"entries", "gap behind a snapshot", func(f *fixture) {
			f.snapshot(9, 1)
			f.rd.Entries = []eraftpb.Entry{{Index: 11, Term: 3}}
		}, nil},
		{"committed", "replaced", func(f *fixture) {
			f.rd.Entries = []eraftpb.Entry{{Index: 5, Term: 3}}
		}, nil},
		{"snapshot", "of the past", func(f *fixture) { f.snapshot(5, 1) }, nil},
		{"snapshot", "beyond the commit index", func(f *fixture) { f.snapshot(10, 1) }, nil},
		{"snapshot", "of a group without the node", func(f *fixture) { f.snapshot(9, 2, 3) }, nil},
		{"snapshot", "with entries to apply", func(f *fixture) {
			f.snapshot(9, 1)
			f.rd.CommittedEntries = []eraftpb.Entry{{Index: 6, Term: 3}}
		}, nil},
		{"apply", "again", func(f *fixture) { f.rd.CommittedEntries[0].Index = 5 }, nil},
		{"apply", "gap", func(f *fixture) { f.rd.CommittedEntries[0].Index = 7 }, nil},
		{"apply", "again, in the next Ready", nothing, func(f *fixture) error {
			if err := f.checker.Advance(&f.rd); err != nil {
				return fmt.Errorf("advance: %w", err)
			}
			if err := f.storage.Append(f.rd.Entries); err != nil {
				return fmt.Errorf("append: %w", err)
			}
			return f.checker.Ready(f.view,
				&raft.Ready{Entries: []eraftpb.Entry{}, CommittedEntries: f.rd.CommittedEntries})
		}},
		{"durable", "not committed", func(f *fixture) {
			f.rd.CommittedEntries = []eraftpb.Entry{{Index: 6, Term: 3}, {Index: 7, Term: 3}}
		}, nil},
		{"durable", "not persisted", func(f *fixture) {
			f.view.Hard.Commit, f.rd.HardState.Commit = 8, 8
			f.rd.CommittedEntries = []eraftpb.Entry{
				{Index: 6, Term: 3}, {Index: 7, Term: 3}, {Index: 8, Term: 3},
			}
		}, nil},
		{"durable", "another entry than is persisted", func(f *fixture) {
			f.rd.CommittedEntries[0].Term = 2
		}, nil},
		{"sync", "not asked for", func(f *fixture) { f.rd.MustSync = false }, nil},
		{"sync", "not asked for a commit of a conf change", func(f *fixture) {
			f.rd.Entries, f.rd.MustSync, f.view.PendingConf = []eraftpb.Entry{}, false,
				f.view.Hard.Commit
			f.view.Soft.RaftState = raft.StateLeader
		}, nil},
		{"sync", "asked for needlessly", func(f *fixture) {
			f.rd.Entries = []eraftpb.Entry{}
		}, nil},
		{"read", "beyond the commit index", func(f *fixture) { f.rd.ReadStates[0].Index = 7 }, nil},
	}
}

func nothing(*fixture) {}

func forgedMessages() []forgery {
	return []forgery{
		{"early", "before the term is persisted", func(f *fixture) {
			f.view.Hard = eraftpb.HardState{Term: 4, Vote: 1, Commit: 6}
		},
			func(f *fixture) error {
				return f.checker.Split(f.view, f.rd.Messages, f.rd.Messages, nil)
			}},
		{"early", "before the vote is persisted", func(f *fixture) { f.view.Hard.Vote = 2 },
			func(f *fixture) error {
				return f.checker.Split(f.view, f.rd.Messages, f.rd.Messages, nil)
			}},
		{"early", "of one who does not lead", (*fixture).follower, func(f *fixture) error {
			early := []eraftpb.Message{
				{MsgType: eraftpb.MessageType_MsgAppend, From: 1, To: 2, Term: 3},
			}
			return f.checker.Split(f.view, early, early, nil)
		}},
		{"early", "an answer", nothing, func(f *fixture) error {
			early := []eraftpb.Message{
				{MsgType: eraftpb.MessageType_MsgAppendResponse, From: 1, To: 2, Term: 3},
			}
			return f.checker.Split(f.view, early, early, nil)
		}},
		{"split", "twice", nothing, func(f *fixture) error {
			return f.checker.Split(f.view, f.rd.Messages, f.rd.Messages, f.rd.Messages)
		}},
		{"split", "lost", nothing, func(f *fixture) error {
			return f.checker.Split(f.view, f.rd.Messages, nil, nil)
		}},
		{"split", "another order", nothing, func(f *fixture) error {
			a, b := f.rd.Messages[0], f.rd.Messages[0]
			b.To = 3
			return f.checker.Split(f.view, []eraftpb.Message{a, b}, nil, []eraftpb.Message{b, a})
		}},
		{"sender", "another node", func(f *fixture) { f.message().From = 3 }, nil},
		{"sender", "to itself", func(f *fixture) { f.message().To = 1 }, nil},
		{"sender", "to nobody", func(f *fixture) { f.message().To = 0 }, nil},
		{"sender", "a term to come", func(f *fixture) { f.message().Term = 4 }, nil},
		{"sender", "a request handed on to itself", func(f *fixture) {
			*f.message() = eraftpb.Message{
				MsgType: eraftpb.MessageType_MsgTransferLeader, From: 2, To: 1,
			}
		}, nil},
		{"vote", "for somebody else", func(f *fixture) {
			f.answer(eraftpb.Message{MsgType: eraftpb.MessageType_MsgRequestVoteResponse, Term: 3})
		}, nil},
		{"vote", "a candidate who voted for another", func(f *fixture) {
			f.view.Hard.Term, f.view.Hard.Vote = 4, 2
			f.rd.HardState = f.view.Hard
			f.answer(eraftpb.Message{MsgType: eraftpb.MessageType_MsgRequestVote, Term: 4})
		}, nil},
		{"ack", "of what is not persisted", func(f *fixture) {
			f.answer(eraftpb.Message{
				MsgType: eraftpb.MessageType_MsgAppendResponse, Term: 3, Index: 8,
			})
		}, nil},
		{"append", "entries behind a gap", func(f *fixture) { f.message().Index = 5 }, nil},
		{"append", "falling terms", func(f *fixture) { f.message().Entries[0].Term = 2 }, nil},
		{"append", "commit index to come", func(f *fixture) { f.message().Commit = 7 }, nil},
		{"append", "a heartbeat's as well", func(f *fixture) {
			*f.message() = eraftpb.Message{
				MsgType: eraftpb.MessageType_MsgHeartbeat, From: 1, To: 2, Term: 3, Commit: 7,
			}
		}, nil},
	}
}
