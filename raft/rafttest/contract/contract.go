// Package contract checks that the Readys of a node come as doc.go of package raft promises: in
// turn with Advance, without gaps, and with nothing sent that is not persisted. The simulator and
// the transcripts let it watch every Ready of every node.
//
// The life of a Ready: View before it is taken, Ready when it is, before anything of it is
// persisted, and Advance. Each broken clause is an error that starts with the clause's name;
// Clauses lists them.
package contract

import (
	"fmt"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/raft"
)

// Clauses are the names of what is checked, with what each says.
var Clauses = map[string]string{
	"turn":      "Ready and Advance take turns, and Advance gets the Ready that is out",
	"soft":      "SoftState is there if, and only if, it differs from the last one",
	"hard":      "HardState is there if, and only if, it differs from the last one",
	"back":      "neither term nor commit goes back, a vote changes with the term only",
	"entries":   "Entries follow one another and what is persisted, in terms that do not fall",
	"committed": "Entries never replace what a persisted commit index covers",
	"snapshot":  "a snapshot is ahead of all that was applied, names the node, and goes before the rest",
	"apply":     "CommittedEntries follow one another and the last ones, each once",
	"durable":   "CommittedEntries are at most the commit index, and persisted or in this Ready",
	"sync":      "MustSync is set if, and only if, entries, term, vote, a snapshot or a leader's commit of a conf change are to be persisted",
	"early":     "only a leader's messages leave early, in a term and with a vote that are persisted",
	"split":     "early and late messages are the messages, each once and in their order",
	"sender":    "messages are from this node, to another one, of a term it has entered",
	"vote":      "a vote that leaves is the vote to be persisted",
	"ack":       "an acknowledgement covers only what is persisted with this Ready",
	"append":    "an append's entries follow its index, and its commit index is committed",
	"read":      "a read is answered at an index that is committed",
}

// View is a node's state of which a Ready tells.
type View struct {
	ID   uint64
	Soft raft.SoftState
	Hard eraftpb.HardState
	// PendingConf is a leader's PendingConfIndex.
	PendingConf uint64
}

// ViewOf returns the present state of the node with that ID.
func ViewOf(id uint64, rn *raft.RawNode) View {
	r := rn.Raft
	return View{
		ID: id, Soft: raft.SoftState{Lead: r.Lead, RaftState: r.State},
		Hard:        eraftpb.HardState{Term: r.Term, Vote: r.Vote, Commit: rn.Committed()},
		PendingConf: r.PendingConfIndex,
	}
}

// Checker watches the Readys of one life of a node. Owner: who drives the node.
type Checker struct {
	storage raft.Storage
	// soft and hard are the states as last told, handed the last index given out for applying.
	soft   raft.SoftState
	hard   eraftpb.HardState
	handed uint64
	// out is the Ready that was not advanced: the parts by which it is recognised.
	out      bool
	outFirst *eraftpb.Entry
	outCount int
}

// New returns a checker for a node that has just started, with its applied index. It looks at the
// storage when a Ready comes, which has to be before that is persisted.
func New(v View, applied uint64, storage raft.Storage) *Checker {
	return &Checker{storage: storage, soft: v.Soft, hard: v.Hard, handed: applied}
}

// broken is the error for a clause.
func broken(clause, format string, args ...any) error {
	return fmt.Errorf("ready: %s: "+format, append([]any{clause}, args...)...)
}

// Ready takes a Ready of a node that is in state v.
func (c *Checker) Ready(v View, rd *raft.Ready) error {
	if c.out {
		return broken("turn", "another Ready before Advance")
	}
	last, err := c.storage.LastIndex()
	if err != nil {
		return err
	}
	if err := c.states(v, rd); err != nil {
		return err
	}
	if last, err = c.persists(v, rd, last); err != nil {
		return err
	}
	if err := c.applies(v, rd, last); err != nil {
		return err
	}
	if err := c.messages(v, rd, last); err != nil {
		return err
	}
	for _, rs := range rd.ReadStates {
		if !rs.Aborted && rs.Index > v.Hard.Commit {
			return broken("read", "read %d at %d, committed %d", rs.ID, rs.Index, v.Hard.Commit)
		}
	}
	c.out, c.outFirst, c.outCount = true, first(rd.Entries), len(rd.Entries)
	return nil
}

func first(ents []eraftpb.Entry) *eraftpb.Entry {
	if len(ents) == 0 {
		return nil
	}
	return &ents[0]
}

// Advance takes the Ready that Advance gets.
func (c *Checker) Advance(rd *raft.Ready) error {
	if !c.out {
		return broken("turn", "Advance without a Ready")
	}
	if first(rd.Entries) != c.outFirst || len(rd.Entries) != c.outCount {
		return broken("turn", "Advance with another Ready")
	}
	c.out = false
	if rd.SoftState != nil {
		c.soft = *rd.SoftState
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		c.hard = rd.HardState
	}
	if !raft.IsEmptySnap(&rd.Snapshot) {
		c.handed = rd.Snapshot.Metadata.Index
	}
	if n := len(rd.CommittedEntries); n > 0 {
		c.handed = rd.CommittedEntries[n-1].Index
	}
	return nil
}

