package keyspace

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBorders(t *testing.T) {
	for _, c := range []struct {
		prefix string
		parts  int
		shape  string
		want   []string
	}{
		{"p:", 4, "hex", []string{"p:", "p:4", "p:8", "p:c"}},
		{"", 2, "bytes", []string{"", "\x80"}},
		{"u", 3, "decimal", []string{"u", "u33", "u66"}},
		{"u", 5, "decimal", []string{"u", "u2", "u4", "u6", "u8"}},
		{
			"x", 16, "uuid",
			[]string{
				"x", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "xa", "xb", "xc", "xd",
				"xe", "xf",
			},
		},
	} {
		got, err := Borders([]byte(c.prefix), c.parts, c.shape)
		require.NoError(t, err)
		var text []string
		for _, b := range got {
			text = append(text, string(b))
		}
		require.Equal(t, c.want, text, "%+v", c)
	}
	for _, parts := range []int{-1, 0, 1, MaxParts + 1} {
		_, err := Borders(nil, parts, "hex")
		require.ErrorContains(t, err, "parts")
	}
	_, err := Borders(nil, 4, "roman")
	require.ErrorContains(t, err, "none of bytes, hex, uuid, decimal")
}

// TestPartsAreEven: keys of the shape spread evenly over the parts, whatever their number.
func TestPartsAreEven(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	makers := map[string]func() string{
		"bytes":   func() string { return string(binary.BigEndian.AppendUint64(nil, r.Uint64())) },
		"hex":     func() string { return fmt.Sprintf("%016x", r.Uint64()) },
		"decimal": func() string { return fmt.Sprintf("%018d", r.Int64N(1e18)) },
	}
	for shape, key := range makers {
		for _, parts := range []int{2, 3, 7, 64, 100} {
			borders, err := Borders([]byte("p"), parts, shape)
			require.NoError(t, err)
			require.Len(t, borders, parts)
			require.True(t, slices.IsSortedFunc(borders, bytes.Compare))
			counts := make([]int, parts)
			const each = 1000
			for range each * parts {
				k := append([]byte("p"), key()...)
				i := sort.Search(len(borders), func(i int) bool {
					return bytes.Compare(borders[i], k) > 0
				})
				counts[i-1]++
			}
			require.Greater(t, slices.Min(counts), each*3/4, "%s in %d parts", shape, parts)
			require.Less(t, slices.Max(counts), each*5/4, "%s in %d parts", shape, parts)
		}
	}
}

func TestQuantiles(t *testing.T) {
	var sample [][]byte
	for i := range 100 {
		sample = append(sample, fmt.Appendf(nil, "p%02d", 99-i), []byte("p00"))
	}
	got, err := Quantiles([]byte("p"), 4, sample)
	require.NoError(t, err)
	require.Equal(t, "[p p25 p50 p75]", fmt.Sprintf("%s", got))
	got, err = Quantiles([]byte("p"), 64, sample[:6])
	require.NoError(t, err)
	require.Len(t, got, 4, "there are four different keys")
	_, err = Quantiles([]byte("q"), 4, sample)
	require.ErrorContains(t, err, "does not begin with")
}
