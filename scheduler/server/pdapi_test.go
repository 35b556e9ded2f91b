package server_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/schedule/operator"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// askPD is a request to PD's interface.
func askPD(t *testing.T, s *server.Server, method, path string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.ClientURL()+"/pd/api/v1"+path,
		http.NoBody)
	require.NoError(t, err)
	req.Header.Set(security.ProofHeader, "1")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, data
}

// changing are fields whose values differ from run to run.
var changing = map[string]bool{
	"cluster_id": true, "member_id": true, "peer_urls": true, "client_urls": true,
	"last_heartbeat": true, "last_heartbeat_ts": true,
	"uptime": true, "start_timestamp": true, "raft_bootstrap_time": true, "client-urls": true,
	"peer-urls":             true,
	"advertise-client-urls": true, "advertise-peer-urls": true,
}

// fixed replaces what differs from run to run, and keeps the order of fields.
func fixed(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			if v[k] = fixed(v[k]); changing[k] {
				v[k] = "*"
			}
		}
	case []any:
		for i := range v {
			v[i] = fixed(v[i])
		}
	}
	return v
}

// TestPDsInterface: the answers have PD's fields. UPDATE=1 writes them anew.
func TestPDsInterface(t *testing.T) {
	s := servertest.StartTest(t, func(c *config.Config) {
		c.Replication.LocationLabels = []string{"zone", "rack"}
	})
	code, body := askPD(t, s, "GET", "/stores")
	require.Equal(t, 500, code)
	require.Contains(t, string(body), "TiKV cluster not bootstrapped")
	_, body = askPD(t, s, "GET", "/cluster/status")
	require.JSONEq(t, `{"is_initialized":false,"replication_status":""}`, string(body))

	c, first := bootstrapped(t, s, 4)
	require.NoError(t, c.PutStore(t.Context(), &metapb.Store{
		Id: 2, Address: "s2:20160", StatusAddress: "s2:20180", Version: "v1.2.3",
		StartTimestamp: 1_700_000_000,
		Labels:         []*metapb.StoreLabel{{Key: "zone", Value: "z1"}},
	}))
	require.NoError(t, c.StoreHeartbeat(t.Context(), &schedulerpb.StoreStats{
		StoreId: 2, Capacity: 3 << 40, Available: 3 << 29, UsedSize: 123456789, RegionCount: 1,
		SendingSnapCount: 2, IsBusy: true,
	}))
	require.NoError(t, server.SetState(t.Context(), s, 4, metapb.StoreState_Tombstone))
	first.Peers = append(first.Peers, &metapb.Peer{Id: 1002, StoreId: 2},
		&metapb.Peer{Id: 1003, StoreId: 3, Role: metapb.PeerRole_Learner})
	first.RegionEpoch = &metapb.RegionEpoch{Version: 2, ConfVer: 3}
	left, right := *first, *first
	left.EndKey, right.StartKey, right.Id = []byte("m!"), []byte("m!"), 2000
	right.Peers = []*metapb.Peer{
		{Id: 2001, StoreId: 1}, {Id: 2002, StoreId: 2}, {Id: 2003, StoreId: 3},
	}
	for _, r := range []*metapb.Region{&left, &right} {
		hb := &schedulerpb.RegionHeartbeatRequest{
			Region: r, Leader: r.Peers[0], ApproximateSize: 7 << 20, ApproximateKeys: 70, Term: 6,
			BytesWritten: 1 << 20, KeysRead: 5,
		}
		if r == &left {
			hb.PendingPeers, hb.DownPeers = r.Peers[2:],
				[]*schedulerpb.PeerStats{{Peer: r.Peers[1], DownSeconds: 9}}
		}
		c.RegionHeartbeat(hb)
	}
	require.Eventually(t, func() bool {
		r := s.Cluster().Core().Region(2000)
		return r != nil && r.Confirmed() && s.Cluster().Core().Region(1000).Confirmed()
	}, waitFor, tick)
	s.Cluster().Controller().CancelAll("the test plans its own")
	call(t, s, "PATCH", "/config", `{"schedule":{"schedulers":[]}}`, 200)
	checkGolden(t, s)
	checkErrors(t, s)
}

