package enginefault_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/enginefault"
	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/faultfs"
)

func write(e engine.Engine, i int, sync bool) error {
	b := e.NewBatch()
	b.Put([]byte("k"), fmt.Append(nil, i))
	b.Put(fmt.Appendf(nil, "k%d", i), []byte("v"))
	return e.Write(b, sync)
}

func last(t *testing.T, e engine.Engine) int {
	t.Helper()
	v, ok, err := e.Get([]byte("k"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if ok {
		if _, err := fmt.Sscan(string(v), &n); err != nil {
			t.Fatal(err)
		}
	}
	for i := 1; i <= n+1; i++ {
		if _, ok, _ := e.Get(fmt.Appendf(nil, "k%d", i)); ok != (i <= n) {
			t.Fatalf("%d is the last write, but %d is there: %v", n, i, ok)
		}
	}
	return n
}

// TestCrashKeepsAPrefix: a crash leaves at least what was synced and at most what was written, and
// always a prefix of whole batches.
func TestCrashKeepsAPrefix(t *testing.T) {
	mem := memengine.New()
	e := enginefault.Wrap(mem, nil)
	seen := map[int]bool{}
	for i := 1; i <= 30; i++ {
		if err := write(e, i, i == 10); err != nil {
			t.Fatal(err)
		}
	}
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 0))
		n := last(t, mem.Crash(faultfs.Torn, rng))
		if n < 10 || n > 30 {
			t.Fatalf("last write %d", n)
		}
		seen[n] = true
	}
	if len(seen) < 10 {
		t.Fatalf("only %d outcomes", len(seen))
	}
	if n := last(t, mem.Crash(faultfs.DropAll, nil)); n != 10 {
		t.Fatalf("last write %d, want 10", n)
	}
	if n := last(t, mem.Crash(faultfs.KeepAll, nil)); n != 30 {
		t.Fatalf("last write %d, want 30", n)
	}
	if err := e.Sync(); err != nil {
		t.Fatal(err)
	}
	if n := last(t, mem.Crash(faultfs.DropAll, nil)); n != 30 {
		t.Fatalf("last write %d, want 30", n)
	}
}

func TestCrashAt(t *testing.T) {
	ctl := &faultfs.Controller{}
	mem := memengine.New()
	e := enginefault.Wrap(mem, ctl)
	ctl.Set(faultfs.CrashAt(5))
	var err error
	n := 0
	for err == nil {
		n++
		err = write(e, n, false)
	}
	if !errors.Is(err, faultfs.ErrCrashed) || n != 5 {
		t.Fatalf("write %d: %v", n, err)
	}
	if got := last(t, mem.Crash(faultfs.KeepAll, nil)); got != 4 {
		t.Fatalf("last write %d", got)
	}
}
