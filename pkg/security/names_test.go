package security_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
)

// bare makes a certificate without the URI of a role, as a company's authority does.
func bare(t *testing.T, dir, name string) security.Files {
	t.Helper()
	ca, err := tls.LoadX509KeyPair(filepath.Join(dir, security.CACertFile),
		filepath.Join(dir, security.CAKeyFile))
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	tmpl.Subject.CommonName = name
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.Leaf, &key.PublicKey, ca.PrivateKey)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	f := security.Files{
		CA:   filepath.Join(dir, security.CACertFile),
		Cert: filepath.Join(dir, "bare-"+name+".crt"), Key: filepath.Join(dir, "bare-"+name+".key"),
	}
	require.NoError(t, os.WriteFile(f.Cert,
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(f.Key,
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	return f
}

// TestRolesByName: with lists, a certificate without role URI has the role of its common name, or
// none; a role URI goes before the lists; without lists nothing changes.
func TestRolesByName(t *testing.T) {
	dir := authority(t)
	names := &security.Names{
		Node: []string{"kv1"}, Admin: []string{"ops"}, Client: []string{"app", "both"},
	}
	server, err := security.LoadNamed(bare(t, dir, "kv1"), []string{"other"}, names)
	require.NoError(t, err)
	const node, admin, client = security.RoleNode, security.RoleAdmin, security.RoleClient
	for _, c := range []struct {
		name  string
		files security.Files
		may   []security.Role // empty: refused in the handshake
	}{
		{"node by name", bare(t, dir, "kv1"), []security.Role{node, client}},
		{"admin by name", bare(t, dir, "ops"), []security.Role{admin, client}},
		{"client by name", bare(t, dir, "app"), []security.Role{client}},
		{"in no list, although allowed to connect", bare(t, dir, "other"), nil},
		{"in the wrong case", bare(t, dir, "OPS"), nil},
		{"no name", bare(t, dir, ""), nil},
		{"the URI goes before the list", certificate(t, dir, "kv1", node, "127.0.0.1"),
			[]security.Role{node, client}},
		{"a client's URI with a node's name is in no list of names to connect",
			certificate(t, authorityCopy(t, dir), "kv1", client), nil},
		{"a client's URI with an allowed name", certificate(t, dir, "other", client),
			[]security.Role{client}},
	} {
		t.Run(c.name, func(t *testing.T) {
			state, err := meet(t, server.Server(), identity(t, c.files).Client())
			if len(c.may) == 0 {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			for _, r := range []security.Role{node, admin, client} {
				require.Equal(t, slices.Contains(c.may, r), names.May(&state, r), r)
			}
			var none security.Names
			require.Equal(t, security.May(&state, node), none.May(&state, node), "without lists")
		})
	}
	plain := identity(t, bare(t, dir, "kv2"))
	state, err := meet(t, plain.Server(), identity(t, bare(t, dir, "any")).Client())
	require.NoError(t, err)
	require.True(t, security.May(&state, node), "without lists")
}

// authorityCopy is a directory with the same authority, for a second certificate of one name.
func authorityCopy(t *testing.T, dir string) string {
	t.Helper()
	out := t.TempDir()
	for _, f := range []string{security.CACertFile, security.CAKeyFile} {
		data, err := os.ReadFile(filepath.Join(dir, f))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(out, f), data, 0o600))
	}
	return out
}

// TestRolesByNameOfConnections: what a listener accepts has the roles of the listener's names.
func TestRolesByNameOfConnections(t *testing.T) {
	dir := authority(t)
	id, err := security.LoadNamed(bare(t, dir, "kv1"), nil,
		&security.Names{Node: []string{"kv1"}, Client: []string{"app"}})
	require.NoError(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := id.Listen(tcp, false)
	defer l.Close()
	for _, name := range []string{"kv1", "app"} {
		got := make(chan bool, 1)
		go func() {
			nc, err := l.Accept()
			if err != nil {
				close(got)
				return
			}
			defer nc.Close()
			_, _ = nc.Write([]byte("x"))
			got <- security.MayConn(nc, security.RoleNode)
		}()
		cfg := identity(t, bare(t, dir, name)).Client()
		c, err := tls.Dial("tcp", tcp.Addr().String(), cfg)
		require.NoError(t, err)
		_, err = c.Read(make([]byte, 1))
		require.NoError(t, err)
		require.NoError(t, c.Close())
		require.Equal(t, name == "kv1", <-got, name)
	}
}

// TestAdminByName: over HTTP an admin by name needs no token, a client by name does.
func TestAdminByName(t *testing.T) {
	dir := authority(t)
	names := &security.Names{
		Node: []string{"kv1"}, Admin: []string{"ops"}, Client: []string{"app"},
	}
	for name, want := range map[string]int{
		"kv1": http.StatusNotFound, "ops": http.StatusNotFound, "app": http.StatusUnauthorized,
	} {
		certs, err := security.ReadCerts(bare(t, dir, name).Cert)
		require.NoError(t, err)
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set(security.ProofHeader, "1")
		r.TLS = &tls.ConnectionState{
			PeerCertificates: certs, VerifiedChains: [][]*x509.Certificate{certs},
		}
		w := httptest.NewRecorder()
		g := &security.Guard{Token: "secret", Names: names}
		g.Admin(http.NotFoundHandler()).ServeHTTP(w, r)
		require.Equal(t, want, w.Code, name)
	}
	certs, err := security.ReadCerts(bare(t, dir, "app").Cert)
	require.NoError(t, err)
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.Header.Set(security.ProofHeader, "1")
	r.TLS = &tls.ConnectionState{
		PeerCertificates: certs, VerifiedChains: [][]*x509.Certificate{certs},
	}
	w := httptest.NewRecorder()
	g := &security.Guard{Loopback: true, Names: names}
	g.Admin(http.NotFoundHandler()).ServeHTTP(w, r)
	require.Equal(t, http.StatusForbidden, w.Code, "a client by name, on loopback")
}

// TestNamesAreChecked: a name in two lists, an empty one, and lists by which the server itself is
// no node are faults.
func TestNamesAreChecked(t *testing.T) {
	for _, c := range []struct {
		names security.Names
		fault string
	}{
		{security.Names{}, ""},
		{security.Names{Node: []string{"a", "b"}, Client: []string{"c"}}, ""},
		{security.Names{Node: []string{"x"}, Client: []string{"x"}},
			`cert-client-cn: "x" is in cert-node-cn already`},
		{security.Names{Node: []string{"a", "a"}}, "already"},
		{security.Names{Admin: []string{""}}, "cert-admin-cn: a name is empty"},
	} {
		if err := c.names.Validate(); c.fault == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, c.fault)
		}
	}
	dir := authority(t)
	_, err := security.LoadNamed(bare(t, dir, "kv1"), nil,
		&security.Names{Client: []string{"kv1"}})
	require.ErrorContains(t, err, "cert-node-cn")
	_, err = security.LoadNamed(certificate(t, dir, "kv2", security.RoleNode, "127.0.0.1"), nil,
		&security.Names{Client: []string{"app"}})
	require.NoError(t, err, "a node by its URI")
}
