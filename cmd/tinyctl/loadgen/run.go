package loadgen

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// phase is a running load.
type phase struct {
	c    Config
	d    Driver
	zipf *Zipf
	pick func(s *source) Op

	next     atomic.Int64 // load: the next key to write
	errs     atomic.Int64
	firstErr atomic.Pointer[error]
	// measured time; of load the end is not known before
	from, to time.Time
	pace     *Pacer
	// giveUp ends a load that cannot write a key: what follows would read keys that are not there.
	giveUp context.CancelFunc
}

// Run carries out one phase. It fails if no operation succeeded, if a load could not write a key,
// or when ctx ends; then the result is of what was measured until then.
func Run(ctx context.Context, d Driver, c Config) (Result, error) {
	if c.Phase == "load" {
		c.Warmup = 0
	}
	if err := c.Validate(); err != nil {
		return Result{}, err
	}
	p := &phase{c: c, d: d, pick: picker(c.Phase)}
	if c.Zipf > 0 && c.Phase != "load" {
		p.zipf = NewZipf(uint64(c.Keys), c.Zipf)
	}
	return p.run(ctx)
}

func picker(name string) func(*source) Op {
	ops := map[string]Op{
		"load": OpPut, "put": OpPut, "get": OpGet, "scan": OpScan, "delete": OpDelete,
	}
	if name == "mixed" {
		return func(s *source) Op { return Op(s.rand.IntN(2)) } // OpPut or OpGet
	}
	return func(*source) Op { return ops[name] }
}

func (p *phase) run(ctx context.Context) (Result, error) {
	began := time.Now()
	p.from, p.to = began.Add(p.c.Warmup), began.Add(p.c.Warmup+p.c.Duration)
	p.pace = NewPacer(p.c.Rate)
	pctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.giveUp = cancel
	if p.c.Phase != "load" {
		// A request that hangs must not hold up the end.
		pctx, cancel = context.WithDeadline(ctx, p.to)
		defer cancel()
	}
	usage := make(chan [2]sample, 1)
	ended := make(chan struct{})
	// Ends with the phase; usage has room for its one answer.
	go func() { usage <- p.watch(ended) }()
	hists := make([]*hdrhistogram.Histogram, p.c.Workers)
	var wg sync.WaitGroup
	for w := range p.c.Workers {
		hists[w] = newHistogram()
		wg.Add(1)
		// Ends at the deadline, or when every key is loaded.
		go func() { defer wg.Done(); p.work(pctx, w, hists[w]) }()
	}
	wg.Wait()
	end := time.Now()
	close(ended)
	if p.c.Phase == "load" || ctx.Err() != nil && end.After(p.from) && end.Before(p.to) {
		p.to = end
	}
	return p.result(ctx, hists, <-usage)
}

func (p *phase) work(ctx context.Context, worker int, hist *hdrhistogram.Histogram) {
	s := newSource(p.c, uint64(p.from.UnixNano())+uint64(worker)*spread, p.zipf)
	for ctx.Err() == nil {
		i := s.index()
		if p.c.Phase == "load" {
			n := p.next.Add(1) - 1
			if n >= int64(p.c.Keys) {
				return
			}
			i = uint64(n)
		}
		op := p.pick(s)
		var value []byte
		if op == OpPut {
			value = s.nextValue()
		}
		key := Key(i, s.keySize)
		begin, ok := p.pace.Wait(ctx)
		if !ok {
			return
		}
		err := do(ctx, p.d, op, key, value, p.c.ScanLimit)
		end := time.Now()
		if ctx.Err() != nil || p.c.Phase != "load" && (end.Before(p.from) || end.After(p.to)) {
			continue
		}
		if err != nil {
			p.errs.Add(1)
			if p.firstErr.CompareAndSwap(nil, &err) && p.c.Phase == "load" {
				p.giveUp()
			}
			continue
		}
		_ = hist.RecordValue(min(end.Sub(begin).Microseconds(), maxLatencyUs)) // in range by min
	}
}

// watch samples the processes at both ends of the measured time.
func (p *phase) watch(ended <-chan struct{}) (out [2]sample) {
	for i, at := range []time.Time{p.from, p.to} {
		t := time.NewTimer(time.Until(at))
		if i == 1 && p.c.Phase == "load" {
			<-ended
		} else {
			select {
			case <-t.C:
			case <-ended: // cut short
			}
		}
		t.Stop()
		out[i] = takeSample(p.c.PIDs, p.c.Written)
		if i == 0 && p.c.OnMeasure != nil {
			// Owned by the caller.
			go p.c.OnMeasure()
		}
	}
	return out
}

func (p *phase) result(
	ctx context.Context, hists []*hdrhistogram.Histogram, usage [2]sample,
) (Result, error) {
	all := newHistogram()
	for _, h := range hists {
		all.Merge(h)
	}
	res := Result{
		Driver: p.d.Name(), Phase: p.c.Phase, Workers: p.c.Workers, Keys: p.c.Keys,
		KeySize: p.c.KeySize, ValueSize: p.c.ValueSize,
		Zipf: p.c.Zipf, Seconds: p.to.Sub(p.from).Seconds(), Errors: p.errs.Load(),
	}
	res.setLatencies(all)
	res.setUsage(usage[0], usage[1])
	if e := p.firstErr.Load(); e != nil {
		res.FirstError = (*e).Error()
		if res.Ops == 0 || p.c.Phase == "load" {
			return res, fmt.Errorf("%s: %w", p.c.Phase, *e)
		}
	}
	if err := ctx.Err(); err != nil {
		return res, err
	}
	if res.Ops == 0 {
		return res, fmt.Errorf("%s: %w", p.c.Phase, ErrNothingDone)
	}
	return res, nil
}

// ErrNothingDone tells that not one operation ended within the measured time.
var ErrNothingDone = errors.New("no operation ended in time")
