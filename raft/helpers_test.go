package raft

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// Short names for the tests.
const (
	tHup       = eraftpb.MessageType_MsgHup
	tBeat      = eraftpb.MessageType_MsgBeat
	tProp      = eraftpb.MessageType_MsgPropose
	tApp       = eraftpb.MessageType_MsgAppend
	tAppResp   = eraftpb.MessageType_MsgAppendResponse
	tVote      = eraftpb.MessageType_MsgRequestVote
	tVoteResp  = eraftpb.MessageType_MsgRequestVoteResponse
	tSnap      = eraftpb.MessageType_MsgSnapshot
	tHeartbeat = eraftpb.MessageType_MsgHeartbeat
	tHeartResp = eraftpb.MessageType_MsgHeartbeatResponse
	tTransfer  = eraftpb.MessageType_MsgTransferLeader
	tNow       = eraftpb.MessageType_MsgTimeoutNow
	tPreVote   = eraftpb.MessageType_MsgPreVote
	tPreResp   = eraftpb.MessageType_MsgPreVoteResponse
	tCheck     = eraftpb.MessageType_MsgCheckQuorum
)

type option func(*Config)

func withPreVote(c *Config)     { c.PreVote = true }
func withCheckQuorum(c *Config) { c.CheckQuorum = true }

// production is how a store sets a node up.
func production(c *Config) {
	c.PreVote, c.CheckQuorum, c.AckOnPersist, c.AsyncApply, c.UnstableOnly = true, true, true, true,
		true
}

func courseConfig(id uint64, peers []uint64, st Storage, opts ...option) *Config {
	c := &Config{ID: id, peers: peers, ElectionTick: 10, HeartbeatTick: 1, Storage: st}
	for _, o := range opts {
		o(c)
	}
	return c
}

func mkRaft(id uint64, peers []uint64, opts ...option) *Raft {
	return newRaft(courseConfig(id, peers, NewMemoryStorage(), opts...))
}

// terms makes a log with the given terms from index 1 on.
func terms(ts ...uint64) []eraftpb.Entry {
	ents := []eraftpb.Entry{}
	for i, term := range ts {
		ents = append(ents, eraftpb.Entry{Term: term, Index: uint64(i) + 1})
	}
	return ents
}

func storageWith(ents []eraftpb.Entry) *MemoryStorage {
	st := NewMemoryStorage()
	if err := st.Append(ents); err != nil {
		panic(err)
	}
	return st
}

func pointers(ents []eraftpb.Entry) []*eraftpb.Entry {
	var ps []*eraftpb.Entry
	for i := range ents {
		ps = append(ps, &ents[i])
	}
	return ps
}

// take empties a node's outbox.
func take(r *Raft) []eraftpb.Message {
	msgs := r.msgs
	r.msgs = nil
	return msgs
}

func ofType(msgs []eraftpb.Message, t eraftpb.MessageType) []eraftpb.Message {
	return slices.DeleteFunc(slices.Clone(msgs), func(m eraftpb.Message) bool {
		return m.MsgType != t
	})
}

func mustStep(t testing.TB, r *Raft, m eraftpb.Message) {
	t.Helper()
	if err := r.Step(m); err != nil {
		t.Fatalf("step %v: %v", &m, err)
	}
}

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

// leader makes a node leader of a fresh term, its empty entry acknowledged by everyone and its
// outbox empty.
func lead(t testing.TB, r *Raft) *Raft {
	t.Helper()
	r.becomeCandidate()
	r.becomeLeader()
	for _, id := range nodes(r) {
		if id != r.id {
			mustStep(t, r,
				eraftpb.Message{
					MsgType: tAppResp, From: id, Term: r.Term, Index: r.RaftLog.LastIndex(),
				})
		}
	}
	equal(t, "commit of the empty entry", r.RaftLog.committed, r.RaftLog.LastIndex())
	take(r)
	return r
}

// cluster is a group in which messages arrive at once and in order, unless a test says otherwise.
type cluster struct {
	t       testing.TB
	nodes   map[uint64]*Raft
	storage map[uint64]*MemoryStorage
	cut     map[[2]uint64]bool
	drop    map[eraftpb.MessageType]bool
	hook    func(m eraftpb.Message) bool
}

func mkCluster(t testing.TB, n int, opts ...option) *cluster {
	c := &cluster{
		t: t, nodes: map[uint64]*Raft{}, storage: map[uint64]*MemoryStorage{},
		cut: map[[2]uint64]bool{}, drop: map[eraftpb.MessageType]bool{},
	}
	var ids []uint64
	for id := uint64(1); id <= uint64(n); id++ {
		ids = append(ids, id)
	}
	for _, id := range ids {
		c.storage[id] = NewMemoryStorage()
		c.nodes[id] = newRaft(courseConfig(id, ids, c.storage[id], opts...))
	}
	return c
}

