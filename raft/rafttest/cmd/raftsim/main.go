// Command raftsim plays seeds of the raft simulator and stops at the first that breaks an
// invariant.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/tinykv/tinykv/raft/rafttest/sim"
)

// shrinkTries bounds how many runs -shrink plays.
const shrinkTries = 1000

func main() {
	seeds := flag.Int("seeds", 100, "how many seeds")
	start := flag.Uint64("start", 1, "the first seed")
	one := flag.Int64("seed", -1, "play this seed only")
	events := flag.Int("events", 20000, "events a seed, before healing")
	verbose := flag.Bool("v", false, "print every event (with -seed) or every seed")
	planted := flag.String("planted", "",
		"measure a planted bug (B1..B9, B18, all); needs make sim-planted's overlay")
	tries := flag.Int("tries", 10, "tries for -planted")
	keep := flag.Bool("k", false, "go on after a violation")
	shrink := flag.Bool("shrink", false, "with -seed: look for the smallest run that fails")
	cutText := flag.String("cut", "", "with -seed: what to leave out, as -shrink prints it")
	plant := flag.String("plant", "", "with -seed: a planted bug to switch on; needs -tags planted")
	flag.Parse()
	cut, err := sim.ParseCut(*cutText)
	if err == nil && *plant != "" {
		err = switchOn(*plant)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	opt := sim.Options{Events: *events, Cut: cut}
	switch {
	case *planted != "":
		os.Exit(runPlanted(os.Stdout, *planted, *tries, *seeds, *events))
	case *one >= 0 && *shrink:
		os.Exit(runShrink(os.Stdout, uint64(*one), opt, *plant))
	case *one >= 0:
		os.Exit(runOne(os.Stdout, uint64(*one), opt, *verbose))
	}
	os.Exit(runMany(os.Stdout, *start, *seeds, *events, *verbose, *keep))
}

// runShrink prints the smallest failing run of a seed, and how to play it.
func runShrink(out io.Writer, seed uint64, opt sim.Options, plant string) int {
	whole := sim.Run(seed, opt)
	res, opt := sim.Shrink(seed, opt, shrinkTries)
	if res.Violation == nil {
		fmt.Fprintf(out, "seed %d: nothing fails\n", seed)
		return 0
	}
	fmt.Fprintf(out, "seed %d: %v\n", seed, res.Violation)
	for _, r := range []struct {
		what string
		res  sim.Result
	}{{"whole run", whole}, {"smallest found", res}} {
		fmt.Fprintf(out, "%-14s %6d events %5d commands %3d faults\n", r.what, r.res.Events,
			r.res.Commands, r.res.Faults)
	}
	replay := sim.ReplayCommand(seed, opt)
	if plant != "" {
		replay = strings.Replace(replay, "go run ", "go run -tags planted ", 1) + " -plant " + plant
	}
	fmt.Fprintf(out, "replay: %s\n", replay)
	return 1
}

func runOne(out io.Writer, seed uint64, opt sim.Options, verbose bool) int {
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
			sim.ReplayCommand(res.Seed, sim.Options{Events: events}))
		if !keep {
			break
		}
	}
	took := time.Since(began)
	fmt.Fprintf(out,
		"%d seeds, %d events in %v: %.0f events/s, %.0fx real time, %d violations\n%+v\n",
		seeds, total, took.Round(time.Millisecond), float64(total)/took.Seconds(),
		float64(virtual)/1e6/took.Seconds(), bad, counts)
	if bad > 0 {
		return 1
	}
	return 0
}
