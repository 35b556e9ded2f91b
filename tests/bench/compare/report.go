package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// goal is one line of the ratio table.
type goal struct {
	name          string
	key, by       string  // figures; by empty: the number itself
	goal, stretch float64 // 0: none
	lower         bool    // less is better
	unit          string  // "x" for ratios
}

// goals are what TinyKV is to reach. Ratios to etcd are to its leader's figures.
var goals = []goal{
	{
		name: "put @128 / etcd", key: "tinykv/put@128/ops", by: "etcd/put@128/ops", goal: 1.5,
		stretch: 1.8, unit: "x",
	},
	{
		name: "put @32 / etcd", key: "tinykv/put@32/ops", by: "etcd/put@32/ops", goal: 1.5,
		stretch: 1.8, unit: "x",
	},
	{
		name: "put @1 / etcd", key: "tinykv/put@1/ops", by: "etcd/put@1/ops", goal: 1.2,
		stretch: 1.6, unit: "x",
	},
	{
		name: "put @1 p50 / etcd", key: "tinykv/put@1/p50", by: "etcd/put@1/p50", goal: 0.85,
		stretch: 0.85, lower: true, unit: "x",
	},
	{
		name: "put @1 p50 / ideal", key: "tinykv/put@1/p50", by: "ideal/put@1/p50", goal: 1.2,
		stretch: 1.2, lower: true, unit: "x",
	},
	{
		name: "put @128 server CPU/op / etcd", key: "tinykv/put@128/cpu", by: "etcd/put@128/cpu",
		goal: 0.55, stretch: 0.45, lower: true, unit: "x",
	},
	{
		name: "get @128 / etcd", key: "tinykv/get@128/ops", by: "etcd/get@128/ops", goal: 1.7,
		stretch: 2.1, unit: "x",
	},
	{
		name: "get @32 / etcd", key: "tinykv/get@32/ops", by: "etcd/get@32/ops", goal: 2,
		stretch: 2.5, unit: "x",
	},
	{
		name: "get @1 / etcd", key: "tinykv/get@1/ops", by: "etcd/get@1/ops", goal: 2.5,
		stretch: 3.5, unit: "x",
	},
	{
		name: "get @128 server CPU/op / etcd", key: "tinykv/get@128/cpu", by: "etcd/get@128/cpu",
		goal: 0.45, stretch: 0.33, lower: true, unit: "x",
	},
	{
		name: "get @128 server CPU/op / echo", key: "tinykv/get@128/cpu", by: "echo/get@128/cpu",
		goal: 1.3, lower: true, unit: "x",
	},
	{
		name: "mixed @128 / etcd", key: "tinykv/mixed@128/ops", by: "etcd/mixed@128/ops", goal: 1.4,
		stretch: 1.8, unit: "x",
	},
	{
		name: "scan of 100 @128 / etcd", key: "tinykv/scan@128/ops", by: "etcd/scan@128/ops",
		goal: 1.9, stretch: 2.3, unit: "x",
	},
	{
		name: "32 regions / one, put @128", key: "32regions/put@128/ops", by: "1region/put@128/ops",
		goal: 0.8, stretch: 0.95, unit: "x",
	},
	{name: "put @128 p99 / p50", key: "tinykv/put@128/p99/p50", goal: 3, stretch: 2.5, lower: true},
	{
		name: "stream get @128 / etcd", key: "stream/get@128/ops", by: "etcd/get@128/ops",
		goal: 2.3, stretch: 3.5, unit: "x",
	},
	{
		name: "stream put @128 / etcd", key: "stream/put@128/ops", by: "etcd/put@128/ops",
		goal: 1.8, stretch: 2.5, unit: "x",
	},
	{
		name: "txn put @128 / etcd Txn", key: "txn/put@128/ops", by: "etcd-txn/put@128/ops",
		goal: 2, stretch: 3, unit: "x",
	},
	{
		name: "txn put @32 / etcd Txn", key: "txn/put@32/ops", by: "etcd-txn/put@32/ops", goal: 2,
		stretch: 3, unit: "x",
	},
	{
		name: "txn put @128 CPU / etcd Txn", key: "txn/put@128/cpu", by: "etcd-txn/put@128/cpu",
		goal: 0.35, lower: true, unit: "x",
	},
	{
		name: "txn put @32 CPU / etcd Txn", key: "txn/put@32/cpu", by: "etcd-txn/put@32/cpu",
		goal: 0.35, lower: true, unit: "x",
	},
	{
		name: "txn put @1 p50 / etcd Txn", key: "txn/put@1/p50", by: "etcd-txn/put@1/p50",
		goal: 1.1, stretch: 0.9, lower: true, unit: "x",
	},
	{
		name: "txn put @128 CPU / raw", key: "txn/put@128/cpu", by: "tinykv/put@128/cpu", goal: 1.6,
		stretch: 1.35, lower: true, unit: "x",
	},
	{
		name: "txn put @128 / raw put", key: "txn/put@128/ops", by: "tinykv/put@128/ops", goal: 0.6,
		stretch: 0.75, unit: "x",
	},
	{
		name: "txn get @128 CPU / raw", key: "txn/get@128/cpu", by: "tinykv/get@128/cpu", goal: 1.4,
		stretch: 1.2, lower: true, unit: "x",
	},
	{
		name: "txn get @128 / raw get", key: "txn/get@128/ops", by: "tinykv/get@128/ops",
		goal: 0.75, unit: "x",
	},
	{
		name: "txn scan of 100 @128 / raw scan", key: "txn/scan@128/ops", by: "tinykv/scan@128/ops",
		unit: "x",
	},
	{
		name: "txn scan of 100 @128 CPU / raw scan", key: "txn/scan@128/cpu",
		by: "tinykv/scan@128/cpu", lower: true, unit: "x",
	},
	{
		name: "RSS of 3 servers / etcd", key: "tinykv/rss/mib", by: "etcd/rss/mib", goal: 1,
		stretch: 0.7, lower: true, unit: "x",
	},
	{
		name: "idle CPU with scheduler", key: "tinykv/idle/percent", goal: 3, stretch: 1,
		lower: true, unit: " %",
	},
	{
		name: "start to first put", key: "tinykv/start/first-put", goal: 1, stretch: 0.5,
		lower: true, unit: " s",
	},
	{
		name: "start to 3 replicas", key: "tinykv/start/replicas", goal: 3, stretch: 1.5,
		lower: true, unit: " s",
	},
	{
		name: "leader killed to writes", key: "tinykv/failover/seconds", goal: 1, stretch: 0.6,
		lower: true, unit: " s",
	},
	{
		name: "leader killed to writes / etcd", key: "tinykv/failover/seconds",
		by: "etcd/failover/seconds", goal: 1, lower: true, unit: "x",
	},
	// What programs get that were written for TiKV.
	{
		name: "client-go put @128 / stream", key: "client-go/put@128/ops",
		by: "stream beside/put@128/ops", goal: 0.8, unit: "x",
	},
	{
		name: "client-go get @128 / stream", key: "client-go/get@128/ops",
		by: "stream beside/get@128/ops", goal: 0.8, unit: "x",
	},
	{
		name: "client-go put @128 / etcd", key: "client-go/put@128/ops", by: "etcd/put@128/ops",
		goal: 1, unit: "x",
	},
	{
		name: "client-go get @128 / etcd", key: "client-go/get@128/ops", by: "etcd/get@128/ops",
		goal: 1, unit: "x",
	},
	{
		name: "client-go put @128 server CPU/op / stream", key: "client-go/put@128/cpu",
		by:    "stream beside/put@128/cpu",
		lower: true, unit: "x",
	},
	{
		name: "client-go get @128 server CPU/op / stream", key: "client-go/get@128/cpu",
		by:    "stream beside/get@128/cpu",
		lower: true, unit: "x",
	},
	// What users of kv/client get, which speaks the stream unless told otherwise.
	{name: "stream put @1 / etcd", key: "stream/put@1/ops", by: "etcd/put@1/ops", unit: "x"},
	{name: "stream get @1 / etcd", key: "stream/get@1/ops", by: "etcd/get@1/ops", unit: "x"},
	{name: "stream get @32 / etcd", key: "stream/get@32/ops", by: "etcd/get@32/ops", unit: "x"},
	// What the yardsticks reach, to tell what is possible on this machine.
	{name: "ideal: put @1 / etcd", key: "ideal/put@1/ops", by: "etcd/put@1/ops", unit: "x"},
	{name: "ideal: put @128 / etcd", key: "ideal/put@128/ops", by: "etcd/put@128/ops", unit: "x"},
	{name: "ideal: get @1 / etcd", key: "ideal/get@1/ops", by: "etcd/get@1/ops", unit: "x"},
	{name: "ideal: get @128 / etcd", key: "ideal/get@128/ops", by: "etcd/get@128/ops", unit: "x"},
	{
		name: "ideal: put @128 CPU/op / etcd", key: "ideal/put@128/cpu", by: "etcd/put@128/cpu",
		lower: true, unit: "x",
	},
	{
		name: "ideal: get @128 CPU/op / etcd", key: "ideal/get@128/cpu", by: "etcd/get@128/cpu",
		lower: true, unit: "x",
	},
	{name: "echo: get @128 / etcd", key: "echo/get@128/ops", by: "etcd/get@128/ops", unit: "x"},
	{name: "etcd: idle CPU", key: "etcd/idle/percent", lower: true, unit: " %"},
	{name: "etcd: start to first put", key: "etcd/start/first-put", lower: true, unit: " s"},
	{name: "etcd: leader killed to writes", key: "etcd/failover/seconds", lower: true, unit: " s"},
	{name: "etcd: RSS of 3 servers", key: "etcd/rss/mib", lower: true, unit: " MiB"},
	{name: "RSS of 3 servers", key: "tinykv/rss/mib", lower: true, unit: " MiB"},
	{name: "RSS with the scheduler", key: "tinykv+scheduler/rss/mib", lower: true, unit: " MiB"},
}

