package security

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Files are the TLS files of a client, in PEM: whom it believes (CA; empty means the system's), and
// what it shows itself (Cert and Key; both empty mean nothing).
type Files struct{ CA, Cert, Key string }

// ClientTLS decides by the endpoints whether a client uses TLS, and how. With https it does; with
// http it does not; if none has a scheme it does if a CA is given. The result is nil for plain
// connections. Endpoints of both kinds are refused, since a client talks to all members in one way.
func ClientTLS(endpoints []string, files Files) (*tls.Config, error) {
	var secure, plain string
	for _, e := range endpoints {
		switch e = strings.TrimSpace(e); {
		case strings.HasPrefix(e, "https://"):
			secure = e
		case strings.HasPrefix(e, "http://"):
			plain = e
		case strings.Contains(e, "://"):
			return nil, fmt.Errorf("%q is neither http nor https", e)
		}
	}
	switch {
	case secure != "" && plain != "":
		return nil,
			fmt.Errorf("%s uses TLS and %s does not: give all endpoints in the same way", secure,
				plain)
	case plain != "" && files != (Files{}):
		return nil,
			fmt.Errorf("%s is reached without TLS, but TLS files are given: write it as https://",
				plain)
	case secure == "" && (plain != "" || files.CA == ""):
		return nil, nil
	}
	return files.Config()
}

// Config reads the files.
func (f Files) Config() (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("CA certificates: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA certificates: %s holds none", f.CA)
		}
	}
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("certificate and key go together: give both or none")
	}
	if f.Cert != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("certificate %s with key %s: %w", f.Cert, f.Key, err)
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}
