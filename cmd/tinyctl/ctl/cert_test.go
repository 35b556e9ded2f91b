package ctl

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCertificates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	cert := func(want int, argv ...string) (string, string) {
		t.Helper()
		code, out, errs := run(append([]string{"cert", "--certs-dir", dir}, argv...)...)
		require.Equal(t, want, code, "%s%s", out, errs)
		return out, errs
	}
	_, errs := cert(exitFail, "create-client", "app")
	require.Contains(t, errs, "the authority in")
	cert(exitOK, "create-ca")
	_, errs = cert(exitFail, "create-ca")
	require.Contains(t, errs, "is there already")
	cert(exitUsage, "create-node")
	cert(exitOK, "create-node", "127.0.0.1", "localhost")
	cert(exitOK, "create-client", "app")
	cert(exitOK, "create-admin", "ops")
	out, _ := cert(exitOK, "check", "-o", "json")
	var rows []certJSON
	require.NoError(t, json.Unmarshal([]byte(out), &rows))
	require.Len(t, rows, 4)
	out, _ = cert(exitOK, "show", filepath.Join(dir, "node-127.0.0.1.crt"))
	require.Contains(t, out, "localhost 127.0.0.1")
	require.Contains(t, out, "node")

	require.NoError(t, os.Chmod(filepath.Join(dir, "app.key"), 0o644))
	out, _ = cert(exitFail, "check")
	require.Contains(t, out, "chmod 600")
	require.NoError(t, os.Chmod(filepath.Join(dir, "app.key"), 0o600))
	cert(exitOK, "create-client", "short", "--lifetime", "24h")
	out, _ = cert(exitFail, "check")
	require.Contains(t, out, "is good for 0 more days only")
	require.NoError(t, os.Remove(filepath.Join(dir, "short.key")))
	out, _ = cert(exitFail, "check")
	require.Contains(t, out, "short.key")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "broken.crt"), []byte("x"), 0o600))
	out, _ = cert(exitFail, "check")
	require.Contains(t, out, "holds no certificate")
}
