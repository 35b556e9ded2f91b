package security

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"
)

// Identity is a process's certificate and the authorities that it trusts. They are read from files,
// and again when those have changed: connections that are made afterwards use them, those that
// exist stay. Files that cannot be read, or do not fit together, leave what was there in use; Err
// tells. Safe for concurrent use.
type Identity struct {
	files   Files
	allowed []string
	names   *Names // nil: roles are those of the URIs
	reports reports
	mu      struct {
		sync.Mutex
		checked time.Time
		// read is the hash of what the files held when they were last read.
		read   [sha256.Size]byte
		loaded *material
		err    error
	}
}

// material is what the files held together at one time.
type material struct {
	roots *x509.CertPool
	pair  *tls.Certificate // nil without one
}

// recheck is how often the files are looked at.
const recheck = time.Second

// LoadIdentity reads the files. A server needs all three; a client may do without a certificate,
// and without CA trusts the system's. allowedCN, if not empty, are the common names of certificates
// that may connect.
func LoadIdentity(files Files, allowedCN []string) (*Identity, error) {
	return LoadNamed(files, allowedCN, nil)
}

// LoadNamed is LoadIdentity for a server that gives roles by common names, too. Names with a role
// may connect as allowedCN may. The server's own certificate must be one of a node.
func LoadNamed(files Files, allowedCN []string, names *Names) (*Identity, error) {
	i := &Identity{files: files, allowed: allowedCN, names: names}
	i.mu.read, i.mu.checked = files.hash(), time.Now()
	var err error
	if i.mu.loaded, err = i.load(); err != nil {
		return nil, err
	}
	return i, nil
}

// load reads the files, and refuses a certificate that this cluster's servers would refuse.
func (i *Identity) load() (*material, error) {
	m, err := i.files.load()
	if err != nil {
		return nil, err
	}
	return m, i.names.checkOwn(m.pair)
}

// hash is of what the files hold. Times of files are too coarse to tell whether they have changed.
func (f Files) hash() (out [sha256.Size]byte) {
	h := sha256.New()
	for _, path := range []string{f.CA, f.Cert, f.Key} {
		data, err := os.ReadFile(path) // load says what is wrong with it
		fmt.Fprintf(h, "%q %d %v ", path, len(data), err)
		_, _ = h.Write(data)
	}
	h.Sum(out[:0])
	return out
}

func (f Files) load() (*material, error) {
	cfg, err := f.Config()
	if err != nil {
		return nil, err
	}
	m := &material{roots: cfg.RootCAs}
	if len(cfg.Certificates) > 0 {
		m.pair = &cfg.Certificates[0]
	}
	return m, nil
}

// current is what the files hold.
func (i *Identity) current() *material {
	i.mu.Lock()
	defer i.mu.Unlock()
	if now := time.Now(); now.Sub(i.mu.checked) >= recheck {
		i.mu.checked = now
		i.mu.err = i.readLocked()
	}
	return i.mu.loaded
}

// readLocked reads the files if they have changed. Half-written ones do not fit together, and are
// looked at again. What is read between hash and load differs from the hash the next time.
func (i *Identity) readLocked() error {
	read := i.files.hash()
	if read == i.mu.read {
		return nil
	}
	m, err := i.load()
	if err == nil {
		i.mu.loaded, i.mu.read = m, read
	}
	return err
}

// Err says why the files as they are now cannot be used; nil if they can.
func (i *Identity) Err() error {
	i.current()
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.mu.err
}

// Expires is when the certificate, or one of those that prove it, ends; zero without a certificate.
func (i *Identity) Expires() (end time.Time) {
	m := i.current()
	if m.pair == nil {
		return end
	}
	for _, der := range m.pair.Certificate {
		c, err := x509.ParseCertificate(der)
		if err == nil && (end.IsZero() || c.NotAfter.Before(end)) {
			end = c.NotAfter
		}
	}
	return end
}

// Client is for one connection to a server: it holds what the files hold now.
func (i *Identity) Client(protocols ...string) *tls.Config {
	m := i.current()
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: m.roots, NextProtos: protocols}
	if m.pair != nil {
		cfg.Certificates = []tls.Certificate{*m.pair}
	}
	return cfg
}

