package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/scheduler/client"
)

func (a *app) playgroundCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "playground", Short: "Run a cluster on this machine until Ctrl-C",
		Args: args(cobra.NoArgs),
	}
	f := cmd.Flags()
	stores := f.Int("kv", 3, "number of stores")
	schedulers := f.Int("scheduler-count", 1,
		"number of placement service members (also --scheduler N)")
	dataDir := f.String("data-dir", "", "keep data and logs here (default tinykv-playground)")
	tmp := f.Bool("tmp", false, "use a temporary directory and remove it at the end")
	secure := f.Bool("tls", false,
		"secure all ports, with certificates that are made in the directory certs")
	mode := f.String("mode", "",
		"what a new cluster holds: raw keys or txn (transactions) (default raw)")
	basePort := f.Int("base-port", 0,
		"first port (default: 2379 for the scheduler, 2479 and on for the stores)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		// On a playground --scheduler counts members: it does not connect to any.
		if given := cmd.Flags().Lookup("scheduler"); given != nil && given.Changed {
			n := 0
			if _, err := fmt.Sscanf(given.Value.String(), "%d", &n); err != nil ||
				fmt.Sprint(n) != given.Value.String() {
				return usagef("--scheduler %s: a playground takes the number of members",
					given.Value)
			}
			*schedulers = n
		}
		if *stores < 1 || *schedulers < 1 {
			return usagef("at least one store and one scheduler are needed")
		}
		if *tmp && *dataDir != "" {
			return usagef("--tmp and --data-dir exclude each other")
		}
		if _, err := clustermode.Parse(*mode); err != nil {
			return usagef("--mode: %v", err)
		}
		return a.playground(cmd.Context(), *dataDir, *tmp, localcluster.Options{
			Stores: *stores, Schedulers: *schedulers, BasePort: *basePort, TLS: *secure,
			SchedulerConfig: fmt.Sprintf("mode = %q\n", *mode),
			StoreMemory:     playgroundMemory,
		})
	}
	return cmd
}

// playgroundMemory is small: all stores share a machine with whatever else runs there.
const playgroundMemory = 256 << 20