// measured is the goal's number over the rounds: median, least, greatest; ok is false if there is
// none.
func (g goal) measured(f figures) (mid, low, high float64, ok bool) {
	vs := f.values(g.key)
	if g.by != "" {
		vs = f.ratios(g.key, g.by)
	}
	if len(vs) == 0 {
		return 0, 0, 0, false
	}
	return median(vs), slices.Min(vs), slices.Max(vs), true
}

// verdict compares a number with the goal and the stretch goal.
func (g goal) verdict(v float64) string {
	reached := func(limit float64) bool {
		if g.lower {
			return v <= limit
		}
		return v >= limit
	}
	switch {
	case g.goal == 0:
		return ""
	case g.stretch != 0 && reached(g.stretch):
		return "stretch met"
	case reached(g.goal):
		return "goal met"
	}
	return "MISSED"
}

func (g goal) limit(v float64) string {
	switch {
	case v == 0:
		return "-"
	case g.lower:
		return fmt.Sprintf("<= %.2f%s", v, g.unit)
	}
	return fmt.Sprintf(">= %.2f%s", v, g.unit)
}

func median(vs []float64) float64 {
	s := slices.Sorted(slices.Values(vs))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

func (b *bench) report(w io.Writer) error {
	const head = "%d rounds, %d keys of 16 B, values of 256 B (txn: 200 B), %s per cell after %s of warm-up; medians [least..greatest]\n"
	fmt.Fprintf(w, head,
		b.o.rounds, b.o.keys, b.o.duration, b.o.warmup)
	if len(b.other) > 0 {
		fmt.Fprintf(w, "other processes used %.2f cores in the median cell, %.2f at most\n",
			median(b.other), slices.Max(b.other))
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "FIGURE\tMEASURED\tSPREAD\tGOAL\tSTRETCH\t")
	for _, g := range goals {
		if mid, low, high, ok := g.measured(b.figures); ok {
			fmt.Fprintf(tw, "%s\t%.2f%s\t[%.2f..%.2f]\t%s\t%s\t%s\n", g.name, mid, g.unit, low,
				high, g.limit(g.goal), g.limit(g.stretch), g.verdict(mid))
		}
	}
	fmt.Fprintln(tw)
	if err := tw.Flush(); err != nil {
		return err
	}
	return b.reportCells(w)
}

// reportCells prints every cell's medians: operations per second, p50 and p99 in ms, server CPU in
// microseconds per operation, errors.
func (b *bench) reportCells(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "SERIES\tCELL\tOPS/S\tSPREAD\tP50 MS\tP99 MS\tSERVER CPU US/OP\tERRORS\t")
	for _, series := range []string{
		"etcd", "etcd-txn", "tinykv", "txn", "txn-long", "stream", besideName, clientgoName,
		"1region", "32regions", "ideal", "echo",
	} {
		for _, c := range matrix {
			key := strings.Join([]string{series, c.String(), ""}, "/")
			ops := b.figures.values(key + "ops")
			if len(ops) == 0 {
				continue
			}
			cpu := "n/a"
			if v := b.figures.values(key + "cpu"); len(v) > 0 {
				cpu = fmt.Sprintf("%.1f", median(v))
			}
			errs := 0.0
			for _, e := range b.figures.values(key + "errors") {
				errs += e
			}
			fmt.Fprintf(tw, "%s\t%s\t%.0f\t[%.0f..%.0f]\t%.2f\t%.2f\t%s\t%.0f\t\n", series, c,
				median(ops), slices.Min(ops), slices.Max(ops),
				median(b.figures.values(key+"p50")), median(b.figures.values(key+"p99")), cpu, errs)
		}
	}
	return tw.Flush()
}
