package security

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Unix(1_000_000, 0)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func TestSessions(t *testing.T) {
	c := newClock()
	s, other := NewSessions(c.now), NewSessions(c.now)
	a, b := s.Begin(), s.Begin()
	require.NotEqual(t, a, b)
	require.True(t, s.Valid(a))
	require.False(t, other.Valid(a), "of another process")
	raw, err := base64.RawURLEncoding.DecodeString(a)
	require.NoError(t, err)
	for bit := range 8 * len(raw) { // the nonce, the expiry and the signature
		raw[bit/8] ^= 1 << (bit % 8)
		require.False(t, s.Valid(base64.RawURLEncoding.EncodeToString(raw)), "bit %d", bit)
		raw[bit/8] ^= 1 << (bit % 8)
	}
	for _, text := range []string{
		"", "x", a + "A", a[:len(a)-1], strings.Repeat("A", len(a)), a + "\n",
	} {
		require.False(t, s.Valid(text), "%q", text)
	}
	s.End(a)
	s.End("nonsense")
	require.False(t, s.Valid(a))
	require.True(t, s.Valid(b))
	c.move(SessionLife - time.Second)
	require.True(t, s.Valid(b))
	c.move(time.Second)
	require.False(t, s.Valid(b))
}

// TestEndedSessionsAreBounded: those that have expired are forgotten; more than can be remembered
// end them all.
func TestEndedSessionsAreBounded(t *testing.T) {
	c := newClock()
	s := NewSessions(c.now)
	fill := func() {
		for range maxEnded {
			s.End(s.Begin())
		}
	}
	fill()
	c.move(SessionLife)
	lasting := s.Begin()
	fill()
	require.True(t, s.Valid(lasting))
	require.Len(t, s.mu.ended, maxEnded)
	last := s.Begin()
	s.End(last)
	require.False(t, s.Valid(last))
	require.False(t, s.Valid(lasting), "all end")
	require.Empty(t, s.mu.ended)
	require.True(t, s.Valid(s.Begin()))
}

func TestAttempts(t *testing.T) {
	c := newClock()
	a := NewAttempts(c.now)
	wrong, right := func() bool { return false }, func() bool { return true }
	try := func(from string, f func() bool) string {
		ok, refused := a.try(from, f)
		return fmt.Sprint(ok, refused)
	}
	for i := range 3 * attemptBurst {
		require.Equal(t, "true false", try("10.0.0.1:1", right), "%d: what is right costs nothing",
			i)
	}
	for i := range attemptBurst {
		require.Equal(t, "false false", try(fmt.Sprint("10.0.0.1:", 1+i), wrong), "%d", i)
	}
	require.Equal(t, "false true", try("10.0.0.1:99", right), "not looked at")
	require.Equal(t, "false true", try("[::ffff:10.0.0.1]:99", right), "the same address")
	require.Equal(t, "true false", try("10.0.0.2:1", right))
	require.EqualValues(t, attemptBurst, a.Failed())
	require.EqualValues(t, 2, a.Refused())
	c.move(attemptEvery)
	require.Equal(t, "false false", try("10.0.0.1:1", wrong), "one more")
	require.Equal(t, "false true", try("10.0.0.1:1", wrong))
	c.move(attemptEvery)
	require.Equal(t, "true false", try("10.0.0.1:1", right))

	for i := range attemptBurst { // one machine has a whole network of IPv6
		try(fmt.Sprintf("[2001:db8::%x]:1", i), wrong)
	}
	require.Equal(t, "false true", try("[2001:db8::ffff]:1", right))
	require.Equal(t, "true false", try("[2001:db8:1::1]:1", right))
	require.Equal(t, "true false", try("@", right), "a unix socket")

	for i := range 2 * maxAddresses {
		try(fmt.Sprintf("10.1.%d.%d:1", i>>8, i&255), wrong)
		require.LessOrEqual(t, len(a.mu.spent), maxAddresses)
	}
}

