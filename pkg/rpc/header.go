package rpc

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// TableSize is the size of header compression tables unless agreed otherwise, in bytes.
const TableSize = 4096

// IsGRPCType accepts application/grpc, application/grpc+proto and parameters.
func IsGRPCType(v string) bool {
	rest, ok := strings.CutPrefix(v, "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

var timeoutUnits = [256]time.Duration{
	'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond,
	'u': time.Microsecond, 'n': time.Nanosecond,
}

// ParseTimeout reads a grpc-timeout header: up to 8 digits and a unit.
func ParseTimeout(v string) (time.Duration, error) {
	bad := func() (time.Duration, error) { return 0, fmt.Errorf("malformed grpc-timeout %q", v) }
	if len(v) < 2 || len(v) > 9 {
		return bad()
	}
	n := int64(0)
	for _, d := range []byte(v[:len(v)-1]) {
		if d < '0' || d > '9' {
			return bad()
		}
		n = n*10 + int64(d-'0')
	}
	unit := timeoutUnits[v[len(v)-1]]
	if unit == 0 {
		return bad()
	}
	const longest = 1<<63 - 1
	if n > longest/int64(unit) {
		return longest, nil
	}
	return time.Duration(n) * unit, nil
}

// FormatTimeout is the grpc-timeout header for d: at most 8 digits and a unit, rounded up.
func FormatTimeout(d time.Duration) string {
	const most = 99_999_999
	var buf [16]byte
	for _, u := range []struct {
		unit time.Duration
		name byte
	}{
		{time.Nanosecond, 'n'}, {time.Microsecond, 'u'}, {time.Millisecond, 'm'},
		{time.Second, 'S'}, {time.Minute, 'M'},
	} {
		if n := (d + u.unit - 1) / u.unit; n <= most && d <= most*u.unit {
			return string(append(strconv.AppendInt(buf[:0], int64(n), 10), u.name))
		}
	}
	return strconv.FormatInt(int64(d/time.Hour)+1, 10) + "H"
}

// MaxMessageHeader bounds a status message: clients bound their headers too.
const MaxMessageHeader = 4 << 10

// EncodeMessage is the percent-encoding of grpc-message. What is too long ends between two
// characters.
func EncodeMessage(m string) string {
	m = strings.ToValidUTF8(m, "\uFFFD")
	var b strings.Builder
	for i := 0; i < len(m) && (b.Len() < MaxMessageHeader || !utf8.RuneStart(m[i])); i++ {
		if ch := m[i]; ch >= ' ' && ch <= '~' && ch != '%' {
			b.WriteByte(ch)
		} else {
			fmt.Fprintf(&b, "%%%02X", ch)
		}
	}
	return b.String()
}

// DecodeMessage undoes the percent-encoding of grpc-message. What is no encoding stays.
func DecodeMessage(m string) string {
	if !strings.Contains(m, "%") {
		return m
	}
	var b strings.Builder
	for i := 0; i < len(m); i++ {
		if m[i] == '%' && i+2 < len(m) {
			var ch [1]byte
			if _, err := hex.Decode(ch[:], []byte(m[i+1:i+3])); err == nil {
				b.WriteByte(ch[0])
				i += 2
				continue
			}
		}
		b.WriteByte(m[i])
	}
	return b.String()
}
