package server

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/security"
)

// TestCallsByCommonName: with lists of names, a certificate without role URI may call what the role
// of its name may; without lists everything.
func TestCallsByCommonName(t *testing.T) {
	names := &security.Names{
		Node: []string{"kv1"}, Admin: []string{"ops"}, Client: []string{"app"},
	}
	const (
		store  = "/schedulerpb.Scheduler/PutStore"
		config = "/schedulerpb.Scheduler/PutClusterConfig"
		read   = "/schedulerpb.Scheduler/GetRegion"
	)
	for _, c := range []struct {
		cn, method string
		served     bool
	}{
		{"kv1", store, true},
		{"kv1", config, true},
		{"kv1", read, true},
		{"ops", store, false},
		{"ops", config, true},
		{"ops", read, true},
		{"app", store, false},
		{"app", config, false},
		{"app", read, true},
	} {
		ctx := peer.NewContext(t.Context(), &peer.Peer{
			Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)},
			AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{
				PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: c.cn}}},
			}},
		})
		err := roleCheck{&security.Guard{Names: names}}.check(ctx, c.method)
		if c.served {
			require.NoError(t, err, "%s by %s", c.method, c.cn)
		} else {
			require.Equal(t, codes.PermissionDenied, status.Code(err), "%s by %s", c.method, c.cn)
		}
		require.NoError(t, roleCheck{&security.Guard{}}.check(ctx, c.method), "without lists")
	}
}
