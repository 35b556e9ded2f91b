package enginetest

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/memengine"
)

// RunDifferential plays random changes on the engine and on the in-memory one, and walks both with
// the same random moves: they must agree at every step.
func RunDifferential(t *testing.T, f Factory) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		e, err := f.Open(dir)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = e.Close() }()
		twin := memengine.Open()
		var held []pair
		defer func() {
			for _, p := range held {
				p.close()
			}
		}()
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			switch rapid.IntRange(0, 9).Draw(rt, "step") {
			case 0:
				if f.Volatile {
					continue
				}
				for _, p := range held {
					p.close()
				}
				held = nil
				if err := e.Close(); err != nil {
					rt.Fatal(err)
				}
				if e, err = f.Open(dir); err != nil {
					rt.Fatal(err)
				}
			case 1:
				held = append(held, pair{e.NewSnapshot(), twin.NewSnapshot()})
			case 2, 3:
				now := pair{e.NewSnapshot(), twin.NewSnapshot()}
				now.compare(rt)
				now.close()
			case 4:
				if len(held) > 0 {
					held[rapid.IntRange(0, len(held)-1).Draw(rt, "snapshot")].compare(rt)
				}
			default:
				writeBoth(rt, e, twin)
			}
		}
		now := pair{e.NewSnapshot(), twin.NewSnapshot()}
		defer now.close()
		now.compare(rt)
	})
}

// keys are few, so that changes meet each other; some are prefixes of others.
func drawKey(rt *rapid.T) []byte {
	n := rapid.IntRange(0, 400).Draw(rt, "key")
	key := fmt.Appendf(nil, "zd%03d", n/4)
	return append(key, make([]byte, n%4)...)
}

func writeBoth(rt *rapid.T, e, twin engine.Engine) {
	b, tb := e.NewBatch(), twin.NewBatch()
	for range rapid.IntRange(1, 30).Draw(rt, "changes") {
		switch rapid.IntRange(0, 9).Draw(rt, "change") {
		case 0:
			lo, hi := drawKey(rt), drawKey(rt)
			b.DeleteRange(lo, hi)
			tb.DeleteRange(lo, hi)
		case 1, 2:
			key := drawKey(rt)
			b.Delete(key)
			tb.Delete(key)
		default:
			key := drawKey(rt)
			value := bytes.Repeat([]byte{byte(rapid.IntRange(0, 255).Draw(rt, "byte"))},
				rapid.SampledFrom([]int{0, 1, 100, 5000}).Draw(rt, "length"))
			b.Put(key, value)
			tb.Put(key, value)
		}
	}
	sync := rapid.Bool().Draw(rt, "sync")
	if err := e.Write(b, sync); err != nil {
		rt.Fatal(err)
	}
	if err := twin.Write(tb, sync); err != nil {
		rt.Fatal(err)
	}
}

// pair is one moment of both engines.
type pair struct{ e, twin engine.Snapshot }

func (p pair) close() {
	p.e.Close()
	p.twin.Close()
}

func (p pair) compare(rt *rapid.T) {
	for range 3 {
		key := drawKey(rt)
		v, ok, err := p.e.Get(key)
		tv, tok, _ := p.twin.Get(key)
		if err != nil || ok != tok || !bytes.Equal(v, tv) {
			rt.Fatalf("get %q: %d bytes %v %v, want %d bytes %v", key, len(v), ok, err, len(tv),
				tok)
		}
	}
	var lower, upper []byte
	if rapid.Bool().Draw(rt, "bounded below") {
		lower = drawKey(rt)
	}
	if rapid.Bool().Draw(rt, "bounded above") {
		upper = drawKey(rt)
	}
	it, tit := p.e.NewIterator(lower, upper), p.twin.NewIterator(lower, upper)
	defer it.Close()
	defer tit.Close()
	p.walk(rt, it, tit)
	for it.First(); it.Valid(); it.Next() {
	}
	if it.Err() != nil {
		rt.Fatal(it.Err())
	}
	for it.Last(); it.Valid(); it.Prev() {
	}
	if it.Err() != nil {
		rt.Fatal(it.Err())
	}
	it.First()
	tit.First()
	for tit.Valid() {
		same(rt, "next", it, tit)
		it.Next()
		tit.Next()
	}
	same(rt, "the end", it, tit)
}

func (p pair) walk(rt *rapid.T, it, tit engine.Iterator) {
	for range rapid.IntRange(1, 20).Draw(rt, "moves") {
		move := rapid.IntRange(0, 5).Draw(rt, "move")
		key := drawKey(rt)
		for _, i := range []engine.Iterator{it, tit} {
			switch move {
			case 0:
				i.First()
			case 1:
				i.Last()
			case 2:
				i.Next()
			case 3:
				i.Prev()
			case 4:
				i.SeekGE(key)
			case 5:
				i.SeekLT(key)
			}
		}
		same(rt, fmt.Sprintf("move %d %q", move, key), it, tit)
		if !tit.Valid() {
			// Moving on from behind an end is not defined: stand somewhere first.
			it.First()
			tit.First()
		}
	}
}

func same(rt *rapid.T, what string, it, tit engine.Iterator) {
	if it.Valid() != tit.Valid() || it.Err() != nil {
		rt.Fatalf("%s: valid %v, error %v, want %v", what, it.Valid(), it.Err(), tit.Valid())
	}
	if it.Valid() && (!bytes.Equal(it.Key(), tit.Key()) || !bytes.Equal(it.Value(), tit.Value())) {
		rt.Fatalf("%s: at %q, want %q", what, it.Key(), tit.Key())
	}
}
