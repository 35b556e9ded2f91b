package raftlog_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// twin is what the log should hold, kept the plain way.
type twin map[uint64]*twinRegion

type twinRegion struct {
	hs          eraftpb.HardState
	index, term uint64
	ents        []eraftpb.Entry
}

func (r *twinRegion) last() uint64 { return r.index + uint64(len(r.ents)) }

func (r *twinRegion) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "hs=%d/%d/%d trunc=%d/%d", r.hs.Term, r.hs.Vote, r.hs.Commit, r.index, r.term)
	for _, e := range r.ents {
		fmt.Fprintf(&b, " %d:%d:%d:%x", e.Index, e.Term, e.EntryType, hash(e.Data))
	}
	return b.String()
}

func hash(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

func (m twin) String() string {
	ids := make([]uint64, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var b strings.Builder
	for _, id := range ids {
		fmt.Fprintf(&b, "%d: %s\n", id, m[id])
	}
	return b.String()
}

// dumpLog reads everything the log holds, in the form of twin.String.
func dumpLog(l *raftlog.Log) (string, error) {
	m := twin{}
	for _, id := range l.Regions() {
		s, ok := l.State(id)
		if !ok {
			return "", fmt.Errorf("region %d is listed but has no state", id)
		}
		r := &twinRegion{hs: s.HardState, index: s.TruncatedIndex, term: s.TruncatedTerm}
		if s.Last > s.TruncatedIndex {
			ents, err := l.Entries(id, s.First, s.Last+1, 1<<40)
			if err != nil {
				return "", fmt.Errorf("region %d: %w", id, err)
			}
			if uint64(len(ents)) != s.Last-s.TruncatedIndex {
				return "",
					fmt.Errorf("region %d: %d entries in (%d, %d]", id, len(ents), s.TruncatedIndex,
						s.Last)
			}
			for _, e := range ents {
				if term, err := l.Term(id, e.Index); err != nil || term != e.Term {
					return "", fmt.Errorf("region %d: term of %d is %d: %w", id, e.Index, term, err)
				}
			}
			r.ents = ents
		}
		m[id] = r
	}
	return m.String(), nil
}

// generator makes random batches and plays them on the twin.
type generator struct {
	rng     *rand.Rand
	m       twin
	regions uint64
	maxData int
	term    uint64
}

func newGenerator(seed uint64, regions uint64, maxData int) *generator {
	return &generator{
		rng: rand.New(rand.NewPCG(seed, 1)), m: twin{}, regions: regions, maxData: maxData, term: 5,
	}
}

func (g *generator) fill(b *raftlog.Batch) {
	for range 1 + g.rng.IntN(4) {
		g.change(b, 1+g.rng.Uint64N(g.regions))
	}
}

func (g *generator) change(b *raftlog.Batch, id uint64) {
	r := g.m[id]
	if r == nil {
		if g.rng.IntN(3) == 0 {
			g.hardState(b, id)
		} else {
			g.reset(b, id, 5)
		}
		return
	}
	switch g.rng.IntN(20) {
	case 0:
		b.Delete(id)
		delete(g.m, id)
	case 1:
		g.reset(b, id, r.last()+g.rng.Uint64N(5))
	case 2, 3:
		g.hardState(b, id)
	case 4, 5, 6, 7:
		if len(r.ents) > 0 {
			n := 1 + g.rng.IntN(len(r.ents))
			r.index, r.term = r.ents[n-1].Index, r.ents[n-1].Term
			r.ents = slices.Clone(r.ents[n:])
			b.Truncate(id, r.index, r.term)
		}
	default:
		g.append(b, id, r)
	}
}

func (g *generator) hardState(b *raftlog.Batch, id uint64) {
	hs := eraftpb.HardState{Term: g.term, Vote: g.rng.Uint64N(5), Commit: g.rng.Uint64N(100)}
	if g.m[id] == nil {
		g.m[id] = &twinRegion{}
	}
	g.m[id].hs = hs
	b.SetHardState(id, hs)
}

func (g *generator) reset(b *raftlog.Batch, id, index uint64) {
	if g.m[id] == nil {
		g.m[id] = &twinRegion{}
	}
	r := g.m[id]
	r.index, r.term, r.ents = index, g.term, nil
	b.Reset(id, index, g.term)
}

// append adds entries, now and then after discarding a tail.
func (g *generator) append(b *raftlog.Batch, id uint64, r *twinRegion) {
	first := r.last() + 1
	if len(r.ents) > 0 && g.rng.IntN(4) == 0 {
		first -= g.rng.Uint64N(uint64(len(r.ents))) + 1
		g.term++
	}
	var ents []eraftpb.Entry
	for i := range 1 + g.rng.Uint64N(4) {
		data := make([]byte, g.rng.IntN(g.maxData+1))
		for j := range data {
			data[j] = byte(g.rng.Uint32())
		}
		ents = append(ents, eraftpb.Entry{
			Index: first + i, Term: g.term, EntryType: eraftpb.EntryType(g.rng.IntN(2)), Data: data,
		})
	}
	r.ents = append(slices.Clone(r.ents[:first-r.index-1]), ents...)
	b.Append(id, ents)
}

// TestAgainstTwin plays random batches on the log and on a plain twin, reopening now and then.
func TestAgainstTwin(t *testing.T) {
	for seed := range uint64(20) {
		g := newGenerator(seed, 6, 1500)
		dir := t.TempDir()
		opts := small()
		opts.CacheBytes = int64(seed%3) * 4000 // 0 means the default: all cached
		l := mustOpen(t, dir, opts)
		var b raftlog.Batch
		for i := range 200 {
			b.Clear()
			g.fill(&b)
			must(t, l.Write(&b, i%7 == 0))
			switch {
			case i%40 == 39:
				must(t, l.Close())
				l = mustOpen(t, dir, opts)
			case i%10 == 0:
				_, err := l.Reclaim(8 << 10)
				must(t, err)
			case i%6 == 0:
				for id, r := range g.m {
					l.TrimCache(id, r.index+uint64(i)%(uint64(len(r.ents))+1))
				}
			}
			got, err := dumpLog(l)
			must(t, err)
			if want := g.m.String(); got != want {
				t.Fatalf("seed %d, batch %d:\n%s\nwant\n%s", seed, i, got, want)
			}
		}
		must(t, l.Close())
	}
}
