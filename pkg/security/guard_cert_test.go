package security_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
)

// TestAdminByCertificate: the certificate of an admin is as good as the token; one of a client is
// not, and a page of another site cannot use the one that its reader's browser has.
func TestAdminByCertificate(t *testing.T) {
	dir := authority(t)
	node := identity(t, certificate(t, dir, "node", security.RoleNode, "127.0.0.1"))
	guard := &security.Guard{Token: "secret"}
	s := httptest.NewUnstartedServer(
		guard.Wrap(guard.Admin(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))))
	s.TLS = node.Server("http/1.1")
	s.StartTLS()
	defer s.Close()
	post := func(name string, role security.Role, header ...string) int {
		t.Helper()
		cfg := identity(t, certificate(t, dir, name, role, "127.0.0.1")).Client()
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
		req, err := http.NewRequest(http.MethodPost, s.URL, nil)
		require.NoError(t, err)
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := c.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return resp.StatusCode
	}
	require.Equal(t, http.StatusOK, post("ops", security.RoleAdmin, security.ProofHeader, "1"))
	require.Equal(t, http.StatusOK,
		post("other-node", security.RoleNode, security.ProofHeader, "1"))
	require.Equal(t, http.StatusForbidden, post("ops2", security.RoleAdmin), "no proof")
	require.Equal(t, http.StatusForbidden,
		post("ops3", security.RoleAdmin, security.ProofHeader, "1", "Origin",
			"https://evil.example"))
	require.Equal(t, http.StatusUnauthorized,
		post("app", security.RoleClient, security.ProofHeader, "1"))
	require.Equal(t, http.StatusOK,
		post("app2", security.RoleClient, "Authorization", "Bearer secret"))
}
