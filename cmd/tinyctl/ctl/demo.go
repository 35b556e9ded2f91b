package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
	placement "github.com/tinykv/tinykv/scheduler/client"
)

// demoStoreConfig makes regions small, so that a tree of files becomes many of them, and reports
// often.
const demoStoreConfig = `
[raftstore]
region-max-size = "6MiB"
region-split-size = "4MiB"
split-check-interval = "300ms"
region-heartbeat-interval = "1s"
store-heartbeat-interval = "1s"
`

func (a *app) demoCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show a cluster storing a tree of files, losing a store and getting it back",
		Args:  args(cobra.NoArgs),
	}
	dir := cmd.Flags().String("source", "",
		"tree of files to store (default: Go's own source tree)")
	keep := cmd.Flags().Bool("keep", false, "keep the temporary directory")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if a.output == "json" {
			return usagef("demo tells a story, which has no JSON form")
		}
		source := *dir
		if source == "" {
			out, err := exec.CommandContext(cmd.Context(), "go", "env", "GOROOT").Output()
			if err != nil {
				return fmt.Errorf("find Go's source tree (or use --source): %w", err)
			}
			source = filepath.Join(strings.TrimSpace(string(out)), "src")
		}
		return a.demo(cmd.Context(), source, *keep)
	}
	return cmd
}

type demo struct {
	*app
	ctx       context.Context
	start     time.Time
	cluster   *localcluster.Cluster
	client    *client.Client
	placement *placement.Client
	unasked   chan string
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.stdout, "[%5.1fs] %s\n", time.Since(d.start).Seconds(),
		fmt.Sprintf(format, args...))
}

func (a *app) demo(ctx context.Context, source string, keep bool) (err error) {
	dir, err := os.MkdirTemp("", "tinykv-demo-")
	if err != nil {
		return err
	}
	d := &demo{app: a, ctx: ctx, start: time.Now(), unasked: make(chan string, 16)}
	defer func() {
		if keep || (err != nil && ctx.Err() == nil) {
			fmt.Fprintf(a.stdout, "Data and logs are in %s\n", dir)
		} else {
			_ = os.RemoveAll(dir) // temporary anyway
		}
	}()
	d.cluster, err = localcluster.New(localcluster.Options{
		Dir: dir, StoreConfig: demoStoreConfig, StoreMemory: playgroundMemory,
		OnExit: func(p *localcluster.Process, err error) {
			d.unasked <- fmt.Sprintf("%s ended by itself (%s): %s", p.Name,
				localcluster.ExitText(err), p.LastWords())
		},
	})
	if err != nil {
		return err
	}
	defer func() {
		d.say("Stopping all processes.")
		d.cluster.Stop()
		select {
		case what := <-d.unasked:
			err = errors.Join(err, errors.New(what))
		default:
		}
		if err == nil {
			d.say("Done: every byte matched.")
		}
	}()
	return d.run(source, dir)
}

func (d *demo) run(source, dir string) error {
	d.say("Starting 1 scheduler and 3 stores as processes in %s.", dir)
	sctx, cancel := context.WithTimeout(d.ctx, time.Minute)
	defer cancel()
	if err := d.cluster.Start(sctx); err != nil {
		return err
	}
	if err := d.waitReplicas(sctx, d.cluster, 3); err != nil {
		return fmt.Errorf("waiting for 3 replicas: %w", err)
	}
	d.say("The first region has 3 replicas.")
	var err error
	if d.client, err = client.Open(sctx, d.cluster.Endpoints(),
		bulkOptions(time.Minute)); err != nil {
		return err
	}
	defer d.client.Close()
	d.placement = d.client.Placement()
	if d.placement.ClusterID() != d.cluster.ID() {
		return fmt.Errorf("the placement service at %v is of another cluster",
			d.cluster.Endpoints())
	}

	d.say("Importing %s.", source)
	st, err := d.importDir(d.ctx, d.client, source, "src/", 32, false)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	d.say("Imported %s.", st)
	if err := d.waitSpread(); err != nil {
		return err
	}
	if err := d.killAndCheck(source, dir); err != nil {
		return err
	}
	return d.restartAndShow()
}

