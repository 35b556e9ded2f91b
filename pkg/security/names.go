package security

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
)

// Names give roles to certificates without the URI of a role, by their common names: for
// authorities that cannot put such URIs into certificates. Once one list has an entry, a
// certificate without URI and in no list has no role, and is refused in the handshake. A role URI
// goes before the lists. Nil and empty Names give no role, and take none. Not changed once in use.
//
// Invariant (Validate): no name is in two lists, and none is empty.
type Names struct{ Node, Admin, Client []string }

// Empty tells whether no list has an entry.
func (n *Names) Empty() bool { return n == nil || len(n.Node)+len(n.Admin)+len(n.Client) == 0 }

// lists are in the order of roles.
func (n *Names) lists() [3][]string { return [...][]string{n.Node, n.Admin, n.Client} }

var listRoles = [...]Role{RoleNode, RoleAdmin, RoleClient}

// Validate returns all faults of the lists: an empty name, which certificates without common name
// have, and a name that occurs twice. The options are cert-node-cn, cert-admin-cn, cert-client-cn.
func (n *Names) Validate() error {
	var errs []error
	seen := map[string]Role{}
	for i, list := range n.lists() {
		role := listRoles[i]
		for _, name := range list {
			if other, ok := seen[name]; ok {
				errs = append(errs, fmt.Errorf("cert-%s-cn: %q is in cert-%s-cn already", role,
					name, other))
			}
			if seen[name] = role; name == "" {
				errs = append(errs, fmt.Errorf("cert-%s-cn: a name is empty", role))
			}
		}
	}
	return errors.Join(errs...)
}

// RolesOf are the roles of a certificate: those of its URIs or, where it has no name of the scheme
// of roles, the one of its common name.
func (n *Names) RolesOf(cert *x509.Certificate) []Role {
	if n.Empty() || roleName(cert) != "" {
		return RolesOf(cert)
	}
	for i, list := range n.lists() {
		if slices.Contains(list, cert.Subject.CommonName) {
			return []Role{listRoles[i]}
		}
	}
	return nil
}

// May tells whether the other side of a connection may act in a role. Without Names, a certificate
// that names no role may act in all: its authority has decided that. An admin and a node may do
// what a client may.
func (n *Names) May(cs *tls.ConnectionState, role Role) bool {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return true // without TLS the port's address decides who connects
	}
	cert := cs.PeerCertificates[0]
	roles := n.RolesOf(cert)
	return n.Empty() && roleName(cert) == "" || slices.Contains(roles, role) ||
		role == RoleClient && len(roles) > 0
}

// checkOwn refuses names by which a server's own certificate is not one of a node: the other
// servers, which have the same lists, would refuse it.
func (n *Names) checkOwn(pair *tls.Certificate) error {
	if n.Empty() || pair == nil || slices.Contains(n.RolesOf(pair.Leaf), RoleNode) {
		return nil
	}
	return fmt.Errorf("this server's own certificate, of %.80q, is not one of a node: "+
		"add the name to [security] cert-node-cn", pair.Leaf.Subject.CommonName)
}

// MayConn tells whether the other side of a connection may act in a role: by the Names of its
// listener if that is one of Identity.Listen. A connection without TLS may all.
func MayConn(nc net.Conn, role Role) bool {
	if c, ok := nc.(*Conn); ok {
		return c.l.id.names.May(c.State(), role)
	}
	return May(StateOf(nc), role)
}
