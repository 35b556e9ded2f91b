package server_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/pdpb"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"go.uber.org/zap"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// ask makes a request with headers "name: value" and returns status, header and body.
func ask(
	t *testing.T, s *server.Server, method, path, body string, headers ...string,
) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.ClientAddr()+path,
		strings.NewReader(body))
	require.NoError(t, err)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			req.Host = value
		}
		req.Header.Set(name, value)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, resp.Header, string(data)
}

// TestEtcdIsClosed: nothing of etcd's API on the client port writes, watches or reads more than the
// safe point and the members, over its gateway or gRPC, at the leader or a follower.
func TestEtcdIsClosed(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	leader, followers := leaderOf(t, members)
	_, _ = bootstrapped(t, leader, 1)
	before, err := server.EtcdOf(leader).Get(t.Context(), "\x00", clientv3.WithFromKey(),
		clientv3.WithCountOnly())
	require.NoError(t, err)
	require.Greater(t, before.Count, int64(3))
	for _, s := range []*server.Server{leader, followers[0]} {
		all := base64.StdEncoding.EncodeToString([]byte{0})
		for _, path := range []string{
			"kv/range", "kv/put", "kv/deleterange", "kv/txn", "kv/compaction", "lease/grant",
			"watch", "cluster/member/list",
			"cluster/member/add", "maintenance/snapshot", "maintenance/status", "auth/enable",
			"lock/lock", "election/campaign",
		} {
			for _, version := range []string{"/v3/", "/v3beta/", "/v3alpha/", "/v2/"} {
				code, _, body := ask(t, s, "POST", version+path,
					`{"key":"`+all+`","range_end":"`+all+`"}`, "Tinykv-Request: 1")
				require.Equal(t, 404, code, "%s%s: %s", version, path, body)
			}
		}
		refusedByGRPC(t, s.ClientAddr())
	}
	after, err := server.EtcdOf(leader).Get(t.Context(), "\x00", clientv3.WithFromKey(),
		clientv3.WithCountOnly())
	require.NoError(t, err)
	require.GreaterOrEqual(t, after.Count, before.Count)
}

func refusedByGRPC(t *testing.T, addr string) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	every := []byte{0}
	kv, cluster := etcdserverpb.NewKVClient(conn), etcdserverpb.NewClusterClient(conn)
	for name, call := range map[string]func(context.Context) error{
		"delete": func(ctx context.Context) error {
			_, err := kv.DeleteRange(ctx,
				&etcdserverpb.DeleteRangeRequest{Key: every, RangeEnd: every})
			return err
		},
		"put": func(ctx context.Context) error {
			_, err := kv.Put(ctx,
				&etcdserverpb.PutRequest{Key: []byte(safePoint), Value: []byte("1")})
			return err
		},
		"txn": func(ctx context.Context) error {
			_, err := kv.Txn(ctx, &etcdserverpb.TxnRequest{})
			return err
		},
		"compact": func(ctx context.Context) error {
			_, err := kv.Compact(ctx, &etcdserverpb.CompactionRequest{})
			return err
		},
		"range of everything": func(ctx context.Context) error {
			_, err := kv.Range(ctx, &etcdserverpb.RangeRequest{Key: every, RangeEnd: every})
			return err
		},
		"range from the safe point": func(ctx context.Context) error {
			_, err := kv.Range(ctx,
				&etcdserverpb.RangeRequest{Key: []byte(safePoint), RangeEnd: every})
			return err
		},
		"range stream": func(ctx context.Context) error {
			stream, err := kv.RangeStream(ctx, &etcdserverpb.RangeRequest{Key: []byte(safePoint)})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"add": func(ctx context.Context) error {
			_, err := cluster.MemberAdd(ctx,
				&etcdserverpb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}})
			return err
		},
		"remove": func(ctx context.Context) error {
			_, err := cluster.MemberRemove(ctx, &etcdserverpb.MemberRemoveRequest{ID: 1})
			return err
		},
		"lease": func(ctx context.Context) error {
			_, err := etcdserverpb.NewLeaseClient(conn).LeaseGrant(ctx,
				&etcdserverpb.LeaseGrantRequest{TTL: 1})
			return err
		},
		"watch": func(ctx context.Context) error {
			stream, err := etcdserverpb.NewWatchClient(conn).Watch(ctx)
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"status": func(ctx context.Context) error {
			_, err := etcdserverpb.NewMaintenanceClient(conn).Status(ctx,
				&etcdserverpb.StatusRequest{})
			return err
		},
		"snapshot": func(ctx context.Context) error {
			stream, err := etcdserverpb.NewMaintenanceClient(conn).Snapshot(ctx,
				&etcdserverpb.SnapshotRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"auth": func(ctx context.Context) error {
			_, err := etcdserverpb.NewAuthClient(conn).AuthEnable(ctx,
				&etcdserverpb.AuthEnableRequest{})
			return err
		},
		"lock": func(ctx context.Context) error {
			_, err := v3lockpb.NewLockClient(conn).Lock(ctx,
				&v3lockpb.LockRequest{Name: []byte("x")})
			return err
		},
		"campaign": func(ctx context.Context) error {
			_, err := v3electionpb.NewElectionClient(conn).Campaign(ctx,
				&v3electionpb.CampaignRequest{Name: []byte("x")})
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), waitFor)
		err := call(ctx)
		cancel()
		require.Equal(t, codes.PermissionDenied, status.Code(err), "%s: %v", name, err)
		require.ErrorContains(t, err, "members only", name)
	}
}

