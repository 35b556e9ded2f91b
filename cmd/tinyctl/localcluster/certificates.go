package localcluster

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tinykv/tinykv/pkg/security"
)

// certificates are those of a secured cluster; the zero value is for one without TLS.
type certificates struct {
	node, admin security.Files
	client      *security.Identity // of the admin
}

// makeCertificates makes an authority, and certificates for the servers, for programs and for who
// changes the cluster, as far as they are not there.
func makeCertificates(dir string) (c certificates, err error) {
	file := func(name, ext string) string { return filepath.Join(dir, name+ext) }
	if _, err := os.Stat(file("ca", ".crt")); errors.Is(err, os.ErrNotExist) {
		if err := security.CreateCA(dir); err != nil {
			return c, err
		}
	}
	files := func(r security.CertRequest) (security.Files, error) {
		f := security.Files{
			CA: file("ca", ".crt"), Cert: file(r.Name, ".crt"), Key: file(r.Name, ".key"),
		}
		if _, err := os.Stat(f.Cert); err == nil {
			return f, nil
		}
		return security.CreateCert(dir, r)
	}
	c.node, err = files(security.CertRequest{
		Name: "node", Role: security.RoleNode, Hosts: []string{"127.0.0.1", "localhost"},
	})
	if err == nil {
		_, err = files(security.CertRequest{Name: "client", Role: security.RoleClient})
	}
	if err == nil {
		c.admin, err = files(security.CertRequest{Name: "admin", Role: security.RoleAdmin})
	}
	if err == nil {
		c.client, err = security.LoadIdentity(c.admin, nil)
	}
	if err != nil {
		return c, fmt.Errorf("certificates: %w", err)
	}
	return c, nil
}

// args are the options of a server; ca is how it calls the one for the authorities.
func (c *certificates) args(ca string) []string {
	if c.client == nil {
		return nil
	}
	return []string{ca, c.node.CA, "--cert", c.node.Cert, "--key", c.node.Key}
}

// Admin are the files of the certificate of who may change the cluster; empty without TLS.
func (c *Cluster) Admin() security.Files { return c.certs.admin }

// ClientTLS is how a client connects, with that certificate; nil without TLS.
func (c *Cluster) ClientTLS() *tls.Config {
	if c.certs.client == nil {
		return nil
	}
	return c.certs.client.Client()
}