// Server is for a listener. Who connects must show a certificate of one of the authorities, with an
// allowed name; without CA nobody needs one.
func (i *Identity) Server(protocols ...string) *tls.Config {
	fresh := func() *tls.Config {
		m := i.current()
		cfg := &tls.Config{
			MinVersion: tls.VersionTLS12, ClientCAs: m.roots, NextProtos: protocols,
			VerifyConnection: i.checkName,
			Certificates:     []tls.Certificate{*m.pair},
		}
		if m.roots != nil {
			cfg.ClientAuth = tls.RequireAndVerifyClientCert
		}
		return cfg
	}
	cfg := fresh()
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return fresh(), nil }
	return cfg
}

// checkName refuses certificates of other names than the allowed ones, and those whose role is none
// that is known here. Those of this cluster's own processes are always allowed.
func (i *Identity) checkName(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	return i.names.Check(cs.PeerCertificates[0], i.allowed)
}

// Check refuses what a server with these Names, and with the list of allowed common names
// (cert-allowed-cn), refuses in the handshake.
func (n *Names) Check(cert *x509.Certificate, allowed []string) error {
	u, roles := roleName(cert), n.RolesOf(cert)
	if u == "" && len(roles) == 0 && !n.Empty() {
		return fmt.Errorf("the certificate of %.80q has no role: it has no URI of one, and "+
			"its name is none of [security] cert-node-cn, cert-admin-cn and cert-client-cn",
			cert.Subject.CommonName)
	}
	if u != "" && len(roles) == 0 {
		return fmt.Errorf(
			"the certificate of %.80q has the name %.80q, which is none of a role: node, client or admin",
			cert.Subject.CommonName, u)
	}
	if len(allowed) == 0 || slices.Contains(allowed, cert.Subject.CommonName) ||
		slices.Contains(roles, RoleNode) || u == "" && len(roles) > 0 {
		return nil
	}
	return fmt.Errorf("the certificate's name %.80q is none of [security] cert-allowed-cn",
		cert.Subject.CommonName)
}

// CheckServer refuses files that a server cannot serve with.
func (f Files) CheckServer() error {
	if f.CA == "" || f.Cert == "" || f.Key == "" {
		return errors.New("serving with TLS needs all of ca-path, cert-path and key-path")
	}
	_, err := f.load()
	return err
}

// Role is what a certificate's owner may do.
type Role string

// Roles. A node is a store or a member of the placement service.
const (
	RoleNode   Role = "node"
	RoleClient Role = "client"
	RoleAdmin  Role = "admin"
)

// allRoles are those that a certificate may name.
var allRoles = []Role{RoleNode, RoleClient, RoleAdmin}

// A role is given by the name (subject alternative name, a URI) tinykv://role/ROLE. A certificate
// with another name of this scheme is one of an authority that gives roles, too.
const (
	roleScheme = "tinykv"
	roleURI    = roleScheme + "://role/"
)

// RolesOf are the roles that a certificate names. A certificate of another tool's making names
// none. What is not exactly the name of a role, such as one in the wrong case, of another host, or
// with a query, gives none.
func RolesOf(cert *x509.Certificate) []Role {
	var out []Role
	for _, u := range cert.URIs {
		for _, r := range allRoles {
			if *u == (url.URL{Scheme: roleScheme, Host: "role", Path: "/" + string(r)}) &&
				!slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out
}

// roleName is the first name of a certificate that is one of the scheme of roles; "" if it has
// none. A certificate that has one may do what its roles may; without a known role nothing.
func roleName(cert *x509.Certificate) string {
	for _, u := range cert.URIs {
		if u.Scheme == roleScheme {
			return u.String()
		}
	}
	return ""
}

// May tells whether the other side of a connection may act in a role. A certificate that names no
// role may act in all: its authority has decided that. An admin may do what a client may.
func May(cs *tls.ConnectionState, role Role) bool { return (*Names)(nil).May(cs, role) }