const safePoint = "/tidb/store/gcworker/saved_safe_point"

// TestWhatTiKVClientsReadOfEtcd: the safe point and the members, by etcd's own client.
func TestWhatTiKVClientsReadOfEtcd(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3)
	leader, followers := leaderOf(t, members)
	for _, s := range []*server.Server{leader, followers[0]} {
		etcd, err := clientv3.New(clientv3.Config{
			Endpoints: []string{s.ClientURL()}, Logger: zap.NewNop(), DialTimeout: waitFor,
		})
		require.NoError(t, err)
		require.NoError(t, etcd.Sync(t.Context()))
		require.Len(t, etcd.Endpoints(), 3)
		none, err := etcd.Get(t.Context(), safePoint)
		require.NoError(t, err)
		require.Empty(t, none.Kvs)
		_, err = server.EtcdOf(leader).Put(t.Context(), safePoint, "77")
		require.NoError(t, err)
		got, err := etcd.Get(t.Context(), safePoint)
		require.NoError(t, err)
		require.Equal(t, "77", string(got.Kvs[0].Value))
		require.Equal(t, leader.ClusterID(), got.Header.ClusterId)
		_, err = server.EtcdOf(leader).Delete(t.Context(), safePoint)
		require.NoError(t, err)
		_, err = etcd.Put(t.Context(), safePoint, "78")
		require.ErrorContains(t, err, "is not served")
		require.NoError(t, etcd.Close())
	}
}

