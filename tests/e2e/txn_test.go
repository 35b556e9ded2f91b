package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/client/txn"
)

// TestTransactions: the commands of a cluster in mode txn; then counters that many clients
// increment while the leader's process is killed twice: none of the increments is lost, or happens
// twice.
func TestTransactions(t *testing.T) {
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: 3, SchedulerConfig: "mode = \"txn\"\n",
		StoreConfig: fastStores + "\n[gc]\ninterval = \"200ms\"\nlife-time = \"2m\"\n",
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	waitReplicas(t, c, 3)

	must := func(want string, code int, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(ctx, filepath.Join(binDir, "tinyctl"),
			append([]string{"--scheduler", c.Endpoints()[0]}, args...)...)
		out, err := cmd.Output()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		require.Equal(t, code, cmd.ProcessState.ExitCode(), "%v", args)
		require.Equal(t, want, string(out), "%v", args)
	}
	must("", 0, "txn", "put", "a", "1", "b", "2")
	must("a\t1\nb\t2\n", 0, "txn", "get", "a", "b")
	must("a\t1\n", 4, "txn", "get", "a", "c")
	must("b\t2\n", 0, "txn", "scan", "aa")
	must("", 0, "txn", "delete", "a")
	must("b\t2\n", 0, "txn", "scan", "-n", "1")
	must("", 2, "txn", "put", "a")
	require.Eventually(t, func() bool { // the stores raise the safe points
		out, err := exec.CommandContext(ctx, filepath.Join(binDir, "tinyctl"), "--scheduler",
			c.Endpoints()[0], "gc", "status").Output()
		require.NoError(t, err)
		return regexp.MustCompile(
			`(?s)^transactions after +20.*\nversions kept since +20.*\nraised by +the stores\nlocks `).Match(out)
	}, 30*time.Second, 100*time.Millisecond)
	must("KEY  TYPE  TXN  BEGUN  LEFT  PRIMARY\n", 0, "lock", "list")
	must("{\n  \"key\": \"c\",\n  \"key_hex\": \"63\",\n  \"versions\": []\n}\n", 4, "mvcc", "c",
		"-o", "json")
	out, err := exec.CommandContext(ctx, filepath.Join(binDir, "tinyctl"), "--scheduler",
		c.Endpoints()[0], "mvcc", "a").Output()
	require.NoError(t, err)
	require.Regexp(t, `(?s)^RECORD +TXN.*\ndelete +\d+ +\d+ +\S+ +-\nput +\d+ +\d+ +\S+ +1\n$`,
		string(out))
	must("", 1, "put", "a", "raw")
	must("", 1, "get", "a")

	cl, err := txn.Open(ctx, c.Endpoints(), client.Options{})
	require.NoError(t, err)
	defer cl.Close()
	stop := make(chan struct{})
	var done, unknown atomic.Int64
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := w; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				switch err := increment(ctx, cl, i%5); {
				case err == nil:
					done.Add(1)
				case txn.IsUnknown(err):
					unknown.Add(1)
				}
			}
		}()
	}
	for range 2 {
		before := done.Load()
		p, err := leaderStore(c)
		require.NoError(t, err)
		p.Kill()
		eventually(t, 30*time.Second, func() error {
			if n := done.Load() - before; n < 100 {
				return fmt.Errorf("%d increments since the leader was killed", n)
			}
			return nil
		})
		require.NoError(t, p.Start())
		require.NoError(t, p.WaitReady(ctx))
	}
	close(stop)
	wg.Wait()
	x, err := cl.Begin(ctx)
	require.NoError(t, err)
	pairs, err := x.Scan(ctx, []byte("counter"), nil, 0)
	require.NoError(t, err)
	sum := int64(0)
	for _, kv := range pairs {
		n, err := strconv.ParseInt(string(kv.Value), 10, 64)
		require.NoError(t, err)
		sum += n
	}
	require.GreaterOrEqual(t, sum, done.Load())
	require.LessOrEqual(t, sum, done.Load()+unknown.Load())
	t.Logf("%d increments, %d of unknown outcome", done.Load(), unknown.Load())
	checkReplicas(t, c)
}

func increment(ctx context.Context, cl *txn.Client, counter int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	key := fmt.Appendf(nil, "counter-%d", counter)
	return cl.Run(ctx, func(x *txn.Txn) error {
		v, _, err := x.Get(ctx, key)
		if err != nil {
			return err
		}
		n, _ := strconv.Atoi(string(v)) // 0 at first
		x.Set(key, strconv.AppendInt(nil, int64(n)+1, 10))
		return nil
	})
}