// states checks the soft and hard state of a Ready.
func (c *Checker) states(v View, rd *raft.Ready) error {
	told := c.soft
	if rd.SoftState != nil {
		told = *rd.SoftState
	}
	if told != v.Soft || rd.SoftState != nil && *rd.SoftState == c.soft {
		return broken("soft", "told %v, is %v, was %v", rd.SoftState, v.Soft, c.soft)
	}
	hard := c.hard
	if !raft.IsEmptyHardState(rd.HardState) {
		hard = rd.HardState
		if hard == c.hard {
			return broken("hard", "told again %v", hard)
		}
	}
	if hard != v.Hard {
		return broken("hard", "told %v, is %v", hard, v.Hard)
	}
	if hard.Term < c.hard.Term || hard.Commit < c.hard.Commit ||
		hard.Term == c.hard.Term && hard.Vote != c.hard.Vote && c.hard.Vote != raft.None {
		return broken("back", "from %v to %v", c.hard, hard)
	}
	return nil
}

// persists checks what is to be written, and returns the last index of the log afterwards.
func (c *Checker) persists(v View, rd *raft.Ready, last uint64) (uint64, error) {
	votes := v.Hard.Term != c.hard.Term || v.Hard.Vote != c.hard.Vote
	snap := rd.Snapshot.Metadata
	confs := v.Soft.RaftState == raft.StateLeader && c.hard.Commit < v.PendingConf &&
		v.PendingConf <= v.Hard.Commit
	if want := votes || len(rd.Entries) > 0 || snap != nil || confs; rd.MustSync != want {
		return 0, broken("sync", "MustSync is %v", rd.MustSync)
	}
	floor := c.hard.Commit
	var prevTerm uint64
	if snap != nil {
		if err := c.snapshot(v, rd); err != nil {
			return 0, err
		}
		last, floor, prevTerm = snap.Index, snap.Index, snap.Term
	}
	if rd.Entries == nil {
		return 0, broken("entries", "nil, not empty")
	}
	if len(rd.Entries) == 0 {
		return last, nil
	}
	at := rd.Entries[0].Index
	if at > last+1 || snap != nil && at != last+1 {
		return 0, broken("entries", "from %d on, behind %d", at, last)
	}
	if at <= floor {
		return 0, broken("committed", "from %d on, %d is committed", at, floor)
	}
	if snap == nil {
		// A predecessor that is truncated away has no term to compare with.
		prevTerm, _ = c.storage.Term(at - 1)
	}
	for i := range rd.Entries {
		e := &rd.Entries[i]
		if e.Index != at+uint64(i) || e.Term < prevTerm || e.Term > v.Hard.Term {
			return 0,
				broken("entries", "%d of term %d at place %d from %d on, after term %d, in term %d",
					e.Index, e.Term, i, at, prevTerm, v.Hard.Term)
		}
		prevTerm = e.Term
	}
	return at + uint64(len(rd.Entries)) - 1, nil
}

func (c *Checker) snapshot(v View, rd *raft.Ready) error {
	meta := rd.Snapshot.Metadata
	if meta.Index <= c.handed || meta.Index > v.Hard.Commit {
		return broken("snapshot", "of %d, handed out %d, committed %d", meta.Index, c.handed,
			v.Hard.Commit)
	}
	if len(rd.CommittedEntries) > 0 {
		return broken("snapshot", "with entries to apply")
	}
	if meta.ConfState != nil {
		for _, ids := range [][]uint64{meta.ConfState.Nodes, meta.ConfState.Learners} {
			for _, id := range ids {
				if id == v.ID {
					return nil
				}
			}
		}
	}
	return broken("snapshot", "of %v does not name %d", meta.ConfState, v.ID)
}

// applies checks what is handed out for applying; last is the end of the log once this Ready is
// persisted.
func (c *Checker) applies(v View, rd *raft.Ready, last uint64) error {
	for i := range rd.CommittedEntries {
		e := &rd.CommittedEntries[i]
		if e.Index != c.handed+1+uint64(i) {
			return broken("apply", "%d at place %d, handed out %d", e.Index, i, c.handed)
		}
		if e.Index > v.Hard.Commit || e.Index > last {
			return broken("durable", "%d, committed %d, persisted %d", e.Index, v.Hard.Commit, last)
		}
		if term, ok := c.termAt(e.Index, rd); ok && term != e.Term {
			return broken("durable", "%d of term %d, persisted with term %d", e.Index, e.Term, term)
		}
	}
	return nil
}

// termAt returns the term of an entry once the Ready is persisted.
func (c *Checker) termAt(index uint64, rd *raft.Ready) (uint64, bool) {
	if len(rd.Entries) > 0 && index >= rd.Entries[0].Index {
		return rd.Entries[index-rd.Entries[0].Index].Term, true
	}
	term, err := c.storage.Term(index)
	return term, err == nil
}