// TestForeignPages: what a page of another site can have a browser do is refused by every member,
// before a follower passes it on.
func TestForeignPages(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3, func(c *config.Config) {
		c.API.AllowedOrigins, c.API.AllowedHosts = []string{"https://tools.example"},
			[]string{"placement.example"}
	})
	leader, followers := leaderOf(t, members)
	const path, body = "/api/v1/config", `{"schedule":{"max-store-down-time":"11m"}}`
	for _, s := range []*server.Server{leader, followers[0]} {
		for name, headers := range map[string][]string{
			"foreign page":            {"Origin: https://evil.example"},
			"sandboxed page":          {"Origin: null"},
			"page of another port":    {"Origin: http://127.0.0.1:1"},
			"foreign page, with ours": {"Origin: https://evil.example", "Tinykv-Request: 1"},
			"no browser, no proof":    {},
			"rebound name":            {"Host: evil.example", "Origin: http://evil.example"},
		} {
			for _, method := range []string{"POST", "PATCH"} {
				code, head, said := ask(t, s, method, path, body, headers...)
				require.Contains(t, []int{403, 421}, code, "%s: %s", name, said)
				require.Empty(t, head.Get("Access-Control-Allow-Origin"))
			}
		}
		code, _, said := ask(t, s, "GET", "/api/v1/stores", "", "Host: evil.example")
		require.Equal(t, 421, code, said)
		require.Contains(t, said, "allowed-hosts")
		for _, host := range []string{"placement.example", "localhost", "10.1.2.3:2379", "[::1]"} {
			code, head, _ := ask(t, s, "GET", "/metrics", "", "Host: "+host)
			require.Equal(t, 200, code, host)
			require.Empty(t, head.Get("Access-Control-Allow-Origin"))
		}
		code, _, _ = ask(t, s, "OPTIONS", path, "", "Origin: https://evil.example",
			"Access-Control-Request-Method: PATCH")
		require.Equal(t, 403, code)

		// Who may: a client with the header, this port's own page, the page of an allowed origin.
		for _, headers := range [][]string{
			{"Tinykv-Request: 1"}, {"Origin: http://" + s.ClientAddr()},
			{"Origin: https://tools.example"},
		} {
			code, _, said := ask(t, s, "PATCH", path, body, headers...)
			require.Equal(t, 200, code, "%v: %s", headers, said)
		}
		code, head, _ := ask(t, s, "OPTIONS", path, "", "Origin: https://tools.example",
			"Access-Control-Request-Method: PATCH")
		require.Equal(t, 204, code)
		require.Equal(t, "https://tools.example", head.Get("Access-Control-Allow-Origin"))
	}
}

// TestChangesNeedTheAdmin: with a token only its bearers change anything; without one nobody does
// on a port that other machines reach.
func TestChangesNeedTheAdmin(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3, func(c *config.Config) { c.API.Token = "secret" })
	leader, followers := leaderOf(t, members)
	open := servertest.StartTest(t, func(c *config.Config) {
		c.ClientUrls, c.AdvertiseClientUrls, c.Security.Insecure = "http://0.0.0.0:0",
			"http://127.0.0.1:0", true
	})
	for method, path := range map[string]string{
		"PATCH": "/config", "POST": "/leader/resign", "DELETE": "/members/m1",
		"PUT": "/log/level?level=debug",
	} {
		for _, s := range []*server.Server{leader, followers[0]} {
			code, _, said := ask(t, s, method, "/api/v1"+path, "", "Tinykv-Request: 1")
			require.Equal(t, 401, code, "%s %s: %s", method, path, said)
			code, _, _ = ask(t, s, method, "/api/v1"+path, "", "Tinykv-Request: 1",
				"Authorization: Bearer wrong")
			require.Equal(t, 401, code)
		}
		_, port, err := net.SplitHostPort(open.ClientAddr())
		require.NoError(t, err)
		code, _, said := ask(t, open, method, "/api/v1"+path, "", "Tinykv-Request: 1",
			"Host: 127.0.0.1:"+port)
		require.Equal(t, 403, code)
		require.Contains(t, said, "set [api] token")
	}
	code, _, said := ask(t, followers[0], "PATCH", "/api/v1/config", "{}",
		"Authorization: Bearer secret")
	require.Equal(t, 200, code, said)
	code, _, _ = ask(t, open, "GET", "/debug/pprof/cmdline", "")
	require.Equal(t, 200, code, "from this machine")
	code, head, _ := ask(t, open, "POST", "/metrics", "", "Tinykv-Request: 1")
	require.Equal(t, 405, code)
	require.Contains(t, head.Get("Allow"), "GET")
}