func (a *app) playground(ctx context.Context, dir string, tmp bool, o localcluster.Options) error {
	say := a.stdout
	if a.output == "json" {
		say = a.stderr
	}
	switch {
	case tmp:
		var err error
		if dir, err = os.MkdirTemp("", "tinykv-playground-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	case dir == "":
		dir = "tinykv-playground"
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if o.BasePort == 0 {
		o.BasePort = 2379
	}
	ended := make(chan string, 16)
	replicas := min(3, o.Stores)
	o.Dir = abs
	// With fewer stores more replicas would be missing for ever.
	o.SchedulerConfig += fmt.Sprintf("[replication]\nmax-replicas = %d\n", replicas)
	o.OnExit = func(p *localcluster.Process, err error) {
		ended <- fmt.Sprintf("%s ended by itself (%s): %s", p.Name, localcluster.ExitText(err),
			p.LastWords())
	}
	c, err := localcluster.New(o)
	if err != nil {
		return err
	}
	defer func() {
		fmt.Fprintln(say, "Stopping ...")
		c.Stop()
		fmt.Fprintln(say, "Stopped.")
	}()
	fmt.Fprintf(say, "Starting %d scheduler(s) and %d stores in %s ...\n", o.Schedulers,
		o.Stores, abs)
	start := time.Now()
	sctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := c.Start(sctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if err := a.waitReplicas(sctx, c, replicas); err != nil && ctx.Err() == nil {
		fmt.Fprintf(say, "! not all replicas are there yet: %v\n", err)
	}
	if a.output == "json" {
		if err := a.json(playgroundOf(c, abs)); err != nil {
			return err
		}
	} else {
		a.banner(sctx, c, abs, time.Since(start))
	}
	return watch(ctx, say, c, ended)
}

// watch tells of processes that end, until ctx does or nothing is left.
func watch(ctx context.Context, say io.Writer, c *localcluster.Cluster, ended chan string) error {
	for {
		select {
		case <-ctx.Done():
			fmt.Fprintln(say)
			return nil
		case what := <-ended:
			fmt.Fprintf(say, "! %s\n", what)
			if !anyRunning(c.Stores) || !anyRunning(c.Schedulers) {
				return errors.New("nothing is left to serve")
			}
		}
	}
}

// playgroundJSON is what a playground prints once it is ready.
type playgroundJSON struct {
	Directory  string        `json:"directory"`
	Schedulers []processJSON `json:"schedulers"`
	Stores     []processJSON `json:"stores"`
	// CA, Cert and Key are those of an administrator, with --tls.
	CA   string `json:"ca,omitempty"`
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
}

type processJSON struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Status  string `json:"status_address,omitempty"`
}

func playgroundOf(c *localcluster.Cluster, dir string) playgroundJSON {
	files := c.Admin()
	out := playgroundJSON{
		Directory: dir, Schedulers: []processJSON{}, Stores: []processJSON{},
		CA: files.CA, Cert: files.Cert, Key: files.Key,
	}
	for _, p := range c.Schedulers {
		out.Schedulers = append(out.Schedulers, processJSON{p.Name, p.Addr, ""})
	}
	for _, p := range c.Stores {
		out.Stores = append(out.Stores, processJSON{p.Name, p.Addr, p.Status})
	}
	return out
}

func anyRunning(ps []*localcluster.Process) bool {
	for _, p := range ps {
		if p.Running() {
			return true
		}
	}
	return false
}

func (a *app) banner(ctx context.Context, c *localcluster.Cluster, dir string, took time.Duration) {
	w := a.stdout
	sched := strings.Join(c.Endpoints(), ",")
	fmt.Fprintf(w, "\nTinyKV is ready after %s.\n\n", took.Round(10*time.Millisecond))
	for _, p := range c.Schedulers {
		fmt.Fprintf(w, "  %-12s %s   %s%s/\n", p.Name, p.Addr, c.Scheme(), p.Addr)
	}
	for _, p := range c.Stores {
		fmt.Fprintf(w, "  %-12s %s   %s%s/metrics\n", p.Name, p.Addr, c.Scheme(), p.Status)
	}
	fmt.Fprintf(w, "\n  logs and data: %s\n\nTry in another terminal:\n\n", dir)
	if sched != "127.0.0.1:2379" {
		fmt.Fprintf(w, "  export %s=%s\n", schedulerEnv, sched)
	}
	if files := c.Admin(); files.CA != "" {
		fmt.Fprintf(w, "  export %s=%s %s=%s %s=%s\n", caEnv, files.CA, certEnv, files.Cert, keyEnv,
			files.Key)
	}
	exe, err := os.Executable()
	if err != nil {
		exe = "tinyctl"
	} else if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, exe); err == nil && !strings.HasPrefix(rel, "..") {
			exe = rel
		}
	}
	try := []string{"put hello world", "get hello", "status", "region list", "bench --duration 10s"}
	if holdsTransactions(ctx, c.Endpoints()) {
		try = []string{"txn put hello world", "txn get hello", "status", "region list"}
	}
	for _, s := range try {
		fmt.Fprintf(w, "  %s %s\n", exe, s)
	}
	fmt.Fprintf(w, "\nCtrl-C stops everything.\n")
}

// holdsTransactions asks for the cluster's mode, which its directory may have brought.
func holdsTransactions(ctx context.Context, endpoints []string) bool {
	p, err := client.New(ctx, endpoints)
	if err != nil {
		return false
	}
	defer p.Close()
	cfg, err := p.GetClusterConfig(ctx)
	return err == nil && cfg.GetMode() == string(clustermode.Txn)
}

// waitReplicas waits until every known region has n peers, none of them pending.
func (a *app) waitReplicas(ctx context.Context, c *localcluster.Cluster, n int) error {
	var with []client.Option
	if secure := c.ClientTLS(); secure != nil {
		with = append(with, client.WithTLS(secure))
	}
	p, err := client.New(ctx, c.Endpoints(), with...)
	if err != nil {
		return err
	}
	defer p.Close()
	if p.ClusterID() != c.ID() {
		return fmt.Errorf("the placement service at %v is of another cluster", c.Endpoints())
	}
	for {
		rows, err := a.regions(ctx, p)
		ok := err == nil && len(rows) > 0
		for _, r := range rows {
			ok = ok && r.voters() >= n && len(r.Pending) == 0 && r.Leader != 0
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("%d regions, not all with %d replicas", len(rows), n)
			}
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
