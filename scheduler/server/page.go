package server

import (
	"bytes"
	_ "embed"
	"net/http"
	"strconv"

	"github.com/tinykv/tinykv/pkg/security"
)

//go:embed page.html
var pageHTML []byte

//go:embed login.html
var loginHTML []byte

const (
	loginPath  = "/ui/login"
	logoutPath = "/ui/logout"

	// sessionMark is where the page has the button that ends a session, and the form of the login
	// says what was wrong.
	sessionMark  = "<!--session-->"
	logoutButton = `<form method="post" action="` + logoutPath + `"><button>Log out</button></form>`

	// maxLoginBody bounds the form of a login.
	maxLoginBody = 16 << 10

	pagePolicy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; " +
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

// pages serves the page of the service and its login.
type pages struct{ guard *security.Guard }

// page serves the single page of the service; it talks to the API only. With a token it is for the
// admin, others get the form of the login. What the page reads is open to who connects, with a
// token too: the token is for changes.
func (p pages) page() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/ui/" && r.URL.Path != "/ui":
			http.NotFound(w, r)
		case p.guard.Token == "":
			writePage(w, http.StatusOK, pageHTML)
		case p.guard.LoggedIn(r):
			writePage(w, http.StatusOK,
				bytes.Replace(pageHTML, []byte(sessionMark), []byte(logoutButton), 1))
		default:
			writeLogin(w, http.StatusOK, "")
		}
	})
}

// login begins a session for who sends the token in the form's field.
func (p pages) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxLoginBody)
	if err := r.ParseForm(); err != nil {
		writeLogin(w, http.StatusBadRequest, "The form cannot be read.")
		return
	}
	f := p.guard.Login(w, r, r.PostForm.Get("token"))
	switch {
	case f == nil:
		http.Redirect(w, r, "/ui/", http.StatusSeeOther)
	case f.Status == http.StatusNotFound:
		p.guard.Refuse(w, f)
	case f.Status == http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "5")
		writeLogin(w, f.Status,
			"Too many wrong tokens came from this address. Wait for a few seconds.")
	default:
		writeLogin(w, f.Status, "This is not the token.")
	}
}

func (p pages) logout(w http.ResponseWriter, r *http.Request) {
	p.guard.Logout(w, r)
	http.Redirect(w, r, "/ui/", http.StatusSeeOther)
}

func writeLogin(w http.ResponseWriter, status int, wrong string) {
	writePage(w, status, bytes.Replace(loginHTML, []byte(sessionMark), []byte(wrong), 1))
}

func writePage(w http.ResponseWriter, status int, page []byte) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(page) // the browser is gone; nobody to tell
}

func utoa(v uint64) string { return strconv.FormatUint(v, 10) }

func b2f(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