func (c *cluster) ids() []uint64 {
	var ids []uint64
	for id := range c.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// send steps messages and everything that follows from them.
func (c *cluster) send(msgs ...eraftpb.Message) {
	c.t.Helper()
	for steps := 0; len(msgs) > 0; steps++ {
		if steps > 100_000 {
			c.t.Fatal("the group does not come to rest")
		}
		m := msgs[0]
		msgs = msgs[1:]
		r := c.nodes[m.To]
		if r == nil {
			continue
		}
		_ = r.Step(m)
		for _, out := range take(r) {
			if c.cut[[2]uint64{out.From, out.To}] || c.drop[out.MsgType] ||
				c.hook != nil && !c.hook(out) {
				continue
			}
			msgs = append(msgs, out)
		}
	}
}

func (c *cluster) campaign(id uint64) { c.send(eraftpb.Message{MsgType: tHup, From: id, To: id}) }
func (c *cluster) beat(id uint64)     { c.send(eraftpb.Message{MsgType: tBeat, From: id, To: id}) }

func (c *cluster) propose(id uint64, data string) {
	c.send(eraftpb.Message{
		MsgType: tProp, From: id, To: id, Entries: []*eraftpb.Entry{{Data: []byte(data)}},
	})
}

func (c *cluster) transfer(at, target uint64) {
	c.send(eraftpb.Message{MsgType: tTransfer, From: target, To: at})
}

func (c *cluster) isolate(id uint64) {
	for _, other := range c.ids() {
		c.cut[[2]uint64{id, other}], c.cut[[2]uint64{other, id}] = true, true
	}
}

func (c *cluster) heal() {
	c.cut, c.drop, c.hook = map[[2]uint64]bool{}, map[eraftpb.MessageType]bool{}, nil
}

// tick ticks one node n times and delivers what comes of it.
func (c *cluster) tick(id uint64, n int) {
	for range n {
		c.nodes[id].tick()
		c.send(c.outbox(id)...)
	}
}

func (c *cluster) outbox(id uint64) []eraftpb.Message {
	return slices.DeleteFunc(take(c.nodes[id]), func(m eraftpb.Message) bool {
		return c.cut[[2]uint64{m.From, m.To}] || c.drop[m.MsgType]
	})
}

// persist does what an owner does on Advance, for one node: everything stable, committed applied.
func (c *cluster) persist(id uint64) {
	r := c.nodes[id]
	if err := c.storage[id].Append(r.RaftLog.unstableEntries()); err != nil {
		c.t.Fatal(err)
	}
	r.RaftLog.stabled = r.RaftLog.LastIndex()
	r.RaftLog.applied = r.RaftLog.committed
}

func (c *cluster) wantState(id uint64, state StateType, lead uint64) {
	c.t.Helper()
	if r := c.nodes[id]; r.State != state || r.Lead != lead {
		c.t.Fatalf("node %d: %v of %d, want %v of %d", id, r.State, r.Lead, state, lead)
	}
}

// ltoa, diffu and mustTerm are also called by suites of the course that are put beside this
// package.

// ltoa shows a log with its commit index.
func ltoa(l *RaftLog) string {
	s := fmt.Sprintf("committed=%d", l.committed)
	for _, e := range l.allEntries() {
		s += fmt.Sprintf(" %d/%d:%s", e.Index, e.Term, e.Data)
	}
	return s
}

// diffu is "" for equal texts, else both.
func diffu(a, b string) string {
	if a == b {
		return ""
	}
	return fmt.Sprintf("-%s\n+%s\n", a, b)
}

// mustTerm is the term of a log or storage that must have it.
func mustTerm(term uint64, err error) uint64 {
	if err != nil {
		panic(fmt.Sprintf("term: %v", err))
	}
	return term
}

func (c *cluster) wantSameLogs() {
	c.t.Helper()
	ids := c.ids()
	for _, id := range ids[1:] {
		if d := diffu(ltoa(c.nodes[ids[0]].RaftLog), ltoa(c.nodes[id].RaftLog)); d != "" {
			c.t.Fatalf("logs of %d and %d differ:\n%s", ids[0], id, d)
		}
		l := c.nodes[id].RaftLog
		equal(c.t, fmt.Sprintf("last term of %d", id), mustTerm(l.Term(l.LastIndex())),
			l.lastTerm())
	}
}
