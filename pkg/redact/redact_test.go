package redact

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Keys with the digits, marks and bytes that texts have around them.
var keys = [][]byte{
	[]byte("k"), []byte("a'b"), []byte("x'6b'"), {0}, {0xff, 0xfe}, []byte("line\nline"),
	[]byte(strings.Repeat("long", 4000)),
}

func TestKeysAreReplacedWhereverTheyStand(t *testing.T) {
	r := New()
	for _, key := range keys {
		text := Key(key).String()
		hash := r.String(text)
		require.Regexp(t, `^h'[0-9a-f]{16}'$`, hash)
		// An error that was wrapped, quoted as JSON and joined to others.
		err := errors.Join(fmt.Errorf("region 12 [%v, %v): %w", Key(nil), Key(key),
			fmt.Errorf("key %s is locked", Key(key))), errors.New("x'y'"))
		want := fmt.Sprintf("region 12 [x'', %s): key %s is locked\nx'y'", hash, hash)
		require.Equal(t, want, r.String(err.Error()))
		require.Equal(t, fmt.Sprintf("%q", want), r.String(fmt.Sprintf("%q", err.Error())))
	}
}

func TestHashesTellKeysApart(t *testing.T) {
	r, other := New(), New()
	seen := map[string]bool{}
	for i := range 1000 {
		text := Key(fmt.Sprint("key", i)).String()
		seen[r.String(text)] = true
		require.Equal(t, r.String(text), r.String(text), "stable")
		require.NotEqual(t, r.String(text), other.String(text), "under a secret")
	}
	require.Len(t, seen, 1000)
}

func TestWriter(t *testing.T) {
	r := New()
	var out bytes.Buffer
	line := "split at " + Key("secret").String() + "\n"
	n, err := fmt.Fprint(r.Writer(&out), line)
	require.NoError(t, err)
	require.Equal(t, len(line), n, "a writer that reports less has failed")
	require.Equal(t, r.String(line), out.String())
	require.NotContains(t, out.String(), "736563726574")
	_, err = r.Writer(failing{}).Write([]byte("x"))
	require.Error(t, err)
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("full") }

// FuzzText: whatever stands around a key, none of its hex is left, and the rest is as before.
func FuzzText(f *testing.F) {
	for _, key := range keys {
		f.Add("key ", key, " is locked")
	}
	f.Add("x'", []byte("key"), "'")
	r := New()
	f.Fuzz(func(t *testing.T, before string, key []byte, after string) {
		if len(key) == 0 || marked.MatchString(before) || marked.MatchString(after) ||
			strings.ContainsAny(before+after, "'") {
			t.Skip() // keys of their own
		}
		got := r.String(before + Key(key).String() + after)
		if want := before + r.String(Key(key).String()) + after; got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	})
}
