package raft

import (
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// benchGroup is three nodes that persist to memory and apply nothing.
type benchGroup struct {
	nodes   [4]*RawNode
	storage [4]*MemoryStorage
	data    []byte
}

func newBenchGroup(b testing.TB, opts ...option) *benchGroup {
	g := &benchGroup{data: make([]byte, 128)}
	for id := uint64(1); id <= 3; id++ {
		g.storage[id] = NewMemoryStorage()
		rn, err := NewRawNode(courseConfig(id, []uint64{1, 2, 3}, g.storage[id], opts...))
		if err != nil {
			b.Fatal(err)
		}
		g.nodes[id] = rn
	}
	_ = g.nodes[1].Campaign()
	g.settle(b)
	if g.nodes[1].State() != StateLeader {
		b.Fatal("no leader")
	}
	return g
}

func (g *benchGroup) settle(b testing.TB) {
	for busy := true; busy; {
		busy = false
		for id := 1; id <= 3; id++ {
			rn := g.nodes[id]
			for rn.HasReady() {
				busy = true
				rd := rn.Ready()
				if err := g.storage[id].Append(rd.Entries); err != nil {
					b.Fatal(err)
				}
				for i := range rd.Messages {
					_ = g.nodes[rd.Messages[i].To].Step(rd.Messages[i])
				}
				rn.Advance(rd)
				if n := len(rd.CommittedEntries); n > 0 && rn.Raft.RaftLog.asyncApply {
					rn.AppliedTo(rd.CommittedEntries[n-1].Index)
				}
			}
		}
	}
}

func (g *benchGroup) compact() {
	for id := 1; id <= 3; id++ {
		applied := g.nodes[id].Applied()
		_ = g.storage[id].Compact(applied)
		g.nodes[id].CompactTo(applied)
	}
}

// BenchmarkReplicate is a proposal's whole way: three nodes, Ready and Advance included, with the
// entries of one Ready as the batch. The figures are for an entry.
func BenchmarkReplicate(b *testing.B) {
	for _, bc := range []struct {
		name  string
		batch int
		opts  []option
	}{
		{"course/batch=1", 1, nil},
		{"course/batch=64", 64, nil},
		{"production/batch=1", 1, []option{production}},
		{"production/batch=64", 64, []option{production}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			g := newBenchGroup(b, bc.opts...)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if err := g.nodes[1].Propose(g.data); err != nil {
					b.Fatal(err)
				}
				if n++; n%bc.batch == 0 {
					g.settle(b)
				}
				if n%4096 == 0 {
					g.settle(b)
					g.compact()
				}
			}
		})
	}
}

// BenchmarkStepAppend is the follower's side of one append of 16 entries, the figures for an
// append.
func BenchmarkStepAppend(b *testing.B) {
	st := NewMemoryStorage()
	rn, err := NewRawNode(courseConfig(2, []uint64{1, 2, 3}, st, production))
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 128)
	ents := make([]eraftpb.Entry, 16)
	m := eraftpb.Message{MsgType: tApp, From: 1, To: 2, Term: 1}
	for i := range ents {
		m.Entries = append(m.Entries, &ents[i])
	}
	b.ReportAllocs()
	for b.Loop() {
		for i := range ents {
			ents[i] = eraftpb.Entry{Term: 1, Index: m.Index + 1 + uint64(i), Data: data}
		}
		m.Commit = m.Index
		if err := rn.Step(m); err != nil {
			b.Fatal(err)
		}
		m.Index += uint64(len(ents))
		m.LogTerm = 1
		rd := rn.Ready()
		_ = st.Append(rd.Entries)
		rn.Advance(rd)
		if n := len(rd.CommittedEntries); n > 0 {
			rn.AppliedTo(rd.CommittedEntries[n-1].Index)
		}
		if m.Index%4096 == 0 {
			_ = st.Compact(rn.Applied())
			rn.CompactTo(rn.Applied())
		}
	}
}

// BenchmarkHeartbeat is a leader's round to two followers and both answers.
func BenchmarkHeartbeat(b *testing.B) {
	g := newBenchGroup(b, production)
	b.ReportAllocs()
	for b.Loop() {
		g.nodes[1].Tick()
		g.settle(b)
	}
}

// BenchmarkIdleTick is what an idle follower costs.
func BenchmarkIdleTick(b *testing.B) {
	g := newBenchGroup(b, production)
	b.ReportAllocs()
	for b.Loop() {
		g.nodes[2].Tick()
		g.nodes[2].Raft.electionElapsed = 0
		if g.nodes[2].HasReady() {
			b.Fatal("an idle tick makes work")
		}
	}
}

// TestAllocationsOfReplication bounds what a batch costs three nodes, Ready and Advance included,
// as measured with Go 1.26 (docs/benchmarks.md says what for): almost all of it is per Ready, not
// per entry. Three of the budget are the race detector's.
func TestAllocationsOfReplication(t *testing.T) {
	for _, c := range []struct {
		batch  int
		allocs float64
	}{{1, 14}, {64, 15}} {
		g := newBenchGroup(t, production)
		n := 0
		got := testing.AllocsPerRun(200, func() {
			for range c.batch {
				_ = g.nodes[1].Propose(g.data)
			}
			g.settle(t)
			if n += c.batch; n >= 1024 {
				g.compact()
				n = 0
			}
		})
		if got > c.allocs {
			t.Errorf("a batch of %d takes %v allocations, more than %v", c.batch, got, c.allocs)
		}
	}
}
