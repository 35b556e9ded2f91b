package security_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
)

// TestGuard: which requests reach the handlers behind a guard.
func TestGuard(t *testing.T) {
	const proof = security.ProofHeader + "=1"
	local := &security.Guard{
		Loopback: true, Hosts: []string{"db.example:2379"},
		Origins: []string{"https://tools.example"},
	}
	remote := &security.Guard{}
	token := &security.Guard{Token: "secret"}
	for _, tc := range []struct {
		name    string
		g       *security.Guard
		request string // method, url, headers
		want    int
	}{
		{"reads need nothing", local, "GET http://127.0.0.1:2379/", 200},
		{"any literal address", local, "GET http://[2001:db8::1]:2379/", 200},
		{"localhost", local, "GET http://LocalHost.:2379/", 200},
		{"own name", local, "GET http://DB.example/", 200},
		{"rebound name", local, "GET http://evil.example:2379/", 421},
		{
			"rebound name that looks like an address", local, "GET http://127.0.0.1.evil.example/",
			421,
		},
		{"change by a client", local, "POST http://127.0.0.1:2379/ " + proof, 200},
		{"change without proof", local, "POST http://127.0.0.1:2379/", 403},
		{
			"change by our page", local, "POST http://127.0.0.1:2379/ Origin=http://127.0.0.1:2379",
			200,
		},
		{
			"change by a page of another port", local,
			"POST http://127.0.0.1:2379/ Origin=http://127.0.0.1:80", 403,
		},
		{
			"change by a foreign page", local,
			"POST http://127.0.0.1:2379/ Origin=https://evil.example", 403,
		},
		{
			"foreign page with proof", local,
			"POST http://127.0.0.1:2379/ Origin=https://evil.example " + proof, 403,
		},
		{"page without origin", local, "POST http://127.0.0.1:2379/ Origin=null", 403},
		{
			"cross-site without an origin", local,
			"POST http://127.0.0.1:2379/ Sec-Fetch-Site=cross-site " + proof, 403,
		},
		{"allowed origin", local, "POST http://127.0.0.1:2379/ Origin=https://tools.example", 200},
		{
			"question of a foreign page", local,
			"OPTIONS http://127.0.0.1:2379/ Origin=https://evil.example Access-Control-Request-Method=POST", 403,
		},
		{
			"question of an allowed origin", local,
			"OPTIONS http://127.0.0.1:2379/ Origin=https://tools.example Access-Control-Request-Method=POST", 204,
		},
		{"change from other machines", remote, "POST http://10.0.0.1:2379/ " + proof, 403},
		{"change without token", token, "POST http://10.0.0.1:2379/ " + proof, 401},
		{
			"change with a wrong token", token,
			"POST http://10.0.0.1:2379/ Authorization=Bearer_secreT", 401,
		},
		{
			"change with the token", token,
			"POST http://10.0.0.1:2379/ Authorization=Bearer_secret", 200,
		},
		{
			"token of a foreign page", token,
			"POST http://10.0.0.1:2379/ Authorization=Bearer_secret Origin=https://evil.example",
			403,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			served := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
			mux := http.NewServeMux()
			mux.Handle("GET /", served)
			mux.Handle("POST /", tc.g.Admin(served))
			w := httptest.NewRecorder()
			tc.g.Wrap(mux).ServeHTTP(w, request(tc.request))
			require.Equal(t, tc.want, w.Code, w.Body.String())
			if !strings.Contains(tc.request, "tools.example") {
				require.Empty(t, w.Header().Get("Access-Control-Allow-Origin"))
			} else {
				require.Equal(t, "https://tools.example",
					w.Header().Get("Access-Control-Allow-Origin"))
			}
		})
	}
}

// TestPrivate: profiles are for the machine itself or who has the token.
func TestPrivate(t *testing.T) {
	served := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for _, tc := range []struct {
		request, from, token string
		want                 int
	}{
		{"GET http://127.0.0.1/", "127.0.0.1:9", "", 200},
		{"GET http://127.0.0.1/", "[::1]:9", "", 200},
		{"GET http://127.0.0.1/ Sec-Fetch-Site=cross-site", "127.0.0.1:9", "", 403},
		{"GET http://127.0.0.1/ Origin=https://evil.example", "127.0.0.1:9", "", 403},
		{"GET http://10.0.0.1/", "10.0.0.2:9", "", 403},
		{"GET http://10.0.0.1/", "10.0.0.2:9", "secret", 403},
		{"GET http://10.0.0.1/ Authorization=Bearer_secret", "10.0.0.2:9", "secret", 200},
	} {
		w, r := httptest.NewRecorder(), request(tc.request)
		r.RemoteAddr = tc.from
		(&security.Guard{Token: tc.token}).Private(served).ServeHTTP(w, r)
		require.Equal(t, tc.want, w.Code, "%+v", tc)
	}
}

// request makes one from "METHOD URL name=value ...", where _ in a value is a space.
func request(text string) *http.Request {
	parts := strings.Fields(text)
	r := httptest.NewRequest(parts[0], parts[1], nil)
	for _, h := range parts[2:] {
		name, value, _ := strings.Cut(h, "=")
		r.Header.Set(name, strings.ReplaceAll(value, "_", " "))
	}
	return r
}

// TestListen: where a server may listen without TLS.
func TestListen(t *testing.T) {
	for addr, loopback := range map[string]bool{
		"127.0.0.1:1": true, "127.8.0.1:1": true, "[::1]:1": true, "localhost:1": true,
		"0.0.0.0:1": false, ":1": false,
		"[::]:1": false, "10.0.0.1:1": false, "localhost.evil.example:1": false, "db:1": false,
	} {
		require.Equal(t, loopback, security.LoopbackHost(addr), addr)
		require.Equal(t, loopback, security.CheckListen("addr", addr, false, false) == nil, addr)
		require.NoError(t, security.CheckListen("addr", addr, true, false))
		require.NoError(t, security.CheckListen("addr", addr, false, true))
	}
	for addr, any := range map[string]bool{
		"0.0.0.0:1": true, ":1": true, "[::]:1": true, "": true, "10.0.0.1:1": false, "db:1": false,
	} {
		require.Equal(t, any, security.AnyHost(addr), addr)
	}
	for origin, good := range map[string]bool{
		"https://a.example": true, "http://a:1": true, "*": false, "https://*.a": false,
		"a.example": false, "https://a/x": false, "null": false,
	} {
		require.Equal(t, good, security.ValidOrigin(origin) == nil, origin)
	}
}
