package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"golang.org/x/sys/unix"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
)

// TestDirectoryRemovedUnderLoad: somebody removes a store's engine or raft log while it writes. The
// store ends with exit code 1 and the cause in its last line, and not in a dump; the others go on.
func TestDirectoryRemovedUnderLoad(t *testing.T) {
	for _, dir := range []string{"kv", "raft"} {
		t.Run(dir, func(t *testing.T) {
			ended := make(chan string, 3)
			c, err := localcluster.New(localcluster.Options{
				BinDir: binDir, Dir: t.TempDir(),
				StoreConfig: fastStores + "[raftlog]\nsegment-size = \"4MiB\"\n",
				OnExit: func(p *localcluster.Process, err error) {
					ended <- p.Name + ": " + localcluster.ExitText(err)
				},
			})
			require.NoError(t, err)
			t.Cleanup(c.Stop)
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			require.NoError(t, c.Start(ctx))
			cl := open(t, c)
			waitReplicas(t, c, 3)
			load, stop := context.WithCancel(ctx)
			done := make(chan struct{})
			go func() { // ends with load
				defer close(done)
				fill(load, cl, "load", 16<<10)
			}()
			defer func() { stop(); <-done }()
			victim := c.Stores[1]
			require.NoError(t, os.RemoveAll(filepath.Join(victim.DataDir, dir)))
			select {
			case text := <-ended:
				require.Equal(t, victim.Name+": exit status 1", text)
			case <-ctx.Done():
				t.Fatal("the store goes on without its directory")
			}
			text, err := os.ReadFile(victim.LogFile)
			require.NoError(t, err)
			require.NotContains(t, string(text), "goroutine ")
			require.NotContains(t, string(text), "fatal error")
			require.Contains(t, victim.LastWords(), "no such file or directory")
			require.NoError(t, cl.Put(ctx, []byte("after"), []byte("x")))
		})
	}
}

// fill writes values of a size under prefix, four at a time, until ctx ends, and returns how many
// were acknowledged.
func fill(ctx context.Context, cl *client.Client, prefix string, size int) (acked int) {
	counts := make(chan int)
	for w := range 4 {
		go func() { // ends with ctx
			n, value := 0, make([]byte, size)
			rng := rand.NewChaCha8([32]byte{byte(w)})
			for i := 0; ctx.Err() == nil; i++ {
				_, _ = rng.Read(value) // never fails; does not compress
				err := cl.Put(ctx, fmt.Appendf(nil, "%s/%d/%08d", prefix, w, i), value)
				if err == nil {
					n++
				}
			}
			counts <- n
		}()
	}
	for range 4 {
		acked += <-counts
	}
	return acked
}

// smallDisk mounts a file system of its own in place of a store's data directory.
func smallDisk(t *testing.T, dir, options string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o700))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("a small disk needs a mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func diskFull(c *localcluster.Cluster) (full int) {
	for _, p := range c.Stores {
		var st struct {
			DiskFull bool `json:"disk_full"`
		}
		if resp, err := http.Get("http://" + p.Status + "/status"); err == nil {
			if json.NewDecoder(resp.Body).Decode(&st) == nil && st.DiskFull {
				full++
			}
			resp.Body.Close()
		}
	}
	return full
}

// TestSmallDisks: three stores with the default configuration on disks of their own are filled. No
// store dies, writes are refused; all can be started again and serve reads; deletes bring back the
// space, and writes go on. Once with few bytes and once with few inodes.
func TestSmallDisks(t *testing.T) {
	for name, options := range map[string]string{
		"bytes": "size=400m", "inodes": "size=1g,nr_inodes=560",
	} {
		t.Run(name, func(t *testing.T) { testSmallDisks(t, options, name == "bytes") })
	}
}

func testSmallDisks(t *testing.T, options string, deletes bool) {
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(),
		StoreConfig: "[raftstore]\nregion-heartbeat-interval = \"500ms\"\n",
		OnExit: func(p *localcluster.Process, err error) {
			t.Errorf("%s ended by itself (%s): %s", p.Name, localcluster.ExitText(err),
				p.LastWords())
		},
	})
	require.NoError(t, err)
	for _, p := range c.Stores {
		smallDisk(t, p.DataDir, options)
	}
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	cl := open(t, c)
	waitReplicas(t, c, 3)
	load, stop := context.WithCancel(ctx)
	acked := make(chan int, 1)
	go func() { acked <- fill(load, cl, "load", 64<<10) }() // ends with load
	if !deletes {
		for i, p := range c.Stores { // use up the inodes
			for j := range 400 {
				require.NoError(t,
					os.WriteFile(filepath.Join(p.DataDir, "snap",
						fmt.Sprintf("ballast-%d-%d", i, j)), nil, 0o600))
			}
		}
	}
	eventually(t, 60*time.Second, func() error {
		if n := diskFull(c); n == 0 {
			return fmt.Errorf("%d disks are full", n)
		}
		return nil
	})
	time.Sleep(3 * time.Second) // under load on the full disk
	stop()
	n := <-acked
	for _, p := range c.Stores {
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(p.DataDir, &st))
		t.Logf("%s: %d MiB and %d inodes are free", p.Name, st.Bavail*uint64(st.Bsize)>>20,
			st.Ffree)
	}
	t.Logf("%d MiB were acknowledged", n*64>>10)
	eventually(t, 20*time.Second, func() error {
		short, done := context.WithTimeout(ctx, 2*time.Second)
		defer done()
		if err := cl.Put(short, []byte("more"), make([]byte, 1<<10)); err == nil ||
			!strings.Contains(err.Error(), "disk") {
			return fmt.Errorf("a put on full disks: %v", err)
		}
		return nil
	})

	for _, p := range c.Stores {
		p.Kill()
	}
	require.NoError(t, c.Start(ctx))
	v, found, err := cl.Get(ctx, []byte("load/0/00000000"))
	require.NoError(t, err)
	require.True(t, found)
	require.Len(t, v, 64<<10)
	if !deletes {
		for i, p := range c.Stores {
			for j := range 400 {
				require.NoError(t,
					os.Remove(filepath.Join(p.DataDir, "snap", fmt.Sprintf("ballast-%d-%d", i, j))))
			}
		}
	} else {
		for w := range 4 {
			for i := 0; i < n; i++ {
				require.NoError(t, cl.Delete(ctx, fmt.Appendf(nil, "load/%d/%08d", w, i)))
			}
		}
	}
	eventually(t, 60*time.Second, func() error {
		short, done := context.WithTimeout(ctx, time.Second)
		defer done()
		return cl.Put(short, []byte("more"), make([]byte, 1<<10))
	})
}

