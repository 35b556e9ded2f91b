package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestDataPathWithoutPlacement: the placement service is gone, every store is restarted, then one
// is killed. A client from before reads and writes on, to leaders that it has never talked to, and
// a store that missed the service registers once it is back. PLACEMENT_AWAY sets for how long it is
// gone; 60s is the long form.
func TestDataPathWithoutPlacement(t *testing.T) {
	away := 5 * time.Second
	if d, err := time.ParseDuration(os.Getenv("PLACEMENT_AWAY")); err == nil {
		away = d
	}
	c := start(t, 3)
	cl := open(t, c)
	key := func(i int) []byte { return fmt.Appendf(nil, "%c%03d", 'a'+i%26, i) }
	require.NoError(t, cl.Put(t.Context(), key(0), []byte("0")))
	waitReplicas(t, c, 3)
	k := console{t, c}
	eventually(t, 20*time.Second, k.splitAt("m"))
	k.regionCount(2)
	for i := range 52 {
		require.NoError(t, cl.Put(t.Context(), key(i), []byte("0")))
	}
	c.Schedulers[0].Kill()
	gone := time.Now()
	for _, p := range c.Stores {
		p.Kill()
		require.NoError(t, p.Start())
		require.NoError(t, p.WaitReady(t.Context()), p.Name)
	}
	n := 0
	work := func() {
		for range 52 {
			n++
			value := fmt.Append(nil, n)
			require.NoError(t, cl.Put(t.Context(), key(n), value))
			got, found, err := cl.Get(t.Context(), key(n))
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, string(value), string(got))
		}
	}
	work()
	victim, err := leaderStore(c)
	require.NoError(t, err)
	victim.Kill()
	for work(); time.Since(gone) < away; work() {
	}
	t.Logf("%d writes and reads within %s without the placement service", n,
		time.Since(gone).Round(time.Second))
	require.NoError(t, c.Schedulers[0].Start())
	require.NoError(t, victim.Start())
	eventually(t, 30*time.Second, k.splitAt("g"))
	k.regionCount(3)
	waitReplicas(t, c, 3)
	checkReplicas(t, c)
}
