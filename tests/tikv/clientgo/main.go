// Command clientgo measures puts or gets by TiKV's Go client and prints the line that `tinyctl
// bench --format json` prints. Before it a line with the word "measuring" says that the warm-up has
// ended. `make bench-compare` runs it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pingcap/log"
	"github.com/tikv/client-go/v2/config"
	"github.com/tikv/client-go/v2/rawkv"

	"github.com/tinykv/tinykv/tests/tikv/load"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "clientgo:", err)
		os.Exit(1)
	}
}

// openTimeout bounds the first look at the cluster.
const openTimeout = 30 * time.Second

func run(ctx context.Context, args []string, stdout io.Writer) error {
	f := flag.NewFlagSet("clientgo", flag.ContinueOnError)
	var c load.Config
	pd := f.String("pd", "127.0.0.1:2379", "addresses of the placement service, comma separated")
	pids := f.String("pids", "", "the servers' processes, comma separated, for their CPU time")
	profile := f.String("cpuprofile", "", "file for a CPU profile of this process")
	f.StringVar(&c.Phase, "phase", "get", "put or get")
	f.IntVar(&c.Workers, "workers", 128, "concurrent clients")
	f.IntVar(&c.Keys, "keys", 100_000, "number of keys; gets expect all of them to be there")
	f.IntVar(&c.ValueSize, "value-size", 256, "bytes per value")
	f.DurationVar(&c.Warmup, "warmup", time.Second, "time before it is measured")
	f.DurationVar(&c.Duration, "duration", 5*time.Second, "measured time")
	if err := f.Parse(args); err != nil {
		return err
	}
	for text := range strings.SplitSeq(*pids, ",") {
		if pid, err := strconv.Atoi(text); err == nil {
			c.PIDs = append(c.PIDs, pid)
		} else if text != "" {
			return fmt.Errorf("%q is no process", text)
		}
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(800) // leaves the processors to the servers, as tinyctl's load does
	}
	quiet()
	octx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	cl, err := rawkv.NewClient(octx, strings.Split(*pd, ","), config.DefaultConfig().Security)
	if err != nil {
		return err
	}
	defer func() { _ = cl.Close() }() // nothing is lost
	c.OnMeasure = func() { fmt.Fprintln(stdout, "measuring") }
	if *profile != "" {
		out, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	res, err := load.Run(ctx, cl, c)
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(res)
}

// quiet has the client log errors only, and not to the output of the result.
func quiet() {
	if logger, props, err := log.InitLogger(&log.Config{Level: "error"}); err == nil {
		log.ReplaceGlobals(logger, props)
	}
}
