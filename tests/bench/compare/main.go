// Command compare measures TinyKV beside etcd and beside two yardsticks on one machine, in
// alternating rounds, and prints the ratios with the goals for them. Every round starts fresh
// clusters; only one of them runs at a time, so that an idle one does not disturb. See
// docs/benchmarks.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tinykv/tinykv/pkg/goruntime"
	"github.com/tinykv/tinykv/tests/bench/rig"
)

type options struct {
	bins     rig.Bins
	rounds   int
	keys     int
	warmup   time.Duration
	duration time.Duration
	idle     time.Duration
	cells    []string // empty: all
	systems  []string
	profile  string // directory for CPU profiles of TinyKV's leader
	json     string // file for one line per result
	clientgo string // the program that loads by TiKV's Go client
}

var allSystems = []string{"etcd", "tinykv", "txn", "ideal", "echo"}

func main() {
	goruntime.CalmMonitor()
	o, err := parseOptions(os.Args[1:], os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer goruntime.SetHeapFloor(goruntime.LoadGeneratorHeap).Stop()
	if err := run(ctx, o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// parseOptions reads the command line; what is empty there means the default, so that a Makefile
// may pass its variables on as they are.
func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("compare", flag.ContinueOnError)
	f.SetOutput(stderr)
	bin := f.String("bin", "bin", "directory with the programs, as the Makefile builds them")
	rounds := f.String("rounds", "", "alternating rounds (default 3)")
	quick := f.String("quick", "", "not empty: one short round with 20,000 keys")
	cells := f.String("cells", "", "only these, comma separated: "+strings.Join(cellNames(), " "))
	systems := f.String("systems", "",
		"only these, comma separated: "+strings.Join(allSystems, " "))
	f.StringVar(&o.profile, "profile", "",
		"directory for CPU profiles of TinyKV's leader during each cell")
	f.StringVar(&o.json, "json", "", "file for one line per result")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.bins, o.clientgo = rig.DefaultBins(*bin), filepath.Join(*bin, "bench", "clientgo")
	o.rounds, o.keys, o.warmup, o.duration, o.idle = 3, 100_000, 500*time.Millisecond,
		2*time.Second, 5*time.Second
	if *quick != "" {
		o.rounds, o.keys, o.duration, o.idle = 1, 20_000, time.Second, 2*time.Second
	}
	if *rounds != "" {
		if n, err := fmt.Sscanf(*rounds, "%d", &o.rounds); n != 1 || err != nil || o.rounds < 1 {
			return o, fmt.Errorf("%q is no number of rounds", *rounds)
		}
	}
	if o.profile != "" {
		o.duration = max(o.duration, 3*time.Second) // profiles come in whole seconds
	}
	var err error
	if o.cells, err = choose(*cells, cellNames()); err != nil {
		return o, err
	}
	o.systems, err = choose(*systems, allSystems)
	return o, err
}

// choose splits a list whose items must be known.
func choose(list string, known []string) ([]string, error) {
	if list == "" {
		return nil, nil
	}
	items := strings.Split(list, ",")
	for _, c := range items {
		if !slices.Contains(known, c) {
			return nil, fmt.Errorf("%q is none of %s", c, strings.Join(known, " "))
		}
	}
	return items, nil
}

func (o options) wants(cell string) bool {
	return len(o.cells) == 0 || slices.Contains(o.cells, cell)
}

// only tells whether a cell is all that is to be measured.
func (o options) only(cell string) bool { return len(o.cells) == 1 && o.cells[0] == cell }

func (o options) measures(system string) bool {
	return len(o.systems) == 0 || slices.Contains(o.systems, system)
}

func run(ctx context.Context, o options, stdout, stderr io.Writer) error {
	if err := o.bins.Check(); err != nil {
		return err
	}
	if _, err := os.Stat(o.clientgo); err != nil {
		return fmt.Errorf("%s is missing: use make", o.clientgo)
	}
	if o.profile != "" {
		if err := os.MkdirAll(o.profile, 0o755); err != nil {
			return err
		}
	}
	began := time.Now()
	b := &bench{o: o, progress: stderr, figures: figures{}, value: usualValue}
	if o.json != "" {
		f, err := os.Create(o.json)
		if err != nil {
			return err
		}
		defer f.Close()
		b.json = f
	}
	for b.round = 0; b.round < o.rounds; b.round++ {
		if err := b.oneRound(ctx); err != nil {
			return err
		}
	}
	fmt.Fprintf(stderr, "measured for %s\n", time.Since(began).Round(time.Second))
	return b.report(stdout)
}
