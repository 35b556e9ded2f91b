package security

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	// SessionLife is how long a login lasts.
	SessionLife = 12 * time.Hour
	// maxEnded bounds what is remembered of sessions that were ended early.
	maxEnded = 4096

	nonceBytes  = 16
	expiryBytes = 8
)

// Sessions are the logins of browsers at one port. A session is a signed text that names when it
// expires; nothing is kept of it here, except of one that was ended early. The key is made by
// NewSessions and is in this process only: sessions end with it. Safe for concurrent use.
type Sessions struct {
	now func() time.Time
	mu  struct {
		sync.Mutex
		key [32]byte
		// ended are sessions that were ended early, by their nonce, and when they expire.
		// Invariant: at most maxEnded.
		ended map[[nonceBytes]byte]time.Time
	}
}

// NewSessions makes Sessions with a new key. now is time.Now but in tests.
func NewSessions(now func() time.Time) *Sessions {
	s := &Sessions{now: now}
	s.renewLocked()
	return s
}

func (s *Sessions) renewLocked() {
	_, _ = rand.Read(s.mu.key[:]) // never fails, by its contract
	s.mu.ended = make(map[[nonceBytes]byte]time.Time)
}

// Begin returns a new session, which is valid for SessionLife.
func (s *Sessions) Begin() string {
	body := make([]byte, nonceBytes, nonceBytes+expiryBytes+sha256.Size)
	_, _ = rand.Read(body)
	body = binary.BigEndian.AppendUint64(body, uint64(s.now().Add(SessionLife).Unix()))
	s.mu.Lock()
	defer s.mu.Unlock()
	return base64.RawURLEncoding.EncodeToString(append(body, s.sumLocked(body)...))
}

func (s *Sessions) sumLocked(body []byte) []byte {
	mac := hmac.New(sha256.New, s.mu.key[:])
	mac.Write(body)
	return mac.Sum(nil)
}

// Valid tells whether text is a session that was begun here, has not expired and was not ended.
func (s *Sessions) Valid(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _, ok := s.readLocked(text)
	return ok
}

// End makes a session invalid before it expires; a text that is none changes nothing. If too many
// to remember were ended, all sessions end.
func (s *Sessions) End(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	nonce, expires, ok := s.readLocked(text)
	if !ok {
		return
	}
	if len(s.mu.ended) >= maxEnded {
		now := s.now()
		for n, at := range s.mu.ended {
			if !now.Before(at) {
				delete(s.mu.ended, n)
			}
		}
	}
	if len(s.mu.ended) >= maxEnded {
		s.renewLocked()
		return
	}
	s.mu.ended[nonce] = expires
}

func (s *Sessions) readLocked(text string) (nonce [nonceBytes]byte, expires time.Time, ok bool) {
	const size = nonceBytes + expiryBytes + sha256.Size
	// Strict, and of one length: one session has one spelling. The decoder would skip ends of
	// lines.
	data, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(data) != size || len(text) != base64.RawURLEncoding.EncodedLen(size) {
		return nonce, expires, false
	}
	body, sum := data[:nonceBytes+expiryBytes], data[nonceBytes+expiryBytes:]
	if !hmac.Equal(sum, s.sumLocked(body)) {
		return nonce, expires, false
	}
	copy(nonce[:], body)
	expires = time.Unix(int64(binary.BigEndian.Uint64(body[nonceBytes:])), 0)
	_, ended := s.mu.ended[nonce]
	return nonce, expires, !ended && s.now().Before(expires)
}

// cookieName is another for each port of a host, since browsers send cookies to all of them. Over
// TLS the prefix makes browsers refuse a cookie of that name which another host, or a page in the
// clear, has set.
func cookieName(r *http.Request) string {
	name := "tinykv-session"
	if _, port, err := net.SplitHostPort(r.Host); err == nil && port != "" {
		name += "-" + port
	}
	if r.TLS != nil {
		name = "__Host-" + name
	}
	return name
}

// cookie makes the cookie of a session. Pages of other sites cannot have it sent, and scripts
// cannot read it.
func cookie(r *http.Request, session string, life time.Duration) *http.Cookie {
	// A proxy in front may end the TLS: then only the page's origin tells of it.
	secure := r.TLS != nil || strings.HasPrefix(r.Header.Get("Origin"), "https://")
	return &http.Cookie{
		Name: cookieName(r), Value: session, Path: "/", MaxAge: int(life / time.Second),
		HttpOnly: true, Secure: secure, SameSite: http.SameSiteStrictMode,
	}
}
