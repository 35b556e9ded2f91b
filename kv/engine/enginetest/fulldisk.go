package enginetest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tinykv/tinykv/kv/engine"
)

// hangTimeout is how long a write may take before it counts as hanging.
const hangTimeout = 20 * time.Second

// RunFullDisk fills a small file system that is really there: the engine must answer with an error,
// not hang and not end the process, and what was synced must be found in a copy of the files.
func RunFullDisk(t *testing.T, f Factory) {
	if !InChild(t) {
		return
	}
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
	e, err := f.Open(filepath.Join(mnt, "db"))
	must(t, err)
	synced, acked, failure := fillUp(t, e)
	t.Logf("%s: %d batches acknowledged, %d synced, then: %v", f.Name, acked, synced, failure)
	// A failed engine answers at once, with an error.
	b := e.NewBatch()
	NumberedBatch(b, acked+2)
	if err := within(t, func() error { return e.Write(b, false) }); err == nil {
		t.Fatal("a write after the failure succeeded")
	}
	saved := copyAtRest(t, filepath.Join(mnt, "db"))
	must(t, removeLocks(saved))
	again, err := f.Open(saved)
	if err != nil {
		t.Fatalf("open after the disk was full: %v", err)
	}
	if got := CheckNumbered(t, again); got < synced {
		t.Fatalf("%d batches, but %d were synced", got, synced)
	}
	must(t, again.Close())
}

// copyAtRest copies a directory from which a failed engine may still be removing files: again,
// until none came or went meanwhile.
func copyAtRest(t *testing.T, dir string) string {
	t.Helper()
	var err error
	for range 100 {
		before, berr := os.ReadDir(dir)
		must(t, berr)
		saved := filepath.Join(t.TempDir(), "db")
		if err = CopyDir(dir, saved); err != nil && !errors.Is(err, os.ErrNotExist) {
			break
		}
		after, aerr := os.ReadDir(dir)
		must(t, aerr)
		if err == nil &&
			slices.EqualFunc(before, after, func(a, b os.DirEntry) bool {
				return a.Name() == b.Name()
			}) {
			return saved
		}
		time.Sleep(10 * time.Millisecond) // the engine's own goroutines are still at it
	}
	t.Fatalf("copy of %s: %v", dir, err)
	return ""
}

// fillUp writes until something goes wrong.
func fillUp(t *testing.T, e engine.Engine) (synced, acked int, err error) {
	t.Helper()
	b := e.NewBatch()
	for i := 1; i < 100_000; i++ {
		NumberedBatch(b, i)
		sync := i%10 == 0
		if err = within(t, func() error { return e.Write(b, sync) }); err != nil {
			return synced, acked, err
		}
		acked = i
		if sync {
			synced = i
		}
	}
	t.Fatal("the disk never got full")
	return 0, 0, nil
}

func within(t *testing.T, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(hangTimeout):
		t.Fatal("hangs")
		return nil
	}
}

// removeLocks: the files were copied from a process that still runs.
func removeLocks(dir string) error {
	err := os.Remove(filepath.Join(dir, "LOCK"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
