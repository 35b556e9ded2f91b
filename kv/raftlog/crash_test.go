package raftlog_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftlog"
)

var long = flag.Bool("long", false, "run the long form of the crash and damage tests")

// manual leaves nothing to a goroutine, so that runs with one seed do the same operations.
func manual(fs *faultfs.MemFS) raftlog.Options {
	return raftlog.Options{SegmentSize: 16 << 10, Manual: true, FS: fs}
}

// crashRun is a scenario that stopped somewhere.
type crashRun struct {
	// states[i] is the log's content after i batches.
	states []string
	// written batches returned from Write; durable ones were synced by then.
	written, durable int
	fs               *faultfs.MemFS
}

// runScenario plays batches on fs until it is through or something fails.
func runScenario(fs *faultfs.MemFS, seed uint64, batches int) (crashRun, error) {
	run := crashRun{fs: fs, states: []string{""}}
	g := newGenerator(seed, 5, 1200)
	l, err := raftlog.Open("log", manual(fs))
	if err != nil {
		return run, err
	}
	var b raftlog.Batch
	for i := range batches {
		b.Clear()
		g.fill(&b)
		run.states = append(run.states, g.m.String())
		sync := g.rng.IntN(3) > 0
		if err := l.Write(&b, sync); err != nil {
			return run, err
		}
		run.written++
		if sync {
			run.durable = run.written
		}
		if i%5 == 4 {
			if _, err := l.Reclaim(4 << 10); err != nil {
				return run, err
			}
		}
		if i%20 == 19 {
			if err := l.Close(); err != nil {
				return run, err
			}
			if l, err = raftlog.Open("log", manual(fs)); err != nil {
				return run, err
			}
			run.durable = run.written
		}
	}
	return run, l.Close()
}

// verifyAfterCrash opens what a crash left: it must be the state after some batch, not before the
// last durable one and not beyond the last begun.
func verifyAfterCrash(run crashRun, fs *faultfs.MemFS) error {
	l, err := raftlog.Open("log", manual(fs))
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	for _, id := range l.Regions() {
		if err := l.Damaged(id); err != nil {
			return fmt.Errorf("damaged: %w", err)
		}
	}
	got, err := dumpLog(l)
	if err != nil {
		return err
	}
	at := -1
	for i := run.durable; i < len(run.states); i++ {
		if run.states[i] == got {
			at = i
		}
	}
	if at < 0 {
		return fmt.Errorf("content is not that of any batch in [%d, %d):\n%s\ndurable was\n%s",
			run.durable, len(run.states), got, run.states[run.durable])
	}
	// It must be usable: write, close, open again.
	g := newGenerator(1, 1, 100)
	var b raftlog.Batch
	b.Delete(77)
	g.reset(&b, 77, 10)
	g.append(&b, 77, g.m[77])
	want := g.m[77].String()
	if err := l.Write(&b, true); err != nil {
		return fmt.Errorf("write after recovery: %w", err)
	}
	if err := l.Close(); err != nil {
		return err
	}
	if l, err = raftlog.Open("log", manual(fs)); err != nil {
		return fmt.Errorf("second open: %w", err)
	}
	defer func() { _ = l.Close() }()
	again, err := dumpLog(l)
	if err != nil {
		return err
	}
	if again != got+"77: "+want+"\n" {
		return fmt.Errorf("after writing on and reopening:\n%s\nwas\n%s", again, got)
	}
	return nil
}