// TestListeningInTheClear: addresses that other machines reach need TLS or a word, and what is
// advertised must be an address.
func TestListeningInTheClear(t *testing.T) {
	try := func(change func(*config.Config)) error {
		cfg := servertest.Config(t)
		change(cfg)
		_, err := server.New(cfg, nil)
		return err
	}
	for key, change := range map[string]func(*config.Config){
		"client-urls": func(c *config.Config) {
			c.ClientUrls = "http://0.0.0.0:0"
			c.AdvertiseClientUrls = "http://10.0.0.1:1"
		},
		"peer-urls": func(c *config.Config) { c.PeerUrls = "http://10.0.0.1:1" },
		"advertise-client-urls": func(c *config.Config) {
			c.AdvertiseClientUrls = "http://0.0.0.0:2379"
		},
		"advertise-peer-urls": func(c *config.Config) { c.AdvertisePeerUrls = "http://:2380" },
		"--cert and --key":    func(c *config.Config) { c.ClientUrls = "https://127.0.0.1:1" },
	} {
		require.ErrorContains(t, try(change), key)
	}
	require.ErrorContains(t, try(func(c *config.Config) { c.PeerUrls = "http://10.0.0.1:1" }),
		"--insecure")
	require.NoError(t,
		try(func(c *config.Config) { c.PeerUrls, c.Security.Insecure = "http://10.0.0.1:1", true }))
	require.ErrorContains(t, try(func(c *config.Config) {
		c.ClientUrls, c.Security.Insecure = "http://0.0.0.0:1", true
	}), "advertise-client-urls", "the advertised address defaults to the listening one")
}

// TestFrontSharesAPort: one port for gRPC and HTTP; connections that say nothing hold up neither
// others nor the end.
func TestFrontSharesAPort(t *testing.T) {
	s := servertest.StartTest(t)
	for range 20 {
		var d net.Dialer
		silent, err := d.DialContext(t.Context(), "tcp", s.ClientAddr())
		require.NoError(t, err)
		t.Cleanup(func() { _ = silent.Close() })
		_, err = silent.Write([]byte("PRI")) // the beginning of HTTP/2's preface, and of a method
		require.NoError(t, err)
	}
	conn, err := grpc.NewClient("passthrough:///"+s.ClientAddr(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	require.NoError(t, err)
	code, _, body := ask(t, s, "GET", "/health", "")
	require.Equal(t, 200, code)
	require.JSONEq(t, `{"health":"true"}`, body)
	began := time.Now()
	s.Stop()
	require.Less(t, time.Since(began), 8*time.Second)
}

// TestTLSToAPlainPort: a client that speaks TLS to a port without it is answered at once, so that it
// says what is wrong.
func TestTLSToAPlainPort(t *testing.T) {
	s := servertest.StartTest(t)
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.ClientAddr())
	require.NoError(t, err)
	defer func() { _ = nc.Close() }()
	require.NoError(t, nc.SetDeadline(time.Now().Add(time.Minute)))
	hello := []byte{security.RecordHandshake, 3, 1, 0, 100, 1}
	_, err = nc.Write(append(hello, make([]byte, 99)...))
	require.NoError(t, err)
	said, err := io.ReadAll(nc)
	require.NoError(t, err)
	require.Contains(t, string(said), "This port does not serve TLS.")
}

// TestConnectionsAreBounded: more than the limit are refused, those that are there are served on,
// and one that ends makes room.
func TestConnectionsAreBounded(t *testing.T) {
	for name, change := range map[string]func(c *config.Config){
		"in all":           func(c *config.Config) { c.MaxConnections = 8 },
		"from one address": func(c *config.Config) { c.MaxConnectionsPerHost = 8 },
	} {
		t.Run(name, func(t *testing.T) { testBounded(t, 8, change) })
	}
}

func testBounded(t *testing.T, limit int, change func(c *config.Config)) {
	s := servertest.StartTest(t, change)
	var held []net.Conn
	dial := func() net.Conn {
		t.Helper()
		nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.ClientAddr())
		require.NoError(t, err)
		t.Cleanup(func() { _ = nc.Close() })
		require.NoError(t, nc.SetDeadline(time.Now().Add(20*time.Second)))
		return nc
	}
	get := func(nc net.Conn) string {
		_, _ = nc.Write([]byte("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"))
		b := make([]byte, 4096)
		n, _ := nc.Read(b)
		return string(b[:n])
	}
	for range limit {
		nc := dial()
		require.Contains(t, get(nc), "200 OK")
		held = append(held, nc)
	}
	require.Empty(t, get(dial()), "one too many")
	require.Contains(t, get(held[0]), "200 OK")
	require.NoError(t, held[0].Close())
	require.Eventually(t, func() bool {
		return strings.Contains(get(dial()), "200 OK")
	}, 20*time.Second, time.Millisecond)
}

