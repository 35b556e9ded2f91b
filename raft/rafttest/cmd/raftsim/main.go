// Command raftsim plays seeds of the raft simulator and stops at the first that breaks an invariant.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/tinykv/tinykv/raft/rafttest/sim"
)

func main() {
	seeds := flag.Int("seeds", 100, "how many seeds")
	start := flag.Uint64("start", 1, "the first seed")
	one := flag.Int64("seed", -1, "play this seed only")
	events := flag.Int("events", 20000, "events a seed, before healing")
	verbose := flag.Bool("v", false, "print every event (with -seed) or every seed")
	planted := flag.String("planted", "", "measure a planted bug (B1..B9, B18, all); needs -tags planted")
	tries := flag.Int("tries", 10, "tries for -planted")
	keep := flag.Bool("k", false, "go on after a violation")
	flag.Parse()
	switch {
	case *planted != "":
		os.Exit(runPlanted(os.Stdout, *planted, *tries, *seeds, *events))
	case *one >= 0:
		os.Exit(runOne(os.Stdout, uint64(*one), *events, *verbose))
	}
	os.Exit(runMany(os.Stdout, *start, *seeds, *events, *verbose, *keep))
}

func runOne(out io.Writer, seed uint64, events int, verbose bool) int {
	opt := sim.Options{Events: events}
	if verbose {
		opt.Trace = out
	}
	res := sim.Run(seed, opt)
	fmt.Fprintf(out, "seed %d: %v\n%+v\n", seed, res.Profile, res.Counts)
	if res.Violation != nil {
		fmt.Fprintln(out, res.Violation)
		return 1
	}
	return 0
}

func runMany(out io.Writer, start uint64, seeds, events int, verbose, keep bool) int {
	var counts sim.Counts
	total, bad := 0, 0
	var virtual int64
	began := time.Now()
	for i := range uint64(seeds) {
		res := sim.Run(start+i, sim.Options{Events: events})
		total += res.Events
		virtual += res.VirtualUS
		counts.Add(res.Counts)
		if verbose {
			fmt.Fprintf(out, "seed %d: %d events, %v\n", start+i, res.Events, res.Profile)
		}
		if res.Violation == nil {
			continue
		}
		bad++
		fmt.Fprintf(out, "seed %d: %v\n  %v\n  replay: %s\n", res.Seed, res.Violation, res.Profile,
			sim.ReplayCommand(res.Seed, events))
		if !keep {
			break
		}
	}
	took := time.Since(began)
	fmt.Fprintf(out, "%d seeds, %d events in %v: %.0f events/s, %.0fx real time, %d violations\n%+v\n",
		seeds, total, took.Round(time.Millisecond), float64(total)/took.Seconds(),
		float64(virtual)/1e6/took.Seconds(), bad, counts)
	if bad > 0 {
		return 1
	}
	return 0
}
