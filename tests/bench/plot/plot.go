// Package plot draws line charts as SVG: a logarithmic x axis, a linear or logarithmic y axis, a
// few series with a label at the end of each line. It knows no more than the benchmarks' pages
// need.
package plot

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// Point is one measurement.
type Point struct{ X, Y float64 }

// Series is one line of a chart, its points in order of X.
type Series struct {
	Name   string
	Points []Point
}

// Chart is a line chart. X values are positive and are all labelled; if LogY is set, Y values are
// positive.
type Chart struct {
	Title, XLabel, YLabel string
	Note                  string // small print below the title
	LogY                  bool
	FormatX               func(float64) string // nil: as a number
	Series                []Series
}

// The drawing area in pixels. The right margin holds the series' names.
const (
	width, height                = 720, 420
	left, right, top, bottom     = 80, 130, 64, 56
	plotRight, plotBottom        = width - right, height - bottom
	plotWidth, plotHeight        = plotRight - left, plotBottom - top
	linearTicks                  = 5
	labelGap                     = 14.0 // least distance of two series' names
	maxSeries                    = 4
	ink, faint, grid, background = "#1f2328", "#59636e", "#d8dee4", "#ffffff"
)

var colours = [maxSeries]string{"#0b62b8", "#c2410c", "#15803d", "#7c3aed"}

var errNoPoints = errors.New("plot: a chart needs one to four series, each with points")

// WriteTo draws the chart. It fails for a chart without points, or with numbers that cannot be
// drawn.
func (c Chart) WriteTo(w io.Writer) (int64, error) {
	if len(c.Series) == 0 || len(c.Series) > maxSeries {
		return 0, errNoPoints
	}
	for _, s := range c.Series {
		if len(s.Points) == 0 {
			return 0, errNoPoints
		}
		for _, p := range s.Points {
			if !(p.X > 0) || math.IsInf(p.X, 0) || !(p.Y >= 0) || math.IsInf(p.Y, 0) ||
				c.LogY && p.Y == 0 {
				return 0, fmt.Errorf("plot: cannot draw the point %v of %q", p, s.Name)
			}
		}
	}
	d := newDrawing(c)
	d.frame()
	d.lines()
	d.b.WriteString("</svg>\n")
	n, err := io.WriteString(w, d.b.String())
	return int64(n), err
}

// drawing is a chart with its scales.
type drawing struct {
	c                      Chart
	b                      strings.Builder
	minX, maxX, minY, maxY float64
	ticks                  []float64
}

func newDrawing(c Chart) *drawing {
	d := &drawing{c: c, minX: math.Inf(1), minY: math.Inf(1)}
	for _, s := range c.Series {
		for _, p := range s.Points {
			d.minX, d.maxX = min(d.minX, p.X), max(d.maxX, p.X)
			d.minY, d.maxY = min(d.minY, p.Y), max(d.maxY, p.Y)
		}
	}
	if c.LogY {
		d.ticks = decades(d.minY, d.maxY)
	} else {
		d.ticks = steps(d.maxY)
	}
	d.minY, d.maxY = d.ticks[0], d.ticks[len(d.ticks)-1]
	return d
}

// decades are the powers of ten around [low, high], at least two.
func decades(low, high float64) []float64 {
	var out []float64
	for e := math.Floor(math.Log10(low)); ; e++ {
		out = append(out, math.Pow(10, e))
		if len(out) > 1 && out[len(out)-1] >= high {
			return out
		}
	}
}

// steps are round numbers from 0 to at least high.
func steps(high float64) []float64 {
	if high <= 0 {
		high = 1
	}
	raw := high / linearTicks
	unit := math.Pow(10, math.Floor(math.Log10(raw)))
	step := unit
	for _, m := range []float64{1, 2, 2.5, 5, 10} {
		if step = m * unit; step >= raw {
			break
		}
	}
	out := []float64{0}
	for i := 1.0; out[len(out)-1] < high; i++ {
		out = append(out, i*step)
	}
	return out
}

