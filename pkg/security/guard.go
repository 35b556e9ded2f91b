package security

import (
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// ProofHeader is a header that every client of the project sends with a change. A page of a foreign
// origin cannot set it: the browser first asks the server whether it may, and is refused.
const ProofHeader = "Tinykv-Request"

// bodyTimeout is how long a request with a body may take to arrive, also one that is refused: the
// server reads on.
const bodyTimeout = 30 * time.Second

// Guard checks the requests of one HTTP port before any handler sees them. Its fields do not change
// after the first request.
type Guard struct {
	// Token, if set, makes a request one of the admin: "Authorization: Bearer <token>".
	Token string
	// Loopback says that the port is reached from this machine only. Then, and only then, changes
	// are served without a token.
	Loopback bool
	// Hosts are names that may stand in a request's Host header, beside localhost and any literal
	// IP. A page reaches this port under a name of its own by DNS rebinding, but never under an IP:
	// then the page would have to come from here.
	Hosts []string
	// Origins are the web origins (scheme://host[:port]) whose pages may read and change, beside
	// those that come from this port.
	Origins []string
	// Names, if set, give roles to certificates that have no URI of one.
	Names *Names
	// Sessions, if set, are logins of browsers, which stand for the token: see Login. They need a
	// Token.
	Sessions *Sessions
	// Attempts, if set, bounds how often an address may be wrong about the token.
	Attempts *Attempts
	// Refuse answers a request that is not served. Nil answers with a line of text.
	Refuse func(http.ResponseWriter, *Refusal)
}

// Refusal says why a request is not served and what to do about it.
type Refusal struct {
	Status                int
	Code, Message, Detail string
}

func (f *Refusal) Error() string {
	if f.Detail == "" {
		return f.Message
	}
	return f.Message + ": " + f.Detail
}

// Wrap serves what has a Host of this port and, if it may change something, no foreign origin. It
// answers the browsers' questions before a cross-site request by itself.
func (g *Guard) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			// The server has no bound of its own: it would cut off streams of answers. What cannot
			// be bounded here is a test's.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
		}
		if f := g.checkHost(r); f != nil {
			g.refuse(w, f)
			return
		}
		origin := r.Header.Get("Origin")
		w.Header().Add("Vary", "Origin")
		if origin != "" && g.knownOrigin(origin) {
			allow := w.Header()
			allow.Set("Access-Control-Allow-Origin", origin)
			allow.Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE")
			allow.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, "+ProofHeader)
		}
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			if f := g.checkOrigin(r); f != nil {
				g.refuse(w, f)
				return
			}
			w.WriteHeader(http.StatusNoContent)
			return
		}
		if !safe(r.Method) {
			if f := g.checkOrigin(r); f != nil {
				g.refuse(w, f)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// Admin serves only what may change something: requests with the token; those of a session, of an
// admin's certificate or, if no token is set and the port is on loopback, of anybody, if no foreign
// page can have made them.
func (g *Guard) Admin(next http.Handler) http.Handler {
	return g.demand(next, func(r *http.Request) *Refusal {
		if !g.certified(r) && !g.inSession(r) {
			if f := g.checkAdmin(r); f != nil || g.Token != "" {
				return f
			}
		}
		// A browser shows its certificate, and its cookies, to whatever page makes it ask.
		return g.checkProof(r)
	})
}

// Proven serves requests that no page of a foreign origin can have made.
func (g *Guard) Proven(next http.Handler) http.Handler { return g.demand(next, g.checkProof) }

func (g *Guard) checkProof(r *http.Request) *Refusal {
	if r.Header.Get(ProofHeader) == "" && !g.fromPage(r) {
		return &Refusal{
			http.StatusForbidden, "no-proof", "a change needs the header " + ProofHeader + ": 1",
			"it shows that no page of another site made the request; tinyctl sends it by itself",
		}
	}
	return nil
}

// Private serves what changes nothing but costs much or shows the inside, such as profiles:
// requests with the token or from this machine, and none that a page of another site made.
func (g *Guard) Private(next http.Handler) http.Handler {
	return g.demand(next, func(r *http.Request) *Refusal {
		if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
			return foreign(r.Header.Get("Origin"))
		}
		if f := g.checkOrigin(r); f != nil {
			return f
		}
		if g.Token != "" && r.Header.Get("Authorization") != "" {
			return g.CheckToken(r)
		}
		if g.inSession(r) {
			return nil
		}
		if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil && LoopbackHost(host) {
			return nil
		}
		return &Refusal{
			http.StatusForbidden, "not-local",
			"this is served to requests from the same machine only",
			"ask from there, or with the API token where one is configured",
		}
	})
}

// CheckToken refuses a request without the token, if one is set.
func (g *Guard) CheckToken(r *http.Request) *Refusal {
	got := r.Header.Get("Authorization")
	switch {
	case g.Token == "":
		return nil
	case got == "":
		return errNoToken
	}
	return g.Try(r.RemoteAddr, strings.TrimPrefix(got, "Bearer "))
}

// Try compares what remote ("host:port") takes for the token with it, and refuses what it is not,
// or if the address was wrong too often. There must be a token.
func (g *Guard) Try(remote, token string) *Refusal {
	right := func() bool {
		return g.Token != "" && subtle.ConstantTimeCompare([]byte(token), []byte(g.Token)) == 1
	}
	ok, refused := false, false
	if g.Attempts != nil {
		ok, refused = g.Attempts.try(remote, right)
	} else {
		ok = right()
	}
	switch {
	case refused:
		return errTooMany
	case !ok:
		return errNoToken
	}
	return nil
}

var (
	errNoToken = &Refusal{
		http.StatusUnauthorized, "unauthorized", "this needs the API token",
		"send it as: Authorization: Bearer <token>",
	}
	errTooMany = &Refusal{
		http.StatusTooManyRequests, "too-many-attempts",
		"too many wrong tokens came from this address",
		"wait for a few seconds; tokens from this address are not looked at before",
	}
)

// LoggedIn tells whether a request is one of the admin: by a session, by the token or by a
// certificate.
func (g *Guard) LoggedIn(r *http.Request) bool {
	return g.certified(r) || g.inSession(r) ||
		g.Token != "" && r.Header.Get("Authorization") != "" && g.CheckToken(r) == nil
}

func (g *Guard) inSession(r *http.Request) bool {
	if g.Sessions == nil || g.Token == "" {
		return false
	}
	c, err := r.Cookie(cookieName(r))
	return err == nil && g.Sessions.Valid(c.Value)
}

// Login begins a session, as a cookie of the answer, for who knows the token.
func (g *Guard) Login(w http.ResponseWriter, r *http.Request, token string) *Refusal {
	if g.Token == "" || g.Sessions == nil {
		return &Refusal{
			http.StatusNotFound, "no-login", "there is no login here: no API token is set", "",
		}
	}
	if f := g.Try(r.RemoteAddr, token); f != nil {
		return f
	}
	http.SetCookie(w, cookie(r, g.Sessions.Begin(), SessionLife))
	return nil
}

// Logout ends the session of a request, if it has one.
func (g *Guard) Logout(w http.ResponseWriter, r *http.Request) {
	if c, err := r.Cookie(cookieName(r)); err == nil && g.Sessions != nil {
		g.Sessions.End(c.Value)
	}
	http.SetCookie(w, cookie(r, "", -time.Second))
}

// PassOn gives a request that is on its way to another server of the cluster the token in the place
// of its session, which is of this server only.
func (g *Guard) PassOn(in, out *http.Request) {
	if g.inSession(in) {
		out.Header.Set("Authorization", "Bearer "+g.Token)
	}
	out.Header.Del("Cookie")
}

// certified tells whether a request comes with the certificate of an admin, or of a node, which
// passes on what it has checked.
func (g *Guard) certified(r *http.Request) bool {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return false
	}
	roles := g.Names.RolesOf(r.TLS.PeerCertificates[0])
	return slices.Contains(roles, RoleAdmin) || slices.Contains(roles, RoleNode)
}

