package ctl

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/servertest"
)

// TestRealPlacement: reads and changes at a real placement service, without and with TLS and a
// token.
func TestRealPlacement(t *testing.T) {
	plain := servertest.StartTest(t)
	sec, _ := servertest.Certificate(t)
	secure := servertest.StartTest(t, func(c *config.Config) {
		c.Security, c.API.Token = sec, "secret"
		c.ClientUrls = strings.ReplaceAll(c.ClientUrls, "http://", "https://")
	})
	files := []string{"--ca", sec.CACertPath, "--cert", sec.CertPath, "--key", sec.KeyPath}
	for _, with := range [][]string{
		{"-s", plain.ClientAddr()},
		{"-s", plain.ClientURL()},
		append([]string{"-s", secure.ClientURL(), "--token", "secret"}, files...),
		append([]string{"-s", secure.ClientAddr(), "--token", "secret"}, files...),
	} {
		code, out, errs := run(append(with, "member", "list")...)
		require.Zero(t, code, errs)
		require.Contains(t, out, "test")
		code, _, errs = run(append(with, "config", "set", "schedule.max-store-down-time", "11m")...)
		require.Zero(t, code, errs)
		_, _, errs = run(append(with, "region", "list")...) // over gRPC
		require.Contains(t, errs, "cluster is not bootstrapped")
		code, out, errs = run(append(with, "status")...)
		require.Equal(t, exitUnknown, code, errs)
		require.Contains(t, out, "Not known yet: no store has joined.")
	}
	code, _, errs := run("-s", plain.ClientURL()+","+secure.ClientURL(), "status")
	require.Equal(t, exitUsage, code)
	require.Contains(t, errs, "in the same way")
	code, _, errs = run("-s", secure.ClientURL(), "--timeout", "1s", "get", "x")
	require.Equal(t, exitFail, code)
	require.Contains(t, errs, "certificate", "the authority is not known")
}
