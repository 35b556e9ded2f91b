// Command trouble measures how the latency of puts suffers from what happens in a cluster:
// snapshots, restarts, changes of leaders, compactions. The load is half of what the cluster can
// take, and latencies count from when a put was due, so that a stall is felt by every put that it
// delays.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
	"github.com/tinykv/tinykv/pkg/goruntime"
	"github.com/tinykv/tinykv/tests/bench/rig"
)

type options struct {
	bins     rig.Bins
	regions  int
	workers  int
	keys     int
	value    int
	duration time.Duration
}

func main() {
	goruntime.CalmMonitor()
	var o options
	bin := flag.String("bin", "bin", "directory with the programs, as the Makefile builds them")
	flag.IntVar(&o.regions, "regions", 8, "number of regions")
	flag.IntVar(&o.workers, "workers", 64, "concurrent clients")
	flag.IntVar(&o.keys, "keys", 100_000, "number of keys")
	flag.IntVar(&o.value, "value-size", 512, "bytes per value")
	flag.DurationVar(&o.duration, "duration", 8*time.Second, "measured time of each trouble")
	flag.Parse()
	o.bins = rig.DefaultBins(*bin)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer goruntime.SetHeapFloor(goruntime.LoadGeneratorHeap).Stop()
	rows, err := run(ctx, o, os.Stderr)
	if err == nil {
		err = report(os.Stdout, rows)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "trouble:", err)
		os.Exit(1)
	}
}

// row is one line of the report.
type row struct {
	name   string
	calm   loadgen.Result // measured just before
	result loadgen.Result
	what   string // what happened meanwhile
}

// small memtables make a store flush and compact all the time at rates that this benchmark reaches.
const smallMemtables = "[storage]\nmemtable-size = \"1MiB\"\n"

func run(ctx context.Context, o options, progress io.Writer) ([]row, error) {
	var rows []row
	for _, c := range []struct {
		config   string
		troubles []trouble
	}{
		{"", []trouble{
			{"a snapshot is sent", snapshots}, {"20 leader transfers a second", transfers},
			{"a store restarts", restart}, {"a store is killed and comes back", kill},
		}},
		{smallMemtables, []trouble{{"flushes and compactions run", compactions}}},
	} {
		more, err := cluster(ctx, o, c.config, c.troubles, progress)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// cluster measures some troubles in a fresh cluster.
func cluster(
	ctx context.Context, o options, config string, troubles []trouble, progress io.Writer,
) ([]row, error) {
	s, err := rig.NewTinyKV(o.bins, 3, config)
	if err != nil {
		return nil, err
	}
	defer s.Stop()
	sctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := prepare(sctx, o, s); err != nil {
		return nil, err
	}
	d, err := s.Open(ctx, rig.Mode{Unary: true})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	c := loadgen.Config{
		Phase: "load", Workers: o.workers, Keys: o.keys, KeySize: 16, ValueSize: o.value,
		ScanLimit: 1, Warmup: time.Second, Duration: o.duration,
	}
	if _, err := loadgen.Run(ctx, d, c); err != nil {
		return nil, err
	}
	c.Phase = "put"
	full, err := loadgen.Run(ctx, d, c)
	if err != nil {
		return nil, err
	}
	c.Rate = full.OpsPerS / 2
	fmt.Fprintf(progress, "the cluster takes %.0f puts a second; the load is half of it\n",
		full.OpsPerS)
	var rows []row
	for _, t := range troubles {
		fmt.Fprintln(progress, t.name)
		// Not before the last trouble is over.
		if err := s.WaitReplicas(sctx, 3); err != nil {
			return nil, fmt.Errorf("before %s: %w", t.name, err)
		}
		c.PIDs = s.PIDs() // only while calm: they change
		calm, err := loadgen.Run(ctx, d, c)
		c.PIDs = nil
		if err != nil {
			return nil, fmt.Errorf("calm: %w", err)
		}
		r, err := troubled(ctx, d, c, s, t)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.name, err)
		}
		r.calm = calm
		rows = append(rows, r)
	}
	return rows, nil
}

func prepare(ctx context.Context, o options, s *rig.TinyKV) error {
	if err := s.Start(ctx); err != nil {
		return err
	}
	if err := s.WaitReplicas(ctx, 3); err != nil {
		return err
	}
	if err := s.Split(ctx, loadgen.SplitKeys(o.regions, 16)); err != nil {
		return err
	}
	return s.WaitSettled(ctx, 2*time.Second, 15*time.Second)
}

// troubled runs the load while a trouble goes on, from the end of the warm-up to the end of the
// load.
func troubled(
	ctx context.Context, d loadgen.Driver, c loadgen.Config, s *rig.TinyKV, t trouble,
) (row, error) {
	tctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		what string
		err  error
	}
	done := make(chan outcome, 1)
	c.OnMeasure = func() {
		what, err := t.run(tctx, s)
		done <- outcome{what, err}
	}
	res, err := loadgen.Run(ctx, d, c)
	if err != nil {
		return row{}, err
	}
	cancel()
	o := <-done
	return row{name: t.name, result: res, what: o.what}, o.err
}

func report(w io.Writer, rows []row) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw,
		"PUTS AT HALF LOAD WHILE\tOPS/S\tERRORS\tP50 MS\tP99 MS\tMAX MS\tCALM P99 MS\tP99 / CALM\tOTHER CORES\tMEANWHILE\t")
	for _, r := range rows {
		ratio := float64(r.result.P99Us) / float64(max(1, r.calm.P99Us))
		other := "n/a"
		if r.calm.OtherCPU != nil {
			other = fmt.Sprintf("%.2f", *r.calm.OtherCPU)
		}
		fmt.Fprintf(tw, "%s\t%.0f\t%d\t%.2f\t%.2f\t%.2f\t%.2f\t%.1fx\t%s\t%s\t\n", r.name,
			r.result.OpsPerS, r.result.Errors,
			float64(r.result.P50Us)/1000, float64(r.result.P99Us)/1000,
			float64(r.result.MaxUs)/1000, float64(r.calm.P99Us)/1000, ratio, other, r.what)
	}
	return tw.Flush()
}
