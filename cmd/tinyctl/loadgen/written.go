package loadgen

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Written is how many bytes servers had written to their disks: all, and the parts where the
// servers tell. The kernel's count for a store's process would be too large: each small write to a
// raft log whose zeros were written in large pieces counts as one of a whole piece.
type Written struct {
	Total      float64 `json:"total"`
	RaftLog    float64 `json:"raft_log,omitempty"`
	EngineLog  float64 `json:"engine_log,omitempty"`
	Flush      float64 `json:"flush,omitempty"`
	Compaction float64 `json:"compaction,omitempty"`
}

// parts are the counters of a store, by the name of its metric.
func (w *Written) parts() map[string]*float64 {
	return map[string]*float64{
		"tikv_raft_engine_bytes_total": &w.RaftLog, "tikv_engine_wal_bytes_total": &w.EngineLog,
		"tikv_engine_flush_bytes_total":      &w.Flush,
		"tikv_engine_compaction_bytes_total": &w.Compaction,
	}
}

// since is what was written since an earlier moment, per operation.
func (w *Written) since(before *Written, ops float64) *Written {
	out := &Written{Total: (w.Total - before.Total) / ops}
	now, then, to := w.parts(), before.parts(), out.parts()
	for name := range to {
		*to[name] = (*now[name] - *then[name]) / ops
	}
	return out
}

// WrittenMetrics are the metrics of a store that Add takes.
func WrittenMetrics() []string { return slices.Sorted(maps.Keys(new(Written).parts())) }

// Add adds what one store has written, by its metrics. An error says that one of them is not there.
func (w *Written) Add(metrics map[string]float64) error {
	for name, sum := range w.parts() {
		n, ok := metrics[name]
		if !ok {
			return fmt.Errorf("the store has no metric %s", name)
		}
		*sum, w.Total = *sum+n, w.Total+n
	}
	return nil
}

// writtenBy is what processes have had written to disks so far, as the kernel counts. Linux only,
// and only for processes of the same user; nil without processes.
func writtenBy(pids []int) (*Written, error) {
	if len(pids) == 0 {
		return nil, nil
	}
	var n int64
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
		if err != nil {
			return nil, err
		}
		one, err := parseIO(string(data))
		if err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		n += one
	}
	return &Written{Total: float64(n)}, nil
}

// parseIO reads what a process has had written, without what was removed before it left the page
// cache.
func parseIO(text string) (int64, error) {
	var written, cancelled int64
	found := false
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		to := &written
		switch name {
		case "write_bytes":
			found = true
		case "cancelled_write_bytes":
			to = &cancelled
		default:
			continue
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return 0, err
		}
		*to = n
	}
	if !found {
		return 0, fmt.Errorf("io has no write_bytes: %q", text)
	}
	return written - cancelled, nil
}
