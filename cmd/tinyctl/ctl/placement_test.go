package ctl

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func run(argv ...string) (code int, out, errs string) {
	var stdout, stderr bytes.Buffer
	code = Main(argv, strings.NewReader(""), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// TestPlacementErrors: every failure is one line and has its exit code.
func TestPlacementErrors(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/api/v1/stores/1/up":
			http.Error(w, "what?", http.StatusNotFound)
		case r.Header.Get("Authorization") != "Bearer secret":
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write(
				[]byte(`{"code":"unauthorized","message":"this change needs the API token"}`))
		default:
			_, _ = w.Write([]byte(`{"id":1,"state":"up"}`))
		}
	}))
	defer s.Close()
	here := s.Listener.Addr().String()
	for _, c := range []struct {
		code int
		want string
		argv string
	}{
		{exitFail, "no placement service answers at 127.0.0.1:1 ", "-s 127.0.0.1:1 member list"},
		{exitFail, "it is not a placement service", "-s " + here + " store show 2"},
		{
			exitFail, "this change needs the API token (set --token or TINYCTL_TOKEN)",
			"-s 127.0.0.1:1," + here + " store up 1",
		},
		{exitUsage, `"x" is not a store id`, "store show x"},
		{exitUsage, `"x" is not a weight`, "store weight 1 x"},
		{exitUsage, `"0" is not a region id`, "region transfer-leader 0 1"},
		{exitUsage, "accepts 3 arg(s)", "region move-peer 1 2"},
		{exitUsage, `"bad" is none of miss-peer`, "region check bad"},
		{exitUsage, `unknown command "lst" for "tinyctl operator"`, "operator lst"},
		{exitUsage, `unknown command "/tmp" for "tinyctl import"`, "import /tmp"},
		{exitUsage, `unknown command "/tmp" for "tinyctl export"`, "export /tmp"},
		{exitUsage, "not above zero", "scheduler pause x --for -1s"},
		{exitFail, "answers 404 Not Found", "check serving http://" + here + "/health"},
		{exitFail, "connection refused", "check serving http://127.0.0.1:1/health"},
		{exitUsage, "is not a URL", "check serving /health"},
		{exitUsage, "neither http nor https", "check serving ftp://" + here},
	} {
		code, out, errs := run(strings.Fields(c.argv)...)
		require.Equal(t, c.code, code, "%s: %s", c.argv, errs)
		require.Contains(t, errs, c.want, c.argv)
		require.Equal(t, 1, strings.Count(errs, "\n"), errs)
		require.Empty(t, out)
	}
	code, out, errs := run("-s", "127.0.0.1:1,"+here, "--token", "secret", "store", "up", "1")
	require.Zero(t, code, errs)
	require.Contains(t, out, "STORE 1")
}

// TestPlacementElection: a member without a leader is asked again, and a change is not made twice.
func TestPlacementElection(t *testing.T) {
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write(
				[]byte(`{"code":"not-leader","message":"no placement leader right now"}`))
			return
		}
		w.WriteHeader(http.StatusBadGateway)
		_, _ = w.Write(
			[]byte(
				`{"code":"leader-unreachable","message":"the placement leader does not answer"}`))
	}))
	defer s.Close()
	code, _, errs := run("-s", s.Listener.Addr().String(), "member", "resign")
	require.Equal(t, exitFail, code)
	require.Equal(t, "tinyctl: the placement leader does not answer\n", errs)
	require.Equal(t, 2, asked)
}

// TestSettingLike: values are written in the kind the setting has.
func TestSettingLike(t *testing.T) {
	for _, c := range []struct{ now, text, want string }{
		{`"3s"`, "5s", `"5s"`}, {`4`, "5", `5`}, {`true`, "false", `false`},
		{`null`, "zone,host", `["zone","host"]`}, {`["a"]`, `["b"]`, `["b"]`},
	} {
		got, err := like([]byte(c.now), c.text)
		require.NoError(t, err)
		require.Equal(t, c.want, string(got))
	}
	_, err := like([]byte(`4`), "many")
	require.Error(t, err)
}

// TestWaitFindsItsOwnOperator: another one may have ended for the same region before it is looked
// at again.
func TestWaitFindsItsOwnOperator(t *testing.T) {
	const own = `{"region_id":7,"desc":"admin-transfer-leader","status":%q,"steps":["transfer leader from store 1 to store 2"],"started":"2026-01-02T03:04:05.000000001Z"}`
	const other = `{"region_id":7,"desc":"balance-region","status":"success","steps":["add peer 20 on store 1"],"started":"2026-01-02T03:04:06Z"}`
	history := fmt.Sprintf(`{"count":2,"operators":[%s,%s]}`, other, fmt.Sprintf(own, "canceled"))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "POST /api/v1/regions/7/transfer-leader":
			_, _ = fmt.Fprintf(w, own, "running")
		case "GET /api/v1/operators/7":
			_, _ = w.Write([]byte(other))
		case "GET /api/v1/operators/history":
			_, _ = w.Write([]byte(history))
		default:
			http.Error(w, "what?", http.StatusNotFound)
		}
	}))
	defer s.Close()
	here := s.Listener.Addr().String()
	code, out, errs := run("-s", here, "region", "transfer-leader", "7", "2", "--wait")
	require.Equal(t, exitFail, code, errs)
	require.Contains(t, out, "admin-transfer-leader of region 7: canceled")
	require.NotContains(t, out, "balance-region")

	history = `{"count":0,"operators":[]}`
	code, out, errs = run("-s", here, "region", "transfer-leader", "7", "2", "--wait")
	require.Equal(t, exitFail, code, out)
	require.Contains(t, errs, "is not known: others followed")
}