// TestFloodOfBodies: headers and bodies over HTTP are bounded; those that are too large are refused
// and counted, and change nothing.
func TestFloodOfBodies(t *testing.T) {
	s := servertest.StartTest(t)
	const path, flood = "/api/v1/config", 40
	large := `{"schedule":{"max-store-down-time":"11m"}}` + strings.Repeat(" ", 1<<20)
	for range flood {
		code, _, said := ask(t, s, "PATCH", path, large, "Tinykv-Request: 1")
		require.Equal(t, 400, code, said)
		require.Contains(t, said, "at most 1048576 bytes")
	}
	_, _, text := ask(t, s, "GET", path, "")
	require.NotContains(t, text, "11m")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.ClientURL()+path, nil)
	require.NoError(t, err)
	req.Header.Set("X", strings.Repeat("x", 100<<10))
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := web.Do(req)
	if err == nil { // else the connection was reset before the answer was read
		require.Equal(t, 431, resp.StatusCode)
		require.NoError(t, resp.Body.Close())
	}
	code, _, said := ask(t, s, "PATCH", path, strings.TrimSpace(large), "Tinykv-Request: 1")
	require.Equal(t, 200, code, said)
	_, _, text = ask(t, s, "GET", "/metrics", "")
	require.Contains(t, text, fmt.Sprintf("\ntinykv_client_port_refused_bodies_total %d\n", flood))
}

// TestFloodOfCalls: the calls of a connection by gRPC, and the headers of one, are bounded. Other
// connections are served meanwhile.
func TestFloodOfCalls(t *testing.T) {
	s := servertest.StartTest(t)
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.ClientAddr())
	require.NoError(t, err)
	defer func() { _ = nc.Close() }()
	require.NoError(t, nc.SetDeadline(time.Now().Add(time.Minute)))
	_, err = io.WriteString(nc, http2.ClientPreface)
	require.NoError(t, err)
	fr := http2.NewFramer(nc, nc)
	require.NoError(t, fr.WriteSettings())
	call := func(id uint32, headers ...string) {
		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		for _, h := range append([]string{
			":method POST", ":scheme http", ":path /schedulerpb.Scheduler/RegionHeartbeat",
			":authority x", "content-type application/grpc", "te trailers",
		}, headers...) {
			name, value, _ := strings.Cut(h, " ")
			require.NoError(t, enc.WriteField(hpack.HeaderField{Name: name, Value: value}))
		}
		require.NoError(t, fr.WriteHeaders(http2.HeadersFrameParam{
			StreamID: id, BlockFragment: block.Next(16 << 10), EndHeaders: block.Len() == 0,
		}))
		for block.Len() > 0 {
			next := block.Next(16 << 10)
			require.NoError(t, fr.WriteContinuation(id, block.Len() == 0, next))
		}
	}
	ended := func(id uint32) http2.ErrCode { // reads on until the stream has ended
		for {
			f, err := fr.ReadFrame()
			require.NoError(t, err)
			if r, ok := f.(*http2.RSTStreamFrame); ok && r.StreamID == id {
				return r.ErrCode
			} else if ok {
				t.Fatalf("stream %d ended: %v", r.StreamID, r.ErrCode)
			}
		}
	}
	const limit = 4096
	tenth := "x " + strings.Repeat("a", 7<<10)
	call(1, slices.Repeat([]string{tenth}, 10)...)
	require.NotEqual(t, http2.ErrCodeNo, ended(1), "headers that are too large")
	for i := range uint32(limit + 1) {
		call(3 + 2*i)
	}
	require.Equal(t, http2.ErrCodeRefusedStream, ended(3+2*limit), "one too many")
	large := make([]byte, 5)
	binary.BigEndian.PutUint32(large[1:], 16<<20+1)
	require.NoError(t, fr.WriteData(3, false, large))
	for answered := false; !answered; {
		f, err := fr.ReadFrame()
		require.NoError(t, err)
		h, ok := f.(*http2.HeadersFrame)
		answered = ok && h.StreamID == 3 && h.StreamEnded()
	}
	for range 20 { // they come much closer together than two seconds
		if fr.WritePing(false, [8]byte{}) != nil {
			break
		}
	}
	_, _ = io.Copy(io.Discard, nc) // until the server has closed it
	_, _, text := ask(t, s, "GET", "/metrics", "")
	for _, limit := range []string{"calls", "headers", "messages", "pings"} {
		require.Contains(t, text,
			fmt.Sprintf("\ntinykv_client_port_refused_calls_total{limit=%q} 1\n", limit))
	}
	_, err = servertest.DirectClient(t, s.ClientAddr()).GetMembers(t.Context(),
		&schedulerpb.GetMembersRequest{})
	require.NoError(t, err)
}

