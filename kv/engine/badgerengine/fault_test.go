package badgerengine_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/badgerengine"
	"github.com/tinykv/tinykv/kv/engine/enginetest"
)

// TestPowerLoss copies the files of a running engine and takes from the copy what was written to
// the value log after the last sync, in whole or from some page on: what remains is whole batches,
// a prefix, and not less than what was synced.
//
// The memtables are large here, so that no table is written meanwhile: what badger does when a
// batch crosses from one memtable to the next is the gap described in the package comment.
func TestPowerLoss(t *testing.T) {
	rounds := uint64(6)
	if *long {
		rounds = 300
	}
	short := 0
	for seed := range rounds {
		rng := rand.New(rand.NewPCG(seed, 9))
		dir := filepath.Join(t.TempDir(), "db")
		opts := engine.Options{Dir: dir, CacheBytes: 1 << 20, MemTableBytes: 8 << 20}
		e, err := badgerengine.Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		b := e.NewBatch()
		n, synced, syncedEnd := 20+rng.IntN(150), 0, int64(0)
		log := filepath.Join(dir, "000000.vlog")
		for i := 1; i <= n; i++ {
			enginetest.NumberedBatch(b, i)
			sync := rng.IntN(20) == 0
			if err := e.Write(b, sync); err != nil {
				t.Fatal(err)
			}
			if sync {
				synced, syncedEnd = i, usedBytes(t, log)
			}
		}
		left := filepath.Join(t.TempDir(), "db")
		if err := enginetest.CopyDir(dir, left); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		forget(t, filepath.Join(left, "000000.vlog"), syncedEnd, rng)
		if err := os.Remove(filepath.Join(left, "LOCK")); err != nil &&
			!errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		opts.Dir = left
		again, err := badgerengine.Open(opts)
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
		// What was cut off must not come back when the log grows over it again.
		for i := got + 1; i <= n; i++ {
			enginetest.NumberedBatch(b, i)
			if err := again.Write(b, i == n); err != nil {
				t.Fatal(err)
			}
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

func usedBytes(t *testing.T, name string) int64 {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return int64(enginetest.NonZero(data))
}

// forget zeroes random pages of the file behind what was synced.
func forget(t *testing.T, name string, from int64, rng *rand.Rand) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	percent := rng.IntN(5) * 25
	for off := from; off < int64(len(data)); off = off&^4095 + 4096 {
		if rng.IntN(100) >= percent {
			clear(data[off:min(off&^4095+4096, int64(len(data)))])
		}
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestSyncedTailMissing: a value log that ends before what was synced is refused.
func TestSyncedTailMissing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "db")
	opts := engine.Options{Dir: dir, CacheBytes: 1 << 20, MemTableBytes: 8 << 20}
	e, err := badgerengine.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	b := e.NewBatch()
	for i := 1; i <= 10; i++ {
		enginetest.NumberedBatch(b, i)
		if err := e.Write(b, true); err != nil {
			t.Fatal(err)
		}
	}
	left := filepath.Join(t.TempDir(), "db")
	if err := enginetest.CopyDir(dir, left); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(left, "000000.vlog")
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	data[enginetest.NonZero(data)-1] ^= 1
	if err := os.WriteFile(log, data, 0o600); err != nil {
		t.Fatal(err)
	}
	opts.Dir = left
	if _, err := badgerengine.Open(opts); !errors.Is(err, engine.ErrCorrupt) {
		t.Fatalf("open without the last synced batch: %v", err)
	}
}
