package server

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/scheduler/server/callroom"
)

// methodRoles are the roles of a certificate that calls need, where it names roles at all; all
// others are for clients too. A member checks before it passes a call on: the leader sees the
// member.
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

// roleCheck decides which calls are served.
type roleCheck struct{ guard *security.Guard }

// check refuses a call that needs a role which the caller does not have. With a certificate that is
// its role; members may do what admins may. An admin may also show the API token, in the metadata
// "authorization". Without a certificate stores are believed, and calls for the admin are held to
// what changes over HTTP are: the token or, if none is set, a port that only this machine reaches.
// No page of a browser can make a call of gRPC, so none needs a proof that it is not one.
func (c roleCheck) check(ctx context.Context, method string) error {
	role, special := methodRoles[method]
	p, ok := peer.FromContext(ctx)
	if !special || !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	certified := ok && len(info.State.PeerCertificates) > 0
	hasToken := c.guard.Token != "" &&
		len(metadata.ValueFromIncomingContext(ctx, authorization)) > 0
	switch {
	case certified &&
		(c.guard.Names.May(&info.State, role) || c.guard.Names.May(&info.State, security.RoleNode)):
		return nil
	case role == security.RoleAdmin && (!certified || hasToken):
		return c.checkAdmin(ctx, p.Addr.String(), method)
	case !certified:
		return nil
	}
	return status.Errorf(codes.PermissionDenied,
		"%s needs a certificate of the role %s; that of %q is for %s",
		method, role, info.State.PeerCertificates[0].Subject.CommonName, c.rolesText(&info.State))
}

// authorization is the metadata that carries "Bearer <token>".
const authorization = "authorization"

func (c roleCheck) checkAdmin(ctx context.Context, remote, method string) error {
	if c.guard.Token == "" {
		if c.guard.Loopback {
			return nil
		}
		return status.Errorf(codes.PermissionDenied,
			"%s is for the admin: this port is reached from other machines, and neither "+
				"certificates nor [api] token are set", method)
	}
	sent := metadata.ValueFromIncomingContext(ctx, authorization)
	if len(sent) != 1 {
		return status.Errorf(codes.Unauthenticated,
			"%s needs the API token, as the metadata authorization: Bearer <token>", method)
	}
	f := c.guard.Try(remote, strings.TrimPrefix(sent[0], "Bearer "))
	switch {
	case f == nil:
		return nil
	case f.Status == http.StatusTooManyRequests:
		return status.Error(codes.ResourceExhausted, f.Error())
	}
	return status.Errorf(codes.Unauthenticated, "%s needs the API token, and this is not it",
		method)
}

// passOn gives a call for the admin, which was checked here, to the leader as one of this member.
func (c roleCheck) passOn(ctx context.Context, method string) context.Context {
	if methodRoles[method] != security.RoleAdmin || c.guard.Token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, authorization, "Bearer "+c.guard.Token)
}

func (c roleCheck) rolesText(cs *tls.ConnectionState) string {
	var out []string
	for _, r := range c.guard.Names.RolesOf(cs.PeerCertificates[0]) {
		out = append(out, string(r))
	}
	return strings.Join(out, ", ")
}

func (c roleCheck) unary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
) (any, error) {
	if err := c.check(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (c roleCheck) stream(
	srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler,
) error {
	if err := c.check(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, ss)
}

// shaken are the credentials of a gRPC server whose connections have had their handshake already.
type shaken struct{}

func (shaken) ClientHandshake(
	context.Context, string, net.Conn,
) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("server: for servers only")
}

func (shaken) ServerHandshake(nc net.Conn) (net.Conn, credentials.AuthInfo, error) {
	inner := nc
	if watched, ok := nc.(*callroom.Conn); ok {
		inner = watched.Conn
	}
	if c, ok := inner.(*tls.Conn); ok {
		return nc,
			credentials.TLSInfo{State: c.ConnectionState(),
				CommonAuthInfo: credentials.CommonAuthInfo{
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