func (d *drawing) x(v float64) float64 {
	if d.minX == d.maxX {
		return left + plotWidth/2
	}
	return left + plotWidth*(math.Log(v)-math.Log(d.minX))/(math.Log(d.maxX)-math.Log(d.minX))
}

func (d *drawing) y(v float64) float64 {
	low, high := d.minY, d.maxY
	if d.c.LogY {
		v, low, high = math.Log(v), math.Log(low), math.Log(high)
	}
	return plotBottom - plotHeight*(v-low)/(high-low)
}

func (d *drawing) printf(format string, a ...any) { fmt.Fprintf(&d.b, format, a...) }

// text writes one string; anchor is start, middle or end.
func (d *drawing) text(x, y float64, anchor, colour string, size int, s string) {
	d.printf(`<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" font-size="%d">`, x, y, anchor,
		colour, size)
	_ = xml.EscapeText(&d.b, []byte(s)) // a Builder does not fail
	d.printf("</text>\n")
}

func (d *drawing) line(x1, y1, x2, y2 float64, colour string) {
	d.printf(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`+"\n", x1, y1, x2, y2,
		colour)
}

// frame draws everything but the series.
func (d *drawing) frame() {
	d.printf(
		`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif">`+"\n", width, height, width, height)
	d.printf(`<rect width="%d" height="%d" fill="%s"/>`+"\n", width, height, background)
	d.text(left, 26, "start", ink, 17, d.c.Title)
	d.text(left, 46, "start", faint, 12, d.c.Note)
	for _, t := range d.ticks {
		d.line(left, d.y(t), plotRight, d.y(t), grid)
		d.text(left-8, d.y(t)+4, "end", faint, 12, Number(t))
	}
	seen := map[float64]bool{}
	for _, s := range d.c.Series {
		for _, p := range s.Points {
			if !seen[p.X] {
				seen[p.X] = true
				d.line(d.x(p.X), plotBottom, d.x(p.X), plotBottom+5, faint)
				d.text(d.x(p.X), plotBottom+20, "middle", faint, 12, d.formatX(p.X))
			}
		}
	}
	d.line(left, plotBottom, plotRight, plotBottom, faint)
	d.text(left+plotWidth/2, height-14, "middle", ink, 13, d.c.XLabel)
	d.printf(`<g transform="translate(18 %d) rotate(-90)">`, top+plotHeight/2)
	d.text(0, 0, "middle", ink, 13, d.c.YLabel)
	d.printf("</g>\n")
}

func (d *drawing) formatX(v float64) string {
	if d.c.FormatX != nil {
		return d.c.FormatX(v)
	}
	return Number(v)
}

// lines draws the series, and their names beside their ends, pushed apart where they would overlap.
func (d *drawing) lines() {
	var used []float64
	for i, s := range d.c.Series {
		var path []string
		for _, p := range s.Points {
			path = append(path, fmt.Sprintf("%.1f,%.1f", d.x(p.X), d.y(p.Y)))
		}
		d.printf(`<polyline points="%s" fill="none" stroke="%s" stroke-width="2.5"/>`+"\n",
			strings.Join(path, " "), colours[i])
		for _, p := range s.Points {
			d.printf(`<circle cx="%.1f" cy="%.1f" r="4" fill="%s"><title>`, d.x(p.X), d.y(p.Y),
				colours[i])
			// as above
			_ = xml.EscapeText(&d.b,
				[]byte(fmt.Sprintf("%s, %s: %s", s.Name, d.formatX(p.X), Number(p.Y))))
			d.printf("</title></circle>\n")
		}
		last := s.Points[len(s.Points)-1]
		y := d.y(last.Y) + 4
		for _, u := range used {
			if math.Abs(y-u) < labelGap {
				y = u - labelGap
			}
		}
		used = append(used, y)
		d.text(plotRight+10, y, "start", colours[i], 13, s.Name)
	}
}

// Number is a number in few characters: 950, 1.5k, 20k, 3M.
func Number(v float64) string {
	for _, u := range []struct {
		by   float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if v >= u.by {
			return fmt.Sprintf("%.3g%s", v/u.by, u.name)
		}
	}
	return fmt.Sprintf("%.3g", v)
}