// checkGolden compares what each path answers with what it answered before.
func checkGolden(t *testing.T, s *server.Server) {
	t.Helper()
	type answer struct {
		Path string `json:"path"`
		Body any    `json:"body"`
	}
	var got []answer
	for _, path := range []string{
		"/version", "/status", "/members", "/leader", "/health", "/cluster", "/cluster/status",
		"/stores", "/stores?state=2", "/store/2",
		"/regions", "/regions?limit=1", "/regions/key?limit=-1", "/regions/key?key=n",
		"/regions/key?key=61&end_key=62&format=hex", "/regions/store/3",
		"/region/id/1000", "/region/id/77", "/region/key/a", "/region/key/m%21%00",
		"/region/key/6D21?format=hex", "/region/key/a%2Fb", "/region/key/m+", "/region/key/m%2B",
		"/regions/writeflow?limit=1", "/regions/readflow", "/regions/confver?limit=1",
		"/regions/version", "/regions/size", "/regions/keys?limit=1",
		"/regions/check/miss-peer", "/regions/check/extra-peer", "/regions/check/pending-peer",
		"/regions/check/down-peer",
		"/regions/check/learner-peer", "/regions/check/empty-region", "/regions/check/offline-peer",
		"/regions/check/hist-size",
		"/regions/check/hist-keys?bound=50", "/regions/sibling/1000", "/regions/range-holes",
		"/labels", "/labels/stores?name=zone&value=Z1",
		"/labels/stores?name=zone&value=z2",
		"/config", "/config/replicate", "/config/cluster-version", "/schedulers?status=paused",
	} {
		code, body := askPD(t, s, "GET", path)
		require.Equal(t, 200, code, "%s: %s", path, body)
		var v any
		require.NoError(t, json.Unmarshal(body, &v), "%s: %s", path, body)
		if m, ok := v.(map[string]any); ok && path == "/cluster" {
			m["id"] = "*"
		}
		got = append(got, answer{path, fixed(v)})
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetIndent("", " ")
	require.NoError(t, enc.Encode(got))
	file := filepath.Join("testdata", "pdapi.json")
	if os.Getenv("UPDATE") != "" {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(file, text.Bytes(), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), text.String())
}

// checkErrors: errors are texts, and nothing can be changed.
func checkErrors(t *testing.T, s *server.Server) {
	t.Helper()
	for path, want := range map[string]int{
		"/store/99": 404, "/store/x": 400, "/region/id/x": 400, "/region/key/zz?format=hex": 400,
		"/regions?limit=many": 400, "/nothing": 404,
		"/regions/size?limit=0": 400, "/regions/check/nothing": 404,
		"/regions/check/hist-size?bound=-1": 400, "/regions/sibling/77": 404,
		"/regions/sibling/x": 400, "/operators/x": 400, "/operators/77": 404,
	} {
		code, body := askPD(t, s, "GET", path)
		require.Equal(t, want, code, "%s: %s", path, body)
		var text string
		require.NoError(t, json.Unmarshal(body, &text), "%s: %s", path, body)
		require.NotEmpty(t, text)
	}
	for _, path := range []string{
		"/stores", "/config", "/operators", "/leader/resign", "/store/2/state?state=Offline",
	} {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
			code, body := askPD(t, s, method, path)
			require.Equal(t, http.StatusMethodNotAllowed, code, "%s %s: %s", method, path, body)
		}
	}
	s.Cluster().Controller().CancelAll("the test plans its own")
	r := s.Cluster().Core().Region(2000)
	op := operator.CreateTransferLeaderOperator("by-hand", r, operator.OpAdmin, operator.High, 3)
	require.NoError(t, s.Cluster().AddOperator(op))
	_, body := askPD(t, s, "GET", "/operators")
	var ops []string
	require.NoError(t, json.Unmarshal(body, &ops))
	require.Contains(t, ops,
		"by-hand r2000 (leader,admin, high): transfer leader from store 1 to store 3")
	_, body = askPD(t, s, "GET", "/operators/2000")
	require.JSONEq(t,
		`"status: RUNNING, operator: by-hand r2000 (leader,admin): transfer leader from store 1 to store 3"`, string(body))
	code, body := askPD(t, s, "GET", "/ping")
	require.Equal(t, 200, code)
	require.Empty(t, body)
}

// TestPDsInterfaceOnFollowers: they pass on what only the leader knows, and answer for themselves.
func TestPDsInterfaceOnFollowers(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	var leader, follower *server.Server
	for _, m := range members {
		if m.IsLeader() {
			leader = m
		} else {
			follower = m
		}
	}
	require.NotNil(t, leader)
	c := newClient(t, leader.ClientURL())
	require.NoError(t, c.Bootstrap(t.Context(), &metapb.Store{Id: 1, Address: "s1"}, nil))
	code, body := askPD(t, follower, "GET", "/stores")
	require.Equal(t, 200, code, "%s", body)
	require.Contains(t, string(body), `"address": "s1"`)
	require.Eventually(t, func() bool {
		code, body := askPD(t, follower, "GET", "/health")
		var list []struct {
			Health bool `json:"health"`
		}
		return code == 200 && json.Unmarshal(body, &list) == nil && len(list) == 3 &&
			list[0].Health && list[1].Health && list[2].Health
	}, waitFor, tick)
	_, body = askPD(t, follower, "GET", "/members")
	var m struct {
		Members []struct{ Name string }
		Leader  struct{ Name string }
	}
	require.NoError(t, json.Unmarshal(body, &m))
	require.Len(t, m.Members, 3)
	require.Equal(t, leader.Name(), m.Leader.Name)
}
