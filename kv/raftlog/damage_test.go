package raftlog_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftlog"
)

// damageCase is one way to harm a file.
type damageCase struct {
	kind string
	do   func(rng *rand.Rand, data []byte) []byte
}

var damageCases = []damageCase{
	{"flip", func(rng *rand.Rand, data []byte) []byte {
		data[rng.IntN(len(data))] ^= 1 << rng.IntN(8)
		return data
	}},
	{"zero-page", func(rng *rand.Rand, data []byte) []byte {
		from := rng.IntN(len(data)) &^ 4095
		clear(data[from:min(from+4096, len(data))])
		return data
	}},
	{"zero-sector", func(rng *rand.Rand, data []byte) []byte {
		from := rng.IntN(len(data)) &^ 511
		clear(data[from:min(from+512, len(data))])
		return data
	}},
	{"truncate", func(rng *rand.Rand, data []byte) []byte { return data[:rng.IntN(len(data))] }},
}

// damagedLog fills a log whose every batch is synced, and leaves it closed or as a kill would.
func damagedLog(t *testing.T, seed uint64, clean bool) (*faultfs.MemFS, twin) {
	t.Helper()
	fs := faultfs.NewMemFS(nil)
	g := newGenerator(seed, 6, 1500)
	l, err := raftlog.Open("log", manual(fs))
	must(t, err)
	var b raftlog.Batch
	for i := range 60 {
		b.Clear()
		g.fill(&b)
		must(t, l.Write(&b, true))
		if i%10 == 9 {
			_, err := l.Reclaim(2 << 10)
			must(t, err)
		}
	}
	if clean {
		must(t, l.Close())
	}
	return fs.Crash(faultfs.KeepAll, nil, nil), g.m
}

// verifyDamaged opens a damaged log and returns what came of it; an error is a forbidden outcome.
func verifyDamaged(fs *faultfs.MemFS, want twin, file string) (outcome string, err error) {
	l, err := raftlog.Open("log", manual(fs))
	if err != nil {
		var d *raftlog.DamageError
		if !errors.As(err, &d) {
			return "", fmt.Errorf("open: untyped error: %w", err)
		}
		if d.File == "" {
			return "", fmt.Errorf("open: no file named: %w", err)
		}
		return "refused", nil
	}
	defer func() { _ = l.Close() }()
	outcome = "harmless"
	known := map[uint64]bool{}
	for _, id := range l.Regions() {
		known[id] = true
		if d := l.Damaged(id); d != nil {
			if !strings.Contains(d.Error(), file) {
				return "", fmt.Errorf("region %d: %w, but the damage is in %s", id, d, file)
			}
			outcome = "region damaged"
			continue
		}
		if want[id] == nil {
			return "", fmt.Errorf("region %d should not be there", id)
		}
		got, err := dumpRegion(l, id)
		if err != nil {
			return "", fmt.Errorf("region %d: not reported as damaged, but %w", id, err)
		}
		if got != want[id].String() {
			return "", fmt.Errorf("region %d:\n%s\nwant\n%s", id, got, want[id])
		}
	}
	for id := range want {
		if !known[id] {
			return "", fmt.Errorf("region %d is gone", id)
		}
	}
	return outcome, nil
}

func dumpRegion(l *raftlog.Log, id uint64) (string, error) {
	s, _ := l.State(id)
	r := &twinRegion{hs: s.HardState, index: s.TruncatedIndex, term: s.TruncatedTerm}
	var err error
	if s.Last > s.TruncatedIndex {
		r.ents, err = l.Entries(id, s.First, s.Last+1, 1<<40)
	}
	return r.String(), err
}

// TestDamage harms every class of file in every way, hundreds of times: the log refuses to open and
// names the file, or reports the regions concerned, or nothing that matters was hit. It never
// answers with other data than what was written, and never with less.
func TestDamage(t *testing.T) {
	rounds := 150 // of each kind, for each of six file classes
	if *long {
		rounds = 3000
	}
	for _, clean := range []bool{true, false} {
		var logs [10]*faultfs.MemFS
		var wants [10]twin
		for seed := range logs {
			logs[seed], wants[seed] = damagedLog(t, uint64(seed), clean)
		}
		for _, class := range []string{"sealed segment", "last segment", "mark"} {
			counts := map[string]int{}
			for i := range rounds {
				for _, c := range damageCases {
					seed := uint64(i % len(logs))
					fs, want := logs[seed].Crash(faultfs.KeepAll, nil, nil), wants[seed]
					rng := rand.New(rand.NewPCG(uint64(i), seed))
					file := pickFile(fs, class, rng)
					must(t,
						fs.Corrupt("log/"+file, func(data []byte) []byte {
							return c.do(rng, data)
						}))
					outcome, err := verifyDamaged(fs, want, file)
					if err != nil {
						t.Fatalf("%s, clean=%v, %s, round %d: %v", class, clean, c.kind, i, err)
					}
					counts[c.kind+" "+outcome]++
				}
			}
			t.Logf("%s, clean=%v: %d damages: %v", class, clean, rounds*len(damageCases), counts)
		}
	}
}

func pickFile(fs *faultfs.MemFS, class string, rng *rand.Rand) string {
	names, _ := fs.List("log")
	var segs []string
	for _, n := range names {
		if strings.HasSuffix(n, ".rlog") {
			segs = append(segs, n)
		}
	}
	switch class {
	case "mark":
		return "MARK"
	case "last segment":
		return segs[len(segs)-1]
	}
	return segs[rng.IntN(len(segs)-1)]
}

// TestMissingFiles: no file of the log may vanish unnoticed.
func TestMissingFiles(t *testing.T) {
	for _, clean := range []bool{true, false} {
		fs, _ := damagedLog(t, 1, clean)
		names, err := fs.List("log")
		must(t, err)
		for _, name := range names {
			if !strings.HasSuffix(name, ".rlog") {
				continue
			}
			fs, want := damagedLog(t, 1, clean)
			must(t, fs.Remove("log/"+name))
			if outcome, err := verifyDamaged(fs, want, name); err != nil || outcome != "refused" {
				t.Fatalf("%s removed: %s %v", name, outcome, err)
			}
		}
	}
}

// TestEveryByteOfARecord flips each byte of the records of one small log, closed cleanly.
func TestEveryByteOfARecord(t *testing.T) {
	fs := faultfs.NewMemFS(nil)
	g := newGenerator(7, 3, 40)
	l, err := raftlog.Open("log", manual(fs))
	must(t, err)
	var b raftlog.Batch
	for range 12 {
		b.Clear()
		g.fill(&b)
		must(t, l.Write(&b, true))
	}
	end := int64(8192 + l.Stats().BytesWritten)
	must(t, l.Close())
	counts := map[string]int{}
	for off := int64(0); off < end; off++ {
		if off == 64 {
			off = 8192 // the header's copies and the room between them are covered by TestDamage
		}
		one := fs.Crash(faultfs.KeepAll, nil, nil)
		must(t, one.Corrupt("log/0000000001.rlog", func(data []byte) []byte {
			data[off] ^= 0x10
			return data
		}))
		outcome, err := verifyDamaged(one, g.m, "0000000001.rlog")
		if err != nil {
			t.Fatalf("byte %d: %v", off, err)
		}
		counts[outcome]++
	}
	t.Logf("%d bytes: %v", end-8192+64, counts)
}
