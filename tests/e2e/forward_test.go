package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/tests/netproxy"
)

// detour tells a client other addresses of the stores.
type detour struct {
	client.Placement
	addr map[uint64]string
}

func (d detour) GetStore(ctx context.Context, id uint64) (*metapb.Store, error) {
	st, err := d.Placement.GetStore(ctx, id)
	if err != nil {
		return nil, err
	}
	other := *st
	other.Address = d.addr[id]
	return &other, nil
}

// TestLeaderThatOnlyStoresReach: a client that is cut off from a leader, by refused connections or
// by silence, reads and writes by way of another store, and directly again once it can.
func TestLeaderThatOnlyStoresReach(t *testing.T) {
	c := start(t, 3)
	direct := open(t, c)
	require.NoError(t, direct.Put(t.Context(), []byte("k"), []byte("0")))
	waitReplicas(t, c, 3)
	net := netproxy.New(func(string) int { return 0 })
	t.Cleanup(net.Close)
	stores, err := direct.Placement().GetAllStores(t.Context(), true)
	require.NoError(t, err)
	d := detour{direct.Placement(), map[uint64]string{}}
	for _, st := range stores {
		d.addr[st.Id], err = net.Listen(fmt.Sprint("store-", st.Id), st.Address)
		require.NoError(t, err)
	}
	cl := client.New(d, client.Options{Timeout: 20 * time.Second})
	defer cl.Close()
	require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("1")))
	for _, rule := range []netproxy.Rule{{Cut: true}, {Hold: true}} {
		r, err := direct.Placement().GetRegion(t.Context(), []byte("k"))
		require.NoError(t, err)
		name := fmt.Sprint("store-", r.Leader.StoreId)
		net.Set(netproxy.Outside, name, rule)
		net.Set(name, netproxy.Outside, rule)
		require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("first"))) // finds the way
		for i := range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			value := fmt.Sprint(rule, i)
			require.NoError(t, cl.Put(ctx, []byte("k"), []byte(value)), "%+v", rule)
			got, found, err := cl.Get(ctx, []byte("k"))
			cancel()
			require.NoError(t, err, "%+v", rule)
			require.True(t, found)
			require.Equal(t, value, string(got))
		}
		after, err := direct.Placement().GetRegion(t.Context(), []byte("k"))
		require.NoError(t, err)
		require.Equal(t, r.Leader.StoreId, after.Leader.StoreId, "the leader stays where it is")
		require.Positive(t, metricSum(t, c, "tinykv_forwarded_requests_total"))
		net.Heal()
		eventually(t, 30*time.Second, func() error {
			before := metricSum(t, c, "tinykv_forwarded_requests_total")
			require.NoError(t, cl.Put(t.Context(), []byte("k"), []byte("direct")))
			if now := metricSum(t, c, "tinykv_forwarded_requests_total"); now > before {
				return fmt.Errorf("still by way of another store: %v, then %v", before, now)
			}
			return nil
		})
	}
}

// metricSum adds up a counter of all stores.
func metricSum(t *testing.T, c *localcluster.Cluster, name string) (sum float64) {
	t.Helper()
	for _, p := range c.Stores {
		resp, err := http.Get("http://" + p.Status + "/metrics")
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, resp.Body.Close())
		require.NoError(t, err)
		for line := range strings.Lines(string(body)) {
			if value, ok := strings.CutPrefix(line, name+" "); ok {
				n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				require.NoError(t, err)
				sum += n
			}
		}
	}
	return sum
}
