package ycsb

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// kind is an operation as YCSB counts it.
type kind int

const (
	kindRead kind = iota
	kindUpdate
	kindInsert
	kindScan
	kindReadModifyWrite
	kindCount
)

func (k kind) String() string {
	return [kindCount]string{"READ", "UPDATE", "INSERT", "SCAN", "READ_MODIFY_WRITE"}[k]
}

const maxLatencyUs = 60_000_000

// measurement gathers latencies in microseconds. Safe for concurrent use.
type measurement struct {
	began time.Time
	mu    struct {
		sync.Mutex
		ok, failed [kindCount]*hdrhistogram.Histogram // nil: none yet
	}
}

func (m *measurement) record(k kind, took time.Duration, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	set := &m.mu.ok
	if err != nil {
		set = &m.mu.failed
	}
	if set[k] == nil {
		set[k] = hdrhistogram.New(1, maxLatencyUs, 3)
	}
	_ = set[k].RecordValue(min(took.Microseconds(), maxLatencyUs)) // in range by min
}

// write prints a line per kind of operation, failed ones apart, and one for all that succeeded.
func (m *measurement) write(w io.Writer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	seconds := time.Since(m.began).Seconds()
	total := hdrhistogram.New(1, maxLatencyUs, 3)
	for k := range kindCount {
		if h := m.mu.ok[k]; h != nil {
			fmt.Fprintln(w, line(k.String(), h, seconds))
			total.Merge(h)
		}
		if h := m.mu.failed[k]; h != nil {
			fmt.Fprintln(w, line(k.String()+"_ERROR", h, seconds))
		}
	}
	if total.TotalCount() > 0 {
		fmt.Fprintln(w, line("TOTAL", total, seconds))
	}
}

func line(name string, h *hdrhistogram.Histogram, seconds float64) string {
	return fmt.Sprintf(
		"%-6s - Takes(s): %.1f, Count: %d, OPS: %.1f, Avg(us): %.0f, Min(us): %d, Max(us): %d, "+
			"50th(us): %d, 90th(us): %d, 95th(us): %d, 99th(us): %d, 99.9th(us): %d, 99.99th(us): %d",
		name, seconds, h.TotalCount(), float64(h.TotalCount())/seconds, h.Mean(), h.Min(), h.Max(),
		h.ValueAtQuantile(50), h.ValueAtQuantile(90), h.ValueAtQuantile(95), h.ValueAtQuantile(99),
		h.ValueAtQuantile(99.9), h.ValueAtQuantile(99.99))
}
