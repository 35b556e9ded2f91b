package pebbleengine_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/enginetest"
	"github.com/tinykv/tinykv/kv/engine/pebbleengine"
)

// failAt answers an error to the k-th operation that writes, or to it and all that follow.
type failAt struct {
	n, k    atomic.Int64
	err     error
	forever bool
	last    atomic.Value // string: the operation that failed
}

func (f *failAt) String() string { return "fail at" }

func (f *failAt) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
		return nil
	}
	n, k := f.n.Add(1), f.k.Load()
	if k == 0 || n < k || n > k && !f.forever {
		return nil
	}
	if n == k {
		f.last.Store(fmt.Sprintf("%v %s", op.Kind, op.Path))
	}
	return f.err
}

// writeOn writes numbered batches until one fails, at most n, and every twentieth with a sync.
func writeOn(t *testing.T, e engine.Engine, n int) (synced int, err error) {
	b := e.NewBatch()
	for i := 1; i <= n; i++ {
		enginetest.NumberedBatch(b, i)
		b.Put(fmt.Appendf(nil, "zz%06d", i), make([]byte, 4000))
		sync := i%20 == 0
		done := make(chan error, 1)
		go func() { done <- e.Write(b, sync) }()
		select {
		case err := <-done:
			if err != nil {
				return synced, err
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a write hangs")
		}
		if sync {
			synced = i
		}
	}
	return synced, nil
}

// TestEveryWriteFails lets the k-th operation of the file system that writes fail, with logs that
// rotate and memtables that are flushed. Whatever pebble makes of it, the engine answers with the
// error and reports it, or has no use for the operation; the process lives, and what was synced is
// there.
func TestEveryWriteFails(t *testing.T) {
	if !enginetest.InChild(t) {
		return
	}
	const batches = 260 // about a MiB: several logs
	run := func(f *failAt) (mem *crashMem, synced int, reported chan error, err error) {
		mem = newCrashMem()
		opts := options()
		reported = make(chan error, 1)
		opts.OnFailure = func(err error) { reported <- err }
		e, err := pebbleengine.OpenFS(opts, errorfs.Wrap(mem, f))
		if err != nil {
			return mem, 0, reported, err
		}
		synced, err = writeOn(t, e, batches)
		if err != nil {
			_ = e.Close()
			return mem, synced, reported, err
		}
		return mem, synced, reported, e.Close()
	}
	count := &failAt{}
	if _, _, _, err := run(count); err != nil {
		t.Fatal(err)
	}
	step := int64(7)
	if *long {
		step = 1
	}
	failed, points := 0, 0
	for _, forever := range []bool{false, true} {
		for k := int64(1); k <= count.n.Load(); k += step {
			f := &failAt{err: syscall.EIO, forever: forever}
			if forever {
				f.err = syscall.ENOSPC
			}
			f.k.Store(k)
			mem, synced, reported, err := run(f)
			points++
			op, _ := f.last.Load().(string)
			if err != nil {
				failed++
				if !errors.Is(err, f.err) {
					t.Fatalf("operation %d, %s: %v", k, op, err)
				}
				// another goroutine may be about to report the error that this one has
				wait := 30 * time.Second
				if synced == 0 || synced == batches {
					// Open or Close may have returned it, after which there is no engine to report
					// anything
					wait = 0
				}
				select {
				case got := <-reported:
					if !errors.Is(got, f.err) {
						t.Fatalf("operation %d, %s: reported %v", k, op, got)
					}
				case <-time.After(wait):
					if wait > 0 {
						t.Fatalf("operation %d, %s: %v was not reported", k, op, err)
					}
				}
			}
			again, err := pebbleengine.OpenFS(options(), mem.CrashClone(vfs.CrashCloneCfg{}))
			if err != nil {
				t.Fatalf("operation %d, %s: open: %v", k, op, err)
			}
			if got := enginetest.CheckNumbered(t, again); got < synced {
				t.Fatalf("operation %d, %s: %d batches, %d were synced", k, op, got, synced)
			}
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d points of %d operations, %d of them ended the engine", points, count.n.Load(),
		failed)
	if failed < points/4 {
		t.Error("too few failed: the test does not bite")
	}
}