// TestFloodOfIncompleteRequests: what the calls of all connections hold is bounded in sum. Each of
// these connections is below the bound. A connection that holds little is not touched.
func TestFloodOfIncompleteRequests(t *testing.T) {
	const limit, conns, calls, part = 32 << 20, 16, 150, 60 << 10
	s := servertest.StartTest(t, func(c *config.Config) { c.MaxRequestBytes = limit })
	dial := func() (net.Conn, *http2.Framer) {
		nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.ClientAddr())
		require.NoError(t, err)
		t.Cleanup(func() { _ = nc.Close() })
		require.NoError(t, nc.SetDeadline(time.Now().Add(2*time.Minute)))
		_, err = io.WriteString(nc, http2.ClientPreface)
		require.NoError(t, err)
		fr := http2.NewFramer(nc, nc)
		require.NoError(t, fr.WriteSettings())
		return nc, fr
	}
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", "/schedulerpb.Scheduler/GetMembers"},
		{":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"},
	} { // none goes into the table, so that all calls may have the same block
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1], Sensitive: true})
	}
	_, small := dial()
	require.NoError(t, small.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true,
	}))
	before := heap()
	// Of a message of 16 MiB.
	begun := append([]byte{0, 1, 0, 0, 0}, make([]byte, part)...)
	for range conns {
		nc, fr := dial()
		go func() { _, _ = io.Copy(io.Discard, nc) }() // ends with nc
		for i := range uint32(calls) {
			err := fr.WriteHeaders(http2.HeadersFrameParam{
				StreamID: 1 + 2*i, BlockFragment: head.Bytes(), EndHeaders: true,
			})
			for rest := begun; err == nil && len(rest) > 0; {
				n := min(len(rest), 16<<10)
				err = fr.WriteData(1+2*i, false, rest[:n])
				rest = rest[n:]
			}
			if err != nil {
				break // closed to make room
			}
		}
	}
	// Of 16 connections that hold 11 MiB each at most two have room.
	require.Eventually(t, func() bool {
		_, _, text := ask(t, s, "GET", "/metrics", "")
		held := metricOf(t, text, "tinykv_client_port_request_bytes")
		closed := metricOf(t, text, "tinykv_client_port_overfull_connections_total")
		return held <= limit && closed >= conns-2
	}, 30*time.Second, 10*time.Millisecond, "more than the limit is held")
	require.Eventually(t, func() bool { return heap() < before+2*limit }, 30*time.Second,
		10*time.Millisecond, "what was closed is held on")
	require.NoError(t, small.WritePing(false, [8]byte{1}))
	for {
		f, err := small.ReadFrame()
		require.NoError(t, err, "a connection that holds little was closed")
		if p, ok := f.(*http2.PingFrame); ok && p.IsAck() {
			return
		}
	}
}

