package loadgen

import (
	"fmt"
	"io"
	"strings"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Result is the outcome of one phase, and one line of the JSON form. Latencies are microseconds.
// The figures of the servers are absent where their processes are not known.
type Result struct {
	Driver    string  `json:"driver"`
	Phase     string  `json:"phase"`
	Workers   int     `json:"workers"`
	Keys      int     `json:"keys"`
	KeySize   int     `json:"key_size"`
	ValueSize int     `json:"value_size"`
	Zipf      float64 `json:"zipf,omitempty"`
	Seconds   float64 `json:"seconds"`
	Ops       int64   `json:"ops"`
	Errors    int64   `json:"errors"`
	OpsPerS   float64 `json:"ops_per_s"`
	MeanUs    float64 `json:"mean_us"`
	P50Us     int64   `json:"p50_us"`
	P95Us     int64   `json:"p95_us"`
	P99Us     int64   `json:"p99_us"`
	P999Us    int64   `json:"p999_us"`
	MaxUs     int64   `json:"max_us"`
	// ServerCPUPerKop is CPU seconds of all servers per 1,000 operations.
	ServerCPUPerKop *float64 `json:"server_cpu_s_per_kop,omitempty"`
	// ServerRSS is the resident memory of all servers at the end, in bytes.
	ServerRSS *int64 `json:"server_rss_bytes,omitempty"`
	// ServerWritten is what all servers together had written to disks, in bytes per operation.
	ServerWritten *Written `json:"server_written_bytes_per_op,omitempty"`
	// ClientCPUPerKop is CPU seconds of this process per 1,000 operations.
	ClientCPUPerKop *float64 `json:"client_cpu_s_per_kop,omitempty"`
	// OtherCPU is what neither the servers nor this process used, in cores: the noise.
	OtherCPU *float64 `json:"other_cpu_cores,omitempty"`
	// FirstError is the text of the first error, if there was one.
	FirstError string `json:"first_error,omitempty"`
}

const maxLatencyUs = 60_000_000

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, maxLatencyUs, 3) }

// setLatencies takes over what the histogram knows; its unit is microseconds.
func (r *Result) setLatencies(h *hdrhistogram.Histogram) {
	r.Ops = h.TotalCount()
	r.OpsPerS = float64(r.Ops) / r.Seconds
	r.MeanUs = h.Mean()
	r.P50Us, r.P95Us = h.ValueAtQuantile(50), h.ValueAtQuantile(95)
	r.P99Us, r.P999Us, r.MaxUs = h.ValueAtQuantile(99), h.ValueAtQuantile(99.9), h.Max()
}

var tableHead = []string{
	"PHASE", "WORKERS", "OPS", "ERRORS", "OPS/S", "MEAN MS", "P50", "P95", "P99", "P99.9", "MAX",
	"SERVER CPU S/1K", "SERVER MIB", "WRITTEN B/OP", "CLIENT CPU S/1K",
}

// Table prints results as aligned columns, each row as soon as it is there. Not safe for concurrent
// use.
type Table struct {
	w      io.Writer
	headed bool
}

// NewTable returns an empty table; its head is printed with the first row.
func NewTable(w io.Writer) *Table { return &Table{w: w} }

// leastWidth has room for a million operations a second.
const leastWidth = 7

// Add prints a row.
func (t *Table) Add(r Result) error {
	row := []string{
		r.Phase, fmt.Sprint(r.Workers), fmt.Sprint(r.Ops), fmt.Sprint(r.Errors),
		fmt.Sprintf("%.0f", r.OpsPerS),
		fmt.Sprintf("%.2f", r.MeanUs/1000), ms(r.P50Us), ms(r.P95Us), ms(r.P99Us), ms(r.P999Us),
		ms(r.MaxUs),
		orNA(r.ServerCPUPerKop, 1, "%.4f"), "n/a", "n/a", orNA(r.ClientCPUPerKop, 1, "%.4f"),
	}
	if r.ServerRSS != nil {
		row[12] = fmt.Sprintf("%.0f", float64(*r.ServerRSS)/(1<<20))
	}
	if r.ServerWritten != nil {
		row[13] = fmt.Sprintf("%.0f", r.ServerWritten.Total)
	}
	var out strings.Builder
	if !t.headed {
		t.headed = true
		line(&out, tableHead)
	}
	line(&out, row)
	_, err := io.WriteString(t.w, out.String())
	return err
}

// line pads fields to the width of their column, but for the last.
func line(out *strings.Builder, fields []string) {
	for i, f := range fields {
		if i == len(fields)-1 {
			fmt.Fprintln(out, f)
			break
		}
		fmt.Fprintf(out, "%-*s  ", max(leastWidth, len(tableHead[i])), f)
	}
}

func ms(us int64) string { return fmt.Sprintf("%.2f", float64(us)/1000) }

func orNA(v *float64, factor float64, format string) string {
	if v == nil {
		return "n/a"
	}
	return fmt.Sprintf(format, *v*factor)
}
