package ycsb

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
)

// zipfTheta is the exponent of YCSB's zipfian choices.
const zipfTheta = 0.99

// workload chooses operations and keys. Safe for concurrent use with a source of randomness per
// caller.
type workload struct {
	c     Config
	total float64 // sum of the proportions
	zipf  *loadgen.Zipf
	scans *loadgen.Zipf
	seen  *sequence
}

func newWorkload(c Config) *workload {
	w := &workload{c: c, seen: newSequence(c.Records)}
	for _, p := range c.proportions {
		w.total += p
	}
	if c.Distribution != "uniform" {
		w.zipf = loadgen.NewZipf(uint64(c.Records), zipfTheta)
	}
	if !c.ScanUniform {
		w.scans = loadgen.NewZipf(uint64(c.MaxScan), zipfTheta)
	}
	return w
}

// next draws a kind of operation.
func (w *workload) next(r *rand.Rand) kind {
	at := r.Float64() * w.total
	last := kindRead
	for k, p := range w.c.proportions {
		if p == 0 {
			continue
		}
		if last = kind(k); at < p {
			return last
		}
		at -= p
	}
	return last // rounding
}

// record draws the number of a record that exists.
func (w *workload) record(r *rand.Rand) int64 {
	n := w.seen.acknowledged()
	switch w.c.Distribution {
	case "zipfian":
		return int64(w.zipf.Next(r))
	case "latest":
		return max(0, n-1-int64(w.zipf.Next(r)))
	}
	return r.Int64N(n)
}

func (w *workload) scanLength(r *rand.Rand) int {
	if w.scans != nil {
		return 1 + int(w.scans.Next(r))
	}
	return 1 + r.IntN(w.c.MaxScan)
}

// key is the key of a record by its number.
func (w *workload) key(record int64) []byte {
	n := uint64(record)
	if !w.c.OrderedInserts {
		h := fnv.New64a()
		_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, n)) // never fails
		n = h.Sum64()
	}
	return fmt.Appendf(nil, "%s:user%020d", w.c.Table, n)
}

// value is a whole record.
func (w *workload) value(fill *rand.ChaCha8) []byte {
	v := make([]byte, w.c.FieldCount*w.c.FieldLength)
	_, _ = fill.Read(v) // never fails
	return v
}

// change replaces one field of a record; a record that is too short becomes a whole new one.
func (w *workload) change(old []byte, r *rand.Rand, fill *rand.ChaCha8) []byte {
	if len(old) < w.c.FieldCount*w.c.FieldLength {
		return w.value(fill)
	}
	at := r.IntN(w.c.FieldCount) * w.c.FieldLength
	_, _ = fill.Read(old[at : at+w.c.FieldLength]) // never fails
	return old
}

// sequence hands out numbers of new records, and knows up to which all of them are stored.
type sequence struct {
	mu struct {
		sync.Mutex
		next, acked int64          // Invariant: acked <= next; records below acked are stored
		done        map[int64]bool // stored ones above acked
	}
}

func newSequence(stored int64) *sequence {
	s := &sequence{}
	s.mu.next, s.mu.acked, s.mu.done = stored, stored, map[int64]bool{}
	return s
}

func (s *sequence) take() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.next++
	return s.mu.next - 1
}

// ack tells that a record is stored, or never will be: then reads may miss it.
func (s *sequence) ack(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.done[n] = true
	for s.mu.done[s.mu.acked] {
		delete(s.mu.done, s.mu.acked)
		s.mu.acked++
	}
}

func (s *sequence) acknowledged() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.acked
}
