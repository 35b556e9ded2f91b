package ctl

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/pkg/goruntime"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// benchTarget says what is loaded, and how it is reached.
type benchTarget struct {
	driver     string
	endpoints  []string
	leaderOnly bool
	conns      int
	unary      bool
	pids       []int
	written    func() (*loadgen.Written, error)
	format     string
	keys       int // see loadgen.EtcdOptions
}

// benchName is the command for load, and has the others for load below it.
const benchName = "bench"

func (a *app) benchCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: benchName, Short: "Measure throughput and latency with a closed-loop load",
		Args: args(cobra.NoArgs),
		Long: `Every worker has one request under way and sends the next when it is answered. Phases: load writes every
key once; put, get, mixed (half puts, half gets), scan and delete run for --duration after --warmup.
CPU and memory of the servers are shown when they are processes of this machine.`,
	}
	var c loadgen.Config
	var t benchTarget
	f := cmd.Flags()
	phases := f.String("phases", "load,put,get,mixed,scan",
		"what to run, in order: "+strings.Join(loadgen.Phases, " "))
	f.IntVarP(&c.Workers, "workers", "w", 32, "concurrent clients")
	f.IntVar(&c.Keys, "keys", 100_000, "number of keys")
	f.IntVar(&c.KeySize, "key-size", 16, "bytes per key, at least 8")
	f.IntVar(&c.ValueSize, "value-size", 256, "bytes per value; they do not compress")
	f.IntVar(&c.ScanLimit, "scan-limit", 100, "pairs per scan")
	f.DurationVar(&c.Duration, "duration", 5*time.Second,
		"how long each phase is measured; load ends with its last key")
	f.DurationVar(&c.Warmup, "warmup", time.Second,
		"how long each phase but load runs before it is measured")
	f.Float64Var(&c.Rate, "rate", 0,
		"limit to so many operations a second; latencies then count from the planned time")
	zipf := f.Bool("zipf", false, "zipfian instead of uniform choice of keys")
	f.Float64Var(&c.Zipf, "zipf-theta", 0.99, "exponent of --zipf, below 1")
	a.benchTargetFlags(cmd, &t)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !*zipf {
			c.Zipf = 0
		}
		names := strings.Split(*phases, ",")
		for _, p := range names {
			c.Phase = p
			if err := c.Validate(); err != nil {
				return &usageError{err}
			}
		}
		t.keys = c.Keys
		d, done, err := a.openTarget(cmd.Context(), &t)
		if err != nil {
			return err
		}
		defer done()
		c.PIDs, c.Written = t.pids, t.written
		return a.bench(cmd.Context(), d, c, names, t.format)
	}
	cmd.AddCommand(a.ycsbCmd())
	return cmd
}

// benchTargetFlags are the flags that say what is loaded.
func (a *app) benchTargetFlags(cmd *cobra.Command, t *benchTarget) {
	f := cmd.Flags()
	f.StringVar(&t.driver, "driver", "tinykv", "what is loaded: tinykv, or etcd to compare with")
	f.StringSliceVar(&t.endpoints, "endpoints", nil,
		"addresses of etcd's members (default: those of --scheduler)")
	f.BoolVar(&t.leaderOnly, "leader-only", false,
		"etcd: send everything to the member that leads, its best case")
	f.IntVar(&t.conns, "conns", 0, "connections per server (default 4; 1 for the stream)")
	f.BoolVar(&t.unary, "unary", false, "tinykv: one RPC per request instead of the batched stream")
	f.IntSliceVar(&t.pids, "pids", nil,
		"the servers' processes (default: those that listen on the addresses)")
	f.StringVar(&t.format, "format", "",
		"table, or json for one line per phase (default: --output)")
}

