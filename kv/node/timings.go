package node

import (
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"

	"github.com/tinykv/tinykv/kv/raftstore/stages"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/pkg/timing"
)

// requestMetrics exposes how long requests take, by method, and how they fail, under TiKV's names.
// Requests on streams of many count as calls of the method that does the same.
type requestMetrics struct{ n *Node }

var (
	requestSeconds = prometheus.NewDesc("tikv_grpc_msg_duration_seconds",
		"Time of requests that were answered, from their headers or message to their answer.",
		[]string{"type", "service"}, nil)
	requestFailures = prometheus.NewDesc("tikv_grpc_msg_fail_total",
		"Requests that ended with a status other than OK.", []string{"type", "service", "code"},
		nil)
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
			out <- prometheus.MustNewConstMetric(requestFailures, prometheus.CounterValue,
				float64(n), kind, service, snake(code.String()))
		}
		if total, buckets := got.Buckets(); total > 0 {
			out <- prometheus.MustNewConstHistogram(requestSeconds, total, got.Total.Seconds(),
				buckets, kind, service)
		}
	})
}

// reads and writes are the methods that count as such in the store's reports. A pessimistic lock is
// none: it may wait for another transaction.
var (
	reads = []string{
		"/tinykvpb.TinyKv/RawGet", "/tinykvpb.TinyKv/RawBatchGet", "/tinykvpb.TinyKv/RawScan",
		"/tinykvpb.TinyKv/KvGet",
		"/tinykvpb.TinyKv/KvScan", "/tikvpb.Tikv/RawGet", "/tikvpb.Tikv/RawBatchGet",
		"/tikvpb.Tikv/RawScan", "/tikvpb.Tikv/RawBatchScan",
		"/tikvpb.Tikv/KvGet", "/tikvpb.Tikv/KvBatchGet", "/tikvpb.Tikv/KvScan",
	}
	writes = []string{
		"/tinykvpb.TinyKv/RawPut", "/tinykvpb.TinyKv/RawDelete", "/tinykvpb.TinyKv/RawBatchPut",
		"/tinykvpb.TinyKv/RawBatchDelete",
		"/tinykvpb.TinyKv/RawCAS", "/tinykvpb.TinyKv/KvPrewrite", "/tinykvpb.TinyKv/KvCommit",
		"/tikvpb.Tikv/RawPut", "/tikvpb.Tikv/RawDelete",
		"/tikvpb.Tikv/RawBatchPut", "/tikvpb.Tikv/RawBatchDelete", "/tikvpb.Tikv/RawCompareAndSwap",
		"/tikvpb.Tikv/KvPrewrite",
		"/tikvpb.Tikv/KvCommit",
	}
)

// requestClasses counts the requests that were answered by how long they took.
func requestClasses(g *rpc.Server) (read, write []uint64) {
	sum := func(methods []string) []uint64 {
		total := make([]uint64, timing.Classes)
		for _, m := range methods {
			if t := g.Timing(m); t != nil {
				got := t.Read()
				for i, n := range got.Classes {
					total[i] += n
				}
			}
		}
		return total
	}
	return sum(reads), sum(writes)
}

// stageMetrics exposes how long the stages of writes take, under TiKV's names.
type stageMetrics struct {
	recorder *stages.Recorder
	descs    map[stages.Stage]*prometheus.Desc
}

func newStageMetrics(r *stages.Recorder) stageMetrics {
	m := stageMetrics{r, map[stages.Stage]*prometheus.Desc{}}
	for s, d := range map[stages.Stage][2]string{
		stages.Wait: {
			"request_wait_time_duration_secs", "Time from taking a write until raft had its entry.",
		},
		stages.Append: {
			"append_log_duration_seconds",
			"Time from there until the leader's own raft log was synced.",
		},
		stages.Commit: {
			"commit_log_duration_seconds",
			"Time from raft's having an entry until a majority had it.",
		},
		stages.ApplyWait: {
			"apply_wait_time_duration_secs",
			"Time from there until the apply worker began with it.",
		},
		stages.Apply: {"apply_log_duration_seconds", "Time from there until the engine had it."},
	} {
		m.descs[s] = prometheus.NewDesc("tikv_raftstore_"+d[0], d[1], nil, nil)
	}
	return m
}

// Describe implements prometheus.Collector.
func (m stageMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range m.descs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m stageMetrics) Collect(out chan<- prometheus.Metric) {
	for s, d := range m.descs {
		got := m.recorder.Read(s)
		total, buckets := got.Buckets()
		out <- prometheus.MustNewConstHistogram(d, total, got.Total.Seconds(), buckets)
	}
}

// slowRequests logs slow requests: one a second, and how many others there were.
type slowRequests struct {
	logger *zap.Logger
	next   atomic.Int64 // from when on, in ns since 1970
	passed atomic.Uint64
}

// note is an rpc.OnSlow.
func (s *slowRequests) note(path string, took time.Duration, code codes.Code) {
	now, next := time.Now().UnixNano(), s.next.Load()
	if now < next || !s.next.CompareAndSwap(next, now+int64(time.Second)) {
		s.passed.Add(1)
		return
	}
	fields := []zap.Field{zap.String("method", path), zap.Duration("took", took)}
	if code != codes.OK {
		fields = append(fields, zap.Stringer("code", code))
	}
	if n := s.passed.Swap(0); n > 0 {
		fields = append(fields, zap.Uint64("others", n))
	}
	s.logger.Warn("slow request", fields...)
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
			(unicode.IsLower(runes[i-1]) ||
				i+1 < len(runes) && unicode.IsLower(runes[i+1]) && unicode.IsUpper(runes[i-1]))
		if begins {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
