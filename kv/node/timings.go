package node

import (
	"strings"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"

	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
)

// requestMetrics exposes how long requests take, by method, and how they fail, under TiKV's names. Requests on streams of many
// count as calls of the method that does the same.
type requestMetrics struct{ n *Node }

var (
	requestSeconds = prometheus.NewDesc("tikv_grpc_msg_duration_seconds",
		"Time of requests that were answered, from their headers or message to their answer.", []string{"type", "service"}, nil)
	requestFailures = prometheus.NewDesc("tikv_grpc_msg_fail_total",
		"Requests that ended with a status other than OK.", []string{"type", "service", "code"}, nil)
)

// Describe implements prometheus.Collector.
func (requestMetrics) Describe(out chan<- *prometheus.Desc) {
	out <- requestSeconds
	out <- requestFailures
}

// Collect implements prometheus.Collector. A method that was never called is left out.
func (m requestMetrics) Collect(out chan<- prometheus.Metric) {
	if m.n.grpc == nil {
		return
	}
	m.n.grpc.Timings(func(path string, t *rpc.Timing) {
		service, kind := methodName(path)
		got := t.Read()
		for code, n := range got.Failed {
			out <- prometheus.MustNewConstMetric(requestFailures, prometheus.CounterValue, float64(n), kind, service, snake(code.String()))
		}
		buckets, total := map[float64]uint64{}, uint64(0)
		for i, n := range got.Classes {
			if total += n; i < rpc.TimingBuckets-1 {
				buckets[rpc.TimingBound(i).Seconds()] = total
			}
		}
		if total > 0 {
			out <- prometheus.MustNewConstHistogram(requestSeconds, total, got.Total.Seconds(), buckets, kind, service)
		}
	})
}

// methodName makes the labels of "/tikvpb.Tikv/RawGet": tikv, raw_get.
func methodName(path string) (service, kind string) {
	full, method, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return strings.ToLower(full[strings.LastIndexByte(full, '.')+1:]), snake(method)
}

// snake writes RawGetKeyTTL as raw_get_key_ttl.
func snake(name string) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		begins := unicode.IsUpper(r) && i > 0 &&
			(unicode.IsLower(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1]) && unicode.IsUpper(runes[i-1]))
		if begins {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
