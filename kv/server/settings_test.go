package server

import (
	"context"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/kv/settings"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// ends is a connection without TLS between two addresses.
type ends struct {
	net.Conn
	remote, local string
}

func (e ends) RemoteAddr() net.Addr { return tcpAddr(e.remote) }
func (e ends) LocalAddr() net.Addr  { return tcpAddr(e.local) }

type tcpAddr string

func (tcpAddr) Network() string  { return "tcp" }
func (a tcpAddr) String() string { return string(a) }

// TestSettingsInTheClear: without TLS only the same machine may ask.
func TestSettingsInTheClear(t *testing.T) {
	for _, c := range []struct {
		remote, local string
		may           bool
	}{
		{"127.0.0.1:1", "127.0.0.1:2", true},
		{"[::1]:1", "[::1]:2", true},
		{"10.0.0.1:1", "10.0.0.1:2", true},
		{"[::ffff:10.0.0.1]:1", "10.0.0.1:2", true},
		{"10.0.0.2:1", "10.0.0.1:2", false},
		{"[fd00::2]:1", "[fd00::1]:2", false},
		{"@", "10.0.0.1:2", false},
		{"10.0.0.1:1", "@", false},
		{"", "", false},
	} {
		err := adminsOnly(ends{remote: c.remote, local: c.local})
		if c.may {
			require.NoError(t, err, c)
			continue
		}
		require.Equal(t, codes.PermissionDenied, status.Code(err), c)
	}
}

// TestSettingsCodes: each error has its code, and an empty name changes nothing.
func TestSettingsCodes(t *testing.T) {
	s := new(Server)
	ask := func(name, value string) (*kvrpcpb.StoreSettingsResponse, error) {
		return s.StoreSettings(context.Background(),
			&kvrpcpb.StoreSettingsRequest{Name: name, Value: value})
	}
	_, err := ask("", "")
	require.Equal(t, codes.Unimplemented, status.Code(err))
	live := settings.New(config.Default(), zap.NewNop())
	live.On("log.level", func(*config.Config) {})
	s.SetSettings(live)
	for name, code := range map[string]codes.Code{
		"none": codes.NotFound, "data-dir": codes.FailedPrecondition,
		"log.level": codes.InvalidArgument,
	} {
		_, err := ask(name, "x")
		require.Equal(t, code, status.Code(err), name)
	}
	got, err := ask("", "x")
	require.NoError(t, err)
	require.Len(t, got.Settings, len(live.List()))
	got, err = ask("log.level", "debug")
	require.NoError(t, err)
	require.Equal(t, []*kvrpcpb.StoreSetting{
		{Name: "log.level", Value: "debug", DefaultValue: "info", Before: "info"},
	}, got.Settings)
}
