package syncmark_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tinykv/tinykv/kv/engine/internal/syncmark"
	"github.com/tinykv/tinykv/kv/faultfs"
)

func TestMark(t *testing.T) {
	fs := faultfs.NewMemFS(nil)
	f, err := fs.Create(syncmark.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := fs.SyncDir("."); err != nil {
		t.Fatal(err)
	}
	m := syncmark.Open(f)
	if s := m.State(); s != (syncmark.State{}) {
		t.Fatalf("new mark: %+v", s)
	}
	if err := errors.Join(m.Set(syncmark.State{Commit: 1, Clean: true}, true),
		fs.SyncDir("dir")); err != nil {
		t.Fatal(err)
	}
	for i := uint64(2); i < 50; i++ {
		if err := m.Set(syncmark.State{Commit: i, Position: i * 10}, false); err != nil {
			t.Fatal(err)
		}
		for _, loss := range []faultfs.Loss{faultfs.KeepAll, faultfs.DropAll, faultfs.Torn} {
			left, err := fs.Crash(loss, rand.New(rand.NewPCG(i, 1)), nil).Open(syncmark.Name)
			if err != nil {
				t.Fatal(err)
			}
			// It may say too little, never too much, and never mix two states.
			s := syncmark.Open(left).State()
			old := s == syncmark.State{Commit: 1, Clean: true}
			if !old && (s.Commit < 2 || s.Commit > i || s.Position != s.Commit*10 || s.Clean) {
				t.Fatalf("after %d, loss %d: %+v", i, loss, s)
			}
			if loss == faultfs.KeepAll && s.Commit != i {
				t.Fatalf("after %d: %+v", i, s)
			}
		}
	}
}

// TestGroup: each caller of Do was served by a run that began after the call.
func TestGroup(t *testing.T) {
	var g syncmark.Group
	var written, synced, runs atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				mine := written.Add(1)
				err := g.Do(func() error {
					runs.Add(1)
					synced.Store(written.Load())
					return nil
				})
				if err != nil || synced.Load() < mine {
					t.Errorf("write %d is not covered by %d: %v", mine, synced.Load(), err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d calls, %d runs", written.Load(), runs.Load())
}
