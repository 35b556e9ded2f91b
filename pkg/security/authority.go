package security

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/tinykv/tinykv/pkg/durable"
)

// Names of files in a directory of certificates.
const (
	CACertFile = "ca.crt"
	CAKeyFile  = "ca.key"
)

const (
	caLife = 10 * 365 * 24 * time.Hour
	// certLife is shorter than a CA's, and what CreateCert does not exceed.
	certLife = 5 * 365 * 24 * time.Hour
	// backdate allows for clocks that are behind the one of the machine where a certificate is
	// made.
	backdate = time.Hour
)

// CreateCA makes an authority for a cluster: ca.crt and ca.key in dir. It does not replace a key.
func CreateCA(dir string) error {
	if err := durable.MkdirAll(durable.OS, dir); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl, err := template("TinyKV CA", caLife)
	if err != nil {
		return err
	}
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return err
	}
	return writePair(filepath.Join(dir, CACertFile), filepath.Join(dir, CAKeyFile), der, key)
}

func template(name string, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, Organization: []string{"TinyKV"}},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(life),
	}, nil
}

// CertRequest says what a certificate is for.
type CertRequest struct {
	// Name is its common name, and the name of its files.
	Name string
	// Role, if set, is in it as a URI. Without, it is as another tool's would be.
	Role Role
	// Hosts are the names and IPs under which a node is reached. Without, it is no server's.
	Hosts []string
	// Life is how long it is good; 0 is five years, which is the most.
	Life time.Duration
}

// CreateCert makes a certificate with the authority in dir: NAME.crt and NAME.key. It does not
// replace a key.
func CreateCert(dir string, r CertRequest) (Files, error) {
	files := Files{
		CA: filepath.Join(dir, CACertFile), Cert: filepath.Join(dir, r.Name+".crt"),
		Key: filepath.Join(dir, r.Name+".key"),
	}
	switch {
	case r.Name == "" || r.Name != filepath.Base(r.Name) || r.Name == "ca":
		return files, fmt.Errorf("%q is no name for a certificate", r.Name)
	case r.Role == RoleNode && len(r.Hosts) == 0:
		return files,
			errors.New("a node's certificate needs the names or IPs under which it is reached")
	case r.Life < 0 || r.Life > certLife:
		return files, fmt.Errorf("a certificate is good for at most %v, not %v", certLife, r.Life)
	}
	ca, err := tls.LoadX509KeyPair(files.CA, filepath.Join(dir, CAKeyFile))
	if err != nil {
		return files, fmt.Errorf("the authority in %s: %w", dir, err)
	}
	life := r.Life
	if life == 0 {
		life = certLife
	}
	tmpl, err := template(r.Name, life)
	if err != nil {
		return files, err
	}
	if tmpl.NotAfter.After(ca.Leaf.NotAfter) {
		tmpl.NotAfter = ca.Leaf.NotAfter
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(r.Hosts) > 0 {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Role != "" {
		role, err := url.Parse(roleURI + string(r.Role))
		if err != nil {
			return files, err
		}
		tmpl.URIs = []*url.URL{role}
	}
	for _, h := range r.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return files, err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.Leaf, &key.PublicKey, ca.PrivateKey)
	if err != nil {
		return files, err
	}
	return files, writePair(files.Cert, files.Key, der, key)
}

// writePair writes a certificate and its key, the key first: a certificate without it is of no use.
func writePair(certPath, keyPath string, der []byte, key *ecdsa.PrivateKey) error {
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	err = writeNew(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		0o600)
	if err != nil {
		return err
	}
	return writeNew(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		0o644)
}

// writeNew writes a file that must not be there yet.
func writeNew(path string, data []byte, mode os.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already: remove it first, if nothing uses it", path)
	}
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// ReadCerts reads the certificates in a PEM file.
func ReadCerts(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return out, nil
}
