package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// call makes a request and decodes the answer.
// call makes a request of the HTTP API. On a machine that is busy for a second the member loses its
// leadership for a moment, as clients know: a request that it has refused for that is made again,
// unless the test waits for the refusal.
func call(
	t *testing.T, s *server.Server, method, path, body string, wantStatus int,
) map[string]any {
	t.Helper()
	status, data := http.StatusServiceUnavailable, []byte(nil)
	for end := time.Now().Add(waitFor); ; {
		status, data = callOnce(t, s, method, path, body)
		if wantStatus == status || !bytes.Contains(data, []byte(`"not-leader"`)) ||
			time.Now().After(end) {
			break
		}
	}
	require.Equal(t, wantStatus, status, "%s %s: %s", method, path, data)
	out := map[string]any{}
	require.NoError(t, json.Unmarshal(data, &out), "%s", data)
	return out
}

func callOnce(
	t *testing.T, s *server.Server, method, path, body string,
) (status int, data []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.ClientURL()+"/api/v1"+path,
		bytes.NewBufferString(body))
	require.NoError(t, err)
	req.Header.Set(security.ProofHeader, "1")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	data, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, data
}

func callStatus(t *testing.T, s *server.Server, method, path string) int {
	t.Helper()
	status, _ := callOnce(t, s, method, path, "")
	return status
}

func writeFile(path, text string) error { return os.WriteFile(path, []byte(text), 0o600) }

