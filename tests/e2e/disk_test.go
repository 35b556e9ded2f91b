package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
)

// TestDirectoryRemovedUnderLoad: somebody removes a store's engine or raft log while it writes. The store
// ends with exit code 1 and the cause in its last line, and not in a dump; the others go on.
func TestDirectoryRemovedUnderLoad(t *testing.T) {
	for _, dir := range []string{"kv", "raft"} {
		t.Run(dir, func(t *testing.T) {
			ended := make(chan string, 3)
			c, err := localcluster.New(localcluster.Options{
				BinDir: binDir, Dir: t.TempDir(), StoreConfig: fastStores + "[raftlog]\nsegment-size = \"4MiB\"\n",
				OnExit: func(p *localcluster.Process, err error) { ended <- p.Name + ": " + localcluster.ExitText(err) },
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

// fill writes values of a size under prefix, four at a time, until ctx ends, and returns how many were
// acknowledged.
func fill(ctx context.Context, cl *client.Client, prefix string, size int) (acked int) {
	counts := make(chan int)
	for w := range 4 {
		go func() { // ends with ctx
			n := 0
			for i := 0; ctx.Err() == nil; i++ {
				err := cl.Put(ctx, fmt.Appendf(nil, "%s/%d/%08d", prefix, w, i), []byte(strings.Repeat("v", size)))
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
