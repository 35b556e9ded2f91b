package rpc

import (
	"math"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestParseTimeout(t *testing.T) {
	for v, want := range map[string]time.Duration{
		"0n": 0, "1n": 1, "7u": 7 * time.Microsecond, "20m": 20 * time.Millisecond,
		"3S": 3 * time.Second, "2M": 2 * time.Minute,
		"1H": time.Hour, "00000001S": time.Second, "99999999n": 99999999,
		"99999999S": 99999999 * time.Second,
		"99999999M": 99999999 * time.Minute, "99999999H": math.MaxInt64,
	} {
		got, err := ParseTimeout(v)
		require.NoError(t, err, v)
		require.Equal(t, want, got, v)
	}
	for _, v := range []string{
		"", "S", "1", "1s", "1h", "-1S", "+1S", "1.5S", " 1S", "1 S", "100000000S", "1SS", "١S",
	} {
		_, err := ParseTimeout(v)
		require.Error(t, err, v)
	}
}

func TestIsGRPCType(t *testing.T) {
	for v, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true,
		"application/grpc;charset=utf-8": true, "application/grpcx": false,
		"application/grpc-web": false, "": false, "text/plain": false,
	} {
		require.Equal(t, want, IsGRPCType(v), v)
	}
}

func TestEncodeMessage(t *testing.T) {
	for m, want := range map[string]string{
		"": "", "plain": "plain", "100%": "100%25", "a\nb": "a%0Ab", "☺": "%E2%98%BA",
		"\x7f": "%7F", "~ !": "~ !", "\xff": "%EF%BF%BD",
	} {
		require.Equal(t, want, EncodeMessage(m))
	}
	for _, m := range []string{
		strings.Repeat("a", 10_000), strings.Repeat("☺", 10_000), "a" + strings.Repeat("é", 10_000),
		strings.Repeat("%", 5000),
	} {
		got := EncodeMessage(m)
		require.LessOrEqual(t, len(got), MaxMessageHeader+12)
		back, err := url.PathUnescape(got)
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(m, back))
		require.True(t, utf8.ValidString(back), "no character is cut")
	}
}

// TestFormatTimeout: the server waits at least as long as the client, and at most one unit longer.
// A unit is small beside the timeout.
func TestFormatTimeout(t *testing.T) {
	check := func(d time.Duration) {
		v := FormatTimeout(d)
		require.LessOrEqual(t, len(v), 9, d)
		got, err := ParseTimeout(v)
		require.NoError(t, err, d)
		unit := timeoutUnits[v[len(v)-1]]
		require.GreaterOrEqual(t, got, d, v)
		require.LessOrEqual(t, got-d, unit, v)
		if unit > 1 {
			require.LessOrEqual(t, float64(unit), float64(d)/9e4+1, "%s: %v", v, d)
		}
	}
	for unit := time.Nanosecond; unit > 0 && unit <= time.Hour; unit *= 10 {
		for _, n := range []time.Duration{0, 1, 9, 99_999_999, 100_000_000, 100_000_001} {
			for _, d := range []time.Duration{-1, 0, 1} {
				if v := n*unit + d; v >= 0 && v/unit <= n {
					check(v)
				}
			}
		}
	}
	check(1<<63 - 1)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		check(time.Duration(rnd.Int64() >> rnd.IntN(63)))
	}
}

func TestDecodeMessage(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "plain": "plain", "a%20b": "a b", "%": "%", "%2": "%2", "%zz": "%zz",
		"%E2%98%BA": "☺", "100%25": "100%", "%%41": "%A", "%41%": "A%",
	} {
		require.Equal(t, want, DecodeMessage(in))
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		b := make([]rune, rnd.IntN(40))
		for i := range b {
			b[i] = rune(rnd.IntN(0x300))
		}
		require.Equal(t, string(b), DecodeMessage(EncodeMessage(string(b))))
	}
}
