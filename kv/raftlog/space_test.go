package raftlog_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

// TestSpaceOfManyRegions: 10,000 regions of which a few get nearly all the writes. The idle ones
// must not pin the segments of the busy ones, at a bounded price.
func TestSpaceOfManyRegions(t *testing.T) {
	const regions, hot, rounds = 10_000, 20, 6000
	dir := t.TempDir()
	opts := raftlog.Options{SegmentSize: 1 << 20, Manual: true}
	l := mustOpen(t, dir, opts)
	rng := rand.New(rand.NewPCG(1, 2))
	last := make([]uint64, regions+1)
	var b raftlog.Batch
	add := func(id uint64, n int, size int) {
		var ents []eraftpb.Entry
		for range n {
			last[id]++
			data := fmt.Appendf(make([]byte, 0, size), "%d/%d", id, last[id])
			ents = append(ents, eraftpb.Entry{Term: 1, Index: last[id], Data: data[:size]})
		}
		b.Append(id, ents)
	}
	for id := uint64(1); id <= regions; id++ {
		b.Clear()
		b.SetHardState(id, eraftpb.HardState{Term: 1, Vote: id})
		add(id, 3, 50)
		must(t, l.Write(&b, false))
	}
	var reclaimed, worst int64
	for i := range rounds {
		b.Clear()
		for range 5 {
			id := 1 + rng.Uint64N(hot)
			add(id, 4, 500)
			if last[id] > 40 {
				b.Truncate(id, last[id]-20, 1)
			}
		}
		if i%10 == 0 { // now and then an idle one wakes up
			add(1+rng.Uint64N(regions), 1, 50)
		}
		must(t, l.Write(&b, false))
		if i%20 == 0 {
			n, err := l.Reclaim(64 << 10)
			must(t, err)
			reclaimed += n
		}
		if i > rounds/4 {
			worst = max(worst, l.Stats().BytesOnDisk)
		}
	}
	s := l.Stats()
	t.Logf(
		"live %d KiB, on disk at most %d KiB, written %d KiB, of that rewritten %d KiB, %d segments",
		s.LiveBytes>>10, worst>>10, s.BytesWritten>>10, s.ReclaimedBytes>>10, s.Segments)
	// Garbage is allowed as much as live data and a few segments, beside two spares.
	if limit := 3*s.LiveBytes + 10*opts.SegmentSize; worst > limit {
		t.Fatalf("%d bytes on disk, limit %d", worst, limit)
	}
	if s.ReclaimedBytes > s.BytesWritten/3 {
		t.Fatalf("%d of %d bytes written are rewrites", s.ReclaimedBytes, s.BytesWritten)
	}
	must(t, l.Close())

	l = mustOpen(t, dir, opts)
	if n := len(l.Regions()); n != regions {
		t.Fatalf("%d regions after reopening", n)
	}
	for id := uint64(1); id <= regions; id++ {
		must(t, l.Damaged(id))
		st, _ := l.State(id)
		if st.Last != last[id] || st.HardState.Vote != id {
			t.Fatalf("region %d: %+v, want last %d", id, st, last[id])
		}
		ents, err := l.Entries(id, st.First, st.Last+1, 1<<30)
		must(t, err)
		for _, e := range ents {
			want := fmt.Sprintf("%d/%d", id, e.Index)
			if string(e.Data[:len(want)]) != want {
				t.Fatalf("region %d, entry %d: %q", id, e.Index, e.Data[:len(want)])
			}
		}
	}
}

// TestLaggingRegions: the regions that hold the oldest segments are named, the heaviest first.
func TestLaggingRegions(t *testing.T) {
	l := mustOpen(t, t.TempDir(), raftlog.Options{SegmentSize: 16 << 10, Manual: true})
	big := func(id, lo, hi uint64, size int) {
		write(t, l, func(b *raftlog.Batch) {
			var ents []eraftpb.Entry
			for i := lo; i < hi; i++ {
				ents = append(ents, eraftpb.Entry{Term: 1, Index: i, Data: make([]byte, size)})
			}
			b.Append(id, ents)
		})
	}
	big(7, 1, 2, 100)
	big(8, 1, 2, 900)
	for i := range uint64(30) {
		big(9, 1+i, 2+i, 1000)
	}
	got := l.LaggingRegions(2)
	if len(got) != 2 || got[0] != 9 && got[0] != 8 {
		t.Fatalf("%v", got)
	}
	write(t, l, func(b *raftlog.Batch) { b.Truncate(9, 25, 1) })
	if got := l.LaggingRegions(2); fmt.Sprint(got) != "[8 7]" {
		t.Fatalf("%v", got)
	}
	write(t, l, func(b *raftlog.Batch) { b.Delete(7); b.Delete(8) })
	n, err := l.Reclaim(1 << 20)
	must(t, err)
	if n == 0 {
		t.Fatal("nothing dropped")
	}
}

// TestTrimCache: what was trimmed takes no memory, and is read from the disk.
func TestTrimCache(t *testing.T) {
	l := mustOpen(t, t.TempDir(), small())
	write(t, l, func(b *raftlog.Batch) { b.Append(1, entries(1, 1, 1, 11)) })
	whole := l.Stats().CacheBytes
	l.TrimCache(1, 6)
	if got := l.Stats().CacheBytes; got <= 0 || got >= whole {
		t.Fatalf("%d of %d bytes are cached", got, whole)
	}
	l.TrimCache(1, 3) // no way back
	l.TrimCache(1, 1000)
	l.TrimCache(2, 1) // not here
	if got := l.Stats().CacheBytes; got != 0 {
		t.Fatalf("%d bytes are cached", got)
	}
	got, err := l.Entries(1, 1, 11, 1<<20)
	must(t, err)
	if want := entries(1, 1, 1, 11); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%v", got)
	}
	write(t, l, func(b *raftlog.Batch) { b.Append(1, entries(1, 1, 11, 12)) })
	if got := l.Stats().CacheBytes; got <= 0 || got >= whole {
		t.Fatalf("%d bytes are cached", got)
	}
	must(t, l.Close())
}