// TestCrashAtEveryOperation stops the world at each operation on the file system, and checks what
// the death of the process, a power loss, and a power loss that tears pages leave.
func TestCrashAtEveryOperation(t *testing.T) {
	seeds, batches := uint64(3), 60
	if *long {
		seeds, batches = 60, 150
	}
	points := 0
	for seed := range seeds {
		var ctl faultfs.Controller
		if _, err := runScenario(faultfs.NewMemFS(&ctl), seed, batches); err != nil {
			t.Fatalf("seed %d without faults: %v", seed, err)
		}
		for k := int64(1); k <= ctl.Count()+1; k++ {
			var ctl faultfs.Controller
			ctl.Set(faultfs.CrashAt(k))
			run, err := runScenario(faultfs.NewMemFS(&ctl), seed, batches)
			if err != nil && !errors.Is(err, faultfs.ErrCrashed) {
				t.Fatalf("seed %d, operation %d: %v", seed, k, err)
			}
			for _, loss := range []faultfs.Loss{
				faultfs.KeepAll, faultfs.DropAll, faultfs.Torn, faultfs.Torn,
			} {
				points++
				rng := rand.New(rand.NewPCG(seed, uint64(k)*8+uint64(points%4)))
				if err := verifyAfterCrash(run, run.fs.Crash(loss, rng, nil)); err != nil {
					t.Fatalf("seed %d, operation %d, loss %d: %v", seed, k, loss, err)
				}
			}
		}
	}
	t.Logf("%d crash points", points)
}

// TestCrashDuringRecovery crashes a second time, at each operation of the Open after a crash.
func TestCrashDuringRecovery(t *testing.T) {
	const seed, batches = 2, 60
	step := int64(9)
	if *long {
		step = 1
	}
	var ctl faultfs.Controller
	if _, err := runScenario(faultfs.NewMemFS(&ctl), seed, batches); err != nil {
		t.Fatal(err)
	}
	points := 0
	for k := int64(1); k <= ctl.Count(); k += step {
		var ctl faultfs.Controller
		ctl.Set(faultfs.CrashAt(k))
		run, _ := runScenario(faultfs.NewMemFS(&ctl), seed, batches)
		rng := rand.New(rand.NewPCG(seed, uint64(k)))
		for _, loss := range []faultfs.Loss{faultfs.KeepAll, faultfs.Torn} {
			for k2 := int64(1); ; k2++ {
				var ctl faultfs.Controller
				ctl.Set(faultfs.CrashAt(k2))
				first := run.fs.Crash(loss, rand.New(rand.NewPCG(seed, uint64(k))), &ctl)
				l, err := raftlog.Open("log", manual(first))
				if err == nil {
					err = l.Close()
				}
				// What the first recovery may have cut or kept, it must not have made worse.
				for _, loss := range []faultfs.Loss{
					faultfs.KeepAll, faultfs.DropAll, faultfs.Torn,
				} {
					points++
					if err := verifyAfterCrash(run, first.Crash(loss, rng, nil)); err != nil {
						t.Fatalf("operation %d, then %d, loss %d: %v", k, k2, loss, err)
					}
				}
				if err == nil {
					break
				}
			}
		}
	}
	t.Logf("%d crash points", points)
}

// TestFailedOperationIsFinal makes each operation fail once, the rest not: the log must answer with
// an error from then on, and what is on the disk must be as after a crash.
func TestFailedOperationIsFinal(t *testing.T) {
	const seed, batches = 3, 60
	var ctl faultfs.Controller
	if _, err := runScenario(faultfs.NewMemFS(&ctl), seed, batches); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for k := int64(1); k <= ctl.Count(); k++ {
		var ctl faultfs.Controller
		ctl.Set(faultfs.FailAt(k, faultfs.ErrNoSpace))
		run, err := runScenario(faultfs.NewMemFS(&ctl), seed, batches)
		if err != nil {
			if !errors.Is(err, faultfs.ErrNoSpace) {
				t.Fatalf("operation %d: %v", k, err)
			}
			failed++
		}
		rng := rand.New(rand.NewPCG(seed, uint64(k)))
		for _, loss := range []faultfs.Loss{faultfs.KeepAll, faultfs.DropAll, faultfs.Torn} {
			if err := verifyAfterCrash(run, run.fs.Crash(loss, rng, nil)); err != nil {
				t.Fatalf("operation %d, loss %d: %v", k, loss, err)
			}
		}
	}
	t.Logf("%d operations, %d of them fatal", ctl.Count(), failed)
}
