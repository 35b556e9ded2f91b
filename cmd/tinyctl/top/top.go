// Package top shows what the stores of a cluster do, as the placement service's API tells it.
package top

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Requests are those of one kind, in the answer to GET history.
type Requests struct {
	PerSecond float64 `json:"per_s"`
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
}

// Store is a store in a point.
type Store struct {
	ID      uint64  `json:"id,string"`
	Reads   float64 `json:"reads_per_s"`
	Writes  float64 `json:"writes_per_s"`
	Leaders int     `json:"leaders"`
	Regions int     `json:"regions"`
	Used    uint64  `json:"used_bytes"`
}

// Point is the cluster at one time.
type Point struct {
	Time      time.Time `json:"time"`
	Reads     Requests  `json:"reads"`
	Writes    Requests  `json:"writes"`
	Used      uint64    `json:"used_bytes"`
	Regions   int       `json:"regions"`
	Operators int       `json:"operators"`
	Stores    []Store   `json:"stores"`
}

// Region is a region with load, in the answer to GET hot.
type Region struct {
	ID     uint64 `json:"id"`
	Leader uint64 `json:"leader_store"`
	// Start is what tables show of the first key.
	Start     string  `json:"-"`
	StartText *string `json:"start_key,omitempty"`
	StartHex  string  `json:"start_key_hex"`
	// Bytes are those written or read in the region's last interval.
	Written uint64 `json:"bytes_written"`
	Read    uint64 `json:"bytes_read"`
}

// View is what Write shows; Hot are at most Most regions of each kind.
type View struct {
	Point        `json:"now"`
	MostWritten  []Region `json:"most_written"`
	MostRead     []Region `json:"most_read"`
	HealthStatus string   `json:"health"`
}

// Most bounds the regions of each kind that are shown.
const Most = 5

// Write shows a view as tables, the busiest stores first.
func Write(w io.Writer, v *View, bytes func(uint64) string) error {
	fmt.Fprintf(w, "%s  %s\n", v.Time.Local().Format(time.TimeOnly), v.HealthStatus)
	fmt.Fprintf(w, "%s, %d regions, %d operators running\n\n", bytes(v.Used), v.Regions,
		v.Operators)
	tab := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tab, "\tA SECOND\tMEDIAN\tP99")
	for _, k := range []struct {
		name string
		r    Requests
	}{{"reads", v.Reads}, {"writes", v.Writes}} {
		fmt.Fprintf(tab, "%s\t%.0f\t%s\t%s\n", k.name, k.r.PerSecond, took(k.r.P50), took(k.r.P99))
	}
	fmt.Fprintln(tab, "\nSTORE\tREADS/S\tWRITES/S\tLEADERS\tREGIONS\tDATA")
	stores := slices.Clone(v.Stores)
	slices.SortStableFunc(stores, func(a, b Store) int {
		return int(b.Reads+b.Writes) - int(a.Reads+a.Writes)
	})
	for _, s := range stores {
		fmt.Fprintf(tab, "%d\t%.0f\t%.0f\t%d\t%d\t%s\n", s.ID, s.Reads, s.Writes, s.Leaders,
			s.Regions, bytes(s.Used))
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	tab = tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	hot := func(kind string, list []Region, of func(r *Region) uint64) {
		for i := range list[:min(len(list), Most)] {
			r := &list[i]
			if i == 0 {
				fmt.Fprintf(tab, "\nMOST %s\tBYTES\tLEADER\tFROM\n", strings.ToUpper(kind))
			}
			start := r.Start
			if start == "" {
				start = "the first key"
			}
			fmt.Fprintf(tab, "region %d\t%s\tstore %d\t%s\n", r.ID, bytes(of(r)), r.Leader, start)
		}
	}
	hot("written", v.MostWritten, func(r *Region) uint64 { return r.Written })
	hot("read", v.MostRead, func(r *Region) uint64 { return r.Read })
	return tab.Flush()
}

// took shows microseconds; nothing took no time.
func took(us float64) string {
	if us == 0 {
		return "-"
	}
	d := time.Duration(us * float64(time.Microsecond))
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%.1f ms", us/1e3)
	}
	return fmt.Sprintf("%.1f s", us/1e6)
}
