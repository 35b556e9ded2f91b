package raftlog_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tinykv/tinykv/kv/raftlog"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

const benchPayload = 256

// BenchmarkAppend compares a synced batch of entries with the least it can cost: one write of as
// many bytes into blocks that exist, and one fdatasync. Run both in one go and look at the ratio:
//
//	go test ./kv/raftlog -run '^$' -bench Append -benchmem -count 5
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("plain/batch=%d", n), func(b *testing.B) { benchPlain(b, n) })
		b.Run(fmt.Sprintf("raftlog/batch=%d", n), func(b *testing.B) { benchLog(b, n) })
	}
}

func benchPlain(b *testing.B, n int) {
	const size = 64 << 20
	f, err := os.Create(filepath.Join(b.TempDir(), "plain"))
	must(b, err)
	defer func() { _ = f.Close() }()
	zeros := make([]byte, 1<<20)
	for range size >> 20 {
		_, err := f.Write(zeros)
		must(b, err)
	}
	must(b, f.Sync())
	buf := make([]byte, n*(benchPayload+24))
	off := int64(0)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if off+int64(len(buf)) > size {
			off = 0
		}
		_, err := f.WriteAt(buf, off)
		must(b, err)
		must(b, unix.Fdatasync(int(f.Fd())))
		off += int64(len(buf))
	}
	b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "entries/s")
}

func benchLog(b *testing.B, n int) {
	l := mustOpen(b, b.TempDir(), raftlog.Options{SegmentSize: 16 << 20})
	ents := make([]eraftpb.Entry, n)
	for i := range ents {
		ents[i] = eraftpb.Entry{Term: 1, Data: make([]byte, benchPayload)}
	}
	var batch raftlog.Batch
	next := uint64(1)
	one := func(sync bool) {
		batch.Clear()
		for i := range ents {
			ents[i].Index = next
			next++
		}
		batch.Append(1, ents)
		if next > 2000 {
			batch.Truncate(1, next-1000, 1)
		}
		must(b, l.Write(&batch, sync))
	}
	// As long as a log runs its segments are recycled ones; get there first.
	for l.Stats().BytesWritten < 100<<20 {
		one(false)
	}
	must(b, l.Sync())
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		one(true)
	}
	b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkGroupCommit has many regions write one entry each: they share syncs.
func BenchmarkGroupCommit(b *testing.B) {
	for _, writers := range []int{1, 4, 32} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			l := mustOpen(b, b.TempDir(), raftlog.Options{})
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					var batch raftlog.Batch
					data := make([]byte, benchPayload)
					for i := uint64(1); left.Add(-1) >= 0; i++ {
						batch.Clear()
						batch.Append(uint64(w+1), []eraftpb.Entry{{Term: 1, Index: i, Data: data}})
						if i > 1000 && i%100 == 0 {
							batch.Truncate(uint64(w+1), i-500, 1)
						}
						if err := l.Write(&batch, true); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(l.Stats().Writes)/float64(l.Stats().Syncs), "writes/sync")
		})
	}
}

// BenchmarkWriteNoSync is the price of the log without the disk.
func BenchmarkWriteNoSync(b *testing.B) {
	l := mustOpen(b, b.TempDir(), raftlog.Options{})
	var batch raftlog.Batch
	ents := []eraftpb.Entry{{Term: 1, Data: make([]byte, benchPayload)}}
	b.ReportAllocs()
	i := uint64(1)
	for b.Loop() {
		batch.Clear()
		ents[0].Index = i
		batch.Append(1, ents)
		if i > 1000 && i%100 == 0 {
			batch.Truncate(1, i-500, 1)
		}
		must(b, l.Write(&batch, false))
		i++
	}
}

// BenchmarkEntries reads 16 entries from the cache and from the file.
func BenchmarkEntries(b *testing.B) {
	for _, where := range []string{"cache", "file"} {
		b.Run(where, func(b *testing.B) {
			opts := raftlog.Options{}
			if where == "file" {
				opts.CacheBytes = 1
			}
			l := mustOpen(b, b.TempDir(), opts)
			var batch raftlog.Batch
			for i := uint64(1); i <= 1000; i++ {
				batch.Clear()
				batch.Append(1,
					[]eraftpb.Entry{{Term: 1, Index: i, Data: make([]byte, benchPayload)}})
				must(b, l.Write(&batch, false))
			}
			b.ReportAllocs()
			i := uint64(1)
			for b.Loop() {
				got, err := l.Entries(1, i, i+16, 1<<20)
				if err != nil || len(got) != 16 {
					b.Fatal(len(got), err)
				}
				i = i%900 + 1
			}
		})
	}
}

// TestAllocationsOfAWrite: a batch of one entry for each of 32 regions, as a turn of a raft worker
// writes it, takes next to nothing: the cache of entries shares the payloads.
func TestAllocationsOfAWrite(t *testing.T) {
	l := mustOpen(t, t.TempDir(), raftlog.Options{})
	var batch raftlog.Batch
	ents := []eraftpb.Entry{{Term: 1, Data: make([]byte, benchPayload)}}
	i := uint64(1)
	got := testing.AllocsPerRun(500, func() {
		batch.Clear()
		ents[0].Index = i
		for region := range uint64(32) {
			batch.Append(region+1, ents)
			if i%100 == 0 {
				batch.Truncate(region+1, i-50, 1)
			}
		}
		if err := l.Write(&batch, false); err != nil {
			t.Error(err)
		}
		i++
	})
	if got > 2 {
		t.Errorf("%v allocations", got)
	}
}
