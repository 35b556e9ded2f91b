package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
)

// While all members of the placement service are paused, clients that know their regions read and
// write as ever: the service is not on their way. Afterwards it goes on, and a split, which needs
// ids from it, succeeds. SCHED_PAUSE sets the length of the pause.
func TestAllSchedulersPaused(t *testing.T) {
	pause := 10 * time.Second
	if d, err := time.ParseDuration(os.Getenv("SCHED_PAUSE")); err == nil {
		pause = d
	}
	c := startWith(t, 3, 3)
	cl := open(t, c)
	k := console{t, c}
	key := func(i int) []byte { return fmt.Appendf(nil, "%c%03d", 'a'+i%26, i) }
	require.NoError(t, cl.Put(t.Context(), key(0), []byte("0")))
	waitReplicas(t, c, 3)
	for _, at := range []string{"g", "p"} {
		eventually(t, 20*time.Second, k.splitAt(at))
	}
	k.regionCount(3)
	for i := range 260 { // afterwards all routes are known
		require.NoError(t, cl.Put(t.Context(), key(i), []byte("0")))
	}

	for _, p := range c.Schedulers {
		require.NoError(t, p.Signal(syscall.SIGSTOP))
	}
	ctx, cancel := context.WithTimeout(t.Context(), pause)
	defer cancel()
	var ops, worst atomic.Int64
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := 0; ctx.Err() == nil; n++ {
				at, value, began := key((n*4+g)%260), fmt.Appendf(nil, "%d-%d", g, n), time.Now()
				err := cl.Put(t.Context(), at, value)
				if err == nil {
					var got []byte
					if got, _, err = cl.Get(t.Context(), at); err == nil &&
						string(got) != string(value) {
						err = fmt.Errorf("wrote %s, read %s", value, got)
					}
				}
				if err != nil {
					t.Errorf("%s: %v", at, err)
					return
				}
				ops.Add(2)
				worst.Store(max(worst.Load(), int64(time.Since(began))))
			}
		}()
	}
	wg.Wait()
	t.Logf("%d reads and writes in %v without the placement service, the longest pair took %v",
		ops.Load(), pause, time.Duration(worst.Load()).Round(time.Millisecond))
	for _, p := range c.Schedulers {
		require.NoError(t, p.Signal(syscall.SIGCONT))
	}
	require.Less(t, time.Duration(worst.Load()), pause, "some operation waited for the service")

	eventually(t, 20*time.Second, k.splitAt("c"))
	k.regionCount(4)
	require.NoError(t, cl.Put(t.Context(), key(2), []byte("after")))
}

// splitAt orders a split of the region of a key there; it is refused while the region is being
// repaired.
func (k console) splitAt(key string) func() error {
	return func() error {
		var out struct {
			Regions []struct {
				ID     uint64 `json:"id"`
				Leader uint64 `json:"leader_store"`
			} `json:"regions"`
		}
		resp, err := http.Get("http://" + k.c.Endpoints()[0] + "/api/v1/regions?key=" + key)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
			return err
		}
		if len(out.Regions) != 1 || out.Regions[0].Leader == 0 {
			return fmt.Errorf("no leader known of %s: %v", key, out.Regions)
		}
		url := fmt.Sprintf("http://%s/api/v1/regions/%d/split", k.c.Endpoints()[0],
			out.Regions[0].ID)
		req, err := http.NewRequest(http.MethodPost, url,
			strings.NewReader(fmt.Sprintf(`{"keys": ["%x"]}`, key)))
		if err != nil {
			return err
		}
		req.Header.Set(security.ProofHeader, "1")
		resp, err = http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("split at %s: %s", key, resp.Status)
		}
		return nil
	}
}

func (k console) regionCount(n int) {
	k.t.Helper()
	eventually(k.t, 20*time.Second, func() error {
		if out := k.run(0, "region list"); strings.Count(out, "\n") != n+1 {
			return fmt.Errorf("%d regions are wanted: %s", n, out)
		}
		return nil
	})
}
