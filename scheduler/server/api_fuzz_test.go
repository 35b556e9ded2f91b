package server_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// endpoint is one of the HTTP API that takes a body, with a body that is right for it.
type endpoint struct{ method, path, body string }

// endpoints are all that take a body.
func endpoints() []endpoint {
	return []endpoint{
		{"PATCH", "/api/v1/config", `{"schedule": {"store-moves-in-flight": 4}}`},
		{
			"POST", "/api/v1/config",
			`{"replication": {"max-replicas": 1, "location-labels": ["zone"]}}`,
		},
		{"POST", "/api/v1/holds", `{"start": "61", "end": "62", "for": "1h", "why": "test"}`},
		{"POST", "/api/v1/members", `{"name": "x", "peer_urls": ["http://127.0.0.1:1"]}`},
		{"POST", "/api/v1/stores/1/weight", `{"weight": 2, "leader_weight": 0.5}`},
		{"POST", "/api/v1/stores/1/labels", `{"labels": {"zone": "z1"}}`},
		{"POST", "/api/v1/stores/1/limit", `{"moves": 3, "mib": 10}`},
		{"POST", "/api/v1/stores/1/bury", `{"force": true}`},
		{"POST", "/api/v1/regions/1000/split", `{"keys": ["61"]}`},
		{"POST", "/api/v1/regions/1000/transfer-leader", `{"to": 1}`},
		{"POST", "/api/v1/regions/1000/move-peer", `{"from": 1, "to": 2}`},
		{"POST", "/api/v1/regions/1000/merge", `{"into": 1001}`},
	}
}

