package plot

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func chart() Chart {
	return Chart{
		Title: "a < b & c", XLabel: "x", YLabel: "y", Note: "note",
		Series: []Series{
			{"put", []Point{{1, 100}, {8, 150}, {64, 120}}},
			{"get", []Point{{1, 300}, {8, 320}, {64, 121}}},
		},
	}
}

func draw(t *testing.T, c Chart) string {
	t.Helper()
	var b strings.Builder
	n, err := c.WriteTo(&b)
	require.NoError(t, err)
	require.EqualValues(t, b.Len(), n)
	for d := xml.NewDecoder(strings.NewReader(b.String())); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err, b.String())
		}
	}
	return b.String()
}

func TestChart(t *testing.T) {
	for _, logY := range []bool{false, true} {
		c := chart()
		c.LogY = logY
		svg := draw(t, c)
		require.Equal(t, 2, strings.Count(svg, "<polyline"))
		require.Equal(t, 6, strings.Count(svg, "<circle"))
		require.Contains(t, svg, "a &lt; b &amp; c")
		for _, label := range []string{">1<", ">8<", ">64<", ">put<", ">get<", ">note<"} {
			require.Contains(t, svg, label)
		}
		for _, m := range regexp.MustCompile(
			`<circle cx="([\d.]+)" cy="([\d.]+)"`).FindAllStringSubmatch(svg, -1) {
			x, _ := strconv.ParseFloat(m[1], 64)
			y, _ := strconv.ParseFloat(m[2], 64)
			require.True(t, x >= left && x <= plotRight && y >= top && y <= plotBottom,
				"%v is outside", m)
		}
	}
}

// TestScales: equal factors are equal distances on x; y grows upwards.
func TestScales(t *testing.T) {
	d := newDrawing(chart())
	require.InDelta(t, left, d.x(1), 1e-9)
	require.InDelta(t, (left+plotRight)/2.0, d.x(8), 1e-9)
	require.InDelta(t, plotRight, d.x(64), 1e-9)
	require.InDelta(t, plotBottom, d.y(0), 1e-9)
	require.Greater(t, d.y(100), d.y(101))
	c := chart()
	c.LogY = true
	d = newDrawing(c)
	require.InDelta(t, plotBottom, d.y(100), 1e-9)
	require.InDelta(t, (top+plotBottom)/2.0, d.y(math.Sqrt(100*1000)), 1e-9)
}

// TestNamesApart: the names of lines that end at the same place can both be read.
func TestNamesApart(t *testing.T) {
	svg := draw(t, chart())
	var ys []float64
	for _, m := range regexp.MustCompile(
		`<text x="[\d.]+" y="([\d.]+)"[^>]*>(put|get)<`).FindAllStringSubmatch(svg, -1) {
		y, err := strconv.ParseFloat(m[1], 64)
		require.NoError(t, err)
		ys = append(ys, y)
	}
	require.Len(t, ys, 2)
	require.GreaterOrEqual(t, math.Abs(ys[0]-ys[1]), labelGap)
}

func TestTicks(t *testing.T) {
	require.Equal(t, []float64{0, 10, 20, 30, 40, 50}, steps(50))
	require.Equal(t, []float64{10, 100, 1000}, decades(20, 150))
	require.Equal(t, []float64{1, 10}, decades(1, 1))
	for _, high := range []float64{0, 1e-6, 0.3, 7, 99, 12345, 8e9} {
		ticks := steps(high)
		require.GreaterOrEqual(t, ticks[len(ticks)-1], high)
		require.LessOrEqual(t, len(ticks), linearTicks+2)
		require.GreaterOrEqual(t, len(ticks), 2)
	}
}

func TestCannotDraw(t *testing.T) {
	for name, c := range map[string]Chart{
		"nothing":   {},
		"no points": {Series: []Series{{Name: "a"}}},
		"too many":  {Series: make([]Series, maxSeries+1)},
		"x of 0":    {Series: []Series{{"a", []Point{{0, 1}}}}},
		"NaN":       {Series: []Series{{"a", []Point{{1, math.NaN()}}}}},
		"infinite":  {Series: []Series{{"a", []Point{{1, math.Inf(1)}}}}},
		"log of 0":  {LogY: true, Series: []Series{{"a", []Point{{1, 0}}}}},
	} {
		_, err := c.WriteTo(io.Discard)
		require.Error(t, err, name)
	}
	draw(t, Chart{Series: []Series{{"one point", []Point{{5, 0}}}}})
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 7: "7", 950: "950", 1500: "1.5k", 20_000: "20k", 3e6: "3M", 2.5e9: "2.5G",
	} {
		require.Equal(t, want, Number(v))
	}
}