// waitSpread waits until the data has become many regions and the leaders are spread over the
// stores.
func (d *demo) waitSpread() error {
	ctx, cancel := context.WithTimeout(d.ctx, 40*time.Second)
	defer cancel()
	var regions []regionRow
	quiet, last := 0, 0
	for {
		rows, err := d.regions(ctx, d.placement)
		if err == nil {
			regions = rows
			leaders := map[uint64]int{}
			healthy := true
			for _, r := range rows {
				leaders[r.Leader]++
				healthy = healthy && len(r.Peers) == 3 && r.voters() == 3 && len(r.Pending) == 0 &&
					r.Leader != 0
			}
			lo, hi := len(rows), 0
			for _, n := range leaders {
				lo, hi = min(lo, n), max(hi, n)
			}
			if len(rows) != last || !healthy || len(leaders) < 3 || hi-lo > max(4, len(rows)/5) {
				quiet = 0
			}
			last = len(rows)
			if quiet++; quiet > 8 && len(rows) >= 5 {
				d.say("The data became %d regions; leaders are spread over the 3 stores.",
					len(rows))
				return nil
			}
		}
		select {
		case <-ctx.Done():
			if len(regions) < 5 {
				return fmt.Errorf("only %d regions after the import", len(regions))
			}
			return fmt.Errorf("leaders of %d regions were not spread evenly in time", len(regions))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// traffic reads and rewrites stored files, so in all regions, and reads and writes keys of its own,
// until stopped; it checks every answer.
type traffic struct {
	stop          chan struct{}
	wg            sync.WaitGroup
	reads, writes atomic.Int64
	slowest       atomic.Int64
	mu            sync.Mutex
	err           error
}

func (d *demo) startTraffic(source string, paths []string) *traffic {
	t := &traffic{stop: make(chan struct{})}
	for w := range 8 {
		t.wg.Add(1)
		// Ends when stop is closed.
		go func() {
			defer t.wg.Done()
			for i := 0; ; i++ {
				select {
				case <-t.stop:
					return
				default:
				}
				begin := time.Now()
				if err := d.oneTurn(t, source, paths[(i*8+w)*7919%len(paths)], w, i); err != nil {
					t.mu.Lock()
					t.err = err
					t.mu.Unlock()
					return
				}
				if took := int64(time.Since(begin)); took > t.slowest.Load() {
					t.slowest.Store(took)
				}
			}
		}()
	}
	return t
}

// oneTurn writes a fresh value and reads it back, and rewrites a stored file with what it holds.
func (d *demo) oneTurn(t *traffic, source, path string, w, i int) error {
	check := func(key, want []byte) error {
		if err := d.client.Put(d.ctx, key, want); err != nil {
			return fmt.Errorf("put %s: %w", key, err)
		}
		t.writes.Add(1)
		got, _, err := d.client.Get(d.ctx, key)
		if err != nil {
			return fmt.Errorf("get %s: %w", key, err)
		}
		t.reads.Add(1)
		if !bytes.Equal(got, want) {
			return fmt.Errorf("key %s: wrote %d bytes, read %d others", key, len(want), len(got))
		}
		return nil
	}
	if err := check(fmt.Appendf(nil, "live/%d/%d", w, i%64),
		fmt.Appendf(nil, "%d-%d", w, i)); err != nil {
		return err
	}
	content, err := os.ReadFile(filepath.Join(source, filepath.FromSlash(path)))
	if err != nil {
		return err
	}
	return check([]byte("src/"+path), content)
}

func (t *traffic) end() error {
	close(t.stop)
	t.wg.Wait()
	return t.err
}

// killAndCheck kills the store with the most leaders under traffic, exports everything, and
// compares.
func (d *demo) killAndCheck(source, dir string) error {
	paths, _, err := listFiles(source)
	if err != nil {
		return err
	}
	traffic := d.startTraffic(source, paths)
	victim, leaders, err := d.busiestStore()
	if err != nil {
		return errors.Join(err, traffic.end())
	}
	d.say(
		"Killing %s (kill -9), which leads %d regions, while 8 clients read and write in all regions.", victim.Name, leaders)
	victim.Kill()
	exported := filepath.Join(dir, "export")
	d.say("Exporting everything from the 2 stores that are left.")
	st, err := d.exportDir(d.ctx, d.client, exported, "src/", false)
	if terr := traffic.end(); terr != nil {
		return errors.Join(fmt.Errorf("traffic: %w", terr), err)
	}
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	d.say("Exported %s.", st)
	d.say("Meanwhile %s reads and %s writes succeeded; the slowest group of four took %s.",
		humanize.Comma(traffic.reads.Load()),
		humanize.Comma(traffic.writes.Load()),
		time.Duration(traffic.slowest.Load()).Round(time.Millisecond))
	n, size, err := compareTrees(source, exported)
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	d.say("Compared %d files, %s: all equal, byte for byte.", n, humanize.IBytes(uint64(size)))
	d.say("Restarting %s.", victim.Name)
	if err := victim.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(d.ctx, 30*time.Second)
	defer cancel()
	return victim.WaitReady(ctx)
}

// storeRows are the stores of the demo's own cluster.
func (d *demo) storeRows(ctx context.Context) ([]storeRow, error) {
	own := *d.app
	own.scheduler = strings.Join(d.cluster.Endpoints(), ",")
	return own.stores(ctx)
}

func (d *demo) busiestStore() (*localcluster.Process, int, error) {
	stores, err := d.storeRows(d.ctx)
	if err != nil {
		return nil, 0, err
	}
	var best storeRow
	for _, s := range stores {
		if s.Leaders > best.Leaders {
			best = s
		}
	}
	for _, p := range d.cluster.Stores {
		if p.Addr == best.Address {
			return p, best.Leaders, nil
		}
	}
	return nil, 0, errors.New("no store leads a region")
}

// compareTrees compares two directories file by file.
func compareTrees(want, got string) (files int, size int64, err error) {
	a, _, err := listFiles(want)
	if err != nil {
		return 0, 0, err
	}
	b, _, err := listFiles(got)
	if err != nil {
		return 0, 0, err
	}
	if len(a) != len(b) {
		return 0, 0, fmt.Errorf("%d files stored, %d came back", len(a), len(b))
	}
	for _, path := range a {
		x, err := os.ReadFile(filepath.Join(want, path))
		if err != nil {
			return 0, 0, err
		}
		y, err := os.ReadFile(filepath.Join(got, path))
		if err != nil {
			return 0, 0, err
		}
		if !bytes.Equal(x, y) {
			return 0, 0,
				fmt.Errorf("%s differs: %d bytes stored, %d came back", path, len(x), len(y))
		}
		files++
		size += int64(len(x))
	}
	return files, size, nil
}

// restartAndShow waits until the restarted store has caught up and prints the cluster.
func (d *demo) restartAndShow() error {
	ctx, cancel := context.WithTimeout(d.ctx, 60*time.Second)
	defer cancel()
	for {
		regions, err := d.regions(ctx, d.placement)
		var stores []storeRow
		if err == nil {
			stores, err = d.storeRows(ctx)
		}
		behind, caught := 0, err == nil
		for _, r := range regions {
			behind += len(r.Pending)
		}
		for _, s := range stores {
			caught = caught && s.State == "Up" && s.Leaders > 0
		}
		if caught && behind == 0 {
			d.say("All 3 stores lead regions again, and no replica is behind.")
			fmt.Fprintln(d.stdout)
			if err := d.printStores(stores); err != nil {
				return err
			}
			fmt.Fprintf(d.stdout, "\nThe first of %d regions:\n", len(regions))
			if err := d.printRegions(regions[:min(8, len(regions))]); err != nil {
				return err
			}
			fmt.Fprintln(d.stdout)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the restarted store did not catch up in time: %d replicas behind",
				behind)
		case <-time.After(250 * time.Millisecond):
		}
	}
}
