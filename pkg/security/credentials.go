package security

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// DialTLS makes a connection to a server, as http.Transport.DialTLSContext does.
func (i *Identity) DialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	nc, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	cfg := i.Client()
	cfg.ServerName = host
	conn := tls.Client(nc, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(i.Explain(err), nc.Close())
	}
	return conn, nil
}

// Credentials are for clients of grpc-go. Each connection uses what the files hold when it is made.
// A nil Identity is for connections without TLS.
func (i *Identity) Credentials() credentials.TransportCredentials {
	if i == nil {
		return insecure.NewCredentials()
	}
	return &fresh{TransportCredentials: credentials.NewTLS(i.Client()), identity: i}
}

// fresh are client credentials that begin anew with each handshake.
type fresh struct {
	credentials.TransportCredentials
	identity *Identity
}

// ClientHandshake implements credentials.TransportCredentials.
func (f *fresh) ClientHandshake(
	ctx context.Context, authority string, nc net.Conn,
) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := credentials.NewTLS(f.identity.Client()).ClientHandshake(ctx, authority, nc)
	if err != nil {
		return nil, nil, f.identity.Explain(err)
	}
	return conn, info, nil
}

// Clone implements credentials.TransportCredentials.
func (f *fresh) Clone() credentials.TransportCredentials { return f.identity.Credentials() }
