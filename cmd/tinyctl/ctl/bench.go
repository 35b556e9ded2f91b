package ctl

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/kv/client"
)

// benchOptions describe a closed-loop load.
type benchOptions struct {
	phases    []string
	workers   int
	keys      int
	valueSize int
	duration  time.Duration
	zipf      bool
}

func (a *app) benchCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "bench", Short: "Measure throughput and latency with a closed-loop load", Args: args(cobra.NoArgs)}
	var o benchOptions
	f := cmd.Flags()
	phases := f.String("phases", "load,put,get,mixed,scan", "what to run, in order: load put get mixed scan delete")
	f.IntVarP(&o.workers, "workers", "w", 32, "concurrent clients")
	f.IntVar(&o.keys, "keys", 100_000, "number of keys")
	f.IntVar(&o.valueSize, "value-size", 256, "bytes per value")
	f.DurationVar(&o.duration, "duration", 5*time.Second, "how long each phase runs; load writes every key once")
	f.BoolVar(&o.zipf, "zipf", false, "zipfian instead of uniform choice of keys")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.phases = strings.Split(*phases, ",")
		if o.workers < 1 || o.keys < 1 || o.valueSize < 0 || o.duration <= 0 {
			return usagef("workers, keys and duration must be positive")
		}
		for _, p := range o.phases {
			if benchPhase(p) == nil {
				return usagef("unknown phase %q", p)
			}
		}
		c, err := a.openWith(cmd.Context(), client.Options{Timeout: a.timeout, AttemptTimeout: 5 * time.Second, Conns: 4})
		if err != nil {
			return err
		}
		defer c.Close()
		return a.bench(cmd.Context(), c, o)
	}
	return cmd
}

type benchOp func(ctx context.Context, c *client.Client, r *rand.Rand, key, value []byte) error

func benchPhase(name string) benchOp {
	put := func(ctx context.Context, c *client.Client, _ *rand.Rand, key, value []byte) error {
		return c.Put(ctx, key, value)
	}
	get := func(ctx context.Context, c *client.Client, _ *rand.Rand, key, _ []byte) error {
		_, _, err := c.Get(ctx, key)
		return err
	}
	switch name {
	case "load", "put":
		return put
	case "get":
		return get
	case "mixed":
		return func(ctx context.Context, c *client.Client, r *rand.Rand, key, value []byte) error {
			if r.IntN(2) == 0 {
				return put(ctx, c, r, key, value)
			}
			return get(ctx, c, r, key, value)
		}
	case "scan":
		return func(ctx context.Context, c *client.Client, _ *rand.Rand, key, _ []byte) error {
			_, err := c.Scan(ctx, key, nil, 100)
			return err
		}
	case "delete":
		return func(ctx context.Context, c *client.Client, _ *rand.Rand, key, _ []byte) error {
			return c.Delete(ctx, key)
		}
	}
	return nil
}

// benchResult is one phase's outcome. Latencies are microseconds.
type benchResult struct {
	Phase   string  `json:"phase"`
	Workers int     `json:"workers"`
	Ops     int64   `json:"ops"`
	Errors  int64   `json:"errors"`
	OpsPerS float64 `json:"ops_per_s"`
	MeanUs  float64 `json:"mean_us"`
	P50Us   int64   `json:"p50_us"`
	P95Us   int64   `json:"p95_us"`
	P99Us   int64   `json:"p99_us"`
	P999Us  int64   `json:"p999_us"`
	MaxUs   int64   `json:"max_us"`
}

func (a *app) bench(ctx context.Context, c *client.Client, o benchOptions) error {
	var rows [][]string
	var results []benchResult
	for _, phase := range o.phases {
		res, err := runPhase(ctx, c, phase, o)
		if err != nil {
			return fmt.Errorf("%s: %w", phase, err)
		}
		results = append(results, res)
		rows = append(rows, []string{
			res.Phase, fmt.Sprint(res.Workers), fmt.Sprint(res.Ops), fmt.Sprint(res.Errors), fmt.Sprintf("%.0f", res.OpsPerS),
			fmt.Sprintf("%.2f", res.MeanUs/1000), ms(res.P50Us), ms(res.P95Us), ms(res.P99Us), ms(res.P999Us), ms(res.MaxUs),
		})
	}
	if a.output == "json" {
		return a.json(results)
	}
	return a.table([]string{"PHASE", "WORKERS", "OPS", "ERRORS", "OPS/S", "MEAN MS", "P50", "P95", "P99", "P99.9", "MAX"}, rows)
}

func ms(us int64) string { return fmt.Sprintf("%.2f", float64(us)/1000) }

func benchKey(i int) []byte {
	key := []byte("bench___")
	return binary.BigEndian.AppendUint64(key, uint64(i)*0x9e3779b97f4a7c15)
}

func runPhase(ctx context.Context, c *client.Client, phase string, o benchOptions) (benchResult, error) {
	op := benchPhase(phase)
	var next, errs atomic.Int64
	var firstErr atomic.Pointer[error]
	hists := make([]*hdrhistogram.Histogram, o.workers)
	pctx := ctx
	start := time.Now()
	deadline := start.Add(o.duration)
	var wg sync.WaitGroup
	for w := range o.workers {
		hists[w] = hdrhistogram.New(1, 60_000_000, 3)
		wg.Add(1)
		// Ends at the deadline, or when every key is loaded.
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(uint64(w)+1, uint64(start.UnixNano())))
			zipf := rand.NewZipf(r, 1.1, 8, uint64(o.keys-1))
			value := make([]byte, o.valueSize)
			for i := range value {
				value[i] = byte(r.Uint32())
			}
			for pctx.Err() == nil {
				i := r.IntN(o.keys)
				if o.zipf {
					i = int(zipf.Uint64())
				}
				if phase == "load" {
					if i = int(next.Add(1)) - 1; i >= o.keys {
						return
					}
				} else if time.Now().After(deadline) {
					return
				}
				if len(value) >= 8 {
					binary.BigEndian.PutUint64(value, r.Uint64())
				}
				begin := time.Now()
				if err := op(pctx, c, r, benchKey(i), value); err != nil {
					errs.Add(1)
					firstErr.CompareAndSwap(nil, &err)
					continue
				}
				_ = hists[w].RecordValue(time.Since(begin).Microseconds()) // over a minute: not counted
			}
		}()
	}
	wg.Wait()
	took := time.Since(start)
	all := hdrhistogram.New(1, 60_000_000, 3)
	for _, h := range hists {
		all.Merge(h)
	}
	res := benchResult{
		Phase: phase, Workers: o.workers, Ops: all.TotalCount(), Errors: errs.Load(),
		OpsPerS: float64(all.TotalCount()) / took.Seconds(), MeanUs: all.Mean(), P50Us: all.ValueAtQuantile(50),
		P95Us: all.ValueAtQuantile(95), P99Us: all.ValueAtQuantile(99), P999Us: all.ValueAtQuantile(99.9), MaxUs: all.Max(),
	}
	if res.Ops == 0 {
		if e := firstErr.Load(); e != nil {
			return res, *e
		}
	}
	return res, ctx.Err()
}
