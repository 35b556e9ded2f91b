// Package load puts the load of `tinyctl bench` on a cluster by way of TiKV's Go client: the same
// keys, values and clock, and the same line of JSON as the result. It is part of the module of that
// client, so that the comparison (tests/bench) can run it as a program of its own. A worker has one
// request under way at a time.
//
// What is counted are the operations that end within the measured time. A get that finds nothing is
// an error.
package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/tikv/client-go/v2/rawkv"
)

// Client is what is loaded: TiKV's client, or a test's. Safe for concurrent use.
type Client interface {
	Put(ctx context.Context, key, value []byte, options ...rawkv.RawOption) error
	// Get returns nil if there is no such key.
	Get(ctx context.Context, key []byte, options ...rawkv.RawOption) ([]byte, error)
}

// Config describes one phase.
type Config struct {
	Phase     string // put or get
	Workers   int
	Keys      int // of the key space, which gets expect to be there
	ValueSize int // bytes
	Warmup    time.Duration
	Duration  time.Duration // measured time
	// PIDs are the servers, if they are processes of this machine.
	PIDs []int
	// OnMeasure is called when the warm-up ends. May be nil.
	OnMeasure func()
}

func (c Config) validate() error {
	switch {
	case c.Phase != "put" && c.Phase != "get":
		return fmt.Errorf("unknown phase %q", c.Phase)
	case c.Workers < 1 || c.Keys < 1 || c.Duration <= 0 || c.Warmup < 0 || c.ValueSize < 1:
		return errors.New("workers, keys, duration and the size of values must be positive")
	}
	return nil
}

const (
	keySize = 16
	// spread scatters neighbours over the key space, as tinyctl's load does.
	spread       = 0x9e3779b97f4a7c15
	maxLatencyUs = 60_000_000
)

// Key is the i-th key of the key space of `tinyctl bench`.
func Key(i uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, keySize), "bench___"...), i*spread)
}

var errMissing = errors.New("a key that was loaded is not there")

// phase is a running load. The histogram of a worker is its own.
type phase struct {
	Config
	cl       Client
	from, to time.Time // measured time
	errs     atomic.Int64
	first    atomic.Pointer[error]
}

// Run carries out one phase. It fails if no operation succeeded, or when ctx ends.
func Run(ctx context.Context, cl Client, c Config) (Result, error) {
	if err := c.validate(); err != nil {
		return Result{}, err
	}
	began := time.Now()
	p := &phase{Config: c, cl: cl, from: began.Add(c.Warmup), to: began.Add(c.Warmup + c.Duration)}
	// The end cancels. After a deadline the client takes the store for dead, and its next requests
	// wait for a second.
	pctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(time.Until(p.to), cancel).Stop()
	hists := make([]*hdrhistogram.Histogram, c.Workers)
	var wg sync.WaitGroup
	for w := range c.Workers {
		hists[w] = newHistogram()
		wg.Add(1)
		go func() { // ends with pctx
			defer wg.Done()
			p.work(pctx, w, hists[w])
		}()
	}
	usage := p.watch(pctx)
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	return p.result(hists, usage)
}

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, maxLatencyUs, 3) }

func (p *phase) work(ctx context.Context, worker int, hist *hdrhistogram.Histogram) {
	seed := uint64(p.from.UnixNano()) + uint64(worker)*spread
	var fill [32]byte
	binary.LittleEndian.PutUint64(fill[:], seed)
	numbers, bytes, value := rand.New(rand.NewPCG(seed, spread)), rand.NewChaCha8(fill),
		make([]byte, p.ValueSize)
	for ctx.Err() == nil {
		key := Key(numbers.Uint64N(uint64(p.Keys)))
		if p.Phase == "put" {
			_, _ = bytes.Read(value) // never fails
		}
		began := time.Now()
		err := p.do(ctx, key, value)
		end := time.Now()
		switch {
		case ctx.Err() != nil || end.Before(p.from) || end.After(p.to):
		case err != nil:
			p.errs.Add(1)
			p.first.CompareAndSwap(nil, &err)
		default:
			// in range by min
			_ = hist.RecordValue(min(end.Sub(began).Microseconds(), maxLatencyUs))
		}
	}
}

func (p *phase) do(ctx context.Context, key, value []byte) error {
	if p.Phase == "put" {
		return p.cl.Put(ctx, key, value)
	}
	got, err := p.cl.Get(ctx, key)
	if err == nil && got == nil {
		err = errMissing
	}
	return err
}

// watch samples the processes at both ends of the measured time.
func (p *phase) watch(ctx context.Context) (out [2]sample) {
	warm := time.NewTimer(time.Until(p.from))
	defer warm.Stop()
	select {
	case <-warm.C:
	case <-ctx.Done():
	}
	out[0] = takeSample(p.PIDs)
	if p.OnMeasure != nil {
		p.OnMeasure()
	}
	<-ctx.Done()
	out[1] = takeSample(p.PIDs)
	return out
}
