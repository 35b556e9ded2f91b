package server

import (
	_ "embed"
	"net/http"
	"strconv"
)

//go:embed page.html
var pageHTML []byte

// page serves the single page of the service; it talks to the API only.
func (s *Server) page() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ui/" && r.URL.Path != "/ui" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'")
		_, _ = w.Write(pageHTML) // the browser is gone; nobody to tell
	})
}

func utoa(v uint64) string { return strconv.FormatUint(v, 10) }

func b2f(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
