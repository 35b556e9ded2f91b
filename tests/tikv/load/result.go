package load

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Result is the outcome of one phase: the line that `tinyctl bench --format json` prints, without
// what is not measured here. Latencies are microseconds.
type Result struct {
	Driver    string  `json:"driver"`
	Phase     string  `json:"phase"`
	Workers   int     `json:"workers"`
	Keys      int     `json:"keys"`
	KeySize   int     `json:"key_size"`
	ValueSize int     `json:"value_size"`
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
	// ServerCPUPerKop and ClientCPUPerKop are CPU seconds of all servers and of this process per
	// 1,000 operations.
	ServerCPUPerKop *float64 `json:"server_cpu_s_per_kop,omitempty"`
	ServerRSS       *int64   `json:"server_rss_bytes,omitempty"`
	ClientCPUPerKop *float64 `json:"client_cpu_s_per_kop,omitempty"`
	// OtherCPU is what neither the servers nor this process used, in cores.
	OtherCPU   *float64 `json:"other_cpu_cores,omitempty"`
	FirstError string   `json:"first_error,omitempty"`
}

// DriverName stands in results.
const DriverName = "client-go"

func (p *phase) result(hists []*hdrhistogram.Histogram, usage [2]sample) (Result, error) {
	all := newHistogram()
	for _, h := range hists {
		all.Merge(h)
	}
	r := Result{
		Driver: DriverName, Phase: p.Phase, Workers: p.Workers, Keys: p.Keys, KeySize: keySize,
		ValueSize: p.ValueSize,
		Seconds:   p.Duration.Seconds(), Ops: all.TotalCount(), Errors: p.errs.Load(),
		MeanUs: all.Mean(),
		P50Us:  all.ValueAtQuantile(50), P95Us: all.ValueAtQuantile(95),
		P99Us:  all.ValueAtQuantile(99),
		P999Us: all.ValueAtQuantile(99.9), MaxUs: all.Max(),
	}
	r.OpsPerS = float64(r.Ops) / r.Seconds
	if e := p.first.Load(); e != nil {
		r.FirstError = (*e).Error()
	}
	if r.Ops == 0 {
		return r, fmt.Errorf("%s: no operation ended in time: %s", p.Phase, r.FirstError)
	}
	r.setUsage(usage[0], usage[1], p.Duration.Seconds())
	return r, nil
}

func (r *Result) setUsage(from, to sample, seconds float64) {
	perKop := func(v float64) *float64 { v *= 1000 / float64(r.Ops); return &v }
	if from.self < 0 || to.self < 0 {
		return
	}
	r.ClientCPUPerKop = perKop(to.self - from.self)
	if from.servers < 0 || to.servers < 0 {
		return
	}
	r.ServerCPUPerKop, r.ServerRSS = perKop(to.servers-from.servers), &to.rss
	other := max(0, (to.machine-from.machine-(to.self-from.self)-(to.servers-from.servers))/seconds)
	r.OtherCPU = &other
}

// sample is what processes have used up to a moment, in seconds of CPU time; negative where it is
// not known.
type sample struct {
	self, servers, machine float64
	rss                    int64
}

// ticksPerSecond is the unit of /proc's CPU times: USER_HZ, 100 on every Linux port of Go.
const ticksPerSecond = 100

func takeSample(pids []int) sample {
	s := sample{servers: -1}
	var err error
	if s.self, _, err = processUsage(os.Getpid()); err != nil {
		s.self = -1
		return s
	}
	if s.machine, err = machineBusy(); err != nil || len(pids) == 0 {
		return s
	}
	sum := 0.0
	for _, pid := range pids {
		cpu, rss, err := processUsage(pid)
		if err != nil {
			return s
		}
		sum, s.rss = sum+cpu, s.rss+rss
	}
	s.servers = sum
	return s
}

// processUsage is a process's CPU time and resident bytes. The name in /proc/PID/stat may hold
// anything; what follows it are numbers: user and system time at 14 and 15, resident pages at 24,
// counted from 1.
func processUsage(pid int) (cpu float64, rss int64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	text := string(data)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 22 {
		return 0, 0, errors.New("/proc/PID/stat is too short")
	}
	numbers, err := parse(fields[11], fields[12], fields[21])
	if err != nil {
		return 0, 0, err
	}
	return (numbers[0] + numbers[1]) / ticksPerSecond, int64(numbers[2]) * int64(os.Getpagesize()),
		nil
}

// machineBusy is the time that all cores together were not idle: the first line of /proc/stat
// without its fourth and fifth number, and without guests, which count as user time already.
func machineBusy() (float64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return 0, errors.New("/proc/stat is too short")
	}
	numbers, err := parse(fields[1], fields[2], fields[3], fields[6], fields[7], fields[8])
	sum := 0.0
	for _, n := range numbers {
		sum += n
	}
	return sum / ticksPerSecond, err
}

func parse(fields ...string) ([]float64, error) {
	var out []float64
	for _, f := range fields {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}
