// Command regions measures what many regions cost when nobody uses them: CPU and memory of all
// servers, and how long a restart takes until every region serves again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
	"github.com/tinykv/tinykv/tests/bench/rig"
)

type options struct {
	bins    rig.Bins
	regions int
	idle    time.Duration
	limit   time.Duration // of the whole run
}

func main() {
	var o options
	bin := flag.String("bin", "bin", "directory with the programs, as the Makefile builds them")
	flag.IntVar(&o.regions, "regions", 1000, "number of regions")
	flag.DurationVar(&o.idle, "idle", 30*time.Second, "how long to look at the idle cluster")
	flag.DurationVar(&o.limit, "limit", 15*time.Minute, "give up after this")
	flag.Parse()
	o.bins = rig.DefaultBins(*bin)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	f, err := run(ctx, o, os.Stderr)
	if err == nil {
		err = f.report(os.Stdout, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "regions:", err)
		os.Exit(1)
	}
}

// settleLimit bounds the wait for regions to come to rest after the splits.
const settleLimit = time.Minute

// figures of one run. Times are seconds, shares are percent of one core, sizes MiB.
type figures struct {
	split, settled       float64
	cpuAll, cpuStores    float64
	rssFresh, rssAll     float64
	rssStores            float64
	restart, firstServed float64
	behind               int // regions without leader or with a replica missing or pending
}

func run(ctx context.Context, o options, progress io.Writer) (*figures, error) {
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	s, err := rig.NewTinyKV(o.bins, 3, "")
	if err != nil {
		return nil, err
	}
	defer s.Stop()
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	if err := rig.FirstPut(ctx, s, rig.Mode{}); err != nil {
		return nil, err
	}
	if err := s.WaitReplicas(ctx, 3); err != nil {
		return nil, err
	}
	f := &figures{}
	if f.rssFresh, err = rss(s.StorePIDs()); err != nil {
		return nil, err
	}
	fmt.Fprintf(progress, "splitting into %d regions\n", o.regions)
	began := time.Now()
	if err := s.Split(ctx, loadgen.SplitKeys(o.regions, 16)); err != nil {
		return nil, err
	}
	f.split = time.Since(began).Seconds()
	if err := s.WaitSettled(ctx, 5*time.Second, settleLimit); err != nil {
		return f, err
	}
	f.settled = time.Since(began).Seconds()
	regions, err := s.Regions(ctx)
	if err != nil {
		return f, err
	}
	for _, r := range regions {
		if len(r.PendingPeers) > 0 || r.Voters() < 3 || r.Leader.GetId() == 0 {
			f.behind++
		}
	}
	fmt.Fprintf(progress, "idle for %s\n", o.idle)
	if err := f.idle(ctx, s, o.idle); err != nil {
		return f, err
	}
	return f, f.restarted(ctx, s, o.regions, progress)
}

func rss(pids []int) (float64, error) {
	_, bytes, err := loadgen.ProcessUsage(pids...)
	return float64(bytes) / (1 << 20), err
}

// idle measures the processes while nobody uses them.
func (f *figures) idle(ctx context.Context, s *rig.TinyKV, took time.Duration) error {
	all, stores := s.PIDs(), s.StorePIDs()
	usage := func() (a, b float64, err error) {
		a, _, err = loadgen.ProcessUsage(all...)
		b, _, err2 := loadgen.ProcessUsage(stores...)
		return a, b, errors.Join(err, err2)
	}
	began := time.Now()
	a0, s0, err := usage()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(took):
	}
	a1, s1, err := usage()
	if err != nil {
		return err
	}
	seconds := time.Since(began).Seconds()
	f.cpuAll, f.cpuStores = 100*(a1-a0)/seconds, 100*(s1-s0)/seconds
	if f.rssAll, err = rss(all); err != nil {
		return err
	}
	f.rssStores, err = rss(stores)
	return err
}

// restarted stops all stores in order, starts them, and reads from every region until it answers.
func (f *figures) restarted(
	ctx context.Context, s *rig.TinyKV, regions int, progress io.Writer,
) error {
	fmt.Fprintln(progress, "restarting the stores")
	for _, p := range s.Stores {
		p.Stop(30 * time.Second)
	}
	began := time.Now()
	if err := s.Start(ctx); err != nil {
		return err
	}
	d, err := s.Open(ctx, rig.Mode{})
	if err != nil {
		return err
	}
	defer d.Close()
	// the first key of every region but the first
	keys := append([][]byte{{0}}, loadgen.SplitKeys(regions, 16)...)
	var next, first atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range 64 {
		wg.Add(1)
		// Ends with the keys, or with ctx.
		go func() {
			defer wg.Done()
			for {
				i := int(next.Add(1)) - 1
				if i >= len(keys) {
					return
				}
				if err := serves(ctx, d, keys[i]); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				first.CompareAndSwap(0, int64(time.Since(began)))
			}
		}()
	}
	wg.Wait()
	f.restart, f.firstServed = time.Since(began).Seconds(), time.Duration(first.Load()).Seconds()
	if e := failed.Load(); e != nil {
		return fmt.Errorf("after the restart: %w", *e)
	}
	return nil
}

// serves reads a key until it can be read.
func serves(ctx context.Context, d loadgen.Driver, key []byte) error {
	for {
		_, err := d.Read(ctx, key)
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

func (f *figures) report(w io.Writer, o options) error {
	cpu, mem := "<= 5 %, stretch <= 2 %", "<= 450 MiB, stretch <= 260 MiB"
	if o.regions > 1000 {
		cpu, mem = "<= 10 % per store", "-"
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(tw, "%d REGIONS ON 3 STORES\tMEASURED\tGOAL\t\n", o.regions)
	row := func(name, format string, v float64, goal string) {
		fmt.Fprintf(tw, "%s\t"+format+"\t%s\t\n", name, v, goal)
	}
	row("split into them", "%.1f s", f.split, "-")
	row("split and settled", "%.1f s", f.settled, "-")
	row("regions not whole by then", "%.0f", float64(f.behind), "0")
	row("idle CPU, all processes", "%.1f %%", f.cpuAll, cpu)
	row("idle CPU, one store", "%.1f %%", f.cpuStores/3, "<= 3 % at 1,000, <= 10 % at 10,000")
	row("RSS, 3 stores", "%.0f MiB", f.rssStores, mem)
	row("RSS, 3 stores, before the splits", "%.0f MiB", f.rssFresh, "-")
	row("RSS, all processes", "%.0f MiB", f.rssAll, "-")
	row("restart to the first region served", "%.1f s", f.firstServed, "-")
	row("restart to all regions served", "%.1f s", f.restart, "-")
	return tw.Flush()
}