// oddBodies are wrong for every endpoint; %q, if there, stands for the right body.
func oddBodies() []string {
	return []string{
		`null`, `[]`, `"x"`, `0`, `{`, `{"a"`, `{"no-such-field": 1}`, "{}\x00", "\f", "\xff\xfe",
		`{} {}`, `%q%q`, `%q]`,
		"{\"name\":\"\xff\"}", `{"to": 1, "to": 2}`, `{"to": 1, "TO": 2}`,
		`{"schedule": {"schedulers": 1}}`,
		`{"to": 18446744073709551616}`, `{"to": -1}`, `{"to": 1e400}`, `{"to": 1.5}`,
		`{"weight": 1e999}`, `{"weight": "1"}`,
		`{"weight": -1}`, `{"labels": {"a": {"b": "c"}}}`, `{"labels": []}`, `{"keys": [1]}`,
		`{"keys": "61"}`, `{"start": "xyz"}`,
		`{"for": "-1h"}`, `{"for": "9999999999999h"}`, `{"peer_urls": [""], "name": "x"}`,
		`{"peer_urls": ["http://"], "name": "x"}`,
		`{"replication": {"max-replicas": 0}}`, `{"replication": {"max-replicas": 9e18}}`,
		`{"schedule": {"store-moves-in-flight": -1}}`,
		`{"schedule": ` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`,
		strings.Repeat(`{"labels":`, 40) + "1" + strings.Repeat("}", 40),
	}
}

// stored is what changes may change: what the placement service has stored, but for its terms, ids
// and timestamps, which move by themselves.
func stored(t testing.TB, s *server.Server) map[string]string {
	t.Helper()
	resp, err := server.EtcdOf(s).Get(context.Background(), "\x00", clientv3.WithFromKey())
	require.NoError(t, err)
	out := map[string]string{}
	for _, kv := range resp.Kvs {
		if k := string(kv.Key); !movesByItself(k) {
			out[k] = string(kv.Value)
		}
	}
	return out
}

func movesByItself(key string) bool {
	for _, part := range []string{"timestamp", "alloc_id", "leader", "term", "gc/", "memory"} {
		if strings.Contains(key, part) {
			return true
		}
	}
	return false
}

// send sends a body and returns status and answer.
func send(t testing.TB, s *server.Server, e endpoint, body string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, e.method, "http://"+s.ClientAddr()+e.path,
		strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Tinykv-Request", "1")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(data)
}

// checkBody has an endpoint answer a body: it is carried out, and then it was one object in UTF-8,
// or nothing has changed and the answer says why.
func checkBody(t *testing.T, s *server.Server, e endpoint, body string) int {
	t.Helper()
	before, running := stored(t, s), len(s.Cluster().Controller().Running())
	code, answer := send(t, s, e, body)
	if code == http.StatusOK {
		text := strings.Trim(body, " \t\r\n")
		require.True(t,
			text == "" || text[0] == '{' && json.Valid([]byte(text)) && utf8.ValidString(text),
			"%s %s took %q", e.method, e.path, body)
		return code
	}
	require.True(t, code >= 400 && code < 500, "%s %s %q: %d %s", e.method, e.path, body, code,
		answer)
	var said struct{ Code, Message string }
	require.NoError(t, json.Unmarshal([]byte(answer), &said), answer)
	require.NotEmpty(t, said.Code)
	require.NotEmpty(t, said.Message)
	require.Less(t, len(answer), 2000+len(body), "an answer of its own length")
	require.Equal(t, before, stored(t, s), "%s %s %q: %d, but something has changed", e.method,
		e.path, body, code)
	require.GreaterOrEqual(t, running, len(s.Cluster().Controller().Running()))
	return code
}

func memberForBodies(t testing.TB) *server.Server {
	t.Helper()
	s := servertest.StartTest(t, func(c *config.Config) {
		// a busy machine must not cost it the leadership
		c.LeaseTTL = config.Duration(30 * time.Second)
		c.Replication.MaxReplicas = 1 // nothing is to be moved by itself
	})
	return s
}

// FuzzBodies: whatever body is sent to the HTTP API is carried out, or refused with a reason and
// without an effect.
func FuzzBodies(f *testing.F) {
	list := endpoints()
	for i, e := range list {
		if e.path != "/api/v1/members" { // it would wait for one that is not there
			f.Add(byte(i), e.body)
		}
		f.Add(byte(i), "")
	}
	for n, odd := range oddBodies() {
		i := n % len(list)
		f.Add(byte(i), strings.ReplaceAll(odd, "%q", list[i].body))
	}
	s := memberForBodies(f)
	bootstrapForBodies(f, s)
	f.Fuzz(func(t *testing.T, at byte, body string) {
		checkBody(t, s, list[int(at)%len(list)], body)
	})
}

// TestOddBodies: each odd body is refused by each endpoint, by 400 where a region and a store are
// known.
func TestOddBodies(t *testing.T) {
	s := memberForBodies(t)
	bootstrapForBodies(t, s)
	for _, e := range endpoints() {
		for _, odd := range oddBodies() {
			body := strings.ReplaceAll(odd, "%q", e.body)
			code := checkBody(t, s, e, body)
			require.NotEqual(t, http.StatusOK, code, "%s %s took %q", e.method, e.path, body)
		}
		code, answer := send(t, s, e, `{"why": "`+strings.Repeat("x", 1<<20)+`"}`)
		require.Equal(t, http.StatusBadRequest, code, e.path)
		require.Contains(t, answer, "at most 1048576 bytes")
	}
}

// bootstrapForBodies gives the cluster two stores and two regions.
func bootstrapForBodies(t testing.TB, s *server.Server) {
	t.Helper()
	native := servertest.DirectClient(t, s.ClientAddr())
	h := &schedulerpb.RequestHeader{ClusterId: s.ClusterID()}
	first := &metapb.Region{
		Id: 1000, RegionEpoch: &metapb.RegionEpoch{ConfVer: 1, Version: 1},
		Peers: []*metapb.Peer{{Id: 1002, StoreId: 1}},
	}
	resp, err := native.Bootstrap(context.Background(), &schedulerpb.BootstrapRequest{
		Header: h, Store: &metapb.Store{Id: 1, Address: "s1"}, Region: first,
	})
	require.NoError(t, err)
	require.Nil(t, resp.Header.Error)
	put, err := native.PutStore(context.Background(),
		&schedulerpb.PutStoreRequest{Header: h, Store: &metapb.Store{Id: 2, Address: "s2"}})
	require.NoError(t, err)
	require.Nil(t, put.Header.Error)
	left, right := *first, *first
	left.EndKey, right.StartKey, right.Id = []byte("m"), []byte("m"), 1001
	for _, r := range []*metapb.Region{&left, &right} {
		r.RegionEpoch = &metapb.RegionEpoch{Version: 9, ConfVer: 1}
		require.NoError(t,
			s.Cluster().HandleRegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
				Region: r, Leader: first.Peers[0], Term: 6,
			}))
	}
}
