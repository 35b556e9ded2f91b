package server

import (
	"fmt"
	"net/http"

	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/scheduler/server/config"
)

// memberIdentity is how members reach each other on their client ports, to forward and to copy the
// regions, and how they reach stores: with the certificate they serve with, which they show as
// clients too. nil means plain connections.
func memberIdentity(sec config.Security) (*security.Identity, error) {
	if sec.CertPath == "" {
		return nil, nil
	}
	id, err := security.LoadNamed(sec.Files(), sec.CertAllowedCN, sec.Names())
	if err != nil {
		return nil, fmt.Errorf("security: %w", err)
	}
	return id, nil
}

// transportOf makes requests of members. Without keep-alives a connection that was still being made
// when its request ended is closed too.
func transportOf(id *security.Identity) *http.Transport {
	t := &http.Transport{DisableKeepAlives: true}
	if id != nil {
		t.DialTLSContext = id.DialTLS
	}
	return t
}

// scheme is that of this member's client port.
func (s *Server) scheme() string {
	if s.identity != nil {
		return "https://"
	}
	return "http://"
}