func (g *Guard) checkAdmin(r *http.Request) *Refusal {
	switch {
	case g.Token != "":
		return g.CheckToken(r)
	case r.TLS != nil && len(r.TLS.VerifiedChains) > 0 && !g.Names.May(r.TLS, RoleAdmin):
		return &Refusal{
			http.StatusForbidden, "no-admin",
			"a change needs the certificate of an admin, and this one is for something else",
			"make one with: tinyctl cert create-admin",
		}
	case !g.Loopback:
		return &Refusal{
			http.StatusForbidden, "no-admin",
			"this port is reached from other machines and no API token is set, so nothing may be changed here",
			"set [api] token on every member and send it as: Authorization: Bearer <token>",
		}
	}
	return nil
}

func (g *Guard) demand(next http.Handler, check func(*http.Request) *Refusal) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := check(r); f != nil {
			g.refuse(w, f)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (g *Guard) refuse(w http.ResponseWriter, f *Refusal) {
	if g.Refuse != nil {
		g.Refuse(w, f)
		return
	}
	http.Error(w, f.Error(), f.Status)
}

// checkHost refuses names that are not this port's. Without a name (HTTP/1.0) there is no browser.
func (g *Guard) checkHost(r *http.Request) *Refusal {
	if NamesServer(r.Host, func() []string { return g.Hosts }) {
		return nil
	}
	return &Refusal{
		http.StatusMisdirectedRequest, "unknown-host",
		fmt.Sprintf("%q is no name of this server", hostOf(r.Host)),
		"use its address, a name that it advertises, or one of [api] allowed-hosts",
	}
}

// NamesServer tells whether a Host header can stand in a request that is meant for a server: no
// name, localhost, a literal IP, or one of the names that names returns, with or without port. See
// Guard.Hosts for the reason.
func NamesServer(hostport string, names func() []string) bool {
	host := hostOf(hostport)
	if host == "" || host == "localhost" || net.ParseIP(host) != nil {
		return true
	}
	return slices.ContainsFunc(names(), func(n string) bool { return hostOf(n) == host })
}

// checkOrigin refuses pages of other origins. Requests that no browser made have no origin.
func (g *Guard) checkOrigin(r *http.Request) *Refusal {
	origin := r.Header.Get("Origin")
	switch {
	case origin != "" && (g.knownOrigin(origin) || sameOrigin(origin, r)):
		return nil
	case origin != "":
		return foreign(origin)
	case r.Header.Get("Sec-Fetch-Site") == "cross-site",
		r.Header.Get("Sec-Fetch-Site") == "same-site":
		return foreign("")
	}
	return nil
}

func foreign(origin string) *Refusal {
	return &Refusal{
		http.StatusForbidden, "foreign-origin",
		fmt.Sprintf("pages of the origin %q are not served", origin),
		"add it to [api] allowed-origins if they should be",
	}
}

// fromPage tells whether a page of this port, or of an allowed origin, made the request.
func (g *Guard) fromPage(r *http.Request) bool {
	return r.Header.Get("Origin") != "" && g.checkOrigin(r) == nil
}

func (g *Guard) knownOrigin(origin string) bool {
	return slices.ContainsFunc(g.Origins, func(o string) bool {
		return strings.EqualFold(strings.TrimRight(o, "/"), origin)
	})
}

// sameOrigin compares hosts with ports. The scheme is not compared: a proxy in front may end the
// TLS.
func sameOrigin(origin string, r *http.Request) bool {
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
}

func safe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

// hostOf takes the port, brackets and the final dot away.
func hostOf(hostport string) string {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// ValidOrigin checks one entry of a list of allowed origins. A wildcard is none.
func ValidOrigin(origin string) error {
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" ||
		strings.Trim(u.Path, "/") != "" ||
		strings.Contains(u.Host, "*") || u.RawQuery != "" || u.User != nil {
		return fmt.Errorf("%q is not an origin such as https://tools.example.com", origin)
	}
	return nil
}
