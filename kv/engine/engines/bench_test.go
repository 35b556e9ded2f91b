package engines_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/engines"
)

const (
	benchKeys  = 200_000
	benchValue = 256
)

func benchKey(buf []byte, i int) []byte {
	return fmt.Appendf(append(buf[:0], 'z', 'd'), "key%013d", i)
}

func benchEngine(b *testing.B, name string) engine.Engine {
	b.Helper()
	e, err := engines.Open(name, engine.Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = e.Close() })
	return e
}

// randomValue is not compressible.
func randomValue(rng *rand.Rand, n int) []byte {
	v := make([]byte, n)
	for i := range v {
		v[i] = byte(rng.Uint32())
	}
	return v
}

func loaded(b *testing.B, name string) engine.Engine {
	b.Helper()
	e := benchEngine(b, name)
	rng := rand.New(rand.NewPCG(1, 1))
	batch := e.NewBatch()
	perm := rng.Perm(benchKeys)
	value := randomValue(rng, benchValue)
	var key []byte
	for i, k := range perm {
		key = benchKey(key, k)
		batch.Put(key, value)
		if i%1000 == 999 {
			if err := e.Write(batch, false); err != nil {
				b.Fatal(err)
			}
			batch.Reset()
		}
	}
	if err := e.Sync(); err != nil {
		b.Fatal(err)
	}
	return e
}

// BenchmarkPut writes batches of random keys, as apply does (without sync) and with sync.
//
//	go test ./kv/engine/engines -run '^$' -bench . -benchmem -count 3
func BenchmarkPut(b *testing.B) {
	for _, c := range []struct {
		batch, writers int
		sync           bool
	}{{1, 1, false}, {16, 1, false}, {16, 4, false}, {128, 1, false}, {1, 1, true}, {16, 4, true}} {
		for _, name := range engines.Names() {
			b.Run(fmt.Sprintf("batch=%d/writers=%d/sync=%v/%s", c.batch, c.writers, c.sync, name),
				func(b *testing.B) {
					e := loaded(b, name) // both begin with small memtables; do not measure that
					value := randomValue(rand.New(rand.NewPCG(1, 1)), benchValue)
					var left atomic.Int64
					left.Store(int64(b.N))
					b.ReportAllocs()
					b.ResetTimer()
					var wg sync.WaitGroup
					for w := range c.writers {
						wg.Go(func() {
							rng := rand.New(rand.NewPCG(uint64(w), 1))
							batch := e.NewBatch()
							var key []byte
							for left.Add(-int64(c.batch)) > -int64(c.batch) {
								batch.Reset()
								for range c.batch {
									key = benchKey(key, rng.IntN(benchKeys))
									batch.Put(key, value)
								}
								if err := e.Write(batch, c.sync); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "keys/s")
				})
		}
	}
}

func BenchmarkGet(b *testing.B) {
	for _, name := range engines.Names() {
		e := loaded(b, name)
		for _, readers := range []int{1, 8} {
			b.Run(fmt.Sprintf("readers=%d/%s", readers, name), func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism(max(1, readers/2))
				if readers == 1 {
					rng := rand.New(rand.NewPCG(1, 2))
					for b.Loop() {
						getOne(b, e, rng)
					}
					return
				}
				b.RunParallel(func(pb *testing.PB) {
					rng := rand.New(rand.NewPCG(rand.Uint64(), 2))
					for pb.Next() {
						getOne(b, e, rng)
					}
				})
			})
		}
		_ = e.Close()
	}
}

func getOne(b *testing.B, e engine.Engine, rng *rand.Rand) {
	var buf [32]byte
	if _, ok, err := e.Get(benchKey(buf[:], rng.IntN(benchKeys))); err != nil || !ok {
		panic(fmt.Sprint(ok, err))
	}
}

func BenchmarkScan100(b *testing.B) {
	for _, name := range engines.Names() {
		e := loaded(b, name)
		b.Run(name, func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			b.ReportAllocs()
			var key []byte
			for b.Loop() {
				s := e.NewSnapshot()
				key = benchKey(key, rng.IntN(benchKeys-200))
				it := s.NewIterator(key, []byte{'z', 'e'})
				n := 0
				for it.First(); it.Valid() && n < 100; it.Next() {
					n += len(it.Value()) / benchValue
				}
				if n != 100 || it.Err() != nil {
					b.Fatal(n, it.Err())
				}
				it.Close()
				s.Close()
			}
		})
		_ = e.Close()
	}
}
