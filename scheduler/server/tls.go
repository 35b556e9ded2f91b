package server

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tinykv/tinykv/scheduler/server/config"
)

// memberTLS is how members reach each other on their client ports, to forward and to copy the regions:
// with the certificate they serve with, which they show as clients too. nil means plain connections.
func memberTLS(sec config.Security) (*tls.Config, error) {
	if sec.CertPath == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(sec.CertPath, sec.KeyPath)
	if err != nil {
		return nil, fmt.Errorf("security.cert-path: %w", err)
	}
	out := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if sec.CACertPath != "" {
		pem, err := os.ReadFile(sec.CACertPath)
		if err != nil {
			return nil, fmt.Errorf("security.cacert-path: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("security.cacert-path: %s holds no certificate", sec.CACertPath)
		}
	}
	return out, nil
}

func transportCredentials(cfg *tls.Config) credentials.TransportCredentials {
	if cfg == nil {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(cfg)
}

// scheme is that of this member's client port.
func (s *Server) scheme() string {
	if s.tls != nil {
		return "https://"
	}
	return "http://"
}
