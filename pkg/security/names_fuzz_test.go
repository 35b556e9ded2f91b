package security_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
)

// named makes a certificate with a common name and names (URIs) of any bytes, one each line of
// uris. It is nil where there can be no such certificate: then there is none that could be shown.
func named(t *testing.T, key *ecdsa.PrivateKey, cn, uris string) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn},
		NotBefore:   time.Now().Add(-time.Hour),
		NotAfter:    time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if uris != "" {
		var names []asn1.RawValue
		for _, u := range strings.Split(uris, "\n") {
			names = append(names,
				asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u)})
		}
		value, err := asn1.Marshal(names)
		require.NoError(t, err)
		tmpl.ExtraExtensions = []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value},
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil // a handshake ends here, too
	}
	return cert
}

// rolesByText are the roles that names give, by their bytes: the scheme in any case, since a URI's
// has none, and with an empty fragment, which is the same name.
func rolesByText(uris string) (roles []security.Role, restricted bool) {
	for _, u := range strings.Split(uris, "\n") {
		scheme, rest, ok := strings.Cut(u, ":")
		if !ok || !strings.EqualFold(scheme, "tinykv") {
			continue
		}
		restricted = true
		for _, r := range []security.Role{
			security.RoleNode, security.RoleClient, security.RoleAdmin,
		} {
			if strings.TrimSuffix(rest, "#") == "//role/"+string(r) {
				roles = append(roles, r)
			}
		}
	}
	return roles, restricted
}

// FuzzCertificateNames: a certificate has the roles that it names letter by letter, and no others:
// over gRPC, over HTTP and for cert-allowed-cn.
func FuzzCertificateNames(f *testing.F) {
	const role = "tinykv://role/"
	long := strings.Repeat("x", 70000)
	for _, s := range [][2]string{
		{"app", role + "client"}, {"", role + "admin"}, {"node", ""}, {"", ""},
		{"app\x00.evil", role + "client"}, {"*", role + "*"},
		{"app", role + "Node"}, {"app", "TINYKV://role/node"}, {"app", "tinykv://ROLE/node"},
		{"app", role + "node/"}, {"app", role + "node?x=1"},
		{"app", role + "node#"}, {"app", role + "node#x"}, {"app", role + "%6eode"},
		{"app", role + "node\x00"}, {"app", "tinykv://a@role/node"},
		{"app", "tinykv://role:1/node"}, {"app", "tinykv:role/node"},
		{"app", "tinykv:///role/node"}, {"app", "spiffe://evil/role/node"},
		{"app", "tinykv://role.evil/node"}, {"app", "https://x/tinykv://role/node"},
		{"app", role + "client\n" + role + "node"},
		{"app", role + "client\nspiffe://x/node"}, {"app", role + "nodе"}, {"äpp", role + "client"},
		{"app ", role}, {"APP", role + "root"},
		{long, role + "client"}, {"app", role + long}, {"app", " " + role + "node"},
		{"app", role + "node "}, {"app", "tinykv://role//node"},
		{"app", "tinykv://role/x/../node"}, {"app", "tinykv://rol%65/node"},
	} {
		f.Add(s[0], s[1])
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(f, err)
	dir := f.TempDir()
	require.NoError(f, security.CreateCA(dir+"/ca"))
	files, err := security.CreateCert(dir+"/ca",
		security.CertRequest{Name: "n", Role: security.RoleNode, Hosts: []string{"localhost"}})
	require.NoError(f, err)
	open, err := security.LoadIdentity(files, nil)
	require.NoError(f, err)
	closed, err := security.LoadIdentity(files, []string{"app"})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, cn, uris string) {
		cert := named(t, key, cn, uris)
		if cert == nil {
			return
		}
		want, restricted := rolesByText(uris)
		got := security.RolesOf(cert)
		for _, r := range []security.Role{
			security.RoleNode, security.RoleClient, security.RoleAdmin,
		} {
			require.Equal(t, slices.Contains(want, r), slices.Contains(got, r), "%s of %q", r, uris)
			state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
			may := !restricted || slices.Contains(want, r) ||
				r == security.RoleClient && len(want) > 0
			require.Equal(t, may, security.May(state, r), "%s by %q", r, uris)
		}
		state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		served := !restricted || len(want) > 0
		require.Equal(t, served, open.Server().VerifyConnection(state) == nil, "%q", uris)
		allowed := served &&
			(cert.Subject.CommonName == "app" || slices.Contains(want, security.RoleNode))
		require.Equal(t, allowed, closed.Server().VerifyConnection(state) == nil, "%q %q", cn, uris)
		if err := closed.Server().VerifyConnection(state); err != nil {
			require.Less(t, len(err.Error()), 2000, "an error of the certificate's length")
		}
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set(security.ProofHeader, "1")
		r.TLS = &tls.ConnectionState{
			PeerCertificates: state.PeerCertificates, VerifiedChains: [][]*x509.Certificate{{cert}},
		}
		w := httptest.NewRecorder()
		(&security.Guard{Token: "secret"}).Admin(http.NotFoundHandler()).ServeHTTP(w, r)
		admin := slices.Contains(want, security.RoleAdmin) ||
			slices.Contains(want, security.RoleNode)
		require.Equal(t, admin, w.Code == http.StatusNotFound, "over HTTP: %d for %q", w.Code, uris)
	})
}
