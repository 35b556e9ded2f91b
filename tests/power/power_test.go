package power_test

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/tests/power/forgetful"
)

var (
	rounds = flag.Int("rounds", 3, "power losses")
	seed   = flag.Uint64("seed", 1, "seed of times and of what is lost")
)

var binDir string

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "tinykv-power-")
	if err != nil {
		panic(err)
	}
	out, err := exec.Command("go", "build", "-o", dir+string(filepath.Separator),
		"../../cmd/...").CombinedOutput()
	code := 1
	if err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
	} else {
		binDir = dir
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

const (
	writers       = 8
	keysPerWriter = 400
)

// writer overwrites its own keys with growing numbers. Owner of the fields: its goroutine while it
// runs, the test in between.
type writer struct {
	id           int
	tried, acked [keysPerWriter]uint64
	next         uint64
}

func (w *writer) key(i int) []byte { return fmt.Appendf(nil, "w%02d/%04d", w.id, i) }

// run writes until ctx ends. An answer counts if it came while the power was on.
func (w *writer) run(ctx context.Context, cl *client.Client, off *atomic.Bool, acks *atomic.Int64) {
	for ctx.Err() == nil {
		w.next++
		i := int(w.next % keysPerWriter)
		w.tried[i] = w.next
		value := binary.BigEndian.AppendUint64(nil, w.next)
		err := cl.Put(ctx, w.key(i), append(value, make([]byte, 200)...))
		if err == nil && !off.Load() {
			w.acked[i] = w.next
			acks.Add(1)
		}
	}
}

// check compares each key with what its writer knows. Afterwards what was found counts as
// acknowledged.
func (w *writer) check(ctx context.Context, cl *client.Client) error {
	for i := range keysPerWriter {
		if w.tried[i] == 0 {
			continue
		}
		v, found, err := cl.Get(ctx, w.key(i))
		if err != nil {
			return err
		}
		var n uint64
		if found {
			n = binary.BigEndian.Uint64(v)
		}
		if n < w.acked[i] || n > w.tried[i] {
			return fmt.Errorf("%s is %d, acknowledged was %d, the last attempt %d", w.key(i), n,
				w.acked[i], w.tried[i])
		}
		w.acked[i], w.tried[i] = n, n
	}
	return nil
}

type cluster struct {
	t       *testing.T
	disk    *forgetful.Disk
	mnt     string
	unmount func() error
	*localcluster.Cluster
	off     atomic.Bool
	acks    atomic.Int64
	writers []*writer
}

const fastStores = `
[raftstore]
region-heartbeat-interval = "500ms"
store-heartbeat-interval = "500ms"
[storage]
cache-size = "8MiB"
memtable-size = "4MiB"
`

// begin mounts an empty disk and lays out a cluster whose data directories do not exist yet.
func begin(t *testing.T) *cluster {
	c := &cluster{t: t, disk: forgetful.New(), mnt: t.TempDir()}
	c.mount()
	t.Cleanup(func() { require.NoError(t, c.unmount()) })
	dir := filepath.Join(c.mnt, "cluster")
	require.NoError(t, os.Mkdir(dir, 0o700))
	lc, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: dir, StoreConfig: fastStores,
		OnExit: func(p *localcluster.Process, err error) {
			if !c.off.Load() {
				t.Errorf("%s ended by itself (%s): %s", p.Name, localcluster.ExitText(err),
					p.LastWords())
			}
		},
	})
	require.NoError(t, err)
	c.Cluster = lc
	c.disk.SyncAll() // the configuration files, and the directory that the administrator made
	logs := t.TempDir()
	for _, p := range c.Processes() {
		p.LogFile = filepath.Join(logs, p.Name+".log")
	}
	t.Cleanup(c.Stop)
	for i := range writers {
		c.writers = append(c.writers, &writer{id: i})
	}
	return c
}

func (c *cluster) mount() {
	var err error
	c.unmount, err = c.disk.Mount(c.mnt)
	if errors.Is(err, forgetful.ErrNoFUSE) {
		c.t.Skipf("no power loss without FUSE: %v", err)
	}
	require.NoError(c.t, err)
}

func (c *cluster) start() *client.Client {
	ctx, cancel := context.WithTimeout(c.t.Context(), 60*time.Second)
	defer cancel()
	require.NoError(c.t, c.Start(ctx))
	cl, err := client.Open(ctx, c.Endpoints(),
		client.Options{Timeout: 30 * time.Second, NoRetryUnknown: true})
	require.NoError(c.t, err)
	return cl
}

