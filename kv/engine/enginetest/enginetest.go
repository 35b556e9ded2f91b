// Package enginetest is the suite that every engine backend has to pass. It is imported by tests
// only.
package enginetest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/tinykv/tinykv/kv/engine"
)

// Factory opens an engine in a directory, with small tables and caches, so that little data
// reaches all parts of it.
type Factory struct {
	Name string
	// Volatile engines keep nothing over Close.
	Volatile bool
	Open     func(dir string) (engine.Engine, error)
}

func (f Factory) open(t testing.TB, dir string) engine.Engine {
	t.Helper()
	e, err := f.Open(dir)
	if err != nil {
		t.Fatalf("open %s: %v", f.Name, err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Run runs the conformance suite.
func Run(t *testing.T, f Factory) {
	t.Run("PutGetDelete", f.testPutGetDelete)
	t.Run("BatchOrder", f.testBatchOrder)
	t.Run("BatchCopiesItsArguments", f.testBatchCopies)
	t.Run("DeleteRange", f.testDeleteRange)
	t.Run("Iterator", f.testIterator)
	t.Run("IteratorMoves", f.testIteratorMoves)
	t.Run("AwkwardKeys", f.testAwkwardKeys)
	t.Run("Snapshot", f.testSnapshot)
	t.Run("ClearRange", f.testClearRange)
	t.Run("BigBatchIsAtomic", f.testBigBatch)
	t.Run("ConcurrentWriters", f.testConcurrentWriters)
	t.Run("Sizes", f.testSizes)
	t.Run("Closed", f.testClosed)
	if !f.Volatile {
		t.Run("Reopen", f.testReopen)
	}
}

func put(t testing.TB, e engine.Engine, kv ...string) {
	t.Helper()
	b := e.NewBatch()
	for i := 0; i < len(kv); i += 2 {
		b.Put([]byte(kv[i]), []byte(kv[i+1]))
	}
	must(t, e.Write(b, false))
}

type getter interface {
	Get(key []byte) ([]byte, bool, error)
}

func wantValue(t testing.TB, g getter, key, want string) {
	t.Helper()
	v, ok, err := g.Get([]byte(key))
	must(t, err)
	if !ok || string(v) != want {
		t.Fatalf("get %q: %q %v, want %q", key, v, ok, want)
	}
}

func wantAbsent(t testing.TB, g getter, key string) {
	t.Helper()
	v, ok, err := g.Get([]byte(key))
	must(t, err)
	if ok {
		t.Fatalf("get %q: %q, want nothing", key, v)
	}
}

func (f Factory) testPutGetDelete(t *testing.T) {
	e := f.open(t, t.TempDir())
	put(t, e, "a", "1", "b", "", "c", "3")
	wantValue(t, e, "a", "1")
	wantValue(t, e, "b", "") // an empty value is a value
	wantAbsent(t, e, "d")
	b := e.NewBatch()
	b.Delete([]byte("a"))
	b.Delete([]byte("never there"))
	b.Put([]byte("c"), []byte("4"))
	must(t, e.Write(b, true))
	wantAbsent(t, e, "a")
	wantValue(t, e, "c", "4")
	must(t, e.Sync())
	must(t, e.Write(e.NewBatch(), false))
	must(t, e.Write(e.NewBatch(), true))
}

func (f Factory) testBatchOrder(t *testing.T) {
	e := f.open(t, t.TempDir())
	b := e.NewBatch()
	b.Put([]byte("k"), []byte("1"))
	b.Delete([]byte("k"))
	b.Put([]byte("k"), []byte("2"))
	b.Put([]byte("gone"), []byte("1"))
	b.Delete([]byte("gone"))
	b.DeleteRange([]byte("k"), []byte("l"))
	b.Put([]byte("k2"), []byte("after"))
	if b.Len() != 7 || b.Size() == 0 {
		t.Fatalf("len %d size %d", b.Len(), b.Size())
	}
	must(t, e.Write(b, false))
	wantAbsent(t, e, "k")
	wantAbsent(t, e, "gone")
	wantValue(t, e, "k2", "after")
	b.Reset()
	if b.Len() != 0 {
		t.Fatalf("len %d after reset", b.Len())
	}
	b.Put([]byte("again"), []byte("1"))
	must(t, e.Write(b, false))
	wantValue(t, e, "again", "1")
	wantValue(t, e, "k2", "after")
}

func (f Factory) testBatchCopies(t *testing.T) {
	e := f.open(t, t.TempDir())
	b := e.NewBatch()
	key, value := []byte("key"), []byte("value")
	b.Put(key, value)
	copy(key, "xxx")
	copy(value, "xxxxx")
	must(t, e.Write(b, false))
	wantValue(t, e, "key", "value")
	v, _, err := e.Get([]byte("key"))
	must(t, err)
	v[0] = 'x' // the caller owns what Get returns
	wantValue(t, e, "key", "value")
}

func (f Factory) testDeleteRange(t *testing.T) {
	e := f.open(t, t.TempDir())
	for i := range 100 {
		put(t, e, fmt.Sprintf("k%02d", i), "v")
	}
	b := e.NewBatch()
	b.Put([]byte("k50x"), []byte("new"))
	b.DeleteRange([]byte("k10"), []byte("k90"))
	b.DeleteRange([]byte("z"), []byte("a")) // empty
	b.Put([]byte("k60"), []byte("put after"))
	must(t, e.Write(b, false))
	wantValue(t, e, "k09", "v")
	wantAbsent(t, e, "k10")
	wantAbsent(t, e, "k50x")
	wantAbsent(t, e, "k89")
	wantValue(t, e, "k60", "put after")
	wantValue(t, e, "k90", "v")
	if got := dump(t, e, nil, nil); len(got) != 21 {
		t.Fatalf("%d keys left, want 21: %q", len(got), got)
	}
}

// dump lists "key=value" within the bounds.
func dump(t testing.TB, e engine.Engine, lower, upper []byte) []string {
	t.Helper()
	s := e.NewSnapshot()
	defer s.Close()
	return dumpSnapshot(t, s, lower, upper)
}

func dumpSnapshot(t testing.TB, s engine.Snapshot, lower, upper []byte) []string {
	t.Helper()
	it := s.NewIterator(lower, upper)
	defer it.Close()
	var got []string
	for it.First(); it.Valid(); it.Next() {
		got = append(got, string(it.Key())+"="+string(it.Value()))
	}
	must(t, it.Err())
	return got
}

func (f Factory) testIterator(t *testing.T) {
	e := f.open(t, t.TempDir())
	put(t, e, "a", "1", "b", "2", "c", "3", "d", "4", "e", "5")
	b := e.NewBatch()
	b.Delete([]byte("c"))
	must(t, e.Write(b, false))
	for _, c := range []struct{ lower, upper, want string }{
		{"", "", "[a=1 b=2 d=4 e=5]"},
		{"b", "", "[b=2 d=4 e=5]"},
		{"", "d", "[a=1 b=2]"},
		{"b", "e", "[b=2 d=4]"},
		{"bb", "dd", "[d=4]"},
		{"c", "d", "[]"},
		{"x", "z", "[]"},
		{"d", "b", "[]"},
	} {
		if got := fmt.Sprint(dump(t, e, bound(c.lower), bound(c.upper))); got != c.want {
			t.Errorf("[%s, %s): %s, want %s", c.lower, c.upper, got, c.want)
		}
	}
}

func bound(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

func (f Factory) testIteratorMoves(t *testing.T) {
	e := f.open(t, t.TempDir())
	put(t, e, "a", "1", "b", "2", "c", "3", "d", "4", "e", "5")
	s := e.NewSnapshot()
	defer s.Close()
	it := s.NewIterator([]byte("b"), []byte("e"))
	defer it.Close()
	at := func(want string) {
		t.Helper()
		got := "end"
		if it.Valid() {
			got = string(it.Key()) + string(it.Value())
		}
		if got != want {
			t.Fatalf("at %s, want %s", got, want)
		}
		must(t, it.Err())
	}
	at("end") // not positioned yet
	it.Last()
	at("d4")
	it.Prev()
	at("c3")
	it.Next()
	at("d4")
	it.Next()
	at("end")
	it.First()
	at("b2")
	it.Prev()
	at("end")
	it.SeekGE([]byte("a"))
	at("b2")
	it.SeekGE([]byte("bb"))
	at("c3")
	it.Prev()
	at("b2")
	it.SeekLT([]byte("d"))
	at("c3")
	it.Next()
	at("d4")
	it.SeekLT([]byte("z"))
	at("d4")
	it.SeekLT([]byte("b"))
	at("end")
	it.SeekGE([]byte("e"))
	at("end")
	it.SeekGE([]byte("c"))
	at("c3")
}

// testAwkwardKeys: every first byte, binary keys, a key that is another's prefix.
func (f Factory) testAwkwardKeys(t *testing.T) {
	e := f.open(t, t.TempDir())
	b := e.NewBatch()
	n := 0
	for i := range 256 {
		for _, tail := range []string{"", "\x00", "\xff\xff", "!"} {
			key := engine.DataKey(engine.CFDefault, append([]byte{byte(i)}, tail...))
			b.Put(key, key)
			n++
		}
	}
	b.Put(engine.DataKey(engine.CFDefault, nil), []byte("empty user key"))
	b.Put([]byte{engine.LocalPrefix, 1}, []byte("local"))
	must(t, e.Write(b, false))
	s := e.NewSnapshot()
	defer s.Close()
	it := s.NewIterator(engine.DataKey(engine.CFDefault, nil),
		engine.DataEndKey(engine.CFDefault, nil))
	defer it.Close()
	var last []byte
	got := 0
	for it.First(); it.Valid(); it.Next() {
		if last != nil && bytes.Compare(last, it.Key()) >= 0 {
			t.Fatalf("%x after %x", it.Key(), last)
		}
		last = append(last[:0], it.Key()...)
		got++
	}
	must(t, it.Err())
	if got != n+1 {
		t.Fatalf("%d keys, want %d", got, n+1)
	}
}

func (f Factory) testSnapshot(t *testing.T) {
	e := f.open(t, t.TempDir())
	put(t, e, "a", "1", "b", "2")
	s := e.NewSnapshot()
	put(t, e, "a", "new", "c", "3")
	b := e.NewBatch()
	b.DeleteRange([]byte("b"), []byte("c"))
	must(t, e.Write(b, true))
	wantValue(t, s, "a", "1")
	wantValue(t, s, "b", "2")
	wantAbsent(t, s, "c")
	if got := fmt.Sprint(dumpSnapshot(t, s, nil, nil)); got != "[a=1 b=2]" {
		t.Fatalf("snapshot: %s", got)
	}
	s.Close()
	if got := fmt.Sprint(dump(t, e, nil, nil)); got != "[a=new c=3]" {
		t.Fatalf("engine: %s", got)
	}
}

func (f Factory) testClearRange(t *testing.T) {
	e := f.open(t, t.TempDir())
	const n = 10000
	fill(t, e, n, 20)
	must(t, engine.ClearRange(e, []byte("key000100"), []byte("key009900")))
	if got := len(dump(t, e, nil, nil)); got != 200 {
		t.Fatalf("%d keys left, want 200", got)
	}
	must(t, engine.ClearRange(e, []byte("x"), []byte("y")))
}

func fill(t testing.TB, e engine.Engine, n, size int) {
	t.Helper()
	b := e.NewBatch()
	value := bytes.Repeat([]byte("v"), size)
	for i := range n {
		b.Put(fmt.Appendf(nil, "key%06d", i), value)
		if b.Size() > 256<<10 {
			must(t, e.Write(b, false))
			b.Reset()
		}
	}
	must(t, e.Write(b, false))
}

// testBigBatch writes a batch of several memtables: it is applied as a whole or refused as a whole.
func (f Factory) testBigBatch(t *testing.T) {
	dir := t.TempDir()
	e := f.open(t, dir)
	b := e.NewBatch()
	value := bytes.Repeat([]byte("x"), 4096)
	const n = 2000
	for i := range n {
		b.Put(fmt.Appendf(nil, "key%06d", i), value)
	}
	err := e.Write(b, true)
	got := len(dump(t, e, nil, nil))
	if err == nil && got != n || err != nil && got != 0 {
		t.Fatalf("%d of %d keys, error %v", got, n, err)
	}
}

func (f Factory) testConcurrentWriters(t *testing.T) {
	e := f.open(t, t.TempDir())
	var wg sync.WaitGroup
	const writers, batches = 8, 50
	errs := make([]error, writers)
	for w := range writers {
		wg.Go(func() {
			b := e.NewBatch()
			for i := range batches {
				b.Reset()
				b.Put(fmt.Appendf(nil, "w%d/%03d", w, i), []byte("v"))
				b.Put(fmt.Appendf(nil, "last%d", w), fmt.Append(nil, i))
				if errs[w] = e.Write(b, i%10 == 0); errs[w] != nil {
					return
				}
				// What was written is visible to the one who wrote it.
				v, ok, err := e.Get(fmt.Appendf(nil, "last%d", w))
				if err != nil || !ok || string(v) != fmt.Sprint(i) {
					errs[w] = fmt.Errorf("after write %d: %q %v %w", i, v, ok, err)
					return
				}
			}
		})
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	if got := len(dump(t, e, []byte("w"), []byte("x"))); got != writers*batches {
		t.Fatalf("%d keys, want %d", got, writers*batches)
	}
}

func (f Factory) testSizes(t *testing.T) {
	e := f.open(t, t.TempDir())
	fill(t, e, 20000, 100)
	must(t, e.Sync())
	if f.Volatile {
		return
	}
	n, err := e.DiskUsage()
	must(t, err)
	if n < 10<<10 { // the values compress well
		t.Fatalf("disk usage %d after 2 MB", n)
	}
	if _, err := e.ApproximateSize([]byte("key0"), []byte("key9")); err != nil {
		t.Fatal(err)
	}
}

func (f Factory) testClosed(t *testing.T) {
	e := f.open(t, t.TempDir())
	put(t, e, "a", "1")
	must(t, e.Close())
	must(t, e.Close())
	if _, _, err := e.Get([]byte("a")); !errors.Is(err, engine.ErrClosed) {
		t.Fatalf("get: %v", err)
	}
	if err := e.Sync(); !errors.Is(err, engine.ErrClosed) {
		t.Fatalf("sync: %v", err)
	}
	s := e.NewSnapshot()
	defer s.Close()
	if _, _, err := s.Get([]byte("a")); !errors.Is(err, engine.ErrClosed) {
		t.Fatalf("snapshot: %v", err)
	}
}

func (f Factory) testReopen(t *testing.T) {
	dir := t.TempDir()
	e := f.open(t, dir)
	fill(t, e, 5000, 100)
	b := e.NewBatch()
	b.DeleteRange([]byte("key001000"), []byte("key002000"))
	must(t, e.Write(b, false))
	want := dump(t, e, nil, nil)
	for range 3 {
		must(t, e.Close())
		e = f.open(t, dir)
		got := dump(t, e, nil, nil)
		if len(got) != len(want) || len(got) != 4000 {
			t.Fatalf("%d keys after reopening, want %d", len(got), len(want))
		}
		put(t, e, "key000000", "new")
	}
	wantValue(t, e, "key000000", "new")
}
