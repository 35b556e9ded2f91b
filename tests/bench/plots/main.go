// Command plots measures TinyKV's throughput by number of regions and by size of values, and draws
// both as SVG.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
	"github.com/tinykv/tinykv/pkg/goruntime"
	"github.com/tinykv/tinykv/tests/bench/plot"
	"github.com/tinykv/tinykv/tests/bench/rig"
)

type options struct {
	bins     rig.Bins
	out      string
	duration time.Duration
	workers  int
	keys     int
	progress io.Writer
}

func main() {
	goruntime.CalmMonitor()
	o := options{progress: os.Stderr}
	bin := flag.String("bin", "bin", "directory with the programs, as the Makefile builds them")
	flag.StringVar(&o.out, "out", "docs", "directory for the pictures")
	flag.DurationVar(&o.duration, "duration", 4*time.Second,
		"measured time of each point, after a second of warm-up")
	flag.IntVar(&o.workers, "workers", 128, "concurrent clients")
	flag.IntVar(&o.keys, "keys", 50_000, "number of keys; fewer for large values")
	flag.Parse()
	o.bins = rig.DefaultBins(*bin)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer goruntime.SetHeapFloor(goruntime.LoadGeneratorHeap).Stop()
	for _, draw := range []func(context.Context, options) error{byRegions, bySize} {
		if err := draw(ctx, o); err != nil {
			fmt.Fprintln(os.Stderr, "plots:", err)
			os.Exit(1)
		}
	}
}

var phases = []string{"put", "get"}

// lines are the series of a chart in the making, one per phase.
type lines []plot.Series

func newLines() lines {
	out := lines{}
	for _, p := range phases {
		out = append(out, plot.Series{Name: p})
	}
	return out
}

// measure adds a point per phase at x.
func (l lines) measure(
	ctx context.Context, o options, s *rig.TinyKV, x float64, c loadgen.Config,
) error {
	d, err := s.Open(ctx, rig.Mode{})
	if err != nil {
		return err
	}
	defer d.Close()
	for i, phase := range append([]string{"load"}, phases...) {
		c.Phase = phase
		res, err := loadgen.Run(ctx, d, c)
		if err != nil {
			return err
		}
		if i == 0 {
			continue
		}
		l[i-1].Points = append(l[i-1].Points, plot.Point{X: x, Y: res.OpsPerS})
		other := 0.0
		if res.OtherCPU != nil {
			other = *res.OtherCPU
		}
		fmt.Fprintf(o.progress,
			"%s at %g: %.0f ops/s, %.1f MiB/s, p99 %.2f ms (other processes: %.2f cores)\n", phase,
			x, res.OpsPerS,
			res.OpsPerS*float64(c.ValueSize)/(1<<20), float64(res.P99Us)/1000, other)
	}
	return nil
}

func (o options) config(s *rig.TinyKV) loadgen.Config {
	return loadgen.Config{
		Workers: o.workers, Keys: o.keys, KeySize: 16, ValueSize: 256, ScanLimit: 100,
		Warmup: time.Second, Duration: o.duration, PIDs: s.PIDs(),
	}
}

// start runs a fresh cluster with so many regions.
func start(ctx context.Context, o options, regions int) (*rig.TinyKV, error) {
	s, err := rig.NewTinyKV(o.bins, 3, "")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err = s.Start(ctx); err == nil {
		err = s.WaitReplicas(ctx, 3)
	}
	if err == nil && regions > 1 {
		if err = s.Split(ctx, loadgen.SplitKeys(regions, 16)); err == nil {
			err = s.WaitSettled(ctx, 2*time.Second, 15*time.Second)
		}
	}
	if err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

func byRegions(ctx context.Context, o options) error {
	l := newLines()
	for _, n := range []int{1, 8, 64} {
		s, err := start(ctx, o, n)
		if err != nil {
			return err
		}
		err = l.measure(ctx, o, s, float64(n), o.config(s))
		s.Stop()
		if err != nil {
			return fmt.Errorf("%d regions: %w", n, err)
		}
	}
	return write(filepath.Join(o.out, "bench-regions.svg"), plot.Chart{
		Title: "Throughput by number of regions", XLabel: "regions (logarithmic)",
		YLabel: "operations per second",
		Note: fmt.Sprintf("3 stores and all clients on one machine, %d workers, values of 256 B",
			o.workers),
		Series: l,
	})
}

// sizeBudget bounds the data of a point, so that large values do not take long to load.
const sizeBudget = 256 << 20

func bySize(ctx context.Context, o options) error {
	l := newLines()
	for _, size := range []int{16, 256, 4 << 10, 64 << 10, 1 << 20} {
		s, err := start(ctx, o, 1)
		if err != nil {
			return err
		}
		c := o.config(s)
		c.ValueSize, c.Keys = size, min(o.keys, sizeBudget/size)
		err = l.measure(ctx, o, s, float64(size), c)
		s.Stop()
		if err != nil {
			return fmt.Errorf("values of %d bytes: %w", size, err)
		}
	}
	return write(filepath.Join(o.out, "bench-value-size.svg"), plot.Chart{
		Title: "Throughput by size of values", XLabel: "bytes per value (logarithmic)",
		YLabel: "operations per second (logarithmic)",
		Note: fmt.Sprintf("3 stores and all clients on one machine, one region, %d workers",
			o.workers),
		LogY: true, FormatX: sizeName, Series: l,
	})
}

func sizeName(v float64) string {
	switch {
	case v >= 1<<20:
		return fmt.Sprintf("%g MiB", v/(1<<20))
	case v >= 1<<10:
		return fmt.Sprintf("%g KiB", v/(1<<10))
	}
	return fmt.Sprintf("%g B", v)
}

func write(path string, c plot.Chart) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(f); err != nil {
		_ = f.Close() // the first error tells more
		return err
	}
	return f.Close()
}
