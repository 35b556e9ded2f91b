package ycsb

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
)

// Store is what the workloads need of a store under load.
type Store interface {
	Put(ctx context.Context, key, value []byte) error
	// Read returns a value, nil if there is no such key.
	Read(ctx context.Context, key []byte) ([]byte, error)
	Scan(ctx context.Context, start []byte, limit int) (int, error)
}

var _ Store = loadgen.Driver(nil)

// Load writes the records insertstart to insertstart+insertcount, or to recordcount.
func Load(ctx context.Context, s Store, c Config, out io.Writer) error {
	end := c.Records
	if c.InsertCount > 0 {
		end = c.InsertStart + c.InsertCount
	}
	w := newWorkload(c)
	return drive(ctx, c, end-c.InsertStart, out,
		func(ctx context.Context, t *thread, n int64) (kind, error) {
			return kindInsert, s.Put(ctx, w.key(c.InsertStart+n), w.value(t.fill))
		})
}

// Run carries out operationcount operations, or as many as fit into maxexecutiontime.
func Run(ctx context.Context, s Store, c Config, out io.Writer) error {
	w := newWorkload(c)
	return drive(ctx, c, c.Operations, out,
		func(ctx context.Context, t *thread, _ int64) (kind, error) {
			k := w.next(t.rand)
			return k, w.do(ctx, s, t, k)
		})
}

func (w *workload) do(ctx context.Context, s Store, t *thread, k kind) error {
	switch k {
	case kindRead:
		_, err := s.Read(ctx, w.key(w.record(t.rand)))
		return err
	case kindScan:
		_, err := s.Scan(ctx, w.key(w.record(t.rand)), w.scanLength(t.rand))
		return err
	case kindInsert:
		n := w.seen.take()
		defer w.seen.ack(n)
		return s.Put(ctx, w.key(n), w.value(t.fill))
	case kindUpdate:
		if w.c.WriteAllFields {
			return s.Put(ctx, w.key(w.record(t.rand)), w.value(t.fill))
		}
	}
	// An update of one field, or a read, a change and a write.
	key := w.key(w.record(t.rand))
	old, err := s.Read(ctx, key)
	if err != nil {
		return err
	}
	return s.Put(ctx, key, w.change(old, t.rand, t.fill))
}

// thread is one client's randomness.
type thread struct {
	rand *rand.Rand
	fill *rand.ChaCha8
}

func newThread(n uint64) *thread {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], n)
	binary.LittleEndian.PutUint64(seed[8:], uint64(time.Now().UnixNano()))
	return &thread{
		rand: rand.New(rand.NewPCG(n, uint64(time.Now().UnixNano()))), fill: rand.NewChaCha8(seed),
	}
}

// drive runs count operations on the threads and reports. The first error is returned if nothing
// succeeded; otherwise errors are counted.
func drive(
	ctx context.Context, c Config, count int64, out io.Writer,
	op func(context.Context, *thread, int64) (kind, error),
) error {
	if _, err := io.WriteString(out, c.String()); err != nil {
		return err
	}
	octx, cancel := context.WithCancel(ctx)
	if c.MaxTime > 0 {
		octx, cancel = context.WithTimeout(ctx, c.MaxTime)
	}
	defer cancel()
	m := &measurement{began: time.Now()}
	pace := loadgen.NewPacer(c.Target)
	var next, good atomic.Int64
	var firstErr atomic.Pointer[error]
	stopReports := report(c.Interval, m, out)
	var wg sync.WaitGroup
	for n := range c.Threads {
		wg.Add(1)
		// Ends with the operations, or with octx.
		go func() {
			defer wg.Done()
			t := newThread(uint64(n))
			for octx.Err() == nil {
				i := next.Add(1) - 1
				if i >= count {
					return
				}
				begin, ok := pace.Wait(octx)
				if !ok {
					return
				}
				k, err := op(octx, t, i)
				if octx.Err() != nil {
					return // cut off: neither done nor failed
				}
				m.record(k, time.Since(begin), err)
				if err == nil {
					good.Add(1)
				} else {
					firstErr.CompareAndSwap(nil, &err)
				}
			}
		}()
	}
	wg.Wait()
	stopReports()
	took := time.Since(m.began)
	fmt.Fprintf(out, "Run finished, takes %s\n", took)
	m.write(out)
	if err := ctx.Err(); err != nil {
		return err
	}
	if e := firstErr.Load(); e != nil && good.Load() == 0 {
		return *e
	}
	return nil
}

// report prints what was measured so far at every interval, until stop is called and has returned.
func report(interval time.Duration, m *measurement, out io.Writer) (stop func()) {
	if interval <= 0 {
		return func() {}
	}
	quit, ended := make(chan struct{}), make(chan struct{})
	// Ends with quit; stop waits.
	go func() {
		defer close(ended)
		t := time.NewTicker(interval)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				m.write(out)
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-ended }
}
