package memcomparable

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestKnownEncodings(t *testing.T) {
	require.Equal(t, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0xF7}, Encode(nil))
	require.Equal(t, []byte{42, 0, 0, 0, 0, 0, 0, 0, 0xF8}, Encode([]byte{42}))
	require.Equal(t, []byte{1, 2, 3, 4, 5, 6, 7, 8, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0, 0xF7},
		Encode([]byte{1, 2, 3, 4, 5, 6, 7, 8}))
}

// TestOrderIsKept: encoded keys sort as the keys do, whatever stands behind them, and no one is
// another's prefix.
func TestOrderIsKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0xF7, 0xFE, 0xFF}), 0, 20)
		a, b := key.Draw(t, "a"), key.Draw(t, "b")
		tail := rapid.SliceOfN(rapid.Byte(), 8, 8)
		ea, eb := append(Encode(a), tail.Draw(t, "ta")...), append(Encode(b), tail.Draw(t, "tb")...)
		if c := bytes.Compare(a, b); c != 0 {
			require.Equal(t, c, bytes.Compare(ea, eb))
		}
		got, rest, err := Decode(ea)
		require.NoError(t, err)
		require.True(t, bytes.Equal(a, got))
		require.Equal(t, ea[len(ea)-8:], rest)
		require.Len(t, Encode(a), Size(len(a)))
		cut, ok := CutTimestamp(ea)
		require.True(t, ok)
		require.Equal(t, Encode(a), cut)
		cut, ok = CutTimestamp(cut)
		require.True(t, ok)
		require.Equal(t, Encode(a), cut)
		_, ok = CutTimestamp(ea[:len(ea)-1])
		require.False(t, ok)
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode([]byte("a key")))
	f.Add([]byte("user0000001"))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, rest, err := Decode(data)
		if err == nil && !bytes.Equal(append(Encode(key), rest...), data) {
			t.Fatalf("%x decodes to %x and %x", data, key, rest)
		}
	})
}
