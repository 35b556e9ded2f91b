package security

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// reportEvery is how often one identity reports a refused connection at most.
const reportEvery = 10 * time.Second

// reports is where an identity says which connections it has refused.
type reports struct {
	mu struct {
		sync.Mutex
		to   func(remote string, err error)
		last time.Time
	}
}

// OnRefused has f called with the address and the reason when a listener of this identity refuses a
// connection in its handshake: once in ten seconds at most, and not for connections that merely
// end. f must not block.
func (i *Identity) OnRefused(f func(remote string, err error)) {
	i.reports.mu.Lock()
	defer i.reports.mu.Unlock()
	i.reports.mu.to = f
}

// Refuse returns why a handshake with remote has failed, with the certificate and the file that
// decide, and reports it.
func (i *Identity) Refuse(remote net.Addr, err error) error {
	err = i.Explain(err)
	if broken(err) {
		return err
	}
	i.reports.mu.Lock()
	to, now := i.reports.mu.to, time.Now()
	if to == nil || now.Sub(i.reports.mu.last) < reportEvery {
		i.reports.mu.Unlock()
		return err
	}
	i.reports.mu.last = now
	i.reports.mu.Unlock()
	to(remote.String(), err)
	return err
}

// broken tells whether a handshake failed for the connection and not for what was shown in it.
func broken(err error) bool {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Op != "remote error" && op.Op != "local error" // as crypto/tls names alerts
	}
	ne := net.Error(nil)
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.As(err, &ne) && ne.Timeout()
}

// Explain adds to the error of a handshake the certificate that was not verified, and the file of
// the authorities. Other errors, and all if the identity is nil, are returned as they are.
func (i *Identity) Explain(err error) error {
	var bad *tls.CertificateVerificationError
	if i == nil || !errors.As(err, &bad) || len(bad.UnverifiedCertificates) == 0 {
		return err
	}
	file := i.files.CA
	if file == "" {
		file = "the system's list"
	}
	cert := bad.UnverifiedCertificates[0]
	return fmt.Errorf(
		"the certificate of %.80q, signed by %.80q, against the authorities in %s: %w",
		cert.Subject.CommonName, cert.Issuer.CommonName, file, err)
}