func TestHTTPAPI(t *testing.T) {
	s := servertest.StartTest(t)
	c, first := bootstrapped(t, s, 4)
	first.Peers = append(first.Peers, &metapb.Peer{Id: 1002, StoreId: 2},
		&metapb.Peer{Id: 1003, StoreId: 3})
	first.RegionEpoch.ConfVer = 3
	c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
		Region: first, Leader: first.Peers[0], ApproximateSize: 7 << 20, ApproximateKeys: 70,
		Term: 6, BytesWritten: 1 << 20,
	})
	require.Eventually(t, func() bool {
		return s.Cluster().Core().Region(1000).Confirmed()
	}, waitFor, tick)

	require.Equal(t, "unknown", call(t, s, "GET", "/health", "", 200)["health"],
		"store 4 has not reported its region")
	cluster := call(t, s, "GET", "/cluster", "", 200)
	require.EqualValues(t, 4, cluster["stores"].(map[string]any)["up"])
	require.Len(t, call(t, s, "GET", "/members", "", 200)["members"], 1)
	require.EqualValues(t, 4, call(t, s, "GET", "/stores", "", 200)["count"])
	require.Equal(t, "up", call(t, s, "GET", "/stores/2", "", 200)["state"])
	require.Equal(t, "not-found", call(t, s, "GET", "/stores/99", "", 404)["code"])
	require.Equal(t, "bad-request", call(t, s, "GET", "/stores/x", "", 400)["code"])
	require.Equal(t, "not-found", call(t, s, "GET", "/nothing", "", 404)["code"])

	for _, q := range []string{
		"", "?key=abc", "?hexkey=00ff", "?store=2", "?sort=size", "?limit=1",
	} {
		require.EqualValues(t, 1, call(t, s, "GET", "/regions"+q, "", 200)["count"], q)
	}
	require.EqualValues(t, 0, call(t, s, "GET", "/regions?check=miss-peer", "", 200)["count"])
	require.EqualValues(t, 0, call(t, s, "GET", "/regions?store=4", "", 200)["count"])
	require.EqualValues(t, 7, call(t, s, "GET", "/regions/1000", "", 200)["size_mib"])
	require.Len(t, call(t, s, "GET", "/hot?kind=write", "", 200)["regions"], 1)
	require.Len(t, call(t, s, "GET", "/keymap", "", 200)["buckets"], 1)

	op := call(t, s, "POST", "/regions/1000/move-peer", `{"from":3,"to":4}`, 200)
	require.Equal(t, "running", op["status"])
	require.EqualValues(t, 1, call(t, s, "GET", "/operators", "", 200)["count"])
	call(t, s, "POST", "/regions/1000/transfer-leader", `{"to":2}`, 409) // one operator a region
	require.Equal(t, "canceled", call(t, s, "DELETE", "/operators/1000", "", 200)["status"])
	require.Equal(t, "transfer leader from store 1 to store 2",
		call(t, s, "POST", "/regions/1000/transfer-leader", `{"to":2}`, 200)["steps"].([]any)[0])
	call(t, s, "DELETE", "/operators/1000", "", 200)
	require.EqualValues(t, 2, call(t, s, "GET", "/operators/history", "", 200)["count"])
	require.Contains(t,
		call(t, s, "POST", "/regions/1000/split", `{"keys":["zz"]}`, 400)["message"],
		"not hexadecimal")
	require.Contains(t, call(t, s, "POST", "/regions/1000/split", `{"keys":[""]}`, 400)["message"],
		"begins at key")
	call(t, s, "POST", "/regions/1000/split", `{"nonsense":1}`, 400)
	long := `{"keys":["` + strings.Repeat("6b", 400_000) + `"]}`
	call(t, s, "POST", "/regions/987654/split", long, 404)
	require.Contains(t,
		call(t, s, "POST", "/regions/1000/split", strings.Repeat(" ", 1+1<<20), 400)["message"],
		"at most")
	require.Contains(t, call(t, s, "POST", "/regions/1000/merge", `{"into":7}`, 400)["message"],
		"region-merge")
	call(t, s, "POST", "/regions/1000/split", `{"keys":["6b"]}`, 200)

	cfg := call(t, s, "PATCH", "/config", `{"schedule":{"store-moves-in-flight":3}}`, 200)
	require.EqualValues(t, 3, cfg["schedule"].(map[string]any)["store-moves-in-flight"])
	require.Equal(t, 3, s.Cluster().Settings().Schedule.StoreMovesInFlight)
	require.Equal(t, 8, config.Default().Schedule.StoreMovesInFlight)
	call(t, s, "PATCH", "/config", `{"schedule":{"store-moves-in-flight":0}}`, 400)
	call(t, s, "PATCH", "/config", `{"shcedule":{}}`, 400)
	// A refused change leaves nothing behind, not in slices either.
	call(t, s, "PATCH", "/config", `{"replication":{"location-labels":["zone","rack"]}}`, 200)
	call(t, s, "PATCH", "/config",
		`{"replication":{"location-labels":["BAD","BAD"],"max-replicas":99}}`, 400)
	require.Equal(t, []string{"zone", "rack"}, s.Cluster().Settings().Replication.LocationLabels)
	call(t, s, "PATCH", "/config", `{"replication":{"location-labels":[]}}`, 200)

	require.Equal(t, true,
		call(t, s, "POST", "/schedulers/balance-region/pause?for=1h", "",
			200)["schedulers"].([]any)[0].(map[string]any)["paused"])
	call(t, s, "POST", "/schedulers/balance-region/resume", "", 200)
	call(t, s, "POST", "/schedulers/nobody/pause", "", 404)
	call(t, s, "GET", "/explain", "", 200)
	require.NotEmpty(t, call(t, s, "GET", "/events", "", 200)["events"])
	require.NotNil(t, call(t, s, "GET", "/history?after=2026-01-02T15:04:05Z", "", 200)["points"],
		"an empty list is one")
	call(t, s, "GET", "/history?after=yesterday", "", 400)

	call(t, s, "POST", "/stores/4/weight", `{"weight":2}`, 200)
	require.Equal(t, true, call(t, s, "POST", "/stores/4/evict", "", 200)["evict_leaders"])
	require.Equal(t, "offline", call(t, s, "POST", "/stores/4/offline", "", 200)["state"])
	require.Equal(t, "up", call(t, s, "POST", "/stores/4/up", "", 200)["state"])
	set := call(t, s, "POST", "/stores/4/labels", `{"labels":{"zone":"z4","disk":"ssd"}}`, 200)
	require.Equal(t, map[string]any{"zone": "z4", "disk": "ssd"}, set["labels"])
	require.Equal(t, map[string]any{"zone": "z4"},
		call(t, s, "POST", "/stores/4/labels", `{"labels":{"disk":""}}`, 200)["labels"])
	require.Equal(t, "z4", s.Cluster().Core().Store(4).Label("zone"))
	call(t, s, "POST", "/stores/4/labels", `{"labels":{"a b":"c"}}`, 400)
	call(t, s, "POST", "/stores/4/labels", `{}`, 400)
	set = call(t, s, "POST", "/stores/4/limit", `{"moves":1,"mib":64}`, 200)
	require.EqualValues(t, 1, set["limit_moves"])
	require.EqualValues(t, 64, set["limit_mib"])
	require.EqualValues(t, 3, call(t, s, "GET", "/stores/3", "", 200)["limit_moves"],
		"the general one")
	call(t, s, "POST", "/stores/4/limit", `{"moves":-1}`, 400)
	// What was set is kept through another leadership and through the store's own registration.
	require.NoError(t,
		c.PutStore(t.Context(),
			&metapb.Store{
				Id: 4, Address: "s4",
				Labels: []*metapb.StoreLabel{
					{Key: "zone", Value: "own"}, {Key: "rack", Value: "r"},
				},
			}))
	call(t, s, "POST", "/leader/resign", "", 200)
	require.Eventually(t, func() bool {
		return callStatus(t, s, "GET", "/stores/4") == 200
	}, waitFor, tick)
	set = call(t, s, "GET", "/stores/4", "", 200)
	require.Equal(t, map[string]any{"zone": "z4", "rack": "r"}, set["labels"])
	require.EqualValues(t, 1, set["limit_moves"])
	call(t, s, "POST", "/stores/4/bury", "", 409) // it is alive
	call(t, s, "DELETE", "/stores/4", "", 400)
	call(t, s, "POST", "/stores/4/explode", "", 400)
	// Two of three stores cannot hold three replicas.
	call(t, s, "POST", "/stores/4/offline", "", 200)
	require.Equal(t, "conflict", call(t, s, "POST", "/stores/3/offline", "", 409)["code"])

	require.EqualValues(t, 5,
		call(t, s, "GET", fmt.Sprintf("/ts/decode?ts=%d", 1_700_000_000_000<<18+5), "",
			200)["logical"])
	resp, err := http.Get(s.ClientURL() + "/metrics") //nolint:noctx // test
	require.NoError(t, err)
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	_ = resp.Body.Close()
	require.Contains(t, string(data), "pd_scheduler_region_heartbeat")
	require.Contains(t, string(data), "etcd_disk_wal_fsync_duration_seconds")
	http.DefaultClient.CloseIdleConnections()
}

