// Package timeline shows what became of an operation: the client's steps, and under each request
// its stages at the store.
package timeline

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/tinykv/tinykv/kv/client"
)

// Line is a step or a stage. Times are microseconds; Start counts from the beginning of the
// operation. That of a stage is an estimate: the clock of the store says nothing about the
// client's, so the stages are taken to lie in the middle of their request.
type Line struct {
	Name    string  `json:"name"`
	Stage   bool    `json:"stage,omitempty"`
	StartUS float64 `json:"start_us"`
	TookUS  float64 `json:"took_us"`
	Store   string  `json:"store_id,omitempty"`
	Addr    string  `json:"addr,omitempty"`
	Region  string  `json:"region_id,omitempty"`
	Error   string  `json:"error,omitempty"`
}

// Of makes lines of the steps of an operation that began at a time.
func Of(began time.Time, steps []client.Step) []Line {
	lines := []Line{}
	for i := range steps {
		s := &steps[i]
		lines = append(lines, Line{
			Name: s.Name, StartUS: micros(s.Start.Sub(began)), TookUS: micros(s.Took),
			Store: id(s.Store), Addr: s.Addr,
			Region: id(s.Region), Error: s.Err,
		})
		for _, st := range s.Stages {
			lines = append(lines, Line{
				Name: st.Name, Stage: true,
				StartUS: micros(s.Start.Sub(began) + s.Offset() + st.Start),
				TookUS:  micros(st.Took),
			})
		}
	}
	return lines
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()/100) / 10 }

func id(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// Write shows lines as a table, stages set in.
func Write(w io.Writer, lines []Line) error {
	tab := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tab, "START\tTOOK\tSTEP\tWHERE")
	for _, l := range lines {
		name, where := l.Name, ""
		if l.Stage {
			name = "  " + name
		}
		if l.Region != "" {
			where = "region " + l.Region
		}
		if l.Store != "" {
			where += " at store " + l.Store
		}
		if l.Addr != "" {
			where += " (" + l.Addr + ")"
		}
		if l.Error != "" {
			where += ": " + l.Error
		}
		fmt.Fprintf(tab, "%.3f ms\t%.3f ms\t%s\t%s\n", l.StartUS/1000, l.TookUS/1000, name, where)
	}
	return tab.Flush()
}
