// Package redact writes keys of the data into texts in a form that a log can find and replace
// there.
//
// A key in an error or a log line is written as Key: x'6b6579', hex between marks. An error may
// pass through wrapping, a gRPC status and another process before it is logged, and arrives as a
// plain string; the marks survive all of that. So a log with [security] redact-keys replaces every
// such text in every line by a keyed hash, and what clients are answered stays readable. tests/arch
// refuses keys that are formatted in other ways.
package redact

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"regexp"
)

// Key is a key of the data, or a bound of a range of keys, on its way into a text. Its String is
// x'<hex>'.
type Key []byte

// String writes the key in hex between marks.
func (k Key) String() string {
	text := make([]byte, 0, 2*len(k)+3)
	text = hex.AppendEncode(append(text, "x'"...), k)
	return string(append(text, '\''))
}

// marked is what String writes. The empty key, which is a bound of the whole range only, is no
// secret.
var marked = regexp.MustCompile(`x'[0-9a-f]+'`)

// sumBytes of a hash are written: enough to tell the keys of one process's log apart.
const sumBytes = 8

// Redactor replaces keys in texts by hashes under a secret of its own, h'<16 hex digits>'. The same
// key has the same hash as long as the Redactor lives, so that lines about one key can be found
// together; who has a guess for a key cannot try it without the secret, which is never written
// anywhere. Safe for concurrent use.
type Redactor struct{ secret [32]byte }

// New makes a Redactor with a new random secret.
func New() *Redactor {
	r := &Redactor{}
	_, _ = rand.Read(r.secret[:]) // never fails, by its contract
	return r
}

// Bytes returns text with every key of the form of Key.String replaced by its hash; text itself
// where there is none.
func (r *Redactor) Bytes(text []byte) []byte {
	return marked.ReplaceAllFunc(text, func(key []byte) []byte {
		mac := hmac.New(sha256.New, r.secret[:])
		mac.Write(key)
		sum := mac.Sum(nil)
		return append(hex.AppendEncode([]byte("h'"), sum[:sumBytes]), '\'')
	})
}

// String is Bytes for a string.
func (r *Redactor) String(text string) string { return string(r.Bytes([]byte(text))) }

// Writer passes on what is written with its keys replaced. A key must not be cut by the end of a
// Write: a logger writes a whole line at once. As safe for concurrent use as w.
func (r *Redactor) Writer(w io.Writer) io.Writer { return writer{r, w} }

type writer struct {
	r *Redactor
	w io.Writer
}

// Write reports len(p) if all was written: what was replaced may have another length.
func (w writer) Write(p []byte) (int, error) {
	if _, err := w.w.Write(w.r.Bytes(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
