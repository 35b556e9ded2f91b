package server

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/security"
)

// methodRoles are the roles of a certificate that calls need, where it names roles at all; all others are for clients too.
// A member checks before it passes a call on: the leader sees the member.
var methodRoles = map[string]security.Role{
	"/schedulerpb.Scheduler/Bootstrap":       security.RoleNode,
	"/schedulerpb.Scheduler/PutStore":        security.RoleNode,
	"/schedulerpb.Scheduler/StoreHeartbeat":  security.RoleNode,
	"/schedulerpb.Scheduler/RegionHeartbeat": security.RoleNode,
	"/schedulerpb.Scheduler/AskSplit":        security.RoleNode,
	"/schedulerpb.Scheduler/ReportSplit":     security.RoleNode,

	"/schedulerpb.Scheduler/AdvanceSafePoints": security.RoleNode,

	"/schedulerpb.Scheduler/PutClusterConfig":  security.RoleAdmin,
	"/schedulerpb.Scheduler/UpdateGCSafePoint": security.RoleAdmin,

	"/pdpb.PD/Bootstrap":        security.RoleNode,
	"/pdpb.PD/PutStore":         security.RoleNode,
	"/pdpb.PD/StoreHeartbeat":   security.RoleNode,
	"/pdpb.PD/RegionHeartbeat":  security.RoleNode,
	"/pdpb.PD/PutClusterConfig": security.RoleAdmin,
}

// checkRole refuses a call of a certificate that is for something else. Members may do what admins may.
func checkRole(ctx context.Context, method string) error {
	role, special := methodRoles[method]
	if !special {
		return nil
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || security.May(&info.State, role) || security.May(&info.State, security.RoleNode) {
		return nil
	}
	return status.Errorf(codes.PermissionDenied, "%s needs a certificate of the role %s; that of %q is for %s",
		method, role, info.State.PeerCertificates[0].Subject.CommonName, rolesText(&info.State))
}

func rolesText(cs *tls.ConnectionState) string {
	var out []string
	for _, r := range security.RolesOf(cs.PeerCertificates[0]) {
		out = append(out, string(r))
	}
	return strings.Join(out, ", ")
}

func roleUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := checkRole(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func roleStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := checkRole(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, ss)
}

// shaken are the credentials of a gRPC server whose connections have had their handshake already.
type shaken struct{}

func (shaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("server: for servers only")
}

func (shaken) ServerHandshake(nc net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if c, ok := nc.(*tls.Conn); ok {
		return nc, credentials.TLSInfo{State: c.ConnectionState(), CommonAuthInfo: credentials.CommonAuthInfo{
			SecurityLevel: credentials.PrivacyAndIntegrity,
		}}, nil
	}
	return nc, nil, nil
}

func (shaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (s shaken) Clone() credentials.TransportCredentials { return s }
func (shaken) OverrideServerName(string) error           { return nil }
