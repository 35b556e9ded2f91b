package security

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// scheme marks the address of a service port with TLS.
const scheme = "tls://"

// ServiceAddress is where a store is reached: with TLS if it serves that, and without by who has no
// certificates if it allows that.
func ServiceAddress(st *metapb.Store, haveIdentity bool) string {
	return Address(st.GetAddress(), st.GetTls() && (haveIdentity || !st.GetAllowPlain()))
}

// Address is host:port, marked if it is to be dialed with TLS.
func Address(hostport string, secure bool) string {
	if secure && hostport != "" {
		return scheme + hostport
	}
	return hostport
}

// SplitAddress takes an address of Address apart.
func SplitAddress(addr string) (hostport string, secure bool) {
	return strings.CutPrefix(addr, scheme)
}

// Dialer makes a connection to an address.
type Dialer = func(ctx context.Context, addr string) (net.Conn, error)

var errNoIdentity = errors.New(
	"it is reached by TLS, and no certificates are configured here ([security], or the options for TLS)")

// DialService makes connections for gRPC to addresses of Address: by base, which is TCP if nil, and
// with TLS by what client gives where that is asked for. client is nil where there are no
// certificates.
func DialService(base Dialer, client func(protocols ...string) *tls.Config) Dialer {
	if base == nil {
		base = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	return func(ctx context.Context, addr string) (net.Conn, error) {
		hostport, secure := strings.CutPrefix(addr, scheme)
		if !secure {
			return base(ctx, addr)
		}
		if client == nil {
			return nil, fmt.Errorf("connect %s: %w", hostport, errNoIdentity)
		}
		host, _, err := net.SplitHostPort(hostport)
		if err != nil {
			return nil, err
		}
		nc, err := base(ctx, hostport)
		if err != nil {
			return nil, err
		}
		cfg := client("h2")
		if cfg.ServerName == "" {
			cfg.ServerName = host
		}
		conn := tls.Client(nc, cfg)
		if err := conn.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("connect %s: %w", hostport, err), nc.Close())
		}
		if p := conn.ConnectionState().NegotiatedProtocol; p != "h2" {
			return nil,
				errors.Join(fmt.Errorf("connect %s: the server speaks %q instead of h2", hostport,
					p), nc.Close())
		}
		return conn, nil
	}
}
