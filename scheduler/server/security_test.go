package server_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/client"
	"github.com/tinykv/tinykv/scheduler/server"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// With TLS and a token everything between members is secured too: what a follower passes on, by
// gRPC and by HTTP, and the copy of the regions, which only members of the cluster get.
func TestMembersWithTLS(t *testing.T) {
	t.Parallel()
	sec, secure := servertest.Certificate(t)
	members := servertest.StartCluster(t, 3, func(c *config.Config) {
		c.Security, c.API.Token = sec, "secret"
		for _, urls := range []*string{&c.ClientUrls, &c.PeerUrls, &c.InitialCluster} {
			*urls = strings.ReplaceAll(*urls, "http://", "https://")
		}
	})
	leader, followers := leaderOf(t, members)
	c, err := client.New(t.Context(), []string{followers[0].ClientURL()}, client.WithTLS(secure))
	require.NoError(t, err)
	defer c.Close()
	first := &metapb.Region{
		Id: 1000, RegionEpoch: &metapb.RegionEpoch{Version: 1, ConfVer: 1},
		Peers: []*metapb.Peer{{Id: 1001, StoreId: 1}},
	}
	require.NoError(t, c.Bootstrap(t.Context(), &metapb.Store{Id: 1, Address: "s1"}, first))
	c.RegionHeartbeat(&schedulerpb.RegionHeartbeatRequest{
		Region: first, Leader: first.Peers[0], Term: 6,
	})

	conn, err := grpc.NewClient("passthrough:///"+followers[0].ClientAddr(),
		grpc.WithTransportCredentials(credentials.NewTLS(secure)),
		grpc.WithDefaultCallOptions(codec.CallOption()))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	f := schedulerpb.NewSchedulerClient(conn)
	h := &schedulerpb.RequestHeader{ClusterId: leader.ClusterID()}
	id, err := f.AllocID(t.Context(), &schedulerpb.AllocIDRequest{Header: h})
	require.NoError(t, err, "forwarded")
	require.NotZero(t, id.Id)
	stream, err := f.Tso(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&schedulerpb.TsoRequest{Header: h, Count: 5}))
	ts, err := stream.Recv()
	require.NoError(t, err)
	require.EqualValues(t, 5, ts.Count)
	require.NoError(t, stream.CloseSend())

	web := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: secure},
	}
	get := func(url string, headers ...string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		require.NoError(t, err)
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := web.Do(req)
		require.NoError(t, err)
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	require.Equal(t, 200, get(followers[1].ClientURL()+"/api/v1/stores"), "passed on")
	for _, s := range followers {
		require.Eventually(t, func() bool {
			return s.Cluster().Core().Region(1000) != nil
		}, waitFor, tick, "copied")
	}
	regions := leader.ClientURL() + "/internal/regions"
	cluster := fmt.Sprint(leader.ClusterID())
	require.Equal(t, 403, get(regions))
	require.Equal(t, 403, get(regions, "Tinykv-Cluster-Id", "1", "Authorization", "Bearer secret"))
	require.Equal(t, 401, get(regions, "Tinykv-Cluster-Id", cluster))
	require.Equal(t, 200,
		get(regions, "Tinykv-Cluster-Id", cluster, "Authorization", "Bearer secret"))

	_, err = schedulerpb.NewSchedulerClient(conn).GetMembers(t.Context(),
		&schedulerpb.GetMembersRequest{})
	require.NoError(t, err)
	_, err = servertest.DirectClient(t, leader.ClientAddr()).GetMembers(t.Context(),
		&schedulerpb.GetMembersRequest{})
	require.Error(t, err, "without TLS nobody is served")
}