// A split without a key of a region without keys is refused at once: its store would find no place,
// and the operator would wait for its deadline. Scatter answers with the operator it made.
func TestSplitAndScatterAnswer(t *testing.T) {
	s := servertest.StartTest(t)
	c, first := bootstrapped(t, s, 4)
	first.Peers = append(first.Peers, &metapb.Peer{Id: 1002, StoreId: 2},
		&metapb.Peer{Id: 1003, StoreId: 3})
	c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
		Region: first, Leader: first.Peers[0], Term: 6,
	})
	require.Eventually(t, func() bool {
		return s.Cluster().Core().Region(1000).Confirmed()
	}, waitFor, tick)
	require.Contains(t, call(t, s, "POST", "/regions/1000/split", "", 400)["message"], "name a key")
	require.EqualValues(t, 0, call(t, s, "GET", "/operators", "", 200)["count"])

	require.Equal(t, "success", call(t, s, "POST", "/regions/1000/scatter", "", 200)["status"],
		"nothing to spread yet")
	op := call(t, s, "POST", "/regions/1000/scatter", "", 200)
	require.Equal(t, "scatter-peer", op["desc"], "store 4 has nothing of this group")
	require.Equal(t, "running", op["status"])
	require.Equal(t, "scatter-peer", call(t, s, "GET", "/operators/1000", "", 200)["desc"])
	require.NoError(t, c.ScatterRegion(t.Context(), 1000), "by contract")
	require.NotEmpty(t, call(t, s, "DELETE", "/operators/1000", "", 200))
	got, err := c.GetOperator(t.Context(), 1000)
	require.NoError(t, err)
	require.Equal(t, "scatter-peer", string(got.Desc))
}

func TestHTTPToken(t *testing.T) {
	s := servertest.StartTest(t, func(c *config.Config) { c.API.Token = "secret" })
	call(t, s, "GET", "/stores", "", 200)
	require.Equal(t, "unauthorized", call(t, s, "POST", "/leader/resign", "", 401)["code"])
}

// An offline store that is empty becomes a tombstone, which may not come back.
func TestOfflineStoreIsBuried(t *testing.T) {
	s := servertest.StartTest(t)
	c, first := bootstrapped(t, s, 4)
	first.Peers = append(first.Peers, &metapb.Peer{Id: 1002, StoreId: 2},
		&metapb.Peer{Id: 1003, StoreId: 3})
	c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
		Region: first, Leader: first.Peers[0], Term: 6,
	})
	require.Eventually(t, func() bool {
		return s.Cluster().Core().Region(1000).Confirmed()
	}, waitFor, tick)
	call(t, s, "POST", "/stores/4/offline", "", 200)
	beat := func() error {
		return c.StoreHeartbeat(t.Context(),
			&schedulerpb.StoreStats{StoreId: 4, Capacity: 1, Available: 1})
	}
	require.NoError(t, beat())
	require.NoError(t, beat())
	require.Eventually(t, func() bool {
		return s.Cluster().Core().Store(4).IsTombstone()
	}, waitFor, tick)
	require.Error(t, beat())
	require.Error(t, c.PutStore(t.Context(), &metapb.Store{Id: 4, Address: "s4"}))
	call(t, s, "POST", "/stores/4/up", "", 409)
	require.NoError(t, c.PutStore(t.Context(), &metapb.Store{Id: 5, Address: "s4"}),
		"the address is free again")
	call(t, s, "DELETE", "/stores/4", "", 200)
	call(t, s, "GET", "/stores/4", "", 404)
}

// TestModeIsFixedAtBootstrap: the mode is the first member's, and no later call changes it.
func TestModeIsFixedAtBootstrap(t *testing.T) {
	s := servertest.StartTest(t, func(c *config.Config) { c.Mode = "txn" })
	c, _ := bootstrapped(t, s, 3)
	ctx, cancel := context.WithTimeout(context.Background(), waitFor)
	defer cancel()
	require.NoError(t, c.PutClusterConfig(ctx, &metapb.Cluster{MaxPeerCount: 5, Mode: "raw"}))
	cfg, err := c.GetClusterConfig(ctx)
	require.NoError(t, err)
	require.Equal(t, "txn", cfg.Mode)
	require.EqualValues(t, 5, cfg.MaxPeerCount)
}
