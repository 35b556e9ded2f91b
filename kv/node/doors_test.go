package node

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/pkg/feature"
	schedconfig "github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// started starts a store on free ports; it ends with the test.
func started(t *testing.T, change func(*config.Config)) (*Node, error) {
	t.Helper()
	return startedAs(t, feature.Supported, change)
}

// startedAs starts a store of a program that knows certain features.
func startedAs(t *testing.T, known feature.Set, change func(*config.Config)) (*Node, error) {
	t.Helper()
	cfg := config.Default()
	cfg.Addr, cfg.StatusAddr, cfg.DataDir = "127.0.0.1:0", "127.0.0.1:0", t.TempDir()
	cfg.Storage.ReserveSpace = 0
	change(cfg)
	cfg.EnsureDefaults()
	require.NoError(t, cfg.Validate())
	n := New(cfg, "test", zap.NewNop())
	n.features.known = known
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := n.Start(ctx)
	if err == nil {
		t.Cleanup(n.Stop)
	}
	return n, err
}

// TestStatusPort: it serves reads only, under the store's names only, and to no foreign page.
func TestStatusPort(t *testing.T) {
	n, err := started(t, func(c *config.Config) {
		c.Storage.Raft = false
		c.Security.AllowedHosts = []string{"store.example"}
	})
	require.NoError(t, err)
	ask := func(method, path, host string, headers ...string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.status.addr()+path,
			strings.NewReader("x"))
		require.NoError(t, err)
		req.Close = true
		if host != "" {
			req.Host = host
		}
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Empty(t, resp.Header.Get("Access-Control-Allow-Origin"))
		return resp
	}
	for _, path := range []string{
		"/config", "/status", "/metrics", "/regions", "/hash", "/health", "/debug/pprof/",
		"/debug/pprof/profile",
	} {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
			resp := ask(method, path, "")
			require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode, "%s %s", method, path)
			require.Equal(t, "GET, HEAD", resp.Header.Get("Allow"))
		}
		require.Equal(t, http.StatusMisdirectedRequest, ask("GET", path, "evil.example").StatusCode)
	}
	for _, host := range []string{"", "store.example:1", "localhost", "10.0.0.1"} {
		require.Equal(t, 200, ask("GET", "/config", host).StatusCode)
	}
	require.Equal(t, 200, ask("GET", "/debug/pprof/cmdline", "").StatusCode)
	require.Equal(t, 403,
		ask("GET", "/debug/pprof/cmdline", "", "Sec-Fetch-Site", "cross-site").StatusCode)

	far := httptest.NewRequest("GET", "http://10.0.0.1/debug/pprof/cmdline", nil)
	far.RemoteAddr = "10.0.0.2:1"
	w := httptest.NewRecorder()
	n.status.http.Handler.ServeHTTP(w, far)
	require.Equal(t, 403, w.Code)
}

// TestPlacementWithTLS: a store reaches a placement service that serves TLS, and says so in a line
// if its address asks for none.
func TestPlacementWithTLS(t *testing.T) {
	sec, _ := servertest.Certificate(t)
	s := servertest.StartTest(t, func(c *schedconfig.Config) {
		c.Security = sec
		c.ClientUrls = strings.ReplaceAll(c.ClientUrls, "http://", "https://")
	})
	with := func(c *config.Config) {
		c.Security.CAPath, c.Security.CertPath, c.Security.KeyPath = sec.CACertPath, sec.CertPath,
			sec.KeyPath
	}
	n, err := started(t, func(c *config.Config) { with(c); c.Scheduler = []string{s.ClientURL()} })
	require.NoError(t, err)
	require.NotZero(t, n.StoreID())

	_, err = started(t, func(c *config.Config) {
		with(c)
		c.Scheduler, c.ClusterID = []string{s.ClientURL()}, 1
	})
	require.ErrorContains(t, err, "is to join cluster 1", "the wrong cluster")

	cfg := config.Default()
	cfg.Scheduler = []string{s.ClientAddr()}
	n = New(cfg, "test", zap.NewNop())
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	require.ErrorContains(t, n.reachPlacement(ctx, 0), "give its address as https://")
}
