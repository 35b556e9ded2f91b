package server

import (
	"context"
	"errors"
	"net"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/settings"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// admin is the part of Server that is for admins.
type admin struct {
	tinykvpb.UnimplementedTinyKvServer
	settings *settings.Live // nil: they are not served
}

// SetSettings lets admins change settings of the store. To be called before it serves.
func (s *admin) SetSettings(l *settings.Live) { s.settings = l }

// StoreSettings implements tinykvpb.TinyKvServer. A setting that does not exist is NotFound, one
// that needs a restart FailedPrecondition, and a value that does not fit InvalidArgument.
func (s *admin) StoreSettings(
	_ context.Context, req *kvrpcpb.StoreSettingsRequest,
) (*kvrpcpb.StoreSettingsResponse, error) {
	if s.settings == nil {
		return nil, status.Error(codes.Unimplemented, "this store does not serve its settings")
	}
	if req.Name == "" {
		resp := new(kvrpcpb.StoreSettingsResponse)
		for _, one := range s.settings.List() {
			resp.Settings = append(resp.Settings, settingOf(one))
		}
		return resp, nil
	}
	one, err := s.settings.Set(req.Name, req.Value)
	switch {
	case errors.Is(err, settings.ErrUnknown):
		return nil, status.Error(codes.NotFound, err.Error())
	case errors.Is(err, settings.ErrNeedsRestart):
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	case err != nil:
		return nil, status.Error(codes.InvalidArgument, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return &kvrpcpb.StoreSettingsResponse{
		Settings: []*kvrpcpb.StoreSetting{settingOf(one)},
	}, nil
}

func settingOf(s settings.Setting) *kvrpcpb.StoreSetting {
	return &kvrpcpb.StoreSetting{
		Name: s.Name, Value: s.Value, DefaultValue: s.Default, NeedsRestart: s.NeedsRestart,
		Before: s.Before,
	}
}

// adminsOnly refuses a certificate without the role, and without TLS what comes from another
// machine: nothing shows there who asks.
func adminsOnly(nc net.Conn) error {
	if cs := security.StateOf(nc); cs != nil {
		if security.MayConn(nc, security.RoleAdmin) || security.MayConn(nc, security.RoleNode) {
			return nil
		}
		return status.Errorf(codes.PermissionDenied,
			"this is for admins; the certificate of %q is for something else",
			cs.PeerCertificates[0].Subject.CommonName)
	}
	if sameMachine(nc.RemoteAddr(), nc.LocalAddr()) {
		return nil
	}
	return status.Error(codes.PermissionDenied,
		"this is for admins: without TLS it is served to the same machine only")
}

// sameMachine tells whether a connection without TLS has both ends on one machine.
func sameMachine(remote, local net.Addr) bool {
	from, err := ipOf(remote)
	if err != nil {
		return false
	}
	to, err := ipOf(local)
	return from.IsLoopback() || err == nil && from.Equal(to)
}

func ipOf(a net.Addr) (net.IP, error) {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return nil, err
	}
	ip := net.ParseIP(host)
	if ip == nil {
		return nil, errors.New("server: not an IP address: " + host)
	}
	return ip, nil
}