// heap is what is reachable, in bytes.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// metricOf is the value of a metric without labels.
func metricOf(t *testing.T, text, name string) float64 {
	t.Helper()
	_, rest, ok := strings.Cut(text, "\n"+name+" ")
	require.True(t, ok, "no %s", name)
	value, _, _ := strings.Cut(rest, "\n")
	v, err := strconv.ParseFloat(value, 64)
	require.NoError(t, err)
	return v
}

// TestLogin: with a token the page asks for it; a session does what the token does, at every
// member, and needs a proof of its origin; a flood of wrong tokens is bounded and counted.
func TestLogin(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3, func(c *config.Config) { c.API.Token = "secret" })
	_, followers := leaderOf(t, members)
	s := followers[0]
	page := func(headers ...string) string {
		t.Helper()
		code, head, body := ask(t, s, "GET", "/ui/", "", headers...)
		require.Equal(t, 200, code)
		require.Contains(t, head.Get("Content-Security-Policy"), "form-action 'self'")
		require.Contains(t, head.Get("Content-Security-Policy"), "frame-ancestors 'none'")
		require.Equal(t, "no-store", head.Get("Cache-Control"))
		return body
	}
	require.Contains(t, page(), `type="password"`)
	require.NotContains(t, page(), "<main")
	origin, form := "Origin: http://"+s.ClientAddr(),
		"Content-Type: application/x-www-form-urlencoded"

	code, _, _ := askOnce(t, s, "POST", "/ui/login", "token=secret", form)
	require.Equal(t, 403, code, "no proof")
	code, _, _ = askOnce(t, s, "POST", "/ui/login", "token=secret", form,
		"Origin: https://evil.example")
	require.Equal(t, 403, code)
	code, head, said := askOnce(t, s, "POST", "/ui/login", "token=wrong", form, origin)
	require.Equal(t, 401, code)
	require.Contains(t, said, "This is not the token")
	require.Empty(t, head.Get("Set-Cookie"))
	code, _, _ = askOnce(t, s, "POST", "/ui/login", "token=%zz", form, origin)
	require.Equal(t, 400, code)
	code, head, _ = askOnce(t, s, "POST", "/ui/login", "token=secret", form, origin)
	require.Equal(t, 303, code)
	require.Equal(t, "/ui/", head.Get("Location"))
	require.Contains(t, head.Get("Set-Cookie"), "HttpOnly")
	require.Contains(t, head.Get("Set-Cookie"), "SameSite=Strict")
	session, _, _ := strings.Cut(head.Get("Set-Cookie"), ";")
	cookie := "Cookie: " + session
	require.Contains(t, page(cookie), "Log out")
	require.Contains(t, page(cookie), "<main")

	const path, body = "/api/v1/config", `{"schedule":{"max-store-down-time":"11m"}}`
	code, _, said = ask(t, s, "PATCH", path, body, cookie, origin)
	require.Equal(t, 200, code, "passed on to the leader: %s", said)
	code, _, _ = ask(t, s, "PATCH", path, body, cookie)
	require.Equal(t, 403, code)
	code, _, _ = ask(t, s, "PATCH", path, body, cookie, "Origin: http://127.0.0.1:1")
	require.Equal(t, 403, code, "another port of the same host")
	code, _, _ = ask(t, s, "PATCH", path, body, origin)
	require.Equal(t, 401, code)

	code, _, _ = askOnce(t, s, "POST", "/ui/logout", "", cookie, origin)
	require.Equal(t, 303, code)
	require.NotContains(t, page(cookie), "Log out")
	code, _, _ = ask(t, s, "PATCH", path, body, cookie, origin)
	require.Equal(t, 401, code)

	refused := 0
	for range 100 {
		code, head, _ = askOnce(t, s, "POST", "/ui/login", "token=wrong", form, origin)
		if code == 429 {
			refused++
			require.NotEmpty(t, head.Get("Retry-After"))
		}
	}
	require.Positive(t, refused)
	code, _, _ = ask(t, s, "PATCH", path, body, "Authorization: Bearer wrong")
	require.Equal(t, 429, code, "the header is no way around")
	_, _, said = ask(t, s, "GET", "/metrics", "")
	require.Contains(t, said, `tinykv_failed_logins_total{result="wrong"}`)
	require.NotContains(t, said, `tinykv_failed_logins_total{result="refused"} 0`)

	plain := servertest.StartTest(t)
	_, _, said = ask(t, plain, "GET", "/ui/", "")
	require.Contains(t, said, "<main", "without a token the page is as it was")
	require.NotContains(t, said, "Log out")
	code, _, _ = askOnce(t, plain, "POST", "/ui/login", "token=", form,
		"Origin: http://"+plain.ClientAddr())
	require.Equal(t, 404, code)
}

