// Package keyspace says where to cut a range of keys that is still empty, so that what will be
// written into it spreads over regions from the first key on.
package keyspace

import (
	"bytes"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

// Shapes are what keys may look like behind their prefix: any bytes; lower-case hexadecimal digits,
// as of hashes and UUIDs; decimal digits.
var Shapes = []string{"bytes", "hex", "uuid", "decimal"}

var digits = map[string]string{
	"hex": "0123456789abcdef", "uuid": "0123456789abcdef", "decimal": "0123456789",
}

// MaxParts is into how many parts a range is cut at most.
const MaxParts = 100_000

// Borders returns, in order, the keys at which the parts of prefix begin, the first of them at the
// prefix itself. Behind it, keys are of the given shape and uniform. Parts of decimal and
// hexadecimal keys are equal within one unit of the last digit needed.
func Borders(prefix []byte, parts int, shape string) ([][]byte, error) {
	if parts < 2 || parts > MaxParts {
		return nil, fmt.Errorf("%d parts: there must be 2 to %d", parts, MaxParts)
	}
	alphabet := digits[shape]
	if alphabet == "" && shape != "bytes" {
		return nil, fmt.Errorf("%q is none of %s", shape, strings.Join(Shapes, ", "))
	}
	base := int64(256)
	if alphabet != "" {
		base = int64(len(alphabet))
	}
	// With so many digits, there are at least 16 values for each part: their sizes differ little.
	length, values := 0, big.NewInt(1)
	for ; values.Cmp(big.NewInt(16*int64(parts))) < 0; length++ {
		values.Mul(values, big.NewInt(base))
	}
	out := [][]byte{bytes.Clone(prefix)}
	for i := 1; i < parts; i++ {
		v := new(big.Int).Mul(values, big.NewInt(int64(i)))
		v.Div(v, big.NewInt(int64(parts)))
		key := make([]byte, length)
		for at := length - 1; at >= 0; at-- {
			var digit big.Int
			v.DivMod(v, big.NewInt(base), &digit)
			if key[at] = byte(digit.Int64()); alphabet != "" {
				key[at] = alphabet[digit.Int64()]
			}
		}
		// A key that is cut short is before those that go on: the same border, and shorter.
		zero := "\x00"
		if alphabet != "" {
			zero = alphabet[:1]
		}
		out = append(out, append(bytes.Clone(prefix), bytes.TrimRight(key, zero)...))
	}
	return out, nil
}

// Quantiles returns borders by a sample of keys: parts that have about the same number of them. The
// first begins at the prefix; the keys must begin with it. There are fewer parts if the sample has
// not enough different keys.
func Quantiles(prefix []byte, parts int, sample [][]byte) ([][]byte, error) {
	if parts < 2 || parts > MaxParts {
		return nil, fmt.Errorf("%d parts: there must be 2 to %d", parts, MaxParts)
	}
	sample = slices.Clone(sample)
	slices.SortFunc(sample, bytes.Compare)
	sample = slices.CompactFunc(sample, bytes.Equal)
	out := [][]byte{bytes.Clone(prefix)}
	for i, key := range sample {
		if !bytes.HasPrefix(key, prefix) {
			return nil, fmt.Errorf("key %q of the sample does not begin with %q", key, prefix)
		}
		// Part p begins at the first key of its share.
		if p := len(out); p < parts && i > 0 && i*parts >= p*len(sample) {
			out = append(out, key)
		}
	}
	return out, nil
}
