package ctl

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
)

// TestCertificatesByName: roles that a server's lists give by common name are those of show and
// check, and what such a server refuses is a fault.
func TestCertificatesByName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	require.NoError(t, security.CreateCA(dir))
	for _, r := range []security.CertRequest{
		{Name: "kv1", Hosts: []string{"kv1.example.com"}}, {Name: "ops"}, {Name: "app"},
		{Name: "printer"}, {Name: "own", Role: security.RoleClient},
	} {
		_, err := security.CreateCert(dir, r)
		require.NoError(t, err)
	}
	config := filepath.Join(dir, "store.toml")
	rows := func(want int, lists string, argv ...string) (roles, faults map[string]string) {
		t.Helper()
		require.NoError(t, os.WriteFile(config, []byte("addr = \"x:1\"\n[security]\n"+lists), 0o600))
		code, out, errs := run(append(append([]string{"cert", "--certs-dir", dir}, argv...),
			"--config", config, "-o", "json")...)
		require.Equal(t, want, code, "%s%s", out, errs)
		var got []certJSON
		require.NoError(t, json.Unmarshal([]byte(out), &got))
		roles, faults = map[string]string{}, map[string]string{}
		for _, r := range got {
			roles[r.Name], faults[r.Name] = strings.Join(r.Roles, " "), r.Fault
		}
		return roles, faults
	}
	const lists = `cert-node-cn = ["kv1"]
cert-admin-cn = ["ops"]
cert-client-cn = ["app"]
`
	roles, faults := rows(exitFail, lists, "check")
	require.Equal(t, map[string]string{
		"TinyKV CA": "", "kv1": "node", "ops": "admin", "app": "client", "own": "client",
		"printer": "",
	}, roles)
	for name, fault := range faults {
		if name == "printer" {
			require.Contains(t, fault, "is none of [security] cert-node-cn")
		} else {
			require.Empty(t, fault, name)
		}
	}
	roles, faults = rows(exitOK, lists, "show", filepath.Join(dir, "ops.crt"),
		filepath.Join(dir, "printer.crt"))
	require.Equal(t, map[string]string{"ops": "admin", "printer": ""}, roles)
	require.Empty(t, faults["ops"])
	require.Contains(t, faults["printer"], "has no role")
	code, out, errs := run("cert", "show", filepath.Join(dir, "printer.crt"), "--config", config)
	require.Equal(t, exitOK, code, errs)
	require.Contains(t, out, "no role")

	_, faults = rows(exitFail, `cert-allowed-cn = ["app", "kv1", "ops", "printer"]`, "check")
	require.Contains(t, faults["own"], "is none of [security] cert-allowed-cn")
	require.Empty(t, faults["printer"], "without lists every role")
	rows(exitOK, "", "check")

	require.NoError(t, os.WriteFile(config,
		[]byte("[security]\ncert-node-cn = [\"x\"]\ncert-client-cn = [\"x\"]\n"), 0o600))
	code, _, errs = run("cert", "--certs-dir", dir, "check", "--config", config)
	require.Equal(t, exitFail, code)
	require.Contains(t, errs, "is in cert-node-cn already")
	code, _, errs = run("cert", "--certs-dir", dir, "check", "--config", config+".not")
	require.Equal(t, exitFail, code)
	require.Contains(t, errs, "no such file")
}

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