// TestFullDiskUnderTheScheduler: the disk of a lone placement member gets full. It says so, stays
// up, also over a restart, and leads again when there is room; with its alarm nothing is lost or
// ends.
func TestFullDiskUnderTheScheduler(t *testing.T) {
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: 1, StoreConfig: fastStores,
		OnExit: func(p *localcluster.Process, err error) {
			t.Errorf("%s ended by itself (%s): %s", p.Name, localcluster.ExitText(err),
				p.LastWords())
		},
	})
	require.NoError(t, err)
	s := c.Schedulers[0]
	smallDisk(t, s.DataDir, "size=240m,mode=700")
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	cl := open(t, c)
	require.NoError(t, cl.Put(ctx, []byte("k"), []byte("v")))
	health := func(want int) error {
		resp, err := http.Get("http://" + s.Addr + "/api/v1/health")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != want ||
			want == 503 && !strings.Contains(string(text), "NOSPACE") {
			return fmt.Errorf("health: %s %s %v", resp.Status, text, err)
		}
		return nil
	}
	eventually(t, 10*time.Second, func() error { return health(200) })
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(s.DataDir, &st))
	ballast := filepath.Join(s.DataDir, "ballast")
	free := int64(st.Bavail) * st.Bsize
	require.NoError(t, os.WriteFile(ballast, make([]byte, free-(20<<20)), 0o600))
	eventually(t, 20*time.Second, func() error { return health(503) })
	// The stores serve on; the member can be started on the full disk, and says the same.
	require.NoError(t, cl.Put(ctx, []byte("k"), []byte("w")))
	s.Kill()
	require.NoError(t, c.Start(ctx))
	eventually(t, 20*time.Second, func() error { return health(503) })
	require.NoError(t, os.Remove(ballast))
	eventually(t, 20*time.Second, func() error { return health(200) })
	require.NoError(t, cl.Put(ctx, []byte("k"), []byte("x")))
	text, err := os.ReadFile(s.LogFile)
	require.NoError(t, err)
	require.Contains(t, string(text), "the disk is full")
	require.NotContains(t, string(text), "goroutine ")
}

// TestFullFollower: a follower's disk is full, the leader's is not. The follower takes nothing more
// and lives, the others go on, and it catches up when there is room.
func TestFullFollower(t *testing.T) {
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(),
		StoreConfig: "[raftstore]\nregion-heartbeat-interval = \"500ms\"\n",
		OnExit: func(p *localcluster.Process, err error) {
			t.Errorf("%s ended by itself (%s): %s", p.Name, localcluster.ExitText(err),
				p.LastWords())
		},
	})
	require.NoError(t, err)
	for _, p := range c.Stores {
		smallDisk(t, p.DataDir, "size=4g")
	}
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	cl := open(t, c)
	waitReplicas(t, c, 3)
	require.NoError(t, cl.Put(ctx, []byte("k"), []byte("v")))
	all, err := peers(c)
	require.NoError(t, err)
	var victim *localcluster.Process
	for _, p := range c.Stores {
		if infos := all[p.Name]; len(infos) > 0 && !infos[0].IsLeader {
			victim = p
		}
	}
	require.NotNil(t, victim)
	ballast := filepath.Join(victim.DataDir, "ballast")
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(victim.DataDir, &st))
	f, err := os.Create(ballast)
	require.NoError(t, err)
	require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-(160<<20)))
	require.NoError(t, f.Close())
	load, stop := context.WithTimeout(ctx, 60*time.Second)
	defer stop()
	began, acked := time.Now(), 0
	for acked*64>>10 <= 200 && load.Err() == nil {
		part, end := context.WithTimeout(load, 2*time.Second)
		acked += fill(part, cl, fmt.Sprint("load", acked), 64<<10)
		end()
	}
	require.NoError(t, unix.Statfs(victim.DataDir, &st))
	t.Logf("%d MiB were acknowledged within %v, %d are free on the full disk", acked*64>>10,
		time.Since(began).Round(time.Second), int64(st.Bavail)*st.Bsize>>20)
	require.Greater(t, acked*64>>10, 200, "the full follower stopped the others")
	require.NoError(t, os.Remove(ballast))
	eventually(t, 20*time.Second, func() error { return cl.Put(ctx, []byte("k"), []byte("w")) })
	eventually(t, 60*time.Second, func() error {
		all, err := peers(c)
		if err != nil {
			return err
		}
		behind := uint64(0)
		for _, infos := range all {
			for _, info := range infos {
				for _, mine := range all[victim.Name] {
					if mine.Region.GetId() == info.Region.GetId() &&
						mine.AppliedIndex < info.AppliedIndex {
						behind++
					}
				}
			}
		}
		if behind > 0 || len(all[victim.Name]) == 0 {
			return fmt.Errorf("%d regions are behind on the full follower", behind)
		}
		return nil
	})
}
