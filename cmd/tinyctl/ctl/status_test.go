package ctl

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// fakeCluster answers what `status` asks with the given report and one store, which listens
// somewhere or not.
func fakeCluster(t *testing.T, report, store string) string {
	t.Helper()
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/health":
			if strings.Contains(report, `"code":"no-`) {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			fmt.Fprint(w, report)
		case "/api/v1/members":
			fmt.Fprintf(w,
				`{"cluster_id":7,"members":[{"name":"m1","client_urls":[%q]},{"name":"m2","client_urls":["http://127.0.0.1:1"]}]}`, s.URL)
		case "/api/v1/stores":
			fmt.Fprintf(w,
				`{"stores":[{"id":3,"address":%q,"state":"up","silent_seconds":4,"last_heartbeat":"2026-01-02T03:04:05Z"}]}`, store)
		}
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func condition(severity, code, subject string) string {
	return fmt.Sprintf(
		`{"severity":%q,"code":%q,"subject":%q,"detail":"so it is","advice":"do this","for_seconds":61,"count":1}`, severity, code, subject)
}

// TestStatus: the exit code follows the report, and what is not reached from here is added, unless
// the report says so.
func TestStatus(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a port that is listened on
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	report := func(state string, conditions ...string) string {
		return fmt.Sprintf(`{"health":%q,"summary":"In short.","conditions":[%s]}`, state,
			strings.Join(conditions, ","))
	}
	m2 := condition("warning", "member-dead", "member m2")
	for _, c := range []struct {
		name, report, store string
		code                int
		want, not           []string
	}{
		{
			"ok", report("ok"), l.Addr().String(), 1,
			[]string{"In short.", "! cannot reach member m2 at 127.0.0.1:1 from here"},
			[]string{"store 3 at"},
		},
		{
			"not", report("degraded", m2), l.Addr().String(), 1,
			[]string{"! warning member-dead: member m2: so it is, for 1m1s", "-> do this"},
			[]string{"cannot reach"},
		},
		{
			"bad", report("critical", m2, condition("notice", "read-errors", "store 3")),
			l.Addr().String(), 1, []string{"- notice read-errors"}, []string{"cannot reach"},
		},
		{"store", report("degraded", m2), "127.0.0.1:1", 1, []string{"4s ago", "Up"}, nil},
		{
			"silent", report("degraded", m2, condition("warning", "store-silent", "store 3")),
			"127.0.0.1:2", 1, nil, []string{"cannot reach"},
		},
		{
			"unreached", report("ok"), "127.0.0.1:2", 1,
			[]string{
				"! cannot reach store 3 at 127.0.0.1:2 from here: connect: connection refused",
			}, nil,
		},
	} {
		code, out, errs := run("-s", fakeCluster(t, c.report, c.store), "status")
		require.Equal(t, c.code, code, "%s: %s%s", c.name, out, errs)
		for _, w := range c.want {
			require.Contains(t, out, w, c.name)
		}
		for _, w := range c.not {
			require.NotContains(t, out, w, c.name)
		}
		require.Empty(t, errs)
	}
	dead := "," + m2 // member m2 is known to be dead, so that everything else decides
	for state, want := range map[string]int{
		"ok": exitOK, "degraded": exitFail, "critical": exitFail, "unknown": exitUnknown,
	} {
		r := report(state, strings.TrimPrefix(dead, ","))
		code, out, errs := run("-s", fakeCluster(t, r, l.Addr().String()), "-o", "json", "status")
		require.Equal(t, want, code, out+errs)
		var got struct {
			Health    string           `json:"health"`
			Healthy   bool             `json:"healthy"`
			ClusterID string           `json:"cluster_id"`
			Missed    []string         `json:"unreachable"`
			List      []map[string]any `json:"conditions"`
		}
		require.NoError(t, json.Unmarshal([]byte(out), &got), out)
		require.Equal(t, state, got.Health)
		require.Equal(t, state == "ok", got.Healthy)
		require.Equal(t, "7", got.ClusterID)
		require.Empty(t, got.Missed)
		require.Equal(t, "member-dead", got.List[0]["code"])
	}
}

// TestStatusCannotTell: nobody answers, or nobody leads. A storage that refuses writes is certainly
// not healthy.
func TestStatusCannotTell(t *testing.T) {
	code, out, errs := run("-s", "127.0.0.1:1", "status")
	require.Equal(t, exitUnknown, code)
	require.Empty(t, out)
	require.Contains(t, errs, "cannot tell: no placement service answers at 127.0.0.1:1")
	code, _, errs = run("-s",
		fakeCluster(t, `{"code":"no-space","message":"alarm NOSPACE of member m1"}`, ""),
		"--timeout", "1s", "status")
	require.Equal(t, exitFail, code)
	require.Contains(t, errs, "alarm NOSPACE")
	code, _, errs = run("-s",
		fakeCluster(t, `{"code":"no-leader","message":"no placement leader right now"}`, ""),
		"--timeout", "1s", "status")
	require.Equal(t, exitUnknown, code)
	require.Contains(t, errs, "cannot tell: no placement leader right now")
	code, _, errs = run("-s", fakeCluster(t, `{"health":"ok","leader":"m1"}`, ""), "status")
	require.Equal(t, exitUnknown, code)
	require.Contains(t, errs, "cannot tell: the placement service is of an older version")
	code, _, _ = run("status", "now")
	require.Equal(t, exitUsage, code)
}
