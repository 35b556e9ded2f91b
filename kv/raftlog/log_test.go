package raftlog_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

func mustOpen(t testing.TB, dir string, opts raftlog.Options) *raftlog.Log {
	t.Helper()
	l, err := raftlog.Open(dir, opts)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// small makes segments rotate after a few records.
func small() raftlog.Options { return raftlog.Options{SegmentSize: 16 << 10} }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entries makes the entries [lo, hi) of a term, each with a payload that tells its place.
func entries(region, term, lo, hi uint64) []eraftpb.Entry {
	var ents []eraftpb.Entry
	for i := lo; i < hi; i++ {
		ents = append(ents, eraftpb.Entry{
			Term: term, Index: i,
			Data:      fmt.Appendf(nil, "region %d term %d index %d", region, term, i),
			EntryType: eraftpb.EntryType(i % 2),
		})
	}
	return ents
}

func write(t testing.TB, l *raftlog.Log, fill func(b *raftlog.Batch)) {
	t.Helper()
	var b raftlog.Batch
	fill(&b)
	must(t, l.Write(&b, true))
}

func checkEntries(t testing.TB, l *raftlog.Log, region uint64, want []eraftpb.Entry) {
	t.Helper()
	lo := want[0].Index
	got, err := l.Entries(region, lo, lo+uint64(len(want)), 1<<30)
	must(t, err)
	sameEntries(t, got, want)
}

func sameEntries(t testing.TB, got, want []eraftpb.Entry) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d entries, want %d", len(got), len(want))
	}
	for i := range got {
		g, w := &got[i], &want[i]
		if g.Index != w.Index || g.Term != w.Term || g.EntryType != w.EntryType ||
			!bytes.Equal(g.Data, w.Data) {
			t.Fatalf("entry %d: %v, want %v", i, g, w)
		}
	}
}

func TestAppendReadReopen(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, small())
	hs := eraftpb.HardState{Term: 2, Vote: 3, Commit: 7}
	write(t, l, func(b *raftlog.Batch) {
		b.Reset(1, 5, 5)
		b.Append(1, entries(1, 6, 6, 20))
		b.SetHardState(1, hs)
		b.SetHardState(9, eraftpb.HardState{Term: 1})
	})
	write(t, l, func(b *raftlog.Batch) { b.Append(1, entries(1, 7, 15, 18)) })
	want := append(entries(1, 6, 6, 15), entries(1, 7, 15, 18)...)

	check := func(l *raftlog.Log) {
		t.Helper()
		s, ok := l.State(1)
		if !ok ||
			s != (raftlog.State{
				HardState: hs, First: 6, Last: 17, LastTerm: 7, TruncatedIndex: 5, TruncatedTerm: 5,
			}) {
			t.Fatalf("state %+v %v", s, ok)
		}
		if s, ok := l.State(9); !ok || s.Last != 0 || s.HardState.Term != 1 {
			t.Fatalf("state %+v %v", s, ok)
		}
		checkEntries(t, l, 1, want)
		if _, err := l.Entries(1, 5, 7, 100); !errors.Is(err, raftlog.ErrCompacted) {
			t.Fatalf("below first: %v", err)
		}
		if _, err := l.Entries(1, 17, 19, 100); !errors.Is(err, raftlog.ErrUnavailable) {
			t.Fatalf("beyond last: %v", err)
		}
		if term, err := l.Term(1, 5); err != nil || term != 5 {
			t.Fatalf("term of the truncation point: %d %v", term, err)
		}
		got, err := l.Entries(1, 6, 18, 0)
		must(t, err)
		sameEntries(t, got, want[:1])
	}
	check(l)
	must(t, l.Close())
	l = mustOpen(t, dir, small())
	check(l)
	write(t, l, func(b *raftlog.Batch) { b.Truncate(1, 10, 6); b.Delete(9) })
	must(t, l.Close())
	l = mustOpen(t, dir, small())
	checkEntries(t, l, 1, want[5:])
	if got := l.Regions(); len(got) != 1 || got[0] != 1 {
		t.Fatalf("regions %v", got)
	}
}

func TestRotationAndReclaim(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, small())
	write(t, l, func(b *raftlog.Batch) { b.Append(2, entries(2, 1, 1, 4)) })
	for i := uint64(1); i <= 2000; i++ {
		write(t, l, func(b *raftlog.Batch) {
			b.Append(1, entries(1, 1, i, i+1))
			if i > 10 {
				b.Truncate(1, i-10, 1)
			}
		})
	}
	for {
		n, err := l.Reclaim(1 << 20)
		must(t, err)
		if n == 0 {
			break
		}
	}
	if s := l.Stats(); s.Segments > 6 {
		t.Fatalf("%+v", s)
	}
	must(t, l.Close())
	l = mustOpen(t, dir, small())
	checkEntries(t, l, 1, entries(1, 1, 1991, 2001))
	checkEntries(t, l, 2, entries(2, 1, 1, 4))
	if err := errors.Join(l.Damaged(1), l.Damaged(2)); err != nil {
		t.Fatal(err)
	}
}