// askOnce is ask without following redirects.
func askOnce(
	t *testing.T, s *server.Server, method, path, body string, headers ...string,
) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.ClientAddr()+path,
		strings.NewReader(body))
	require.NoError(t, err)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, resp.Header, string(data)
}

// TestAdminCallsInTheClear: without certificates PutClusterConfig and UpdateGCSafePoint need what a
// change over HTTP needs, also through a follower; the safe point of TiKV's clients stays open to
// them.
func TestAdminCallsInTheClear(t *testing.T) {
	t.Parallel()
	members := servertest.StartCluster(t, 3, func(c *config.Config) { c.API.Token = "secret" })
	leader, followers := leaderOf(t, members)
	bootstrapped(t, leader, 1)
	calls := func(s *server.Server, token string) (put, safe error) {
		t.Helper()
		conn, err := grpc.NewClient("passthrough:///"+s.ClientAddr(),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(codec.CallOption()))
		require.NoError(t, err)
		defer func() { _ = conn.Close() }()
		ctx := t.Context()
		if token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		}
		h := &schedulerpb.RequestHeader{ClusterId: s.ClusterID()}
		c := schedulerpb.NewSchedulerClient(conn)
		_, put = c.PutClusterConfig(ctx,
			&schedulerpb.PutClusterConfigRequest{
				Header: h, Cluster: &metapb.Cluster{MaxPeerCount: 3},
			})
		_, safe = c.UpdateGCSafePoint(ctx,
			&schedulerpb.UpdateGCSafePointRequest{Header: h, SafePoint: 1})
		_, err = pdpb.NewPDClient(conn).UpdateGCSafePoint(ctx, &pdpb.UpdateGCSafePointRequest{
			Header: &pdpb.RequestHeader{ClusterId: s.ClusterID()}, SafePoint: 1,
		})
		require.NotContains(t, []codes.Code{codes.PermissionDenied, codes.Unauthenticated},
			status.Code(err))
		_, err = c.GetMembers(ctx, &schedulerpb.GetMembersRequest{})
		require.NoError(t, err, "other calls need no token")
		return put, safe
	}
	for _, s := range []*server.Server{leader, followers[0]} {
		for _, token := range []string{"", "wrong"} {
			put, safe := calls(s, token)
			require.Equal(t, codes.Unauthenticated, status.Code(put), "%v", put)
			require.Equal(t, codes.Unauthenticated, status.Code(safe), "%v", safe)
		}
		put, safe := calls(s, "secret")
		require.NoError(t, put)
		require.NoError(t, safe)
	}
	c, err := client.New(t.Context(), []string{followers[0].ClientURL()},
		client.WithToken("secret"))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.PutClusterConfig(t.Context(), &metapb.Cluster{MaxPeerCount: 3}))
	_, err = c.UpdateGCSafePoint(t.Context(), 2)
	require.NoError(t, err)

	var last error
	for range 100 {
		last, _ = calls(leader, "wrong")
	}
	require.Equal(t, codes.ResourceExhausted, status.Code(last), "guesses are bounded")

	open := servertest.StartTest(t, func(c *config.Config) {
		c.ClientUrls, c.AdvertiseClientUrls, c.Security.Insecure = "http://0.0.0.0:0",
			"http://127.0.0.1:0", true
	})
	put, safe := calls(open, "")
	require.Equal(t, codes.PermissionDenied, status.Code(put))
	require.ErrorContains(t, safe, "[api] token")
}