// openTarget connects to what is loaded, and finds its processes.
func (a *app) openTarget(
	ctx context.Context, t *benchTarget,
) (d loadgen.Driver, done func(), err error) {
	if !slices.Contains([]string{"", "table", "json"}, t.format) {
		return nil, nil, usagef("--format %q is neither table nor json", t.format)
	}
	if t.conns < 0 {
		return nil, nil, usagef("--conns must be positive")
	}
	if t.endpoints == nil {
		t.endpoints = a.endpoints()
	}
	var servers []string
	switch t.driver {
	case "tinykv":
		d, servers, done, err = a.openTinyKV(ctx, t)
	case "etcd":
		if t.unary {
			return nil, nil, usagef("--unary is for the driver tinykv")
		}
		d, servers, done, err = openEtcd(ctx, t)
	default:
		return nil, nil, usagef("--driver %q is neither tinykv nor etcd", t.driver)
	}
	if err != nil {
		return nil, nil, err
	}
	if t.pids == nil {
		t.pids = loadgen.ListenerPIDs(servers)
	}
	floor, closeTarget := goruntime.SetHeapFloor(goruntime.LoadGeneratorHeap), done
	return d, func() { closeTarget(); floor.Stop() }, nil
}

func (a *app) openTinyKV(
	ctx context.Context, t *benchTarget,
) (loadgen.Driver, []string, func(), error) {
	if t.leaderOnly {
		return nil, nil, nil,
			usagef(
				"--leader-only is for the driver etcd: a client of tinykv finds leaders by itself")
	}
	if t.conns == 0 {
		t.conns = loadgen.DefaultConns(t.unary)
	}
	name := "tinykv"
	if t.unary {
		name = "tinykv-unary"
	}
	c, err := a.openWith(ctx, client.Options{Timeout: a.timeout, Conns: t.conns, Unary: t.unary})
	if err != nil {
		return nil, nil, nil, err
	}
	servers, err := loadgen.TinyKVServers(ctx, c, a.endpoints())
	if err != nil {
		c.Close()
		return nil, nil, nil, err
	}
	stores, err := c.Placement().GetAllStores(ctx, true)
	if err != nil {
		c.Close()
		return nil, nil, nil, err
	}
	secure, err := a.secure()
	if err != nil {
		c.Close()
		return nil, nil, nil, err
	}
	t.written = func() (*loadgen.Written, error) { return writtenBy(ctx, stores, secure) }
	return loadgen.NewTinyKV(c, name), servers, c.Close, nil
}

// writtenBy asks all stores what they have written to their disks.
func writtenBy(
	ctx context.Context, stores []*metapb.Store, secure *tls.Config,
) (*loadgen.Written, error) {
	out := &loadgen.Written{}
	for _, s := range stores {
		metrics, err := scrape(ctx, s.StatusAddress, secure, loadgen.WrittenMetrics()...)
		if err == nil {
			err = out.Add(metrics)
		}
		if err != nil {
			return nil, fmt.Errorf("store %d: %w", s.Id, err)
		}
	}
	return out, nil
}

func openEtcd(ctx context.Context, t *benchTarget) (loadgen.Driver, []string, func(), error) {
	if t.conns == 0 {
		t.conns = 4
	}
	servers, err := loadgen.EtcdServers(ctx, t.endpoints)
	if err != nil {
		return nil, nil, nil, err
	}
	d, err := loadgen.NewEtcd(ctx,
		loadgen.EtcdOptions{
			Endpoints: t.endpoints, Conns: t.conns, LeaderOnly: t.leaderOnly, Keys: t.keys,
		})
	if err != nil {
		return nil, nil, nil, err
	}
	return d, servers, d.Close, nil
}

// bench runs phases in order and prints each result as soon as it is there. The phase that an
// interrupt ends is printed as far as it was measured.
func (a *app) bench(
	ctx context.Context, d loadgen.Driver, c loadgen.Config, phases []string, format string,
) error {
	table, results := loadgen.NewTable(a.stdout), []loadgen.Result{}
	add := func(r loadgen.Result) error {
		switch {
		case format == "json":
			return json.NewEncoder(a.stdout).Encode(r)
		case format == "" && a.output == "json":
			results = append(results, r)
			return nil
		}
		if r.FirstError != "" {
			fmt.Fprintf(a.stderr, "%s: the first error: %s\n", r.Phase, r.FirstError)
		}
		return table.Add(r)
	}
	var failed error
	for _, c.Phase = range phases {
		var res loadgen.Result
		res, failed = loadgen.Run(ctx, d, c)
		if res.Ops > 0 && (failed == nil || ctx.Err() != nil) {
			if err := add(res); err != nil {
				return err
			}
		}
		if failed != nil {
			break
		}
	}
	if len(results) > 0 {
		if err := a.json(results); err != nil {
			return err
		}
	}
	return failed
}
