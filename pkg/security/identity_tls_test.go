package security_test

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
)

// authority is a directory with a CA.
func authority(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "certs")
	require.NoError(t, security.CreateCA(dir))
	return dir
}

func certificate(
	t *testing.T, dir, name string, role security.Role, hosts ...string,
) security.Files {
	t.Helper()
	f, err := security.CreateCert(dir, security.CertRequest{Name: name, Role: role, Hosts: hosts})
	require.NoError(t, err)
	return f
}

func identity(t *testing.T, f security.Files, allowed ...string) *security.Identity {
	t.Helper()
	i, err := security.LoadIdentity(f, allowed)
	require.NoError(t, err)
	return i
}

// meet has a client connect to a server, and returns what the server saw.
func meet(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	type seen struct {
		state tls.ConnectionState
		err   error
	}
	served := make(chan seen, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			served <- seen{err: err}
			return
		}
		defer nc.Close()
		c := tls.Server(nc, server)
		err = c.Handshake()
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		served <- seen{c.ConnectionState(), err}
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer nc.Close()
	if client.ServerName == "" {
		client.ServerName = "127.0.0.1"
	}
	c := tls.Client(nc, client)
	err = c.Handshake()
	if err == nil {
		// in TLS 1.3 the server's refusal comes after the handshake
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	_ = nc.Close()
	s := <-served
	if err == nil {
		err = s.err
	}
	return s.state, err
}

func TestIdentities(t *testing.T) {
	dir, other := authority(t), authority(t)
	node := certificate(t, dir, "node1", security.RoleNode, "127.0.0.1", "localhost")
	client := certificate(t, dir, "app", security.RoleClient)
	admin := certificate(t, dir, "root", security.RoleAdmin)
	foreign := certificate(t, other, "app", security.RoleClient)
	serve := identity(t, node).Server("h2")
	state, err := meet(t, serve, identity(t, client).Client("h2"))
	require.NoError(t, err)
	require.Equal(t, "h2", state.NegotiatedProtocol)
	require.Equal(t, []security.Role{security.RoleClient},
		security.RolesOf(state.PeerCertificates[0]))
	require.True(t, security.May(&state, security.RoleClient))
	require.False(t, security.May(&state, security.RoleNode))
	require.False(t, security.May(&state, security.RoleAdmin))
	state, err = meet(t, serve, identity(t, admin).Client())
	require.NoError(t, err)
	require.True(t, security.May(&state, security.RoleAdmin))
	require.True(t, security.May(&state, security.RoleClient))
	require.False(t, security.May(&state, security.RoleNode))
	state, err = meet(t, serve, identity(t, node).Client())
	require.NoError(t, err)
	require.True(t, security.May(&state, security.RoleNode))
	require.True(t, security.May(&state, security.RoleClient))
	require.True(t, security.May(nil, security.RoleAdmin), "without TLS")

	_, err = meet(t, serve, identity(t, foreign).Client())
	require.ErrorContains(t, err, "unknown authority")
	trusting := identity(t, foreign).Client()
	trusting.RootCAs = identity(t, client).Client().RootCAs
	_, err = meet(t, serve, trusting)
	require.Error(t, err, "a foreign client")
	_, err = meet(t, serve, identity(t, security.Files{CA: node.CA}).Client())
	require.Error(t, err, "no certificate")
	wrong := identity(t, client).Client()
	wrong.ServerName = "elsewhere.example"
	_, err = meet(t, serve, wrong)
	require.ErrorContains(t, err, "elsewhere.example")
	_, err = meet(t, identity(t, client).Server(), identity(t, client).Client())
	require.Error(t, err, "a client's certificate in a server's place")
	_, err = meet(t, identity(t, node, "other").Server(), identity(t, client).Client())
	require.Error(t, err, "a name that is not allowed")
	_, err = meet(t, identity(t, node, "other").Server(), identity(t, node).Client())
	require.NoError(t, err, "nodes are always allowed")
	_, err = meet(t, identity(t, node, "app").Server(), identity(t, client).Client())
	require.NoError(t, err)
}

// TestExpiredCertificate: it is refused by the other side.
func TestExpiredCertificate(t *testing.T) {
	dir := authority(t)
	node := certificate(t, dir, "node1", security.RoleNode, "127.0.0.1")
	f, err := security.CreateCert(dir,
		security.CertRequest{Name: "late", Role: security.RoleClient, Life: time.Nanosecond})
	require.NoError(t, err)
	_, err = meet(t, identity(t, node).Server(), identity(t, f).Client())
	require.ErrorContains(t, err, "expired")
}

// TestFilesAreReadAgain: a new CA and new certificates are used without a restart; files that do
// not fit together leave the old ones in use.
func TestFilesAreReadAgain(t *testing.T) {
	dir, next := authority(t), authority(t)
	node := certificate(t, dir, "node", security.RoleNode, "127.0.0.1")
	newNode := certificate(t, next, "node", security.RoleNode, "127.0.0.1")
	newClient := certificate(t, next, "app", security.RoleClient)
	i := identity(t, node)
	serve := i.Server()
	_, err := meet(t, serve, identity(t, newClient).Client())
	require.Error(t, err)

	replace(t, newNode.Cert, node.Cert) // does not fit the key
	require.Eventually(t, func() bool {
		return i.Err() != nil
	}, 10*time.Second, 10*time.Millisecond)
	client := certificate(t, dir, "old-app", security.RoleClient)
	_, err = meet(t, serve, identity(t, client).Client())
	require.NoError(t, err)

	replace(t, newNode.Key, node.Key)
	replace(t, newNode.CA, node.CA)
	require.Eventually(t, func() bool {
		return i.Err() == nil
	}, 10*time.Second, 10*time.Millisecond)
	_, err = meet(t, serve, identity(t, newClient).Client())
	require.NoError(t, err)
}

// replace puts a file in another one's place, as a tool for certificates does.
func replace(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to+".new", data, 0o600))
	require.NoError(t, os.Rename(to+".new", to))
}

func TestAuthorityRefusesBadRequests(t *testing.T) {
	dir := authority(t)
	require.ErrorContains(t, security.CreateCA(dir), "is there already")
	for want, r := range map[string]security.CertRequest{
		"is no name":       {Name: "../x", Role: security.RoleClient},
		"the names or IPs": {Name: "n", Role: security.RoleNode},
		"is good for at most": {
			Name: "n", Role: security.RoleClient, Life: 100 * 365 * 24 * time.Hour,
		},
		"\"ca\" is no name":    {Name: "ca", Role: security.RoleClient},
		"\"\" is no name for ": {Role: security.RoleClient},
	} {
		_, err := security.CreateCert(dir, r)
		require.ErrorContains(t, err, want)
	}
	_, err := security.CreateCert(t.TempDir(),
		security.CertRequest{Name: "n", Role: security.RoleClient})
	require.ErrorContains(t, err, "the authority in")
	info, err := os.Stat(filepath.Join(dir, security.CAKeyFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	certs, err := security.ReadCerts(filepath.Join(dir, security.CACertFile))
	require.NoError(t, err)
	require.True(t, certs[0].IsCA)
	_, err = security.ReadCerts(filepath.Join(dir, security.CAKeyFile))
	require.ErrorContains(t, err, "holds no certificate")
	require.Error(t, security.Files{CA: "x"}.CheckServer())
	require.NoError(t, certificate(t, dir, "n", security.RoleNode, "localhost").CheckServer())
}