// round writes until enough is true, takes the power, and loses what was not durable.
func (c *cluster) round(cl *client.Client, rng *rand.Rand, enough func() bool) forgetful.Lost {
	ctx, cancel := context.WithCancel(c.t.Context())
	var wg sync.WaitGroup
	for _, w := range c.writers {
		wg.Add(1)
		go func() { defer wg.Done(); w.run(ctx, cl, &c.off, &c.acks) }() // ends with ctx
	}
	require.Eventually(c.t, enough, 60*time.Second, time.Millisecond, "too little was acknowledged")
	c.off.Store(true)
	c.disk.PowerOff()
	var kills sync.WaitGroup
	for _, p := range c.Processes() {
		kills.Add(1)
		go func() { defer kills.Done(); p.Kill() }() // ends with the process
	}
	kills.Wait()
	cancel()
	wg.Wait()
	cl.Close()
	require.NoError(c.t, c.unmount())
	lost := c.disk.Lose(rng)
	c.mount()
	c.off.Store(false)
	return lost
}

func (c *cluster) check(cl *client.Client) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 60*time.Second)
	defer cancel()
	for _, w := range c.writers {
		if err := w.check(ctx, cl); err != nil {
			for _, p := range c.Processes() {
				c.t.Logf("%s: %s", p.Name, p.LastWords())
			}
			require.NoError(c.t, err, "lost")
		}
	}
}

// TestPowerLoss: all processes lose their power at one moment, first right after the cluster's
// first acknowledged writes. Every acknowledged write is there when they are started again.
func TestPowerLoss(t *testing.T) {
	c := begin(t)
	rng := rand.New(rand.NewPCG(*seed, 0))
	var lost forgetful.Lost
	var total int64
	for i := range *rounds {
		cl := c.start()
		c.check(cl)
		c.acks.Store(0)
		until := time.Now().Add(time.Duration(rng.IntN(2500)) * time.Millisecond)
		enough := func() bool { return c.acks.Load() >= 100 && time.Now().After(until) }
		var keep *rand.Rand // nothing that was not durable
		switch {
		case i == 0:
			enough = func() bool { return c.acks.Load() >= 50 }
		case i%2 == 0:
			keep = rng
		}
		n := c.round(cl, keep, enough)
		t.Logf("power loss %d: %d acknowledged writes, %s forgotten", i+1, c.acks.Load(), &n)
		lost.Add(n)
		total += c.acks.Load()
	}
	cl := c.start()
	defer cl.Close()
	c.check(cl)
	require.Positive(t, lost.Bytes, "everything was synced: the test does not bite")
	t.Logf("%d power losses, %d acknowledged writes, 0 lost; forgotten: %s; %d syncs",
		*rounds, total, &lost, c.disk.Syncs())
}

// TestDisk: what the file system forgets, seen through the kernel.
func TestDisk(t *testing.T) {
	disk, mnt := forgetful.New(), t.TempDir()
	unmount := func() error { return nil }
	mount := func() {
		var err error
		unmount, err = disk.Mount(mnt)
		if errors.Is(err, forgetful.ErrNoFUSE) {
			t.Skipf("no FUSE: %v", err)
		}
		require.NoError(t, err)
	}
	mount()
	t.Cleanup(func() { require.NoError(t, unmount()) })
	dir := filepath.Join(mnt, "dir")
	sync := func(path string) {
		f, err := os.Open(path)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
	}
	powerLoss := func() {
		disk.PowerOff()
		require.ErrorContains(t, os.WriteFile(filepath.Join(mnt, "late"), nil, 0o600),
			"input/output error")
		require.NoError(t, unmount())
		disk.Lose(nil)
		mount()
	}
	// A file that was synced in a directory that was synced, but not the one above.
	require.NoError(t, os.Mkdir(dir, 0o700))
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("one"), 0o600))
	sync(file)
	sync(dir)
	powerLoss()
	require.NoDirExists(t, dir)
	// The same with it; then content that is not synced, and a name.
	require.NoError(t, os.Mkdir(dir, 0o700))
	old := strings.Repeat("old", 5000)
	require.NoError(t, os.WriteFile(file, []byte(old), 0o600))
	sync(file)
	sync(dir)
	sync(mnt)
	require.NoError(t, os.WriteFile(file, []byte("new"), 0o600))
	require.NoError(t, os.Rename(file, file+".2"))
	got, err := os.ReadFile(file + ".2")
	require.NoError(t, err)
	require.Equal(t, "new", string(got))
	powerLoss()
	require.NoFileExists(t, file+".2")
	got, err = os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, old, string(got))
}
