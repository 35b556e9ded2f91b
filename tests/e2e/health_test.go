package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// until runs `status` until it has the exit code and prints all of want.
func (k console) until(code int, want ...string) {
	k.t.Helper()
	began := time.Now()
	eventually(k.t, 60*time.Second, func() error {
		got, out := k.try("status")
		if got != code {
			return fmt.Errorf("exit code %d instead of %d: %s", got, code, out)
		}
		for _, w := range want {
			if !strings.Contains(out, w) {
				return fmt.Errorf("%q is not in: %s", w, out)
			}
		}
		return nil
	})
	k.t.Logf("exit code %d, %q after %s", code, want, time.Since(began).Round(100*time.Millisecond))
}

// TestStatusNamesWhatIsLost: stores and members that are killed are named, two of three stores
// leave no quorum, burying them makes nothing fine, and with all of them back it is healthy again.
func TestStatusNamesWhatIsLost(t *testing.T) {
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: 3, Schedulers: 3, StoreConfig: fastStores,
		SchedulerConfig: "[schedule]\nstore-disconnect = \"3s\"\n",
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	require.NoError(t, c.Start(t.Context()))
	waitReplicas(t, c, 3)
	k := console{t, c}
	k.until(0, "All 1 regions have 3 replicas and a leader.", "3 of 3 stores up",
		"3 of 3 placement members alive")

	c.Schedulers[0].Kill()
	k.until(1, "member-dead: member "+c.Schedulers[0].Name+": does not answer",
		"-> start the member again")
	require.NoError(t, c.Schedulers[0].Start())
	k.until(0)

	lost := c.Stores[:2]
	for _, p := range lost {
		p.Kill()
	}
	k.until(1, "critical no-quorum: regions: 1 of 1", "store-silent: store",
		lost[0].Addr+" has not reported", lost[1].Addr+" has not reported")
	for _, p := range c.Schedulers { // the next leader does not call it fine either
		p.Kill()
	}
	code, out := k.try("status")
	require.Equal(t, 3, code, out)
	require.Contains(t, out, "cannot tell")
	for _, p := range c.Schedulers {
		require.NoError(t, p.Start())
	}
	k.until(1, "store-silent: store", "There may be more: the placement leader has led for")
	for _, p := range lost {
		require.NoError(t, p.Start())
	}
	k.until(0)
}
