package pebbleengine_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/enginetest"
	"github.com/tinykv/tinykv/kv/engine/pebbleengine"
)

func options() engine.Options {
	return engine.Options{Dir: "a/b/db", CacheBytes: 1 << 20, MemTableBytes: 256 << 10}
}

// crashMem is a file system in memory that can be cloned as a crash would leave it, also while an
// engine uses it. [vfs.MemFS] takes its lock for clones twice in Link and in ReuseForWrite: a clone
// that begins between the two and the operation would wait for each other.
type crashMem struct {
	*vfs.MemFS
	twice sync.RWMutex // read-locked by the operations that take MemFS's lock twice
}

func newCrashMem() *crashMem { return &crashMem{MemFS: vfs.NewCrashableMem()} }

func (m *crashMem) Link(oldname, newname string) error {
	m.twice.RLock()
	defer m.twice.RUnlock()
	return m.MemFS.Link(oldname, newname)
}

func (m *crashMem) ReuseForWrite(
	oldname, newname string, category vfs.DiskWriteCategory,
) (vfs.File, error) {
	m.twice.RLock()
	defer m.twice.RUnlock()
	return m.MemFS.ReuseForWrite(oldname, newname, category)
}

func (m *crashMem) CrashClone(cfg vfs.CrashCloneCfg) *vfs.MemFS {
	m.twice.Lock()
	defer m.twice.Unlock()
	return m.MemFS.CrashClone(cfg)
}

// TestCloneMeetsDoubleLock clones while other goroutines link and reuse files.
func TestCloneMeetsDoubleLock(t *testing.T) {
	mem := newCrashMem()
	f, err := mem.Create("f", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	// Ends with its last file.
	go func() {
		for i := range 2000 {
			if err := mem.Link("f", "g"); err != nil {
				done <- err
				return
			}
			f, err := mem.ReuseForWrite("g", fmt.Sprint("h", i), vfs.WriteCategoryUnspecified)
			if err != nil {
				done <- err
				return
			}
			_ = f.Close()
		}
		close(done)
	}()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
			mem.CrashClone(vfs.CrashCloneCfg{})
		}
	}
}

// TestPowerLoss drops what was not synced, in whole or in part: what remains is whole batches, a
// prefix, and not less than what was synced.
func TestPowerLoss(t *testing.T) {
	rounds := uint64(60)
	if *long {
		rounds = 2000
	}
	short := 0
	for seed := range rounds {
		rng := rand.New(rand.NewPCG(seed, 9))
		mem := newCrashMem()
		e, err := pebbleengine.OpenFS(options(), mem)
		if err != nil {
			t.Fatal(err)
		}
		b := e.NewBatch()
		n, synced := 20+rng.IntN(150), 0
		for i := 1; i <= n; i++ {
			enginetest.NumberedBatch(b, i)
			sync := rng.IntN(20) == 0
			if err := e.Write(b, sync); err != nil {
				t.Fatal(err)
			}
			if sync {
				synced = i
			}
		}
		left := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: int(seed%5) * 25, RNG: rng})
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		again, err := pebbleengine.OpenFS(options(), left)
		if err != nil {
			t.Fatalf("seed %d: open after power loss: %v", seed, err)
		}
		got := enginetest.CheckNumbered(t, again)
		if got < synced || got > n {
			t.Fatalf("seed %d: %d batches, synced %d, written %d", seed, got, synced, n)
		}
		if got < n {
			short++
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d power losses, %d of them lost unsynced batches, 0 lost synced ones", rounds, short)
	if short == 0 {
		t.Error("nothing was ever lost: the test does not bite")
	}
}

// diskFull answers ENOSPC to everything that needs space, once switched on.
type diskFull struct{ on atomic.Bool }

func (d *diskFull) String() string { return "disk full" }

func (d *diskFull) MaybeError(op errorfs.Op) error {
	if !d.on.Load() {
		return nil
	}
	switch op.Kind {
	case errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFilePreallocate:
		return syscall.ENOSPC
	}
	return nil
}

// TestDiskFull: on a full disk the engine fails, with an error and not by ending the process or
// hanging; what was synced is there when it is opened with space again.
func TestDiskFull(t *testing.T) {
	if !enginetest.InChild(t) {
		return
	}
	mem, full := newCrashMem(), &diskFull{}
	opts := options()
	failed := make(chan error, 1)
	opts.OnFailure = func(err error) { failed <- err }
	e, err := pebbleengine.OpenFS(opts, errorfs.Wrap(mem, full))
	if err != nil {
		t.Fatal(err)
	}
	b := e.NewBatch()
	for i := 1; i <= 20; i++ {
		enginetest.NumberedBatch(b, i)
		if err := e.Write(b, true); err != nil {
			t.Fatal(err)
		}
	}
	full.on.Store(true)
	enginetest.NumberedBatch(b, 21)
	if err := e.Write(b, true); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("write on a full disk: %v", err)
	}
	if err := <-failed; !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("reported: %v", err)
	}
	if err := e.Write(b, false); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the engine did not stay failed: %v", err)
	}
	if _, _, err := e.Get([]byte("zlast")); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("get on a failed engine: %v", err)
	}
	if err := e.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("close of a failed engine: %v", err)
	}
	again, err := pebbleengine.OpenFS(options(), mem.CrashClone(vfs.CrashCloneCfg{}))
	if err != nil {
		t.Fatal(err)
	}
	if got := enginetest.CheckNumbered(t, again); got < 20 {
		t.Fatalf("%d batches, 20 were synced", got)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}