// TestPeerPortIsForNodes: the peer port of a member with TLS, over which the placement data travel,
// serves nodes; not clients, admins, certificates of other authorities, or connections without TLS.
// A new authority is known once it is in the files.
func TestPeerPortIsForNodes(t *testing.T) {
	dir, other := t.TempDir()+"/certs", t.TempDir()+"/other"
	require.NoError(t, security.CreateCA(dir))
	require.NoError(t, security.CreateCA(other))
	cert := func(dir, name string, role security.Role, hosts ...string) security.Files {
		f, err := security.CreateCert(dir,
			security.CertRequest{Name: name, Role: role, Hosts: hosts})
		require.NoError(t, err)
		return f
	}
	node := cert(dir, "node", security.RoleNode, "127.0.0.1")
	peer := "https://" + servertest.FreeAddr(t)
	servertest.StartTest(t, func(c *config.Config) {
		c.Security = config.Security{CACertPath: node.CA, CertPath: node.Cert, KeyPath: node.Key}
		c.ClientUrls, c.PeerUrls = "https://127.0.0.1:0", peer
	})
	get := func(f security.Files, path string) (int, error) {
		f.CA = node.CA
		id, err := security.LoadIdentity(f, nil)
		require.NoError(t, err)
		web := &http.Client{
			Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: id.Client()},
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, peer+path, nil)
		require.NoError(t, err)
		resp, err := web.Do(req)
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	for _, path := range []string{"/members", "/version"} {
		code, err := get(node, path)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, code)
		for name, f := range map[string]security.Files{
			"client":       cert(dir, "app"+path[1:], security.RoleClient),
			"admin":        cert(dir, "ops"+path[1:], security.RoleAdmin),
			"foreign node": cert(other, "n"+path[1:], security.RoleNode, "127.0.0.1"), "nobody": {},
		} {
			_, err := get(f, path)
			require.Error(t, err, name)
		}
	}
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", strings.TrimPrefix(peer, "https://"))
	require.NoError(t, err)
	defer func() { _ = nc.Close() }()
	_, _ = io.WriteString(nc, "GET /members HTTP/1.1\r\nHost: x\r\n\r\n")
	text, _ := io.ReadAll(nc)
	require.Empty(t, text)

	both, err := os.ReadFile(node.CA)
	require.NoError(t, err)
	more, err := os.ReadFile(other + "/ca.crt")
	require.NoError(t, err)
	foreign := cert(other, "next", security.RoleNode, "127.0.0.1")
	require.NoError(t, os.WriteFile(node.CA+".new", append(both, more...), 0o600))
	require.NoError(t, os.Rename(node.CA+".new", node.CA))
	require.Eventually(t, func() bool {
		code, err := get(foreign, "/members")
		return err == nil && code == http.StatusOK
	},
		20*time.Second, 50*time.Millisecond)
}

// TestPagesAtThePeerPort: a page of another site cannot have a browser promote a member, over the
// peer port of any member without TLS; members can, also by way of a follower.
func TestPagesAtThePeerPort(t *testing.T) {
	var urls []string
	members := servertest.StartCluster(t, 3, func(c *config.Config) {
		urls = append(urls, c.PeerUrls)
	})
	leader, _ := leaderOf(t, members)
	listed, err := server.EtcdOf(leader).MemberList(t.Context())
	require.NoError(t, err)
	id := listed.Members[0].ID
	promote := func(url string, headers ...string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
			fmt.Sprint(url, "/members/promote/", id), nil)
		require.NoError(t, err)
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			if name == "Host" {
				req.Host = value
			}
			req.Header.Set(name, value)
		}
		web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := web.Do(req)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return resp.StatusCode, string(text)
	}
	for _, url := range urls {
		for _, headers := range [][]string{
			{"Origin: https://evil.example"}, {"Origin: null"}, {"Origin: " + url},
			{"Sec-Fetch-Site: cross-site"},
		} {
			code, text := promote(url, headers...)
			require.Equal(t, 403, code, "%v: %s", headers, text)
		}
		code, text := promote(url, "Host: evil.example:2380")
		require.Equal(t, 421, code, text)
		// A member's request comes to the end of etcd's checks, at the leader.
		code, text = promote(url)
		require.Equal(t, 412, code, text)
		require.Contains(t, text, "can only promote a learner member")
	}
}

// TestClientsCertificateChangesNothing: over HTTP a certificate that is for clients is no admin's,
// also on a loopback address where a connection without one would be.
func TestClientsCertificateChangesNothing(t *testing.T) {
	dir := t.TempDir() + "/certs"
	require.NoError(t, security.CreateCA(dir))
	cert := func(name string, role security.Role, hosts ...string) security.Files {
		f, err := security.CreateCert(dir,
			security.CertRequest{Name: name, Role: role, Hosts: hosts})
		require.NoError(t, err)
		return f
	}
	node := cert("node", security.RoleNode, "127.0.0.1")
	s := servertest.StartTest(t, func(c *config.Config) {
		c.Security = config.Security{CACertPath: node.CA, CertPath: node.Cert, KeyPath: node.Key}
		c.ClientUrls, c.PeerUrls = "https://127.0.0.1:0", "https://127.0.0.1:0"
	})
	for name, want := range map[string]int{"client": http.StatusForbidden, "admin": http.StatusOK} {
		id, err := security.LoadIdentity(cert(name, security.Role(name)), nil)
		require.NoError(t, err)
		web := &http.Client{
			Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: id.Client()},
		}
		for method, code := range map[string]int{
			http.MethodGet: http.StatusOK, http.MethodPatch: want,
		} {
			req, err := http.NewRequestWithContext(t.Context(), method,
				"https://"+s.ClientAddr()+"/api/v1/config", strings.NewReader("{}"))
			require.NoError(t, err)
			req.Header.Set(security.ProofHeader, "1")
			resp, err := web.Do(req)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, code, resp.StatusCode, "%s %s", name, method)
		}
	}
}