// TestFloodOfLogins: however many try at once, no more tokens are compared than the address has
// attempts, and the right one is not told from others.
func TestFloodOfLogins(t *testing.T) {
	c := newClock()
	g := &Guard{
		Token: "secret", Loopback: true, Sessions: NewSessions(c.now), Attempts: NewAttempts(c.now),
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := map[int]int{}
	for i := range 50 {
		wg.Go(func() {
			for j := range 100 {
				r := httptest.NewRequest("POST", "http://10.0.0.9/ui/login", nil)
				r.RemoteAddr = fmt.Sprintf("10.0.0.1:%d", 1+100*i+j)
				f := g.Login(httptest.NewRecorder(), r, fmt.Sprint("guess", i, j))
				mu.Lock()
				got[f.Status]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	require.Equal(t, map[int]int{401: attemptBurst, 429: 50*100 - attemptBurst}, got)
	r := httptest.NewRequest("POST", "http://10.0.0.9/ui/login", nil)
	r.RemoteAddr = "10.0.0.1:7"
	require.Equal(t, 429, g.Login(httptest.NewRecorder(), r, "secret").Status)
	r.RemoteAddr = "10.0.0.2:7"
	require.Nil(t, g.Login(httptest.NewRecorder(), r, "secret"), "from elsewhere")
	c.move(2 * attemptEvery)
	r.RemoteAddr = "10.0.0.1:7"
	require.Nil(t, g.Login(httptest.NewRecorder(), r, "secret"), "later")
	require.EqualValues(t, attemptBurst, g.Attempts.Failed())
	require.EqualValues(t, 50*100-attemptBurst+1, g.Attempts.Refused())
}

// TestSessionStandsForTheToken: what a session's request may, and that it needs a proof of its
// origin, as a browser shows its cookies to whatever page makes it ask.
func TestSessionStandsForTheToken(t *testing.T) {
	for _, secure := range []bool{false, true} {
		g := &Guard{
			Token: "secret", Sessions: NewSessions(time.Now), Attempts: NewAttempts(time.Now),
		}
		request := func(method, path string, headers ...string) *http.Request {
			r := httptest.NewRequest(method, "http://10.0.0.9:2379"+path, nil)
			r.RemoteAddr = "10.0.0.1:1"
			if secure {
				r.TLS = &tls.ConnectionState{}
			}
			for i := 0; i < len(headers); i += 2 {
				r.Header.Set(headers[i], headers[i+1])
			}
			return r
		}
		w := httptest.NewRecorder()
		require.Nil(t, g.Login(w, request("POST", "/ui/login"), "secret"))
		c := w.Result().Cookies()[0]
		require.True(t, c.HttpOnly)
		require.Equal(t, http.SameSiteStrictMode, c.SameSite)
		require.Equal(t, secure, c.Secure)
		require.Equal(t, "/", c.Path)
		require.Empty(t, c.Domain)
		require.Equal(t, int(SessionLife.Seconds()), c.MaxAge)
		require.Equal(t, secure, strings.HasPrefix(c.Name, "__Host-"))
		session := c.Name + "=" + c.Value

		served := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNoContent)
		})
		admin, private := g.Wrap(g.Admin(served)), g.Wrap(g.Private(served))
		code := func(h http.Handler, r *http.Request) int {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w.Code
		}
		origin := "http://10.0.0.9:2379"
		require.Equal(t, 204,
			code(admin, request("POST", "/x", "Cookie", session, "Origin", origin)))
		require.Equal(t, 204,
			code(admin, request("POST", "/x", "Cookie", session, ProofHeader, "1")))
		require.Equal(t, 403, code(admin, request("POST", "/x", "Cookie", session)), "no proof")
		require.Equal(t, 403,
			code(admin, request("POST", "/x", "Cookie", session, "Origin", "http://10.0.0.9:99")),
			"another port is the same site")
		require.Equal(t, 403,
			code(admin, request("POST", "/x", "Cookie", session, "Origin", "null")))
		require.Equal(t, 401,
			code(admin, request("POST", "/x", "Cookie", session+"x", "Origin", origin)))
		require.Equal(t, 401,
			code(admin, request("POST", "/x", "Cookie", c.Name+"-1="+c.Value, "Origin", origin)),
			"of another port")
		require.Equal(t, 204, code(private, request("GET", "/debug/pprof/", "Cookie", session)))
		require.Equal(t, 403,
			code(private,
				request("GET", "/debug/pprof/", "Cookie", session, "Sec-Fetch-Site", "same-site")))
		require.Equal(t, 403, code(private, request("GET", "/debug/pprof/")))

		out := request("POST", "/x", "Cookie", session)
		g.PassOn(request("POST", "/x", "Cookie", session), out)
		require.Equal(t, "Bearer secret", out.Header.Get("Authorization"))
		require.Empty(t, out.Header.Get("Cookie"), "for this server only")
		out = request("POST", "/x")
		g.PassOn(request("POST", "/x", "Cookie", c.Name+"=forged"), out)
		require.Empty(t, out.Header.Get("Authorization"))

		w = httptest.NewRecorder()
		g.Logout(w, request("POST", "/ui/logout", "Cookie", session))
		require.Negative(t, w.Result().Cookies()[0].MaxAge)
		require.Equal(t, 401,
			code(admin, request("POST", "/x", "Cookie", session, "Origin", origin)))
		require.False(t, g.LoggedIn(request("GET", "/ui/", "Cookie", session)))
	}
	none := &Guard{Sessions: NewSessions(time.Now), Loopback: true}
	require.Equal(t, 404,
		none.Login(httptest.NewRecorder(), httptest.NewRequest("POST", "/ui/login", nil),
			"").Status, "no token, no login")
}

// FuzzSession: only what Begin returned is a session.
func FuzzSession(f *testing.F) {
	s := NewSessions(time.Now)
	begun := s.Begin()
	f.Add(begun)
	f.Add(begun[:len(begun)-1] + "_")
	f.Add("")
	f.Add(strings.Repeat("A", len(begun)))
	f.Fuzz(func(t *testing.T, text string) {
		if s.Valid(text) && text != begun {
			t.Fatalf("%q is valid", text)
		}
		s.End(text + "x")
	})
}

// FuzzAuthorization: whatever stands in the headers that carry credentials and names, only the
// token is let through.
func FuzzAuthorization(f *testing.F) {
	f.Add("Bearer secret", "10.0.0.1:80", "", "tinykv-session=x")
	f.Add("secret", "localhost", "http://localhost", "__Host-tinykv-session=")
	f.Add("Bearer  secret", "[::1]:1", "null", "a=b; c")
	f.Fuzz(func(t *testing.T, authorization, host, origin, cookies string) {
		g := &Guard{
			Token: "secret", Sessions: NewSessions(time.Now), Attempts: NewAttempts(time.Now),
		}
		r := httptest.NewRequest("POST", "http://10.0.0.1/x", nil)
		r.Host = host
		for name, value := range map[string]string{
			"Authorization": authorization, "Origin": origin, "Cookie": cookies,
		} {
			r.Header[name] = []string{value}
		}
		reached := false
		g.Wrap(
			g.Admin(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				reached = true
			}))).ServeHTTP(httptest.NewRecorder(), r)
		if reached && strings.TrimPrefix(authorization, "Bearer ") != "secret" {
			t.Fatalf("served: %q %q %q %q", authorization, host, origin, cookies)
		}
	})
}