// TestConcurrent has owners of regions write, readers read and the keeper reclaim, all at once.
func TestConcurrent(t *testing.T) {
	opts := raftlog.Options{SegmentSize: 64 << 10, CacheBytes: 8 << 10}
	dir := t.TempDir()
	l := mustOpen(t, dir, opts)
	const owners, perOwner, rounds = 6, 3, 150
	var wg sync.WaitGroup
	errs := make([]error, 2*owners)
	for w := range owners {
		ids := make([]uint64, perOwner)
		for i := range ids {
			ids[i] = uint64(w*perOwner + i + 1)
		}
		wg.Go(func() { errs[w] = ownerLoop(l, ids, rounds) })
		wg.Go(func() { errs[owners+w] = readerLoop(l, ids, rounds) })
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	must(t, l.Close())
	l = mustOpen(t, dir, opts)
	for id := uint64(1); id <= owners*perOwner; id++ {
		must(t, l.Damaged(id))
		if s, ok := l.State(id); !ok || s.Last != rounds*2 {
			t.Fatalf("region %d: %+v", id, s)
		}
	}
}

func ownerLoop(l *raftlog.Log, ids []uint64, rounds uint64) error {
	var b raftlog.Batch
	for i := range rounds {
		b.Clear()
		for _, id := range ids {
			lo := 2*i + 1
			if i > 5 {
				b.Append(id, entries(id, i, lo-1, lo)) // replaces the last one
			}
			b.Append(id, entries(id, i, lo, lo+2))
			if i > 20 && i%5 == 0 {
				b.Truncate(id, lo-20, 0)
			}
			b.SetHardState(id, eraftpb.HardState{Term: i, Commit: lo})
		}
		if err := l.Write(&b, i%3 == 0); err != nil {
			return err
		}
		l.TrimCache(ids[0], 2*i)
		for _, id := range ids {
			if s, ok := l.State(id); !ok || s.Last != 2*i+2 || s.HardState.Term != i {
				return fmt.Errorf("region %d after write %d: %+v", id, i, s)
			}
		}
	}
	return nil
}

// readerLoop reads while others write: it may find less or more, never something wrong.
func readerLoop(l *raftlog.Log, ids []uint64, rounds uint64) error {
	for range rounds * 3 {
		for _, id := range ids {
			s, ok := l.State(id)
			if !ok || s.Last == s.TruncatedIndex {
				continue
			}
			ents, err := l.Entries(id, s.First, s.Last+1, 4<<10)
			if errors.Is(err, raftlog.ErrCompacted) || errors.Is(err, raftlog.ErrUnavailable) {
				continue
			}
			if err != nil {
				return err
			}
			for i, e := range ents {
				want := fmt.Sprintf("region %d term %d index %d", id, e.Term, s.First+uint64(i))
				if string(e.Data) != want {
					return fmt.Errorf("region %d: %q, want %q", id, e.Data, want)
				}
			}
		}
	}
	return nil
}

// TestDiskFull: without space for the next segment the log fails and stays failed; what was
// acknowledged is there when it is opened with space again.
func TestDiskFull(t *testing.T) {
	fs := faultfs.NewMemFS(nil)
	fs.SetSpace(64 << 10)
	l, err := raftlog.Open("log", manual(fs))
	must(t, err)
	var b raftlog.Batch
	acked := uint64(0)
	for i := uint64(1); ; i++ {
		b.Clear()
		b.Append(1, []eraftpb.Entry{{Term: 1, Index: i, Data: make([]byte, 500)}})
		if err = l.Write(&b, true); err != nil {
			break
		}
		acked = i
	}
	if !errors.Is(err, faultfs.ErrNoSpace) || acked < 30 {
		t.Fatalf("after %d writes: %v", acked, err)
	}
	if err := l.Write(&b, true); !errors.Is(err, faultfs.ErrNoSpace) {
		t.Fatalf("the log did not stay failed: %v", err)
	}
	fs.SetSpace(-1)
	l, err = raftlog.Open("log", manual(fs))
	must(t, err)
	if s, _ := l.State(1); s.Last < acked {
		t.Fatalf("last %d, acknowledged %d", s.Last, acked)
	}
	must(t, l.Close())
}

// TestSmallDiskGivesBackSpace: a log whose regions are truncated lives in a bounded space for ever.
func TestSmallDiskGivesBackSpace(t *testing.T) {
	fs := faultfs.NewMemFS(nil)
	fs.SetSpace(200 << 10)
	l, err := raftlog.Open("log", manual(fs))
	must(t, err)
	var b raftlog.Batch
	for i := uint64(1); i < 4000; i++ {
		b.Clear()
		b.Append(1, []eraftpb.Entry{{Term: 1, Index: i, Data: make([]byte, 500)}})
		if i > 5 {
			b.Truncate(1, i-5, 1)
		}
		must(t, l.Write(&b, false))
		if i%20 == 0 {
			_, err := l.Reclaim(1 << 10)
			must(t, err)
		}
	}
	must(t, l.Close())
}
